// The kernels of kernels.cu and their arguments, for host and device alike: plain C++, no vendor's header. The symbol
// of a kernel is extern "C" and named "gemma_" + its name below. Pointers are device memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gemma::gpu {

// Name and argument of every kernel.
#define GEMMA_GPU_KERNELS(X)                  \
  X(rms_norm, NormArguments)                  \
  X(layer_norm, NormArguments)                \
  X(norm_rope, NormRopeArguments)             \
  X(elementwise, ElementwiseArguments)        \
  X(rope_table, RopeTableArguments)           \
  X(gather_rows, GatherArguments)             \
  X(embed, EmbedArguments)                    \
  X(requantize, RequantizeArguments)          \
  X(quantize_rows, QuantizeArguments)         \
  X(linear_one, LinearArguments)              \
  X(linear_few, LinearArguments)              \
  X(linear_tiled, LinearArguments)            \
  X(linear_float, LinearFloatArguments)       \
  X(linear_float_tiled, LinearFloatArguments) \
  X(add_low_rank, LowRankArguments)           \
  X(store_kv, StoreKvArguments)               \
  X(attention, AttentionArguments)            \
  X(attention_merge, AttentionMergeArguments) \
  X(full_attention, FullAttentionArguments)   \
  X(top_take, TopArguments)                   \
  X(top_mask, TopArguments)                   \
  X(top_maxima, TopArguments)                 \
  X(top_threshold, TopArguments)              \
  X(top_collect, TopArguments)

enum class Kernel {
#define GEMMA_GPU_KERNEL(name, arguments) name,
  GEMMA_GPU_KERNELS(GEMMA_GPU_KERNEL)
#undef GEMMA_GPU_KERNEL
};

inline constexpr const char* kKernelSymbols[] = {
#define GEMMA_GPU_KERNEL(name, arguments) "gemma_" #name,
    GEMMA_GPU_KERNELS(GEMMA_GPU_KERNEL)
#undef GEMMA_GPU_KERNEL
};
inline constexpr int kNumKernels = sizeof kKernelSymbols / sizeof *kKernelSymbols;

// Threads of a block, the same for all kernels: whole warps of 32 and of 64.
inline constexpr int kThreads = 128;

// ---- matrices

// A quantised matrix as the device keeps it (repack.h): the codes of 32 values in 8, 16 or 32 bytes at a stride of
// their own (low), the fifth bits or upper two bits of them in 4 or 8 bytes (high), and what else the file's blocks
// hold, their scales, one after the other (tail). type is a TensorType. Blocks of a row lie one after the other in each
// plane.
struct Matrix {
  int type;
  int n_out;  // rows that products are wanted of
  int n_in;
  const uint8_t* low;
  const uint8_t* high;
  const uint8_t* tail;
};

// Rows of activations in 8 bits: x ~ d * q in blocks of 32; sums are d * (sum of q) of half blocks of 16.
struct QuantizedX {
  const int8_t* q;         // [n][n_in]
  const float* d;          // [n][n_in / 32]
  const float* half_sums;  // [n][n_in / 16]
  const float* sums;       // [n][n_in / 32]
};

// Where blocks of them are written, of contiguous rows. Kernels that make rows of floats write these besides when q is
// not null.
struct QuantizedOut {
  int8_t* q;
  float* d;
  float* half_sums;
  float* sums;
};

// One order of arithmetic for all kernels of a product: a row's blocks are split into kSegments runs, as even as can
// be and the longer ones first; each run is added up in order by fused multiply-adds, then the runs in order.
inline constexpr int kSegments = 8;

// out[n, matrix.n_out] = x[n, n_in] * matrix^T. For up to three matrices at once, but by tiles for one: they share x,
// and each has its blocks in the grid's x, those of the first one first.
inline constexpr int kMostJobs = 3;
struct LinearJobArguments {
  Matrix matrix;
  float* out;
};
struct LinearArguments {
  LinearJobArguments jobs[kMostJobs];
  int end_blocks[kMostJobs];  // past those of each; jobs that are not there have none
  QuantizedX x;
  int n;
};

// Weight rows of a block of linear_one and linear_few; rows of x that linear_few takes at a time.
inline constexpr int kRowsOfLinear = kThreads / kSegments;
inline constexpr int kFewRows = 4;
// linear_tiled: a block makes kTileOut x kTileX of the results.
inline constexpr int kTileOut = 64;
inline constexpr int kTileX = 32;

// The same for F32, F16 and BF16 weights [n_out][n_in] and float x. linear_float: sixteen interleaved partial sums,
// added as a tree. linear_float_tiled, not for F32: float_matrix.h.
struct LinearFloatArguments {
  int type;
  int n_out;
  int n_in;
  const void* weight;
  const float* x;
  float* out;
  int n;
};
inline constexpr int kFloatOut = 8;  // results of a block side by side,
inline constexpr int kFloatX = 8;    // for so many rows of x

// out[n, n_out] = f * (out + scale * (t[n, rank] b + bias)), as LowRank of backend.h says. A thread has one column of
// kLowRankRows rows, and adds up in the order that kernels.h of the CPU gives.
struct LowRankArguments {
  int type;  // of b
  int rank;
  int n_out;
  int stride;     // of out
  int n_columns;  // of b, bias and norms
  const void* b;  // [rank][n_columns]
  const float* bias;
  const float* norms;  // [4][n_columns]
  const float* t;
  float* out;
  int n;
  float scale;
};
inline constexpr int kLowRankRows = 4;

