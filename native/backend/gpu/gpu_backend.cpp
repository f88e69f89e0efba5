// The GPU backend: each operation of backend.h as one launch or a few. Weights are repacked while they are uploaded;
// what the host knows of a batch (tokens, positions, spans, pages) is uploaded when it differs from what is there.
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/gpu/device.h"
#include "backend/gpu/device_memory.h"
#include "backend/gpu/gpu_traits.h"
#include "backend/gpu/repack.h"
#include "backend/workspace.h"
#include "base/error.h"
#include "base/thread_pool.h"

namespace gemma::gpu {
namespace {

// Up to so many rows of x a product goes by rows, beyond by tiles.
constexpr int kMostFewRows = 8;
// Weights are repacked in pieces of about this size, one after the other into the same host memory.
constexpr size_t kRepackBytes = size_t{16} << 20;

unsigned ceil_div(size_t n, size_t divisor) {
  return static_cast<unsigned>((n + divisor - 1) / divisor);
}

class GpuOutput final : public OutputMatrix {
 public:
  GpuOutput(const Weight& matrix, bool screened) : weight(matrix), is_screened(screened) {}
  Weight weight;
  bool is_screened;
};

class GpuBackend final : public Backend {
 public:
  GpuBackend(std::unique_ptr<Device> device, int n_threads)
      : device_(std::move(device)),
        pool_(n_threads),
        n_threads_(n_threads),
        name_(device_->info().kind +
              (device_->info().kind == "emulated" ? "" : ":" + std::to_string(device_->info().index))) {}

  const char* device() const override { return name_.c_str(); }
  const char* isa() const override { return device_->info().chip.c_str(); }
  int n_threads() const override { return n_threads_; }

  const BackendTraits& traits() const override { return gpu_traits(); }
  void reserve(const WorkLimits& limits) override {
    newest_ = {};
    const std::vector<uint64_t> bytes = gpu_traits().workspace_bytes(limits);
    quantized_.take(bytes[kQuantized]);
    partials_.take(bytes[kPartials]);
    top_.take(bytes[kTop]);
    Mirror* mirrors[] = {&tokens_, &positions_, &rows_, &row_pages_, &pages_, &views_, &requests_};
    for (size_t i = 0; i < std::size(mirrors); ++i) mirrors[i]->take(bytes[kTokens + i * kMirrorCopies]);
  }

  std::unique_ptr<Buffer> allocate(size_t bytes) override { return std::make_unique<GpuBuffer>(*device_, bytes); }
  void upload(void* dst, const void* src, size_t bytes) override {
    newest_ = {};
    device_->upload(dst, src, bytes);
  }
  void download(void* dst, const void* src, size_t bytes) override { device_->download(dst, src, bytes); }
  void fill_zero(void* dst, size_t bytes) override {
    newest_ = {};
    device_->fill(dst, 0, bytes);
  }

  Weight load_weight(TensorType type, int n_out, int n_in, const std::byte* data) override {
    newest_ = {};
    const size_t n_rows = static_cast<size_t>(n_out);
    if (is_float_type(type)) {
      const size_t bytes = n_rows * row_bytes(type, n_in);
      weights_.push_back(std::make_unique<GpuBuffer>(*device_, bytes));
      device_->upload(weights_.back()->data(), data, bytes);
      return {type, n_out, n_in, weights_.back()->data()};
    }
    const PlaneOffsets offsets = plane_offsets(type, n_out, n_in);
    auto buffer = std::make_unique<GpuBuffer>(*device_, offsets.bytes);
    const size_t low = offsets.high / n_rows;
    const size_t high = (offsets.tail - offsets.high) / n_rows;
    const size_t tail = (offsets.bytes - offsets.tail) / n_rows;
    const size_t stored = row_bytes(type, n_in);
    const size_t n_part = std::clamp<size_t>(kRepackBytes / (low + high + tail), 1, n_rows);
    std::vector<uint8_t> host(n_part * (low + high + tail));
    for (size_t first = 0; first < n_rows; first += n_part) {
      const size_t n = std::min(n_part, n_rows - first);
      uint8_t* planes[3] = {host.data(), host.data() + n * low, host.data() + n * (low + high)};
      pool_.parallel_for(static_cast<int>(n), [&](int i, int /*thread*/) {
        const size_t row = static_cast<size_t>(i);
        repack_row(type, data + (first + row) * stored, n_in, planes[0] + row * low, planes[1] + row * high,
                   planes[2] + row * tail);
      });
      device_->upload(buffer->data() + first * low, planes[0], n * low);
      if (high > 0) device_->upload(buffer->data() + offsets.high + first * high, planes[1], n * high);
      device_->upload(buffer->data() + offsets.tail + first * tail, planes[2], n * tail);
    }
    stored_rows_[buffer->data()] = n_out;
    quantized_widths_.insert(n_in);
    weights_.push_back(std::move(buffer));
    return {type, n_out, n_in, weights_.back()->data()};
  }

