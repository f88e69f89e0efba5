// The vocabulary of a Hugging Face checkpoint: tokenizer.json, or tokenizer.model where there is none. Messages do not
// name the file.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "tokenizer/tokenizer.h"

namespace gemma {

// A vocabulary of n_rows ids, ids past which are left out, and what its pieces are views into, beside the file's text.
struct HfVocabulary {
  explicit HfVocabulary(int n_rows);

  Vocabulary tokens;                           // its special ids, but for unk, are not set here
  std::deque<std::string> text;                // of pieces that the file has escaped
  std::optional<bool> adds_bos, adds_eos;      // around a text; nothing: the file does not say
  TokenId find(std::string_view piece) const;  // the first id; -1: none. Looks at all of them.
};

// tokenizer.json with a BPE model as it is made of SentencePiece's: the rank of a merge is the rank of the piece that it
// makes. Throws Error: kUnsupportedModel, TOKENIZER for a tokenizer that works in another way; kSafetensorsInvalid with
// BAD_VOCAB, DUPLICATE.
void read_tokenizer_json(std::string_view json, HfVocabulary* vocabulary);
// SentencePiece's ModelProto. Throws likewise.
void read_sentencepiece_model(std::span<const std::byte> model, HfVocabulary* vocabulary);

// What tokenizer_config.json says: the spelling of special tokens, "" for none, and tokens that are added to the
// vocabulary. Throws likewise.
struct HfSpecialTokens {
  std::string bos, eos, pad, unk;
  std::optional<bool> adds_bos, adds_eos;  // around a text
};
HfSpecialTokens read_tokenizer_config(std::string_view json, HfVocabulary* vocabulary);

}  // namespace gemma
