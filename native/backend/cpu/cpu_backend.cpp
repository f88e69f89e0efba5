// The CPU backend: each operation cut into chunks for the thread pool, each chunk one call of a kernel. Weights stay
// where the file is mapped; activations are quantised once per operation.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/screen.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "quant/dequantize.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gemma {
namespace {

using cpu::AttentionTile;
using cpu::kAttentionRows;
using cpu::Kernels;
using cpu::kSegment;
using cpu::QuantizedRowOut;
using cpu::QuantizedRows;
using cpu::Scratch;

size_t round_up(size_t n, size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

constexpr size_t kHugePage = size_t{2} << 20;

// With this many tiles of attention for every thread, none of them waits long for the last.
constexpr int kItemsPerThread = 4;
// Partial results of attention are not worth more memory than this.
constexpr size_t kMaxPartialBytes = size_t{32} << 20;

class CpuBuffer final : public Buffer {
 public:
  explicit CpuBuffer(size_t bytes) : alignment_(std::align_val_t{bytes >= kHugePage ? kHugePage : 64}) {
    const size_t size = bytes >= kHugePage ? round_up(bytes, kHugePage) : std::max<size_t>(bytes, 1);
    data_ = static_cast<std::byte*>(::operator new(size, alignment_, std::nothrow));
    if (data_ == nullptr) {
      throw Error(ErrorCode::kOutOfMemory, "",
                  "out of memory: " + std::to_string(bytes) + " bytes could not be allocated");
    }
    bytes_ = bytes;
#if defined(__linux__)
    // A core reads the cache of a long context half as fast again through pages of 2 MiB (28 against 18 GB/s in a
    // virtual machine, where a miss of the TLB walks two tables). Advice only: it may be declined.
    if (bytes >= kHugePage) madvise(data_, size, MADV_HUGEPAGE);
#endif
  }
  ~CpuBuffer() override { ::operator delete(data_, alignment_); }
  CpuBuffer(const CpuBuffer&) = delete;
  CpuBuffer& operator=(const CpuBuffer&) = delete;

 private:
  std::align_val_t alignment_;
};

// Grows, keeps its capacity, never shrinks.
class Workspace {
 public:
  std::byte* reserve(size_t bytes) {
    if (buffer_ == nullptr || buffer_->bytes() < bytes) {
      buffer_.reset();
      buffer_ = std::make_unique<CpuBuffer>(bytes + bytes / 4);
    }
    return buffer_->data();
  }

 private:
  std::unique_ptr<CpuBuffer> buffer_;
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(const Kernels& kernels, int n_threads) : kernels_(kernels), pool_(n_threads) {
    const size_t stride = cpu::kScratchBytes + 64;  // a cache line apart
    std::byte* data = scratch_memory_.reserve(stride * static_cast<size_t>(n_threads));
    for (int t = 0; t < n_threads; ++t)
      scratch_.push_back({data + stride * static_cast<size_t>(t), cpu::kScratchBytes});
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
      const std::byte* stored = weight.data + static_cast<size_t>(i) * stored_bytes;
      std::byte* out = dst + static_cast<size_t>(i) * dst_bytes;
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
      float* row = out + static_cast<size_t>(i) * static_cast<size_t>(table.n_in);
      dequantize_row(table.type, table.data + static_cast<size_t>(tokens[i]) * bytes, row, table.n_in);
      for (int j = 0; j < table.n_in; ++j) row[j] *= scale;
    });
  }

  void rms_norm(float* out, const float* x, const float* weight, int n, int dim, float eps) override {
    for_rows(n, 8, [&](int i) {
      const size_t offset = static_cast<size_t>(i) * static_cast<size_t>(dim);
      kernels_.rms_norm(out + offset, x + offset, weight, dim, eps);
    });
  }

  void add_rms_norm(float* x, const float* branch, const float* weight, int n, int dim, float eps) override {
    for_rows(n, 8, [&](int i) {
      const size_t offset = static_cast<size_t>(i) * static_cast<size_t>(dim);
      kernels_.add_rms_norm(x + offset, branch + offset, weight, dim, eps);
    });
  }

  bool has_bulk() const override { return kernels_.bulk != nullptr; }
  bool computes_bulk_apart(TensorType type) const override { return has_bulk() && !is_float_type(type); }