  void requantize(std::byte* dst, const Weight& weight, int n_out, int n_in) override {
    quantized_widths_.insert(n_in);
    RequantizeArguments a{};
    a.matrix = matrix_of(weight);
    a.weight = is_float_type(weight.type) ? weight.data : nullptr;
    a.low = reinterpret_cast<int8_t*>(dst);
    a.tail = reinterpret_cast<uint16_t*>(dst + plane_offsets(TensorType::kQ8_0, n_out, n_in).tail);
    a.n_out = n_out;
    a.n_in = n_in;
    launch(Kernel::requantize, {ceil_div(static_cast<size_t>(n_in / 32), kThreads), static_cast<unsigned>(n_out)}, a);
  }

  void embed(float* out, const Weight& table, const int32_t* tokens, int n, float scale) override {
    EmbedArguments a{};
    a.matrix = matrix_of(table);
    a.weight = is_float_type(table.type) ? table.data : nullptr;
    a.tokens = tokens_.get(std::span(tokens, static_cast<size_t>(n)));
    a.out = out;
    a.n = n;
    a.scale = scale;
    launch(Kernel::embed, {ceil_div(static_cast<size_t>((table.n_in + 31) / 32), kThreads), static_cast<unsigned>(n)},
           a);
  }

  void rms_norm(float* out, const float* x, const float* weight, int n, int dim, float eps) override {
    const Newest made = plan_blocks(out, n, dim);
    launch(Kernel::rms_norm, {static_cast<unsigned>(n)},
           NormArguments{out, x, weight, nullptr, n, dim, eps, 0, made.blocks});
    newest_ = made;
  }
  // The sum is the residual stream: what is multiplied is its norm.
  void add_rms_norm(float* x, const float* branch, const float* weight, int n, int dim, float eps) override {
    launch(Kernel::rms_norm, {static_cast<unsigned>(n)}, NormArguments{x, branch, weight, nullptr, n, dim, eps, 1, {}});
  }
  void layer_norm(float* out, const float* x, const float* weight, const float* bias, int n, int dim,
                  float eps) override {
    const Newest made = plan_blocks(out, n, dim);
    launch(Kernel::layer_norm, {static_cast<unsigned>(n)},
           NormArguments{out, x, weight, bias, n, dim, eps, 0, made.blocks});
    newest_ = made;
  }

  bool computes_bulk_apart(TensorType type) const override { return is_float_type(type) && type != TensorType::kF32; }

  // Whoever is alone and who is one of many, the kernels for quantised weights compute a row alike. Of float weights
  // bulk rows are multiplied in bfloat16, two for a value: as good as exact, whatever bulk.float_weights allows.
  using Backend::linear;
  void linear(std::span<const LinearJob> jobs, const float* x, int n, Bulk bulk,
              std::span<const LowRank> added) override {
    if (n == 0) return;
    QuantizedX quantized{};
    if (newest_.x == x && newest_.n == n && newest_.dim == jobs.front().weight->n_in) quantized = as_x(newest_.blocks);
    // Of many rows each is a launch of its own: beside its work a launch is nothing.
    const size_t most = n > kMostFewRows ? 1 : kMostJobs;
    std::array<LinearJob, kMostJobs> together;
    size_t n_together = 0;
    for (const LinearJob& job : jobs) {
      if (is_float_type(job.weight->type)) {
        multiply_floats(job, x, n, std::min(bulk.n_rows, n));
        continue;
      }
      if (quantized.q == nullptr) quantized = quantize(x, n, job.weight->n_in);
      together[n_together++] = job;
      if (n_together == most) multiply(std::span(together).first(std::exchange(n_together, 0)), quantized, n);
    }
    multiply(std::span(together).first(n_together), quantized, n);
    for (const LowRank& part : added) {
      const size_t first = static_cast<size_t>(part.first_row);
      const LinearJob job{&part.a, part.t + first * static_cast<size_t>(part.a.n_out)};
      multiply_floats(job, x + first * static_cast<size_t>(part.a.n_in), part.n_rows, 0);
    }
    if (!added.empty()) add_low_rank(added);
  }

