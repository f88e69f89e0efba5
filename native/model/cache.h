// The paged key/value cache. One pool serves all sequences of a model; positions come in pages of 32. Layers of one
// window share pages (window_groups in config.h): pages of local layers are given back once the window has passed them,
// those of global layers stay.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/stage.h"

namespace gemma {

// How the pages of a group lie on a stage: both the pool and the memory plan go by it.
struct KvGroupPages {
  size_t page_bytes = 0;      // of all layers of the group on the stage; 0: there are none
  size_t pages_per_slab = 1;  // pages come in slabs
  size_t max_pages = 0;       // of a sequence, of an encoder's step; 0: any number
};
// Pages of a group that the texts of a step which makes embeddings may take: short ones leave most of theirs empty. A
// step has room for any single text.
inline size_t max_text_pages(int max_batch) {
  return 2 * (static_cast<size_t>(max_batch) / kPagePositions + 1);
}

// Of each of window_groups(), for layers first_layer .. end_layer - 1; their places in the pages are appended to
// layouts. An encoder's keys and values are needed while a layer is computed: its layers lie in the same place. Throws
// Error{kInvalidArgument, KV_TYPE} when the type does not fit the model.
std::vector<KvGroupPages> kv_pages(const ModelConfig& config, const ModelLimits& limits, int first_layer, int end_layer,
                                   std::vector<KvLayout>* layouts);

// Owns the memory of all pages. Used by the engine thread only. A group is one of window_groups().
class KvPool {
 public:
  // Throws Error{kInvalidArgument} when kv_type does not fit the model (q8_0 needs a head_dim divisible by 32).
  // A page of a group has a part on each stage's backend, with the layers of the group that the stage has.
  KvPool(std::span<const Stage> stages, const ModelConfig& config, const ModelLimits& limits);
  // All layers on one backend, sequences of any length.
  KvPool(Backend& backend, const ModelConfig& config, KvType kv_type);

  // Zeroed memory for kPagePositions positions of all layers of the group on a stage. Throws Error{kOutOfMemory}.
  std::byte* take(size_t group, size_t stage = 0);
  // A page that another sequence holds too, to be read only; each gives it back.
  std::byte* share(std::byte* page);
  // A page like this one.
  std::byte* copy(size_t group, const std::byte* page, size_t stage = 0);
  void give_back(size_t group, std::byte* page, size_t stage = 0);

  // Copies of a page's bytes on the host and back.
  void download(size_t group, size_t stage, const std::byte* page, std::byte* to) const;
  void upload(size_t group, size_t stage, std::byte* page, const std::byte* from);

  // Where a layer's rows are within the pages of its group.
  const KvLayout& layout(int layer) const { return layouts_[static_cast<size_t>(layer)]; }
  size_t stage(int layer) const { return stage_of_layer_[static_cast<size_t>(layer)]; }
  int n_layers() const { return static_cast<int>(layouts_.size()); }
  size_t group(int layer) const { return layer_groups_.of_layer[static_cast<size_t>(layer)]; }
  size_t n_groups() const { return windows_.size(); }
  int window(size_t group) const { return windows_[group]; }  // positions that are seen; 0: all
  // The first page of the group that a position sees.
  size_t first_seen_page(size_t group, int position) const;
  size_t page_bytes(size_t group, size_t stage = 0) const { return groups_[index(group, stage)].pages.page_bytes; }
  size_t n_stages() const { return groups_.size() / n_groups(); }
  size_t pages_in_use() const;  // parts on different stages count apart
  size_t bytes_resident() const;

 private:
  struct Slab {
    std::unique_ptr<Buffer> buffer;
    std::vector<std::byte*> free;
  };
  struct Group {
    Backend* backend = nullptr;
    KvGroupPages pages;
    size_t in_use = 0;
    std::map<const std::byte*, Slab> slabs;  // by where they begin
    size_t n_empty_slabs = 0;                // nobody uses a page of these
  };
  size_t index(size_t group, size_t stage) const { return n_groups() * stage + group; }
  LayerGroups layer_groups_;
  std::vector<int> windows_;  // [n_groups]
  std::vector<KvLayout> layouts_;
  std::vector<size_t> stage_of_layer_;
  std::vector<Group> groups_;                            // by index()
  std::unordered_map<const std::byte*, int> n_sharers_;  // of pages with more than one holder, those beside the first
};

// The pages of one sequence.
class KvSequence {
 public:
  explicit KvSequence(KvPool& pool)
      : pool_(pool), pages_(pool.n_groups() * pool.n_stages()), first_held_(pool.n_groups()) {}
  ~KvSequence();
  KvSequence(const KvSequence&) = delete;
  KvSequence& operator=(const KvSequence&) = delete;

  // Takes the pages that positions begin..end-1 are written to and read from: all below end, in a group with a window
  // those from begin - window + 1 on. Pages that fail to come leave the sequence as it was, longer at most.
  void reserve(int begin, int end);
  // Gives back pages that no position from next on can see. After it positions below next cannot be rolled back.
  void trim(int next);
  // Forgets the positions from end on, and gives back the pages that hold no other. reserve(end, ...) is to follow.
  void rollback(int end);

  // The least position that a sequence can go on from, if it was written up to there: pages of local layers may be gone.
  int first_fork() const;
  bool can_fork(int n) const { return n >= first_fork(); }
  // A sequence of the same first n positions that can be forked from first on; can_fork(first), first <= n. Full pages
  // are shared, which nobody writes to any more. Throws Error{kOutOfMemory}.
  std::unique_ptr<KvSequence> fork(int n, int first) const;
  std::unique_ptr<KvSequence> fork(int n) const { return fork(n, n); }

  const std::byte* const* pages(size_t group, size_t stage = 0) const { return of(group, stage).data(); }
  size_t n_pages(size_t group, size_t stage = 0) const;
  // The pages that are held, one after the other.
  std::span<std::byte* const> page_list(size_t group, size_t stage = 0) const { return of(group, stage); }

 private:
  using Pages = std::vector<std::byte*>;  // by position / kPagePositions; null where given back
  size_t first_seen_page(size_t group, int position) const { return pool_.first_seen_page(group, position); }
  Pages& of(size_t group, size_t stage) { return pages_[pool_.n_groups() * stage + group]; }
  const Pages& of(size_t group, size_t stage) const { return pages_[pool_.n_groups() * stage + group]; }

  KvPool& pool_;
  std::vector<Pages> pages_;
  std::vector<size_t> first_held_;  // [n_groups]: pages below are given back
};

}  // namespace gemma
