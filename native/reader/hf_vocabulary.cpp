// Sources: tokenizers (the JSON of its BPE model), transformers (convert_slow_tokenizer.py: how tokenizer.json is made of
// SentencePiece's model), SentencePiece (sentencepiece_model.proto).
#include "reader/hf_vocabulary.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <random>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/prefetch.h"
#include "base/utf8.h"
#include "reader/hparam_limits.h"

namespace gemma {
namespace {

// The published tokenizer.json has 262145 pieces and 515 thousand merges.
constexpr JsonRules kRules = {
    .code = ErrorCode::kSafetensorsInvalid, .detail = "BAD_VOCAB", .max_depth = 32, .max_values = 1 << 25};

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581, which stands for a blank

[[noreturn]] void bad_vocab(const std::string& message) {
  throw Error(ErrorCode::kSafetensorsInvalid, "BAD_VOCAB", message);
}

[[noreturn]] void unsupported(const std::string& message) {
  throw Error(ErrorCode::kUnsupportedModel, "TOKENIZER",
              message + "; expected a SentencePiece BPE tokenizer as Gemma 3's");
}

bool is_byte_piece(std::string_view piece) {
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'); };
  return piece.size() == 6 && piece.starts_with("<0x") && is_digit(piece[3]) && is_digit(piece[4]) && piece[5] == '>';
}

void set_piece(HfVocabulary* vocabulary, int64_t id, std::string_view piece, TokenKind kind) {
  Vocabulary& v = vocabulary->tokens;
  if (id >= static_cast<int64_t>(v.pieces.size())) return;
  v.pieces[static_cast<size_t>(id)] = piece;
  v.kinds[static_cast<size_t>(id)] = kind;
}

// Pieces by their text. Its hash is another each time: no choice of pieces makes it slow.
class PieceIndex {
 public:
  explicit PieceIndex(const std::vector<std::string_view>& pieces) : pieces_(pieces) {
    size_t n_slots = 16;
    while (n_slots < 2 * pieces.size()) n_slots *= 2;
    slots_.resize(n_slots);
    constexpr size_t kAhead = kPrefetchAhead;
    uint64_t hashes[kAhead] = {};  // of the pieces that come next
    for (size_t i = 0; i < pieces.size() + kAhead; ++i) {
      const uint64_t hash = hashes[i % kAhead];
      if (i < pieces.size()) {
        hashes[i % kAhead] = hash_of(pieces[i]);
        prefetch_line(&slots_[static_cast<size_t>(hashes[i % kAhead]) & (n_slots - 1)]);
      }
      if (i < kAhead || pieces[i - kAhead].empty()) continue;
      Slot& slot = slots_[slot_of(pieces[i - kAhead], hash)];
      if (slot.id < 0) slot = {tag(hash), static_cast<TokenId>(i - kAhead)};
    }
  }

  TokenId find(std::string_view piece) const { return slots_[slot_of(piece, hash_of(piece))].id; }  // -1: none

 private:
  // With a part of the hash: texts of other pieces lie all over memory and need not be looked at.
  struct Slot {
    uint32_t tag = 0;
    TokenId id = -1;
  };

  uint64_t hash_of(std::string_view piece) const {
    return hash_bytes(seed_, std::as_bytes(std::span(piece.data(), piece.size())));
  }
  static uint32_t tag(uint64_t hash) { return static_cast<uint32_t>(hash >> 32); }

  // Of the piece, or the empty one where it would be.
  size_t slot_of(std::string_view piece, uint64_t hash) const {
    const size_t mask = slots_.size() - 1;
    size_t i = static_cast<size_t>(hash) & mask;
    while (slots_[i].id >= 0 && (slots_[i].tag != tag(hash) || pieces_[static_cast<size_t>(slots_[i].id)] != piece)) {
      i = (i + 1) & mask;
    }
    return i;
  }

