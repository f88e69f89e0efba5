// A paged cache for the tests of attention, and a softmax in double over what it holds.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/kernels.h"
#include "base/half.h"
#include "kernel_cases.h"

namespace gemma::test {

inline size_t kv_row_bytes(KvType type, int head_dim) {
  const size_t n = static_cast<size_t>(head_dim);
  return type == KvType::kF32 ? 4 * n : type == KvType::kF16 ? 2 * n : n / 32 * 34;
}

inline std::string type_name(KvType type) {
  return type == KvType::kF32 ? "f32" : type == KvType::kF16 ? "f16" : "q8_0";
}

// A sequence's pages, each in memory of its own. Positions that are not filled are zero, as the pool hands pages out;
// what is before the layer's rows in a page is NaN.
struct Cache {
  KvLayout layout;
  std::vector<std::vector<std::byte>> memory;
  std::vector<const std::byte*> pages;

  Cache(KvType type, int n_kv_heads, int head_dim, int n_positions) {
    layout = {type, n_kv_heads, head_dim, kv_row_bytes(type, head_dim), 128};
    const size_t bytes = layout.v_offset() + static_cast<size_t>(n_kv_heads * kPagePositions) * layout.row_bytes;
    for (int p = 0; p < n_positions; p += kPagePositions) {
      memory.emplace_back(bytes, std::byte{0});
      std::fill_n(memory.back().begin(), layout.layer_offset, std::byte{0xff});
    }
    for (const auto& page : memory) pages.push_back(page.data());
  }

  std::byte* row(bool values, int head, int position) {
    const size_t index = static_cast<size_t>(head * kPagePositions + position % kPagePositions);
    return memory[static_cast<size_t>(position / kPagePositions)].data() +
           (values ? layout.v_offset() : layout.layer_offset) + index * layout.row_bytes;
  }
  void fill(std::mt19937& rng, int n_positions, float key_size = 1.0f) {
    const size_t n = static_cast<size_t>(layout.head_dim);
    for (int p = 0; p < n_positions; ++p) {
      for (int h = 0; h < layout.n_kv_heads; ++h) {
        cpu::kernels_ref().store_kv_row(layout.type, random_floats(rng, n, key_size).data(), row(false, h, p),
                                        layout.head_dim);
        cpu::kernels_ref().store_kv_row(layout.type, random_floats(rng, n).data(), row(true, h, p), layout.head_dim);
      }
    }
  }
  // The values as they are stored.
  std::vector<double> read(bool values, int head, int position) {
    const std::byte* at = row(values, head, position);
    const auto half_at = [&](size_t offset) {
      uint16_t half = 0;
      std::memcpy(&half, at + offset, 2);
      return static_cast<double>(f16_to_f32(half));
    };
    std::vector<double> out;
    for (size_t j = 0; j < static_cast<size_t>(layout.head_dim); ++j) {
      if (layout.type == KvType::kF32) {
        float value = 0;
        std::memcpy(&value, at + 4 * j, 4);
        out.push_back(value);
      } else if (layout.type == KvType::kF16) {
        out.push_back(half_at(2 * j));
      } else {
        out.push_back(half_at(j / 32 * 34) * static_cast<int8_t>(at[j / 32 * 34 + 2 + j % 32]));
      }
    }
    return out;
  }
};

struct Exact {
  std::vector<double> out;  // normalised
  std::vector<double> tolerance;
  std::vector<double> magnitude;  // weighted mean of absolute values
  double score_magnitude = 0;
  double sum_rounding = 0;  // of weights that are rounded before they are added up
  double max = 0;
  double score_tolerance = 0;  // of a score, in a kernel that adds in float
  std::vector<double> scores;
};

// Softmax in double over what the cache holds. Scores are added up in n_chains chains at least, then as a tree.
inline Exact exact_attention(Cache& cache, int kv_head, const std::vector<float>& q, RowSpan span, int n_chains = 8) {
  const size_t head_dim = q.size();
  Exact exact;
  exact.max = -std::numeric_limits<double>::infinity();
  double magnitude = 0;
  for (int p = span.begin; p < span.end; ++p) {
    const std::vector<double> k = cache.read(false, kv_head, p);
    double score = 0;
    double absolute = 0;
    for (size_t j = 0; j < head_dim; ++j) {
      score += q[j] * k[j];
      absolute += std::fabs(q[j] * k[j]);
    }
    exact.scores.push_back(score);
    exact.max = std::max(exact.max, score);
    magnitude = std::max(magnitude, absolute);
  }
  // A value of q8_0 is a product too.
  exact.score_magnitude = magnitude;
  exact.score_tolerance = (static_cast<double>(head_dim) / n_chains + 6) * 0x1p-24 * magnitude;
  double sum = 0;
  std::vector<double> out(head_dim);
  std::vector<double> absolute(head_dim);
  for (int p = span.begin; p < span.end; ++p) {
    const double weight = std::exp(exact.scores[static_cast<size_t>(p - span.begin)] - exact.max);
    const std::vector<double> v = cache.read(true, kv_head, p);
    sum += weight;
    for (size_t j = 0; j < head_dim; ++j) {
      out[j] += weight * v[j];
      absolute[j] += weight * std::fabs(v[j]);
    }
  }
  // A weight is off by the errors of two scores, of exp and of the rescaling of each page; then the additions.
  const int n = span.end - span.begin;
  const double relative = 2 * exact.score_tolerance + (4.0 * (n / 32 + 2) + n + 8) * 0x1p-24;
  for (size_t j = 0; j < head_dim; ++j) {
    exact.out.push_back(out[j] / sum);
    exact.tolerance.push_back(2 * relative * absolute[j] / sum);
    exact.magnitude.push_back(absolute[j] / sum);
  }
  return exact;
}

}  // namespace gemma::test
