// A model in other types: a GGUF file or a checkpoint's folder in, GGUF out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "quant/type_counts.h"
#include "runtime/model_input.h"
#include "runtime/model_writer.h"
#include "runtime/quantize_types.h"

namespace gemma {

struct QuantizeOptions : WriteOptions {
  std::string path;
  std::string output;
  std::string type;  // a FileQuantization's name
  // The vision encoder of a folder goes here, as a file of this type; "": it is left out.
  std::string mmproj_output;
  std::string mmproj_type = "f16";
  bool needs_mmproj = false;            // a model without one is an error
  std::string chat_template;            // of a folder; "": none
  std::vector<TypeOverride> overrides;  // not of mmproj_output
  std::string importance_path;          // "": none
  bool allow_requantize = false;        // tensors that are quantised already lose once more
};

struct QuantizeResult {
  uint64_t bytes = 0;
  uint64_t source_bytes = 0;
  uint64_t n_resumed = 0;        // tensors that an earlier run had written
  std::vector<TypeCount> types;  // most bytes first
  std::vector<TypeFallback> fallbacks;
  // Of the vision encoder's file.
  struct Mmproj {
    std::string path;
    uint64_t bytes = 0;
    std::vector<TypeCount> types;
  };
  std::optional<Mmproj> mmproj;

  // Of what was written: the model, and its vision encoder where that is a file of its own.
  void take(WrittenFiles written, const std::vector<FileToWrite>& files);
};

// Throws Error{kInvalidArgument, NO_MMPROJ} where a vision encoder's file is needed, and there is none to write.
void no_mmproj(const QuantizeOptions& options);

// Blocking. Throws Error: as ModelInput::open, plan_file(), read_importance() and write_files() do.
QuantizeResult quantize_file(const QuantizeOptions& options);

}  // namespace gemma
