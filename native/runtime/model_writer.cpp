#include "runtime/model_writer.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "quant/dequantize.h"
#include "quant/quantize.h"
#include "runtime/inspect.h"
#include "runtime/quantize_rows.h"

namespace gemma {
namespace {

// What a thread writes at once. A row may be longer: then it is one row.
constexpr uint64_t kChunkBytes = uint64_t{256} << 10;
// Chunks between two reports of progress.
constexpr int kChunksOfSlab = 64;

// Raised when the bytes of any type, or of any change, come out otherwise: a file that was begun with other arithmetic is
// begun anew.
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

int n_threads_of(const WriteOptions& options) {
  LoadOptions load;
  load.n_threads = options.n_threads;
  return cpu_threads(load);
}

// What all files of a run share.
struct Run {
  const WriteSource& source;
  const WriteOptions& options;
  ThreadPool pool{n_threads_of(options)};
  uint64_t total_bytes = 0;
  uint64_t done_bytes = 0;

  void check_cancelled() const {
    if (options.cancel != nullptr && options.cancel->load())
      throw Error(ErrorCode::kDisposed, "CANCELLED", "writing the model was cancelled");
  }
  void progress() const {
    if (!options.on_progress) return;
    options.on_progress(total_bytes == 0 ? 1 : static_cast<double>(done_bytes) / static_cast<double>(total_bytes));
  }
};

struct Output {
  const TensorToWrite* tensor = nullptr;
  int64_t n = 0;  // values of a row
  int64_t n_rows = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;

  size_t row() const { return row_bytes(tensor->type, n); }
  int64_t rows_of_chunk() const { return std::max<int64_t>(1, static_cast<int64_t>(kChunkBytes / row())); }
  int64_t n_chunks() const { return (n_rows + rows_of_chunk() - 1) / rows_of_chunk(); }
};

std::vector<GgufTensorShape> shapes_of(const FileToWrite& file) {
  std::vector<GgufTensorShape> shapes;
  for (const TensorToWrite& tensor : file.tensors) shapes.push_back({tensor.name, tensor.type, tensor.source->shape});
  return shapes;
}

class FileInWork {
 public:
  FileInWork(const FileToWrite& file, Run& run) : run_(run), layout_(file.metadata, shapes_of(file), file.alignment) {
    for (size_t i = 0; i < file.tensors.size(); ++i) {
      const TensorToWrite& tensor = file.tensors[i];
      const int64_t n = tensor.source->shape.back();
      uint64_t rows = 1;
      for (size_t d = 0; d + 1 < tensor.source->shape.size(); ++d)
        rows *= static_cast<uint64_t>(tensor.source->shape[d]);
      outputs_.push_back(
          {&tensor, n, static_cast<int64_t>(rows), layout_.offsets[i], rows * row_bytes(tensor.type, n)});
      run.total_bytes += outputs_.back().bytes;
    }
    part_.emplace(file.path);
  }

  // Which tensors are written already. What does not belong to this plan is thrown away.
  uint64_t resume() {
    written_.assign(outputs_.size(), false);
    JournalHeader header;
    header.plan = plan_hash();
    plan_ = header.plan;
    JournalHeader found;
    uint64_t n_resumed = 0;
    journal_end_ = layout_.file_bytes + sizeof header;
    if (part_->read(layout_.file_bytes, std::as_writable_bytes(std::span(&found, 1))) &&
        std::memcmp(&found, &header, sizeof header) == 0) {
      JournalEntry entry;
      while (part_->read(journal_end_, std::as_writable_bytes(std::span(&entry, 1))) && entry.is_sealed(plan_) &&
             entry.tensor < outputs_.size()) {
        const Output& output = outputs_[entry.tensor];
        if (!written_[entry.tensor] && hash_written(output) == entry.hash) {
          written_[entry.tensor] = true;
          ++n_resumed;
          run_.done_bytes += output.bytes;
        }
        journal_end_ += sizeof entry;
        run_.check_cancelled();
      }
      part_->resize(journal_end_);
    } else {
      part_->resize(0);
      part_->write(layout_.file_bytes, std::as_bytes(std::span(&header, 1)));
    }
    part_->write(0, std::as_bytes(std::span(layout_.headers)));
    return n_resumed;
  }