struct QuantizeArguments {
  const float* x;  // [n_blocks][32]
  QuantizedOut out;
  int n_blocks;
};

// out[n, n_in] = scale * row tokens[i] of the table, which is quantised or float (weight).
struct EmbedArguments {
  Matrix matrix;
  const void* weight;  // of a float type
  const int32_t* tokens;
  float* out;
  int n;
  float scale;
};

// low and tail of a Q8_0 matrix [n_out][n_in] from a smaller one of any type.
struct RequantizeArguments {
  Matrix matrix;
  const void* weight;  // of a float type
  int8_t* low;
  uint16_t* tail;
  int n_out;
  int n_in;
};

// ---- rows of floats

// rms_norm: out[n, dim] = x / sqrt(mean(x^2) + eps) * weight, added to out where add is set.
// layer_norm: out = (x - mean(x)) / sqrt(variance + eps) * weight + bias.
struct NormArguments {
  float* out;
  const float* x;
  const float* weight;
  const float* bias;
  int n;
  int dim;
  float eps;
  int add;
  QuantizedOut quantized;  // of out
};

struct NormRopeArguments {
  float* x;  // [n, n_heads, head_dim]
  const float* weight;
  const float* table;
  int n;
  int n_heads;
  int head_dim;
  float eps;
  float scale;
};

enum class Elementwise : int {
  kGeglu,            // out = gelu_tanh(x) * a
  kAddBias,          // out = x + bias
  kBiasGelu,         // out = gelu_tanh(x + bias)
  kAddResidualBias,  // out = x + (a + bias)
  kSoftcap,          // out = cap * tanh(x / cap)
};
struct ElementwiseArguments {
  Elementwise operation;
  float* out;
  const float* x;
  const float* a;
  const float* bias;  // [dim]
  uint64_t n;         // values
  int dim;
  float cap;
  QuantizedOut quantized;  // of out
};
inline constexpr int kElementwise = 4;  // values of a thread

struct RopeTableArguments {
  float* table;  // [n, head_dim]
  const int32_t* positions;
  const float* inv_freq;
  int n;
  int head_dim;
};

struct GatherArguments {
  float* out;
  const float* x;
  const int32_t* rows;
  int n;
  int dim;
};

// ---- attention

// Where the rows of one layer are within its pages (KvLayout).
struct CacheLayout {
  int type;  // KvType
  int n_kv_heads;
  int head_dim;
  uint32_t row_bytes;
  uint64_t k_offset;
  uint64_t v_offset;
};

struct StoreKvArguments {
  CacheLayout layout;
  uint8_t* const* pages;     // [n]: the page of each row
  const int32_t* positions;  // [n]
  const float* k;            // [n, n_kv_heads, head_dim]
  const float* v;
  int n;
};

// What a row of the batch sees.
struct RowView {
  int32_t begin;
  int32_t end;
  uint32_t first_page;  // of its sequence, in the list of pages
  uint32_t unused;
};

// Spans are cut at multiples of kAttentionSegment positions. A block takes one segment of one key/value head for kWarps
// pairs of a row and a query head, a warp each.
inline constexpr int kAttentionSegment = 256;
inline constexpr int kMaxHeadDim = 512;

struct AttentionArguments {
  CacheLayout layout;
  const uint8_t* const* pages;  // those of all sequences
  const RowView* rows;          // [n]
  const float* q;               // [n, n_heads, head_dim]
  float* partial;               // [n_segments][n, n_heads][head_dim + 2]: sums, largest score, sum of weights
  int n;
  int n_heads;
  int first_segment;
  int n_segments;
};

struct AttentionMergeArguments {
  const RowView* rows;
  const float* partial;
  float* out;  // [n, n_heads, head_dim]
  int n;
  int n_heads;
  int head_dim;
  int first_segment;
  int n_segments;
  QuantizedOut quantized;  // of out
};

// Attention of the vision encoder (backend.h). A block takes kFullQueries rows of one head of one group; out is not q.
inline constexpr int kFullQueries = 32;
inline constexpr int kMaxFullDim = 256;
struct FullAttentionArguments {
  float* out;
  const float* q;
  const float* k;
  const float* v;
  int group_rows;
  int n_heads;
  int head_dim;
  float scale;
};

// ---- the largest of many products

// What is wanted of a row of products (TopRows): ids holds its n_always, then its n_never.
struct TopRequest {
  int32_t n_best;
  uint32_t first_id;
  uint32_t n_always;
  uint32_t n_never;
  int32_t mask;  // row of TopArguments::masks, -1: none
};
// How many were found, more perhaps than there was room for, and the sort key of the least that is taken.
struct TopHeader {
  int32_t n;
  uint32_t threshold;
};
struct TopEntry {
  int32_t row;
  float value;
};

// Products of a row are cut into at most kMaxSlices slices of a multiple of 32. The n_best-th largest of the slices'
// maxima is at most the n_best-th largest of all, and few others exceed it.
inline constexpr int kMaxSlices = 4096;

struct TopArguments {
  float* products;  // [n, n_out]: those of always and never, and those that are not allowed, become -infinity
  const TopRequest* requests;
  const int32_t* ids;
  const uint32_t* masks;  // [., (n_out + 31) / 32]: a bit for each product that is allowed
  float* maxima;          // [n, n_slices]
  TopHeader* headers;     // [n]
  TopEntry* entries;      // [n, capacity]
  int n;
  int n_out;
  int n_slices;
  int slice;
  int capacity;
};

}  // namespace gemma::gpu
