// A vocabulary, checked and indexed: what encoding and decoding look up.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/lookups.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

inline constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581
inline constexpr uint32_t kNoMerge = std::numeric_limits<uint32_t>::max();

enum class TokenRole : uint8_t {
  kSilent,   // no text: empty, unused
  kPiece,    // made by merging
  kMatched,  // found in all text
  kMarker,   // found in template text only
  kByte,
};

// Appends text with U+2581 replaced by a space.
void append_blank_form(std::string_view text, std::string* out);
bool is_valid_utf8(std::string_view text);

struct VocabularyIndex {
  // Throws Error{kGgufInvalid, BAD_VOCAB}.
  explicit VocabularyIndex(const Vocabulary& vocabulary);
  VocabularyIndex(const VocabularyIndex&) = delete;  // pieces points into it
  VocabularyIndex& operator=(const VocabularyIndex&) = delete;

  std::string text;             // all pieces in blank form, byte tokens as their byte
  std::vector<uint32_t> begin;  // [n_vocab + 1] offsets into text
  std::vector<TokenRole> roles;
  std::vector<uint32_t> ranks;  // of merging: ascending is best score first
  std::array<TokenId, 256> byte_ids;
  TokenId unk = -1;
  SpecialIds special;
  std::vector<TokenId> ends;  // tokens that end an answer, ascending
  PieceTable pieces;
  PairFilter pairs;
  MarkedTrie marked;
  size_t longest_piece = 0;
  size_t longest_text = 4;  // of a token: a piece, a marked token, or a whole character where bytes are no tokens

  std::string_view piece(TokenId id) const {
    const auto i = static_cast<size_t>(id);
    return std::string_view(text).substr(begin[i], begin[i + 1] - begin[i]);
  }

 private:
  void append_text(const Vocabulary& vocabulary, TokenId id);
  void add_pieces();
  void add_piece(TokenId id);
  void find_special(const Vocabulary& vocabulary);
};

}  // namespace gemma
