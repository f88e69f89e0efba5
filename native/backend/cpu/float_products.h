// Products of rows of x with weights in F32, F16 and BF16: which rows are multiplied together, for any instruction set;
// internal to each file that includes it.
//
// Isa has F32, F16 and BF16, types of weights; multiply<Type, kW, kX>(w, w_row_bytes, x, n_cols, out, out_stride), the
// products of kW weight rows with kX rows of x; and how many it has registers for: kSingle weight rows with one row of
// x, kW with kX rows of x.
#pragma once

#include "backend/cpu/kernels.h"
#include "backend/cpu/small_math.h"

namespace gemma::cpu {
namespace {

template <class Isa, class Type, int kW, int kX>
void multiply_float_rows(const std::byte* w, size_t w_row_bytes, const float* x, int n_x, int n_cols, float* out,
                         size_t out_stride) {
  int r = 0;
  for (; r + kX <= n_x; r += kX) {
    Isa::template multiply<Type, kW, kX>(w, w_row_bytes, row_of(x, r, n_cols), n_cols, row_of(out, r, out_stride),
                                         out_stride);
  }
  for (; r < n_x; ++r) {
    Isa::template multiply<Type, kW, 1>(w, w_row_bytes, row_of(x, r, n_cols), n_cols, row_of(out, r, out_stride),
                                        out_stride);
  }
}

// What stays of x in a core's first cache while the weight rows of a chunk pass: else x comes from the third for every
// few of them (F32 EmbeddingGemma, AVX-512: 1.1 times the time).
constexpr size_t kFloatBlockBytes = size_t{24} << 10;

template <class Isa, class Type>
void gemm_float_type(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride) {
  constexpr int kSingle = Isa::kSingle;
  constexpr int kW = Isa::kW;
  constexpr int kX = Isa::kX;
  int n = w.row_begin;
  const auto row = [&] { return row_of(w.w, n, w.w_row_bytes); };
  if (n_x == 1) {
    for (; n + kSingle <= w.row_end; n += kSingle)
      Isa::template multiply<Type, kSingle, 1>(row(), w.w_row_bytes, x, n_cols, out + n, out_stride);
  }
  // All weight rows with some rows of x, which stay near, then with the next.
  const int first = n;
  const size_t n_near = kFloatBlockBytes / (static_cast<size_t>(n_cols) * sizeof(float)) / kX * kX;
  const int n_block = static_cast<int>(n_near > kX ? n_near : kX);
  for (int begin = 0; begin < n_x; begin += n_block) {
    const int n_rows = n_x - begin < n_block ? n_x - begin : n_block;
    const float* xs = row_of(x, begin, n_cols);
    float* outs = row_of(out, begin, out_stride);
    n = first;
    for (; n_x > 1 && n + kW <= w.row_end; n += kW)
      multiply_float_rows<Isa, Type, kW, kX>(row(), w.w_row_bytes, xs, n_rows, n_cols, outs + n, out_stride);
    for (; n < w.row_end; ++n)
      multiply_float_rows<Isa, Type, 1, kX>(row(), w.w_row_bytes, xs, n_rows, n_cols, outs + n, out_stride);
  }
}

template <class Isa>
void gemm_float(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride) {
  switch (w.type) {
    case TensorType::kF32: return gemm_float_type<Isa, typename Isa::F32>(w, x, n_x, n_cols, out, out_stride);
    case TensorType::kF16: return gemm_float_type<Isa, typename Isa::F16>(w, x, n_x, n_cols, out, out_stride);
    default: return gemm_float_type<Isa, typename Isa::BF16>(w, x, n_x, n_cols, out, out_stride);
  }
}

}  // namespace
}  // namespace gemma::cpu
