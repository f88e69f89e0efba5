// A tile of attention over the paged cache for any vector type, page by page with a running softmax. A few rows (decode)
// read keys and values as they are stored, converting in registers, at the pace of memory; for more rows a page is first
// widened to float, so that all of them share the conversion. The arithmetic of both is the same: what a row gets does
// not depend on which rows share its tile. Internal to each file that includes it.
//
// V, the vector type, has what ExactAttention (full_attention.h) wants of one, and:
//   LoadF32, LoadF16, LoadQ8     rows of the cache: at(row, j) loads values j.. of a row, j a multiple of kLanes;
//                                kValueBytes of a value
//   visible(first, from, to)     Mask: of lanes first, first + 1, ... those in from..to-1
//   where(mask, v, otherwise)    lanes of v, or of otherwise; keep(mask, v): or 0
//   max_lanes, sum_lanes, first_lane
//   sum_lanes(const Float*)      of kLanes vectors: of vector kLanes / 4 * i + l in lane 4 * l + i
//   store_rows<kRows>(p, v)      kLanes / kRows lanes for each row, which are kPagePositions floats apart
#pragma once

#include <cstring>
#include <type_traits>

#include "backend/cpu/inlining.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/kv_rows.h"
#include "backend/cpu/small_math.h"
#include "backend/cpu/unrolled.h"

namespace gemma::cpu {
namespace {

template <class V>
class PagedAttention {
 public:
  static void attend(const AttentionTile& tile, const Scratch& scratch) {
    const Work work(scratch, tile.head_dim);
    const size_t row_bytes = static_cast<size_t>(tile.head_dim) * sizeof(float);
    const int n_rows4 = (tile.n_rows + 3) / 4 * 4;
    std::memset(work.sums, 0, static_cast<size_t>(n_rows4) * kLanes * sizeof(float));
    for (int r = 0; r < n_rows4; ++r) {
      float* q = row_of(work.q, r, work.stride);
      std::memset(q, 0, work.width * sizeof(float));
      if (r < tile.n_rows) std::memcpy(q, tile.q[r], row_bytes);
      std::memset(row_of(work.out, r, work.stride), 0, work.width * sizeof(float));
      std::memset(work.scores + r * kPagePositions, 0, kPagePositions * sizeof(float));
      work.rescale[r] = 1.0f;
    }

    int begin = kMaxInt;
    int end = 0;
    for (int r = 0; r < tile.n_rows; ++r) {
      tile.max[r] = -kInfinity;
      if (tile.spans[r].begin < tile.spans[r].end) {
        begin = least(begin, tile.spans[r].begin);
        end = most(end, tile.spans[r].end);
      }
    }
    for (int index = begin / kPagePositions; index * kPagePositions < end; ++index) {
      Page page{index * kPagePositions, kPagePositions, 0};
      for (int r = 0; r < tile.n_rows; ++r) {
        const int from = most(tile.spans[r].begin - page.base, 0);
        const int to = least(tile.spans[r].end - page.base, kPagePositions);
        if (from >= to) continue;
        page.first = least(page.first, from);
        page.last = most(page.last, to);
      }
      if (page.first >= page.last) continue;  // between the spans: there need not be a page
      const std::byte* next = (index + 1) * kPagePositions < end ? tile.pages[index + 1] : nullptr;
      const auto rows = [&](size_t offset) {
        return Rows{tile.pages[index] + offset, tile.row_bytes, next == nullptr ? nullptr : next + offset};
      };
      const Rows keys = rows(tile.k_offset);
      const Rows values = rows(tile.v_offset);
      switch (tile.type) {
        case KvType::kF32: attend_page<typename V::LoadF32>(tile, work, page, keys, values); break;
        case KvType::kF16: attend_page<typename V::LoadF16>(tile, work, page, keys, values); break;
        case KvType::kQ8_0: attend_page<typename V::LoadQ8>(tile, work, page, keys, values); break;
      }
    }
    for (int r = 0; r < tile.n_rows; ++r) {
      std::memcpy(tile.out[r], row_of(work.out, r, work.stride), row_bytes);
      tile.sum[r] = V::sum_lanes(V::load(work.sums + r * kLanes));
    }
  }

 private:
  using Float = typename V::Float;
  static constexpr int kLanes = V::kLanes;

  // Keys or values of one page and one head, and those of the page that comes next: whoever reads the one fetches the
  // other, a page being the distance that hides the latency of memory.
  struct Rows {
    const std::byte* data;
    size_t row_bytes;
    const std::byte* next;  // null: nothing to fetch
    const std::byte* at(size_t position) const { return data + position * row_bytes; }
    // Bytes begin..begin + bytes - 1 of the row of a position, or of the rows from it on.
    void prefetch(size_t position, size_t begin, size_t bytes) const {
      if (next == nullptr) return;
      const char* from = reinterpret_cast<const char*>(next + position * row_bytes + begin);
      for (size_t b = 0; b < bytes; b += 64) V::prefetch(from + b);
    }
  };

