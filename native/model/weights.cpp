#include "model/weights.h"

#include <cmath>
#include <string>

#include "model/layer_tensors.h"
#include "model/small_vectors.h"
#include "quant/dequantize.h"

namespace gemma {
namespace {

const Tensor& require_tensor(const TensorSource& tensors, const std::string& name) {
  const Tensor* tensor = tensors.find(name);
  if (tensor == nullptr) bad_tensor(name, "missing");
  return *tensor;
}

// The layers of a stage; load hands a tensor to a backend.
void load_stage(Weights& w, SmallVectors& small, const Stage& stage, const TensorSource& tensors,
                const ModelConfig& config, const auto& load) {
  for (int i = stage.first_layer; i < stage.end_layer; ++i) {
    LayerWeights& layer = w.layers[static_cast<size_t>(i)];
    for (const LayerTensor& tensor : layer_tensors(config, i)) {
      if (tensor.matrix != nullptr) {
        layer.*tensor.matrix = load(*stage.backend, tensor.name);
      } else {
        small.add(&(layer.*tensor.vector), require_tensor(tensors, tensor.name));
      }
    }
  }
}

}  // namespace

std::vector<float> inverse_frequencies(const LayerConfig& layer) {
  std::vector<float> out;
  const float head_dim = static_cast<float>(layer.head_dim);
  for (int j = 0; j < layer.head_dim; j += 2) {
    out.push_back(1.0f / std::pow(layer.rope_base, static_cast<float>(j) / head_dim) / layer.rope_factor);
  }
  return out;
}

Weights load_weights(std::span<const Stage> stages, std::shared_ptr<const TensorSource> tensors,
                     const ModelConfig& config) {
  Weights w;
  const auto load = [&](Backend& backend, const std::string& name) {
    const Tensor& t = require_tensor(*tensors, name);
    return backend.load_weight(t.type, static_cast<int>(t.shape[0]), static_cast<int>(t.shape[1]), t.data);
  };
  Backend& first = *stages.front().backend;
  Backend& last = *stages.back().backend;
  w.token_embd = load(first, kTokenEmbd);
  if (config.has_output) {
    w.output = load(last, kOutput);
  } else if (!config.is_encoder) {
    w.output = &first == &last ? w.token_embd : load(last, kTokenEmbd);
  }
  w.output.n_out = config.n_vocab;
  for (size_t i = 0; i < config.dense.size(); ++i) {
    DenseWeights& dense = w.dense.emplace_back();
    dense.matrix = load(last, dense_weight(i));
    if (!config.dense[i].has_bias) continue;
    const Tensor& bias = require_tensor(*tensors, dense_bias(i));
    dense.bias.resize(static_cast<size_t>(bias.shape[0]));
    dequantize_row(bias.type, bias.data, dense.bias.data(), bias.shape[0]);
  }

  w.layers.resize(config.layers.size());
  const LayerGroups rotations = rope_groups(config);
  w.inv_freq.assign(stages.size(), std::vector<const float*>(rotations.size()));
  for (size_t s = 0; s < stages.size(); ++s) {
    SmallVectors small;
    load_stage(w, small, stages[s], *tensors, config, load);
    for (size_t g = 0; g < rotations.size(); ++g)
      small.add(&w.inv_freq[s][g], inverse_frequencies(config.layers[rotations.first_layer[g]]));
    if (s + 1 == stages.size()) small.add(&w.output_norm, require_tensor(*tensors, kOutputNorm));
    w.small.push_back(small.upload(*stages[s].backend));
  }
  w.tensors = std::move(tensors);
  return w;
}

}  // namespace gemma
