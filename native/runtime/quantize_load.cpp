#include "runtime/quantize_load.h"

#include <algorithm>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/large_memory.h"
#include "base/thread_pool.h"
#include "model/layer_tensors.h"
#include "quant/quantize.h"
#include "runtime/quantize_rows.h"
#include "runtime/quantize_types.h"

namespace gemma {
namespace {

// What a thread makes at once, some tens of milliseconds of the slowest types. A row may be longer: then it is one row.
constexpr uint64_t kChunkBytes = uint64_t{64} << 10;
// Chunks of each thread between two reports of progress.
constexpr int kChunksOfThread = 8;

constexpr uint64_t kAlignment = 64;  // of tensors

struct Copy {
  const Tensor* source = nullptr;
  Tensor tensor;
  uint64_t offset = 0;  // into the memory
};

class Copies {
 public:
  Copies(std::shared_ptr<const TensorSource> source, std::string path, int n_threads)
      : source_(std::move(source)), path_(std::move(path)), n_threads_(n_threads) {}

  // type: one that can be made of the tensor's, or its own.
  void plan(const Tensor& source, TensorType type) {
    Copy& copy = copies_.emplace_back();
    copy.source = &source;
    copy.tensor = source;
    copy.tensor.type = type;
    copy.tensor.data = nullptr;
    copy.tensor.bytes = static_cast<size_t>(row_count(source)) * row_bytes(type, row_length(source));
    copy.tensor.is_copy = true;
    copy.offset = memory_bytes_;
    memory_bytes_ += (copy.tensor.bytes + kAlignment - 1) / kAlignment * kAlignment;
    source_bytes_ += source.bytes;
  }
  void let_source_go_afterwards() { source_is_needed_ = false; }

  const std::vector<Copy>& all() const { return copies_; }

  void make(const TensorSource::OnRead& on_read) {
    on_read(0);
    in_file(path_, [&] { memory_.emplace(memory_bytes_); });
    {
      ThreadPool pool(n_threads_);
      std::vector<std::vector<float>> rows(static_cast<size_t>(n_threads_));
      for (Copy& copy : copies_) {
        std::byte* out = memory_->data() + copy.offset;
        make(copy, out, pool, rows, on_read);
        copy.tensor.data = out;
      }
    }
    source_->check();  // what was read of a file that was cut would be zeros
    if (!source_is_needed_) source_.reset();
  }

  void check() const {
    if (source_) source_->check();
  }

 private:
  void make(const Copy& copy, std::byte* out, ThreadPool& pool, std::vector<std::vector<float>>& rows,
            const TensorSource::OnRead& on_read) {
    const Tensor& source = *copy.source;
    const int64_t n_rows = row_count(source);
    const size_t row = row_bytes(copy.tensor.type, row_length(source));
    const size_t source_row = row_bytes(source.type, row_length(source));
    const int64_t n_chunk = std::max<int64_t>(1, static_cast<int64_t>(kChunkBytes / row));
    const int64_t n_slab = n_chunk * kChunksOfThread * n_threads_;
    for (int64_t first = 0; first < n_rows; first += n_slab) {
      const int64_t n = std::min(n_slab, n_rows - first);
      in_file(path_, [&] {
        pool.parallel_for(static_cast<int>((n + n_chunk - 1) / n_chunk), [&](int i, int thread) {
          const int64_t begin = first + i * n_chunk;
          quantize_rows(source, begin, std::min(n_chunk, first + n - begin), copy.tensor.type, nullptr,
                        rows[static_cast<size_t>(thread)], out + static_cast<size_t>(begin) * row);
        });
      });
      const size_t n_bytes = static_cast<size_t>(n) * source_row;
      source_->release(std::span(source.data + static_cast<size_t>(first) * source_row, n_bytes));
      done_bytes_ += n_bytes;
      on_read(static_cast<double>(done_bytes_) / static_cast<double>(source_bytes_));
    }
  }

  std::shared_ptr<const TensorSource> source_;  // null: it is not needed any more
  std::string path_;
  int n_threads_;
  bool source_is_needed_ = true;
  std::vector<Copy> copies_;
  std::optional<LargeMemory> memory_;
  uint64_t memory_bytes_ = 0;
  uint64_t source_bytes_ = 0;
  uint64_t done_bytes_ = 0;
};

}  // namespace

std::shared_ptr<const TensorSource> quantized_tensors(std::shared_ptr<const TensorSource> source,
                                                      const ModelConfig& config, const std::string& type,
                                                      const std::string& path, int n_threads) {
  const FileQuantization& quantization = need_file_quantization(type, "quantize");
  std::vector<TensorToPlan> tensors;
  std::vector<const Tensor*> stored;
  for (ExpectedTensor& expected : expected_tensors(config)) {
    const Tensor* tensor = source->find(expected.name);
    if (tensor == nullptr) bad_tensor(expected.name, "missing");
    tensors.push_back({std::move(expected.name), tensor->type, tensor->shape});
    stored.push_back(tensor);
  }
  const LayerConfig& layer = config.layers.front();
  const std::vector<PlannedType> plan =
      plan_types(tensors, {.heads_per_kv_head = layer.n_heads / layer.n_kv_heads}, quantization, {});
  const auto changes = [&](size_t i) { return is_float_type(stored[i]->type) && plan[i].type != stored[i]->type; };
  bool changes_any = false;
  bool changes_all = true;  // that are matrices
  for (size_t i = 0; i < plan.size(); ++i) {
    changes_any |= changes(i);
    changes_all &= changes(i) || stored[i]->shape.size() == 1;
  }
  if (!changes_any) return source;

  const auto copies = std::make_shared<Copies>(source, path, n_threads);
  if (changes_all) copies->let_source_go_afterwards();
  std::vector<size_t> copied;
  for (size_t i = 0; i < plan.size(); ++i) {
    if (!changes(i) && !changes_all) continue;
    copies->plan(*stored[i], changes(i) ? plan[i].type : stored[i]->type);
    copied.push_back(i);
  }
  const auto result = std::make_shared<TensorSource>();
  size_t n_copied = 0;
  for (size_t i = 0; i < plan.size(); ++i) {
    const bool is_copy = n_copied < copied.size() && copied[n_copied] == i;
    result->add(tensors[i].name, is_copy ? copies->all()[n_copied++].tensor : *stored[i]);
  }
  result->set_prefetch([copies](const TensorSource::OnRead& on_read) { copies->make(on_read); });
  result->set_check([copies] { copies->check(); });
  return result;
}

}  // namespace gemma
