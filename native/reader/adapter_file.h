// Adapters as files hold them: llama.cpp's GGUF, and the safetensors of a folder of Hugging Face PEFT. What becomes of
// either is AdapterTensors, under the names of the model's tensors.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/file_map.h"
#include "model/adapter.h"

namespace gemma {

// What adapter_config.json says of a folder's tensors (lib/peft-config.ts reads it).
struct PeftModule {
  std::string name;  // "model.layers.3.self_attn.q_proj", as the tensors' names have it
  int rank = 0;
  float scale = 1;
};
struct PeftSettings {
  std::vector<PeftModule> modules;  // those with low-rank pairs
  std::vector<std::string> saved;   // modules that are there as a whole (modules_to_save), by their last name
  std::vector<int32_t> token_ids;   // of trainable_token_indices
  bool dora = false;                // use_dora
  bool bias = false;                // lora_bias
};

// Where an adapter is.
struct AdapterSource {
  std::string path;                  // a file: GGUF, or safetensors with settings
  std::optional<PeftSettings> peft;  // null: GGUF
};

// Throws Error: kFile; kGgufInvalid; kSafetensorsInvalid; kAdapterInvalid with BAD_KIND (no adapter of Gemma 3), BAD_NAME (a tensor's name that says
// nothing), UNSUPPORTED, MISSING_TENSOR, BAD_RANK. headers_only: data are null.
AdapterTensors read_adapter(const AdapterSource& source, bool headers_only);

// The part of a PEFT tensor's name that patterns of the configuration are about, of each pair that is in the file.
std::vector<std::string> peft_modules(const std::string& path);

}  // namespace gemma
