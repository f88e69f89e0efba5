// The arm64 kernels by name; callers go through kernels_neon_dotprod() and kernels_neon_i8mm(), which differ in the
// quantised products alone.
#pragma once

#include "backend/cpu/kernels_ref.h"

namespace gemma::cpu {

void gemm_quantized_neon_dotprod(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                                 const Scratch& scratch);
void gemm_quantized_neon_i8mm(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                              const Scratch& scratch);
void gemm_float_neon(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride,
                     const Scratch& scratch);
void attention_neon(const AttentionTile& tile, const Scratch& scratch);
bool screen_pack_neon(float* columns, int n_cols, int block, uint8_t* codes, float* step, float* deviation,
                      float* rounding);
void screen_bound_neon(const ScreenTable& table, int panel_begin, int panel_end, const ScreenQuery* queries,
                       int n_queries);
extern const FullAttention kExactAttentionNeon;
extern const FullAttention kFastAttentionNeonDotprod;

}  // namespace gemma::cpu
