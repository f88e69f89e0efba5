// Names of tensors: as Hugging Face's checkpoints have them, and as the model knows them (those of GGUF).
#pragma once

#include <string>
#include <string_view>

namespace gemma {

// A tensor's name in the model. Prefixes of all layouts are understood: "model.layers.3.mlp.up_proj.weight" (text alone),
// "model.language_model.layers...", "language_model.model.layers...", "model.model.language_model..." (ShieldGemma 2),
// "vision_tower.vision_model.encoder...", "model.vision_tower.encoder...", ... Empty for a name that is none of Gemma's.
std::string model_tensor_name(std::string_view hf_name);

// The name in a checkpoint of a tensor of the model, without a layout's prefix: "layers.3.mlp.up_proj.weight". For
// messages.
std::string hf_tensor_name(std::string_view model_name);

// Whether Gemma's code computes with 1 + w.
bool is_norm_of_gemma(std::string_view model_name);

// A tensor that checkpoints hold and no model computes with: buffers of old versions, the encoder's head for
// classification.
bool is_ignored_tensor(std::string_view hf_name);

}  // namespace gemma
