// The operations of the forward pass, each over a whole ragged batch. model/ knows nothing of devices, a backend knows
// nothing of models. Pointers named x, out, q, k, v point into buffers of this backend; on a GPU they are device
// pointers. All matrices are row-major; n is the number of rows of the batch. Operations run in the order they are
// called. Row i of every result depends on row i of the inputs (and the cache) alone, with one order of arithmetic for
// all batch shapes and thread counts: a token's logits do not change with its company. (Of its role they may: see
// Bulk.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "quant/types.h"

namespace gemma {

// A matrix of the model, [n_out, n_in], in its stored blocks. data is memory of the backend (the CPU's is the mapped
// file).
struct Weight {
  TensorType type = TensorType::kF32;
  int n_out = 0;
  int n_in = 0;
  const std::byte* data = nullptr;
};

class Buffer {
 public:
  virtual ~Buffer() = default;
  std::byte* data() const { return data_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }
  size_t bytes() const { return bytes_; }

 protected:
  std::byte* data_ = nullptr;  // aligned to 64 bytes
  size_t bytes_ = 0;
};

enum class KvType { kF32, kF16, kQ8_0 };  // q8_0: blocks of 32 along head_dim, f16 scale and 32 int8
inline constexpr size_t kKvBlockBytes = 34;

// Keys and values live in pages of kPagePositions positions. A page of a layer: K [n_kv_heads][positions][head_dim],
// then V likewise, each row of head_dim values in row_bytes bytes.
inline constexpr int kPagePositions = 32;

struct KvLayout {
  KvType type = KvType::kF16;
  int n_kv_heads = 0;
  int head_dim = 0;
  size_t row_bytes = 0;
  size_t layer_offset = 0;  // of this layer's K within a page (a page serves all layers of its group)
  size_t v_offset() const { return layer_offset + static_cast<size_t>(n_kv_heads) * kPagePositions * row_bytes; }
};

// The mask: row i sees positions begin..end-1 of its own sequence. Causal, local windows and image blocks (whose tokens
// see each other both ways) are all of this form.
struct RowSpan {
  int begin = 0;
  int end = 0;
};

// Consecutive rows of the batch that belong to one sequence.
struct BatchSequence {
  int first_row = 0;
  int n_rows = 0;
  const std::byte* const* pages = nullptr;  // pages[position / kPagePositions]; null where no span reaches
};

struct LinearJob {
  const Weight* weight = nullptr;
  float* out = nullptr;  // [n, weight->n_out]
};

// The last n_rows rows of a batch are many, or part of many (a prompt, the patches of an image), so that how fast they
// are computed counts more than that a row computed alone, as the next token is, gets the same bits: a backend that has
// faster arithmetic for many rows uses it for these, however few they are this time.
struct Bulk {
  int n_rows = 0;
  bool float_weights = false;  // also with weights in floats, whose products are exact, or as good as exact (off by
                               // 2^-15 of what their terms add up to), otherwise
};

// What an adapter adds to the products of some rows with a matrix:
//   out = f * (out + scale * (t b + bias)),   t = x a^T
// f is 1, or where there are norms what gives the rows of the changed matrix other lengths:
//   f = norms[0] / sqrt(norms[1] + scale * norms[2] + scale^2 * norms[3]).
struct LowRank {
  int first_row = 0;  // of x, t and out
  int n_rows = 0;
  Weight a;  // [rank, n_in], floats; without data: t is there already
  Weight b;  // [rank, n_out up to a multiple of kOutputLanes], floats, as bias and norms zero behind n_out
  const float* bias = nullptr;   // null: none
  const float* norms = nullptr;  // [4, columns of b], null: none
  float scale = 0;
  float* t = nullptr;    // [rows, rank]: working memory
  float* out = nullptr;  // [rows, stride]
  int n_out = 0;
  int stride = 0;
};

// What is wanted of the products of one row of x with all rows of an output matrix.
struct TopRows {
  int n_best = 0;                   // the n largest; 0: all products
  std::span<const int32_t> always;  // these besides, distinct, whatever their value; they do not count among the n
  std::span<const int32_t> never;   // these not; they do not count either
  // Where it is not empty, none but the rows whose bit is 1: row r has bit r % 32 of allowed[r / 32]. Those of always are
  // among them.
  std::span<const uint32_t> allowed;
  bool only_always = false;  // n_best >= 1 besides, but all that is allowed is in always
};

// The products of one row of x that were computed.
struct TopProducts {
  bool all = true;            // every one: they are in the output, nothing is here
  std::vector<int32_t> rows;  // of the matrix: first those of TopRows::always as they came, then others in no order
  std::vector<float> values;  // one for each of rows
};

// An output matrix with what the backend keeps to find the largest products sooner.
class OutputMatrix {
 public:
  virtual ~OutputMatrix() = default;
};

// How full_attention computes.
enum class Arithmetic {
  kExact,  // float32 throughout
  kFast,   // 8-bit products where the instruction set gains by them: the encoder's output changes by less than by 8-bit
           // weights
};

// Largest head_dim of full_attention.
inline constexpr int kMaxFullHeadDim = 256;

// top_linear() takes an out whose rows have room for n_out rounded up to so many floats.
inline constexpr int kOutputLanes = 16;

// The most that a backend is asked for at a time. Its working memory follows from it. What is 0 is not asked for.
struct WorkLimits {
  // linear()
  int n_rows = 0;
  int n_in = 0;                    // of the widest matrix
  bool quantized_weights = false;  // whether any weights are quantised
  bool bulk_floats = false;        // whether bulk rows are multiplied with weights in floats (Bulk::float_weights)
  // attention(), besides n_rows
  int n_ctx = 0;  // positions of a sequence
  int n_heads = 0;
  int head_dim = 0;
  // top_linear()
  int n_top_rows = 0;
  int n_out = 0;
  bool screened = false;
  // full_attention()
  int n_groups = 0;
  int group_rows = 0;
  int n_full_heads = 0;
  int full_head_dim = 0;
  Arithmetic arithmetic = Arithmetic::kFast;
};

// What is known of a backend before there is one, memory above all. Sizes are in bytes.
class BackendTraits {
 public:
  virtual ~BackendTraits() = default;

