#include "model/cache.h"

#include <algorithm>

#include "base/error.h"

namespace gemma {
namespace {

// Pages are carved from slabs of about this size: few allocations, and memory grows in small steps.
constexpr size_t kSlabBytes = size_t{4} << 20;

constexpr KvGroup kKvGroups[] = {KvGroup::kLocal, KvGroup::kGlobal};

size_t kv_row_bytes(KvType type, int head_dim) {
  switch (type) {
    case KvType::kF32: return static_cast<size_t>(head_dim) * 4;
    case KvType::kF16: return static_cast<size_t>(head_dim) * 2;
    case KvType::kQ8_0: return static_cast<size_t>(head_dim) / 32 * 34;
  }
  return 0;
}

}  // namespace

KvPool::KvPool(Backend& backend, const ModelConfig& config, KvType kv_type)
    : KvPool(std::vector<Stage>{{&backend, 0, config.n_layers}}, config, kv_type) {}

KvPool::KvPool(std::span<const Stage> stages, const ModelConfig& config, KvType kv_type)
    : is_local_(config.is_local), groups_(2 * stages.size()) {
  if (kv_type == KvType::kQ8_0 && config.head_dim % 32 != 0) {
    throw Error(ErrorCode::kInvalidArgument, "KV_TYPE",
                "kvCache q8_0: expected a head size divisible by 32, the model has " + std::to_string(config.head_dim));
  }
  const size_t row = kv_row_bytes(kv_type, config.head_dim);
  const size_t layer_bytes = 2 * static_cast<size_t>(config.n_kv_heads) * kPagePositions * row;
  for (size_t s = 0; s < stages.size(); ++s) {
    for (const KvGroup which : kKvGroups) groups_[index(which, s)].backend = stages[s].backend;
    for (int layer = stages[s].first_layer; layer < stages[s].end_layer; ++layer) {
      Group& group = groups_[index(this->group(layer), s)];
      layouts_.push_back({kv_type, config.n_kv_heads, config.head_dim, row, group.page_bytes});
      group.page_bytes += layer_bytes;
    }
  }
  for (Group& group : groups_)
    group.pages_per_slab = std::max<size_t>(1, group.page_bytes == 0 ? 1 : kSlabBytes / group.page_bytes);
}

std::byte* KvPool::take(KvGroup which, size_t stage) {
  Group& group = groups_[index(which, stage)];
  if (group.free.empty()) {
    group.slabs.push_back(group.backend->allocate(group.page_bytes * group.pages_per_slab));
    group.free.reserve(group.slabs.size() * group.pages_per_slab);  // so that give_back never allocates
    for (size_t i = group.pages_per_slab; i-- > 0;)
      group.free.push_back(group.slabs.back()->data() + i * group.page_bytes);
  }
  std::byte* page = group.free.back();
  group.free.pop_back();
  ++group.in_use;
  group.backend->fill_zero(page, group.page_bytes);
  return page;
}

std::byte* KvPool::share(std::byte* page) {
  ++n_sharers_[page];
  return page;
}

std::byte* KvPool::copy(KvGroup which, const std::byte* page, size_t stage) {
  std::byte* target = take(which, stage);
  // A page as one row of floats: whatever the format, only bits move.
  const int32_t row = 0;
  groups_[index(which, stage)].backend->gather_rows(reinterpret_cast<float*>(target),
                                                    reinterpret_cast<const float*>(page), &row, 1,
                                                    static_cast<int>(page_bytes(which, stage) / sizeof(float)));
  return target;
}

void KvPool::give_back(KvGroup which, std::byte* page, size_t stage) {
  if (const auto shared = n_sharers_.find(page); shared != n_sharers_.end()) {
    if (--shared->second == 0) n_sharers_.erase(shared);
    return;
  }
  Group& group = groups_[index(which, stage)];
  group.free.push_back(page);
  if (--group.in_use == 0) {  // an idle model holds no cache
    group.free.clear();
    group.slabs.clear();
  }
}

size_t KvPool::pages_in_use() const {
  size_t n = 0;
  for (const Group& group : groups_) n += group.in_use;
  return n;
}

size_t KvPool::bytes_resident() const {
  size_t bytes = 0;
  for (const Group& group : groups_) bytes += group.slabs.size() * group.pages_per_slab * group.page_bytes;
  return bytes;
}

KvSequence::~KvSequence() {
  for (size_t s = 0; s < pool_.n_stages(); ++s) {
    for (const KvGroup group : kKvGroups) {
      for (std::byte* page : of(group, s)) {
        if (page != nullptr) pool_.give_back(group, page, s);
      }
    }
  }
}

size_t KvSequence::first_seen_page(KvGroup group, int position) const {
  return group == KvGroup::kGlobal ? 0 : static_cast<size_t>(std::max(0, position - n_window_ + 1)) / kPagePositions;
}

void KvSequence::reserve(int begin, int end) {
  const size_t n = static_cast<size_t>((end + kPagePositions - 1) / kPagePositions);
  for (Pages& pages : pages_) {
    if (pages.size() < n) pages.resize(n, nullptr);
  }
  for (size_t s = 0; s < pool_.n_stages(); ++s) {
    for (const KvGroup group : kKvGroups) {
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
  const size_t first = std::min(of(KvGroup::kLocal, 0).size(), first_seen_page(KvGroup::kLocal, next));
  for (; first_local_ < first; ++first_local_) {
    for (size_t s = 0; s < pool_.n_stages(); ++s) {
      std::byte*& page = of(KvGroup::kLocal, s)[first_local_];
      if (page == nullptr) continue;
      pool_.give_back(KvGroup::kLocal, page, s);
      page = nullptr;
    }
  }
}

void KvSequence::rollback(int end) {
  const size_t n = static_cast<size_t>((end + kPagePositions - 1) / kPagePositions);
  for (size_t s = 0; s < pool_.n_stages(); ++s) {
    for (const KvGroup group : kKvGroups) {
      Pages& pages = of(group, s);
      for (; pages.size() > n; pages.pop_back()) {
        if (pages.back() != nullptr) pool_.give_back(group, pages.back(), s);
      }
    }
  }
  first_local_ = std::min(first_local_, n);
}

bool KvSequence::can_fork(int n) const {
  return first_local_ <= first_seen_page(KvGroup::kLocal, n);
}

std::unique_ptr<KvSequence> KvSequence::fork(int n) const {
  auto forked = std::make_unique<KvSequence>(pool_, n_window_);
  const size_t n_full = static_cast<size_t>(n / kPagePositions);
  const size_t n_all = static_cast<size_t>((n + kPagePositions - 1) / kPagePositions);
  forked->first_local_ = std::min(n_all, first_seen_page(KvGroup::kLocal, n));
  for (size_t s = 0; s < pool_.n_stages(); ++s) {
    for (const KvGroup group : kKvGroups) {
      const Pages& from = of(group, s);
      Pages& to = forked->of(group, s);
      to.resize(n_all, nullptr);
      if (pool_.page_bytes(group, s) == 0) continue;
      for (size_t i = first_seen_page(group, n); i < n_all; ++i)
        to[i] = i < n_full ? pool_.share(from[i]) : pool_.copy(group, from[i], s);
    }
  }
  return forked;
}

size_t KvSequence::n_pages(KvGroup group, size_t stage) const {
  const Pages& pages = of(group, stage);
  return static_cast<size_t>(
      std::count_if(pages.begin(), pages.end(), [](const std::byte* page) { return page != nullptr; }));
}

}  // namespace gemma
