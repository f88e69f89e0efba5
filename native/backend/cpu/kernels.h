// The contract between the CPU backend and its instruction sets: a table of plain functions for each set
// (kernel_table.cpp), which come from files of the set's own (*_ref, *_avx2, *_avx512*). The scalar set is the oracle of
// the others.
//
// Arithmetic that all sets share bit for bit:
//  - Quantised products: per block of 32 (or half block of 16) an exact integer dot product, then one fused
//  multiply-add
//    into a float accumulator, blocks in order:  acc = fma(float(idot), d_w * d_x, acc), and with a minimum
//    acc = fma(m_w, d_x * sum_x, acc).  So a row's result is the same in every batch, tile and instruction set.
//  - Float products: 16 interleaved partial sums s[j % 16] = fma(w[j], x[j], s[j % 16]), added as a tree (j with j + 8,
//  + 4,
//    + 2, + 1).
// Norms, softmax and GELU use each set's own exp and reduction order, equal to the scalar ones within the tests'
// bounds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "backend/backend.h"

namespace gemma::cpu {

// Activations as int8: x[r][j] ~ d[r][j / 32] * q[r][j], |q| <= 127. Blocks as columns of small arrays, because kernels
// broadcast single values. n_cols is a multiple of 32.
//
// The step d of a block is the one with the least squared error among largest / 127, / 126, / 125 and / 124: 14 % less
// error on Gaussian blocks than always taking the first, for a few instructions per block. All sets choose alike:
// errors e = x * (level * (1 / largest)) - q are squared and summed as the float products below, times kLevelWeights;
// the first of equals wins; d = largest * kLevelSteps.
struct QuantizedRows {
  int n_rows = 0;
  int n_cols = 0;
  const int8_t* q = nullptr;           // [n_rows][n_cols]
  const float* d = nullptr;            // [n_rows][n_cols / 32]
  const int32_t* neg_sum = nullptr;    // [n_rows][n_cols / 32]  minus the sum of q of a block
  const int32_t* neg_sum16 = nullptr;  // [n_rows][n_cols / 16]  of a half block
  const float* dsum = nullptr;         // [n_rows][n_cols / 32]  d * sum of q
  const float* dsum16 = nullptr;       // [n_rows][n_cols / 16]

