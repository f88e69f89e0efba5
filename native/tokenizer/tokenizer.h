// Gemma's SentencePiece BPE: text <-> ids from a plain vocabulary. Immutable after construction, usable from any
// thread. Identity normaliser, space <-> U+2581, byte fallback, no dummy prefix. Source: SentencePiece 0.2
// (bpe_model.cc, normalizer.cc with Gemma's settings); tokenizer.json of Gemma 3 gives the same ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gemma {

using TokenId = int32_t;

enum class TokenKind : uint8_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

// A vocabulary as a file stores it. The pieces are views into the file, into what text keeps, or literals. Only the
// constructor of Tokenizer reads them.
struct Vocabulary {
  std::vector<std::string_view> pieces;  // empty: an id without text
  std::vector<float> scores;
  std::vector<TokenKind> kinds;
  TokenId bos = -1, eos = -1, unk = -1, pad = -1;  // -1: none
  std::vector<TokenId> ends;                       // tokens that the file says to end an answer, beside eos
  std::optional<bool> adds_eos;                    // behind a text; nothing: as the model's kind has it
  std::shared_ptr<const void> text;                // null where the file keeps it
};

// Marker ids, found by name because some files mark them as normal tokens. -1 means absent; bos and eos then have the
// ids from the file's metadata, which unknown and pad always have.
struct SpecialIds {
  TokenId bos = -1, eos = -1, start_of_turn = -1, end_of_turn = -1, start_of_image = -1, end_of_image = -1,
          image_soft = -1, unknown = -1, pad = -1;
};

enum class Trust {
  kUser,  // control strings, image markers and reserved tokens stay text; newline, blank, tab and tag tokens are matched
  kTemplate,  // control strings are parsed to their ids
};

struct VocabularyIndex;

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

  // Appends the ids of text (UTF-8; invalid bytes become byte tokens). Takes O(n log n) time. Adds no BOS. should_stop is
  // asked now and then; after true throws Error{kDisposed, CANCELLED}.
  void encode(std::string_view text, Trust trust, std::vector<TokenId>* out,
              const std::function<bool()>& should_stop = nullptr) const;
  // Bytes of text that one token stands for at most, a space for U+2581.
  size_t longest_text() const;

  // The bytes of one token (spaces for U+2581); empty for control tokens unless special is set. id: 0..n_vocab()-1.
  std::string_view token_bytes(TokenId id, bool special = false) const;
  // Tokens that end an answer, ascending: eos, those that the file names, and the ends of turns that are known by name.
  std::span<const TokenId> ends() const;
  bool is_end(TokenId id) const;
  // The first token that is spelled so; -1: none. Control tokens are found too, byte tokens are not.
  TokenId find(std::string_view spelling) const;
  // The tokens that only template text can hold, ascending.
  std::vector<TokenId> markers() const;
  // True for control tokens, image markers, reserved tokens and ids without text: never part of visible text.
  bool is_control(TokenId id) const;

  // Decodes a whole sequence to valid UTF-8, as tokenizer.json does: a run of byte tokens that is not valid UTF-8
  // becomes one U+FFFD per byte. Throws Error{kInvalidArgument, BAD_TOKEN} for an id past the end. should_stop: as of
  // encode().
  std::string decode(std::span<const TokenId> ids, bool special = false,
                     const std::function<bool()>& should_stop = nullptr) const;

 private:
  std::unique_ptr<const VocabularyIndex> index_;
};

}  // namespace gemma
