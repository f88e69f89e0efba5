#include "runtime/prefix_cache.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>
#include <utility>

namespace gemma {
namespace {

// More than that are not looked through.
constexpr size_t kMaxEntries = 32;
// Shorter beginnings, which all chats share, are read as fast as found.
constexpr int kLeast = kPagePositions;

bool same_embedding(const PromptImage& a, const PromptImage& b) {
  return a.embedding.size() == b.embedding.size() &&
         std::memcmp(a.embedding.data(), b.embedding.data(), a.embedding.size() * sizeof(float)) == 0;
}

}  // namespace

int PrefixCache::common_prefix(const Entry& entry, std::span<const TokenId> tokens, const PromptImages& images) const {
  const size_t n_most = std::min(entry.tokens.size(), tokens.size() - 1);
  int n = static_cast<int>(
      std::mismatch(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n_most), entry.tokens.begin()).first -
      tokens.begin());
  // Runs of images look all alike: both must have the same ones there, whole.
  for (size_t i = 0;; ++i) {
    const PromptImage* a = i < entry.images->size() ? &(*entry.images)[i] : nullptr;
    const PromptImage* b = i < images->size() ? &(*images)[i] : nullptr;
    if ((a == nullptr || a->first >= n) && (b == nullptr || b->first >= n)) return n;
    if (a != nullptr && b != nullptr && a->first == b->first && a->first + n_rows(*a) <= n &&
        (entry.images == images || same_embedding(*a, *b))) {
      continue;
    }
    if (a != nullptr) n = std::min(n, a->first);
    if (b != nullptr) n = std::min(n, b->first);
  }
}

PrefixCache::Match PrefixCache::find(std::span<const TokenId> tokens, const PromptImages& images) {
  auto best = entries_.end();
  int n_best = kLeast - 1;
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    const int n = common_prefix(*entry, tokens, images);
    if (n > n_best && entry->kv->can_fork(n)) best = entry, n_best = n;
  }
  if (best == entries_.end()) return {};
  Match match{best->kv->fork(n_best), n_best};
  entries_.splice(entries_.end(), entries_, best);
  return match;
}

void PrefixCache::keep(std::unique_ptr<KvSequence> kv, std::span<const TokenId> tokens, PromptImages images) {
  if (max_bytes_ == 0 || tokens.size() < static_cast<size_t>(kLeast)) return;
  std::erase_if(entries_, [&](const Entry& entry) {
    return entry.tokens.size() == tokens.size() && std::equal(tokens.begin(), tokens.end(), entry.tokens.begin()) &&
           std::equal(images->begin(), images->end(), entry.images->begin(), entry.images->end(), same_embedding);
  });
  entries_.push_back({std::move(kv), {tokens.begin(), tokens.end()}, std::move(images)});
  while (!entries_.empty() && (entries_.size() > kMaxEntries || bytes() > max_bytes_)) entries_.pop_front();
}

// Pages of several sequences count once.
uint64_t PrefixCache::bytes() const {
  uint64_t sum = 0;
  std::unordered_set<const void*> seen;
  for (const Entry& entry : entries_) {
    for (size_t stage = 0; stage < pool_.n_stages(); ++stage) {
      for (size_t group = 0; group < pool_.n_groups(); ++group) {
        for (const std::byte* page : entry.kv->page_list(group, stage)) {
          if (page != nullptr && seen.insert(page).second) sum += pool_.page_bytes(group, stage);
        }
      }
    }
    if (!seen.insert(entry.images.get()).second) continue;
    for (const PromptImage& image : *entry.images) sum += image.embedding.size() * sizeof(float);
  }
  return sum;
}

}  // namespace gemma
