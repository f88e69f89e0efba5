#include "model/vision_tensors.h"

#include <string>

namespace gemma {

std::vector<VisionLayerTensor> vision_layer_tensors(const VisionConfig& c, int layer) {
  using L = VisionLayer;
  const std::string block = "v.blk." + std::to_string(layer) + ".";
  std::vector<VisionLayerTensor> all;
  const auto norm = [&](const char* field, const float* L::* weight, const float* L::* bias) {
    all.push_back({{block + field + ".weight", {c.model_dim}}, weight, nullptr});
    all.push_back({{block + field + ".bias", {c.model_dim}}, bias, nullptr});
  };
  const auto linear = [&](const char* field, int64_t n_out, int64_t n_in, Weight L::* weight, const float* L::* bias) {
    all.push_back({{block + field + ".weight", {n_out, n_in}}, nullptr, weight});
    all.push_back({{block + field + ".bias", {n_out}}, bias, nullptr});
  };
  norm("ln1", &L::ln1_weight, &L::ln1_bias);
  norm("ln2", &L::ln2_weight, &L::ln2_bias);
  linear("attn_q", c.model_dim, c.model_dim, &L::attn_q, &L::attn_q_bias);
  linear("attn_k", c.model_dim, c.model_dim, &L::attn_k, &L::attn_k_bias);
  linear("attn_v", c.model_dim, c.model_dim, &L::attn_v, &L::attn_v_bias);
  linear("attn_out", c.model_dim, c.model_dim, &L::attn_out, &L::attn_out_bias);
  linear("ffn_up", c.ffn_dim, c.model_dim, &L::ffn_up, &L::ffn_up_bias);
  linear("ffn_down", c.model_dim, c.ffn_dim, &L::ffn_down, &L::ffn_down_bias);
  return all;
}

std::vector<ExpectedTensor> expected_tensors(const VisionConfig& c) {
  std::vector<ExpectedTensor> all = {
      {"v.patch_embd.weight", {c.model_dim, 3, c.patch_size, c.patch_size}, true},
      {"v.patch_embd.bias", {c.model_dim}},
      {"v.position_embd.weight", {c.n_patches, c.model_dim}, true},
      {"v.post_ln.weight", {c.model_dim}},
      {"v.post_ln.bias", {c.model_dim}},
      {"mm.soft_emb_norm.weight", {c.model_dim}},
      // As Hugging Face keeps it, x * P: the transpose of every other linear layer's.
      {"mm.input_projection.weight", {c.model_dim, c.text_dim}},
  };
  for (int i = 0; i < c.n_layers; ++i) {
    for (VisionLayerTensor& tensor : vision_layer_tensors(c, i)) all.push_back(std::move(tensor));
  }
  return all;
}

}  // namespace gemma