  const std::vector<std::string_view>& pieces_;
  std::vector<Slot> slots_;
  uint64_t seed_ = uint64_t{std::random_device()()} << 32 | std::random_device()();
};

struct AddedToken {
  int64_t id = -1;
  std::string_view text;
  bool is_special = false;
};

void add_token(HfVocabulary* vocabulary, const AddedToken& token) {
  const auto id = static_cast<size_t>(token.id);
  const std::vector<std::string_view>& pieces = vocabulary->tokens.pieces;
  if (id < pieces.size() && !pieces[id].empty() && pieces[id] != token.text) {
    bad_vocab("the added token " + quoted(token.text) + " has the id " + std::to_string(token.id) + " of " +
              quoted(pieces[id]));
  }
  set_piece(vocabulary, token.id, token.text, token.is_special ? TokenKind::kControl : TokenKind::kUserDefined);
}

class TokenizerJson {
 public:
  TokenizerJson(std::string_view text, HfVocabulary* vocabulary) : text_(text), vocabulary_(vocabulary) {}

  void read();

 private:
  void read_added_tokens(JsonReader& json);
  void read_normalizer(JsonReader& json);
  void read_pre_tokenizer(JsonReader& json);
  void read_post_processor(JsonReader& json);
  void read_decoder(JsonReader& json);
  void read_model(JsonReader& json);
  void read_vocab(JsonReader& json);
  void read_merges(JsonReader& json);
  void check_merges(const PieceIndex& index) const;
  void add_tokens();
  // The piece as a view that stays.
  std::string_view kept(std::string_view piece) const {
    const bool is_in_file = piece.data() >= text_.data() && piece.data() < text_.data() + text_.size();
    return is_in_file ? piece : vocabulary_->text.emplace_back(piece);
  }

