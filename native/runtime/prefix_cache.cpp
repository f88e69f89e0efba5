#include "runtime/prefix_cache.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "base/hash.h"

namespace gemma {
namespace {

// More than that are not kept.
constexpr size_t kMaxEntries = 4096;

bool same_embedding(const PromptImage& a, const PromptImage& b) {
  return a.embedding.size() == b.embedding.size() &&
         std::memcmp(a.embedding.data(), b.embedding.data(), a.embedding.size() * sizeof(float)) == 0;
}

}  // namespace

void hash_blocks(std::span<const TokenId> tokens, const std::vector<PromptImage>& images, std::vector<uint64_t>* hashes,
                 uint64_t seed) {
  constexpr size_t kBlock = kPagePositions;
  auto image = std::lower_bound(
      images.begin(), images.end(), hashes->size() * kBlock,
      [](const PromptImage& entry, size_t position) { return static_cast<size_t>(entry.first) < position; });
  hashes->reserve(tokens.size() / kBlock);
  for (size_t end = (hashes->size() + 1) * kBlock; end <= tokens.size(); end += kBlock) {
    uint64_t hash =
        hash_bytes(hashes->empty() ? seed : hashes->back(), std::as_bytes(tokens.subspan(end - kBlock, kBlock)));
    for (; image != images.end() && static_cast<size_t>(image->first) < end; ++image) {
      hash = hash_bytes(hash_value(hash, image->first), std::as_bytes(std::span(image->embedding)));
    }
    hashes->push_back(hash);
  }
}

int common_by_hashes(std::span<const uint64_t> a_hashes, std::span<const TokenId> a, std::span<const uint64_t> b_hashes,
                     std::span<const TokenId> b) {
  // Each hash stands for all before it: after the first that differs none is equal.
  size_t n = 0;
  for (size_t end = std::min(a_hashes.size(), b_hashes.size()); n < end;) {
    const size_t middle = n + (end - n) / 2;
    if (a_hashes[middle] == b_hashes[middle]) {
      n = middle + 1;
    } else {
      end = middle;
    }
  }
  n *= kPagePositions;
  while (n < a.size() && n < b.size() && a[n] == b[n]) ++n;
  return static_cast<int>(n);
}

int PrefixCache::common_prefix(const Entry& entry, std::span<const TokenId> tokens, const PromptImages& images,
                               const AdapterKey& adapters) const {
  if (entry.text->adapters != adapters) return 0;
  const std::vector<TokenId>& own = entry.text->tokens;
  const size_t n_most = std::min(static_cast<size_t>(entry.n), tokens.size());
  int n = static_cast<int>(
      std::mismatch(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n_most), own.begin()).first -
      tokens.begin());
  // Runs of images look all alike: both must have the same ones there, whole.
  const PromptImages& own_images = entry.text->images;
  for (size_t i = 0;; ++i) {
    const PromptImage* a = i < own_images->size() ? &(*own_images)[i] : nullptr;
    const PromptImage* b = i < images->size() ? &(*images)[i] : nullptr;
    if ((a == nullptr || a->first >= n) && (b == nullptr || b->first >= n)) return n;
    if (a != nullptr && b != nullptr && a->first == b->first && a->first + n_rows(*a) <= n &&
        (own_images == images || same_embedding(*a, *b))) {
      continue;
    }
    if (a != nullptr) n = std::min(n, a->first);
    if (b != nullptr) n = std::min(n, b->first);
  }
}

template <class F>
void PrefixCache::each_part(const Entry& entry, const F& f) const {
  for (size_t stage = 0; stage < pool_.n_stages(); ++stage) {
    for (size_t group = 0; group < pool_.n_groups(); ++group) {
      for (const std::byte* page : entry.kv->page_list(group, stage)) {
        if (page != nullptr) f(page, pool_.page_bytes(group, stage));
      }
    }
  }
  const PrefixText& text = *entry.text;
  f(&text, text.tokens.size() * sizeof(TokenId) + text.hashes.size() * sizeof(uint64_t));
  uint64_t bytes = 0;
  for (const PromptImage& image : *text.images) bytes += image.embedding.size() * sizeof(float);
  f(text.images.get(), bytes);
}

