#include "model/vision_weights.h"

#include <string>
#include <utility>

#include "model/small_vectors.h"
#include "model/vision_tensors.h"

namespace gemma {

namespace {

Weight load_matrix(Backend& backend, const Tensor& t) {
  return backend.load_weight(t.type, static_cast<int>(t.shape[0]), static_cast<int>(t.shape[1]), t.data);
}

// [model_dim, text_dim] in the form of every other linear layer, [text_dim, model_dim].
std::vector<float> transposed_projection(const Tensor& stored) {
  const size_t dim = static_cast<size_t>(stored.shape[0]);
  const size_t text_dim = static_cast<size_t>(stored.shape[1]);
  std::vector<float> row(text_dim);
  std::vector<float> transposed(dim * text_dim);
  for (size_t i = 0; i < dim; ++i) {
    dequantize_row(stored.type, stored.data + i * row_bytes(stored.type, stored.shape[1]), row.data(), stored.shape[1]);
    for (size_t j = 0; j < text_dim; ++j) transposed[j * dim + i] = row[j];
  }
  return transposed;
}

}  // namespace

VisionWeights load_vision_weights(Backend& backend, std::shared_ptr<const TensorSource> tensors,
                                  const VisionConfig& config, bool requantizes) {
  VisionWeights w;
  w.ffn_dim = vision_ffn_dim(config, requantizes);
  SmallVectors small;
  const auto tensor = [&](const std::string& name) -> const Tensor& { return *tensors->find(name); };

  const Tensor& patch = tensor("v.patch_embd.weight");
  w.patch_embd =
      backend.load_weight(patch.type, config.model_dim, 3 * config.patch_size * config.patch_size, patch.data);
  small.add(&w.patch_embd_bias, tensor("v.patch_embd.bias"));
  small.add(&w.position_embd, tensor("v.position_embd.weight"));
  small.add(&w.post_ln_weight, tensor("v.post_ln.weight"));
  small.add(&w.post_ln_bias, tensor("v.post_ln.bias"));

  w.layers.resize(static_cast<size_t>(config.n_layers));
  for (int i = 0; i < config.n_layers; ++i) {
    VisionLayer& layer = w.layers[static_cast<size_t>(i)];
    for (const VisionLayerTensor& t : vision_layer_tensors(config, i)) {
      if (t.matrix != nullptr) {
        layer.*t.matrix = load_matrix(backend, tensor(t.name));
      } else {
        // Products with ffn_up are as wide as they are computed.
        const int n_padded = t.vector == &VisionLayer::ffn_up_bias ? w.ffn_dim : 0;
        small.add(&(layer.*t.vector), tensor(t.name), static_cast<size_t>(n_padded));
      }
    }
  }

  small.add(&w.mm_soft_emb_norm, tensor("mm.soft_emb_norm.weight"));
  const float* projection = nullptr;
  small.add(&projection, transposed_projection(tensor("mm.input_projection.weight")));

  w.small = small.upload(backend);
  w.mm_input_projection = {TensorType::kF32, config.text_dim, config.model_dim,
                           reinterpret_cast<const std::byte*>(projection)};
  w.tensors = std::move(tensors);
  return w;
}

void requantize_layer(Backend& backend, const VisionConfig& config, bool requantizes, VisionLayer& layer) {
  if (!requantizes || !layer.own.empty()) return;
  const int ffn_dim = vision_ffn_dim(config, requantizes);
  std::vector<std::unique_ptr<Buffer>> own;
  const auto requantize = [&](Weight weight, int n_out, int n_in) {
    if (!vision_replaces(weight.type, weight.n_out, weight.n_in, n_out, n_in)) return weight;
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
