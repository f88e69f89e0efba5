// Attention. Over the paged cache: spans are cut into segments, each of which one warp goes through page by page with
// the running softmax of Milakov and Gimelshein (arXiv 1805.02867), and which attention_merge puts together in order;
// so a row's result depends on its span alone. In the vision encoder: every row sees all rows of its group, 32 at a
// time. A lane scores one position, then sums up its share of the head's dimensions over all positions.
#pragma once

#include "backend/gpu/vector.h"

namespace gemma::gpu::GPU_CHIP_NAMESPACE {

constexpr int kCacheF32 = 0;  // KvType
constexpr int kCacheF16 = 1;
constexpr int kPage = 32;  // positions: as many as lanes
constexpr int kQ8Bytes = 34;

// Value j of a row of the cache.
GPU_FUNCTION float cache_value(int type, const uint8_t* row, int j) {
  if (type == kCacheF32) return load(reinterpret_cast<const float*>(row) + j);
  if (type == kCacheF16) return half_to_float(load(reinterpret_cast<const uint16_t*>(row) + j));
  const uint8_t* block = row + j / 32 * kQ8Bytes;
  return load_half(block) * static_cast<float>(static_cast<int8_t>(load(block + 2 + j % 32)));
}

// q . k; q in shared memory.
GPU_FUNCTION float cache_dot(int type, const uint8_t* row, const float* q, int head_dim) {
  float sum = 0;
  if (type == kCacheF16 && head_dim % 8 == 0) {
    for (int j = 0; j < head_dim; j += 8) {
      const uint4 eight = load(reinterpret_cast<const uint4*>(row + 2 * j));
      const unsigned words[4] = {eight.x, eight.y, eight.z, eight.w};
      GPU_UNROLL
      for (int i = 0; i < 8; ++i)
        sum = fmaf(q[j + i], half_to_float(static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)))), sum);
    }
    return sum;
  }
  if (type == kCacheF32 || type == kCacheF16) {
    for (int j = 0; j < head_dim; ++j) sum = fmaf(q[j], cache_value(type, row, j), sum);
    return sum;
  }
  for (int b = 0; b < head_dim / 32; ++b) {
    const uint8_t* block = row + b * kQ8Bytes;
    float part = 0;
    for (int j = 0; j < 32; j += 2) {
      const int two = load(reinterpret_cast<const uint16_t*>(block + 2 + j));
      part = fmaf(q[32 * b + j], static_cast<float>(static_cast<int8_t>(two & 255)), part);
      part = fmaf(q[32 * b + j + 1], static_cast<float>(static_cast<int8_t>(two >> 8)), part);
    }
    sum = fmaf(part, load_half(block), sum);
  }
  return sum;
}

// A warp for the keys or the values of each head of each row.
GPU_KERNEL(store_kv)(const StoreKvArguments a) {
  const CacheLayout& layout = a.layout;
  const int lane = thread_index() % kLanes;
  const int item = block_x() * kWarps + thread_index() / kLanes;
  const int row = item / (2 * layout.n_kv_heads);
  if (row >= a.n) return;
  const int head = item / 2 % layout.n_kv_heads;
  const bool is_value = item % 2 != 0;
  const int position = a.positions[row];
  const size_t source =
      (static_cast<size_t>(row) * static_cast<size_t>(layout.n_kv_heads) + static_cast<size_t>(head)) *
      static_cast<size_t>(layout.head_dim);
  const float* x = (is_value ? a.v : a.k) + source;
  uint8_t* out = a.pages[row] + (is_value ? layout.v_offset : layout.k_offset) +
                 static_cast<size_t>(head * kPage + position % kPage) * layout.row_bytes;
  if (layout.type == kCacheF32) {
    for (int j = lane; j < layout.head_dim; j += kLanes) reinterpret_cast<float*>(out)[j] = x[j];
  } else if (layout.type == kCacheF16) {
    for (int j = lane; j < layout.head_dim; j += kLanes) reinterpret_cast<uint16_t*>(out)[j] = float_to_half(x[j]);
  } else {
    for (int b = lane; b < layout.head_dim / 32; b += kLanes) {
      float largest = 0;
      float not_finite = 0;
      for (int j = 0; j < 32; ++j) {
        largest = fmaxf(largest, fabsf(x[32 * b + j]));
        not_finite += x[32 * b + j] * 0.0f;
      }
      const bool finite = not_finite == 0.0f;
      // Quantised with the scale as stored, so that rounding it to half costs nothing twice.
      const uint16_t half = finite ? float_to_half(largest / 127.0f) : static_cast<uint16_t>(0x7e00);
      const float d = half_to_float(half);
      const float inverse = d > 0 ? 1.0f / d : 0.0f;
      uint8_t* block = out + b * kQ8Bytes;
      *reinterpret_cast<uint16_t*>(block) = half;
      for (int j = 0; j < 32; ++j) {
        const float code = finite ? fminf(fmaxf(rintf(x[32 * b + j] * inverse), -127.0f), 127.0f) : 0.0f;
        block[2 + j] = static_cast<uint8_t>(static_cast<int8_t>(code));
      }
    }
  }
}

