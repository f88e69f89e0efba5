// Encoding in four steps, each linear in the text but for the heap:
//   1. U+2581 becomes a blank. Pieces are kept in the same form, so the two are one character everywhere.
//   2. Marked tokens (newline, blank and tab runs, tags; control strings in template text) are cut out: leftmost,
//   longest.
//   3. The rest is cut between any two characters that stand side by side in no piece: no merge can cross such a place,
//   so
//      what lies between can be merged on its own. In English these are the words.
//   4. In each part the adjacent pair whose concatenation is the best-scored piece is merged, leftmost on ties, until
//   there
//      is none; characters that are no piece become byte tokens.
// SentencePiece differs in one point on purpose: pieces of type "unused" are never formed (Gemma has none).
#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <utility>

#include "base/error.h"
#include "tokenizer/utf8.h"

#ifdef _MSC_VER
#include <intrin.h>
#endif

namespace gemma {
namespace {

constexpr size_t kMaxPieceBytes = 1024;                  // Gemma's longest has 48
constexpr size_t kMaxMarkedBytes = size_t{1} << 20;      // text of all marked tokens; Gemma: 90 KB
constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581

[[noreturn]] void bad_vocab(const std::string& message) {
  throw Error(ErrorCode::kGgufInvalid, "BAD_VOCAB", "vocabulary: " + message);
}

std::string describe(TokenId id, std::string_view piece) {
  return "token " + std::to_string(id) + " (" + std::to_string(piece.size()) + " bytes)";
}

// ---- pieces -> ids ----

uint64_t multiply_fold(uint64_t a, uint64_t b) {
#ifdef _MSC_VER
  uint64_t high;
  const uint64_t low = _umul128(a, b, &high);
  return low ^ high;
#else
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
#endif
}

template <typename T>
T load(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// A hash set of views into one text. The seed is random so that no file can be made whose pieces collide; it never
// shows in a result, as every hit is compared byte by byte.
class PieceTable {
 public:
  PieceTable(const std::string& text, const std::vector<uint32_t>& begin) : text_(text), begin_(begin) {
    std::random_device random;
    seed_ = (static_cast<uint64_t>(random()) << 32 | random()) | 1;
    const size_t n_slots = std::bit_ceil(begin.size() * 2);
    slots_.assign(n_slots, Slot{0, -1});
    mask_ = n_slots - 1;
  }

  // The first of equal pieces stays.
  void insert(std::string_view piece, TokenId id) {
    Slot* slot = probe(piece);
    if (slot->id < 0) *slot = Slot{tag(hash(piece)), id};
  }

  TokenId find(std::string_view piece) const { return const_cast<PieceTable*>(this)->probe(piece)->id; }

 private:
  struct Slot {
    uint32_t tag;
    TokenId id;
  };

  uint64_t hash(std::string_view s) const {
    constexpr uint64_t kOdd = 0x9E3779B97F4A7C15u;
    const char* p = s.data();
    size_t n = s.size();
    uint64_t h = seed_ ^ (n * kOdd);
    for (; n > 8; n -= 8, p += 8) h = multiply_fold(h ^ load<uint64_t>(p), seed_ ^ kOdd);
    uint64_t tail = 0;
    if (n >= 4) {
      tail = static_cast<uint64_t>(load<uint32_t>(p)) << 32 | load<uint32_t>(p + n - 4);
    } else if (n > 0) {
      const auto byte = [&](size_t i) { return static_cast<uint64_t>(static_cast<unsigned char>(p[i])); };
      tail = byte(0) << 16 | byte(n / 2) << 8 | byte(n - 1);
    }
    return multiply_fold(h ^ tail, seed_ ^ kOdd);
  }
  static uint32_t tag(uint64_t h) { return static_cast<uint32_t>(h >> 32); }

  Slot* probe(std::string_view piece) {
    const uint64_t h = hash(piece);
    size_t i = h & mask_;
    while (slots_[i].id >= 0) {
      if (slots_[i].tag == tag(h)) {
        const auto id = static_cast<size_t>(slots_[i].id);
        if (std::string_view(text_).substr(begin_[id], begin_[id + 1] - begin_[id]) == piece) break;
      }
      i = (i + 1) & mask_;
    }
    return &slots_[i];
  }

  const std::string& text_;
  const std::vector<uint32_t>& begin_;
  std::vector<Slot> slots_;
  uint64_t mask_ = 0;
  uint64_t seed_ = 0;
};

// ---- which characters stand side by side in some piece ----

// The character at the start of text as its bytes; a byte that begins none stands alone.
struct Character {
  uint32_t bytes;
  uint32_t size;
};
Character first_character(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return {lead, 1};
  const int length = utf8_length(text);
  Character c{lead, 1};
  for (; static_cast<int>(c.size) < length; ++c.size) {
    c.bytes = c.bytes << 8 | static_cast<unsigned char>(text[c.size]);
  }
  return c;
}

// One-sided: may claim a pair that is not there, which only makes the parts longer.
class PairFilter {
 public:
  void insert(uint32_t left, uint32_t right) { word(left, right) |= bit(left, right); }
  bool may_hold(uint32_t left, uint32_t right) const {
    return (const_cast<PairFilter*>(this)->word(left, right) & bit(left, right)) != 0;
  }

 private:
  static constexpr int kLogBits = 21;
  static uint64_t index(uint32_t left, uint32_t right) {
    return ((static_cast<uint64_t>(left) << 32 | right) * 0x9E3779B97F4A7C15u) >> (64 - kLogBits);
  }
  uint64_t& word(uint32_t left, uint32_t right) { return words_[index(left, right) / 64]; }
  static uint64_t bit(uint32_t left, uint32_t right) { return uint64_t{1} << (index(left, right) % 64); }
  std::vector<uint64_t> words_ = std::vector<uint64_t>((size_t{1} << kLogBits) / 64);
};

// ---- marked tokens ----

class MarkedTrie {
 public:
  void insert(std::string_view text, TokenId id, bool for_user) {
    int32_t at = -1;
    for (const char c : text) at = add_child(at, static_cast<unsigned char>(c));
    Node& node = nodes_[static_cast<size_t>(at)];
    if (node.id < 0 || (for_user && !node.for_user)) {
      node.id = id;
      node.for_user = for_user;
    }
  }

  bool may_begin(char c) const { return root_[static_cast<unsigned char>(c)] >= 0; }

  // The longest marked token at the start of text; *size its bytes. -1: none.
  TokenId longest(std::string_view text, Trust trust, size_t* size) const {
    TokenId found = -1;
    int32_t at = root_[static_cast<unsigned char>(text[0])];
    for (size_t i = 0; at >= 0;) {
      const Node& node = nodes_[static_cast<size_t>(at)];
      if (node.byte != static_cast<unsigned char>(text[i])) {
        at = node.sibling;
        continue;
      }
      ++i;
      if (node.id >= 0 && (node.for_user || trust == Trust::kTemplate)) {
        found = node.id;
        *size = i;
      }
      if (i == text.size()) break;
      at = node.child;
    }
    return found;
  }

 private:
  struct Node {
    unsigned char byte;
    bool for_user;
    TokenId id;
    int32_t child;
    int32_t sibling;
  };

  int32_t add_child(int32_t parent, unsigned char byte) {
    int32_t& first = parent < 0 ? root_[byte] : nodes_[static_cast<size_t>(parent)].child;
    for (int32_t at = first; at >= 0; at = nodes_[static_cast<size_t>(at)].sibling) {
      if (nodes_[static_cast<size_t>(at)].byte == byte) return at;
    }
    const auto added = static_cast<int32_t>(nodes_.size());
    const int32_t sibling = std::exchange(first, added);
    nodes_.push_back(Node{byte, false, -1, -1, sibling});
    return added;
  }

  std::array<int32_t, 256> root_ = [] {
    std::array<int32_t, 256> none;
    none.fill(-1);
    return none;
  }();
  std::vector<Node> nodes_;
};

// ---- what a token is for ----

enum class Role : uint8_t {
  kSilent,   // no text: empty, unused
  kPiece,    // made by merging
  kMatched,  // found in all text
  kMarker,   // found in template text only
  kByte,
};

bool is_unused_name(std::string_view piece) {
  if (!piece.starts_with("<unused") || !piece.ends_with(">") || piece.size() < 9) return false;
  piece = piece.substr(7, piece.size() - 8);
  return std::all_of(piece.begin(), piece.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// By name first: files disagree on the types of these.
Role role_of(const Vocabulary& vocabulary, size_t id) {
  constexpr std::string_view kMarkers[] = {"<pad>",          "<eos>",
                                           "<bos>",          "<unk>",
                                           "<mask>",         "<start_of_turn>",
                                           "<end_of_turn>",  "<start_of_image>",
                                           "<end_of_image>", "<image_soft_token>"};
  const std::string_view piece = vocabulary.pieces[id];
  const TokenKind kind = vocabulary.kinds[id];
  if (piece.empty() || kind == TokenKind::kUnused) return Role::kSilent;
  if (kind == TokenKind::kByte) return Role::kByte;
  if (std::find(std::begin(kMarkers), std::end(kMarkers), piece) != std::end(kMarkers) || is_unused_name(piece)) {
    return Role::kMarker;
  }
  if (kind == TokenKind::kControl || kind == TokenKind::kUnknown) {
    // In Gemma <s> and </s> are HTML (strike-through); llama.cpp turns </s> into a control token.
    const auto signed_id = static_cast<TokenId>(id);
    const bool is_html =
        (piece == "<s>" || piece == "</s>") && signed_id != vocabulary.bos && signed_id != vocabulary.eos;
    return is_html ? Role::kMatched : Role::kMarker;
  }
  return kind == TokenKind::kUserDefined ? Role::kMatched : Role::kPiece;
}

// "<0x41>" -> 0x41; -1 for anything else.
int parse_byte_piece(std::string_view piece) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
  };
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return -1;
  const int high = digit(piece[3]);
  const int low = digit(piece[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    const int length = utf8_length(text);
    if (length <= 0) return false;
    text.remove_prefix(static_cast<size_t>(length));
  }
  return true;
}

// Appends text with U+2581 as blank.
void append_blank_form(std::string_view text, std::string* out) {
  for (size_t at; (at = text.find(kMetaspace)) != std::string_view::npos; text.remove_prefix(at + kMetaspace.size())) {
    out->append(text.substr(0, at));
    out->push_back(' ');
  }
  out->append(text);
}

// Scores as integers whose ascending order is the order of merging: best score first. No score maps to kNoMerge.
constexpr uint32_t kNoMerge = std::numeric_limits<uint32_t>::max();
uint32_t merge_rank(float score) {
  const auto bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 is 0
  return (bits & 0x80000000u) != 0 ? bits : ~(bits | 0x80000000u);
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(const Vocabulary& vocabulary);

  std::string text;             // all pieces in blank form, byte tokens as their byte
  std::vector<uint32_t> begin;  // [n_vocab + 1] offsets into text
  std::vector<Role> roles;
  std::vector<uint32_t> ranks;
  std::array<TokenId, 256> byte_ids;
  TokenId unk = -1;
  SpecialIds special;
  TokenId file_eos = -1;
  bool add_bos = true;
  PieceTable pieces;
  PairFilter pairs;
  MarkedTrie marked;
  size_t longest_piece = 0;

  std::string_view piece(TokenId id) const {
    const auto i = static_cast<size_t>(id);
    return std::string_view(text).substr(begin[i], begin[i + 1] - begin[i]);
  }

  // One call of encode.
  struct Encoding {
    struct Symbol {
      uint32_t begin;           // into the part
      uint32_t previous, next;  // symbols
      TokenId id;               // -1: a character that is no piece
      TokenId merged;           // together with the next symbol; -1: no piece
    };
    const Impl& vocab;
    std::vector<TokenId>* out;
    std::vector<Symbol> symbols;
    std::vector<uint64_t> heap;

    TokenId merge(std::string_view part, size_t from, size_t to) const {
      return to - from > vocab.longest_piece ? -1 : vocab.pieces.find(part.substr(from, to - from));
    }
    uint32_t rank(TokenId id) const { return id < 0 ? kNoMerge : vocab.ranks[static_cast<size_t>(id)]; }

    void encode_plain(std::string_view text);
    void encode_part(std::string_view part, size_t n_characters);
    void encode_short_part(std::string_view part);
    void encode_long_part(std::string_view part, size_t n_characters);
    void emit(TokenId id, std::string_view characters);
  };
};

namespace {
// Up to here a linear search for the best pair beats a heap.
constexpr size_t kShortPart = 24;
}  // namespace

Tokenizer::Impl::Impl(const Vocabulary& v) : begin(v.pieces.size() + 1), pieces(text, begin) {
  const size_t n = v.pieces.size();
  if (n == 0) bad_vocab("no tokens");
  if (v.scores.size() != n || v.kinds.size() != n) {
    bad_vocab("expected " + std::to_string(n) + " scores and types, found " + std::to_string(v.scores.size()) +
              " and " + std::to_string(v.kinds.size()));
  }
  if (n > static_cast<size_t>(std::numeric_limits<TokenId>::max())) bad_vocab("too many tokens");
  for (const TokenId id : {v.bos, v.eos, v.unk, v.pad}) {
    if (id < -1 || id >= static_cast<TokenId>(n)) {
      bad_vocab("special token id " + std::to_string(id) + " is outside of 0.." + std::to_string(n - 1));
    }
  }

  size_t n_bytes = 0;
  for (const std::string_view p : v.pieces) n_bytes += p.size();
  if (n_bytes > std::numeric_limits<uint32_t>::max()) bad_vocab("more than 4 GiB of text");
  text.reserve(n_bytes);
  roles.resize(n);
  ranks.resize(n, kNoMerge);
  byte_ids.fill(-1);
  unk = v.unk;
  size_t marked_bytes = 0;

  for (size_t i = 0; i < n; ++i) {
    const auto id = static_cast<TokenId>(i);
    const std::string_view stored = v.pieces[i];
    const Role role = role_of(v, i);
    roles[i] = role;
    begin[i] = static_cast<uint32_t>(text.size());
    begin[i + 1] = begin[i];
    if (role == Role::kByte) {
      const int byte = parse_byte_piece(stored);
      if (byte < 0) bad_vocab(describe(id, stored) + " is typed as a byte but not spelled <0x00> to <0xFF>");
      text.push_back(static_cast<char>(byte));
      begin[i + 1] = static_cast<uint32_t>(text.size());
      TokenId& known = byte_ids[static_cast<size_t>(byte)];
      if (known < 0) known = id;
      continue;
    }
    if (stored.size() > kMaxPieceBytes)
      bad_vocab(describe(id, stored) + " is longer than " + std::to_string(kMaxPieceBytes));
    if (!is_valid_utf8(stored)) bad_vocab(describe(id, stored) + " is not valid UTF-8");
    append_blank_form(stored, &text);
    begin[i + 1] = static_cast<uint32_t>(text.size());
    const std::string_view blank = piece(id);
    if (unk < 0 && v.kinds[i] == TokenKind::kUnknown) unk = id;

    if (role == Role::kPiece) {
      if (std::isnan(v.scores[i])) bad_vocab(describe(id, stored) + " has no score (NaN)");
      ranks[i] = merge_rank(v.scores[i]);
      pieces.insert(blank, id);
      longest_piece = std::max(longest_piece, blank.size());
      Character left = first_character(blank);
      for (size_t at = left.size; at < blank.size();) {
        const Character right = first_character(blank.substr(at));
        pairs.insert(left.bytes, right.bytes);
        left = right;
        at += right.size;
      }
    } else if (role == Role::kMatched || role == Role::kMarker) {
      marked_bytes += blank.size();
      if (marked_bytes > kMaxMarkedBytes) bad_vocab("more than 1 MiB of control and user-defined tokens");
      marked.insert(blank, id, role == Role::kMatched);
    }
  }
  const bool has_all_bytes = std::find(byte_ids.begin(), byte_ids.end(), -1) == byte_ids.end();
  if (!has_all_bytes && unk < 0) bad_vocab("neither byte tokens for all 256 bytes nor an unknown token");

  const auto by_name = [&](std::string_view name) {
    for (size_t i = 0; i < n; ++i) {
      if (v.pieces[i] == name) return static_cast<TokenId>(i);
    }
    return TokenId{-1};
  };
  special = {by_name("<bos>"),
             by_name("<eos>"),
             by_name("<start_of_turn>"),
             by_name("<end_of_turn>"),
             by_name("<start_of_image>"),
             by_name("<end_of_image>"),
             by_name("<image_soft_token>")};
  if (special.bos < 0) special.bos = v.bos;
  file_eos = v.eos;
  if (special.eos < 0) {
    special.eos = v.eos;
  } else if (v.eos >= 0 && v.pieces[static_cast<size_t>(v.eos)] == "</s>") {
    file_eos = special.eos;  // HTML again, not an end
  }
  add_bos = v.add_bos;
}

void Tokenizer::Impl::Encoding::emit(TokenId id, std::string_view characters) {
  if (id >= 0) {
    out->push_back(id);
    return;
  }
  const size_t before = out->size();
  for (const char c : characters) {
    const TokenId byte_id = vocab.byte_ids[static_cast<unsigned char>(c)];
    if (byte_id < 0) {
      out->resize(before);
      out->push_back(vocab.unk);
      return;
    }
    out->push_back(byte_id);
  }
}

// Text without marked tokens.
void Tokenizer::Impl::Encoding::encode_plain(std::string_view plain) {
  while (!plain.empty()) {
    Character left = first_character(plain);
    size_t size = left.size;
    size_t n_characters = 1;
    while (size < plain.size()) {
      const Character right = first_character(plain.substr(size));
      if (!vocab.pairs.may_hold(left.bytes, right.bytes)) break;
      left = right;
      size += right.size;
      ++n_characters;
    }
    encode_part(plain.substr(0, size), n_characters);
    plain.remove_prefix(size);
  }
}

void Tokenizer::Impl::Encoding::encode_part(std::string_view part, size_t n_characters) {
  if (n_characters <= kShortPart) {
    encode_short_part(part);
  } else {
    encode_long_part(part, n_characters);
  }
}

void Tokenizer::Impl::Encoding::encode_short_part(std::string_view part) {
  size_t start[kShortPart + 1];
  TokenId id[kShortPart];
  TokenId merged[kShortPart];  // of i and i + 1
  uint32_t rank_of[kShortPart];
  size_t n = 0;
  for (size_t at = 0; at < part.size(); ++n) {
    start[n] = at;
    at += first_character(part.substr(at)).size;
    id[n] = merge(part, start[n], at);
  }
  start[n] = part.size();
  const auto look = [&](size_t i) {
    merged[i] = merge(part, start[i], start[i + 2]);
    rank_of[i] = rank(merged[i]);
  };
  for (size_t i = 0; i + 1 < n; ++i) look(i);
  while (n > 1) {
    const size_t best = static_cast<size_t>(std::min_element(rank_of, rank_of + (n - 1)) - rank_of);
    if (rank_of[best] == kNoMerge) break;
    id[best] = merged[best];
    --n;
    for (size_t i = best + 1; i < n; ++i) {
      start[i] = start[i + 1];
      id[i] = id[i + 1];
      merged[i - 1] = merged[i];
      rank_of[i - 1] = rank_of[i];
    }
    start[n] = part.size();
    if (best > 0) look(best - 1);
    if (best + 1 < n) look(best);
  }
  for (size_t i = 0; i < n; ++i) emit(id[i], part.substr(start[i], start[i + 1] - start[i]));
}

// Symbols in a linked list, pairs in a heap of (rank, left symbol). A heap entry counts only while its symbol's pair
// still has that rank, so pairs that are gone need not be removed.
void Tokenizer::Impl::Encoding::encode_long_part(std::string_view part, size_t n_characters) {
  constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
  if (part.size() >= kNone) throw Error(ErrorCode::kInvalidArgument, "TEXT_LIMIT", "text: 4 GiB without a word's end");
  symbols.clear();
  symbols.reserve(n_characters);
  for (size_t at = 0; at < part.size();) {
    const size_t size = first_character(part.substr(at)).size;
    const auto i = static_cast<uint32_t>(symbols.size());
    symbols.push_back({static_cast<uint32_t>(at), i - 1, i + 1, merge(part, at, at + size), -1});
    at += size;
  }
  symbols.back().next = kNone;  // and the first has previous = 0 - 1 = kNone

  const auto end_of = [&](const Symbol& s) { return s.next == kNone ? part.size() : symbols[s.next].begin; };
  const auto look = [&](uint32_t i) {
    Symbol& s = symbols[i];
    s.merged = s.next == kNone ? -1 : merge(part, s.begin, end_of(symbols[s.next]));
    return static_cast<uint64_t>(rank(s.merged)) << 32 | i;
  };
  heap.clear();
  for (uint32_t i = 0; i + 1 < symbols.size(); ++i) {
    const uint64_t entry = look(i);
    if (symbols[i].merged >= 0) heap.push_back(entry);
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto push = [&](uint32_t i) {
    const uint64_t entry = look(i);
    if (symbols[i].merged < 0) return;
    heap.push_back(entry);
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    const uint64_t entry = heap.front();
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    heap.pop_back();
    const auto left = static_cast<uint32_t>(entry);
    Symbol& s = symbols[left];
    if (s.merged < 0 || rank(s.merged) != entry >> 32) continue;
    Symbol& right = symbols[s.next];
    s.id = s.merged;
    s.next = right.next;
    right.merged = -1;
    if (s.next != kNone) symbols[s.next].previous = left;
    push(left);
    if (s.previous != kNone) push(s.previous);
  }
  for (uint32_t i = 0; i != kNone; i = symbols[i].next) {
    emit(symbols[i].id, part.substr(symbols[i].begin, end_of(symbols[i]) - symbols[i].begin));
  }
}

Tokenizer::Tokenizer(const Vocabulary& vocabulary) : impl_(std::make_unique<const Impl>(vocabulary)) {}
Tokenizer::~Tokenizer() = default;

int Tokenizer::n_vocab() const {
  return static_cast<int>(impl_->roles.size());
}
const SpecialIds& Tokenizer::special() const {
  return impl_->special;
}
bool Tokenizer::add_bos() const {
  return impl_->add_bos;
}

void Tokenizer::encode(std::string_view text, Trust trust, std::vector<TokenId>* out) const {
  std::string blank_form;
  if (text.find(kMetaspace) != std::string_view::npos) {
    blank_form.reserve(text.size());
    append_blank_form(text, &blank_form);
    text = blank_form;
  }
  Impl::Encoding encoding{*impl_, out, {}, {}};
  size_t plain = 0;
  for (size_t at = 0; at < text.size();) {
    size_t size = 0;
    const TokenId id = impl_->marked.may_begin(text[at]) ? impl_->marked.longest(text.substr(at), trust, &size) : -1;
    if (id < 0) {
      ++at;
      continue;
    }
    encoding.encode_plain(text.substr(plain, at - plain));
    out->push_back(id);
    at += size;
    plain = at;
  }
  encoding.encode_plain(text.substr(plain));
}

std::string_view Tokenizer::token_bytes(TokenId id, bool special) const {
  return special || !is_control(id) ? impl_->piece(id) : std::string_view();
}

bool Tokenizer::is_end(TokenId id) const {
  return id >= 0 && (id == impl_->special.eos || id == impl_->file_eos || id == impl_->special.end_of_turn);
}

bool Tokenizer::is_control(TokenId id) const {
  const Role role = impl_->roles[static_cast<size_t>(id)];
  return role == Role::kMarker || role == Role::kSilent;
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool special) const {
  std::string out;
  std::string run;  // of byte tokens
  const auto end_run = [&] {
    if (is_valid_utf8(run)) {
      out += run;
    } else {
      for (size_t i = 0; i < run.size(); ++i) out += kReplacementCharacter;
    }
    run.clear();
  };
  for (const TokenId id : ids) {
    if (id < 0 || id >= n_vocab()) {
      throw Error(ErrorCode::kInvalidArgument, "BAD_TOKEN",
                  "token id " + std::to_string(id) + " is outside of 0.." + std::to_string(n_vocab() - 1));
    }
    if (impl_->roles[static_cast<size_t>(id)] == Role::kByte) {
      run += impl_->piece(id);
    } else {
      end_run();
      out += token_bytes(id, special);
    }
  }
  end_run();
  return out;
}

}  // namespace gemma
