// Hugging Face PEFT's adapter_model.safetensors.
#pragma once

#include <string>

#include "reader/adapter_file.h"

namespace gemma {

// As read_adapter().
AdapterTensors read_peft_adapter(const std::string& path, const PeftSettings& settings, bool headers_only);

}  // namespace gemma