GPU_KERNEL_WITH_REGISTERS(attention)(const AttentionArguments a) {
  constexpr int kDims = kMaxHeadDim / kLanes;
  GPU_SHARED(float, queries, [kWarps][kMaxHeadDim]);
  GPU_SHARED(float, weights, [kWarps][kPage]);
  const CacheLayout& layout = a.layout;
  const int lane = thread_index() % kLanes;
  const int warp = thread_index() / kLanes;
  const int group = a.n_heads / layout.n_kv_heads;
  const int n_pairs = a.n * group;
  const int kv_head = block_y();
  const int segment = a.first_segment + block_z();
  const int first_pair = block_x() * kWarps;
  const bool used = first_pair + warp < n_pairs;
  const int pair = used ? first_pair + warp : n_pairs - 1;
  const int row = pair / group;
  const size_t head =
      static_cast<size_t>(row) * static_cast<size_t>(a.n_heads) + static_cast<size_t>(kv_head * group + pair % group);
  const float* q = a.q + head * static_cast<size_t>(layout.head_dim);
  for (int j = lane; j < layout.head_dim; j += kLanes) queries[warp][j] = q[j];
  const RowView view = a.rows[row];
  const int segment_begin = segment * kAttentionSegment;
  const int begin = view.begin > segment_begin ? view.begin : segment_begin;
  const int end = view.end < segment_begin + kAttentionSegment ? view.end : segment_begin + kAttentionSegment;
  // The pages that any warp of the block needs: all go round together.
  int first_page = (segment_begin + kAttentionSegment) / kPage;
  int end_page = segment_begin / kPage;
  for (int w = 0; w < kWarps; ++w) {
    const RowView other = a.rows[(first_pair + w < n_pairs ? first_pair + w : n_pairs - 1) / group];
    const int other_begin = other.begin > segment_begin ? other.begin : segment_begin;
    const int other_end = other.end < segment_begin + kAttentionSegment ? other.end : segment_begin + kAttentionSegment;
    if (other_begin >= other_end) continue;
    first_page = other_begin / kPage < first_page ? other_begin / kPage : first_page;
    end_page = (other_end - 1) / kPage + 1 > end_page ? (other_end - 1) / kPage + 1 : end_page;
  }
  block_barrier();

  const size_t head_offset = static_cast<size_t>(kv_head) * kPage * layout.row_bytes;
  float largest = -INFINITY;
  float sum = 0;  // of this lane's positions
  float out[kDims] = {};
  for (int page = first_page; page < end_page; ++page) {
    const int position = page * kPage + lane;
    const bool seen = position >= begin && position < end;
    const uint8_t* memory = seen ? a.pages[view.first_page + static_cast<uint32_t>(page)] + head_offset : nullptr;
    float score = -INFINITY;
    if (seen)
      score = cache_dot(layout.type, memory + layout.k_offset + static_cast<size_t>(lane) * layout.row_bytes,
                        queries[warp], layout.head_dim);
    const float new_largest = larger(largest, warp_max(score));
    const bool any = new_largest != -INFINITY;  // else nothing was seen so far
    const float rescale = any ? expf(largest - new_largest) : 1.0f;
    const float weight = seen && any ? expf(score - new_largest) : 0.0f;
    largest = new_largest;
    sum = sum * rescale + weight;
    weights[warp][lane] = weight;
    warp_barrier();
    const int first = begin > page * kPage ? begin - page * kPage : 0;
    const int last = end < (page + 1) * kPage ? end - page * kPage : kPage;
    if (first < last) {
      const uint8_t* values = a.pages[view.first_page + static_cast<uint32_t>(page)] + head_offset + layout.v_offset;
      GPU_UNROLL
      for (int e = 0; e < kDims; ++e) out[e] *= rescale;
      for (int p = first; p < last; ++p) {
        const uint8_t* value = values + static_cast<size_t>(p) * layout.row_bytes;
        const float w = weights[warp][p];
        GPU_UNROLL
        for (int e = 0; e < kDims; ++e) {
          const int j = e * kLanes + lane;
          if (j < layout.head_dim) out[e] = fmaf(w, cache_value(layout.type, value, j), out[e]);
        }
      }
    }
    warp_barrier();
  }
  sum = warp_sum(sum);
  if (!used) return;
  const size_t n_heads_all = static_cast<size_t>(a.n) * static_cast<size_t>(a.n_heads);
  float* partial =
      a.partial + (static_cast<size_t>(block_z()) * n_heads_all + head) * static_cast<size_t>(layout.head_dim + 2);
  GPU_UNROLL
  for (int e = 0; e < kDims; ++e) {
    const int j = e * kLanes + lane;
    if (j < layout.head_dim) partial[j] = out[e];
  }
  if (lane == 0) {
    partial[layout.head_dim] = largest;
    partial[layout.head_dim + 1] = sum;
  }
}

