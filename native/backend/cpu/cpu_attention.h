// Attention over the paged cache on the thread pool. A batch is cut into tiles: rows of one sequence whose query heads
// read the same head of keys and values. A tile's span is cut into segments of kSegment positions, whose partial results
// are merged in order, whichever threads computed them.
#pragma once

#include <span>
#include <vector>

#include "backend/cpu/kernels.h"
#include "backend/workspace.h"
#include "base/thread_pool.h"

namespace gemma::cpu {

class CpuAttention {
 public:
  // scratch: one for each thread of the pool.
  CpuAttention(Backend& backend, const Kernels& kernels, ThreadPool& pool, const std::vector<Scratch>& scratch)
      : kernels_(kernels), pool_(pool), scratch_(scratch), partials_(backend) {}

  // What run takes at most.
  static size_t max_partial_bytes(const Kernels& kernels, int n_threads, const WorkLimits& limits);
  void take(size_t partial_bytes) { partials_.take(partial_bytes); }

  // As Backend::attention.
  void run(float* out, const float* q, const KvLayout& layout, std::span<const BatchSequence> sequences,
           const RowSpan* spans, int n_heads, Bulk bulk);

 private:
  // What a call of run works on.
  struct Task {
    float* out;
    const float* q;
    const KvLayout* layout;
    const RowSpan* spans;
    int n_heads;
  };
  struct Tile {
    const std::byte* const* pages = nullptr;
    bool is_bulk = false;
    int first_row = 0;
    int n_tokens = 0;
    int kv_head = 0;
    int first_head = 0;
    int n_heads = 0;
    int first_segment = 0;
    int n_segments = 0;
    int first_unit = 0;            // a unit is a segment of a tile
    size_t first_partial_row = 0;  // of the tile's first segment, where segments go to different threads
    size_t n_rows() const { return static_cast<size_t>(n_tokens) * static_cast<size_t>(n_heads); }
  };
  // What a tile has gathered from one segment or more: per row head_dim floats (padded to 16), a maximum and a sum.
  struct Partial {
    float* rows;
    float* max;
    float* sum;
  };

  static Partial partial_at(float* memory, size_t n_rows, int head_dim);
  static Partial partial_of(float* partials, const Tile& tile, int segment, int head_dim);

  // Fills tiles_.
  void plan(const Task& task, std::span<const BatchSequence> sequences, Bulk bulk);
  void attend_tile(const Task& task, const Tile& tile, const Scratch& scratch) const;
  void attend_segment(const Task& task, const Tile& tile, int segment, const Partial& partial,
                      const Scratch& scratch) const;
  // total += partial.
  void merge(const Tile& tile, int head_dim, const Partial& total, const Partial& partial) const;
  static void write_rows(const Task& task, const Tile& tile, const Partial& total);

  const Kernels& kernels_;
  ThreadPool& pool_;
  const std::vector<Scratch>& scratch_;
  Workspace partials_;
  std::vector<Tile> tiles_;
};

}  // namespace gemma::cpu
