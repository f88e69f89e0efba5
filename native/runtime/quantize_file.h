// A model file in other types: GGUF in, GGUF out. Tensor for tensor and a few rows at a time, so that memory does not grow
// with the model. What was written before an interruption is kept in "OUTPUT.part", and the next run goes on from there.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "quant/type_counts.h"
#include "runtime/quantize_types.h"

namespace gemma {

struct QuantizeOptions {
  std::string path;
  std::string output;
  std::string type;  // a FileQuantization's name
  std::vector<TypeOverride> overrides;
  std::string importance_path;                // "": none
  bool allow_requantize = false;              // tensors that are quantised already lose once more
  bool overwrite = false;                     // a file that is there
  int n_threads = 0;                          // 0: physical cores this process may use
  std::function<void(double)> on_progress;    // fraction in 0..1, on the caller's thread
  const std::atomic<bool>* cancel = nullptr;  // looked at every few rows
};

struct QuantizeResult {
  uint64_t bytes = 0;
  uint64_t source_bytes = 0;
  uint64_t n_resumed = 0;        // tensors that an earlier run had written
  std::vector<TypeCount> types;  // most bytes first
  struct Fallback {
    std::string tensor;
    std::string wanted;
    std::string type;
  };
  std::vector<Fallback> fallbacks;  // rows that do not fit the blocks of a type
};

// Blocking. Throws Error: as GgufFile::open and read_importance do; kUnsupportedModel for another architecture;
// kUnsupportedInput, REQUANTIZE for a quantised tensor that would change; kInvalidArgument with UNKNOWN_TYPE,
// NO_SUCH_TENSOR, IMPORTANCE_SHAPE; kFile with FILE_EXISTS, IN_USE, DISK_FULL, FILE_CHANGED; kNonFinite for a value that
// is not finite in its type; kDisposed, CANCELLED.
QuantizeResult quantize_file(const QuantizeOptions& options);

}  // namespace gemma
