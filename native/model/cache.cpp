#include "model/cache.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/error.h"

namespace gemma {
namespace {

// Pages are carved from slabs of about this size: few allocations, and memory grows in small steps.
constexpr size_t kSlabBytes = size_t{4} << 20;

size_t kv_row_bytes(KvType type, int head_dim) {
  switch (type) {
    case KvType::kF32: return static_cast<size_t>(head_dim) * 4;
    case KvType::kF16: return static_cast<size_t>(head_dim) * 2;
    case KvType::kQ8_0: return static_cast<size_t>(head_dim) / 32 * kKvBlockBytes;
  }
  return 0;
}

// A sequence holds what the rows of a step see, without a window all of its positions. A step may begin anywhere in a
// page.
size_t max_pages(int n_window, const ModelLimits& limits) {
  // Without a sum that would overflow: a context may be as large as an int.
  const int n_all = limits.n_ctx / kPagePositions + (limits.n_ctx % kPagePositions != 0 ? 1 : 0);
  if (n_window == 0) return static_cast<size_t>(n_all);
  const int n_seen = n_window - 1 + std::max(1, limits.max_batch);
  return static_cast<size_t>(std::min(n_all, (n_seen + kPagePositions - 2) / kPagePositions + 1));
}

}  // namespace

std::vector<KvGroupPages> kv_pages(const ModelConfig& config, const ModelLimits& limits, int first_layer, int end_layer,
                                   std::vector<KvLayout>* layouts) {
  const LayerGroups by_window = window_groups(config);
  std::vector<KvGroupPages> groups(by_window.size());
  for (int layer = first_layer; layer < end_layer; ++layer) {
    const LayerConfig& c = config.layers[static_cast<size_t>(layer)];
    if (limits.kv_type == KvType::kQ8_0 && c.head_dim % 32 != 0) {
      throw Error(ErrorCode::kInvalidArgument, "KV_TYPE",
                  "kvCache q8_0: expected a head size divisible by 32, the model has " + std::to_string(c.head_dim));
    }
    const size_t row = kv_row_bytes(limits.kv_type, c.head_dim);
    KvGroupPages& group = groups[by_window.of_layer[static_cast<size_t>(layer)]];
    const size_t layer_bytes = 2 * static_cast<size_t>(c.n_kv_heads) * kPagePositions * row;
    layouts->push_back({limits.kv_type, c.n_kv_heads, c.head_dim, row, config.is_encoder ? 0 : group.page_bytes});
    group.page_bytes = config.is_encoder ? std::max(group.page_bytes, layer_bytes) : group.page_bytes + layer_bytes;
  }
  for (size_t g = 0; g < groups.size(); ++g) {
    KvGroupPages& group = groups[g];
    if (group.page_bytes == 0) continue;
    group.max_pages = config.is_encoder ? max_text_pages(limits.max_batch)
                                        : max_pages(config.layers[by_window.first_layer[g]].n_window, limits);
    group.pages_per_slab = std::max<size_t>(1, kSlabBytes / group.page_bytes);
    if (limits.n_ctx > 0 || config.is_encoder) group.pages_per_slab = std::min(group.pages_per_slab, group.max_pages);
  }
  return groups;
}

KvPool::KvPool(Backend& backend, const ModelConfig& config, KvType kv_type)
    : KvPool(std::vector<Stage>{{&backend, 0, config.n_layers()}}, config, ModelLimits{.kv_type = kv_type}) {}

KvPool::KvPool(std::span<const Stage> stages, const ModelConfig& config, const ModelLimits& limits)
    : layer_groups_(window_groups(config)) {
  for (const size_t layer : layer_groups_.first_layer) windows_.push_back(config.layers[layer].n_window);
  for (const Stage& stage : stages) {
    stage_of_layer_.resize(static_cast<size_t>(stage.end_layer), static_cast<size_t>(&stage - stages.data()));
    for (const KvGroupPages& pages : kv_pages(config, limits, stage.first_layer, stage.end_layer, &layouts_)) {
      Group& group = groups_.emplace_back();
      group.backend = stage.backend;
      group.pages = pages;
    }
  }
}

// Pages come from the lowest slab that has one, so that the others become empty.
std::byte* KvPool::take(size_t which, size_t stage) {
  Group& group = groups_[index(which, stage)];
  auto slab = std::find_if(group.slabs.begin(), group.slabs.end(),
                           [](const auto& entry) { return !entry.second.free.empty(); });
  if (slab == group.slabs.end()) {
    const size_t n = group.pages.pages_per_slab;
    Slab added;
    added.free.reserve(n);  // so that give_back never allocates
    added.buffer = group.backend->allocate(group.pages.page_bytes * n);
    std::byte* data = added.buffer->data();
    for (size_t i = n; i-- > 0;) added.free.push_back(data + i * group.pages.page_bytes);
    slab = group.slabs.emplace(data, std::move(added)).first;
    ++group.n_empty_slabs;
  }
  std::vector<std::byte*>& free = slab->second.free;
  if (free.size() == group.pages.pages_per_slab) --group.n_empty_slabs;
  std::byte* page = free.back();
  free.pop_back();
  ++group.in_use;
  group.backend->fill_zero(page, group.pages.page_bytes);
  return page;
}

std::byte* KvPool::share(std::byte* page) {
  ++n_sharers_[page];
  return page;
}

std::byte* KvPool::copy(size_t which, const std::byte* page, size_t stage) {
  std::byte* target = take(which, stage);
  // A page as one row of floats: whatever the format, only bits move.
  const int32_t row = 0;
  groups_[index(which, stage)].backend->gather_rows(reinterpret_cast<float*>(target),
                                                    reinterpret_cast<const float*>(page), &row, 1,
                                                    static_cast<int>(page_bytes(which, stage) / sizeof(float)));
  return target;
}

void KvPool::give_back(size_t which, std::byte* page, size_t stage) {
  if (const auto shared = n_sharers_.find(page); shared != n_sharers_.end()) {
    if (--shared->second == 0) n_sharers_.erase(shared);
    return;
  }
  Group& group = groups_[index(which, stage)];
  const auto slab = std::prev(group.slabs.upper_bound(page));
  slab->second.free.push_back(page);
  if (--group.in_use == 0) {  // an idle model holds no cache
    group.slabs.clear();
    group.n_empty_slabs = 0;
  } else if (slab->second.free.size() == group.pages.pages_per_slab && group.n_empty_slabs++ > 0) {
    group.slabs.erase(slab);  // one stays for who takes a page next
    --group.n_empty_slabs;
  }
}

void KvPool::download(size_t group, size_t stage, const std::byte* page, std::byte* to) const {
  groups_[index(group, stage)].backend->download(to, page, page_bytes(group, stage));
}

void KvPool::upload(size_t group, size_t stage, std::byte* page, const std::byte* from) {
  groups_[index(group, stage)].backend->upload(page, from, page_bytes(group, stage));
}

size_t KvPool::pages_in_use() const {
  size_t n = 0;
  for (const Group& group : groups_) n += group.in_use;
  return n;
}

size_t KvPool::bytes_resident() const {
  size_t bytes = 0;
  for (const Group& group : groups_) bytes += group.slabs.size() * group.pages.pages_per_slab * group.pages.page_bytes;
  return bytes;
}

KvSequence::~KvSequence() {
  for (size_t s = 0; s < pool_.n_stages(); ++s) {
    for (size_t group = 0; group < pool_.n_groups(); ++group) {
      for (std::byte* page : of(group, s)) {
        if (page != nullptr) pool_.give_back(group, page, s);
      }
    }
  }
}

size_t KvPool::first_seen_page(size_t group, int position) const {
  const int n_window = window(group);
  return n_window == 0 ? 0 : static_cast<size_t>(std::max(0, position - n_window + 1)) / kPagePositions;
}

void KvSequence::reserve(int begin, int end) {
  const size_t n = static_cast<size_t>((end + kPagePositions - 1) / kPagePositions);
  for (Pages& pages : pages_) {
    if (pages.size() < n) pages.resize(n, nullptr);
  }
  for (size_t s = 0; s < pool_.n_stages(); ++s) {
    for (size_t group = 0; group < pool_.n_groups(); ++group) {
      Pages& pages = of(group, s);
      if (pool_.page_bytes(group, s) == 0) continue;
      const size_t first = first_seen_page(group, begin);
      for (size_t i = first; i < n; ++i) {
        if (pages[i] == nullptr) pages[i] = pool_.take(group, s);
      }
    }
  }
}

void KvSequence::trim(int next) {
  for (size_t group = 0; group < pool_.n_groups(); ++group) {
    const size_t first = std::min(of(group, 0).size(), first_seen_page(group, next));
    for (size_t& i = first_held_[group]; i < first; ++i) {
      for (size_t s = 0; s < pool_.n_stages(); ++s) {
        std::byte*& page = of(group, s)[i];
        if (page == nullptr) continue;
        pool_.give_back(group, page, s);
        page = nullptr;
      }
    }
  }
}

void KvSequence::rollback(int end) {
  const size_t n = static_cast<size_t>((end + kPagePositions - 1) / kPagePositions);
  for (size_t s = 0; s < pool_.n_stages(); ++s) {
    for (size_t group = 0; group < pool_.n_groups(); ++group) {
      Pages& pages = of(group, s);
      for (; pages.size() > n; pages.pop_back()) {
        if (pages.back() != nullptr) pool_.give_back(group, pages.back(), s);
      }
    }
  }
  for (size_t& first : first_held_) first = std::min(first, n);
}

int KvSequence::first_fork() const {
  int first = 0;
  for (size_t group = 0; group < pool_.n_groups(); ++group) {
    if (first_held_[group] == 0) continue;
    // The first position that sees nothing before the pages that are held.
    first = std::max(first, static_cast<int>(first_held_[group]) * kPagePositions + pool_.window(group) - 1);
  }
  return first;
}

std::unique_ptr<KvSequence> KvSequence::fork(int n, int first) const {
  auto forked = std::make_unique<KvSequence>(pool_);
  const size_t n_full = static_cast<size_t>(n / kPagePositions);
  const size_t n_all = static_cast<size_t>((n + kPagePositions - 1) / kPagePositions);
  for (size_t group = 0; group < pool_.n_groups(); ++group)
    forked->first_held_[group] = std::min(n_all, first_seen_page(group, first));
  for (size_t s = 0; s < pool_.n_stages(); ++s) {
    for (size_t group = 0; group < pool_.n_groups(); ++group) {
      const Pages& from = of(group, s);
      Pages& to = forked->of(group, s);
      to.resize(n_all, nullptr);
      if (pool_.page_bytes(group, s) == 0) continue;
      for (size_t i = first_seen_page(group, first); i < n_all; ++i)
        to[i] = i < n_full ? pool_.share(from[i]) : pool_.copy(group, from[i], s);
    }
  }
  return forked;
}

size_t KvSequence::n_pages(size_t group, size_t stage) const {
  const Pages& pages = of(group, stage);
  return static_cast<size_t>(
      std::count_if(pages.begin(), pages.end(), [](const std::byte* page) { return page != nullptr; }));
}

}  // namespace gemma