  QuantizedRows row(int i) const {
    const size_t r = static_cast<size_t>(i);
    const size_t b = r * static_cast<size_t>(n_cols / 32);
    return {1,        n_cols,        q + r * static_cast<size_t>(n_cols), d + b, neg_sum + b, neg_sum16 + 2 * b,
            dsum + b, dsum16 + 2 * b};
  }
};

inline constexpr int kLevels = 4;
inline constexpr float kLevel[kLevels] = {127, 126, 125, 124};
inline constexpr float kLevelSteps[kLevels] = {1.0f / 127, 1.0f / 126, 1.0f / 125, 1.0f / 124};
inline constexpr float kLevelWeights[kLevels] = {1.0f / (127 * 127), 1.0f / (126 * 126), 1.0f / (125 * 125),
                                                 1.0f / (124 * 124)};

// Writable side of one row of QuantizedRows.
struct QuantizedRowOut {
  int8_t* q;
  float* d;
  int32_t* neg_sum;
  int32_t* neg_sum16;
  float* dsum;
  float* dsum16;
};

// Exponentials are powers of two inside: log2(e), and its inverse.
inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kLn2 = 0.693147181f;

// Per-thread working memory, reused by all operations.
struct Scratch {
  std::byte* data = nullptr;  // aligned to 64
  size_t bytes = 0;
};
inline constexpr size_t kScratchBytes = size_t{1} << 20;

// Rows row_begin..row_end-1 of the weight; w points at row 0, rows are w_row_bytes apart.
struct WeightRows {
  TensorType type = TensorType::kF32;
  const std::byte* w = nullptr;
  size_t w_row_bytes = 0;
  int row_begin = 0;
  int row_end = 0;
};

struct AttentionTile {
  KvType type = KvType::kF16;
  int head_dim = 0;
  size_t row_bytes = 0;  // of a position's keys or values
  const std::byte* const* pages = nullptr;
  size_t k_offset = 0;              // of the head's keys within a page
  size_t v_offset = 0;              // and of its values
  int n_rows = 0;                   // query rows of this tile, at most kAttentionRows or kBulkAttentionRows
  const float* const* q = nullptr;  // [n_rows] -> [head_dim]
  float* const* out = nullptr;      // [n_rows] -> [head_dim], unnormalised sum of p * v
  const RowSpan* spans = nullptr;   // [n_rows], already cut to the segment; empty spans give max -inf
  float* max = nullptr;             // [n_rows] largest score
  float* sum = nullptr;             // [n_rows] sum of exp(score - max)
};
inline constexpr int kAttentionRows = 32;

// Long spans are cut at multiples of kSegment positions; partial results of segments are merged in order, always, so
// that the result does not depend on how many threads worked on them.
inline constexpr int kSegment = 256;

// Of attention of a prompt's rows: rows of a tile, and the largest head it takes.
inline constexpr int kBulkAttentionRows = 64;
inline constexpr int kMaxBulkHeadDim = 256;

// Screens of large output matrices (screen.h). 16 rows of the matrix are a panel, each a lane. Byte 4 * lane + i of the
// 64 bytes of group g of a panel holds the codes of columns 8 * g + i (low nibble) and 8 * g + 4 + i (high nibble).
inline constexpr int kScreenLanes = 16;
struct ScreenTable {
  int n_cols = 0;                    // a multiple of 8
  const uint8_t* codes = nullptr;    // [panels][n_cols / 8][64]
  const float* step = nullptr;       // [panels][16]
  const float* deviation = nullptr;  // [panels][16] length of what the codes leave out, never much below the row's
  const float* rounding = nullptr;   // [panels][16] squared length of the row / (2 * deviation)
};
// A row of x, rotated and rounded: x ~ scale * q. The bound of a row of the matrix is
//   step * scale * (<code, q> + offset) + deviation * deviation_part + rounding * rounding_part.
struct ScreenQuery {
  const int8_t* q = nullptr;  // [n_cols]
  float scale = 0;
  float offset = 0;  // -7.5 * sum of q
  float deviation_part = 0;
  float rounding_part = 0;
  float* bounds = nullptr;  // [panels][16], written
  float* maxima = nullptr;  // [panels], written: the largest bound of each panel
};

// One head of one group of full_attention (backend.h). Pointers are at the head's part of the group's first row; rows
// are `stride` floats apart.
struct FullAttentionHead {
  const float* q = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  float* out = nullptr;
  size_t stride = 0;
  int n_rows = 0;
  int head_dim = 0;
  float scale = 0;
  std::byte* packed = nullptr;  // packed_bytes, aligned to 64
};
// Rows of out are computed in chunks that begin at multiples of this.
inline constexpr int kFullAttentionRows = 64;

// The fast arithmetic, but for the rounding of floats alike in all sets that have one (the others take the exact one).
//  - Means over the group's rows are taken away from q, k and v: what two images have in common, the bias of the
//    projections above all, is most of their size and would cost the codes as many bits. None of it is lost:
//    (q - qm) . (k - km) + qm . (k - km) differs from q . k by what is the same for all keys, and weights add up to 1,
//    so that vm comes back at the end.
//  - q and k: 8-bit codes, a step for each row (largest magnitude / 127). v: a step for each column of a tile of
//    kFastAttentionTile keys.
//  - Weights of a tile: 255 * exp(score - the tile's largest), rounded; their sum, also of the rounded ones, divides.
//  - Tiles in order, added up in float32 with the running maximum.
inline constexpr int kFastAttentionTile = 96;

// full_attention with one arithmetic: pack once for a head, then attend for its rows in chunks, in any order and by any
// thread.
struct FullAttention {
  size_t (*packed_bytes)(int n_rows, int head_dim);
  void (*pack)(const FullAttentionHead& head, const Scratch& scratch);
  // Rows row_begin..row_end-1 of out, at most kFullAttentionRows.
  void (*attend)(const FullAttentionHead& head, int row_begin, int row_end, const Scratch& scratch);
};

// Products of many rows in bfloat16 with float32 sums, where an instruction set has a unit for them: several times as
// fast as gemm_quantized, and closer to the exact products, but not equal to them. What a row computes depends on the
// row alone here too.
struct BulkGemm {
  // Bytes of x[n_rows, n_cols] as multiply wants it, aligned to 64.
  size_t (*packed_bytes)(int n_rows, int n_cols);
  // Rows first_row .. first_row + kBulkRows - 1 of x, as far as they exist, to their place in packed. first_row is a
  // multiple of kBulkRows.
  void (*pack)(const float* x, int n_rows, int n_cols, int first_row, std::byte* packed);
  // out[r * out_stride + n] = x[r] . w[n] for n in row_begin..row_end-1 and all rows of x. Any type of weights; n_cols
  // whole blocks of it.
  void (*multiply)(const WeightRows& w, const std::byte* packed, int n_rows, int n_cols, float* out, size_t out_stride,
                   const Scratch& scratch);
};
inline constexpr int kBulkRows = 16;

// What an adapter adds to rows of a product (backend.h, LowRank):
//   acc = bias[j];  acc = fma(t[k], b[k][j], acc) for k in order;  out[j] = fma(scale, acc, out[j])
// and with norms, which lie norms_stride apart, out[j] *= norms[0][j] / sqrt(fma(scale, fma(scale, norms[3][j],
// norms[2][j]), norms[1][j])). Columns of b, bias and norms are there up to a multiple of 16.
struct LowRankRows {
  const float* t = nullptr;  // [n_rows][rank]
  int n_rows = 0;
  int rank = 0;
  TensorType type = TensorType::kF32;  // of b: F32, F16 or BF16
  const std::byte* b = nullptr;        // [rank], rows b_row_bytes apart
  size_t b_row_bytes = 0;
  const float* bias = nullptr;   // null: none
  const float* norms = nullptr;  // [4], null: none
  size_t norms_stride = 0;
  float scale = 0;
  float* out = nullptr;  // [n_rows], rows out_stride apart
  size_t out_stride = 0;
};

// A product of float32 panels, of training: a is packed, kPanelRows rows after each other for every k,
//   c[r][j] = fma(a[k][r], b[k][j], c[r][j]) for k in order, from 0 unless add
// so the same bits in all sets.
inline constexpr int kPanelRows = 12;
inline constexpr int kPanelColumns = 32;
inline constexpr int kMostRowColumns = 4096;
struct PanelProduct {
  const float* a = nullptr;  // [panels][depth][kPanelRows], panels a_stride apart
  size_t a_stride = 0;
  int n_rows = 0;  // any number
  // Row k: columns 0..15 at b + k * b_stride, the others b_half behind them. Whole vectors are read: there must be room
  // up to column 16 or 32.
  const float* b = nullptr;
  size_t b_stride = 0;
  size_t b_half = 0;
  int n_cols = 0;  // at most kPanelColumns
  int depth = 0;
  float* c = nullptr;  // [n_rows], rows c_stride apart
  size_t c_stride = 0;
  bool add = false;
};

struct Kernels {
  const char* isa;