  // The working memory of a tile: rows of `stride` floats, which are `width` values and a gap that keeps rows out of
  // each other's cache sets.
  struct Work {
    size_t width;  // head_dim rounded up to kLanes
    size_t stride;
    float* q;        // [kAttentionRows]
    float* out;      // [kAttentionRows]
    float* k;        // [kPagePositions]: keys as float
    float* v;        // [kPagePositions]: values as float
    float* scores;   // [kAttentionRows][kPagePositions]
    float* sums;     // [kAttentionRows][kLanes]
    float* rescale;  // [kAttentionRows]

    Work(const Scratch& scratch, int head_dim) {
      width = round_up(static_cast<size_t>(head_dim), kLanes);
      stride = width + 16;
      q = reinterpret_cast<float*>(scratch.data);
      out = q + kAttentionRows * stride;
      k = out + kAttentionRows * stride;
      v = k + kPagePositions * stride;
      scores = v + kPagePositions * stride;
      sums = scores + kAttentionRows * kPagePositions;
      rescale = sums + kAttentionRows * kLanes;
    }
  };

  // What a tile sees of one page.
  struct Page {
    int base;   // its first position
    int first;  // positions first..last-1 of the page
    int last;
  };

  // So many positions of keys stay in the nearest cache while all rows pass.
  static constexpr int kChunk = 16;

  // A function for each format of the cache: with all of them in one, GCC runs out of registers, and decoding with
  // AVX2 took a tenth longer.
  template <class Load>
  [[gnu::noinline]] static void attend_page(const AttentionTile& tile, const Work& work, const Page& page, Rows keys,
                                            Rows values) {
    if (tile.n_rows > 4 || tile.head_dim % kLanes != 0)
      return attend_rows<Load, 4, true>(tile, work, page, keys, values);
    if (tile.n_rows > 2) return attend_rows<Load, 4, false>(tile, work, page, keys, values);
    attend_rows<Load, 2, false>(tile, work, page, keys, values);
  }

  // Scores of the page, softmax, sum of values for the tile's rows, kRows at a time. Keys and values are read as they
  // are stored, or (kWiden) converted to float first.
  template <class Load, int kRows, bool kWiden>
  GEMMA_INLINE static void attend_rows(const AttentionTile& tile, const Work& work, const Page& page, Rows keys,
                                       Rows values) {
    using LoadRow = std::conditional_t<kWiden, typename V::LoadF32, Load>;
    constexpr int kPositions = kLanes / kRows;
    // Score tiles take whole groups of positions. Those outside the spans are of this page too, and pages are zeroed
    // when they are handed out, so what is read there is finite; weights_of masks it.
    const int first = page.first / kPositions * kPositions;
    const int last = (page.last + kPositions - 1) / kPositions * kPositions;
    if constexpr (kWiden) {
      const auto wide = [&](Rows rows, float* out) {
        widen<Load>(rows, tile.head_dim, first, last, row_of(out, first, work.stride), work.stride);
        return Rows{reinterpret_cast<const std::byte*>(out), work.stride * sizeof(float), nullptr};
      };
      keys = wide(keys, work.k);
      values = wide(values, work.v);
    }
    for (int begin = first; begin < last; begin += kChunk) {
      const int end = least(begin + kChunk, last);
      for (int r = 0; r < tile.n_rows; r += kRows) {
        for (int p = begin; p < end; p += kPositions) {
          score_tile<LoadRow, kRows>(row_of(work.q, r, work.stride), work.stride, work.width, keys,
                                     static_cast<size_t>(p), work.scores + r * kPagePositions + p);
        }
      }
    }
    for (int r = 0; r < tile.n_rows; ++r) {
      float* row = work.scores + r * kPagePositions;
      const int from = most(tile.spans[r].begin - page.base, 0);
      const int to = least(tile.spans[r].end - page.base, kPagePositions);
      if (from < to) {
        work.rescale[r] = weights_of(row, from, to, tile.max + r, work.sums + r * kLanes);
      } else {  // nothing of this page: the row stays as it is
        work.rescale[r] = 1.0f;
        std::memset(row, 0, kPagePositions * sizeof(float));
      }
    }
    const auto strip = [&](auto n_vectors, int j) {
      for (int r = 0; r < tile.n_rows; r += kRows) {
        accumulate_strip<LoadRow, kRows, n_vectors>(row_of(work.out, r, work.stride) + j, work.stride,
                                                    work.scores + r * kPagePositions, work.rescale + r, values,
                                                    static_cast<size_t>(j), work.width, page.first, page.last);
      }
    };
    constexpr int kVectors = kLanes / kRows;
    const int width = static_cast<int>(work.width);
    int j = 0;
    for (; j + kLanes * kVectors <= width; j += kLanes * kVectors) strip(Constant<kVectors>{}, j);
    for (; j < width; j += kLanes) strip(Constant<1>{}, j);
  }

