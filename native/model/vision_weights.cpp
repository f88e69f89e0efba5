#include "model/vision_weights.h"

#include <string>
#include <utility>

#include "model/small_vectors.h"

namespace gemma {

VisionWeights load_vision_weights(Backend& backend, std::shared_ptr<const GgufFile> file, const VisionConfig& config,
                                  bool requantizes) {
  VisionWeights w;
  w.ffn_dim = vision_ffn_dim(config, requantizes);
  SmallVectors small;
  std::string scope = "v.";
  const auto tensor = [&](const char* field, const char* suffix) -> const GgufTensor& {
    return *find_vision_tensor(*file, config, scope, field, suffix);
  };
  const auto matrix = [&](const char* field) {
    const GgufTensor& t = tensor(field, ".weight");
    return backend.load_weight(t.type, static_cast<int>(t.shape[0]), static_cast<int>(t.shape[1]), t.data);
  };
  const auto both = [&](const char* field, const float** weight, const float** bias) {
    small.add(weight, tensor(field, ".weight"));
    small.add(bias, tensor(field, ".bias"));
  };

  const GgufTensor& patch = tensor("patch_embd", ".weight");
  w.patch_embd =
      backend.load_weight(patch.type, config.model_dim, 3 * config.patch_size * config.patch_size, patch.data);
  small.add(&w.patch_embd_bias, tensor("patch_embd", ".bias"));
  small.add(&w.position_embd, tensor("position_embd", ".weight"));
  both("post_ln", &w.post_ln_weight, &w.post_ln_bias);

  w.layers.resize(static_cast<size_t>(config.n_layers));
  for (int i = 0; i < config.n_layers; ++i) {
    VisionLayer& layer = w.layers[static_cast<size_t>(i)];
    scope = "v.blk." + std::to_string(i) + ".";
    both("ln1", &layer.ln1_weight, &layer.ln1_bias);
    both("ln2", &layer.ln2_weight, &layer.ln2_bias);
    layer.attn_q = matrix("attn_q");
    layer.attn_k = matrix("attn_k");
    layer.attn_v = matrix("attn_v");
    layer.attn_out = matrix("attn_out");
    layer.ffn_up = matrix("ffn_up");
    layer.ffn_down = matrix("ffn_down");
    small.add(&layer.attn_q_bias, tensor("attn_q", ".bias"));
    small.add(&layer.attn_k_bias, tensor("attn_k", ".bias"));
    small.add(&layer.attn_v_bias, tensor("attn_v", ".bias"));
    small.add(&layer.attn_out_bias, tensor("attn_out", ".bias"));
    small.add(&layer.ffn_up_bias, tensor("ffn_up", ".bias"), static_cast<size_t>(w.ffn_dim));
    small.add(&layer.ffn_down_bias, tensor("ffn_down", ".bias"));
  }

  scope = "mm.";
  small.add(&w.mm_soft_emb_norm, tensor("soft_emb_norm", ".weight"));
  // Transposed into the form of every other linear layer.
  const GgufTensor& stored = tensor("input_projection", ".weight");
  const size_t dim = static_cast<size_t>(config.model_dim);
  const size_t text_dim = static_cast<size_t>(config.text_dim);
  std::vector<float> row(text_dim);
  std::vector<float> transposed(dim * text_dim);
  for (size_t i = 0; i < dim; ++i) {
    dequantize_row(stored.type, stored.data + i * row_bytes(stored.type, stored.shape[1]), row.data(), stored.shape[1]);
    for (size_t j = 0; j < text_dim; ++j) transposed[j * dim + i] = row[j];
  }
  const float* projection = nullptr;
  small.add(&projection, std::move(transposed));

  w.small = small.upload(backend);
  w.mm_input_projection = {TensorType::kF32, config.text_dim, config.model_dim,
                           reinterpret_cast<const std::byte*>(projection)};
  w.file = std::move(file);
  return w;
}

void requantize_layer(Backend& backend, const VisionConfig& config, bool requantizes, VisionLayer& layer) {
  if (!requantizes || !layer.own.empty()) return;
  const int ffn_dim = vision_ffn_dim(config, requantizes);
  std::vector<std::unique_ptr<Buffer>> own;
  const auto requantize = [&](Weight weight, int n_out, int n_in) {
    if (!is_float_type(weight.type) && weight.n_out == n_out && weight.n_in == n_in) return weight;
    own.push_back(backend.allocate(static_cast<size_t>(n_out) * row_bytes(TensorType::kQ8_0, n_in)));
    backend.requantize(own.back()->data(), weight, n_out, n_in);
    return Weight{TensorType::kQ8_0, n_out, n_in, own.back()->data()};
  };
  // All or nothing: memory may end in between.
  const Weight q = requantize(layer.attn_q, config.model_dim, config.model_dim);
  const Weight k = requantize(layer.attn_k, config.model_dim, config.model_dim);
  const Weight v = requantize(layer.attn_v, config.model_dim, config.model_dim);
  const Weight out = requantize(layer.attn_out, config.model_dim, config.model_dim);
  const Weight up = requantize(layer.ffn_up, ffn_dim, config.model_dim);
  const Weight down = requantize(layer.ffn_down, config.model_dim, ffn_dim);
  layer.attn_q = q, layer.attn_k = k, layer.attn_v = v, layer.attn_out = out, layer.ffn_up = up, layer.ffn_down = down;
  layer.own = std::move(own);
}

}  // namespace gemma
