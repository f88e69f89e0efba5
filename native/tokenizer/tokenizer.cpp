// Encodes text in four steps. Each is linear in the text, except for the heap.
//   1. U+2581 becomes a space. Pieces are stored in the same form, so the two are one character everywhere.
//   2. Marked tokens (runs of newlines, spaces or tabs; tags; control strings in template text) are cut out. The
//      leftmost match wins, then the longest.
//   3. The rest is cut between any two characters that are adjacent in no piece. No merge can cross such a place, so
//      each part can be merged on its own. In English the parts are the words.
//   4. In each part, the adjacent pair whose concatenation is the piece with the best score is merged, the leftmost on
//      ties, until no pair is left. Characters that are no piece become byte tokens.
// One difference from SentencePiece is on purpose: pieces of type "unused" are never formed (Gemma has none).
#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "base/error.h"
#include "base/utf8.h"
#include "tokenizer/vocabulary_index.h"

namespace gemma {
namespace {

// Up to this length, a linear search for the best pair is faster than a heap.
constexpr size_t kShortPart = 24;

// Asks now and then whether work is to end.
class StopCheck {
 public:
  explicit StopCheck(const std::function<bool()>& should_stop) : should_stop_(should_stop) {}
  void tick() {
    if (++n_ % kTicks == 0 && should_stop_ && should_stop_()) {
      throw Error(ErrorCode::kDisposed, "CANCELLED", "cancelled");
    }
  }

 private:
  static constexpr unsigned kTicks = 1 << 14;
  const std::function<bool()>& should_stop_;
  unsigned n_ = 0;
};

// The state of one call of encode.
struct Encoding {
  struct Symbol {
    uint32_t begin;           // into the part
    uint32_t previous, next;  // symbols
    TokenId id;               // -1: a character that is no piece
    TokenId merged;           // together with the next symbol; -1: no piece
  };
  const VocabularyIndex& vocab;
  std::vector<TokenId>* out;
  std::vector<Symbol> symbols;
  std::vector<uint64_t> heap;
  StopCheck stop;

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

void Encoding::emit(TokenId id, std::string_view characters) {
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

// Encodes text without marked tokens.
void Encoding::encode_plain(std::string_view plain) {
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
      stop.tick();
    }
    encode_part(plain.substr(0, size), n_characters);
    plain.remove_prefix(size);
  }
}

void Encoding::encode_part(std::string_view part, size_t n_characters) {
  stop.tick();
  if (n_characters <= kShortPart) {
    encode_short_part(part);
  } else {
    encode_long_part(part, n_characters);
  }
}

void Encoding::encode_short_part(std::string_view part) {
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

// Symbols are in a linked list, pairs in a heap of (rank, left symbol). A heap entry is valid only while its symbol's
// pair still has that rank, so stale pairs need not be removed.
void Encoding::encode_long_part(std::string_view part, size_t n_characters) {
  constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
  if (part.size() >= kNone) throw Error(ErrorCode::kInvalidArgument, "TEXT_LIMIT", "text: 4 GiB without a word's end");
  symbols.clear();
  symbols.reserve(n_characters);
  for (size_t at = 0; at < part.size();) {
    const size_t size = first_character(part.substr(at)).size;
    const auto i = static_cast<uint32_t>(symbols.size());
    symbols.push_back({static_cast<uint32_t>(at), i - 1, i + 1, merge(part, at, at + size), -1});
    stop.tick();
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
    stop.tick();
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto push = [&](uint32_t i) {
    const uint64_t entry = look(i);
    if (symbols[i].merged < 0) return;
    heap.push_back(entry);
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    stop.tick();
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

}  // namespace

Tokenizer::Tokenizer(const Vocabulary& vocabulary) : index_(std::make_unique<const VocabularyIndex>(vocabulary)) {}
Tokenizer::~Tokenizer() = default;

int Tokenizer::n_vocab() const {
  return static_cast<int>(index_->roles.size());
}
const SpecialIds& Tokenizer::special() const {
  return index_->special;
}

size_t Tokenizer::longest_text() const {
  return index_->longest_text;
}

void Tokenizer::encode(std::string_view text, Trust trust, std::vector<TokenId>* out,
                       const std::function<bool()>& should_stop) const {
  std::string blank_form;
  if (text.find(kMetaspace) != std::string_view::npos) {
    blank_form.reserve(text.size());
    append_blank_form(text, &blank_form);
    text = blank_form;
  }
  Encoding encoding{*index_, out, {}, {}, StopCheck(should_stop)};
  size_t plain = 0;
  for (size_t at = 0; at < text.size();) {
    size_t size = 0;
    const TokenId id = index_->marked.may_begin(text[at]) ? index_->marked.longest(text.substr(at), trust, &size) : -1;
    encoding.stop.tick();
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
  return special || !is_control(id) ? index_->piece(id) : std::string_view();
}

std::span<const TokenId> Tokenizer::ends() const {
  return index_->ends;
}

bool Tokenizer::is_end(TokenId id) const {
  return std::binary_search(index_->ends.begin(), index_->ends.end(), id);
}

TokenId Tokenizer::find(std::string_view spelling) const {
  if (spelling.empty()) return -1;
  std::string blank_form;
  append_blank_form(spelling, &blank_form);
  size_t size = 0;
  const TokenId marked = index_->marked.longest(blank_form, Trust::kTemplate, &size);
  return marked >= 0 && size == blank_form.size() ? marked : index_->pieces.find(blank_form);
}

std::vector<TokenId> Tokenizer::markers() const {
  std::vector<TokenId> ids;
  for (TokenId id = 0; id < n_vocab(); ++id) {
    if (index_->roles[static_cast<size_t>(id)] == TokenRole::kMarker) ids.push_back(id);
  }
  return ids;
}

bool Tokenizer::is_control(TokenId id) const {
  const TokenRole role = index_->roles[static_cast<size_t>(id)];
  return role == TokenRole::kMarker || role == TokenRole::kSilent;
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool special,
                              const std::function<bool()>& should_stop) const {
  StopCheck stop(should_stop);
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
    stop.tick();
    if (id < 0 || id >= n_vocab()) {
      throw Error(ErrorCode::kInvalidArgument, "BAD_TOKEN",
                  "token id " + std::to_string(id) + " is outside of 0.." + std::to_string(n_vocab() - 1));
    }
    if (index_->roles[static_cast<size_t>(id)] == TokenRole::kByte) {
      run += index_->piece(id);
    } else {
      end_run();
      out += token_bytes(id, special);
    }
  }
  end_run();
  return out;
}

}  // namespace gemma