  void add_low_rank(std::span<const LowRank> added) override {
    for (const LowRank& part : added) {
      const size_t first = static_cast<size_t>(part.first_row);
      LowRankArguments a{};
      a.type = static_cast<int>(part.b.type);
      a.rank = part.b.n_out;
      a.n_out = part.n_out;
      a.stride = part.stride;
      a.n_columns = part.b.n_in;
      a.b = part.b.data;
      a.bias = part.bias;
      a.norms = part.norms;
      a.t = part.t + first * static_cast<size_t>(a.rank);
      a.out = part.out + first * static_cast<size_t>(a.stride);
      a.n = part.n_rows;
      a.scale = part.scale;
      launch(Kernel::add_low_rank,
             {ceil_div(static_cast<size_t>(a.n_out), kThreads), ceil_div(static_cast<size_t>(a.n), gpu::kLowRankRows)},
             a);
    }
  }

  std::unique_ptr<OutputMatrix> make_output(const Weight& weight, bool screened, int /*max_rows*/) override {
    return std::make_unique<GpuOutput>(weight, screened);
  }

  // A GPU reads the whole matrix sooner than it would learn which rows are not wanted: all products are computed, and
  // of screened matrices the largest picked out where they are, so that 1 MB of logits for a token need not travel.
  void top_linear(OutputMatrix& matrix, float* out, const float* x, int n, std::span<const TopRows> wanted,
                  std::span<TopProducts> found) override {
    const GpuOutput& output = static_cast<GpuOutput&>(matrix);
    const LinearJob job{&output.weight, out};
    linear({&job, 1}, x, n, {});
    for (TopProducts& row : found) {
      row.all = true;
      row.rows.clear();
      row.values.clear();
    }
    if (!output.is_screened || n == 0) return;
    // Those that are too many would leave next to nothing out.
    const size_t n_out = static_cast<size_t>(output.weight.n_out);
    size_t most = 0;
    for (const TopRows& top : wanted) {
      const size_t n_wanted = static_cast<size_t>(top.n_best) + top.always.size();
      if (top.n_best == 0 || n_wanted > max_wanted(n_out)) return;
      most = std::max(most, n_wanted);
    }
    if (!find_top(out, n, n_out, top_capacity(most), wanted, found)) linear({&job, 1}, x, n, {});
  }

  void rope_table(float* table, const int32_t* positions, const float* inv_freq, int n, int head_dim) override {
    launch(
        Kernel::rope_table, {static_cast<unsigned>(n)},
        RopeTableArguments{table, positions_.get(std::span(positions, static_cast<size_t>(n))), inv_freq, n, head_dim});
  }

  void norm_rope(float* x, const float* weight, const float* table, int n, int n_heads, int head_dim, float eps,
                 float scale) override {
    launch(Kernel::norm_rope, {ceil_div(static_cast<size_t>(n) * static_cast<size_t>(n_heads), kThreads / 32)},
           NormRopeArguments{x, weight, table, n, n_heads, head_dim, eps, scale});
  }

  void store_kv(const KvLayout& layout, std::span<const BatchSequence> sequences, const int32_t* positions,
                const float* k, const float* v) override {
    // Rows come in order, sequence by sequence; those of none between them are skipped.
    for (size_t i = 0; i < sequences.size();) {
      const int first_row = sequences[i].first_row;
      int end_row = first_row;
      host_row_pages_.clear();
      for (; i < sequences.size() && sequences[i].first_row == end_row; ++i) {
        for (int r = 0; r < sequences[i].n_rows; ++r, ++end_row)
          // The pages are const for readers; this is the one writer.
          host_row_pages_.push_back(reinterpret_cast<uint8_t*>(
              const_cast<std::byte*>(sequences[i].pages[positions[end_row] / kPagePositions])));
      }
      if (end_row == first_row) continue;
      const size_t row = static_cast<size_t>(first_row) * static_cast<size_t>(layout.n_kv_heads) *
                         static_cast<size_t>(layout.head_dim);
      const size_t n = static_cast<size_t>(end_row - first_row);
      StoreKvArguments a{};
      a.layout = layout_of(layout);
      a.pages = row_pages_.get(std::span(std::as_const(host_row_pages_)));
      a.positions = positions_.get(std::span(positions + first_row, n));
      a.k = k + row;
      a.v = v + row;
      a.n = end_row - first_row;
      launch(Kernel::store_kv, {ceil_div(n * 2 * static_cast<size_t>(layout.n_kv_heads), kThreads / 32)}, a);
    }
  }

