// The screen's packing in plain loops over 16 lanes, which each instruction set's file compiles for itself: all results are
// equal to the bit. Everything here is local to the including file.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "backend/cpu/kernels.h"

namespace gemma::cpu {
namespace {

// kernels.h, screen_pack.
inline bool screen_pack_loops(const float* rows, int n_cols, int block, uint8_t* codes, float* step, float* residual,
                              float* norm, float* columns) {
  constexpr int kLanes = kScreenLanes;
  for (int c = 0; c < n_cols; ++c) {
    for (int lane = 0; lane < kLanes; ++lane) columns[c * kLanes + lane] = rows[lane * n_cols + c];
  }
  // Walsh-Hadamard transform along the columns, lane by lane.
  for (int h = 1; h < block; h *= 2) {
    for (int i = 0; i < n_cols; i += 2 * h) {
      float* a = columns + i * kLanes;
      float* b = a + h * kLanes;
      for (int j = 0; j < h * kLanes; ++j) {
        const float sum = a[j] + b[j];
        b[j] = a[j] - b[j];
        a[j] = sum;
      }
    }
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(block));
  float squares[kLanes] = {};
  for (int c = 0; c < n_cols; ++c) {
    float* column = columns + c * kLanes;
    for (int lane = 0; lane < kLanes; ++lane) {
      column[lane] *= scale;
      squares[lane] += column[lane] * column[lane];
    }
  }
  // 16 levels of 0.3352 standard deviations are the best for Gaussian values (Max 1960).
  float inverse[kLanes];
  bool finite = true;
  for (int lane = 0; lane < kLanes; ++lane) {
    finite = finite && squares[lane] < 1e30f;
    const float width = 0.3352f * std::sqrt(squares[lane] / static_cast<float>(n_cols));
    inverse[lane] = width > 1e-15f ? 1.0f / width : 0.0f;
  }
  if (!finite) return false;  // NaN too
  float product[kLanes] = {};  // <w, code - 7.5>
  float length[kLanes] = {};   // |code - 7.5|^2
  for (int g = 0; g < n_cols / 8; ++g) {
    uint32_t packed[kLanes] = {};
    for (int i = 0; i < 8; ++i) {
      const float* column = columns + (8 * g + i) * kLanes;
      const int shift = i < 4 ? 8 * i : 8 * (i - 4) + 4;
      for (int lane = 0; lane < kLanes; ++lane) {
        const float level = std::min(std::max(column[lane] * inverse[lane] + 8.0f, 0.0f), 15.0f);
        const uint32_t code = static_cast<uint32_t>(static_cast<int32_t>(level));  // towards zero: the floor
        const float value = static_cast<float>(static_cast<int32_t>(code)) - 7.5f;
        product[lane] += column[lane] * value;
        length[lane] += value * value;
        packed[lane] |= code << shift;
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int i = 0; i < 4; ++i)
        codes[g * 64 + lane * 4 + i] = static_cast<uint8_t>(packed[lane] >> (8 * i));
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    step[lane] = inverse[lane] > 0 ? squares[lane] / product[lane] : 0.0f;
    norm[lane] = squares[lane];
    residual[lane] = std::max(step[lane] * step[lane] * length[lane] - squares[lane], 0.0f);
    if (inverse[lane] == 0) residual[lane] = squares[lane];
  }
  return true;
}

}  // namespace
}  // namespace gemma::cpu