  // Whether bulk rows are multiplied as fast by weights as they are stored, floats included: requantize() gains
  // nothing.
  virtual bool has_bulk() const = 0;
  // Whether weights stay where the file is mapped.
  virtual bool maps_weights() const = 0;
  // Of load_weight().
  virtual uint64_t weight_bytes(TensorType type, int n_out, int n_in) const = 0;
  // What allocate(bytes) takes.
  virtual uint64_t buffer_bytes(uint64_t bytes) const = 0;
  // What a screened matrix of make_output() takes once it is ready.
  virtual uint64_t output_bytes(int n_out, int n_in, int max_rows) const = 0;
  // Of each of the backend's workspaces. Where several models share a backend, it takes the largest of each.
  virtual std::vector<uint64_t> workspace_bytes(const WorkLimits& limits) const = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const BackendTraits& traits() const = 0;
  // Takes the working memory for this, so that nothing below takes any as long as the limits are kept. Beyond them
  // working memory grows. Throws Error{kOutOfMemory}.
  virtual void reserve(const WorkLimits& limits) = 0;

  virtual const char* device() const = 0;  // "cpu"
  virtual const char* isa() const = 0;     // "avx512_vnni"
  virtual int n_threads() const = 0;

  // Uninitialised memory. Throws Error{kOutOfMemory}.
  virtual std::unique_ptr<Buffer> allocate(size_t bytes) = 0;
  virtual void upload(void* dst, const void* src, size_t bytes) = 0;
  virtual void download(void* dst, const void* src, size_t bytes) = 0;
  virtual void fill_zero(void* dst, size_t bytes) = 0;
  // Bytes of a [n_out, n_in] matrix in the file's layout -> a weight; the CPU keeps the pointer, which must stay valid.
  virtual Weight load_weight(TensorType type, int n_out, int n_in, const std::byte* data) = 0;

  // Writes weight, of any type, to dst as a [n_out, n_in] matrix of Q8_0 blocks: zeros where it is smaller. n_in is a
  // multiple of 32; n_out and n_in are at least the weight's.
  virtual void requantize(std::byte* dst, const Weight& weight, int n_out, int n_in) = 0;

  // out[n, table.n_in] = scale * row tokens[i] of table.
  virtual void embed(float* out, const Weight& table, const int32_t* tokens, int n, float scale) = 0;

  // out[n, dim] = x / sqrt(mean(x^2) + eps) * weight. out may be x.
  virtual void rms_norm(float* out, const float* x, const float* weight, int n, int dim, float eps) = 0;

  // x[n, dim] += rms_norm(branch) * weight.
  virtual void add_rms_norm(float* x, const float* branch, const float* weight, int n, int dim, float eps) = 0;

