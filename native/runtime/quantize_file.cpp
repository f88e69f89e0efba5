#include "runtime/quantize_file.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/thread_pool.h"
#include "gguf/gguf.h"
#include "gguf/gguf_writer.h"
#include "runtime/importance.h"
#include "runtime/inspect.h"
#include "runtime/quantize_rows.h"

namespace gemma {
namespace {

// What a thread writes at once. A row may be longer: then it is one row.
constexpr uint64_t kChunkBytes = uint64_t{256} << 10;
// Chunks between two reports of progress.
constexpr int kChunksOfSlab = 64;

// Raised when the bytes of any type change: a file that was begun with other arithmetic is begun anew.
constexpr uint64_t kArithmetic = 1;

// What follows the tensors in an unfinished file: the header, then an entry for each tensor that is written. An entry
// counts when its own checksum is right and its hash is that of the bytes.
struct JournalHeader {
  char magic[8] = {'G', 'N', 'Q', 'J', '\r', '\n', '\x1a', '\n'};
  uint64_t plan = 0;  // hash of all that the file's bytes follow from
};
struct JournalEntry {
  uint64_t tensor = 0;
  uint64_t hash = 0;
  uint64_t checksum = 0;

  void seal(uint64_t plan) { checksum = hash_value(hash_value(plan, tensor), hash); }
  bool is_sealed(uint64_t plan) const { return checksum == hash_value(hash_value(plan, tensor), hash); }
};

uint64_t hash_text(uint64_t hash, std::string_view text) {
  return hash_bytes(hash_value(hash, text.size()), std::as_bytes(std::span(text)));
}

struct Output {
  const Tensor* source = nullptr;
  TensorType type = TensorType::kF32;
  const float* importance = nullptr;
  int64_t n = 0;  // values of a row
  int64_t n_rows = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;

  size_t row() const { return row_bytes(type, n); }
  int64_t rows_of_chunk() const { return std::max<int64_t>(1, static_cast<int64_t>(kChunkBytes / row())); }
  int64_t n_chunks() const { return (n_rows + rows_of_chunk() - 1) / rows_of_chunk(); }
};

int n_threads_of(const QuantizeOptions& options) {
  LoadOptions load;
  load.n_threads = options.n_threads;
  return cpu_threads(load);
}

class Quantizer {
 public:
  explicit Quantizer(const QuantizeOptions& options) : options_(options) {}

  QuantizeResult run() {
    check_cancelled();
    quantization_ = &need_file_quantization(options_.type, "type");
    check_output();
    in_file(options_.path, [&] { open(); });
    part_.emplace(options_.output);
    const std::vector<bool> written = resume();
    progress(0);
    for (size_t i = 0; i < outputs_.size(); ++i) {
      if (!written[i]) write_tensor(i);
    }
    source_->weights()->check();
    check_cancelled();
    progress(1);
    QuantizeResult done = result();
    check_output();
    part_->resize(layout_->file_bytes);
    part_->commit();
    return done;
  }

 private:
  void check_cancelled() const {
    if (options_.cancel != nullptr && options_.cancel->load())
      throw Error(ErrorCode::kDisposed, "CANCELLED", "quantising was cancelled");
  }

  void check_output() const {
    if (options_.overwrite || !file_exists(options_.output)) return;
    throw Error(ErrorCode::kFile, "FILE_EXISTS",
                shown_path(options_.output) + ": there is a file of this name; overwrite: true replaces it");
  }

  // Reads the headers of the source and plans the file.
  void open() {
    source_ = GgufFile::open(options_.path, {});
    const std::string architecture = source_->find_string("general.architecture").value_or("");
    if (architecture != "gemma3" && architecture != "gemma-embedding" && architecture != "clip") {
      throw Error(ErrorCode::kUnsupportedModel, "ARCHITECTURE",
                  "architecture \"" + shown_path(architecture) +
                      "\": expected gemma3, gemma-embedding, or clip for a vision encoder");
    }
    if (!options_.importance_path.empty()) importance_ = read_importance(options_.importance_path);

    std::vector<TensorToPlan> tensors;
    for (const Tensor& t : source_->tensors()) tensors.push_back({t.name, t.type, t.shape});
    const QuantizedModel model{.heads_per_kv_head = heads_per_kv_head(architecture),
                               .has_importance = importance_.has_value()};
    const std::vector<PlannedType> plan = plan_types(tensors, model, *quantization_, options_.overrides);

    GgufMetadata metadata;
    for (const auto& [key, value] : source_->metadata()) metadata.set(key, value);
    for (const char* key : {"split.no", "split.count", "split.tensors.count"}) metadata.remove(key);
    metadata.set_u32("general.quantization_version", 2);
    metadata.set_u32("general.file_type", quantization_->file_type);
    const uint64_t alignment = static_cast<uint64_t>(source_->find_int("general.alignment").value_or(32));

    std::vector<GgufTensorShape> shapes;
    for (size_t i = 0; i < plan.size(); ++i) {
      const Tensor& tensor = source_->tensors()[i];
      check_tensor(tensor, plan[i].type);
      shapes.push_back({tensor.name, plan[i].type, tensor.shape});
      if (plan[i].type != plan[i].wanted) {
        fallbacks_.push_back({tensor.name, type_traits(plan[i].wanted).name, type_traits(plan[i].type).name});
      }
    }
    layout_.emplace(metadata, shapes, alignment);
    for (size_t i = 0; i < plan.size(); ++i) {
      const Tensor& tensor = source_->tensors()[i];
      const uint64_t bytes = shapes[i].bytes();
      const int64_t n = tensor.shape.back();
      outputs_.push_back({.source = &tensor,
                          .type = plan[i].type,
                          .importance = importance_of(tensor, plan[i].type),
                          .n = n,
                          .n_rows = static_cast<int64_t>(bytes / row_bytes(plan[i].type, n)),
                          .offset = layout_->offsets[i],
                          .bytes = bytes});
      total_bytes_ += bytes;
    }
  }

