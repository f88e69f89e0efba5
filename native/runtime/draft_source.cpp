#include "runtime/draft_source.h"

#include <utility>

namespace gemma {

DraftSource open_draft(const std::string& path, const FileOptions& open_options) {
  try {
    const ModelFile file = ModelFile::open(path, open_options);
    ModelConfig config = file.config();
    if (config.is_encoder) {
      throw Error(ErrorCode::kUnsupportedModel, "EMBEDDING_MODEL", path + ": an embedding model guesses no tokens");
    }
    return {path, file, file.decoder_tensors(), std::move(config)};
  } catch (const Error& error) {
    throw_of_draft(error);
  }
}

void throw_of_draft(const Error& error) {
  throw error.with_message(std::string("draft model ") + error.what());
}

}  // namespace gemma