  // For each job: out[n, n_out] = x[n, n_in] * weight^T. All jobs share n_in (and so the quantised x). Then, in order,
  // what adapters add to the results of these jobs. Their products are computed in float32, of bulk rows too.
  virtual void linear(std::span<const LinearJob> jobs, const float* x, int n, Bulk bulk,
                      std::span<const LowRank> added) = 0;
  void linear(std::span<const LinearJob> jobs, const float* x, int n, Bulk bulk) { linear(jobs, x, n, bulk, {}); }

  // What is added alone, where t is there.
  virtual void add_low_rank(std::span<const LowRank> added) = 0;

  // Whether a row of Bulk without float_weights is not computed as others are with weights of that type.
  virtual bool computes_bulk_apart(TensorType type) const = 0;

  // screened: keep what top_linear needs to be faster than linear; it is built during the first calls. max_rows: of x.
  virtual std::unique_ptr<OutputMatrix> make_output(const Weight& weight, bool screened, int max_rows) = 0;

  // Products of x[n, n_in] with the rows of the matrix, to the same bits as linear: for row i of x those that wanted[i]
  // asks for (and some more) into found[i], which is host memory, or all of them into row i of out[n, n_out]. What
  // else is in out, whose rows have room for kOutputLanes, is spoilt. A best product is missed with a chance below 1e-9.
  virtual void top_linear(OutputMatrix& matrix, float* out, const float* x, int n, std::span<const TopRows> wanted,
                          std::span<TopProducts> found) = 0;

  // table[n, head_dim]: cos then sin of positions[i] * inv_freq[j], j < head_dim / 2, in float32 as the reference does.
  virtual void rope_table(float* table, const int32_t* positions, const float* inv_freq, int n, int head_dim) = 0;

  // In place on x[n, n_heads, head_dim]: rms_norm over head_dim, rotation of pairs (j, j + head_dim / 2), times scale.
  virtual void norm_rope(float* x, const float* weight, const float* table, int n, int n_heads, int head_dim, float eps,
                         float scale) = 0;

  // Writes k, v [n, n_kv_heads, head_dim] at positions[i] into the pages.
  virtual void store_kv(const KvLayout& layout, std::span<const BatchSequence> sequences, const int32_t* positions,
                        const float* k, const float* v) = 0;

  // out[n, n_heads, head_dim] = softmax(q . k over the row's span) . v; query head h reads kv head h / (n_heads /
  // n_kv_heads). Bulk rows are whole sequences; a cache in float32 is for exact arithmetic, of bulk rows too.
  virtual void attention(float* out, const float* q, const KvLayout& layout, std::span<const BatchSequence> sequences,
                         const RowSpan* spans, int n_heads, Bulk bulk) = 0;

  // out[n, dim] = gelu_tanh(gate) * up. out may be gate.
  virtual void geglu(float* out, const float* gate, const float* up, int n, int dim) = 0;

  // out[n, dim] = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias. out may be x.
  virtual void layer_norm(float* out, const float* x, const float* weight, const float* bias, int n, int dim,
                          float eps) = 0;

  // x[n, dim] += bias[dim].
  virtual void add_bias(float* x, const float* bias, int n, int dim) = 0;

  // x[n, dim] = gelu_tanh(x + bias[dim]).
  virtual void bias_gelu(float* x, const float* bias, int n, int dim) = 0;

  // x[n, dim] += branch[n, dim] + bias[dim].
  virtual void add_residual_bias(float* x, const float* branch, const float* bias, int n, int dim) = 0;

  // Attention without mask or cache: the rows are n_groups groups (images) of group_rows rows each, and every row of a
  // group sees all of its group and nothing else. q, k, v, out: [n_groups * group_rows, n_heads, head_dim];
  //   out = softmax(scale * q . k) . v
  // head_dim <= kMaxFullHeadDim, group_rows >= 1. out may be q, not k or v. NaN or infinity among the inputs of a head
  // of a group may make all of that head's results NaN, never another's.
  virtual void full_attention(float* out, const float* q, const float* k, const float* v, int n_groups, int group_rows,
                              int n_heads, int head_dim, float scale, Arithmetic arithmetic) = 0;

  // out[n, dim] = rows[i] of x[., dim].
  virtual void gather_rows(float* out, const float* x, const int32_t* rows, int n, int dim) = 0;

  // x = cap * tanh(x / cap), n values.
  virtual void softcap(float* x, size_t n, float cap) = 0;
};

// isa: "" for the best; throws Error{kBackendUnavailable} for an unknown or missing one. n_threads >= 1.
std::unique_ptr<Backend> make_cpu_backend(const std::string& isa, int n_threads);
// Its traits. Throws likewise.
std::unique_ptr<const BackendTraits> cpu_traits(const std::string& isa, int n_threads);

}  // namespace gemma
