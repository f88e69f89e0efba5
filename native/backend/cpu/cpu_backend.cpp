// The CPU backend: each operation cut into chunks for the thread pool, each chunk one call of a kernel. Weights stay
// where the file is mapped; activations are quantised once per operation.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_attention.h"
#include "backend/cpu/cpu_traits.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/screen.h"
#include "backend/cpu/small_math.h"
#include "backend/workspace.h"
#include "base/error.h"
#include "base/large_memory.h"
#include "base/thread_pool.h"
#include "quant/dequantize.h"

namespace gemma {
namespace {

using cpu::Kernels;
using cpu::QuantizedMemory;
using cpu::QuantizedRowOut;
using cpu::QuantizedRows;
using cpu::round_up;
using cpu::row_of;
using cpu::Scratch;

// Where more than this share of an output matrix's rows is wanted, screening costs more than all products.
constexpr size_t kMaxTopShare = 32;

class CpuBuffer final : public Buffer {
 public:
  explicit CpuBuffer(size_t bytes) : memory_(bytes) {
    data_ = memory_.data();
    bytes_ = bytes;
  }

 private:
  LargeMemory memory_;
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(const Kernels& kernels, int n_threads) : kernels_(kernels), traits_(kernels, n_threads), pool_(n_threads) {
    std::byte* data = scratch_memory_.take(traits_.scratch_bytes());
    for (int t = 0; t < n_threads; ++t) scratch_.push_back({row_of(data, t, cpu::kScratchStride), cpu::kScratchBytes});
  }

  const BackendTraits& traits() const override { return traits_; }
  void reserve(const WorkLimits& limits) override {
    const cpu::WorkspaceBytes bytes = traits_.workspaces(limits);
    quantized_.take(bytes.quantized);
    packed_x_.take(bytes.packed_x);
    attention_.take(bytes.partials);
    packed_.take(bytes.packed_heads);
  }

  const char* device() const override { return "cpu"; }
  const char* isa() const override { return kernels_.isa; }
  int n_threads() const override { return pool_.n_threads(); }

  std::unique_ptr<Buffer> allocate(size_t bytes) override { return std::make_unique<CpuBuffer>(bytes); }
  void upload(void* dst, const void* src, size_t bytes) override { std::memcpy(dst, src, bytes); }
  void download(void* dst, const void* src, size_t bytes) override { std::memcpy(dst, src, bytes); }
  void fill_zero(void* dst, size_t bytes) override { std::memset(dst, 0, bytes); }

  Weight load_weight(TensorType type, int n_out, int n_in, const std::byte* data) override {
    return {type, n_out, n_in, data};
  }

  void requantize(std::byte* dst, const Weight& weight, int n_out, int n_in) override {
    const size_t stored_bytes = row_bytes(weight.type, weight.n_in);
    const size_t dst_bytes = row_bytes(TensorType::kQ8_0, n_in);
    for_rows(n_out, 8, [&](int i) {
      const std::byte* stored = row_of(weight.data, i, stored_bytes);
      std::byte* out = row_of(dst, i, dst_bytes);
      constexpr int kPart = 1024;  // a multiple of every type's block
      float values[kPart];
      for (int first = 0; first < n_in; first += kPart) {
        const int n_part = std::min(kPart, n_in - first);
        const int n_stored = i < weight.n_out ? std::clamp(weight.n_in - first, 0, n_part) : 0;
        if (n_stored > 0) dequantize_row(weight.type, stored + row_bytes(weight.type, first), values, n_stored);
        std::fill(values + n_stored, values + n_part, 0.0f);
        quantize_row_q8_0(values, out + row_bytes(TensorType::kQ8_0, first), n_part);
      }
    });
  }

  void embed(float* out, const Weight& table, const int32_t* tokens, int n, float scale) override {
    const size_t bytes = row_bytes(table.type, table.n_in);
    for_rows(n, 8, [&](int i) {
      float* row = row_of(out, i, table.n_in);
      dequantize_row(table.type, row_of(table.data, tokens[i], bytes), row, table.n_in);
      for (int j = 0; j < table.n_in; ++j) row[j] *= scale;
    });
  }

