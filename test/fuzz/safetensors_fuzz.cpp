// libFuzzer entry: the files of a checkpoint. The first byte of an input says which reader gets the rest; each must end in
// a value or an Error. Built with GEMMA_FUZZ and run by scripts/fuzz.mjs.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/error.h"
#include "base/json.h"
#include "reader/hf_config.h"
#include "reader/hf_names.h"
#include "reader/hf_vocabulary.h"
#include "safetensors/safetensors.h"
#include "tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  uint64_t sum = 0;
  try {
    switch (data[0] % 6) {
      case 0: {
        const auto file = gemma::SafetensorsFile::parse(bytes);
        // Every byte that the parser vouches for must be readable.
        for (const gemma::SafetensorsTensor& tensor : file->tensors()) {
          if (tensor.bytes > 0)
            sum += static_cast<uint64_t>(tensor.data[0]) + static_cast<uint64_t>(tensor.data[tensor.bytes - 1]);
        }
        break;
      }
      case 1: {
        gemma::JsonReader json(text, {.code = gemma::ErrorCode::kSafetensorsInvalid, .detail = "BAD_JSON"});
        json.skip();
        json.end();
        break;
      }
      case 2: {
        gemma::HfConfig config = gemma::read_hf_config(text);
        sum += static_cast<uint64_t>(config.model.n_layers());
        gemma::read_hf_generation_config(text, &config.tokens, &config.sampling);
        if (config.vision) gemma::read_hf_preprocessor(text, &*config.vision);
        break;
      }
      case 3: {
        gemma::HfVocabulary vocabulary(300);
        gemma::read_tokenizer_json(text, &vocabulary);
        const gemma::Tokenizer tokenizer(vocabulary.tokens);
        sum += static_cast<uint64_t>(tokenizer.n_vocab());
        gemma::read_tokenizer_config(text, &vocabulary);
        break;
      }
      case 4: {
        gemma::HfVocabulary vocabulary(300);
        gemma::read_sentencepiece_model(bytes, &vocabulary);
        for (const std::string_view piece : vocabulary.tokens.pieces) sum += piece.size();
        break;
      }
      default: sum += gemma::model_tensor_name(text).size() + gemma::hf_tensor_name(text).size(); break;
    }
  } catch (const gemma::Error&) {
  }
  volatile uint64_t keeps_the_reads = sum;
  static_cast<void>(keeps_the_reads);
  return 0;
}