  void linear(std::span<const LinearJob> jobs, const float* x, int n, Bulk bulk) override {
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
    const size_t cols = static_cast<size_t>(n_in);
    const std::byte* packed = n_bulk > 0 ? pack(x + static_cast<size_t>(n - n_bulk) * cols, n_bulk, n_in) : nullptr;

    // All jobs in one go: threads take chunks of weight rows until none is left.
    int n_chunks = 0;
    job_chunks_.clear();
    for (const LinearJob& job : jobs) {
      const int rows = chunk_rows(*job.weight, n_exact(*job.weight), n);
      job_chunks_.push_back({n_chunks, rows});
      n_chunks += (job.weight->n_out + rows - 1) / rows;
    }
    pool_.parallel_for(n_chunks, [&](int chunk, int thread) {
      size_t j = jobs.size() - 1;
      while (job_chunks_[j].first_chunk > chunk) --j;
      const Weight& weight = *jobs[j].weight;
      cpu::WeightRows rows;
      rows.type = weight.type;
      rows.w = weight.data;
      rows.w_row_bytes = row_bytes(weight.type, weight.n_in);
      rows.row_begin = (chunk - job_chunks_[j].first_chunk) * job_chunks_[j].rows;
      rows.row_end = std::min(weight.n_out, rows.row_begin + job_chunks_[j].rows);
      const size_t stride = static_cast<size_t>(weight.n_out);
      const Scratch& scratch = scratch_[static_cast<size_t>(thread)];
      const int exact = n_exact(weight);
      if (exact > 0 && is_float_type(weight.type)) {
        kernels_.gemm_float(rows, x, exact, n_in, jobs[j].out, stride, scratch);
      } else if (exact > 0) {
        kernels_.gemm_quantized(rows, quantized, jobs[j].out, stride, scratch);
      }
      if (exact < n) {
        float* out = jobs[j].out + static_cast<size_t>(exact) * stride;
        kernels_.bulk->multiply(rows, packed, n - exact, n_in, out, stride, scratch);
      }
    });
  }

  std::unique_ptr<OutputMatrix> make_output(const Weight& weight, bool screened) override {
    return std::make_unique<cpu::Screen>(*this, weight, screened);
  }