  void rms_norm(float* out, const float* x, const float* weight, int n, int dim, float eps) override {
    for_rows(n, 8, [&](int i) { kernels_.rms_norm(row_of(out, i, dim), row_of(x, i, dim), weight, dim, eps); });
  }

  void add_rms_norm(float* x, const float* branch, const float* weight, int n, int dim, float eps) override {
    for_rows(n, 8, [&](int i) { kernels_.add_rms_norm(row_of(x, i, dim), row_of(branch, i, dim), weight, dim, eps); });
  }

  bool computes_bulk_apart(TensorType type) const override { return traits_.has_bulk() && !is_float_type(type); }

  using Backend::linear;
  void linear(std::span<const LinearJob> jobs, const float* x, int n, Bulk bulk,
              std::span<const LowRank> added) override {
    const int n_in = jobs.front().weight->n_in;
    // Of a job's rows these many come first and are computed as single rows are.
    const auto n_exact = [&](const Weight& weight) {
      const bool as_bulk = kernels_.bulk != nullptr && (bulk.float_weights || !is_float_type(weight.type));
      return as_bulk ? n - bulk.n_rows : n;
    };
    int n_quantized = 0;
    int n_bulk = 0;
    for (const LinearJob& job : jobs) {
      if (!is_float_type(job.weight->type)) n_quantized = std::max(n_quantized, n_exact(*job.weight));
      n_bulk = std::max(n_bulk, n - n_exact(*job.weight));
    }
    const QuantizedRows quantized = n_quantized > 0 ? quantize(x, n_quantized, n_in) : QuantizedRows{};
    const std::byte* packed = n_bulk > 0 ? pack(row_of(x, n - n_bulk, n_in), n_bulk, n_in) : nullptr;

    // All jobs in one go: threads take chunks of weight rows until none is left.
    int n_chunks = 0;
    job_chunks_.clear();
    for (const LinearJob& job : jobs) {
      const int rows = chunk_rows(*job.weight, n_exact(*job.weight), n);
      job_chunks_.push_back({n_chunks, rows});
      n_chunks += (job.weight->n_out + rows - 1) / rows;
    }
    // What adapters add is added to each chunk while that is near the core. Threads share t = x a^T before their first
    // chunk, and none waits for it before it has one to add to: a job of its own would cost a single row as much as t.
    const int n_t_chunks = plan_low_rank(added);
    std::atomic<int> next_t_chunk{0};
    std::atomic<int> n_t_done{0};
    pool_.parallel_for(n_chunks, [&](int chunk, int thread) {
      while (next_t_chunk.load(std::memory_order_relaxed) < n_t_chunks) {
        const int t_chunk = next_t_chunk.fetch_add(1, std::memory_order_relaxed);
        if (t_chunk >= n_t_chunks) break;
        multiply_low_rank(added, x, t_chunk, thread);
        n_t_done.fetch_add(1, std::memory_order_release);
      }
      size_t j = jobs.size() - 1;
      while (job_chunks_[j].first_chunk > chunk) --j;
      const Weight& weight = *jobs[j].weight;
      cpu::WeightRows rows;
      rows.type = weight.type;
      rows.w = weight.data;
      rows.w_row_bytes = row_bytes(weight.type, weight.n_in);
      rows.row_begin = (chunk - job_chunks_[j].first_chunk) * job_chunks_[j].rows;
      rows.row_end = std::min(weight.n_out, rows.row_begin + job_chunks_[j].rows);
      for (const LowRank& part : added) {
        if (part.out == jobs[j].out) prefetch_columns(part, rows.row_begin, rows.row_end);
      }
      const size_t stride = static_cast<size_t>(weight.n_out);
      const Scratch& scratch = scratch_[static_cast<size_t>(thread)];
      const int exact = n_exact(weight);
      if (exact > 0 && is_float_type(weight.type)) {
        kernels_.gemm_float(rows, x, exact, n_in, jobs[j].out, stride, scratch);
      } else if (exact > 0) {
        kernels_.gemm_quantized(rows, quantized, jobs[j].out, stride, scratch);
      }
      if (exact < n) {
        float* out = row_of(jobs[j].out, exact, weight.n_out);
        kernels_.bulk->multiply(rows, packed, n - exact, n_in, out, stride, scratch);
      }
      // Seldom more than a moment: whoever computes the last of it began before this chunk was computed.
      while (n_t_done.load(std::memory_order_acquire) < n_t_chunks) std::this_thread::yield();
      for (const LowRank& part : added) {
        if (part.out == jobs[j].out) add_columns(part, 0, part.n_rows, rows.row_begin, rows.row_end);
      }
    });
  }