  // out[r * out_stride + n] = x[r] . w[n] for n in row_begin..row_end-1 and all rows of x. Quantised types.
  void (*gemm_quantized)(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                         const Scratch& scratch);
  // The same for F32, F16, BF16 with float x[n_x][n_cols]; x rows are n_cols apart.
  void (*gemm_float)(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride,
                     const Scratch& scratch);
  // Columns col_begin..col_end-1 of all rows; col_begin a multiple of 16. The same bits in all sets.
  void (*add_low_rank)(const LowRankRows& rows, int col_begin, int col_end);
  // One row; n_cols a multiple of 32. NaN and infinity make d NaN.
  void (*quantize_row)(const float* x, int n_cols, const QuantizedRowOut& out);

  void (*rms_norm)(float* out, const float* x, const float* weight, int dim, float eps);
  void (*add_rms_norm)(float* x, const float* branch, const float* weight, int dim, float eps);
  void (*norm_rope)(float* x, const float* weight, const float* table, int head_dim, float eps, float scale);
  void (*geglu)(float* out, const float* gate, const float* up, int dim);

  // One row of keys or values of one head into the cache's format.
  void (*store_kv_row)(KvType type, const float* x, std::byte* row, int head_dim);
  // One tile: scores, running softmax and sum over the pages of the spans, in order of positions.
  void (*attention)(const AttentionTile& tile, const Scratch& scratch);
  // acc = merge of (acc, max, sum) and (acc2, max2, sum2): both scaled to the larger max.
  void (*merge_segments)(float* acc, float* max, float* sum, const float* acc2, float max2, float sum2, int head_dim);

