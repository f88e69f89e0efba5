// The reader of model files in the format GGUF: what their metadata say, as the model's own structs, and their tensors.
// Two kinds of files hold the decoder: those of llama.cpp's converter, and those of Ollama's, which may hold the vision
// encoder too. Without it an mmproj file of llama.cpp's (architecture clip) does.
#pragma once

#include <memory>

#include "gguf/gguf.h"
#include "model/config.h"
#include "model/tensor_source.h"
#include "model/vision_config.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

// Checks architecture, hyper-parameters and every tensor's name, shape and type. Throws Error: kUnsupportedModel,
// kGgufInvalid with BAD_HPARAM, BAD_TENSOR, BAD_TYPE.
ModelConfig read_model_config(const GgufFile& file);
// The decoder's tensors. GGUF stores norms as 1 + w, as the model wants them.
std::shared_ptr<const TensorSource> decoder_tensors(const std::shared_ptr<const GgufFile>& file);

// What a file says about conversations; empty where it says nothing. The name is the configuration's.
struct ChatMetadata {
  std::string chat_template;  // Jinja
  std::string base_name;      // "gemma-3"
  std::string finetune;       // "it"
};
// Throws Error: kGgufInvalid, BAD_TYPE; TEMPLATE_LIMIT for a template of more than 1 MiB.
ChatMetadata read_chat_metadata(const GgufFile& file);

// n_vocab ids: tokens past the embedding's rows are cut, rows past the tokens have no text. The pieces are views into
// file. Throws Error: kUnsupportedModel for another tokenizer model; kGgufInvalid with BAD_VOCAB. Accepted: more scores
// or types than tokens, special token ids of -1 (none), and what Tokenizer accepts.
Vocabulary read_vocabulary(const GgufFile& file, int n_vocab);

// True for a model file that holds its vision encoder too.
bool has_vision(const GgufFile& file);
// Checks kind, hyper-parameters and every tensor's shape and type; text_dim: width of the decoder it is to go with.
// Throws Error: kUnsupportedModel; kGgufInvalid with BAD_HPARAM, BAD_TENSOR, BAD_TYPE.
VisionConfig read_vision_config(const GgufFile& file, int text_dim);
// The encoder's tensors, under today's names whatever the file calls them. config: of read_vision_config(*file).
std::shared_ptr<const TensorSource> vision_tensors(const std::shared_ptr<const GgufFile>& file,
                                                   const VisionConfig& config);

}  // namespace gemma