  void add_low_rank(std::span<const LowRank> added) override {
    for (const LowRank& part : added) {
      for_parts(part.n_rows, [&](int first, int n) { add_columns(part, first, n, 0, part.n_out); });
    }
  }

  std::unique_ptr<OutputMatrix> make_output(const Weight& weight, bool screened, int max_rows) override {
    return std::make_unique<cpu::Screen>(*this, weight, screened, max_rows);
  }

  void top_linear(OutputMatrix& matrix, float* out, const float* x, int n, std::span<const TopRows> wanted,
                  std::span<TopProducts> found) override {
    cpu::Screen& screen = static_cast<cpu::Screen&>(matrix);
    const Weight& weight = screen.weight();
    const size_t n_out = static_cast<size_t>(weight.n_out);
    for (TopProducts& row : found) {
      row.all = true;
      row.rows.clear();
      row.values.clear();
    }
    const auto all_rows = [&] {
      const LinearJob job{&weight, out};
      linear({&job, 1}, x, n, {});
    };
    for (const TopRows& top : wanted) {
      if (top.n_best == 0 || static_cast<size_t>(top.n_best) + top.always.size() > n_out / kMaxTopShare)
        return all_rows();
    }
    queries_.clear();
    for (int i = 0; i < n; ++i) {
      if (!wanted[static_cast<size_t>(i)].only_always) queries_.push_back(i);
    }
    const int n_queries = static_cast<int>(queries_.size());
    if (n_queries > screen.max_rows()) return all_rows();
    if (n_queries > 0 && !screen.ready()) {
      screen.build_slice(kernels_, pool_, scratch_);
      return all_rows();
    }
    // Exact products are of the rounded x, so the screen sees the same.
    const bool is_float = is_float_type(weight.type);
    const QuantizedRows quantized = is_float ? QuantizedRows() : quantize(x, n, weight.n_in);
    if (n_queries > 0) {
      const size_t n_in = static_cast<size_t>(weight.n_in);
      float* screened_x = screen.input(n_queries).data();
      for (const int row : queries_) {
        const size_t first = static_cast<size_t>(row) * n_in;
        if (is_float) {
          screened_x = std::copy_n(x + first, n_in, screened_x);
        } else {
          for (size_t i = first; i < first + n_in; ++i) *screened_x++ = quantized.d[i / 32] * quantized.q[i];
        }
      }
      if (!screen.bound(kernels_, pool_, n_queries, out)) return all_rows();
    }
    for (int i = 0; i < n; ++i) {
      const TopRows& top = wanted[static_cast<size_t>(i)];
      TopProducts& row = found[static_cast<size_t>(i)];
      row.all = false;
      row.rows.assign(top.always.begin(), top.always.end());
    }
    // The k with the largest bounds: the least of their products is at most the k-th largest of all.
    for_rows(n_queries, 1, [&](int query) {
      const size_t i = static_cast<size_t>(queries_[static_cast<size_t>(query)]);
      const TopRows& top = wanted[i];
      if (!top.allowed.empty()) screen.keep(query, top.allowed);
      screen.exclude(query, top.never);
      screen.exclude(query, top.always);
      screen.best(query, static_cast<size_t>(top.n_best), &found[i].rows);
    });
    compute_rows(weight, x, quantized, found);
    // All that can exceed it.
    for_rows(n_queries, 1, [&](int query) {
      const size_t i = static_cast<size_t>(queries_[static_cast<size_t>(query)]);
      const TopRows& top = wanted[i];
      TopProducts& row = found[i];
      const size_t n_always = top.always.size();
      if (row.rows.size() - n_always < static_cast<size_t>(top.n_best)) return;
      const float least = *std::min_element(row.values.begin() + static_cast<ptrdiff_t>(n_always), row.values.end());
      screen.exclude(query, std::span(row.rows).subspan(n_always));
      screen.at_least(query, least, &row.rows);
    });
    if (n_queries > 0) compute_rows(weight, x, quantized, found);
  }