  int heads_per_kv_head(const std::string& architecture) const {
    const auto count = [&](const char* name) -> int64_t {
      const GgufValue* value = source_->find(architecture + ".attention." + name);
      if (value == nullptr || value->is_array) return 0;
      return source_->find_int(architecture + ".attention." + name).value_or(0);
    };
    const int64_t n_heads = count("head_count");
    const int64_t n_kv_heads = count("head_count_kv");
    return n_kv_heads > 0 && n_heads > 0 && n_heads < 65536 ? static_cast<int>(n_heads / n_kv_heads) : 1;
  }

  void check_tensor(const Tensor& tensor, TensorType type) const {
    if (tensor.type == type) return;
    if (!is_computed_type(tensor.type)) {
      throw Error(ErrorCode::kUnsupportedModel, "TENSOR_TYPE",
                  "tensor " + tensor.name + ": nothing reads values of the type " + type_traits(tensor.type).name);
    }
    if (is_float_type(tensor.type) || options_.allow_requantize) return;
    throw Error(ErrorCode::kUnsupportedInput, "REQUANTIZE",
                "tensor " + tensor.name + " is " + type_traits(tensor.type).name +
                    " already, and would lose once more as " + type_traits(type).name +
                    ": take a file of floats, or say allowRequantize: true");
  }

  const float* importance_of(const Tensor& tensor, TensorType type) const {
    if (!importance_ || is_float_type(type) || tensor.type == type) return nullptr;
    const auto found = importance_->columns.find(tensor.name);
    if (found == importance_->columns.end()) return nullptr;
    if (static_cast<int64_t>(found->second.size()) != tensor.shape.back()) {
      throw Error(ErrorCode::kInvalidArgument, "IMPORTANCE_SHAPE",
                  "importance: tensor " + tensor.name + " has " + std::to_string(tensor.shape.back()) +
                      " columns, the importance matrix has " + std::to_string(found->second.size()) +
                      ": it is of another model");
    }
    return found->second.data();
  }

  // All that the bytes of the file follow from.
  uint64_t plan_hash() const {
    uint64_t hash = hash_value(0, kArithmetic);
    hash = hash_text(hash, layout_->headers);
    for (const FileMap& map : source_->weights()->maps) hash = hash_value(hash, map.version());
    for (const Output& output : outputs_) {
      const bool weighted = output.importance != nullptr;
      hash = hash_value(hash, weighted);
      if (weighted) hash = hash_bytes(hash, std::as_bytes(std::span(output.importance, static_cast<size_t>(output.n))));
    }
    return hash;
  }

  // Which tensors are written already. What does not belong to this plan is thrown away.
  std::vector<bool> resume() {
    std::vector<bool> written(outputs_.size(), false);
    JournalHeader header;
    header.plan = plan_hash();
    plan_ = header.plan;
    JournalHeader found;
    journal_end_ = layout_->file_bytes + sizeof header;
    if (part_->read(layout_->file_bytes, std::as_writable_bytes(std::span(&found, 1))) &&
        std::memcmp(&found, &header, sizeof header) == 0) {
      JournalEntry entry;
      while (part_->read(journal_end_, std::as_writable_bytes(std::span(&entry, 1))) && entry.is_sealed(plan_) &&
             entry.tensor < outputs_.size()) {
        const Output& output = outputs_[entry.tensor];
        if (!written[entry.tensor] && hash_written(output) == entry.hash) {
          written[entry.tensor] = true;
          ++n_resumed_;
          done_bytes_ += output.bytes;
        }
        journal_end_ += sizeof entry;
        check_cancelled();
      }
      part_->resize(journal_end_);
    } else {
      part_->resize(0);
      part_->write(layout_->file_bytes, std::as_bytes(std::span(&header, 1)));
    }
    part_->write(0, std::as_bytes(std::span(layout_->headers)));
    return written;
  }

