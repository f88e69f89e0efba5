// One tile of attention over the paged cache, with the running softmax of Milakov and Gimelshein (arXiv 1805.02867),
// page by page. Query rows come already scaled. Plain loops, kept as the oracle.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/kernels_ref.h"
#include "base/half.h"

namespace gemma::cpu {
namespace {

void load_row(const AttentionTile& tile, const std::byte* row, float* out) {
  const int head_dim = tile.head_dim;
  switch (tile.type) {
    case KvType::kF32: std::memcpy(out, row, static_cast<size_t>(head_dim) * 4); break;
    case KvType::kF16:
      for (int j = 0; j < head_dim; ++j) {
        uint16_t half = 0;
        std::memcpy(&half, row + static_cast<size_t>(j) * 2, 2);
        out[j] = f16_to_f32(half);
      }
      break;
    case KvType::kQ8_0:
      for (int b = 0; b < head_dim / 32; ++b) {
        const std::byte* block = row + static_cast<size_t>(b) * kKvBlockBytes;
        uint16_t half = 0;
        std::memcpy(&half, block, 2);
        const float d = f16_to_f32(half);
        for (int j = 0; j < 32; ++j) out[b * 32 + j] = d * static_cast<float>(static_cast<int8_t>(block[2 + j]));
      }
      break;
  }
}

}  // namespace

void store_kv_row_ref(KvType type, const float* x, std::byte* row, int head_dim) {
  switch (type) {
    case KvType::kF32: std::memcpy(row, x, static_cast<size_t>(head_dim) * 4); break;
    case KvType::kF16:
      for (int j = 0; j < head_dim; ++j) {
        const uint16_t half = f32_to_f16(x[j]);
        std::memcpy(row + static_cast<size_t>(j) * 2, &half, 2);
      }
      break;
    case KvType::kQ8_0:
      for (int b = 0; b < head_dim / 32; ++b) {
        const float* xb = x + b * 32;
        float largest = 0;
        bool finite = true;
        for (int j = 0; j < 32; ++j) {
          largest = std::max(largest, std::fabs(xb[j]));
          finite = finite && std::isfinite(xb[j]);
        }
        // Quantised with the scale as stored, so that rounding it to half costs nothing twice.
        const uint16_t half = finite ? f32_to_f16(largest / 127.0f) : uint16_t{0x7e00};
        const float d = f16_to_f32(half);
        const float inverse = d > 0 ? 1.0f / d : 0.0f;
        std::byte* block = row + static_cast<size_t>(b) * kKvBlockBytes;
        std::memcpy(block, &half, 2);
        for (int j = 0; j < 32; ++j) {
          const float q = finite ? std::nearbyint(xb[j] * inverse) : 0.0f;
          block[2 + j] = static_cast<std::byte>(static_cast<int8_t>(std::clamp(q, -127.0f, 127.0f)));
        }
      }
      break;
  }
}

void attention_ref(const AttentionTile& tile, const Scratch& scratch) {
  const int head_dim = tile.head_dim;
  float* row = reinterpret_cast<float*>(scratch.data);
  for (int r = 0; r < tile.n_rows; ++r) {
    const RowSpan span = tile.spans[r];
    float max = -std::numeric_limits<float>::infinity();
    float sum = 0;
    float* out = tile.out[r];
    std::fill(out, out + head_dim, 0.0f);
    for (int page = span.begin / kPagePositions; page * kPagePositions < span.end && span.begin < span.end; ++page) {
      const std::byte* k = tile.pages[page] + tile.k_offset;
      const std::byte* v = tile.pages[page] + tile.v_offset;
      const int first = std::max(span.begin, page * kPagePositions) - page * kPagePositions;
      const int last = std::min(span.end, (page + 1) * kPagePositions) - page * kPagePositions;
      float scores[kPagePositions];
      float page_max = -std::numeric_limits<float>::infinity();
      for (int p = first; p < last; ++p) {
        load_row(tile, k + static_cast<size_t>(p) * tile.row_bytes, row);
        double dot = 0;
        for (int j = 0; j < head_dim; ++j) dot += static_cast<double>(tile.q[r][j]) * row[j];
        scores[p] = static_cast<float>(dot);
        page_max = std::max(page_max, scores[p]);
        if (std::isnan(scores[p])) page_max = scores[p];
      }
      const float new_max = page_max > max || std::isnan(page_max) ? page_max : max;
      const float rescale = std::exp(max - new_max);
      sum *= rescale;
      for (int j = 0; j < head_dim; ++j) out[j] *= rescale;
      max = new_max;
      for (int p = first; p < last; ++p) {
        const float weight = std::exp(scores[p] - max);
        sum += weight;
        load_row(tile, v + static_cast<size_t>(p) * tile.row_bytes, row);
        for (int j = 0; j < head_dim; ++j) out[j] = std::fma(weight, row[j], out[j]);
      }
    }
    tile.max[r] = max;
    tile.sum[r] = sum;
  }
}

void merge_segments_ref(float* acc, float* max, float* sum, const float* acc2, float max2, float sum2, int head_dim) {
  const float new_max = std::max(*max, max2);
  const float a = std::exp(*max - new_max);
  const float b = std::exp(max2 - new_max);
  for (int j = 0; j < head_dim; ++j) acc[j] = std::fma(acc2[j], b, acc[j] * a);
  *sum = std::fma(sum2, b, *sum * a);
  *max = new_max;
}

}  // namespace gemma::cpu
