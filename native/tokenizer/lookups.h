// The three structures in which encoding looks up text: pieces by their text, pairs of characters that are adjacent in
// some piece, and marked tokens by how they begin. Built once by vocabulary_index.cpp, then read from any thread.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/prefetch.h"
#include "base/utf8.h"
#include "tokenizer/tokenizer.h"

#ifdef _MSC_VER
#include <intrin.h>
#endif

namespace gemma {

inline uint64_t multiply_fold(uint64_t a, uint64_t b) {
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

// Pieces by their text: a hash set of views into one text. The seed is random, so that nobody can make a file whose pieces collide. It does
// not affect results, because every hit is compared byte by byte.
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

  // Where the piece is to be inserted soon.
  void prefetch(std::string_view piece) const { prefetch_line(&slots_[hash(piece) & mask_]); }

  TokenId find(std::string_view piece) const { return const_cast<PieceTable*>(this)->probe(piece)->id; }

 private:
  struct Slot {
    uint32_t tag;
    TokenId id;
  };

  template <typename T>
  static T load(const char* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }

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

// The bytes of the character at the start of text. A byte that begins no character is returned alone.
struct Character {
  uint32_t bytes;
  uint32_t size;
};
inline Character first_character(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return {lead, 1};
  const int length = utf8_length(text);
  Character c{lead, 1};
  for (; static_cast<int>(c.size) < length; ++c.size) {
    c.bytes = c.bytes << 8 | static_cast<unsigned char>(text[c.size]);
  }
  return c;
}

// Pairs of characters that are adjacent in some piece. False positives are possible: a pair that is in no piece only makes the parts longer.
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

// Marked tokens, by the bytes that they begin with.
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

  // The longest marked token at the start of text, or -1. *size is its number of bytes.
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

}  // namespace gemma