  // Values of up to 16 rows of a weight of any type, as columns[n_cols][16], a row in each lane; zero in lanes without
  // one.
  void (*load_columns)(const WeightRows& w, int n_cols, float* columns, const Scratch& scratch);
  // Columns of 16 rows into a panel: rotated in place, in blocks of a power of two that divides n_cols, and coded.
  // False when a row holds NaN, infinity or values whose squares overflow.
  bool (*screen_pack)(float* columns, int n_cols, int block, uint8_t* codes, float* step, float* deviation,
                      float* rounding);
  // Bounds of panels panel_begin..panel_end-1 for each of the queries.
  void (*screen_bound)(const ScreenTable& table, int panel_begin, int panel_end, const ScreenQuery* queries,
                       int n_queries);

  // One row each, as in backend.h.
  void (*layer_norm)(float* out, const float* x, const float* weight, const float* bias, int dim, float eps);
  void (*add_bias)(float* x, const float* bias, int dim);
  void (*bias_gelu)(float* x, const float* bias, int dim);
  void (*add_residual_bias)(float* x, const float* branch, const float* bias, int dim);
  FullAttention exact_attention;
  FullAttention fast_attention;

  // Of training (native/train/).
  void (*multiply_panels)(const PanelProduct& product);
  // Values of rows of a weight of any type as panels of kPanelColumns columns: that of row i and column c is at
  // panels[c / kPanelColumns * panel_stride + i * kPanelColumns + c % kPanelColumns]. At most kMostRowColumns columns.
  void (*load_panels)(const WeightRows& w, int n_cols, float* panels, size_t panel_stride, const Scratch& scratch);
  // -infinity of nothing. NaN may be left out.
  float (*largest)(const float* x, int n);
  // x = exp(scale * x - shift); returns their sum, which is NaN where one of them is.
  float (*exp_row)(float* x, int n, float scale, float shift);
  // From d, the gradient of gelu(gate) * up. d_gate or d_up may be d.
  void (*geglu_backward)(float* d_gate, float* d_up, const float* gate, const float* up, const float* d, int dim);

  // Null where the set has no unit for bfloat16:
  const BulkGemm* bulk = nullptr;
  // As attention, of a prompt's rows; the spans of a call are within one segment.
  void (*bulk_attention)(const AttentionTile& tile, const Scratch& scratch) = nullptr;
};

// kernel_table.cpp: all sets this build has, best first, and whether this machine can run them.
struct KernelRow {
  const char* isa;
  bool (*available)();
  const Kernels& (*kernels)();
};
std::span<const KernelRow> kernel_table();
// "" picks the best available. Throws Error{kBackendUnavailable}.
const Kernels& select_kernels(const std::string& isa);
// The oracle.
const Kernels& kernels_ref();

}  // namespace gemma::cpu
