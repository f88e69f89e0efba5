// The tensors of a vision encoder: one table by which they are read, checked and counted. Names are those of today's
// mmproj files; ffn_up is fc1 and ffn_down is fc2.
#pragma once

#include <string_view>
#include <vector>

#include "model/tensor_source.h"
#include "model/vision_config.h"
#include "model/vision_weights.h"

namespace gemma {

// A tensor of a layer, and where it goes: a vector or a matrix.
struct VisionLayerTensor : ExpectedTensor {
  const float* VisionLayer::* vector = nullptr;
  Weight VisionLayer::* matrix = nullptr;
};
// "v.blk.3.ln1.weight", "v.blk.3.attn_q.weight", ...
std::vector<VisionLayerTensor> vision_layer_tensors(const VisionConfig& config, int layer);

// A tensor of the vision half of a file that holds both.
inline bool is_vision_tensor(std::string_view name) {
  return name.starts_with("v.") || name.starts_with("mm.");
}

// Every tensor of the encoder.
std::vector<ExpectedTensor> expected_tensors(const VisionConfig& config);

}  // namespace gemma
