// Sources: transformers (modeling_gemma3.py, modeling_siglip.py), llama.cpp's converter (gguf-py: tensor_mapping.py).
#include "reader/hf_names.h"

#include <algorithm>
#include <span>

namespace gemma {
namespace {

struct Name {
  std::string_view hf;     // without layout's prefix
  std::string_view model;  // N of a layer's stands between the two parts of "blk.N."
};

// Outside of the layers.
constexpr Name kNames[] = {
    {"embed_tokens.weight", "token_embd.weight"},
    {"norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
    {"vision_tower.embeddings.patch_embedding.weight", "v.patch_embd.weight"},
    {"vision_tower.embeddings.patch_embedding.bias", "v.patch_embd.bias"},
    {"vision_tower.embeddings.position_embedding.weight", "v.position_embd.weight"},
    {"vision_tower.post_layernorm.weight", "v.post_ln.weight"},
    {"vision_tower.post_layernorm.bias", "v.post_ln.bias"},
    {"multi_modal_projector.mm_soft_emb_norm.weight", "mm.soft_emb_norm.weight"},
    {"multi_modal_projector.mm_input_projection_weight", "mm.input_projection.weight"},
};
constexpr std::string_view kLayers = "layers.";
constexpr std::string_view kBlocks = "blk.";
constexpr Name kLayerNames[] = {
    {"input_layernorm.weight", "attn_norm.weight"},
    {"self_attn.q_proj.weight", "attn_q.weight"},
    {"self_attn.k_proj.weight", "attn_k.weight"},
    {"self_attn.v_proj.weight", "attn_v.weight"},
    {"self_attn.o_proj.weight", "attn_output.weight"},
    {"self_attn.q_norm.weight", "attn_q_norm.weight"},
    {"self_attn.k_norm.weight", "attn_k_norm.weight"},
    {"post_attention_layernorm.weight", "post_attention_norm.weight"},
    {"pre_feedforward_layernorm.weight", "ffn_norm.weight"},
    {"mlp.gate_proj.weight", "ffn_gate.weight"},
    {"mlp.up_proj.weight", "ffn_up.weight"},
    {"mlp.down_proj.weight", "ffn_down.weight"},
    {"post_feedforward_layernorm.weight", "post_ffw_norm.weight"},
};
constexpr std::string_view kVisionLayers = "vision_tower.encoder.layers.";
constexpr std::string_view kVisionBlocks = "v.blk.";
constexpr Name kVisionLayerNames[] = {
    {"layer_norm1.weight", "ln1.weight"},
    {"layer_norm1.bias", "ln1.bias"},
    {"layer_norm2.weight", "ln2.weight"},
    {"layer_norm2.bias", "ln2.bias"},
    {"self_attn.q_proj.weight", "attn_q.weight"},
    {"self_attn.q_proj.bias", "attn_q.bias"},
    {"self_attn.k_proj.weight", "attn_k.weight"},
    {"self_attn.k_proj.bias", "attn_k.bias"},
    {"self_attn.v_proj.weight", "attn_v.weight"},
    {"self_attn.v_proj.bias", "attn_v.bias"},
    {"self_attn.out_proj.weight", "attn_out.weight"},
    {"self_attn.out_proj.bias", "attn_out.bias"},
    {"mlp.fc1.weight", "ffn_up.weight"},
    {"mlp.fc1.bias", "ffn_up.bias"},
    {"mlp.fc2.weight", "ffn_down.weight"},
    {"mlp.fc2.bias", "ffn_down.bias"},
};

struct LayerNames {
  std::string_view hf;     // what a layer's number stands behind
  std::string_view model;  // likewise
  std::span<const Name> names;
};
constexpr LayerNames kAllLayerNames[] = {{kLayers, kBlocks, kLayerNames},
                                         {kVisionLayers, kVisionBlocks, kVisionLayerNames}};

std::string_view lookup(std::span<const Name> names, std::string_view name, std::string_view Name::* from,
                        std::string_view Name::* to) {
  const auto it = std::find_if(names.begin(), names.end(), [&](const Name& entry) { return entry.*from == name; });
  return it == names.end() ? std::string_view() : (*it).*to;
}

// A number without leading zeros, as it stands before the next point; empty for anything else.
std::string_view layer_number(std::string_view name) {
  const std::string_view number = name.substr(0, name.find('.'));
  const bool is_number = !number.empty() && number.size() < 6 &&
                         std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; });
  return is_number && (number.size() == 1 || number.front() != '0') ? number : std::string_view();
}

std::string translate(std::string_view name, std::string_view Name::* from, std::string_view Name::* to,
                      std::string_view LayerNames::* layers_from, std::string_view LayerNames::* layers_to) {
  for (const LayerNames& layers : kAllLayerNames) {
    if (!name.starts_with(layers.*layers_from)) continue;
    const std::string_view rest = name.substr((layers.*layers_from).size());
    const std::string_view number = layer_number(rest);
    if (number.empty() || number.size() == rest.size()) return "";
    const std::string_view field = lookup(layers.names, rest.substr(number.size() + 1), from, to);
    if (field.empty()) return "";
    return std::string(layers.*layers_to).append(number).append(".").append(field);
  }
  return std::string(lookup(kNames, name, from, to));
}

// The name in the layout that the tables are written in.
std::string without_layout(std::string_view name) {
  constexpr std::string_view kTower = "vision_tower.";
  constexpr std::string_view kInner = "vision_model.";
  for (bool is_prefixed = true; is_prefixed;) {
    is_prefixed = false;
    for (const std::string_view prefix : {std::string_view("model."), std::string_view("language_model.")}) {
      if (!name.starts_with(prefix)) continue;
      name.remove_prefix(prefix.size());
      is_prefixed = true;
    }
  }
  if (!name.starts_with(kTower) || !name.substr(kTower.size()).starts_with(kInner)) return std::string(name);
  return std::string(kTower).append(name.substr(kTower.size() + kInner.size()));
}

}  // namespace

std::string model_tensor_name(std::string_view hf_name) {
  return translate(without_layout(hf_name), &Name::hf, &Name::model, &LayerNames::hf, &LayerNames::model);
}

std::string hf_tensor_name(std::string_view model_name) {
  return translate(model_name, &Name::model, &Name::hf, &LayerNames::model, &LayerNames::hf);
}

bool is_norm_of_gemma(std::string_view model_name) {
  return !model_name.starts_with("v.") && model_name.ends_with("norm.weight");
}

bool is_ignored_tensor(std::string_view hf_name) {
  const std::string name = without_layout(hf_name);
  return name.ends_with(".inv_freq") || name.ends_with(".position_ids") || name.starts_with("vision_tower.head.");
}

}  // namespace gemma