PrefixCache::Match PrefixCache::find(std::span<const TokenId> tokens, const PromptImages& images,
                                     std::span<const uint64_t> hashes, const AdapterKey& adapters) {
  Match match;
  if (entries_.empty()) return match;
  auto best = entries_.end();
  // What is found behind a block is longer than anything that is found before it.
  for (size_t i = std::min(hashes.size(), tokens.size() / kPagePositions); i-- > 0 && best == entries_.end();) {
    const auto [begin, end] = by_block_.equal_range(hashes[i]);
    for (auto at = begin; at != end; ++at) {
      const int n = common_prefix(*at->second, tokens, images, adapters);
      if (n >= kLeast && n > match.n && at->second->kv->can_fork(n)) best = at->second, match.n = n;
    }
  }
  if (best != entries_.end()) {
    match.kv = best->kv->fork(match.n);
    entries_.splice(entries_.end(), entries_, best);
  }
  size_t n_known = static_cast<size_t>(match.n / kPagePositions);
  while (n_known < hashes.size() && known_.contains(hashes[n_known])) ++n_known;
  match.n_known = static_cast<int>(n_known) * kPagePositions;
  return match;
}

size_t PrefixCache::first_block(const Entry& entry) {
  return static_cast<size_t>(std::max(entry.kv->first_fork(), kLeast) / kPagePositions) - 1;
}

bool PrefixCache::keep(std::unique_ptr<KvSequence> kv, int n, std::shared_ptr<const PrefixText> text) {
  if (max_bytes_ == 0 || n < kLeast) return false;
  Entries added;
  added.push_back({std::move(kv), n, std::move(text)});
  const Entry& entry = added.front();
  uint64_t bytes = 0;
  each_part(entry, [&](const void*, uint64_t part) { bytes += part; });
  if (bytes > max_bytes_) return false;  // others would go for nothing
  const int first = entry.kv->first_fork();
  // Another that holds as much is enough; others that hold no more go.
  const std::span<const TokenId> tokens = std::span(entry.text->tokens).first(static_cast<size_t>(n));
  for (size_t i = first_block(entry); i < end_block(entry);) {
    const auto [begin, end] = by_block_.equal_range(entry.text->hashes[i]);
    auto covered = end;
    for (auto at = begin; at != end && covered == end; ++at) {
      const Entry& other = *at->second;
      const int n_same = common_prefix(other, tokens, entry.text->images, entry.text->adapters);
      if (n_same == n && other.kv->first_fork() <= first) {
        entries_.splice(entries_.end(), entries_, at->second);
        return true;
      }
      if (n_same == other.n && first <= other.kv->first_fork()) covered = at;
    }
    if (covered == end) {
      ++i;
    } else {
      remove(covered->second);  // and looks again: the range is another one
    }
  }
  entries_.splice(entries_.end(), added);
  try {
    add(std::prev(entries_.end()));
  } catch (...) {
    clear();  // what was half added
    throw;
  }
  while (entries_.size() > kMaxEntries || bytes_ > max_bytes_) remove(entries_.begin());
  return true;
}

void PrefixCache::add(Entries::iterator entry) {
  const PrefixText& text = *entry->text;
  each_part(*entry, [&](const void* part, uint64_t bytes) {
    if (holders_[part]++ == 0) bytes_ += bytes;
  });
  if (holders_[&text] == 1) {
    for (const uint64_t hash : text.hashes) ++known_[hash];
  }
  for (size_t i = first_block(*entry); i < end_block(*entry); ++i) by_block_.emplace(text.hashes[i], entry);
}

void PrefixCache::remove(Entries::iterator entry) noexcept {
  const PrefixText& text = *entry->text;
  for (size_t i = first_block(*entry); i < end_block(*entry); ++i) {
    const auto [begin, end] = by_block_.equal_range(text.hashes[i]);
    by_block_.erase(std::find_if(begin, end, [&](const auto& at) { return at.second == entry; }));
  }
  if (holders_.find(&text)->second == 1) {
    for (const uint64_t hash : text.hashes) {
      const auto known = known_.find(hash);
      if (--known->second == 0) known_.erase(known);
    }
  }
  each_part(*entry, [&](const void* part, uint64_t bytes) {
    const auto holders = holders_.find(part);
    if (--holders->second > 0) return;
    holders_.erase(holders);
    bytes_ -= bytes;
  });
  entries_.erase(entry);
}

void PrefixCache::clear() noexcept {
  by_block_.clear();
  holders_.clear();
  known_.clear();
  entries_.clear();
  bytes_ = 0;
}

}  // namespace gemma
