// The scalar kernels, also for sets that have no faster form of one.
#pragma once

#include "backend/cpu/kernels.h"

namespace gemma::cpu {

void gemm_quantized_ref(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                        const Scratch& scratch);
void gemm_float_ref(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride,
                    const Scratch& scratch);
void add_low_rank_ref(const LowRankRows& rows, int col_begin, int col_end);
void quantize_row_ref(const float* x, int n_cols, const QuantizedRowOut& out);
void rms_norm_ref(float* out, const float* x, const float* weight, int dim, float eps);
void add_rms_norm_ref(float* x, const float* branch, const float* weight, int dim, float eps);
void norm_rope_ref(float* x, const float* weight, const float* table, int head_dim, float eps, float scale);
void geglu_ref(float* out, const float* gate, const float* up, int dim);
void store_kv_row_ref(KvType type, const float* x, std::byte* row, int head_dim);
void attention_ref(const AttentionTile& tile, const Scratch& scratch);
void merge_segments_ref(float* acc, float* max, float* sum, const float* acc2, float max2, float sum2, int head_dim);
void load_columns_ref(const WeightRows& w, int n_cols, float* columns, const Scratch& scratch);
bool screen_pack_ref(float* columns, int n_cols, int block, uint8_t* codes, float* step, float* deviation,
                     float* rounding);
void screen_bound_ref(const ScreenTable& table, int panel_begin, int panel_end, const ScreenQuery* queries,
                      int n_queries);
void layer_norm_ref(float* out, const float* x, const float* weight, const float* bias, int dim, float eps);
void add_bias_ref(float* x, const float* bias, int dim);
void bias_gelu_ref(float* x, const float* bias, int dim);
void add_residual_bias_ref(float* x, const float* branch, const float* bias, int dim);
extern const FullAttention kExactAttentionRef;
void multiply_panels_ref(const PanelProduct& product);
void load_panels_ref(const WeightRows& w, int n_cols, float* panels, size_t panel_stride, const Scratch& scratch);
float largest_ref(const float* x, int n);
float exp_row_ref(float* x, int n, float scale, float shift);
void geglu_backward_ref(float* d_gate, float* d_up, const float* gate, const float* up, const float* d, int dim);

}  // namespace gemma::cpu
