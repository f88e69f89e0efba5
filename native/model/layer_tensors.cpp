#include "model/layer_tensors.h"

namespace gemma {

std::vector<LayerTensor> layer_tensors(const ModelConfig& config, int layer) {
  const LayerConfig& c = config.layers[static_cast<size_t>(layer)];
  const int64_t dim = config.model_dim;
  const std::string block = "blk." + std::to_string(layer) + ".";
  std::vector<LayerTensor> all;
  const auto vector = [&](const char* field, int64_t n, const float* LayerWeights::* at) {
    all.push_back({{block + field + ".weight", {n}}, at, nullptr});
  };
  const auto matrix = [&](const char* field, int64_t n_out, int64_t n_in, Weight LayerWeights::* at) {
    all.push_back({{block + field + ".weight", {n_out, n_in}}, nullptr, at});
  };
  vector("attn_norm", dim, &LayerWeights::attn_norm);
  matrix("attn_q", c.q_dim(), dim, &LayerWeights::attn_q);
  matrix("attn_k", c.kv_dim(), dim, &LayerWeights::attn_k);
  matrix("attn_v", c.kv_dim(), dim, &LayerWeights::attn_v);
  vector("attn_q_norm", c.head_dim, &LayerWeights::attn_q_norm);
  vector("attn_k_norm", c.head_dim, &LayerWeights::attn_k_norm);
  matrix("attn_output", dim, c.q_dim(), &LayerWeights::attn_output);
  vector("post_attention_norm", dim, &LayerWeights::post_attention_norm);
  vector("ffn_norm", dim, &LayerWeights::ffn_norm);
  matrix("ffn_gate", c.ffn_dim, dim, &LayerWeights::ffn_gate);
  matrix("ffn_up", c.ffn_dim, dim, &LayerWeights::ffn_up);
  matrix("ffn_down", dim, c.ffn_dim, &LayerWeights::ffn_down);
  vector("post_ffw_norm", dim, &LayerWeights::post_ffw_norm);
  return all;
}

// The numbers are those of sentence-transformers' folders, in which the first dense layer is the third module.
static std::string dense_name(size_t i) {
  return "dense_" + std::to_string(i + 2);
}

std::string dense_weight(size_t i) {
  return dense_name(i) + ".weight";
}

std::string dense_bias(size_t i) {
  return dense_name(i) + ".bias";
}

std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config) {
  std::vector<ExpectedTensor> all = {{kTokenEmbd, {config.n_vocab, config.model_dim}},
                                     {kOutputNorm, {config.model_dim}}};
  if (config.has_output) all.push_back({kOutput, {config.n_vocab, config.model_dim}});
  for (size_t i = 0; i < config.dense.size(); ++i) {
    all.push_back({dense_weight(i), {config.dense[i].out_dim, config.dense_in_dim(i)}});
    if (config.dense[i].has_bias) all.push_back({dense_bias(i), {config.dense[i].out_dim}});
  }
  for (int i = 0; i < config.n_layers(); ++i) {
    for (LayerTensor& tensor : layer_tensors(config, i)) all.push_back(std::move(tensor));
  }
  return all;
}

bool has_quantized_weights(const TensorSource& tensors, const ModelConfig& config) {
  for (const ExpectedTensor& expected : expected_tensors(config)) {
    const bool is_only_looked_up = expected.name == kTokenEmbd && (config.has_output || config.is_encoder);
    if (expected.is_vector() || is_only_looked_up) continue;
    const Tensor* tensor = tensors.find(expected.name);
    if (tensor != nullptr && !is_float_type(tensor->type)) return true;
  }
  return false;
}

}  // namespace gemma
