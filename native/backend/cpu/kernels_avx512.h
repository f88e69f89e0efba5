// The AVX-512 kernels by name; callers go through kernels_avx512_vnni().
#pragma once

#include "backend/cpu/kernels_ref.h"

namespace gemma::cpu {

void gemm_quantized_avx512_vnni(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                                const Scratch& scratch);
void gemm_float_avx512(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride,
                       const Scratch& scratch);
void attention_avx512(const AttentionTile& tile, const Scratch& scratch);
void load_columns_avx512(const WeightRows& w, int n_cols, float* columns, const Scratch& scratch);
bool screen_pack_avx512(float* columns, int n_cols, int block, uint8_t* codes, float* step, float* deviation,
                        float* rounding);
void screen_bound_avx512_vnni(const ScreenTable& table, int panel_begin, int panel_end, const ScreenQuery* queries,
                              int n_queries);
extern const FullAttention kExactAttentionAvx512;
extern const FullAttention kFastAttentionAvx512Vnni;

}  // namespace gemma::cpu