  void attention(float* out, const float* q, const KvLayout& layout, std::span<const BatchSequence> sequences,
                 const RowSpan* spans, int n_heads, Bulk /*bulk*/) override {
    if (layout.head_dim > kMaxHeadDim) {
      throw Error(ErrorCode::kUnsupportedModel, "HEAD_DIM",
                  "head size " + std::to_string(layout.head_dim) + ": GPUs take up to " + std::to_string(kMaxHeadDim));
    }
    host_pages_.clear();
    host_views_.clear();
    size_t next_row = sequences.empty() ? 0 : static_cast<size_t>(sequences.front().first_row);
    const size_t first_row = next_row;
    for (const BatchSequence& sequence : sequences) {
      int end = 0;
      for (int r = sequence.first_row; r < sequence.first_row + sequence.n_rows; ++r) end = std::max(end, spans[r].end);
      const uint32_t first_page = static_cast<uint32_t>(host_pages_.size());
      const size_t n_pages = static_cast<size_t>((end + kPagePositions - 1) / kPagePositions);
      host_pages_.insert(host_pages_.end(), sequence.pages, sequence.pages + n_pages);
      for (int r = sequence.first_row; r < sequence.first_row + sequence.n_rows; ++r)
        host_views_.push_back({spans[r].begin, spans[r].end, first_page, 0});
      next_row += static_cast<size_t>(sequence.n_rows);
    }
    const size_t n_rows = next_row - first_row;
    if (n_rows == 0) return;
    const uint8_t* const* pages =
        reinterpret_cast<const uint8_t* const*>(pages_.get(std::span(std::as_const(host_pages_))));
    const RowView* views = views_.get(std::span(std::as_const(host_views_)));

    const size_t row_floats = static_cast<size_t>(n_heads) * static_cast<size_t>(layout.head_dim);
    const size_t partial_row = partial_row_bytes(n_heads, layout.head_dim);
    Newest made{};
    if (layout.head_dim % 32 == 0)
      made = plan_blocks(out + first_row * row_floats, static_cast<int>(n_rows), n_heads * layout.head_dim);
    for (size_t begin = 0; begin < n_rows;) {
      // As many rows as their partial results have room for.
      int first_segment = std::numeric_limits<int>::max();
      int end_segment = 0;
      size_t end = begin;
      for (; end < n_rows; ++end) {
        const int first = std::min(first_segment, host_views_[end].begin / kAttentionSegment);
        const int last = std::max(end_segment, (host_views_[end].end - 1) / kAttentionSegment + 1);
        if (end > begin && static_cast<size_t>(last - first) * (end + 1 - begin) * partial_row > kMaxPartialBytes)
          break;
        first_segment = first;
        end_segment = last;
      }
      const int n = static_cast<int>(end - begin);
      const size_t offset = (first_row + begin) * row_floats;
      AttentionArguments a{};
      a.layout = layout_of(layout);
      a.pages = pages;
      a.rows = views + begin;
      a.q = q + offset;
      a.n = n;
      a.n_heads = n_heads;
      a.first_segment = first_segment;
      a.n_segments = end_segment - first_segment;
      a.partial = reinterpret_cast<float*>(
          partials_.reserve(static_cast<size_t>(a.n_segments) * static_cast<size_t>(n) * partial_row));
      const size_t n_pairs = static_cast<size_t>(n) * static_cast<size_t>(n_heads / layout.n_kv_heads);
      launch(Kernel::attention,
             {ceil_div(n_pairs, kThreads / 32), static_cast<unsigned>(layout.n_kv_heads),
              static_cast<unsigned>(a.n_segments)},
             a);
      if (static_cast<size_t>(n) != n_rows) made = {};  // rows that go in parts are quantised in one
      launch(Kernel::attention_merge, {ceil_div(static_cast<size_t>(n) * static_cast<size_t>(n_heads), kThreads / 32)},
             AttentionMergeArguments{a.rows, a.partial, out + offset, n, n_heads, layout.head_dim, first_segment,
                                     a.n_segments, made.blocks});
      begin = end;
    }
    newest_ = made;
  }

