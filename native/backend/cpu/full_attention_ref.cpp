// Attention of a head without mask or cache in plain loops, the oracle of the fast ones.
#include <algorithm>
#include <cmath>

#include "backend/cpu/kernels_ref.h"

namespace gemma::cpu {
namespace {

size_t no_packed_bytes(int /*n_rows*/, int /*head_dim*/) {
  return 0;
}

void no_pack(const FullAttentionHead& /*head*/, const Scratch& /*scratch*/) {}

void attend(const FullAttentionHead& head, int row_begin, int row_end, const Scratch& scratch) {
  float* scores = reinterpret_cast<float*>(scratch.data);
  const int most = static_cast<int>(scratch.bytes / sizeof(float));
  for (int r = row_begin; r < row_end; ++r) {
    const float* q = head.q + static_cast<size_t>(r) * head.stride;
    double out[kMaxFullHeadDim] = {};
    double sum = 0;
    double max = -INFINITY;
    // As many scores at a time as the working memory holds.
    for (int begin = 0; begin < head.n_rows; begin += most) {
      const int n = std::min(most, head.n_rows - begin);
      double new_max = max;
      for (int p = 0; p < n; ++p) {
        const float* k = head.k + static_cast<size_t>(begin + p) * head.stride;
        double dot = 0;
        for (int j = 0; j < head.head_dim; ++j) dot += static_cast<double>(q[j]) * k[j];
        scores[p] = static_cast<float>(dot * head.scale);
        new_max = std::max<double>(new_max, scores[p]);
      }
      const double rescale = std::exp(max - new_max);
      max = new_max;
      sum *= rescale;
      for (int j = 0; j < head.head_dim; ++j) out[j] *= rescale;
      for (int p = 0; p < n; ++p) {
        const float* v = head.v + static_cast<size_t>(begin + p) * head.stride;
        const double weight = std::exp(scores[p] - max);
        sum += weight;
        for (int j = 0; j < head.head_dim; ++j) out[j] += weight * v[j];
      }
    }
    for (int j = 0; j < head.head_dim; ++j)
      head.out[static_cast<size_t>(r) * head.stride + static_cast<size_t>(j)] = static_cast<float>(out[j] / sum);
  }
}

}  // namespace

const FullAttention kExactAttentionRef = {no_packed_bytes, no_pack, attend};

}  // namespace gemma::cpu
