// libFuzzer entry: the files beside the weights of a checkpoint. The first byte of an input says which reader gets the
// rest; each must end in a value or an Error. Built with GEMMA_FUZZ and run by scripts/fuzz.mjs.
// test/native/hostile_test.cpp calls the same function on mutated files, without clang.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/error.h"
#include "reader/hf_config.h"
#include "reader/hf_names.h"
#include "reader/hf_vocabulary.h"
#include "reader/safetensors_reader.h"
#include "reader/sentence_modules.h"
#include "tokenizer/tokenizer.h"

enum class CheckpointPart {
  kConfig,
  kGeneration,
  kPreprocessor,
  kTokenizer,
  kTokenizerConfig,
  kSentencePiece,
  kNames,
  kIndex,
  kModules,
  kPooling,
  kDense,
  kTransformer
};
constexpr int kCheckpointRows = 300;  // of the embedding
int checkpoint_fuzz_read = 0;         // inputs that were what their first byte says

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  uint64_t sum = 0;
  try {
    gemma::HfVocabulary vocabulary(kCheckpointRows);
    switch (static_cast<CheckpointPart>(data[0] % 12)) {
      case CheckpointPart::kConfig: {
        const gemma::HfConfig config = gemma::read_hf_config(text);
        // What a model is made of, whatever the file says.
        for (const gemma::LayerConfig& layer : config.model.layers) {
          if (layer.n_kv_heads < 1 || layer.n_heads % layer.n_kv_heads != 0 || layer.head_dim % 2 != 0)
            __builtin_trap();
        }
        if (config.model.layers.empty() || config.model.model_dim < 1 || config.model.n_vocab < 1) __builtin_trap();
        break;
      }
      case CheckpointPart::kGeneration: {
        gemma::HfTokenIds ids;
        gemma::HfSampling sampling;
        gemma::read_hf_generation_config(text, &ids, &sampling);
        break;
      }
      case CheckpointPart::kPreprocessor: {
        gemma::VisionConfig vision;
        vision.image_size = 56;
        gemma::read_hf_preprocessor(text, &vision);
        for (const float deviation : vision.image_std) {
          if (!(deviation > 0)) __builtin_trap();
        }
        break;
      }
      case CheckpointPart::kTokenizer: {
        gemma::read_tokenizer_json(text, &vocabulary);
        sum += static_cast<uint64_t>(gemma::Tokenizer(vocabulary.tokens).n_vocab());
        break;
      }
      case CheckpointPart::kTokenizerConfig: {
        const gemma::HfSpecialTokens special = gemma::read_tokenizer_config(text, &vocabulary);
        sum += static_cast<uint64_t>(vocabulary.find(special.bos));
        sum += static_cast<uint64_t>(gemma::read_model_max_length(text).value_or(0));
        break;
      }
      case CheckpointPart::kSentencePiece: {
        gemma::read_sentencepiece_model(bytes, &vocabulary);
        sum += static_cast<uint64_t>(gemma::Tokenizer(vocabulary.tokens).n_vocab());
        break;
      }
      case CheckpointPart::kNames: {
        // A name of the model's stands for one of the file's, which stands for it.
        const std::string name = gemma::model_tensor_name(text);
        if (!name.empty() && gemma::model_tensor_name(gemma::hf_tensor_name(name)) != name) __builtin_trap();
        break;
      }
      case CheckpointPart::kIndex: {
        for (const auto& [tensor, file] : gemma::read_safetensors_index(text)) {
          if (file.find_first_of("/\\:") != std::string::npos || file.starts_with('.')) __builtin_trap();
        }
        break;
      }
      case CheckpointPart::kModules: {
        // Whatever the file says, no path leads out of its folder.
        for (const gemma::SentenceModule& module : gemma::read_module_list(text)) {
          if (module.path.find_first_of(std::string_view("./\\:\0", 5)) != std::string::npos) __builtin_trap();
        }
        break;
      }
      case CheckpointPart::kPooling: sum += static_cast<uint64_t>(gemma::read_sentence_pooling(text, 64)); break;
      case CheckpointPart::kDense: {
        if (gemma::read_sentence_dense(text, 64).out_dim < 1) __builtin_trap();
        break;
      }
      case CheckpointPart::kTransformer: {
        if (gemma::read_sentence_transformer(text).value_or(1) < 1) __builtin_trap();
        break;
      }
    }
    for (const std::string_view piece : vocabulary.tokens.pieces) sum += piece.size();
    ++checkpoint_fuzz_read;
  } catch (const gemma::Error&) {
  }
  volatile uint64_t keeps_the_reads = sum;
  static_cast<void>(keeps_the_reads);
  return 0;
}