  void geglu(float* out, const float* gate, const float* up, int n, int dim) override {
    const Newest made = plan_blocks(out, n, dim);
    elementwise(Elementwise::kGeglu, out, gate, up, nullptr, n, dim, made.blocks);
    newest_ = made;
  }
  void add_bias(float* x, const float* bias, int n, int dim) override {
    elementwise(Elementwise::kAddBias, x, x, nullptr, bias, n, dim);
  }
  void bias_gelu(float* x, const float* bias, int n, int dim) override {
    const Newest made = plan_blocks(x, n, dim);
    elementwise(Elementwise::kBiasGelu, x, x, nullptr, bias, n, dim, made.blocks);
    newest_ = made;
  }
  void add_residual_bias(float* x, const float* branch, const float* bias, int n, int dim) override {
    elementwise(Elementwise::kAddResidualBias, x, x, branch, bias, n, dim);
  }
  void softcap(float* x, size_t n, float cap) override {
    launch_elementwise({Elementwise::kSoftcap, x, x, nullptr, nullptr, n, 1, cap, {}});
  }

  // In float32 whatever the arithmetic.
  void full_attention(float* out, const float* q, const float* k, const float* v, int n_groups, int group_rows,
                      int n_heads, int head_dim, float scale, Arithmetic /*arithmetic*/) override {
    launch(Kernel::full_attention,
           {ceil_div(static_cast<size_t>(group_rows), kFullQueries), static_cast<unsigned>(n_heads),
            static_cast<unsigned>(n_groups)},
           FullAttentionArguments{out, q, k, v, group_rows, n_heads, head_dim, scale});
  }

  void gather_rows(float* out, const float* x, const int32_t* rows, int n, int dim) override {
    if (n == 0) return;
    constexpr size_t kPart = size_t{kThreads} * 8;
    launch(Kernel::gather_rows, {ceil_div(static_cast<size_t>(dim), kPart), static_cast<unsigned>(n)},
           GatherArguments{out, x, rows_.get(std::span(rows, static_cast<size_t>(n))), n, dim});
  }

 private:
  // Rows of floats that the newest launch has made, of which it has also made the blocks.
  struct Newest {
    const float* x = nullptr;
    int n = 0;
    int dim = 0;
    QuantizedOut blocks{};
  };

  // Blocks for out[n, dim] to be made along with it, where a product may follow that takes them; else none.
  Newest plan_blocks(const float* out, int n, int dim) {
    const bool fits = n > 0 && dim % 32 == 0 && reinterpret_cast<uintptr_t>(out) % sizeof(float[4]) == 0;
    if (!fits || !quantized_widths_.contains(dim)) return {};
    return {out, n, dim, reserve_blocks(static_cast<size_t>(n) * static_cast<size_t>(dim / 32))};
  }

  QuantizedOut reserve_blocks(size_t n_blocks) {
    std::byte* memory = quantized_.reserve(n_blocks * kQuantizedBlockBytes);
    float* d = reinterpret_cast<float*>(memory + n_blocks * 32);
    return {reinterpret_cast<int8_t*>(memory), d, d + n_blocks, d + 3 * n_blocks};
  }

  static QuantizedX as_x(const QuantizedOut& blocks) { return {blocks.q, blocks.d, blocks.half_sums, blocks.sums}; }

  // Whatever is launched may write to the rows that newest_ stands for.
  template <class Arguments>
  void launch(Kernel kernel, Grid grid, const Arguments& arguments) {
    newest_ = {};
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    device_->launch(kernel, grid, kThreads, &arguments);
  }

  void launch_elementwise(const ElementwiseArguments& a) {
    launch(Kernel::elementwise, {ceil_div(a.n, size_t{kThreads} * kElementwise)}, a);
  }
  void elementwise(Elementwise operation, float* out, const float* x, const float* a, const float* bias, int n, int dim,
                   const QuantizedOut& blocks = {}) {
    launch_elementwise(
        {operation, out, x, a, bias, static_cast<uint64_t>(n) * static_cast<uint64_t>(dim), dim, 0, blocks});
  }

