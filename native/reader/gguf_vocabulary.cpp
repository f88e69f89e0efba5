// Source: tokenizer.ggml.* keys as llama.cpp and Ollama write them.
#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "base/error.h"
#include "reader/gguf_reader.h"

namespace gemma {
namespace {

[[noreturn]] void bad_vocab(const std::string& message) {
  throw Error(ErrorCode::kGgufInvalid, "BAD_VOCAB", message);
}

// An array of 4-byte items with at least n of them.
const GgufValue& find_array(const GgufFile& file, const std::string& key, bool is_float, size_t n) {
  const GgufValue* value = file.find(key);
  const char* expected = is_float ? "an array of 32-bit floats" : "an array of 32-bit integers";
  if (value == nullptr) bad_vocab(key + ": expected " + expected + ", the key is missing");
  const bool is_right_type =
      is_float ? value->type == GgufType::kF32 : value->type == GgufType::kI32 || value->type == GgufType::kU32;
  if (!value->is_array || !is_right_type) bad_vocab(key + ": expected " + expected + ", found another type");
  if (value->count < n) {
    bad_vocab(key + ": expected " + std::to_string(n) + " items, one per token, found " + std::to_string(value->count));
  }
  return *value;
}

template <typename T>
T item(const GgufValue& array, size_t i) {
  T value;
  std::memcpy(&value, array.raw.data() + i * sizeof value, sizeof value);
  return value;
}

// -1 for what files write where they mean no token.
TokenId checked_id(int64_t id, const char* key, size_t n_vocab) {
  if (id == -1 || id == std::numeric_limits<uint32_t>::max()) return -1;
  if (id < 0 || id >= static_cast<int64_t>(n_vocab)) {
    bad_vocab(std::string(key) + ": expected 0 to " + std::to_string(n_vocab - 1) + ", found " + std::to_string(id));
  }
  return static_cast<TokenId>(id);
}

TokenId find_id(const GgufFile& file, const char* key, size_t n_vocab) {
  return checked_id(file.find_int(key).value_or(-1), key, n_vocab);
}

// What ends an answer beside eos: ends of turns and of messages, and a list that some converters write.
std::vector<TokenId> find_ends(const GgufFile& file, size_t n_vocab) {
  std::vector<TokenId> ends;
  for (const char* key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    const TokenId id = find_id(file, key, n_vocab);
    if (id >= 0) ends.push_back(id);
  }
  constexpr const char* kList = "tokenizer.ggml.eos_token_ids";
  if (file.find(kList) == nullptr) return ends;
  const GgufValue& list = find_array(file, kList, false, 0);
  if (list.count > n_vocab) {
    bad_vocab(std::string(kList) + ": expected at most " + std::to_string(n_vocab) + " items, found " +
              std::to_string(list.count));
  }
  for (size_t i = 0; i < list.count; ++i) {
    const int64_t id = list.type == GgufType::kU32 ? int64_t{item<uint32_t>(list, i)} : item<int32_t>(list, i);
    const TokenId checked = checked_id(id, kList, n_vocab);
    if (checked >= 0) ends.push_back(checked);
  }
  return ends;
}

}  // namespace

Vocabulary read_vocabulary(const GgufFile& file, int n_vocab) {
  const std::optional<std::string> model = file.find_string("tokenizer.ggml.model");
  if (!model) bad_vocab("tokenizer.ggml.model: the key is missing");
  if (*model != "llama") {
    throw Error(
        ErrorCode::kUnsupportedModel, "TOKENIZER",
        "tokenizer.ggml.model: expected \"llama\" (SentencePiece BPE, as in Gemma 3), found \"" + *model + "\"");
  }
  const GgufValue* tokens = file.find("tokenizer.ggml.tokens");
  if (tokens == nullptr || !tokens->is_array || tokens->type != GgufType::kString || tokens->strings.empty()) {
    bad_vocab("tokenizer.ggml.tokens: expected a non-empty array of strings");
  }
  if (n_vocab <= 0) bad_vocab("expected at least one row in the embedding, found " + std::to_string(n_vocab));
  const auto n_rows = static_cast<size_t>(n_vocab);
  const size_t n = std::min(n_rows, tokens->strings.size());
  const GgufValue& scores = find_array(file, "tokenizer.ggml.scores", true, tokens->strings.size());
  const GgufValue& types = find_array(file, "tokenizer.ggml.token_type", false, tokens->strings.size());

  Vocabulary vocabulary;
  vocabulary.pieces.assign(tokens->strings.begin(), tokens->strings.begin() + static_cast<ptrdiff_t>(n));
  vocabulary.pieces.resize(n_rows);
  vocabulary.scores.resize(n_rows, 0.0f);
  vocabulary.kinds.resize(n_rows, TokenKind::kUnused);
  for (size_t i = 0; i < n; ++i) {
    vocabulary.scores[i] = item<float>(scores, i);
    const auto type = item<uint32_t>(types, i);
    if (type < 1 || type > 6) {
      bad_vocab("tokenizer.ggml.token_type: token " + std::to_string(i) + ": expected 1 to 6, found " +
                std::to_string(type));
    }
    vocabulary.kinds[i] = static_cast<TokenKind>(type);
  }
  vocabulary.bos = find_id(file, "tokenizer.ggml.bos_token_id", n_rows);
  vocabulary.eos = find_id(file, "tokenizer.ggml.eos_token_id", n_rows);
  vocabulary.unk = find_id(file, "tokenizer.ggml.unknown_token_id", n_rows);
  vocabulary.pad = find_id(file, "tokenizer.ggml.padding_token_id", n_rows);
  vocabulary.ends = find_ends(file, n_rows);
  return vocabulary;
}

}  // namespace gemma