// A warp for each head of each row.
GPU_KERNEL(attention_merge)(const AttentionMergeArguments a) {
  const int lane = thread_index() % kLanes;
  const int number = block_x() * kWarps + thread_index() / kLanes;
  const bool used = number < a.n * a.n_heads;
  const int item = used ? number : 0;
  const RowView view = a.rows[item / a.n_heads];
  const size_t stride = static_cast<size_t>(a.n) * static_cast<size_t>(a.n_heads) * static_cast<size_t>(a.head_dim + 2);
  const int first = view.begin / kAttentionSegment - a.first_segment;
  const int last = (view.end - 1) / kAttentionSegment - a.first_segment;
  const float* partial =
      a.partial + static_cast<size_t>(first) * stride + static_cast<size_t>(item) * static_cast<size_t>(a.head_dim + 2);
  GPU_ROLLED
  for (int j = lane; j < a.head_dim && used; j += kLanes) {
    const float* part = partial;
    float out = part[j];
    float largest = part[a.head_dim];
    float sum = part[a.head_dim + 1];
    for (int s = first + 1; s <= last; ++s) {
      part += stride;
      const float new_largest = larger(largest, part[a.head_dim]);
      const float mine = expf(largest - new_largest);
      const float others = expf(part[a.head_dim] - new_largest);
      out = fmaf(part[j], others, out * mine);
      sum = fmaf(part[a.head_dim + 1], others, sum * mine);
      largest = new_largest;
    }
    a.out[static_cast<size_t>(item) * static_cast<size_t>(a.head_dim) + static_cast<size_t>(j)] = out * (1.0f / sum);
  }
  if (a.quantized.q == nullptr) return;
  warp_barrier();
  const int n_blocks = a.head_dim / 32;
  GPU_ROLLED
  for (int b = lane; b < n_blocks && used; b += kLanes) {
    const size_t at = static_cast<size_t>(item) * static_cast<size_t>(n_blocks) + static_cast<size_t>(b);
    quantize_block(a.quantized, at, a.out + 32 * at);
  }
}