  void rope_table(float* table, const int32_t* positions, const float* inv_freq, int n, int head_dim) override {
    const int half = head_dim / 2;
    for_rows(n, 4, [&](int i) {
      float* row = row_of(table, i, head_dim);
      for (int j = 0; j < half; ++j) {
        const float angle = static_cast<float>(positions[i]) * inv_freq[j];
        row[j] = std::cos(angle);
        row[j + half] = std::sin(angle);
      }
    });
  }

  void norm_rope(float* x, const float* weight, const float* table, int n, int n_heads, int head_dim, float eps,
                 float scale) override {
    for_rows(n, 4, [&](int i) {
      for (int h = 0; h < n_heads; ++h) {
        kernels_.norm_rope(row_of(row_of(x, i, n_heads * head_dim), h, head_dim), weight, row_of(table, i, head_dim),
                           head_dim, eps, scale);
      }
    });
  }

  void store_kv(const KvLayout& layout, std::span<const BatchSequence> sequences, const int32_t* positions,
                const float* k, const float* v) override {
    const int kv_dim = layout.n_kv_heads * layout.head_dim;
    for (const BatchSequence& sequence : sequences) {
      for_rows(sequence.n_rows, 8, [&](int i) {
        const int r = sequence.first_row + i;
        const int position = positions[r];
        // The pages are const for readers; this is the one writer.
        std::byte* page = const_cast<std::byte*>(sequence.pages[position / kPagePositions]);
        for (int h = 0; h < layout.n_kv_heads; ++h) {
          const int target = h * kPagePositions + position % kPagePositions;
          const auto store = [&](const float* rows, size_t offset) {
            kernels_.store_kv_row(layout.type, row_of(row_of(rows, r, kv_dim), h, layout.head_dim),
                                  row_of(page + offset, target, layout.row_bytes), layout.head_dim);
          };
          store(k, layout.layer_offset);
          store(v, layout.v_offset());
        }
      });
    }
  }

  void attention(float* out, const float* q, const KvLayout& layout, std::span<const BatchSequence> sequences,
                 const RowSpan* spans, int n_heads, Bulk bulk) override {
    attention_.run(out, q, layout, sequences, spans, n_heads, bulk);
  }

  void geglu(float* out, const float* gate, const float* up, int n, int dim) override {
    if (n >= 4) {
      for_rows(n, 4,
               [&](int i) { kernels_.geglu(row_of(out, i, dim), row_of(gate, i, dim), row_of(up, i, dim), dim); });
      return;
    }
    constexpr int kPart = 2048;  // of the n rows taken as one long one: the operation knows no rows
    const size_t total = static_cast<size_t>(n) * static_cast<size_t>(dim);
    pool_.parallel_for(static_cast<int>((total + kPart - 1) / kPart), [&](int chunk, int /*thread*/) {
      const size_t first = static_cast<size_t>(chunk) * kPart;
      kernels_.geglu(out + first, gate + first, up + first, static_cast<int>(std::min<size_t>(kPart, total - first)));
    });
  }

  void layer_norm(float* out, const float* x, const float* weight, const float* bias, int n, int dim,
                  float eps) override {
    for_rows(n, 8, [&](int i) { kernels_.layer_norm(row_of(out, i, dim), row_of(x, i, dim), weight, bias, dim, eps); });
  }

  void add_bias(float* x, const float* bias, int n, int dim) override {
    for_rows(n, 8, [&](int i) { kernels_.add_bias(row_of(x, i, dim), bias, dim); });
  }

  void bias_gelu(float* x, const float* bias, int n, int dim) override {
    for_rows(n, 8, [&](int i) { kernels_.bias_gelu(row_of(x, i, dim), bias, dim); });
  }

  void add_residual_bias(float* x, const float* branch, const float* bias, int n, int dim) override {
    for_rows(n, 8, [&](int i) { kernels_.add_residual_bias(row_of(x, i, dim), row_of(branch, i, dim), bias, dim); });
  }