  static CacheLayout layout_of(const KvLayout& layout) {
    return {static_cast<int>(layout.type),           layout.n_kv_heads,   layout.head_dim,
            static_cast<uint32_t>(layout.row_bytes), layout.layer_offset, layout.v_offset()};
  }

  Matrix matrix_of(const Weight& weight) const {
    Matrix matrix{static_cast<int>(weight.type), weight.n_out, weight.n_in, nullptr, nullptr, nullptr};
    if (is_float_type(weight.type)) return matrix;
    // Less rows may be wanted than are stored; what requantize made has as many.
    const auto stored = stored_rows_.find(weight.data);
    const int n_rows = stored != stored_rows_.end() ? stored->second : weight.n_out;
    const PlaneOffsets offsets = plane_offsets(weight.type, n_rows, weight.n_in);
    matrix.low = reinterpret_cast<const uint8_t*>(weight.data);
    matrix.high = matrix.low + offsets.high;
    matrix.tail = matrix.low + offsets.tail;
    return matrix;
  }

  // At most kMostJobs of quantised weights.
  void multiply(std::span<const LinearJob> jobs, const QuantizedX& x, int n) {
    const bool is_few = n <= kMostFewRows;
    LinearArguments a{};
    a.x = x;
    a.n = n;
    unsigned n_blocks = 0;
    for (size_t i = 0; i < std::size(a.jobs); ++i) {
      if (i < jobs.size()) {
        a.jobs[i] = {matrix_of(*jobs[i].weight), jobs[i].out};
        n_blocks += ceil_div(static_cast<size_t>(jobs[i].weight->n_out), is_few ? kRowsOfLinear : kTileOut);
      }
      a.end_blocks[i] = static_cast<int>(n_blocks);
    }
    const unsigned rows = ceil_div(static_cast<size_t>(n), n == 1 ? 1 : is_few ? kFewRows : kTileX);
    launch(n == 1 ? Kernel::linear_one : is_few ? Kernel::linear_few : Kernel::linear_tiled, {n_blocks, rows}, a);
  }

  // The last n_bulk of n rows by tiles where the type has them.
  void multiply_floats(const LinearJob& job, const float* x, int n, int n_bulk) {
    const Weight& weight = *job.weight;
    if (!computes_bulk_apart(weight.type)) n_bulk = 0;
    const size_t n_others = static_cast<size_t>(n - n_bulk);
    const size_t n_out = static_cast<size_t>(weight.n_out);
    LinearFloatArguments a{
        static_cast<int>(weight.type), weight.n_out, weight.n_in, weight.data, x, job.out, n - n_bulk};
    launch(Kernel::linear_float, {ceil_div(n_out, kFloatOut), ceil_div(n_others, kFloatX)}, a);
    a.x += n_others * static_cast<size_t>(weight.n_in);
    a.out += n_others * n_out;
    a.n = n_bulk;
    launch(Kernel::linear_float_tiled, {ceil_div(n_out, kTileOut), ceil_div(static_cast<size_t>(n_bulk), kTileX)}, a);
  }