// kDims * 32 >= head_dim. Block (x: rows, y: head, z: group); a warp has kQueries rows.
template <int kDims>
GPU_FUNCTION void attend_all(const FullAttentionArguments& a, float (*queries)[kMaxFullDim], float (*weights)[kPage]) {
  constexpr int kQueries = kFullQueries / kWarps;
  const int lane = thread_index() % kLanes;
  const int warp = thread_index() / kLanes;
  const size_t stride = static_cast<size_t>(a.n_heads) * static_cast<size_t>(a.head_dim);
  const size_t head = static_cast<size_t>(block_z()) * static_cast<size_t>(a.group_rows) * stride +
                      static_cast<size_t>(block_y()) * static_cast<size_t>(a.head_dim);
  const int first_row = block_x() * kFullQueries + warp * kQueries;
  for (int i = 0; i < kQueries; ++i) {
    const int row = first_row + i < a.group_rows ? first_row + i : a.group_rows - 1;
    for (int j = lane; j < a.head_dim; j += kLanes)
      queries[warp * kQueries + i][j] =
          a.q[head + static_cast<size_t>(row) * stride + static_cast<size_t>(j)] * a.scale;
  }
  block_barrier();
  float largest[kQueries];
  float sums[kQueries] = {};
  float out[kQueries][kDims] = {};
  GPU_UNROLL
  for (int i = 0; i < kQueries; ++i) largest[i] = -INFINITY;
  for (int first = 0; first < a.group_rows; first += kPage) {
    const bool seen = first + lane < a.group_rows;
    float scores[kQueries] = {};
    if (seen) {
      const float* k = a.k + head + static_cast<size_t>(first + lane) * stride;
      for (int j = 0; j < a.head_dim; ++j) {
        const float value = load(k + j);
        GPU_UNROLL
        for (int i = 0; i < kQueries; ++i) scores[i] = fmaf(queries[warp * kQueries + i][j], value, scores[i]);
      }
    }
    GPU_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      const float new_largest = larger(largest[i], warp_max(seen ? scores[i] : -INFINITY));
      const float rescale = expf(largest[i] - new_largest);
      const float weight = seen ? expf(scores[i] - new_largest) : 0.0f;
      largest[i] = new_largest;
      sums[i] = sums[i] * rescale + weight;
      weights[warp * kQueries + i][lane] = weight;
      GPU_UNROLL
      for (int e = 0; e < kDims; ++e) out[i][e] *= rescale;
    }
    warp_barrier();
    const int n = a.group_rows - first < kPage ? a.group_rows - first : kPage;
    for (int p = 0; p < n; ++p) {
      const float* v = a.v + head + static_cast<size_t>(first + p) * stride;
      GPU_UNROLL
      for (int e = 0; e < kDims; ++e) {
        const int j = e * kLanes + lane;
        const float value = j < a.head_dim ? load(v + j) : 0.0f;
        GPU_UNROLL
        for (int i = 0; i < kQueries; ++i) out[i][e] = fmaf(weights[warp * kQueries + i][p], value, out[i][e]);
      }
    }
    warp_barrier();
  }
  GPU_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    const float inverse = 1.0f / warp_sum(sums[i]);
    if (first_row + i >= a.group_rows) continue;
    GPU_UNROLL
    for (int e = 0; e < kDims; ++e) {
      const int j = e * kLanes + lane;
      if (j < a.head_dim)
        a.out[head + static_cast<size_t>(first_row + i) * stride + static_cast<size_t>(j)] = out[i][e] * inverse;
    }
  }
}

// out may be q: a block reads no rows of q but its own, and those before it writes.
GPU_KERNEL(full_attention)(const FullAttentionArguments a) {
  GPU_SHARED(float, queries, [kFullQueries][kMaxFullDim]);
  GPU_SHARED(float, weights, [kFullQueries][kPage]);
  if (a.head_dim <= 3 * kLanes) {
    attend_all<3>(a, queries, weights);
  } else {
    attend_all<kMaxFullDim / kLanes>(a, queries, weights);
  }
}

}  // namespace gemma::gpu::GPU_CHIP_NAMESPACE
