// llama.cpp's adapters: pairs of tensors NAME.lora_a and NAME.lora_b beside the name of the tensor that they change.
#pragma once

#include <memory>

#include "gguf/gguf.h"
#include "model/adapter.h"

namespace gemma {

// Of a file that is open. Throws Error as read_adapter(); messages do not name the file.
AdapterTensors gguf_adapter(const std::shared_ptr<const GgufFile>& file);

}  // namespace gemma
