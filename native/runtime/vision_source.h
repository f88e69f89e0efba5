// Where the vision encoder of a model comes from, and what it asks of a step.
#pragma once

#include <memory>
#include <optional>

#include "model/tensor_source.h"
#include "reader/model_file.h"
#include "runtime/load_options.h"

namespace gemma {

// So many requests go through the layers together.
inline constexpr int kMaxRunning = 64;

// The vision encoder that goes with a model: of the mmproj file, of the model's own file, or none.
struct VisionSource {
  std::shared_ptr<const TensorSource> tensors;
  VisionConfig config;
};
// open_options: how an mmproj file is opened. Throws Error as ModelFile::open and ModelFile::vision_config do.
std::optional<VisionSource> open_vision(const LoadOptions& options, const ModelFile& model_file,
                                        const ModelConfig& config, const FileOptions& open_options);
// Rows of a step of a model with this encoder, if it has one: at least an image beside all that may decode.
int rows_per_step(int n_batch, const std::optional<VisionConfig>& vision);

}  // namespace gemma
