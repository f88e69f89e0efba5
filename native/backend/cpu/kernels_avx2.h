// The AVX2 kernels by name; callers go through kernels_avx2().
#pragma once

#include "backend/cpu/kernels_ref.h"

namespace gemma::cpu {

void gemm_quantized_avx2(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                         const Scratch& scratch);
void gemm_float_avx2(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride,
                     const Scratch& scratch);
void attention_avx2(const AttentionTile& tile, const Scratch& scratch);

}  // namespace gemma::cpu