  std::string_view text_;
  HfVocabulary* vocabulary_;
  std::vector<AddedToken> added_;
  std::string unk_;
  bool has_vocab_ = false;
  bool has_model_ = false;
  bool replaces_blanks_ = false;
  std::vector<uint16_t> n_merges_;  // of each piece
};

void read_added_token(JsonReader& json, AddedToken* token, const auto& kept) {
  bool takes_neighbours = false;
  json.read_object([&](std::string_view key) {
    if (key == "id") {
      token->id = json.read_int(0, kMaxVocab);
    } else if (key == "content") {
      token->text = kept(json.read_string());
    } else if (key == "special") {
      token->is_special = json.read_bool();
    } else if (key == "lstrip" || key == "rstrip" || key == "single_word") {
      takes_neighbours |= json.read_bool();
    } else {
      json.skip();
    }
  });
  if (token->text.empty()) bad_vocab("an added token without text");
  if (takes_neighbours && !token->is_special)
    unsupported("the added token " + quoted(token->text) + " is one for whole words, or takes the blanks beside it");
}

void TokenizerJson::read_added_tokens(JsonReader& json) {
  if (json.read_null()) return;
  json.read_array([&] {
    AddedToken& token = added_.emplace_back();
    read_added_token(json, &token, [&](std::string_view text) { return kept(text); });
    if (token.id < 0) bad_vocab("the added token " + quoted(token.text) + " has no id");
  });
}

// A step of what is done to texts, or a sequence of steps, each of which is read by `nested`.
struct Step {
  std::string type;
  std::string pattern;
  std::string content;
};

Step read_step(JsonReader& json, const std::string& what, std::string_view sequence, const auto& nested) {
  Step step;
  json.read_object([&](std::string_view key) {
    if (key == "type") {
      step.type = json.read_string();
    } else if (key == "pattern") {
      json.read_object([&](std::string_view kind) {
        if (kind != "String") unsupported("a " + what + " with a pattern of kind " + quoted(kind));
        step.pattern = json.read_string();
      });
    } else if (key == "content") {
      step.content = json.read_string();
    } else if (key == sequence) {
      json.read_array(nested);
    } else {
      json.skip();
    }
  });
  return step;
}

// One Replace of blanks, alone or in a sequence.
void TokenizerJson::read_normalizer(JsonReader& json) {
  if (json.read_null()) return;
  const auto [type, pattern, content] = read_step(json, "normalizer", "normalizers", [&] { read_normalizer(json); });
  if (type == "Sequence") return;
  if (type != "Replace") unsupported("a normalizer of type " + quoted(type));
  if (pattern != " " || content != kSpace) unsupported("a normalizer that replaces " + quoted(pattern));
  replaces_blanks_ = true;
}

// None, or a split at blanks, of which the normalizer leaves none.
void TokenizerJson::read_pre_tokenizer(JsonReader& json) {
  if (json.read_null()) return;
  std::string type;
  std::string pattern;
  json.read_object([&](std::string_view key) {
    if (key == "type") {
      type = json.read_string();
    } else if (key == "pattern") {
      json.read_object([&](std::string_view kind) {
        if (kind != "String") unsupported("a pre-tokenizer with a pattern of kind " + quoted(kind));
        pattern = json.read_string();
      });
    } else {
      json.skip();
    }
  });
  if (type != "Split" || pattern != " ") unsupported("a pre-tokenizer of type " + quoted(type));
}

// What stands around a text, where a template says it: {"single": [{"SpecialToken": {"id": "<bos>"}}, {"Sequence": ..}]}.
void TokenizerJson::read_post_processor(JsonReader& json) {
  if (json.read_null()) return;
  json.read_object([&](std::string_view key) {
    if (key == "processors") {  // a list of them
      json.read_array([&] { read_post_processor(json); });
      return;
    }
    if (key != "single") return json.skip();
    bool has_text = false;
    vocabulary_->adds_bos = vocabulary_->adds_eos = false;
    json.read_array([&] {
      json.read_object([&](std::string_view kind) {
        if (kind == "SpecialToken") (has_text ? vocabulary_->adds_eos : vocabulary_->adds_bos) = true;
        if (kind == "Sequence") has_text = true;
        json.skip();
      });
    });
  });
}

// None, or what undoes the normalizer and joins bytes, alone or in a sequence.
void TokenizerJson::read_decoder(JsonReader& json) {
  if (json.read_null()) return;
  const auto [type, pattern, content] = read_step(json, "decoder", "decoders", [&] { read_decoder(json); });
  if (type == "Sequence" || type == "ByteFallback" || type == "Fuse") return;
  if (type != "Replace") unsupported("a decoder of type " + quoted(type));
  if (pattern != kSpace || content != " ") unsupported("a decoder that replaces " + quoted(pattern));
}

void TokenizerJson::read_vocab(JsonReader& json) {
  has_vocab_ = true;
  Vocabulary& v = vocabulary_->tokens;
  json.read_object([&](std::string_view key) {
    const std::string_view piece = kept(key);
    const size_t at = json.offset();
    const int64_t id = json.read_int(0, kMaxVocab);
    if (id >= static_cast<int64_t>(v.pieces.size())) return;
    if (piece.empty()) json.fail("a piece without text", at);
    if (!v.pieces[static_cast<size_t>(id)].empty()) json.fail("two pieces have the id " + std::to_string(id), at);
    set_piece(vocabulary_, id, piece, is_byte_piece(piece) ? TokenKind::kByte : TokenKind::kNormal);
  });
}

// Each as "left right" or ["left", "right"]. The score of a piece is that of the first merge that makes it.
void TokenizerJson::read_merges(JsonReader& json) {
  Vocabulary& v = vocabulary_->tokens;
  const PieceIndex index(v.pieces);
  n_merges_.assign(v.pieces.size(), 0);
  // SentencePiece numbers pieces in the order of their scores, so a merge makes the piece of the one before, or the next
  // one. Only other files need the index here: half a million of its lookups are twice the time of reading the text.
  size_t last = 0;
  const auto find = [&](std::string_view piece) -> TokenId {
    for (size_t i = last; i < std::min(last + 2, v.pieces.size()); ++i) {
      if (v.pieces[i] != piece) continue;
      last = i;
      return static_cast<TokenId>(i);
    }
    const TokenId found = index.find(piece);
    if (found >= 0) last = static_cast<size_t>(found);
    return found;
  };
  std::string piece;
  int64_t rank = 0;
  json.read_array([&] {
    const size_t at = json.offset();
    if (json.kind() == JsonKind::kString) {
      piece = json.read_string();
      const size_t blank = piece.find(' ');
      if (blank == std::string::npos) json.fail("expected two pieces with a blank between them", at);
      piece.erase(blank, 1);
    } else {
      int n_parts = 0;
      piece.clear();
      json.read_array([&] {
        if (++n_parts > 2) json.fail("expected two pieces", at);
        piece += json.read_string();
      });
      if (n_parts != 2) json.fail("expected two pieces", at);
    }
    const TokenId id = find(piece);
    ++rank;
    if (id < 0) return;  // past the rows of the embedding, or none
    const auto i = static_cast<size_t>(id);
    if (n_merges_[i]++ == 0) v.scores[i] = -static_cast<float>(rank - 1);
    if (n_merges_[i] == 0) json.fail("too many merges make " + quoted(piece), at);
  });
  check_merges(index);
}

// SentencePiece joins any two neighbours whose text is a piece. A tokenizer that was trained as BPE of pairs lists for
// each piece one pair alone, and joins no others: what it makes of a text differs.
void TokenizerJson::check_merges(const PieceIndex& index) const {
  const Vocabulary& v = vocabulary_->tokens;
  const size_t step = v.pieces.size() / 4096 + 1;  // a sample of large vocabularies
  size_t n_seen = 0;
  size_t n_missing = 0;
  for (size_t i = 0; i < v.pieces.size(); i += step) {
    if (n_merges_[i] == 0) continue;
    const std::string_view piece = v.pieces[i];
    size_t n_splits = 0;
    for (size_t at = 1; at < piece.size(); ++at) {
      if ((static_cast<unsigned char>(piece[at]) & 0xc0) == 0x80) continue;  // inside a character
      if (index.find(piece.substr(0, at)) >= 0 && index.find(piece.substr(at)) >= 0) ++n_splits;
    }
    if (n_splits < 2) continue;
    ++n_seen;
    if (n_splits > n_merges_[i]) ++n_missing;
  }
  if (n_missing > n_seen / 2) unsupported("a BPE model that joins less than all neighbours which make a piece");
}

void TokenizerJson::read_model(JsonReader& json) {
  if (json.kind() != JsonKind::kObject) json.expected("the model");
  has_model_ = true;
  std::string type;
  bool has_bytes = false;
  std::string_view merges;  // where they come before what they are made of
  json.read_object([&](std::string_view key) {
    if (key == "type") {
      type = json.read_string();
      if (type != "BPE") unsupported("a tokenizer of type " + quoted(type));
    } else if (key == "byte_fallback") {
      has_bytes = json.read_bool();
    } else if (key == "unk_token") {
      if (!json.read_null()) unk_ = json.read_string();
    } else if (key == "ignore_merges") {
      if (json.read_bool()) unsupported("a BPE model that takes whole words first (ignore_merges)");
    } else if (key == "continuing_subword_prefix" || key == "end_of_word_suffix") {
      if (!json.read_null() && !json.read_string().empty()) unsupported("pieces with marks of words");
    } else if (key == "vocab") {
      read_vocab(json);
    } else if (key == "merges" && has_vocab_) {
      read_merges(json);
    } else if (key == "merges") {
      const size_t begin = json.offset();
      json.skip();
      merges = text_.substr(begin, json.offset() - begin);
    } else {
      json.skip();
    }
  });
  if (type.empty()) bad_vocab("\"model\": its type is missing");
  if (!has_vocab_) bad_vocab("\"model\": the vocabulary is missing");
  if (!has_bytes) unsupported("a tokenizer without pieces for bytes (byte_fallback)");
  if (!merges.empty()) {
    JsonReader later(merges, kRules);
    read_merges(later);
  }
}

void TokenizerJson::add_tokens() {
  for (const AddedToken& token : added_) add_token(vocabulary_, token);
  if (unk_.empty()) return;
  Vocabulary& v = vocabulary_->tokens;
  v.unk = vocabulary_->find(unk_);
  if (v.unk >= 0) v.kinds[static_cast<size_t>(v.unk)] = TokenKind::kUnknown;
}

void TokenizerJson::read() {
  JsonReader json(text_, kRules);
  json.read_object([&](std::string_view key) {
    if (key == "added_tokens") {
      read_added_tokens(json);
    } else if (key == "normalizer") {
      read_normalizer(json);
    } else if (key == "pre_tokenizer") {
      read_pre_tokenizer(json);
    } else if (key == "post_processor") {
      read_post_processor(json);
    } else if (key == "decoder") {
      read_decoder(json);
    } else if (key == "model") {
      read_model(json);
    } else {
      json.skip();
    }
  });
  json.end();
  if (!has_model_) bad_vocab("\"model\" is missing");
  if (!replaces_blanks_) unsupported("a tokenizer that does not write blanks as U+2581");
  add_tokens();
}

// Fields of a message of Protocol Buffers.
class ProtoReader {
 public:
  explicit ProtoReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  // False at the end. Then of the next field: its number, and its value.
  bool next() {
    if (at_ == bytes_.size()) return false;
    const uint64_t tag = read_varint();
    field = tag >> 3;
    message = {};
    value = 0;
    switch (tag & 7) {
      case 0: value = read_varint(); return true;
      case 1: value = read_fixed(8); return true;
      case 2: message = take(read_varint()); return true;
      case 5: value = read_fixed(4); return true;
      default: bad_vocab("not a SentencePiece model: a field of kind " + std::to_string(tag & 7));
    }
  }