  void write() {
    buffers_.resize(static_cast<size_t>(run_.pool.n_threads()));
    for (size_t i = 0; i < outputs_.size(); ++i) {
      if (!written_[i]) write_tensor(i);
    }
    buffers_ = {};
  }

  WrittenFile result() const {
    TypeCounts types;
    for (const Output& output : outputs_) types.add(output.tensor->type, output.bytes);
    return {.bytes = layout_.file_bytes, .types = types.most_bytes_first()};
  }

  // What was needed to go on is taken away; all that may fail for want of space has been done then.
  void finish() {
    part_->resize(layout_.file_bytes);
    part_->sync();
  }
  void commit() { part_->commit(); }

 private:
  struct Buffers {
    std::vector<float> row;
    std::vector<double> scratch;
    std::vector<std::byte> out;
  };

  // All that the bytes of the file follow from.
  uint64_t plan_hash() const {
    uint64_t hash = hash_value(0, kArithmetic);
    hash = hash_text(hash, layout_.headers);
    hash = hash_value(hash, run_.source.version);
    for (const Output& output : outputs_) {
      const TensorToWrite& tensor = *output.tensor;
      const bool is_weighted = tensor.importance != nullptr;
      hash = hash_value(hash, is_weighted);
      if (is_weighted)
        hash = hash_bytes(hash, std::as_bytes(std::span(tensor.importance, static_cast<size_t>(output.n))));
      hash = hash_value(hash, tensor.change != nullptr ? tensor.change->hash() : uint64_t{0});
    }
    return hash;
  }

  uint64_t hash_written(const Output& output) const {
    std::vector<std::byte> bytes;
    uint64_t hash = 0;
    const uint64_t n_chunk = static_cast<uint64_t>(output.rows_of_chunk()) * output.row();
    for (uint64_t at = 0; at < output.bytes; at += n_chunk) {
      bytes.resize(std::min(n_chunk, output.bytes - at));
      if (!part_->read(output.offset + at, bytes)) return ~hash;
      hash = hash_value(hash, hash_bytes(0, bytes));
      run_.check_cancelled();
    }
    return hash;
  }

  void write_tensor(size_t index) {
    const Output& output = outputs_[index];
    RowChange* change = output.tensor->change.get();
    if (change != nullptr) change->begin(run_.pool, [this] { run_.check_cancelled(); });
    const int64_t n_chunks = output.n_chunks();
    std::vector<uint64_t> hashes(static_cast<size_t>(n_chunks));
    for (int64_t first = 0; first < n_chunks; first += kChunksOfSlab) {
      const int n = static_cast<int>(std::min<int64_t>(kChunksOfSlab, n_chunks - first));
      run_.pool.parallel_for(n, [&](int i, int thread) {
        hashes[static_cast<size_t>(first + i)] = write_chunk(output, first + i, buffers_[static_cast<size_t>(thread)]);
      });
      const int64_t row = first * output.rows_of_chunk();
      const int64_t n_rows = std::min(n * output.rows_of_chunk(), output.n_rows - row);
      release(output, row, n_rows);
      run_.done_bytes += static_cast<uint64_t>(n_rows) * output.row();
      run_.progress();
    }
    if (change != nullptr) change->end();
    run_.source.check();  // what was read of a file that was cut would be zeros
    JournalEntry entry;
    entry.tensor = index;
    for (const uint64_t hash : hashes) entry.hash = hash_value(entry.hash, hash);
    entry.seal(plan_);
    part_->write(journal_end_, std::as_bytes(std::span(&entry, 1)));
    journal_end_ += sizeof entry;
  }

