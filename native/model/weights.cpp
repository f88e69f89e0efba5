#include "model/weights.h"

#include <cmath>
#include <string>

#include "base/error.h"
#include "model/small_vectors.h"

namespace gemma {
namespace {

const GgufTensor& require_tensor(const GgufFile& file, const std::string& name) {
  const GgufTensor* tensor = file.find_tensor(name);
  if (tensor == nullptr) throw Error(ErrorCode::kGgufInvalid, "BAD_TENSOR", "tensor " + name + ": missing");
  return *tensor;
}

// In float32, as Hugging Face computes them (Gemma3RotaryEmbedding): base^(-2j / head_dim), then divided by the factor.
std::vector<float> inverse_frequencies(float base, float factor, int head_dim) {
  std::vector<float> out;
  for (int j = 0; j < head_dim; j += 2) {
    out.push_back(1.0f / std::pow(base, static_cast<float>(j) / static_cast<float>(head_dim)) / factor);
  }
  return out;
}

// The layers of a stage; load hands a tensor to a backend.
void load_stage(Weights& w, SmallVectors& small, const Stage& stage, const GgufFile& file, const auto& load) {
  const auto matrix = [&](const std::string& name) { return load(*stage.backend, name); };
  for (int i = stage.first_layer; i < stage.end_layer; ++i) {
    LayerWeights& layer = w.layers[static_cast<size_t>(i)];
    const auto name = [&](const char* field) { return "blk." + std::to_string(i) + "." + field + ".weight"; };
    const auto norm = [&](const float** address, const char* field) {
      small.add(address, require_tensor(file, name(field)));
    };
    norm(&layer.attn_norm, "attn_norm");
    layer.attn_q = matrix(name("attn_q"));
    layer.attn_k = matrix(name("attn_k"));
    layer.attn_v = matrix(name("attn_v"));
    norm(&layer.attn_q_norm, "attn_q_norm");
    norm(&layer.attn_k_norm, "attn_k_norm");
    layer.attn_output = matrix(name("attn_output"));
    norm(&layer.post_attention_norm, "post_attention_norm");
    norm(&layer.ffn_norm, "ffn_norm");
    layer.ffn_gate = matrix(name("ffn_gate"));
    layer.ffn_up = matrix(name("ffn_up"));
    layer.ffn_down = matrix(name("ffn_down"));
    norm(&layer.post_ffw_norm, "post_ffw_norm");
  }
}

}  // namespace

Weights load_weights(std::span<const Stage> stages, std::shared_ptr<const GgufFile> file, const ModelConfig& config) {
  Weights w;
  const auto load = [&](Backend& backend, const std::string& name) {
    const GgufTensor& t = require_tensor(*file, name);
    return backend.load_weight(t.type, static_cast<int>(t.shape[0]), static_cast<int>(t.shape[1]), t.data);
  };
  Backend& first = *stages.front().backend;
  Backend& last = *stages.back().backend;
  w.token_embd = load(first, "token_embd.weight");
  if (file->find_tensor("output.weight") != nullptr) {
    w.output = load(last, "output.weight");
  } else {
    w.output = &first == &last ? w.token_embd : load(last, "token_embd.weight");
  }
  w.output.n_out = config.n_vocab;

  w.layers.resize(static_cast<size_t>(config.n_layers));
  w.inv_freq.resize(stages.size());
  for (size_t s = 0; s < stages.size(); ++s) {
    SmallVectors small;
    load_stage(w, small, stages[s], *file, load);
    Weights::Frequencies& inv_freq = w.inv_freq[s];
    small.add(&inv_freq.local, inverse_frequencies(config.rope_base_local, 1.0f, config.head_dim));
    small.add(&inv_freq.global,
              inverse_frequencies(config.rope_base_global, config.rope_factor_global, config.head_dim));
    if (s + 1 == stages.size()) small.add(&w.output_norm, require_tensor(*file, "output_norm.weight"));
    w.small.push_back(small.upload(*stages[s].backend));
  }
  w.file = std::move(file);
  return w;
}

}  // namespace gemma