  // The largest of products[n, n_out] and those wanted by name into found, which has room for capacity in a row. False
  // if there are more, of many equal ones for example: then nothing is in found, and products are spoilt.
  bool find_top(float* products, int n, size_t n_out, size_t capacity, std::span<const TopRows> wanted,
                std::span<TopProducts> found) {
    const size_t n_rows = static_cast<size_t>(n);
    host_requests_.clear();
    host_ids_.clear();
    host_masks_.clear();
    const size_t n_words = (n_out + 31) / 32;
    for (const TopRows& top : wanted) {
      const int32_t mask = top.allowed.empty() ? -1 : static_cast<int32_t>(host_masks_.size() / n_words);
      host_requests_.push_back({top.n_best, static_cast<uint32_t>(host_ids_.size()),
                                static_cast<uint32_t>(top.always.size()), static_cast<uint32_t>(top.never.size()),
                                mask});
      if (mask >= 0) {
        const std::span<const uint32_t> words = top.allowed.first(std::min(n_words, top.allowed.size()));
        host_masks_.insert(host_masks_.end(), words.begin(), words.end());
        host_masks_.resize((static_cast<size_t>(mask) + 1) * n_words);
      }
      host_ids_.insert(host_ids_.end(), top.always.begin(), top.always.end());
      host_ids_.insert(host_ids_.end(), top.never.begin(), top.never.end());
    }
    const TopLayout layout = top_layout(n_rows, n_out, capacity);
    std::byte* memory = top_.reserve(layout.bytes);
    TopArguments a{};
    a.products = products;
    a.requests = requests_.get(std::span<const TopRequest>(host_requests_));
    a.headers = reinterpret_cast<TopHeader*>(memory);
    a.entries = reinterpret_cast<TopEntry*>(memory + n_rows * sizeof(TopHeader));
    a.maxima = reinterpret_cast<float*>(memory + layout.found_bytes);
    a.n = n;
    a.n_out = static_cast<int>(n_out);
    a.n_slices = static_cast<int>(layout.n_slices);
    a.slice = static_cast<int>(layout.slice);
    a.capacity = static_cast<int>(capacity);
    const unsigned rows = static_cast<unsigned>(n);
    if (!host_ids_.empty()) {
      a.ids = ids_.get(std::span<const int32_t>(host_ids_));
      launch(Kernel::top_take, {rows}, a);
    }
    if (!host_masks_.empty()) {
      a.masks = masks_.get(std::span<const uint32_t>(host_masks_));
      launch(Kernel::top_mask, {ceil_div(n_words, kThreads), rows}, a);
    }
    launch(Kernel::top_maxima, {ceil_div(layout.n_slices, kThreads / 32), rows}, a);
    launch(Kernel::top_threshold, {rows}, a);
    launch(Kernel::top_collect, {ceil_div(n_out, size_t{kThreads} * 8), rows}, a);
    host_found_.resize(layout.found_bytes);
    device_->download(host_found_.data(), memory, layout.found_bytes);
    const auto header_of = [&](size_t row) {
      TopHeader header{};
      std::memcpy(&header, host_found_.data() + row * sizeof header, sizeof header);
      return header;
    };
    for (size_t row = 0; row < n_rows; ++row) {
      if (static_cast<size_t>(header_of(row).n) > capacity) return false;
    }
    for (size_t row = 0; row < n_rows; ++row) {
      found[row].all = false;
      const std::byte* entries = host_found_.data() + n_rows * sizeof(TopHeader) + row * capacity * sizeof(TopEntry);
      for (int i = 0; i < header_of(row).n; ++i) {
        TopEntry entry{};
        std::memcpy(&entry, entries + static_cast<size_t>(i) * sizeof entry, sizeof entry);
        found[row].rows.push_back(entry.row);
        found[row].values.push_back(entry.value);
      }
    }
    return true;
  }

  QuantizedX quantize(const float* x, int n, int n_in) {
    const size_t n_blocks = static_cast<size_t>(n) * static_cast<size_t>(n_in / 32);
    const QuantizeArguments a{x, reserve_blocks(n_blocks), static_cast<int>(n_blocks)};
    launch(Kernel::quantize_rows, {ceil_div(n_blocks, kThreads)}, a);
    return as_x(a.out);
  }

  std::unique_ptr<Device> device_;  // before everything that frees memory of it
  ThreadPool pool_;
  int n_threads_;
  std::string name_;
  std::vector<std::unique_ptr<GpuBuffer>> weights_;
  std::map<const std::byte*, int> stored_rows_;  // of quantised weights, by their memory
  std::set<int> quantized_widths_;               // n_in of them
  Newest newest_;
  Workspace quantized_{*this};
  Workspace partials_{*this};
  Workspace top_{*this};
  Mirror tokens_{*this, *device_};
  Mirror positions_{*this, *device_};
  Mirror rows_{*this, *device_};
  Mirror row_pages_{*this, *device_};
  Mirror pages_{*this, *device_};
  Mirror views_{*this, *device_};
  Mirror requests_{*this, *device_};
  Mirror ids_{*this, *device_};
  Mirror masks_{*this, *device_};
  std::vector<uint8_t*> host_row_pages_;
  std::vector<const std::byte*> host_pages_;
  std::vector<RowView> host_views_;
  std::vector<TopRequest> host_requests_;
  std::vector<int32_t> host_ids_;
  std::vector<uint32_t> host_masks_;
  std::vector<std::byte> host_found_;
};

}  // namespace

std::unique_ptr<Backend> make_gpu_backend(std::unique_ptr<Device> device, int n_threads) {
  return std::make_unique<GpuBackend>(std::move(device), n_threads);
}

}  // namespace gemma::gpu