  uint64_t field = 0;
  uint64_t value = 0;                  // of a number
  std::span<const std::byte> message;  // or of a string

  std::string_view text() const { return {reinterpret_cast<const char*>(message.data()), message.size()}; }

 private:
  std::span<const std::byte> take(uint64_t n) {
    if (n > bytes_.size() - at_) {
      bad_vocab("not a SentencePiece model, or an incomplete one: a field of " + std::to_string(n) + " bytes, " +
                std::to_string(bytes_.size() - at_) + " are left");
    }
    at_ += static_cast<size_t>(n);
    return bytes_.subspan(at_ - static_cast<size_t>(n), static_cast<size_t>(n));
  }
  uint64_t read_fixed(size_t n) {
    uint64_t bits = 0;
    std::memcpy(&bits, take(n).data(), n);
    return bits;
  }
  uint64_t read_varint() {
    uint64_t bits = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1)[0]);
      bits |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return bits;
    }
    bad_vocab("not a SentencePiece model: a number of more than 64 bits");
  }

  std::span<const std::byte> bytes_;
  size_t at_ = 0;
};

void check_trainer(std::span<const std::byte> message) {
  constexpr uint64_t kBpe = 2;
  uint64_t type = 1;  // unigram
  bool has_bytes = false;
  for (ProtoReader in(message); in.next();) {
    if (in.field == 3) type = in.value;
    if (in.field == 35) has_bytes = in.value != 0;
  }
  if (type != kBpe) unsupported("a SentencePiece model of type " + std::to_string(type));
  if (!has_bytes) unsupported("a tokenizer without pieces for bytes (byte_fallback)");
}

