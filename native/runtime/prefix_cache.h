// Keys and values of finished requests, for later prompts that begin alike: the second question about a picture does
// not read it again. A sequence is kept whole where it ended, and as it stood after the last image of its prompt, where
// the next question parts from it. Pages are shared between what is kept and who goes on from it. What a position's
// keys and values are does not depend on how it was computed, so results are the same to the bit. Used by the engine
// thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <vector>

#include "model/cache.h"
#include "runtime/prompt.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

class PrefixCache {
 public:
  // max_bytes: of pages and embeddings that are kept; 0: nothing is.
  PrefixCache(KvPool& pool, int model_dim, uint64_t max_bytes)
      : pool_(pool), model_dim_(model_dim), max_bytes_(max_bytes) {}

  // Keeps the first n positions of a sequence, of these tokens (kImageToken in images) and images. What was used
  // longest ago goes when there is too much.
  void keep(std::unique_ptr<KvSequence> kv, std::span<const TokenId> tokens, PromptImages images);

  struct Match {
    std::unique_ptr<KvSequence> kv;
    int n = 0;  // positions it holds; 0 and no kv when nothing fits
  };
  // A sequence to go on from with tokens[n], the longest there is. Not all of the tokens, because the last one's logits
  // are wanted, and not a part of an image. Throws Error{kOutOfMemory}.
  Match find(std::span<const TokenId> tokens, const PromptImages& images);

  bool empty() const { return entries_.empty(); }
  size_t size() const { return entries_.size(); }
  void clear() { entries_.clear(); }

 private:
  struct Entry {
    std::unique_ptr<KvSequence> kv;
    std::vector<TokenId> tokens;
    PromptImages images;
  };
  int n_rows(const PromptImage& image) const { return static_cast<int>(image.embedding.size()) / model_dim_; }
  int common_prefix(const Entry& entry, std::span<const TokenId> tokens, const PromptImages& images) const;
  uint64_t bytes() const;

  KvPool& pool_;
  int model_dim_;
  uint64_t max_bytes_;
  std::list<Entry> entries_;  // the latest used last
};

}  // namespace gemma