  void full_attention(float* out, const float* q, const float* k, const float* v, int n_groups, int group_rows,
                      int n_heads, int head_dim, float scale, Arithmetic arithmetic) override {
    const cpu::FullAttention& kernel =
        arithmetic == Arithmetic::kExact ? kernels_.exact_attention : kernels_.fast_attention;
    const size_t packed_bytes = round_up(kernel.packed_bytes(group_rows, head_dim), 64);
    // As many heads at a time as threads can pack: what is packed stays small, and near.
    const int n_all = n_groups * n_heads;
    const int n_round = std::min(n_all, pool_.n_threads());
    std::byte* packed = packed_.reserve(packed_bytes * static_cast<size_t>(n_round));
    const auto head_at = [&](int first, int i) {
      const int group = (first + i) / n_heads;
      const int h = (first + i) % n_heads;
      const size_t stride = static_cast<size_t>(n_heads) * static_cast<size_t>(head_dim);
      const auto rows = [&](auto* x) { return row_of(row_of(x, group, group_rows * stride), h, head_dim); };
      return cpu::FullAttentionHead{.q = rows(q),
                                    .k = rows(k),
                                    .v = rows(v),
                                    .out = rows(out),
                                    .stride = stride,
                                    .n_rows = group_rows,
                                    .head_dim = head_dim,
                                    .scale = scale,
                                    .packed = row_of(packed, i, packed_bytes)};
    };
    const int n_chunks = (group_rows - 1) / cpu::kFullAttentionRows + 1;
    for (int first = 0; first < n_all; first += n_round) {
      const int n = std::min(n_round, n_all - first);
      pool_.parallel_for(
          n, [&](int i, int thread) { kernel.pack(head_at(first, i), scratch_[static_cast<size_t>(thread)]); });
      pool_.parallel_for(n * n_chunks, [&](int chunk, int thread) {
        const int row = chunk % n_chunks * cpu::kFullAttentionRows;
        kernel.attend(head_at(first, chunk / n_chunks), row, std::min(group_rows, row + cpu::kFullAttentionRows),
                      scratch_[static_cast<size_t>(thread)]);
      });
    }
  }

  void gather_rows(float* out, const float* x, const int32_t* rows, int n, int dim) override {
    for (int i = 0; i < n; ++i) {
      std::memcpy(row_of(out, i, dim), row_of(x, rows[i], dim), static_cast<size_t>(dim) * sizeof(float));
    }
  }

  void softcap(float* x, size_t n, float cap) override {
    constexpr size_t kPart = 8192;
    pool_.parallel_for(static_cast<int>((n + kPart - 1) / kPart), [&](int chunk, int /*thread*/) {
      const size_t first = static_cast<size_t>(chunk) * kPart;
      for (size_t i = first; i < std::min(n, first + kPart); ++i) x[i] = cap * std::tanh(x[i] / cap);
    });
  }

 private:
  struct JobChunks {
    int first_chunk;
    int rows;
  };
  // Of t = x a^T: rows of x in a chunk, and rows of a.
  static constexpr int kLowRankRows = 64;
  static constexpr int kRowsOfA = 8;
  struct LowRankChunks {
    int first_chunk;
    int n_row_chunks;
  };
  struct RowPart {  // of found[row].rows
    size_t row;
    size_t first;
    size_t n;
  };

  // A few rows are not worth waking the pool for.
  template <class F>
  void for_rows(int n, int rows_per_chunk, const F& f) {
    if (n <= rows_per_chunk) {
      for (int i = 0; i < n; ++i) f(i);
      return;
    }
    pool_.parallel_for((n + rows_per_chunk - 1) / rows_per_chunk, [&](int chunk, int /*thread*/) {
      for (int i = chunk * rows_per_chunk; i < std::min(n, (chunk + 1) * rows_per_chunk); ++i) f(i);
    });
  }

  // The chunks of t = x a^T of all.
  int plan_low_rank(std::span<const LowRank> added) {
    int n_chunks = 0;
    low_rank_chunks_.clear();
    for (const LowRank& part : added) {
      const int n_row_chunks = (part.n_rows + kLowRankRows - 1) / kLowRankRows;
      low_rank_chunks_.push_back({n_chunks, n_row_chunks});
      n_chunks += n_row_chunks * ((part.a.n_out + kRowsOfA - 1) / kRowsOfA);
    }
    return n_chunks;
  }

