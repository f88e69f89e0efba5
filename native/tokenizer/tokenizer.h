// Gemma's SentencePiece BPE: text <-> ids from a plain vocabulary. Immutable after construction, usable from any
// thread. Identity normaliser, space <-> U+2581, byte fallback, no dummy prefix. Source: SentencePiece 0.2
// (bpe_model.cc, normalizer.cc with Gemma's settings); tokenizer.json of Gemma 3 gives the same ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gemma {

using TokenId = int32_t;

enum class TokenKind : uint8_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

// A vocabulary as it stands in a file. The pieces are views (into the file, or literals) and are read only by the
// constructor of Tokenizer.
struct Vocabulary {
  std::vector<std::string_view> pieces;  // empty: an id without text
  std::vector<float> scores;
  std::vector<TokenKind> kinds;
  TokenId bos = -1, eos = -1, unk = -1, pad = -1;  // -1: none
  bool add_bos = true;
};

// Marker ids found by name (some files mark them as normal tokens); -1: absent. bos and eos fall back to the file's
// ids.
struct SpecialIds {
  TokenId bos = -1, eos = -1, start_of_turn = -1, end_of_turn = -1, start_of_image = -1, end_of_image = -1,
          image_soft = -1;
};

enum class Trust {
  kUser,      // control strings, image markers and <unusedN> stay text; newline, blank, tab and tag tokens are matched
  kTemplate,  // control strings are parsed to their ids
};

class Tokenizer {
 public:
  // Throws Error{kGgufInvalid, BAD_VOCAB}. Accepted: duplicate pieces (encode takes the first), pieces with NUL, empty
  // pieces (ids without text).
  explicit Tokenizer(const Vocabulary& vocabulary);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  int n_vocab() const;
  const SpecialIds& special() const;
  bool add_bos() const;  // the file asks for BOS in front of raw text

  // Appends the ids of text (UTF-8; invalid bytes go through byte fallback). Linear time up to a log. No BOS is added.
  void encode(std::string_view text, Trust trust, std::vector<TokenId>* out) const;

  // The bytes of one token (blanks for U+2581); empty for control tokens unless special is set. Ids in 0..n_vocab()-1.
  std::string_view token_bytes(TokenId id, bool special = false) const;
  // True for tokens that end generation: eos and <end_of_turn>.
  bool is_end(TokenId id) const;
  // True for control tokens, image markers, <unusedN> and ids without text: never part of visible text.
  bool is_control(TokenId id) const;

  // Whole sequence to valid UTF-8, as tokenizer.json decodes it: a run of byte tokens that is not valid UTF-8 becomes
  // one U+FFFD per byte. Throws Error{kInvalidArgument, BAD_TOKEN} for an id past the end.
  std::string decode(std::span<const TokenId> ids, bool special = false) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

}  // namespace gemma
