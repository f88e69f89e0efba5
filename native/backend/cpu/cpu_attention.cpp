#include "backend/cpu/cpu_attention.h"

#include <algorithm>
#include <limits>

#include "backend/cpu/small_math.h"

namespace gemma::cpu {
namespace {

// With this many tiles for every thread, none of them waits long for the last.
constexpr size_t kTilesPerThread = 4;
// Partial results are not worth more memory than this.
constexpr size_t kMaxPartialBytes = size_t{32} << 20;

size_t padded(int head_dim) {
  return round_up(static_cast<size_t>(head_dim), 16);
}

size_t partial_row_floats(int head_dim) {
  return padded(head_dim) + 2;
}

}  // namespace

// Partial results are kept where there are few tiles, of as many rows as these have at most.
size_t CpuAttention::max_partial_bytes(const Kernels& kernels, int n_threads, const WorkLimits& limits) {
  const size_t tile_rows = static_cast<size_t>(kernels.bulk_attention != nullptr ? kBulkAttentionRows : kAttentionRows);
  const size_t n_rows = std::min((kTilesPerThread * static_cast<size_t>(n_threads) - 1) * tile_rows,
                                 static_cast<size_t>(limits.n_rows) * static_cast<size_t>(limits.n_heads));
  const size_t n_segments = round_up(static_cast<size_t>(limits.n_ctx), kSegment) / kSegment;
  return std::min(kMaxPartialBytes, n_rows * n_segments * partial_row_floats(limits.head_dim) * sizeof(float));
}

CpuAttention::Partial CpuAttention::partial_at(float* memory, size_t n_rows, int head_dim) {
  float* max = memory + n_rows * padded(head_dim);
  return {memory, max, max + n_rows};
}

CpuAttention::Partial CpuAttention::partial_of(float* partials, const Tile& tile, int segment, int head_dim) {
  const size_t row = tile.first_partial_row + static_cast<size_t>(segment) * tile.n_rows();
  return partial_at(partials + row * partial_row_floats(head_dim), tile.n_rows(), head_dim);
}

void CpuAttention::run(float* out, const float* q, const KvLayout& layout, std::span<const BatchSequence> sequences,
                       const RowSpan* spans, int n_heads, Bulk bulk) {
  const Task task{out, q, &layout, spans, n_heads};
  plan(task, sequences, bulk);
  size_t n_partial_rows = 0;
  for (Tile& tile : tiles_) {
    tile.first_partial_row = n_partial_rows;
    n_partial_rows += static_cast<size_t>(tile.n_segments) * tile.n_rows();
  }
  const size_t partial_bytes = n_partial_rows * partial_row_floats(layout.head_dim) * sizeof(float);
  // Enough tiles for all threads: each goes through its span in one piece.
  if (tiles_.size() >= kTilesPerThread * static_cast<size_t>(pool_.n_threads()) || partial_bytes > kMaxPartialBytes) {
    pool_.parallel_for(static_cast<int>(tiles_.size()), [&](int chunk, int thread) {
      attend_tile(task, tiles_[static_cast<size_t>(chunk)], scratch_[static_cast<size_t>(thread)]);
    });
    return;
  }
  // Else their segments go to different threads and are merged afterwards, in the same order.
  int n_units = 0;
  for (Tile& tile : tiles_) {
    tile.first_unit = n_units;
    n_units += tile.n_segments;
  }
  float* partials = reinterpret_cast<float*>(partials_.reserve(partial_bytes));
  pool_.parallel_for(n_units, [&](int unit, int thread) {
    size_t i = tiles_.size() - 1;
    while (tiles_[i].first_unit > unit) --i;
    const Tile& tile = tiles_[i];
    const int segment = unit - tile.first_unit;
    attend_segment(task, tile, tile.first_segment + segment, partial_of(partials, tile, segment, layout.head_dim),
                   scratch_[static_cast<size_t>(thread)]);
  });
  for (const Tile& tile : tiles_) {
    const Partial total = partial_of(partials, tile, 0, layout.head_dim);
    for (int s = 1; s < tile.n_segments; ++s)
      merge(tile, layout.head_dim, total, partial_of(partials, tile, s, layout.head_dim));
    write_rows(task, tile, total);
  }
}

void CpuAttention::plan(const Task& task, std::span<const BatchSequence> sequences, Bulk bulk) {
  const KvLayout& layout = *task.layout;
  const int group = task.n_heads / layout.n_kv_heads;
  const bool has_bulk =
      kernels_.bulk_attention != nullptr && layout.type != KvType::kF32 && layout.head_dim <= kMaxBulkHeadDim;
  const int first_bulk = sequences.back().first_row + sequences.back().n_rows - bulk.n_rows;
  tiles_.clear();
  for (const BatchSequence& sequence : sequences) {
    const bool is_bulk = has_bulk && sequence.first_row >= first_bulk;
    const int tile_rows = is_bulk ? kBulkAttentionRows : kAttentionRows;
    const int heads_per_tile = std::min(group, tile_rows);
    const int tokens_per_tile = std::max(1, tile_rows / group);
    for (int t = 0; t < sequence.n_rows; t += tokens_per_tile) {
      Tile tile;
      tile.is_bulk = is_bulk;
      tile.pages = sequence.pages;
      tile.first_row = sequence.first_row + t;
      tile.n_tokens = std::min(tokens_per_tile, sequence.n_rows - t);
      int begin = std::numeric_limits<int>::max();
      int end = 0;
      for (int i = 0; i < tile.n_tokens; ++i) {
        begin = std::min(begin, task.spans[tile.first_row + i].begin);
        end = std::max(end, task.spans[tile.first_row + i].end);
      }
      tile.first_segment = begin / kSegment;
      tile.n_segments = (end - 1) / kSegment - tile.first_segment + 1;
      for (int h = 0; h < layout.n_kv_heads; ++h) {
        tile.kv_head = h;
        for (int g = 0; g < group; g += heads_per_tile) {
          tile.first_head = h * group + g;
          tile.n_heads = std::min(heads_per_tile, group - g);
          tiles_.push_back(tile);
        }
      }
    }
  }
}

void CpuAttention::attend_tile(const Task& task, const Tile& tile, const Scratch& scratch) const {
  const int head_dim = task.layout->head_dim;
  const size_t floats = round_up(tile.n_rows() * partial_row_floats(head_dim), 16);
  float* memory = reinterpret_cast<float*>(scratch.data);
  const Partial total = partial_at(memory, tile.n_rows(), head_dim);
  const Partial partial = partial_at(memory + floats, tile.n_rows(), head_dim);
  const size_t used = 2 * floats * sizeof(float);
  const Scratch rest{scratch.data + used, scratch.bytes - used};
  attend_segment(task, tile, tile.first_segment, total, rest);
  for (int s = 1; s < tile.n_segments; ++s) {
    attend_segment(task, tile, tile.first_segment + s, partial, rest);
    merge(tile, head_dim, total, partial);
  }
  write_rows(task, tile, total);
}

void CpuAttention::attend_segment(const Task& task, const Tile& tile, int segment, const Partial& partial,
                                  const Scratch& scratch) const {
  const int head_dim = task.layout->head_dim;
  constexpr int kMostRows = std::max(kAttentionRows, kBulkAttentionRows);
  const float* q[kMostRows];
  float* out[kMostRows];
  RowSpan spans[kMostRows];
  const int q_dim = task.n_heads * head_dim;
  int n = 0;
  for (int t = 0; t < tile.n_tokens; ++t) {
    RowSpan span = task.spans[tile.first_row + t];
    span.begin = std::max(span.begin, segment * kSegment);
    span.end = std::max(span.begin, std::min(span.end, (segment + 1) * kSegment));
    for (int h = 0; h < tile.n_heads; ++h, ++n) {
      q[n] = row_of(row_of(task.q, tile.first_row + t, q_dim), tile.first_head + h, head_dim);
      out[n] = partial.rows + static_cast<size_t>(n) * padded(head_dim);
      spans[n] = span;
    }
  }
  AttentionTile rows;
  const KvLayout& layout = *task.layout;
  const size_t head_offset = static_cast<size_t>(tile.kv_head) * kPagePositions * layout.row_bytes;
  rows.type = layout.type;
  rows.head_dim = head_dim;
  rows.row_bytes = layout.row_bytes;
  rows.pages = tile.pages;
  rows.k_offset = layout.layer_offset + head_offset;
  rows.v_offset = layout.v_offset() + head_offset;
  rows.n_rows = n;
  rows.q = q;
  rows.out = out;
  rows.spans = spans;
  rows.max = partial.max;
  rows.sum = partial.sum;
  (tile.is_bulk ? kernels_.bulk_attention : kernels_.attention)(rows, scratch);
}

void CpuAttention::merge(const Tile& tile, int head_dim, const Partial& total, const Partial& partial) const {
  for (size_t r = 0; r < tile.n_rows(); ++r) {
    // The row's span does not reach this segment.
    if (partial.max[r] == -std::numeric_limits<float>::infinity()) continue;
    const size_t offset = r * padded(head_dim);
    kernels_.merge_segments(total.rows + offset, total.max + r, total.sum + r, partial.rows + offset, partial.max[r],
                            partial.sum[r], head_dim);
  }
}

void CpuAttention::write_rows(const Task& task, const Tile& tile, const Partial& total) {
  const int head_dim = task.layout->head_dim;
  const int q_dim = task.n_heads * head_dim;
  const float* acc = total.rows;
  const float* sum = total.sum;
  for (int t = 0; t < tile.n_tokens; ++t) {
    for (int h = 0; h < tile.n_heads; ++h, acc += padded(head_dim), ++sum) {
      float* out = row_of(row_of(task.out, tile.first_row + t, q_dim), tile.first_head + h, head_dim);
      const float inverse = 1.0f / *sum;
      for (int j = 0; j < head_dim; ++j) out[j] = acc[j] * inverse;
    }
  }
}

}  // namespace gemma::cpu
