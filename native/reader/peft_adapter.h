// Hugging Face PEFT's adapter_model.safetensors.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "reader/adapter_file.h"
#include "safetensors/safetensors.h"

namespace gemma {

// As read_adapter().
AdapterTensors read_peft_adapter(const std::string& path, const PeftSettings& settings, bool headers_only);
// Of a file that is open; messages do not name it.
AdapterTensors peft_adapter(const std::shared_ptr<const SafetensorsFile>& file, const PeftSettings& settings);
std::vector<std::string> peft_modules(const SafetensorsFile& file);

}  // namespace gemma
