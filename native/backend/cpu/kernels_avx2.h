// The AVX2 kernels by name; callers go through kernels_avx2().
#pragma once

#include "backend/cpu/kernels_ref.h"

namespace gemma::cpu {

void gemm_quantized_avx2(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                         const Scratch& scratch);
void gemm_float_avx2(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride,
                     const Scratch& scratch);
void attention_avx2(const AttentionTile& tile, const Scratch& scratch);
bool screen_pack_avx2(float* columns, int n_cols, int block, uint8_t* codes, float* step, float* deviation,
                      float* rounding);
void screen_bound_avx2(const ScreenTable& table, int panel_begin, int panel_end, const ScreenQuery* queries,
                       int n_queries);
extern const FullAttention kExactAttentionAvx2;
extern const FullAttention kFastAttentionAvxVnni;

}  // namespace gemma::cpu
