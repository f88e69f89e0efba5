// What sentence-transformers says beside a checkpoint of a model that embeds texts: modules.json, which lists the steps
// from tokens to an embedding, and the configurations of these steps. Sources: sentence-transformers 6.2 (base/model.py,
// base/modules/, sentence_transformer/modules/pooling.py); what versions since 2 have written is read.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"

namespace gemma {

struct SentenceModules {
  Pooling pooling = Pooling::kMean;
  std::vector<DenseConfig> dense;
  std::vector<std::string> dense_files;  // of each its weights: "FOLDER/2_Dense/model.safetensors"
  bool normalizes = false;
  // The folders of all dense layers are missing, as "2_Dense, 3_Dense". dense is empty then.
  std::string missing_dense;
  std::optional<int> max_length;  // tokens of a text; absent: as the tokenizer and the model have it
};

// Nothing where the folder has no modules.json. model_dim: of the rows that are pooled. Whatever changes what an
// embedding is and is not supported is refused by its name. Throws Error, with messages that name the file: kFile (with
// MISSING_MODULE for a file that modules.json speaks of), kSafetensorsInvalid with BAD_MODULES, BAD_HPARAM, DUPLICATE;
// kUnsupportedModel with SENTENCE_MODULE.
std::optional<SentenceModules> read_sentence_modules(const std::string& folder, int model_dim);

// The files one by one, for read_sentence_modules(); messages name no file, errors are those above.
struct SentenceModule {
  std::string type;  // "Dense"
  std::string path;  // the name of a folder; empty: the folder of modules.json
};
std::vector<SentenceModule> read_module_list(std::string_view json);
Pooling read_sentence_pooling(std::string_view json, int model_dim);
// in_dim: of what comes before the layer.
DenseConfig read_sentence_dense(std::string_view json, int in_dim);
// sentence_bert_config.json: how many tokens a text has at most, where it says so.
std::optional<int> read_sentence_transformer(std::string_view json);

// tokenizer_config.json: model_max_length, as far as it is a limit. Throws Error{kSafetensorsInvalid}; names no file.
std::optional<int> read_model_max_length(std::string_view json);

}  // namespace gemma