  // Positions first..last-1 to float rows, padded with zeros to a multiple of kLanes.
  template <class Load>
  [[gnu::noinline]] static void widen(Rows rows, int head_dim, int first, int last, float* out, size_t out_stride) {
    for (int p = first; p < last; ++p, out += out_stride) {
      const std::byte* row = rows.at(static_cast<size_t>(p));
      rows.prefetch(static_cast<size_t>(p), 0, rows.row_bytes);
      int j = 0;
      for (; j + kLanes <= head_dim; j += kLanes) V::store(out + j, Load::at(row, static_cast<size_t>(j)));
      if (j < head_dim) V::store(out + j, load_part<V, Load>(row, j, head_dim));
    }
  }

  // scores[r * 32 + p] of kRows rows of q (zero padded copies) and keys `position` + p, p < kLanes / kRows.
  template <class Load, int kRows>
  static void score_tile(const float* q, size_t q_stride, size_t width, Rows keys, size_t position, float* scores) {
    constexpr int kPositions = kLanes / kRows;
    Float acc[kRows][kPositions];
    for (auto& row : acc) {
      for (Float& v : row) v = V::set1(0);
    }
    const std::byte* k = keys.at(position);
    keys.prefetch(position, 0, kPositions * keys.row_bytes);
    for (size_t j = 0; j < width; j += kLanes) {
      Float kv[kPositions];
      for (int p = 0; p < kPositions; ++p) kv[p] = Load::at(k + static_cast<size_t>(p) * keys.row_bytes, j);
      for (int r = 0; r < kRows; ++r) {
        const Float qv = V::load(q + static_cast<size_t>(r) * q_stride + j);
        for (int p = 0; p < kPositions; ++p) acc[r][p] = V::fma(qv, kv[p], acc[r][p]);
      }
    }
    Float ordered[kLanes];  // as sum_lanes wants them, so that a row's scores come out side by side
    for (int i = 0; i < kLanes; ++i) ordered[i % 4 * (kLanes / 4) + i / 4] = acc[i / kPositions][i % kPositions];
    V::template store_rows<kRows>(scores, V::sum_lanes(ordered));
  }

  // kRows rows of out, kLanes * kVectors columns: out = out * rescale + weights[.][32] x values[first..last-1], whose
  // rows have row_width columns and are read from value_column on.
  template <class Load, int kRows, int kVectors>
  static void accumulate_strip(float* out, size_t out_stride, const float* weights, const float* rescale, Rows values,
                               size_t value_column, size_t row_width, int first, int last) {
    const size_t next_begin = values.row_bytes * value_column / row_width;
    const size_t next_bytes = values.row_bytes * kLanes * kVectors / row_width;
    Float acc[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
      const Float s = V::set1(rescale[r]);
      for (int i = 0; i < kVectors; ++i)
        acc[r][i] = V::mul(V::load(out + static_cast<size_t>(r) * out_stride + kLanes * i), s);
    }
    for (int p = first; p < last; ++p) {
      const std::byte* row = values.at(static_cast<size_t>(p));
      values.prefetch(static_cast<size_t>(p), next_begin, next_bytes);
      Float v[kVectors];
      for (int i = 0; i < kVectors; ++i) v[i] = Load::at(row, value_column + kLanes * static_cast<size_t>(i));
      for (int r = 0; r < kRows; ++r) {
        const Float w = V::set1(weights[r * kPagePositions + p]);
        for (int i = 0; i < kVectors; ++i) acc[r][i] = V::fma(w, v[i], acc[r][i]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kVectors; ++i) V::store(out + static_cast<size_t>(r) * out_stride + kLanes * i, acc[r][i]);
    }
  }

  // One page of one row's softmax: scores of positions from..to-1 of the page become weights (the others 0). Returns
  // the factor that what the row has gathered so far is to be multiplied with. sums: kLanes partial sums of the row's
  // weights.
  static float weights_of(float* row, int from, int to, float* max, float* sums) {
    constexpr int kVectors = kPagePositions / kLanes;
    const Float never = V::set1(-kInfinity);
    Float score[kVectors];
    typename V::Mask visible[kVectors];
    Float top = never;
    for (int i = 0; i < kVectors; ++i) {
      visible[i] = V::visible(kLanes * i, from, to);
      score[i] = V::where(visible[i], V::load(row + kLanes * i), never);
      // The second operand is what max returns for NaN; a NaN score still reaches the sum through exp(NaN - max).
      top = V::max(score[i], top);
    }
    const float new_max = most(*max, V::max_lanes(top));
    Float total = V::set1(0);
    for (int i = 0; i < kVectors; ++i) {
      const Float e = V::keep(visible[i], V::exp(V::sub(score[i], V::set1(new_max))));
      V::store(row + kLanes * i, e);
      total = i == 0 ? e : V::add(total, e);
    }
    const Float rescale = V::exp(V::set1(*max - new_max));
    V::store(sums, V::fma(V::load(sums), rescale, total));
    *max = new_max;
    return V::first_lane(rescale);
  }
};

}  // namespace
}  // namespace gemma::cpu
