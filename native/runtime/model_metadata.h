// What a GGUF file says of a model that comes from another format: the keys that llama.cpp's converter writes.
#pragma once

#include <string>

#include "gguf/gguf_writer.h"
#include "model/config.h"
#include "model/vision_config.h"
#include "reader/hf_config.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

// A decoder or an encoder of texts. chat_template: Jinja, "": none. Throws Error{kUnsupportedModel, NOT_IN_GGUF} for a
// model with something that no key can say.
GgufMetadata decoder_metadata(const ModelConfig& config, const Vocabulary& vocabulary, const std::string& chat_template,
                              const HfSampling& sampling);
// A vision encoder, in a file of its own. name: the model's.
GgufMetadata vision_metadata(const VisionConfig& config, const std::string& name);

}  // namespace gemma
