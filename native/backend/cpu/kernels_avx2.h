// The kernels of the sets avx2 and avx_vnni.
#pragma once

#include "backend/cpu/kernels_ref.h"

namespace gemma::cpu {

void gemm_quantized_avx2(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                         const Scratch& scratch);
void gemm_quantized_avx_vnni(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                             const Scratch& scratch);
void gemm_float_avx2(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride,
                     const Scratch& scratch);
void add_low_rank_avx2(const LowRankRows& rows, int col_begin, int col_end);
void quantize_row_avx2(const float* x, int n_cols, const QuantizedRowOut& out);
void rms_norm_avx2(float* out, const float* x, const float* weight, int dim, float eps);
void add_rms_norm_avx2(float* x, const float* branch, const float* weight, int dim, float eps);
void norm_rope_avx2(float* x, const float* weight, const float* table, int head_dim, float eps, float scale);
void geglu_avx2(float* out, const float* gate, const float* up, int dim);
void store_kv_row_avx2(KvType type, const float* x, std::byte* row, int head_dim);
void attention_avx2(const AttentionTile& tile, const Scratch& scratch);
void merge_segments_avx2(float* acc, float* max, float* sum, const float* acc2, float max2, float sum2, int head_dim);
bool screen_pack_avx2(float* columns, int n_cols, int block, uint8_t* codes, float* step, float* deviation,
                      float* rounding);
void screen_bound_avx2(const ScreenTable& table, int panel_begin, int panel_end, const ScreenQuery* queries,
                       int n_queries);
void layer_norm_avx2(float* out, const float* x, const float* weight, const float* bias, int dim, float eps);
void add_bias_avx2(float* x, const float* bias, int dim);
void bias_gelu_avx2(float* x, const float* bias, int dim);
void add_residual_bias_avx2(float* x, const float* branch, const float* bias, int dim);
extern const FullAttention kExactAttentionAvx2;
extern const FullAttention kFastAttentionAvx2;
extern const FullAttention kFastAttentionAvxVnni;
void multiply_panels_avx2(const PanelProduct& product);
float largest_avx2(const float* x, int n);
float exp_row_avx2(float* x, int n, float scale, float shift);
void geglu_backward_avx2(float* d_gate, float* d_up, const float* gate, const float* up, const float* d, int dim);

}  // namespace gemma::cpu
