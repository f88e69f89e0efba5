// Keys and values of finished and running requests, for later prompts that begin alike. What a position's keys and
// values are does not depend on how it was computed, so results are the same to the bit. Used by the engine thread only.
//
// An entry is a sequence with the positions from which it can be gone on from: a window of local layers before the
// first, all the others need no more than the last one. Pages are shared between entries and who goes on from them. An
// entry is found by the hashes of the blocks before it, and believed after its tokens and images were compared.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "model/adapter.h"
#include "model/cache.h"
#include "runtime/prompt.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

// Appends to hashes those of the full blocks of kPagePositions tokens that are missing. hashes[i] stands for all tokens
// of the blocks 0 .. i, with the embeddings of the images that begin there. seed: of what else keys and values depend on.
void hash_blocks(std::span<const TokenId> tokens, const std::vector<PromptImage>& images, std::vector<uint64_t>* hashes,
                 uint64_t seed = 0);
// How many positions two prompts have in common, by their hashes and, behind the last equal block, their tokens. May
// say too much where an image stands there, and by a chance of 2^-64.
int common_by_hashes(std::span<const uint64_t> a_hashes, std::span<const TokenId> a, std::span<const uint64_t> b_hashes,
                     std::span<const TokenId> b);

// Tokens, kImageToken in images, that entries have beginnings of.
struct PrefixText {
  std::vector<TokenId> tokens;
  PromptImages images;
  std::vector<uint64_t> hashes;  // of hash_blocks
  AdapterKey adapters;           // that keys and values were computed with
};

class PrefixCache {
 public:
  // Shorter beginnings are read as fast as found.
  static constexpr int kLeast = kPagePositions;

  // max_bytes: of what is kept: pages, embeddings, tokens. 0: nothing is.
  PrefixCache(KvPool& pool, int model_dim, uint64_t max_bytes)
      : pool_(pool), model_dim_(model_dim), max_bytes_(max_bytes) {}
  ~PrefixCache() { clear(); }
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  // Keeps a sequence of the first n positions of a text; nothing where another entry holds as much. What was used
  // longest ago goes when there is too much. False where it is too little, or too much. Throws std::bad_alloc; nothing is
  // kept then.
  bool keep(std::unique_ptr<KvSequence> kv, int n, std::shared_ptr<const PrefixText> text);

  struct Match {
    std::unique_ptr<KvSequence> kv;
    int n = 0;  // positions it holds; 0 and no kv when nothing fits
    // So many tokens, a multiple of kPagePositions, an earlier prompt had as well: where others will part, too.
    int n_known = 0;
  };
  // A sequence of the first n of the tokens, the longest there is that does not end within an image. hashes are of the
  // tokens, and may be of more that follow. Throws Error{kOutOfMemory}.
  Match find(std::span<const TokenId> tokens, const PromptImages& images, std::span<const uint64_t> hashes,
             const AdapterKey& adapters = {});

  bool on() const { return max_bytes_ > 0; }
  bool empty() const { return entries_.empty(); }
  size_t size() const { return entries_.size(); }
  uint64_t bytes() const { return bytes_; }
  void clear() noexcept;

 private:
  struct Entry {
    std::unique_ptr<KvSequence> kv;
    int n = 0;
    std::shared_ptr<const PrefixText> text;
  };
  using Entries = std::list<Entry>;
  int n_rows(const PromptImage& image) const { return static_cast<int>(image.embedding.size()) / model_dim_; }
  int common_prefix(const Entry& entry, std::span<const TokenId> tokens, const PromptImages& images,
                    const AdapterKey& adapters) const;
  // Calls f(where, bytes) for all that an entry holds.
  template <class F>
  void each_part(const Entry& entry, const F& f) const;
  // The full blocks behind which an entry may be gone on from: first .. end - 1.
  static size_t first_block(const Entry& entry);
  static size_t end_block(const Entry& entry) { return static_cast<size_t>(entry.n / kPagePositions); }
  void add(Entries::iterator entry);
  void remove(Entries::iterator entry) noexcept;

  KvPool& pool_;
  int model_dim_;
  uint64_t max_bytes_;
  uint64_t bytes_ = 0;
  Entries entries_;                                                // the latest used last
  std::unordered_multimap<uint64_t, Entries::iterator> by_block_;  // by the hash of each of an entry's blocks
  std::unordered_map<const void*, int> holders_;                   // of each part, entries
  std::unordered_map<uint64_t, int> known_;                        // blocks of all texts, each with the number of texts
};

}  // namespace gemma
