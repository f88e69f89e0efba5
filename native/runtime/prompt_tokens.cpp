#include "runtime/prompt_tokens.h"

#include <algorithm>

#include "base/error.h"

namespace gemma {

TokenId image_token(const Tokenizer& tokenizer) {
  constexpr TokenId kPublished = 262144;
  const TokenId soft = tokenizer.special().image_soft;
  return soft >= 0 ? soft : std::min(kPublished, tokenizer.n_vocab());
}

std::vector<TokenId> encode_parts(const Tokenizer& tokenizer, const std::vector<PromptPart>& parts, Trust trust,
                                  const std::function<bool()>& should_stop) {
  std::vector<TokenId> tokens;
  std::string text;
  const auto flush = [&] {
    tokenizer.encode(text, trust, &tokens, should_stop);
    text.clear();
  };
  for (const PromptPart& part : parts) {
    if (const auto* piece = std::get_if<std::string>(&part)) {
      text += *piece;
      continue;
    }
    if (const auto* view = std::get_if<std::string_view>(&part)) {
      text += *view;
      continue;
    }
    flush();
    if (const auto* token = std::get_if<TokenId>(&part)) {
      if (*token < 0 || *token >= tokenizer.n_vocab()) {
        throw Error(
            ErrorCode::kInvalidArgument, "BAD_TOKEN",
            "token id " + std::to_string(*token) + " is outside of 0.." + std::to_string(tokenizer.n_vocab() - 1));
      }
      tokens.push_back(*token);
      continue;
    }
    const SpecialIds& special = tokenizer.special();
    TokenId id = -1;
    const char* name = nullptr;
    switch (std::get<Marker>(part)) {
      case Marker::kBos: id = special.bos, name = "<bos>"; break;
      case Marker::kStartOfTurn: id = special.start_of_turn, name = "<start_of_turn>"; break;
      case Marker::kEndOfTurn: id = special.end_of_turn, name = "<end_of_turn>"; break;
      case Marker::kStartOfImage: id = special.start_of_image, name = "<start_of_image>"; break;
      case Marker::kEndOfImage: id = special.end_of_image, name = "<end_of_image>"; break;
      case Marker::kImage: id = image_token(tokenizer); break;
    }
    if (id < 0) {
      throw Error(
          ErrorCode::kUnsupportedModel, "NO_MARKER",
          std::string("the model's vocabulary has no ") + name + "; it cannot be used as a chat model (pass raw text)");
    }
    tokens.push_back(id);
  }
  flush();
  return tokens;
}

}  // namespace gemma
