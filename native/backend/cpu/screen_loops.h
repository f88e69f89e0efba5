// What the packing of screens is made of, in plain loops over 16 lanes that each instruction set's file compiles for
// itself: results are equal to the bit. Everything here is local to the including file.
#pragma once

#include <cstddef>

#include "backend/cpu/kernels.h"
#include "backend/cpu/small_math.h"
#include "backend/cpu/unrolled.h"

namespace gemma::cpu {
namespace {

// n items in groups of kMost, the last one smaller: f(Constant<size>, first).
template <int kMost, class F>
inline void in_groups(int n, const F& f) {
  int first = 0;
  for (; first + kMost <= n; first += kMost) f(Constant<kMost>{}, first);
  if constexpr (kMost > 1) {
    if (first < n) in_groups<kMost - 1>(n - first, [&](auto size, int i) { f(size, first + i); });
  }
}

// Walsh-Hadamard transform along the columns, lane by lane, and the squared norms. False: NaN, infinity or overflow.
inline bool rotate_columns(float* columns, int n_cols, int block, float* squares) {
  constexpr int kLanes = kScreenLanes;
  for (int first = 0; first < n_cols; first += block) {
    float* x = columns + static_cast<size_t>(first) * kLanes;
    for (int h = kLanes; h < block * kLanes; h *= 2) {
      for (int i = 0; i < block * kLanes; i += 2 * h) {
        float* a = x + i;
        float* b = a + h;
        for (int j = 0; j < h; ++j) {
          const float sum = a[j] + b[j];
          b[j] = a[j] - b[j];
          a[j] = sum;
        }
      }
    }
  }
  const float scale = 1.0f / square_root(static_cast<float>(block));
  float sums[kLanes] = {};
  for (int c = 0; c < n_cols; ++c) {
    float* column = columns + static_cast<size_t>(c) * kLanes;
    for (int lane = 0; lane < kLanes; ++lane) {
      column[lane] *= scale;
      sums[lane] += column[lane] * column[lane];
    }
  }
  bool finite = true;
  for (int lane = 0; lane < kLanes; ++lane) {
    squares[lane] = sums[lane];
    finite = finite && sums[lane] < 1e30f;
  }
  return finite;
}

// 1 / width of a level for rows of these squared norms: 16 levels of 0.3352 standard deviations are the best for
// Gaussian values (Max 1960). 0 for rows too small to divide by.
inline void level_widths(const float* squares, int n_cols, float* inverse) {
  for (int lane = 0; lane < kScreenLanes; ++lane) {
    const float width = 0.3352f * square_root(squares[lane] / static_cast<float>(n_cols));
    inverse[lane] = width > 1e-15f ? 1.0f / width : 0.0f;
  }
}

// product: <w, code - 7.5>; length: |code - 7.5|^2.
inline void finish_panel(const float* squares, const float* inverse, const float* product, const float* length,
                         float* step, float* deviation, float* rounding) {
  for (int lane = 0; lane < kScreenLanes; ++lane) {
    const bool usable = inverse[lane] > 0;
    step[lane] = usable ? squares[lane] / product[lane] : 0.0f;
    const float left = usable ? most(step[lane] * step[lane] * length[lane] - squares[lane], 0.0f) : squares[lane];
    // A floor, for rows that the codes hit exactly.
    deviation[lane] = square_root(most(left, 1e-6f * squares[lane]));
    rounding[lane] = deviation[lane] > 0 ? squares[lane] / (2 * deviation[lane]) : 0.0f;
  }
}

}  // namespace
}  // namespace gemma::cpu
