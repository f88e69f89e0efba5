// Writes GGUF files, tensor for tensor and a few rows at a time, so that memory does not grow with the model. What was
// written before an interruption is kept in "PATH.part", and the next run of the same plan goes on from there.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/thread_pool.h"
#include "gguf/gguf_writer.h"
#include "quant/tensor.h"
#include "quant/type_counts.h"

namespace gemma {

// What becomes of the values of a tensor's rows between reading and storing them.
class RowChange {
 public:
  virtual ~RowChange() = default;
  // Of all that the new values follow from beside the old ones.
  virtual uint64_t hash() const = 0;
  // Before the first row: takes what all rows need, for as long as the tensor is written.
  virtual void begin(ThreadPool& pool, const std::function<void()>& check_cancelled) = 0;
  // Any thread; scratch is its own.
  virtual void apply(int64_t row, std::span<float> values, std::vector<double>& scratch) const = 0;
  // Rows that are done and will not be asked for again.
  virtual void release(int64_t first_row, int64_t n_rows) const = 0;
  virtual void end() = 0;
};

struct TensorToWrite {
  std::string name;
  const Tensor* source = nullptr;  // of what is read
  TensorType type = TensorType::kF32;
  const float* importance = nullptr;  // [columns], of errors; null: none
  std::shared_ptr<RowChange> change;  // null: values stay as they are
};

struct FileToWrite {
  std::string path;
  GgufMetadata metadata;
  uint64_t alignment = 32;
  std::vector<TensorToWrite> tensors;
};

// What the files are read from, beside the tensors themselves.
struct WriteSource {
  std::string name;                                         // in messages
  uint64_t version = 0;                                     // of all inputs
  std::function<void()> check;                              // throws when an input has changed
  std::function<void(std::span<const std::byte>)> release;  // of a source tensor, read and done with
};

struct WriteOptions {
  bool overwrite = false;                     // files that are there
  int n_threads = 0;                          // 0: physical cores this process may use
  std::function<void(double)> on_progress;    // fraction in 0..1, on the caller's thread
  const std::atomic<bool>* cancel = nullptr;  // looked at every few rows
};

struct WrittenFile {
  uint64_t bytes = 0;
  std::vector<TypeCount> types;  // most bytes first
};
struct WrittenFiles {
  std::vector<WrittenFile> files;
  uint64_t n_resumed = 0;  // tensors that an earlier run had written
};

// Throws Error{kFile, FILE_EXISTS}.
void check_output(const std::string& path, bool overwrite);

// Writes all of them; they take their names together, when every one is whole. Blocking. Throws Error: kFile with
// FILE_EXISTS, IN_USE, DISK_FULL, FILE_CHANGED; kNonFinite for a value that is not finite in its type; kDisposed,
// CANCELLED; what changes throw.
WrittenFiles write_files(const std::vector<FileToWrite>& files, const WriteSource& source, const WriteOptions& options);

}  // namespace gemma
