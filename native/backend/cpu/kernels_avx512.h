// The kernels of the sets avx512_vnni and amx_bf16.
#pragma once

#include "backend/cpu/kernels_ref.h"

namespace gemma::cpu {

void gemm_quantized_avx512_vnni(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                                const Scratch& scratch);
void gemm_float_avx512(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride,
                       const Scratch& scratch);
void add_low_rank_avx512(const LowRankRows& rows, int col_begin, int col_end);
void quantize_row_avx512(const float* x, int n_cols, const QuantizedRowOut& out);
void rms_norm_avx512(float* out, const float* x, const float* weight, int dim, float eps);
void add_rms_norm_avx512(float* x, const float* branch, const float* weight, int dim, float eps);
void norm_rope_avx512(float* x, const float* weight, const float* table, int head_dim, float eps, float scale);
void geglu_avx512(float* out, const float* gate, const float* up, int dim);
void store_kv_row_avx512(KvType type, const float* x, std::byte* row, int head_dim);
void attention_avx512(const AttentionTile& tile, const Scratch& scratch);
void merge_segments_avx512(float* acc, float* max, float* sum, const float* acc2, float max2, float sum2, int head_dim);
void load_columns_avx512(const WeightRows& w, int n_cols, float* columns, const Scratch& scratch);
bool screen_pack_avx512(float* columns, int n_cols, int block, uint8_t* codes, float* step, float* deviation,
                        float* rounding);
void screen_bound_avx512_vnni(const ScreenTable& table, int panel_begin, int panel_end, const ScreenQuery* queries,
                              int n_queries);
void layer_norm_avx512(float* out, const float* x, const float* weight, const float* bias, int dim, float eps);
void add_bias_avx512(float* x, const float* bias, int dim);
void bias_gelu_avx512(float* x, const float* bias, int dim);
void add_residual_bias_avx512(float* x, const float* branch, const float* bias, int dim);
extern const FullAttention kExactAttentionAvx512;
extern const FullAttention kFastAttentionAvx512Vnni;
extern const BulkGemm kBulkAmxBf16;
void bulk_attention_amx_bf16(const AttentionTile& tile, const Scratch& scratch);
extern const FullAttention kFastAttentionAmxBf16;
void multiply_panels_avx512(const PanelProduct& product);
void load_panels_avx512(const WeightRows& w, int n_cols, float* panels, size_t panel_stride, const Scratch& scratch);
float largest_avx512(const float* x, int n);
float exp_row_avx512(float* x, int n, float scale, float shift);
void geglu_backward_avx512(float* d_gate, float* d_up, const float* gate, const float* up, const float* d, int dim);

}  // namespace gemma::cpu
