// Which layers of a model go where, when they do not all go to one place: the last layers, which come with the output
// matrix, to GPUs as far as their memory reaches, the first ones to the CPU, where the embedding costs nothing.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/stage.h"
#include "model/tensor_source.h"

namespace gemma {

struct LayerRange {
  int gpu = -1;  // index into the GPUs' memory; -1: the CPU
  int first_layer = 0;
  int end_layer = 0;
};

// Bytes on the device of a layer (weights, and its keys and values of one sequence), of the embedding, of the output
// matrix with the logits, and of a stage whatever its layers (activations, working memory).
struct LayerCosts {
  std::vector<uint64_t> layers;
  uint64_t embedding = 0;
  uint64_t output = 0;
  bool is_tied = false;  // the embedding is the output matrix
  uint64_t scratch = 0;
};
// traits: of the device's backend.
LayerCosts layer_costs(const TensorSource& tensors, const ModelConfig& config, const ModelLimits& limits,
                       const BackendTraits& traits);

inline constexpr int kAutoLayers = -1;

// Ranges that cover all layers in order. free_bytes: of each GPU. n_gpu_layers: so many layers on GPUs, in proportion
// to their memory and whether they fit or not; kAutoLayers: on as few GPUs as hold all, else as many layers as fit.
// other_bytes: what else the last GPU has to hold (vision encoder, draft model).
std::vector<LayerRange> place_layers(const LayerCosts& costs, std::span<const uint64_t> free_bytes, int n_gpu_layers,
                                     uint64_t other_bytes);

}  // namespace gemma
