#include "model/cache.h"

#include <algorithm>

#include "base/error.h"

namespace gemma {
namespace {

// Pages are carved from slabs of about this size: few allocations, and memory grows in small steps.
constexpr size_t kSlabBytes = size_t{4} << 20;

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
    : backend_(backend), is_local_(config.is_local) {
  if (kv_type == KvType::kQ8_0 && config.head_dim % 32 != 0) {
    throw Error(ErrorCode::kInvalidArgument, "KV_TYPE",
                "kvCache q8_0: expected a head size divisible by 32, the model has " + std::to_string(config.head_dim));
  }
  const size_t row = kv_row_bytes(kv_type, config.head_dim);
  const size_t layer_bytes = 2 * static_cast<size_t>(config.n_kv_heads) * kPagePositions * row;
  for (const uint8_t local : config.is_local) {
    Group& group = groups_[static_cast<size_t>(local != 0 ? KvGroup::kLocal : KvGroup::kGlobal)];
    layouts_.push_back({kv_type, config.n_kv_heads, config.head_dim, row, group.page_bytes});
    group.page_bytes += layer_bytes;
  }
  for (Group& group : groups_)
    group.pages_per_slab = std::max<size_t>(1, group.page_bytes == 0 ? 1 : kSlabBytes / group.page_bytes);
}

std::byte* KvPool::take(KvGroup which) {
  Group& group = groups_[static_cast<size_t>(which)];
  if (group.free.empty()) {
    group.slabs.push_back(backend_.allocate(group.page_bytes * group.pages_per_slab));
    group.free.reserve(group.slabs.size() * group.pages_per_slab);  // so that give_back never allocates
    for (size_t i = group.pages_per_slab; i-- > 0;)
      group.free.push_back(group.slabs.back()->data() + i * group.page_bytes);
  }
  std::byte* page = group.free.back();
  group.free.pop_back();
  ++group.in_use;
  backend_.fill_zero(page, group.page_bytes);
  return page;
}

std::byte* KvPool::share(std::byte* page) {
  ++n_sharers_[page];
  return page;
}

std::byte* KvPool::copy(KvGroup which, const std::byte* page) {
  std::byte* target = take(which);
  // A page as one row of floats: whatever the format, only bits move.
  const int32_t row = 0;
  backend_.gather_rows(reinterpret_cast<float*>(target), reinterpret_cast<const float*>(page), &row, 1,
                       static_cast<int>(page_bytes(which) / sizeof(float)));
  return target;
}

void KvPool::give_back(KvGroup which, std::byte* page) {
  if (const auto shared = n_sharers_.find(page); shared != n_sharers_.end()) {
    if (--shared->second == 0) n_sharers_.erase(shared);
    return;
  }
  Group& group = groups_[static_cast<size_t>(which)];
  group.free.push_back(page);
  if (--group.in_use == 0) {  // an idle model holds no cache
    group.free.clear();
    group.slabs.clear();
  }
}

size_t KvPool::bytes_resident() const {
  size_t bytes = 0;
  for (const Group& group : groups_) bytes += group.slabs.size() * group.pages_per_slab * group.page_bytes;
  return bytes;
}

KvSequence::~KvSequence() {
  for (const KvGroup group : {KvGroup::kLocal, KvGroup::kGlobal}) {
    for (std::byte* page : pages_[static_cast<size_t>(group)]) {
      if (page != nullptr) pool_.give_back(group, page);
    }
  }
}

size_t KvSequence::first_seen_page(KvGroup group, int position) const {
  return group == KvGroup::kGlobal ? 0 : static_cast<size_t>(std::max(0, position - n_window_ + 1)) / kPagePositions;
}

void KvSequence::reserve(int begin, int end) {
  const size_t n = static_cast<size_t>((end + kPagePositions - 1) / kPagePositions);
  for (const KvGroup group : {KvGroup::kLocal, KvGroup::kGlobal}) {
    std::vector<std::byte*>& pages = pages_[static_cast<size_t>(group)];
    if (pages.size() < n) pages.resize(n, nullptr);
    if (pool_.page_bytes(group) == 0) continue;
    const size_t first = first_seen_page(group, begin);
    for (size_t i = first; i < n; ++i) {
      if (pages[i] == nullptr) pages[i] = pool_.take(group);
    }
  }
}

void KvSequence::trim(int next) {
  std::vector<std::byte*>& pages = pages_[static_cast<size_t>(KvGroup::kLocal)];
  const size_t first = std::min(pages.size(), first_seen_page(KvGroup::kLocal, next));
  for (; first_local_ < first; ++first_local_) {
    if (pages[first_local_] == nullptr) continue;
    pool_.give_back(KvGroup::kLocal, pages[first_local_]);
    pages[first_local_] = nullptr;
  }
}

void KvSequence::rollback(int end) {
  const size_t n = static_cast<size_t>((end + kPagePositions - 1) / kPagePositions);
  for (const KvGroup group : {KvGroup::kLocal, KvGroup::kGlobal}) {
    std::vector<std::byte*>& pages = pages_[static_cast<size_t>(group)];
    for (; pages.size() > n; pages.pop_back()) {
      if (pages.back() != nullptr) pool_.give_back(group, pages.back());
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
  for (const KvGroup group : {KvGroup::kLocal, KvGroup::kGlobal}) {
    const std::vector<std::byte*>& from = pages_[static_cast<size_t>(group)];
    std::vector<std::byte*>& to = forked->pages_[static_cast<size_t>(group)];
    to.resize(n_all, nullptr);
    if (pool_.page_bytes(group) == 0) continue;
    for (size_t i = first_seen_page(group, n); i < n_all; ++i)
      to[i] = i < n_full ? pool_.share(from[i]) : pool_.copy(group, from[i]);
  }
  return forked;
}

size_t KvSequence::n_pages(KvGroup group) const {
  const std::vector<std::byte*>& pages = pages_[static_cast<size_t>(group)];
  return static_cast<size_t>(
      std::count_if(pages.begin(), pages.end(), [](const std::byte* page) { return page != nullptr; }));
}

}  // namespace gemma