  void multiply_low_rank(std::span<const LowRank> added, const float* x, int chunk, int thread) {
    size_t i = added.size() - 1;
    while (low_rank_chunks_[i].first_chunk > chunk) --i;
    const Weight& a = added[i].a;
    const int index = chunk - low_rank_chunks_[i].first_chunk;
    const int first = index % low_rank_chunks_[i].n_row_chunks * kLowRankRows;
    const int first_out = index / low_rank_chunks_[i].n_row_chunks * kRowsOfA;
    const int row = added[i].first_row + first;
    const cpu::WeightRows rows{a.type, a.data, row_bytes(a.type, a.n_in), first_out,
                               std::min(a.n_out, first_out + kRowsOfA)};
    kernels_.gemm_float(rows, row_of(x, row, a.n_in), std::min(kLowRankRows, added[i].n_rows - first), a.n_in,
                        row_of(added[i].t, row, a.n_out), static_cast<size_t>(a.n_out),
                        scratch_[static_cast<size_t>(thread)]);
  }

  // Brings b near the core, for add_columns. A chunk's columns are too few for the processor to see them coming.
  static void prefetch_columns([[maybe_unused]] const LowRank& part, [[maybe_unused]] int begin,
                               [[maybe_unused]] int end) {
#if defined(__GNUC__) || defined(__clang__)
    constexpr size_t kLine = 64;
    const size_t stride = row_bytes(part.b.type, part.b.n_in);
    const size_t from = row_bytes(part.b.type, begin);
    const size_t to = row_bytes(part.b.type, std::min(part.n_out, end));
    for (int k = 0; k < part.b.n_out; ++k) {
      const std::byte* row = row_of(part.b.data, k, stride);
      for (size_t i = from; i < to; i += kLine) __builtin_prefetch(row + i, 0, 2);  // into the second cache
    }
#endif
  }

  // n of the rows, from the first-th on, and columns begin .. end - 1; begin a multiple of kOutputLanes.
  void add_columns(const LowRank& part, int first, int n, int begin, int end) {
    const int row = part.first_row + first;
    cpu::LowRankRows rows;
    rows.rank = part.b.n_out;
    rows.t = row_of(part.t, row, rows.rank);
    rows.n_rows = n;
    rows.type = part.b.type;
    rows.b = part.b.data;
    rows.b_row_bytes = row_bytes(part.b.type, part.b.n_in);
    rows.bias = part.bias;
    rows.norms = part.norms;
    rows.norms_stride = static_cast<size_t>(part.b.n_in);
    rows.scale = part.scale;
    rows.out = row_of(part.out, row, part.stride);
    rows.out_stride = static_cast<size_t>(part.stride);
    if (begin < part.n_out) kernels_.add_low_rank(rows, begin, std::min(part.n_out, end));
  }

  // f(first, n) for runs of n_rows rows.
  template <class F>
  void for_parts(int n_rows, const F& f) {
    constexpr int kPart = 16;
    pool_.parallel_for((n_rows + kPart - 1) / kPart,
                       [&](int chunk, int /*thread*/) { f(chunk * kPart, std::min(kPart, n_rows - chunk * kPart)); });
  }

  // Weight rows per chunk, of a product with n rows of x, of which the n_exact first are not bulk.
  int chunk_rows(const Weight& weight, int n_exact, int n) const {
    constexpr int kGranularity = 32;
    // Many rows of x: as many panels of weights as a kernel unpacks at a time, so that it reads x seldom, but several
    // chunks for each thread. Bulk wants larger chunks.
    const auto share_of = [&](int chunks_per_thread, int most) {
      const int share = weight.n_out / (chunks_per_thread * n_threads()) / kGranularity * kGranularity;
      return std::clamp(share, kGranularity, most);
    };
    constexpr int kManyRows = 17;
    if (n_exact < n) return share_of(4, 8 * kGranularity);
    if (n >= kManyRows) return share_of(8, 4 * kGranularity);
    // Few: large enough that the start of a thread's chunks, which nobody has fetched ahead, costs little.
    constexpr size_t kMinBytes = 64 << 10;
    constexpr size_t kMaxBytes = 256 << 10;
    constexpr size_t kChunksPerThread = 16;
    const size_t bytes = std::max<size_t>(row_bytes(weight.type, weight.n_in), 1);
    const size_t share =
        bytes * static_cast<size_t>(weight.n_out) / (kChunksPerThread * static_cast<size_t>(n_threads()));
    const size_t rows = std::max<size_t>(std::clamp(share, kMinBytes, kMaxBytes) / bytes, 1);
    return static_cast<int>(round_up(rows, kGranularity));
  }