  uint64_t write_chunk(const Output& output, int64_t chunk, Buffers& buffers) {
    run_.check_cancelled();
    const TensorToWrite& tensor = *output.tensor;
    const int64_t first = chunk * output.rows_of_chunk();
    const int64_t n_rows = std::min(output.rows_of_chunk(), output.n_rows - first);
    const size_t row = output.row();
    buffers.out.resize(static_cast<size_t>(n_rows) * row);
    in_file(run_.source.name, [&] {
      if (tensor.change == nullptr) {
        quantize_rows(*tensor.source, first, n_rows, tensor.type, tensor.importance, buffers.row, buffers.out.data());
      } else {
        change_rows(tensor, first, n_rows, buffers);
      }
    });
    part_->write(output.offset + static_cast<uint64_t>(first) * row, buffers.out);
    return hash_bytes(0, buffers.out);
  }

  static void change_rows(const TensorToWrite& tensor, int64_t first, int64_t n_rows, Buffers& buffers) {
    const Tensor& source = *tensor.source;
    const int64_t n = row_length(source);
    const size_t row = row_bytes(tensor.type, n);
    buffers.row.resize(static_cast<size_t>(n));
    for (int64_t i = 0; i < n_rows; ++i) {
      dequantize_row(source.type, source.data + static_cast<size_t>(first + i) * row_bytes(source.type, n),
                     buffers.row.data(), n);
      tensor.change->apply(first + i, buffers.row, buffers.scratch);
      if (quantize_row(tensor.type, buffers.row.data(), buffers.out.data() + static_cast<size_t>(i) * row, n,
                       tensor.importance)) {
        continue;
      }
      throw Error(ErrorCode::kNonFinite, "",
                  "tensor " + tensor.name + ", row " + std::to_string(first + i) + ": a value is not finite as " +
                      type_traits(tensor.type).name);
    }
  }

  void release(const Output& output, int64_t first_row, int64_t n_rows) const {
    const Tensor& source = *output.tensor->source;
    const size_t row = row_bytes(source.type, output.n);
    run_.source.release({source.data + static_cast<size_t>(first_row) * row, static_cast<size_t>(n_rows) * row});
    if (output.tensor->change != nullptr) output.tensor->change->release(first_row, n_rows);
  }

  Run& run_;
  GgufLayout layout_;
  std::vector<Output> outputs_;
  std::optional<PartFile> part_;
  std::vector<bool> written_;
  std::vector<Buffers> buffers_;  // of each thread
  uint64_t plan_ = 0;
  uint64_t journal_end_ = 0;
};

}  // namespace

void check_output(const std::string& path, bool overwrite) {
  if (overwrite || !file_exists(path)) return;
  throw Error(ErrorCode::kFile, "FILE_EXISTS",
              shown_path(path) + ": there is a file of this name; overwrite: true replaces it");
}

WrittenFiles write_files(const std::vector<FileToWrite>& files, const WriteSource& source,
                         const WriteOptions& options) {
  Run run{source, options};
  run.check_cancelled();
  const auto check_outputs = [&] {
    for (const FileToWrite& file : files) check_output(file.path, options.overwrite);
  };
  check_outputs();
  std::vector<std::unique_ptr<FileInWork>> all;
  for (const FileToWrite& file : files) all.push_back(std::make_unique<FileInWork>(file, run));
  WrittenFiles result;
  for (const auto& file : all) result.n_resumed += file->resume();
  run.progress();
  for (const auto& file : all) file->write();
  source.check();
  run.check_cancelled();
  run.done_bytes = run.total_bytes;
  run.progress();
  for (const auto& file : all) result.files.push_back(file->result());
  check_outputs();
  for (const auto& file : all) file->finish();
  for (const auto& file : all) file->commit();
  return result;
}

}  // namespace gemma
