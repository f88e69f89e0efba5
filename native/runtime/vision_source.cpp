#include "runtime/vision_source.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace gemma {

std::optional<VisionSource> open_vision(const LoadOptions& options, const ModelFile& model_file,
                                        const ModelConfig& config, const FileOptions& open_options) {
  if (!options.vision) return std::nullopt;
  if (config.is_encoder) {
    if (options.mmproj_path.empty()) return std::nullopt;
    throw Error(ErrorCode::kUnsupportedInput, "EMBEDDING_MODEL",
                "mmproj: an embedding model of texts sees no pictures");
  }
  if (options.mmproj_path.empty()) {
    if (!model_file.has_vision()) return std::nullopt;
    const VisionConfig vision = model_file.vision_config(config.model_dim);
    return VisionSource{model_file.vision_tensors(vision), vision};
  }
  try {
    const ModelFile file = ModelFile::open(options.mmproj_path, open_options);
    const VisionConfig vision = file.vision_config(config.model_dim);
    return VisionSource{file.vision_tensors(vision), vision};
  } catch (const Error& error) {
    throw error.with_message(std::string("mmproj ") + error.what());
  }
}

int rows_per_step(int n_batch, const std::optional<VisionConfig>& vision) {
  return vision ? std::max(n_batch, vision->n_tokens + kMaxRunning) : n_batch;
}

}  // namespace gemma