  uint64_t hash_written(const Output& output) const {
    std::vector<std::byte> bytes;
    uint64_t hash = 0;
    const uint64_t n_chunk = static_cast<uint64_t>(output.rows_of_chunk()) * output.row();
    for (uint64_t at = 0; at < output.bytes; at += n_chunk) {
      bytes.resize(std::min(n_chunk, output.bytes - at));
      if (!part_->read(output.offset + at, bytes)) return ~hash;
      hash = hash_value(hash, hash_bytes(0, bytes));
    }
    return hash;
  }

  void write_tensor(size_t index) {
    const Output& output = outputs_[index];
    const int64_t n_chunks = output.n_chunks();
    std::vector<uint64_t> hashes(static_cast<size_t>(n_chunks));
    for (int64_t first = 0; first < n_chunks; first += kChunksOfSlab) {
      const int n = static_cast<int>(std::min<int64_t>(kChunksOfSlab, n_chunks - first));
      pool_.parallel_for(n, [&](int i, int thread) {
        hashes[static_cast<size_t>(first + i)] = write_chunk(output, first + i, buffers_[static_cast<size_t>(thread)]);
      });
      const int64_t row = first * output.rows_of_chunk();
      const int64_t n_rows = std::min(n * output.rows_of_chunk(), output.n_rows - row);
      release(output, row, n_rows);
      done_bytes_ += static_cast<uint64_t>(n_rows) * output.row();
      progress(static_cast<double>(done_bytes_) / static_cast<double>(total_bytes_));
    }
    source_->weights()->check();  // what was read of a file that was cut would be zeros
    JournalEntry entry;
    entry.tensor = index;
    for (const uint64_t hash : hashes) entry.hash = hash_value(entry.hash, hash);
    entry.seal(plan_);
    part_->write(journal_end_, std::as_bytes(std::span(&entry, 1)));
    journal_end_ += sizeof entry;
  }

  struct Buffers {
    std::vector<float> row;
    std::vector<std::byte> out;
  };

  uint64_t write_chunk(const Output& output, int64_t chunk, Buffers& buffers) {
    check_cancelled();
    const int64_t first = chunk * output.rows_of_chunk();
    const int64_t n_rows = std::min(output.rows_of_chunk(), output.n_rows - first);
    const size_t row = output.row();
    buffers.out.resize(static_cast<size_t>(n_rows) * row);
    in_file(options_.path, [&] {
      quantize_rows(*output.source, first, n_rows, output.type, output.importance, buffers.row, buffers.out.data());
    });
    part_->write(output.offset + static_cast<uint64_t>(first) * row, buffers.out);
    return hash_bytes(0, buffers.out);
  }

  void release(const Output& output, int64_t first_row, int64_t n_rows) const {
    const size_t row = row_bytes(output.source->type, output.n);
    const std::span<const std::byte> bytes(output.source->data + static_cast<size_t>(first_row) * row,
                                           static_cast<size_t>(n_rows) * row);
    source_->weights()->release(bytes);
  }

  void progress(double fraction) const {
    if (options_.on_progress) options_.on_progress(fraction);
  }

  QuantizeResult result() {
    QuantizeResult result;
    result.bytes = layout_->file_bytes;
    result.source_bytes = source_->file_bytes();
    result.n_resumed = n_resumed_;
    result.fallbacks = std::move(fallbacks_);
    TypeCounts types;
    for (const Output& output : outputs_) types.add(output.type, output.bytes);
    result.types = types.most_bytes_first();
    return result;
  }

  const QuantizeOptions& options_;
  const FileQuantization* quantization_ = nullptr;
  std::shared_ptr<const GgufFile> source_;
  std::optional<Importance> importance_;
  std::optional<GgufLayout> layout_;
  std::vector<Output> outputs_;  // in the order of the source
  std::vector<QuantizeResult::Fallback> fallbacks_;
  std::optional<PartFile> part_;
  ThreadPool pool_{n_threads_of(options_)};
  std::vector<Buffers> buffers_{static_cast<size_t>(pool_.n_threads())};
  uint64_t plan_ = 0;
  uint64_t journal_end_ = 0;
  uint64_t total_bytes_ = 0;
  uint64_t done_bytes_ = 0;
  uint64_t n_resumed_ = 0;
};

}  // namespace

QuantizeResult quantize_file(const QuantizeOptions& options) {
  return Quantizer(options).run();
}

}  // namespace gemma
