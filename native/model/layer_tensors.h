// The tensors of a model: one table by which they are read, checked, placed and counted. Names are those of GGUF.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/tensor_source.h"
#include "model/weights.h"

namespace gemma {

// A tensor of a layer, and where it goes: a vector or a matrix.
struct LayerTensor : ExpectedTensor {
  const float* LayerWeights::* vector = nullptr;
  Weight LayerWeights::* matrix = nullptr;
};
// "blk.3.attn_norm.weight", "blk.3.attn_q.weight", ...
std::vector<LayerTensor> layer_tensors(const ModelConfig& config, int layer);

// Tensors outside of the layers.
inline constexpr const char* kTokenEmbd = "token_embd.weight";
inline constexpr const char* kOutputNorm = "output_norm.weight";
inline constexpr const char* kOutput = "output.weight";
// Of the i-th of ModelConfig::dense: "dense_2.weight" and "dense_2.bias" of the first.
std::string dense_weight(size_t i);
std::string dense_bias(size_t i);

// Every tensor of the model.
std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config);

// Whether a matrix that is multiplied with is stored quantised.
bool has_quantized_weights(const TensorSource& tensors, const ModelConfig& config);

}  // namespace gemma