void check_normalizer(std::span<const std::byte> message) {
  std::string_view rules;
  bool adds_blank = true;
  bool removes_blanks = true;
  bool escapes_blanks = true;
  for (ProtoReader in(message); in.next();) {
    if (in.field == 2) rules = in.text();
    if (in.field == 3) adds_blank = in.value != 0;
    if (in.field == 4) removes_blanks = in.value != 0;
    if (in.field == 5) escapes_blanks = in.value != 0;
  }
  if (!rules.empty() || adds_blank || removes_blanks || !escapes_blanks)
    unsupported("a SentencePiece model that changes text before it cuts it");
}

}  // namespace

HfVocabulary::HfVocabulary(int n_rows) {
  const auto n = static_cast<size_t>(n_rows);
  tokens.pieces.resize(n);
  tokens.scores.resize(n, -1e9f);  // of pieces that no merge makes: below all ranks
  tokens.kinds.resize(n, TokenKind::kUnused);
}

TokenId HfVocabulary::find(std::string_view piece) const {
  if (piece.empty()) return -1;
  const auto it = std::find(tokens.pieces.begin(), tokens.pieces.end(), piece);
  return it == tokens.pieces.end() ? -1 : static_cast<TokenId>(it - tokens.pieces.begin());
}

void read_tokenizer_json(std::string_view json, HfVocabulary* vocabulary) {
  TokenizerJson(json, vocabulary).read();
}

