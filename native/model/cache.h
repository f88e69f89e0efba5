// The paged key/value cache. One pool serves all sequences of a model; positions come in pages of 32. Local layers and
// global layers have pages of their own, because local pages are given back once the window has passed them and global
// ones stay.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/stage.h"

namespace gemma {

enum class KvGroup { kLocal = 0, kGlobal = 1 };

// Owns the memory of all pages. Used by the engine thread only; the counters may be read through KvPoolStats snapshots.
class KvPool {
 public:
  // Throws Error{kInvalidArgument} when kv_type does not fit the model (q8_0 needs a head_dim divisible by 32).
  // A page of a group has a part on each stage's backend, with the layers of the group that the stage has.
  KvPool(std::span<const Stage> stages, const ModelConfig& config, KvType kv_type);
  // All layers on one backend.
  KvPool(Backend& backend, const ModelConfig& config, KvType kv_type);

  // Zeroed memory for kPagePositions positions of all layers of the group on a stage. Throws Error{kOutOfMemory}.
  std::byte* take(KvGroup group, size_t stage = 0);
  // A page that another sequence holds too, to be read only; each gives it back.
  std::byte* share(std::byte* page);
  // A page like this one.
  std::byte* copy(KvGroup group, const std::byte* page, size_t stage = 0);
  void give_back(KvGroup group, std::byte* page, size_t stage = 0);

  // Where a layer's rows are within the pages of its group.
  const KvLayout& layout(int layer) const { return layouts_[static_cast<size_t>(layer)]; }
  KvGroup group(int layer) const {
    return is_local_[static_cast<size_t>(layer)] != 0 ? KvGroup::kLocal : KvGroup::kGlobal;
  }
  size_t page_bytes(KvGroup group, size_t stage = 0) const { return groups_[index(group, stage)].page_bytes; }
  size_t n_stages() const { return groups_.size() / 2; }
  size_t pages_in_use() const;  // parts on different stages count apart
  size_t bytes_resident() const;

 private:
  struct Group {
    Backend* backend = nullptr;
    size_t page_bytes = 0;
    size_t pages_per_slab = 1;
    size_t in_use = 0;
    std::vector<std::unique_ptr<Buffer>> slabs;
    std::vector<std::byte*> free;
  };
  static size_t index(KvGroup group, size_t stage) { return 2 * stage + static_cast<size_t>(group); }
  std::vector<KvLayout> layouts_;
  std::vector<uint8_t> is_local_;
  std::vector<Group> groups_;                            // by index()
  std::unordered_map<const std::byte*, int> n_sharers_;  // of pages with more than one holder, those beside the first
};

// The pages of one sequence.
class KvSequence {
 public:
  KvSequence(KvPool& pool, int n_window) : pool_(pool), n_window_(n_window), pages_(2 * pool.n_stages()) {}
  ~KvSequence();
  KvSequence(const KvSequence&) = delete;
  KvSequence& operator=(const KvSequence&) = delete;

  // Takes the pages that positions begin..end-1 are written to and read from: all of the global group below end, and
  // those of the local group from begin - window + 1 on. Pages that fail to come leave the sequence as it was, longer
  // at most.
  void reserve(int begin, int end);
  // Gives back local pages that no position from next on can see. After it positions below next cannot be rolled back.
  void trim(int next);
  // Forgets the positions from end on, and gives back the pages that hold no other. reserve(end, ...) is to follow.
  void rollback(int end);

  // Whether a sequence can go on from position n, which has been written up to there: local pages may be gone.
  bool can_fork(int n) const;
  // A sequence of the same first n positions. Full pages are shared, which nobody writes to any more; can_fork(n).
  // Throws Error{kOutOfMemory}.
  std::unique_ptr<KvSequence> fork(int n) const;

  const std::byte* const* pages(KvGroup group, size_t stage = 0) const { return of(group, stage).data(); }
  size_t n_pages(KvGroup group, size_t stage = 0) const;
  // The pages that are held, one after the other.
  std::span<std::byte* const> page_list(KvGroup group, size_t stage = 0) const { return of(group, stage); }

 private:
  using Pages = std::vector<std::byte*>;  // by position / kPagePositions; null where given back
  size_t first_seen_page(KvGroup group, int position) const;
  Pages& of(KvGroup group, size_t stage) { return pages_[2 * stage + static_cast<size_t>(group)]; }
  const Pages& of(KvGroup group, size_t stage) const { return pages_[2 * stage + static_cast<size_t>(group)]; }

  KvPool& pool_;
  int n_window_;
  std::vector<Pages> pages_;
  size_t first_local_ = 0;  // local pages below are given back
};

}  // namespace gemma