  void top_linear(OutputMatrix& matrix, float* out, const float* x, int n, std::span<const TopRows> wanted,
                  std::span<TopProducts> found) override {
    cpu::Screen& screen = static_cast<cpu::Screen&>(matrix);
    const Weight& weight = screen.weight();
    const size_t n_in = static_cast<size_t>(weight.n_in);
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
      if (top.n_best == 0 || static_cast<size_t>(top.n_best) + top.always.size() > n_out / 32) return all_rows();
    }
    if (!screen.ready()) {
      screen.build_slice(kernels_, pool_, scratch_);
      return all_rows();
    }
    // Exact products are of the rounded x, so the screen sees the same.
    QuantizedRows quantized;
    const float* screened_x = x;
    if (!is_float_type(weight.type)) {
      quantized = quantize(x, n, weight.n_in);
      rounded_.resize(static_cast<size_t>(n) * n_in);
      for (size_t i = 0; i < rounded_.size(); ++i) rounded_[i] = quantized.d[i / 32] * quantized.q[i];
      screened_x = rounded_.data();
    }
    if (!screen.bound(kernels_, pool_, screened_x, n)) return all_rows();
    // The k with the largest bounds: the least of their products is at most the k-th largest of all.
    for_rows(n, 1, [&](int i) {
      const TopRows& top = wanted[static_cast<size_t>(i)];
      TopProducts& row = found[static_cast<size_t>(i)];
      row.all = false;
      row.rows.assign(top.always.begin(), top.always.end());
      screen.exclude(i, top.never);
      screen.exclude(i, top.always);
      screen.best(i, static_cast<size_t>(top.n_best), &row.rows);
    });
    compute_rows(weight, x, quantized, found);
    // All that can exceed it.
    for_rows(n, 1, [&](int i) {
      const TopRows& top = wanted[static_cast<size_t>(i)];
      TopProducts& row = found[static_cast<size_t>(i)];
      const size_t n_always = top.always.size();
      if (row.rows.size() - n_always < static_cast<size_t>(top.n_best)) return;
      const float least = *std::min_element(row.values.begin() + static_cast<ptrdiff_t>(n_always), row.values.end());
      screen.exclude(i, std::span(row.rows).subspan(n_always));
      screen.at_least(i, least, &row.rows);
    });
    compute_rows(weight, x, quantized, found);
  }

  void rope_table(float* table, const int32_t* positions, const float* inv_freq, int n, int head_dim) override {
    const int half = head_dim / 2;
    for_rows(n, 4, [&](int i) {
      float* row = table + static_cast<size_t>(i) * static_cast<size_t>(head_dim);
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
        const size_t row = static_cast<size_t>(i) * static_cast<size_t>(n_heads) + static_cast<size_t>(h);
        kernels_.norm_rope(x + row * static_cast<size_t>(head_dim), weight,
                           table + static_cast<size_t>(i) * static_cast<size_t>(head_dim), head_dim, eps, scale);
      }
    });
  }

  void store_kv(const KvLayout& layout, std::span<const BatchSequence> sequences, const int32_t* positions,
                const float* k, const float* v) override {
    const size_t head_dim = static_cast<size_t>(layout.head_dim);
    for (const BatchSequence& sequence : sequences) {
      for_rows(sequence.n_rows, 8, [&](int i) {
        const size_t row = static_cast<size_t>(sequence.first_row + i);
        const int position = positions[row];
        // The pages are const for readers; this is the one writer.
        std::byte* page = const_cast<std::byte*>(sequence.pages[position / kPagePositions]);
        for (int h = 0; h < layout.n_kv_heads; ++h) {
          const size_t source = (row * static_cast<size_t>(layout.n_kv_heads) + static_cast<size_t>(h)) * head_dim;
          const size_t target =
              (static_cast<size_t>(h) * kPagePositions + static_cast<size_t>(position % kPagePositions)) *
              layout.row_bytes;
          kernels_.store_kv_row(layout.type, k + source, page + layout.layer_offset + target, layout.head_dim);
          kernels_.store_kv_row(layout.type, v + source, page + layout.v_offset() + target, layout.head_dim);
        }
      });
    }
  }

  void attention(float* out, const float* q, const KvLayout& layout, std::span<const BatchSequence> sequences,
                 const RowSpan* spans, int n_heads, Bulk bulk) override {
    const int group = n_heads / layout.n_kv_heads;
    const bool has_bulk =
        kernels_.bulk_attention != nullptr && layout.type != KvType::kF32 && layout.head_dim <= cpu::kMaxBulkHeadDim;
    const int first_bulk = sequences.back().first_row + sequences.back().n_rows - bulk.n_rows;
    items_.clear();
    for (const BatchSequence& sequence : sequences) {
      const bool is_bulk = has_bulk && sequence.first_row >= first_bulk;
      const int tile_rows = is_bulk ? cpu::kBulkAttentionRows : kAttentionRows;
      const int heads_per_tile = std::min(group, tile_rows);
      const int tokens_per_tile = std::max(1, tile_rows / group);
      for (int t = 0; t < sequence.n_rows; t += tokens_per_tile) {
        AttentionItem item;
        item.is_bulk = is_bulk;
        item.pages = sequence.pages;
        item.first_row = sequence.first_row + t;
        item.n_tokens = std::min(tokens_per_tile, sequence.n_rows - t);
        int begin = std::numeric_limits<int>::max();
        int end = 0;
        for (int i = 0; i < item.n_tokens; ++i) {
          begin = std::min(begin, spans[item.first_row + i].begin);
          end = std::max(end, spans[item.first_row + i].end);
        }
        item.first_segment = begin / kSegment;
        item.n_segments = (end - 1) / kSegment - item.first_segment + 1;
        for (int h = 0; h < layout.n_kv_heads; ++h) {
          item.kv_head = h;
          for (int g = 0; g < group; g += heads_per_tile) {
            item.first_head = h * group + g;
            item.n_heads = std::min(heads_per_tile, group - g);
            items_.push_back(item);
          }
        }
      }
    }
    const Task task{out, q, &layout, spans, n_heads};
    // Enough tiles for all threads: each goes through its span in one piece.
    size_t n_partial_rows = 0;
    for (AttentionItem& item : items_) {
      item.first_partial_row = n_partial_rows;
      n_partial_rows += static_cast<size_t>(item.n_segments) * item.n_rows();
    }
    const size_t partial_bytes = n_partial_rows * partial_row_floats(layout.head_dim) * sizeof(float);
    if (items_.size() >= static_cast<size_t>(kItemsPerThread * pool_.n_threads()) || partial_bytes > kMaxPartialBytes) {
      pool_.parallel_for(static_cast<int>(items_.size()), [&](int chunk, int thread) {
        attend_item(task, items_[static_cast<size_t>(chunk)], scratch_[static_cast<size_t>(thread)]);
      });
      return;
    }
    // Else their segments go to different threads and are merged afterwards, in the same order.
    int n_units = 0;
    for (AttentionItem& item : items_) {
      item.first_unit = n_units;
      n_units += item.n_segments;
    }
    float* partials = reinterpret_cast<float*>(partials_.reserve(partial_bytes));
    pool_.parallel_for(n_units, [&](int unit, int thread) {
      size_t i = items_.size() - 1;
      while (items_[i].first_unit > unit) --i;
      const int segment = unit - items_[i].first_unit;
      attend_segment(task, items_[i], items_[i].first_segment + segment,
                     partial_of(partials, items_[i], segment, layout.head_dim), scratch_[static_cast<size_t>(thread)]);
    });
    for (const AttentionItem& item : items_) {
      const Partial total = partial_of(partials, item, 0, layout.head_dim);
      for (int s = 1; s < item.n_segments; ++s)
        merge_partials(item, layout.head_dim, total, partial_of(partials, item, s, layout.head_dim));
      write_item(task, item, total);
    }
  }

  void geglu(float* out, const float* gate, const float* up, int n, int dim) override {
    if (n >= 4) {
      for_rows(n, 4, [&](int i) {
        const size_t offset = static_cast<size_t>(i) * static_cast<size_t>(dim);
        kernels_.geglu(out + offset, gate + offset, up + offset, dim);
      });
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
    for_rows(n, 8, [&](int i) {
      const size_t offset = static_cast<size_t>(i) * static_cast<size_t>(dim);
      kernels_.layer_norm(out + offset, x + offset, weight, bias, dim, eps);
    });
  }

  void add_bias(float* x, const float* bias, int n, int dim) override {
    for_rows(n, 8, [&](int i) { kernels_.add_bias(x + static_cast<size_t>(i) * static_cast<size_t>(dim), bias, dim); });
  }

  void bias_gelu(float* x, const float* bias, int n, int dim) override {
    for_rows(n, 8,
             [&](int i) { kernels_.bias_gelu(x + static_cast<size_t>(i) * static_cast<size_t>(dim), bias, dim); });
  }

  void add_residual_bias(float* x, const float* branch, const float* bias, int n, int dim) override {
    for_rows(n, 8, [&](int i) {
      const size_t offset = static_cast<size_t>(i) * static_cast<size_t>(dim);
      kernels_.add_residual_bias(x + offset, branch + offset, bias, dim);
    });
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
      const size_t stride = static_cast<size_t>(n_heads) * static_cast<size_t>(head_dim);
      const size_t offset = static_cast<size_t>((first + i) / n_heads) * static_cast<size_t>(group_rows) * stride +
                            static_cast<size_t>((first + i) % n_heads) * static_cast<size_t>(head_dim);
      return cpu::FullAttentionHead{q + offset,   k + offset, v + offset,
                                    out + offset, stride,     group_rows,
                                    head_dim,     scale,      packed + static_cast<size_t>(i) * packed_bytes};
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
      std::memcpy(out + static_cast<size_t>(i) * static_cast<size_t>(dim),
                  x + static_cast<size_t>(rows[i]) * static_cast<size_t>(dim),
                  static_cast<size_t>(dim) * sizeof(float));
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
  struct RowPart {  // of found[row].rows
    size_t row;
    size_t first;
    size_t n;
  };
  struct AttentionItem {
    const std::byte* const* pages = nullptr;
    bool is_bulk = false;
    int first_row = 0;
    int n_tokens = 0;
    int kv_head = 0;
    int first_head = 0;
    int n_heads = 0;
    int first_segment = 0;
    int n_segments = 0;
    int first_unit = 0;
    size_t first_partial_row = 0;
    size_t n_rows() const { return static_cast<size_t>(n_tokens) * static_cast<size_t>(n_heads); }
  };
  struct Task {
    float* out;
    const float* q;
    const KvLayout* layout;
    const RowSpan* spans;
    int n_heads;
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

  // Weight rows per chunk: with few rows of x 64 to 256 KiB of weights, large enough that the start of a share of
  // chunks, which nobody has fetched ahead, costs little; with many as many panels as a kernel unpacks at a time, so
  // that it reads x seldom, but several chunks for each thread. The n_exact first of the n rows are not bulk, which
  // wants larger chunks.
  int chunk_rows(const Weight& weight, int n_exact, int n) const {
    constexpr int kGranularity = 32;
    if (n_exact < n) {
      const int share = weight.n_out / (4 * n_threads()) / kGranularity * kGranularity;
      return std::clamp(share, kGranularity, 8 * kGranularity);
    }
    if (n > 16) {
      const int share = weight.n_out / (8 * n_threads()) / kGranularity * kGranularity;
      return std::clamp(share, kGranularity, 4 * kGranularity);
    }
    const size_t bytes = std::max<size_t>(row_bytes(weight.type, weight.n_in), 1);
    const size_t share = bytes * static_cast<size_t>(weight.n_out) / (16 * static_cast<size_t>(n_threads()));
    return static_cast<int>(
        round_up(std::max<size_t>(std::clamp<size_t>(share, 65536, 262144) / bytes, 1), kGranularity));
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
      const auto row = [&](size_t r) { return weight.data + static_cast<size_t>(rows[r]) * stored; };
      if (is_float_type(weight.type)) {
        const float* xi = x + i * static_cast<size_t>(weight.n_in);
        for (size_t r = 0; r < n; ++r)
          kernels_.gemm_float({weight.type, row(r), stored, 0, 1}, xi, 1, weight.n_in, products + r, 1, scratch);
        return;
      }
      // Side by side in working memory, then one product.
      for (size_t r = 0; r < n; ++r) std::memcpy(scratch.data + r * stored, row(r), stored);
      const size_t used = round_up(n * stored, 64);
      const cpu::WeightRows gathered{weight.type, scratch.data, stored, 0, static_cast<int>(n)};
      kernels_.gemm_quantized(gathered, quantized.row(static_cast<int>(i)), products, n,
                              {scratch.data + used, scratch.bytes - used});
    });
  }

  QuantizedRows quantize(const float* x, int n, int n_in) {
    const size_t rows = static_cast<size_t>(n);
    const size_t cols = static_cast<size_t>(n_in);
    const size_t blocks = rows * (cols / 32);
    std::byte* memory = quantized_.reserve(rows * cols + blocks * (4 * 7) + 64 * 8);
    const auto take = [&](size_t bytes) {
      std::byte* p = memory;
      memory += round_up(bytes, 64);
      return p;
    };
    QuantizedRowOut out;
    out.q = reinterpret_cast<int8_t*>(take(rows * cols));
    out.d = reinterpret_cast<float*>(take(blocks * 4));
    out.neg_sum = reinterpret_cast<int32_t*>(take(blocks * 4));
    out.neg_sum16 = reinterpret_cast<int32_t*>(take(blocks * 8));
    out.dsum = reinterpret_cast<float*>(take(blocks * 4));
    out.dsum16 = reinterpret_cast<float*>(take(blocks * 8));
    for_rows(n, 4, [&](int i) {
      const size_t row = static_cast<size_t>(i);
      const size_t b = row * (cols / 32);
      kernels_.quantize_row(
          x + row * cols, n_in,
          {out.q + row * cols, out.d + b, out.neg_sum + b, out.neg_sum16 + 2 * b, out.dsum + b, out.dsum16 + 2 * b});
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

  // What a tile has gathered from one segment: per row head_dim floats (padded to 16), a maximum and a sum.
  struct Partial {
    float* rows;
    float* max;
    float* sum;
  };
  static size_t partial_row_floats(int head_dim) { return round_up(static_cast<size_t>(head_dim), 16) + 2; }
  static Partial partial_at(float* memory, size_t n_rows, int head_dim) {
    float* max = memory + n_rows * round_up(static_cast<size_t>(head_dim), 16);
    return {memory, max, max + n_rows};
  }
  static Partial partial_of(float* partials, const AttentionItem& item, int segment, int head_dim) {
    const size_t row = item.first_partial_row + static_cast<size_t>(segment) * item.n_rows();
    return partial_at(partials + row * partial_row_floats(head_dim), item.n_rows(), head_dim);
  }

  void attend_segment(const Task& task, const AttentionItem& item, int segment, const Partial& partial,
                      const Scratch& scratch) const {
    const int head_dim = task.layout->head_dim;
    const size_t row_floats = round_up(static_cast<size_t>(head_dim), 16);
    constexpr int kMostRows = std::max(kAttentionRows, cpu::kBulkAttentionRows);
    const float* q[kMostRows];
    float* out[kMostRows];
    RowSpan spans[kMostRows];
    int n = 0;
    for (int t = 0; t < item.n_tokens; ++t) {
      RowSpan span = task.spans[item.first_row + t];
      span.begin = std::max(span.begin, segment * kSegment);
      span.end = std::max(span.begin, std::min(span.end, (segment + 1) * kSegment));
      for (int h = 0; h < item.n_heads; ++h, ++n) {
        const size_t row = static_cast<size_t>(item.first_row + t) * static_cast<size_t>(task.n_heads) +
                           static_cast<size_t>(item.first_head + h);
        q[n] = task.q + row * static_cast<size_t>(head_dim);
        out[n] = partial.rows + static_cast<size_t>(n) * row_floats;
        spans[n] = span;
      }
    }
    AttentionTile tile;
    tile.layout = *task.layout;
    tile.pages = item.pages;
    tile.kv_head = item.kv_head;
    tile.n_rows = n;
    tile.q = q;
    tile.out = out;
    tile.spans = spans;
    tile.max = partial.max;
    tile.sum = partial.sum;
    (item.is_bulk ? kernels_.bulk_attention : kernels_.attention)(tile, scratch);
  }

  void merge_partials(const AttentionItem& item, int head_dim, const Partial& total, const Partial& partial) const {
    const size_t row_floats = round_up(static_cast<size_t>(head_dim), 16);
    for (size_t r = 0; r < item.n_rows(); ++r) {
      // The row's span does not reach this segment.
      if (partial.max[r] == -std::numeric_limits<float>::infinity()) continue;
      kernels_.merge_segments(total.rows + r * row_floats, total.max + r, total.sum + r, partial.rows + r * row_floats,
                              partial.max[r], partial.sum[r], head_dim);
    }
  }

  void write_item(const Task& task, const AttentionItem& item, const Partial& total) const {
    const int head_dim = task.layout->head_dim;
    const size_t row_floats = round_up(static_cast<size_t>(head_dim), 16);
    int n = 0;
    for (int t = 0; t < item.n_tokens; ++t) {
      for (int h = 0; h < item.n_heads; ++h, ++n) {
        const size_t row = static_cast<size_t>(item.first_row + t) * static_cast<size_t>(task.n_heads) +
                           static_cast<size_t>(item.first_head + h);
        float* out = task.out + row * static_cast<size_t>(head_dim);
        const float* acc = total.rows + static_cast<size_t>(n) * row_floats;
        const float inverse = 1.0f / total.sum[n];
        for (int j = 0; j < head_dim; ++j) out[j] = acc[j] * inverse;
      }
    }
  }

  void attend_item(const Task& task, const AttentionItem& item, const Scratch& scratch) const {
    const int head_dim = task.layout->head_dim;
    const size_t floats = round_up(item.n_rows() * partial_row_floats(head_dim), 16);
    float* memory = reinterpret_cast<float*>(scratch.data);
    const Partial total = partial_at(memory, item.n_rows(), head_dim);
    const Partial partial = partial_at(memory + floats, item.n_rows(), head_dim);
    const size_t used = 2 * floats * sizeof(float);
    const Scratch rest{scratch.data + used, scratch.bytes - used};
    attend_segment(task, item, item.first_segment, total, rest);
    for (int s = 1; s < item.n_segments; ++s) {
      attend_segment(task, item, item.first_segment + s, partial, rest);
      merge_partials(item, head_dim, total, partial);
    }
    write_item(task, item, total);
  }

  const Kernels& kernels_;
  ThreadPool pool_;
  Workspace scratch_memory_;
  std::vector<Scratch> scratch_;
  Workspace quantized_;
  Workspace packed_x_;
  Workspace partials_;
  Workspace packed_;  // keys and values of the heads that full_attention works on
  std::vector<float> rounded_;
  std::vector<RowPart> parts_;
  std::vector<JobChunks> job_chunks_;
  std::vector<AttentionItem> items_;
};

}  // namespace

bool cpu_has_bulk(const std::string& isa) {
  return cpu::select_kernels(isa).bulk != nullptr;
}

std::unique_ptr<Backend> make_cpu_backend(const std::string& isa, int n_threads) {
  return std::make_unique<CpuBackend>(cpu::select_kernels(isa), std::max(1, n_threads));
}

}  // namespace gemma
