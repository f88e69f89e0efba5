// Where a draft model comes from.
#pragma once

#include <memory>
#include <string>

#include "base/error.h"
#include "model/config.h"
#include "model/tensor_source.h"
#include "reader/model_file.h"

namespace gemma {

// A smaller model to guess with.
struct DraftSource {
  std::string path;
  ModelFile file;
  std::shared_ptr<const TensorSource> tensors;
  ModelConfig config;
};
// Throws Error as ModelFile::open and ModelFile::config do.
DraftSource open_draft(const std::string& path, const FileOptions& open_options);
// The same error, whose message names the file, with a message that says what the file is.
[[noreturn]] void throw_of_draft(const Error& error);

}  // namespace gemma