void read_sentencepiece_model(std::span<const std::byte> model, HfVocabulary* vocabulary) {
  Vocabulary& v = vocabulary->tokens;
  int64_t id = 0;
  bool has_trainer = false;
  bool has_normalizer = false;
  for (ProtoReader in(model); in.next();) {
    if (in.field == 2) {
      has_trainer = true;
      check_trainer(in.message);
    }
    if (in.field == 3) {
      has_normalizer = true;
      check_normalizer(in.message);
    }
    if (in.field != 1) continue;
    std::string_view piece;
    float score = 0;
    uint64_t kind = 1;
    for (ProtoReader field(in.message); field.next();) {
      if (field.field == 1) piece = field.text();
      if (field.field == 2) std::memcpy(&score, &field.value, sizeof score);
      if (field.field == 3) kind = field.value;
    }
    if (kind < 1 || kind > 6) {
      bad_vocab("token " + std::to_string(id) + ": expected a type from 1 to 6, found " + std::to_string(kind));
    }
    if (id < static_cast<int64_t>(v.pieces.size())) {
      set_piece(vocabulary, id, piece, static_cast<TokenKind>(kind));
      v.scores[static_cast<size_t>(id)] = score;
      if (static_cast<TokenKind>(kind) == TokenKind::kUnknown && v.unk < 0) v.unk = static_cast<TokenId>(id);
    }
    ++id;
  }
  if (id == 0 || !has_trainer || !has_normalizer) bad_vocab("not a SentencePiece model: parts of it are missing");
  const PieceIndex index(v.pieces);
  for (size_t i = 0; i < std::min(v.pieces.size(), static_cast<size_t>(id)); ++i) {
    const std::string_view found = v.pieces[i];
    if (found.empty()) bad_vocab("token " + std::to_string(i) + ": a piece without text");
    if (const TokenId first = index.find(found); first != static_cast<TokenId>(i)) {
      bad_vocab("token " + std::to_string(i) + ": its piece " + quoted(found) + " is that of token " +
                std::to_string(first) + " too");
    }
  }
}

HfSpecialTokens read_tokenizer_config(std::string_view text, HfVocabulary* vocabulary) {
  JsonReader json(text, kRules);
  HfSpecialTokens special;
  const auto read_spelling = [&](std::string* spelling) {
    if (json.read_null()) return;
    if (json.kind() == JsonKind::kString) {
      *spelling = json.read_string();
      return;
    }
    json.read_object([&](std::string_view key) {
      if (key == "content") {
        *spelling = json.read_string();
      } else {
        json.skip();
      }
    });
  };
  json.read_object([&](std::string_view key) {
    if (key == "bos_token") {
      read_spelling(&special.bos);
    } else if (key == "eos_token") {
      read_spelling(&special.eos);
    } else if (key == "pad_token") {
      read_spelling(&special.pad);
    } else if (key == "unk_token") {
      read_spelling(&special.unk);
    } else if (key == "add_bos_token") {
      if (!json.read_null()) special.adds_bos = json.read_bool();
    } else if (key == "add_eos_token") {
      if (!json.read_null()) special.adds_eos = json.read_bool();
    } else if (key == "added_tokens_decoder") {
      json.read_object([&](std::string_view number) {
        AddedToken token;
        const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), token.id);
        if (error != std::errc() || end != number.data() + number.size() || token.id < 0 || token.id > kMaxVocab) {
          json.fail("expected a token's id from 0 to " + std::to_string(kMaxVocab) + ", found " + quoted(number),
                    json.offset());
        }
        read_added_token(json, &token, [&](std::string_view piece) {
          return std::string_view(vocabulary->text.emplace_back(piece));
        });
        add_token(vocabulary, token);
      });
    } else {
      json.skip();
    }
  });
  json.end();
  return special;
}

}  // namespace gemma