  // The products of row i of x with found[i].rows that are not in found[i].values yet. To the same bits as linear().
  void compute_rows(const Weight& weight, const float* x, const QuantizedRows& quantized,
                    std::span<TopProducts> found) {
    const size_t stored = row_bytes(weight.type, weight.n_in);
    // What the widest kernel takes at a time; less when so many rows would crowd the working memory.
    constexpr size_t kRows = 16;
    const size_t n_part = std::clamp<size_t>(cpu::kScratchBytes / 4 / stored, 1, kRows);
    parts_.clear();
    for (size_t i = 0; i < found.size(); ++i) {
      const size_t n_rows = found[i].rows.size();
      for (size_t first = found[i].values.size(); first < n_rows; first += n_part)
        parts_.push_back({i, first, std::min(n_part, n_rows - first)});
      found[i].values.resize(n_rows);
    }
    pool_.parallel_for(static_cast<int>(parts_.size()), [&](int chunk, int thread) {
      const auto [i, first, n] = parts_[static_cast<size_t>(chunk)];
      const int32_t* rows = &found[i].rows[first];
      float* products = &found[i].values[first];
      const Scratch& scratch = scratch_[static_cast<size_t>(thread)];
      // Side by side in working memory, then one product.
      for (size_t r = 0; r < n; ++r)
        std::memcpy(scratch.data + r * stored, row_of(weight.data, rows[r], stored), stored);
      const size_t used = round_up(n * stored, 64);
      const cpu::WeightRows gathered{weight.type, scratch.data, stored, 0, static_cast<int>(n)};
      const Scratch rest{scratch.data + used, scratch.bytes - used};
      if (is_float_type(weight.type)) {
        kernels_.gemm_float(gathered, row_of(x, i, weight.n_in), 1, weight.n_in, products, n, rest);
      } else {
        kernels_.gemm_quantized(gathered, quantized.row(static_cast<int>(i)), products, n, rest);
      }
    });
  }

  QuantizedRows quantize(const float* x, int n, int n_in) {
    const QuantizedRowOut out =
        QuantizedMemory(quantized_.reserve(QuantizedMemory(nullptr, n, n_in).bytes), n, n_in).rows;
    const int blocks = n_in / 32;
    for_rows(n, 4, [&](int i) {
      kernels_.quantize_row(
          row_of(x, i, n_in), n_in,
          {row_of(out.q, i, n_in), row_of(out.d, i, blocks), row_of(out.neg_sum, i, blocks),
           row_of(out.neg_sum16, i, 2 * blocks), row_of(out.dsum, i, blocks), row_of(out.dsum16, i, 2 * blocks)});
    });
    return {n, n_in, out.q, out.d, out.neg_sum, out.neg_sum16, out.dsum, out.dsum16};
  }

  const std::byte* pack(const float* x, int n, int n_in) {
    std::byte* packed = packed_x_.reserve(kernels_.bulk->packed_bytes(n, n_in));
    pool_.parallel_for((n + cpu::kBulkRows - 1) / cpu::kBulkRows, [&](int chunk, int /*thread*/) {
      kernels_.bulk->pack(x, n, n_in, chunk * cpu::kBulkRows, packed);
    });
    return packed;
  }

  const Kernels& kernels_;
  cpu::CpuTraits traits_;
  ThreadPool pool_;
  Workspace scratch_memory_{*this};
  std::vector<Scratch> scratch_;
  Workspace quantized_{*this};
  Workspace packed_x_{*this};
  cpu::CpuAttention attention_{*this, kernels_, pool_, scratch_};
  Workspace packed_{*this};  // keys and values of the heads that full_attention works on
  std::vector<RowPart> parts_;
  std::vector<int> queries_;  // of a call of top_linear(): rows of x that are screened
  std::vector<JobChunks> job_chunks_;
  std::vector<LowRankChunks> low_rank_chunks_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const std::string& isa, int n_threads) {
  return std::make_unique<CpuBackend>(cpu::select_kernels(isa), std::max(1, n_threads));
}

}  // namespace gemma
