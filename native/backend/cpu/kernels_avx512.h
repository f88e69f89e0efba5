// The AVX-512 kernels by name; callers go through kernels_avx512_vnni().
#pragma once

#include "backend/cpu/kernels_ref.h"

namespace gemma::cpu {

void gemm_quantized_avx512_vnni(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                                const Scratch& scratch);
void gemm_float_avx512(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride,
                       const Scratch& scratch);
void attention_avx512(const AttentionTile& tile, const Scratch& scratch);

}  // namespace gemma::cpu
