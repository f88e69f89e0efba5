// The kernels of training for any vector type; internal to each file that includes it.
//
// V is a vector type as exp.h wants it, with kLanes, load, store (of any address), set1, add, sub, mul, max, div, and
// kTileVectors and kTileRows: the tile of a product that its registers hold.
#pragma once

#include "backend/cpu/inlining.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/small_math.h"

namespace gemma::cpu {
namespace {

constexpr int kHalfPanel = kPanelColumns / 2;

// Rows x vectors of c. b[v] is where vector v of row 0 is.
template <class V, int kRows, int kVectors>
GEMMA_INLINE void multiply_tile(const float* a, const float* const* b, size_t b_stride, int depth, float* c,
                                size_t c_stride, bool add) {
  using Float = typename V::Float;
  Float acc[kRows][kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      acc[r][v] = add ? V::load(c + static_cast<size_t>(r) * c_stride + v * V::kLanes) : V::set1(0);
  }
  const float* b0[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) b0[v] = b[v];
  for (int k = 0; k < depth; ++k) {
    Float columns[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      columns[v] = V::load(b0[v]);
      b0[v] += b_stride;
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Float row = V::set1(a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[r][v] = V::fma(row, columns[v], acc[r][v]);
    }
    a += kPanelRows;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) V::store(c + static_cast<size_t>(r) * c_stride + v * V::kLanes, acc[r][v]);
  }
}

// A panel's rows with up to kVectors vectors of columns from column first on.
template <class V, int kVectors>
GEMMA_INLINE void multiply_columns(const PanelProduct& p, const float* a, int n_rows, int first, float* c) {
  constexpr int kTileColumns = kVectors * V::kLanes;
  const float* b[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const int column = first + v * V::kLanes;
    b[v] =
        p.b + (column < kHalfPanel ? static_cast<size_t>(column) : p.b_half + static_cast<size_t>(column - kHalfPanel));
  }
  const int n_cols = least(p.n_cols - first, kTileColumns);
  for (int row = 0; row < n_rows; row += V::kTileRows) {
    float* tile = c + static_cast<size_t>(row) * p.c_stride + first;
    const int n_tile_rows = least(n_rows - row, V::kTileRows);
    if (n_tile_rows == V::kTileRows && n_cols == kTileColumns) {
      multiply_tile<V, V::kTileRows, kVectors>(a + row, b, p.b_stride, p.depth, tile, p.c_stride, p.add);
      continue;
    }
    float part[V::kTileRows * kTileColumns] = {};
    for (int r = 0; p.add && r < n_tile_rows; ++r) {
      for (int j = 0; j < n_cols; ++j) part[r * kTileColumns + j] = tile[static_cast<size_t>(r) * p.c_stride + j];
    }
    multiply_tile<V, V::kTileRows, kVectors>(a + row, b, p.b_stride, p.depth, part, kTileColumns, p.add);
    for (int r = 0; r < n_tile_rows; ++r) {
      for (int j = 0; j < n_cols; ++j) tile[static_cast<size_t>(r) * p.c_stride + j] = part[r * kTileColumns + j];
    }
  }
}

// So much of the depth at a time that a panel of b stays in the first cache while all panels of a pass by.
constexpr int kNearDepth = 192;

template <class V>
void multiply_panels_of(const PanelProduct& product) {
  PanelProduct p = product;
  for (int k = 0; k < product.depth; k += kNearDepth) {
    p.depth = least(product.depth - k, kNearDepth);
    p.a = product.a + static_cast<size_t>(k) * kPanelRows;
    p.b = product.b + static_cast<size_t>(k) * product.b_stride;
    p.add = product.add || k > 0;
    for (int row = 0; row < p.n_rows; row += kPanelRows) {
      const float* a = p.a + static_cast<size_t>(row / kPanelRows) * p.a_stride;
      float* c = p.c + static_cast<size_t>(row) * p.c_stride;
      const int n_rows = least(p.n_rows - row, kPanelRows);
      for (int first = 0; first < p.n_cols;) {
        if (p.n_cols - first > V::kLanes) {
          multiply_columns<V, V::kTileVectors>(p, a, n_rows, first, c);
          first += V::kTileVectors * V::kLanes;
        } else {
          multiply_columns<V, 1>(p, a, n_rows, first, c);
          first += V::kLanes;
        }
      }
    }
  }
}

// f(x, at, n) for each vector of a row: x is where to read and write n values of it, which begin at column at.
template <class V, class F>
GEMMA_INLINE void for_vectors(int n, const F& f) {
  int at = 0;
  for (; at + V::kLanes <= n; at += V::kLanes) f(at, V::kLanes);
  if (at < n) f(at, n - at);
}

template <class V>
GEMMA_INLINE typename V::Float load_part(const float* x, int n, float rest) {
  if (n == V::kLanes) return V::load(x);
  float part[V::kLanes];
  for (int i = 0; i < V::kLanes; ++i) part[i] = i < n ? x[i] : rest;
  return V::load(part);
}

template <class V>
GEMMA_INLINE void store_part(float* x, int n, typename V::Float v) {
  if (n == V::kLanes) return V::store(x, v);
  float part[V::kLanes];
  V::store(part, v);
  for (int i = 0; i < n; ++i) x[i] = part[i];
}

template <class V>
float largest_of(const float* x, int n) {
  typename V::Float largest = V::set1(-kInfinity);
  for_vectors<V>(n, [&](int at, int count) { largest = V::max(largest, load_part<V>(x + at, count, -kInfinity)); });
  return V::max_lanes(largest);
}

template <class V>
float exp_row_of(float* x, int n, float scale, float shift) {
  using Float = typename V::Float;
  Float sum = V::set1(0);
  for_vectors<V>(n, [&](int at, int count) {
    const Float e = V::exp(V::fma(load_part<V>(x + at, count, -kInfinity), V::set1(scale), V::set1(-shift)));
    store_part<V>(x + at, count, e);
    sum = V::add(sum, e);
  });
  return V::sum_lanes(sum);
}

// gelu(v) = 0.5 v (1 + tanh(u)) = v s with s = 1 / (1 + exp(-2 u)), u = sqrt(2 / pi) (v + 0.044715 v^3), and
// gelu'(v) = s + v s (1 - s) 2 u'.
template <class V>
void geglu_backward_of(float* d_gate, float* d_up, const float* gate, const float* up, const float* d, int dim) {
  using Float = typename V::Float;
  constexpr float kTwice = 2 * 0.7978845608028654f;
  for_vectors<V>(dim, [&](int at, int n) {
    const Float v = load_part<V>(gate + at, n, 0);
    const Float w = load_part<V>(up + at, n, 0);
    const Float g = load_part<V>(d + at, n, 0);
    const Float square = V::mul(v, v);
    const Float u2 = V::mul(V::mul(v, V::set1(kTwice)), V::fma(square, V::set1(0.044715f), V::set1(1)));
    const Float slope = V::fma(square, V::set1(kTwice * 3 * 0.044715f), V::set1(kTwice));
    const Float s = V::div(V::set1(1), V::add(V::set1(1), V::exp(V::sub(V::set1(0), u2))));
    const Float gelu = V::mul(v, s);
    const Float d_gelu = V::fma(V::mul(gelu, V::sub(V::set1(1), s)), slope, s);
    store_part<V>(d_up + at, n, V::mul(g, gelu));
    store_part<V>(d_gate + at, n, V::mul(V::mul(g, w), d_gelu));
  });
}

}  // namespace
}  // namespace gemma::cpu
