// A tile of attention with AVX-512, page by page with a running softmax. A few rows (decode) read keys and values as
// they are stored, converting in registers, at the pace of memory; for more rows a page is first widened to float, so
// that all of them share the conversion. The arithmetic of both is the same: what a row gets does not depend on which
// rows share its tile.
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "backend/cpu/exp_avx512.h"
#include "backend/cpu/kernels_avx512.h"
#include "backend/cpu/kv_rows_avx512.h"
#include "backend/cpu/lanes_avx512.h"

namespace gemma::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

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
    for (size_t b = 0; b < bytes; b += 64) _mm_prefetch(from + b, _MM_HINT_T1);
  }
};

// Positions first..last-1 to float rows, padded with zeros to a multiple of 16.
template <class Load>
void widen(Rows rows, int head_dim, int first, int last, float* out, size_t out_stride) {
  for (int p = first; p < last; ++p, out += out_stride) {
    const std::byte* row = rows.at(static_cast<size_t>(p));
    rows.prefetch(static_cast<size_t>(p), 0, rows.row_bytes);
    for (int j = 0; j < head_dim; j += 16) _mm512_storeu_ps(out + j, load_part<Load>(row, j, head_dim));
  }
}

// scores[r * 32 + p] of kRows rows of q (zero padded copies) and keys `position` + p, p < 16 / kRows.
template <class Load, int kRows>
inline void score_tile(const float* q, size_t q_stride, size_t width, Rows keys, size_t position, float* scores) {
  constexpr int kPositions = 16 / kRows;
  __m512 acc[kRows][kPositions];
  for (auto& row : acc) {
    for (__m512& v : row) v = _mm512_setzero_ps();
  }
  const std::byte* k = keys.at(position);
  keys.prefetch(position, 0, kPositions * keys.row_bytes);
  for (size_t j = 0; j < width; j += 16) {
    __m512 kv[kPositions];
    for (int p = 0; p < kPositions; ++p) kv[p] = Load::at(k + static_cast<size_t>(p) * keys.row_bytes, j);
    for (int r = 0; r < kRows; ++r) {
      const __m512 qv = _mm512_loadu_ps(q + static_cast<size_t>(r) * q_stride + j);
      for (int p = 0; p < kPositions; ++p) acc[r][p] = _mm512_fmadd_ps(qv, kv[p], acc[r][p]);
    }
  }
  __m512 ordered[16];  // as sum_lanes wants them, so that a row's scores come out beside each other
  for (int i = 0; i < 16; ++i) ordered[i % 4 * 4 + i / 4] = acc[i / kPositions][i % kPositions];
  const __m512 sums = sum_lanes(ordered);
  if constexpr (kRows == 2) {
    _mm256_storeu_ps(scores, _mm512_castps512_ps256(sums));
    _mm256_storeu_ps(scores + kPagePositions, _mm512_extractf32x8_ps(sums, 1));
  } else {
    _mm_storeu_ps(scores, _mm512_castps512_ps128(sums));
    _mm_storeu_ps(scores + kPagePositions, _mm512_extractf32x4_ps(sums, 1));
    _mm_storeu_ps(scores + 2 * kPagePositions, _mm512_extractf32x4_ps(sums, 2));
    _mm_storeu_ps(scores + 3 * kPagePositions, _mm512_extractf32x4_ps(sums, 3));
  }
}

// kRows rows of out, 16 * kVectors columns: out = out * rescale + weights[.][32] x values[first..last-1], whose rows
// have row_width columns and are read from value_column on.
template <class Load, int kRows, int kVectors>
inline void accumulate_strip(float* out, size_t out_stride, const float* weights, const float* rescale, Rows values,
                             size_t value_column, size_t row_width, int first, int last) {
  const size_t next_begin = values.row_bytes * value_column / row_width;
  const size_t next_bytes = values.row_bytes * 16 * kVectors / row_width;
  __m512 acc[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    const __m512 s = _mm512_set1_ps(rescale[r]);
    for (int i = 0; i < kVectors; ++i)
      acc[r][i] = _mm512_mul_ps(_mm512_loadu_ps(out + static_cast<size_t>(r) * out_stride + 16 * i), s);
  }
  for (int p = first; p < last; ++p) {
    const std::byte* row = values.at(static_cast<size_t>(p));
    values.prefetch(static_cast<size_t>(p), next_begin, next_bytes);
    __m512 v[kVectors];
    for (int i = 0; i < kVectors; ++i) v[i] = Load::at(row, value_column + 16 * static_cast<size_t>(i));
    for (int r = 0; r < kRows; ++r) {
      const __m512 w = _mm512_set1_ps(weights[r * kPagePositions + p]);
      for (int i = 0; i < kVectors; ++i) acc[r][i] = _mm512_fmadd_ps(w, v[i], acc[r][i]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kVectors; ++i) _mm512_storeu_ps(out + static_cast<size_t>(r) * out_stride + 16 * i, acc[r][i]);
  }
}

// A page's scores of one row become weights (positions outside from..to-1: 0). Returns the factor that what the row has
// gathered so far is to be multiplied with. sums: 16 partial sums of the row's weights.
inline float soften(float* row, int from, int to, float* max, float* sums) {
  const uint32_t visible = (to == 32 ? 0xffffffffu : (1u << to) - 1u) & ~((1u << from) - 1u);
  const __mmask16 m0 = static_cast<__mmask16>(visible & 0xffffu);
  const __mmask16 m1 = static_cast<__mmask16>(visible >> 16);
  const __m512 minus = _mm512_set1_ps(kMinusInfinity);
  const __m512 s0 = _mm512_mask_loadu_ps(minus, m0, row);
  const __m512 s1 = _mm512_mask_loadu_ps(minus, m1, row + 16);
  // max_ps drops NaN; a NaN score still reaches the sum through exp(NaN - max).
  const float page_max = _mm512_reduce_max_ps(_mm512_max_ps(s0, s1));
  const float new_max = std::max(*max, page_max);
  const __m512 top = _mm512_set1_ps(new_max);
  const __m512 e0 = _mm512_maskz_mov_ps(m0, exp_ps(_mm512_sub_ps(s0, top)));
  const __m512 e1 = _mm512_maskz_mov_ps(m1, exp_ps(_mm512_sub_ps(s1, top)));
  _mm512_storeu_ps(row, e0);
  _mm512_storeu_ps(row + 16, e1);
  const __m512 rescale = exp_ps(_mm512_set1_ps(*max - new_max));
  _mm512_storeu_ps(sums, _mm512_fmadd_ps(_mm512_loadu_ps(sums), rescale, _mm512_add_ps(e0, e1)));
  *max = new_max;
  return _mm512_cvtss_f32(rescale);
}

// So many positions of keys stay in the nearest cache while all rows pass.
constexpr int kChunk = 16;

// The working memory of a tile: rows of `stride` floats, which are `width` values and a gap that keeps rows out of each
// other's cache sets.
struct Work {
  size_t width;  // head_dim rounded up to 16
  size_t stride;
  float* q;        // [kAttentionRows]
  float* out;      // [kAttentionRows]
  float* k;        // [kPagePositions]: keys as float
  float* v;        // [kPagePositions]: values as float
  float* scores;   // [kAttentionRows][kPagePositions]
  float* sums;     // [kAttentionRows][16]
  float* rescale;  // [kAttentionRows]

  Work(const Scratch& scratch, int head_dim) {
    width = static_cast<size_t>(head_dim + 15) / 16 * 16;
    stride = width + 16;
    q = reinterpret_cast<float*>(scratch.data);
    out = q + kAttentionRows * stride;
    k = out + kAttentionRows * stride;
    v = k + kPagePositions * stride;
    scores = v + kPagePositions * stride;
    sums = scores + kAttentionRows * kPagePositions;
    rescale = sums + kAttentionRows * 16;
  }
};

// What a tile sees of one page.
struct PageView {
  int base;   // its first position
  int first;  // positions first..last-1 of the page
  int last;
};

// Scores of the page, softmax, sum of values for the tile's rows, kRows at a time. Keys and values are read as they are
// stored, or (kWiden) converted to float first.
template <class Load, int kRows, bool kWiden>
void attend_page(const AttentionTile& tile, const Work& work, const PageView& page, Rows keys, Rows values) {
  using LoadRow = std::conditional_t<kWiden, LoadF32, Load>;
  constexpr int kPositions = 16 / kRows;
  const int head_dim = tile.layout.head_dim;
  // Score tiles take whole groups of positions. Those outside the spans are of this page too, and pages are zeroed when
  // they are handed out, so what is read there is finite; it is masked in soften.
  const int first = page.first / kPositions * kPositions;
  const int last = (page.last + kPositions - 1) / kPositions * kPositions;
  if constexpr (kWiden) {
    const auto wide = [&](Rows rows, float* out) {
      widen<Load>(rows, head_dim, first, last, out + static_cast<size_t>(first) * work.stride, work.stride);
      return Rows{reinterpret_cast<const std::byte*>(out), work.stride * sizeof(float), nullptr};
    };
    keys = wide(keys, work.k);
    values = wide(values, work.v);
  }
  for (int begin = first; begin < last; begin += kChunk) {
    const int end = std::min(begin + kChunk, last);
    for (int r = 0; r < tile.n_rows; r += kRows) {
      for (int p = begin; p < end; p += kPositions) {
        score_tile<LoadRow, kRows>(work.q + static_cast<size_t>(r) * work.stride, work.stride, work.width, keys,
                                   static_cast<size_t>(p), work.scores + r * kPagePositions + p);
      }
    }
  }
  for (int r = 0; r < tile.n_rows; ++r) {
    float* row = work.scores + r * kPagePositions;
    const int from = std::max(tile.spans[r].begin - page.base, 0);
    const int to = std::min(tile.spans[r].end - page.base, kPagePositions);
    if (from < to) {
      work.rescale[r] = soften(row, from, to, tile.max + r, work.sums + r * 16);
    } else {  // nothing of this page: the row stays as it is
      work.rescale[r] = 1.0f;
      std::memset(row, 0, kPagePositions * sizeof(float));
    }
  }
  const auto strip = [&](auto n_vectors, int j) {
    for (int r = 0; r < tile.n_rows; r += kRows) {
      accumulate_strip<LoadRow, kRows, n_vectors()>(work.out + static_cast<size_t>(r) * work.stride + j, work.stride,
                                                    work.scores + r * kPagePositions, work.rescale + r, values,
                                                    static_cast<size_t>(j), work.width, page.first, page.last);
    }
  };
  constexpr int kVectors = 16 / kRows;
  const int width = static_cast<int>(work.width);
  int j = 0;
  for (; j + 16 * kVectors <= width; j += 16 * kVectors) strip(std::integral_constant<int, kVectors>{}, j);
  for (; j < width; j += 16) strip(std::integral_constant<int, 1>{}, j);
}

template <class Load>
void attend_page(const AttentionTile& tile, const Work& work, const PageView& page, Rows keys, Rows values) {
  if (tile.n_rows > 4 || tile.layout.head_dim % 16 != 0)
    return attend_page<Load, 4, true>(tile, work, page, keys, values);
  if (tile.n_rows > 2) return attend_page<Load, 4, false>(tile, work, page, keys, values);
  attend_page<Load, 2, false>(tile, work, page, keys, values);
}

}  // namespace

void attention_avx512(const AttentionTile& tile, const Scratch& scratch) {
  const KvLayout& layout = tile.layout;
  const int head_dim = layout.head_dim;
  const Work work(scratch, head_dim);
  const size_t row_bytes = static_cast<size_t>(head_dim) * sizeof(float);
  const int n_rows4 = (tile.n_rows + 3) / 4 * 4;
  std::memset(work.sums, 0, static_cast<size_t>(n_rows4) * 16 * sizeof(float));
  for (int r = 0; r < n_rows4; ++r) {
    float* q = work.q + static_cast<size_t>(r) * work.stride;
    std::memset(q, 0, work.width * sizeof(float));
    if (r < tile.n_rows) std::memcpy(q, tile.q[r], row_bytes);
    std::memset(work.out + static_cast<size_t>(r) * work.stride, 0, work.width * sizeof(float));
    std::memset(work.scores + r * kPagePositions, 0, kPagePositions * sizeof(float));
    work.rescale[r] = 1.0f;
  }

  int begin = std::numeric_limits<int>::max();
  int end = 0;
  for (int r = 0; r < tile.n_rows; ++r) {
    tile.max[r] = kMinusInfinity;
    if (tile.spans[r].begin < tile.spans[r].end) {
      begin = std::min(begin, tile.spans[r].begin);
      end = std::max(end, tile.spans[r].end);
    }
  }
  const size_t head_offset = static_cast<size_t>(tile.kv_head) * kPagePositions * layout.row_bytes;
  for (int index = begin / kPagePositions; index * kPagePositions < end; ++index) {
    PageView page{index * kPagePositions, kPagePositions, 0};
    for (int r = 0; r < tile.n_rows; ++r) {
      const int from = std::max(tile.spans[r].begin - page.base, 0);
      const int to = std::min(tile.spans[r].end - page.base, kPagePositions);
      if (from >= to) continue;
      page.first = std::min(page.first, from);
      page.last = std::max(page.last, to);
    }
    if (page.first >= page.last) continue;  // between the spans: there need not be a page
    const std::byte* next = (index + 1) * kPagePositions < end ? tile.pages[index + 1] : nullptr;
    const auto rows = [&](size_t offset) {
      const size_t at = offset + head_offset;
      return Rows{tile.pages[index] + at, layout.row_bytes, next == nullptr ? nullptr : next + at};
    };
    const Rows keys = rows(layout.layer_offset);
    const Rows values = rows(layout.v_offset());
    switch (layout.type) {
      case KvType::kF32: attend_page<LoadF32>(tile, work, page, keys, values); break;
      case KvType::kF16: attend_page<LoadF16>(tile, work, page, keys, values); break;
      case KvType::kQ8_0: attend_page<LoadQ8>(tile, work, page, keys, values); break;
    }
  }
  for (int r = 0; r < tile.n_rows; ++r) {
    std::memcpy(tile.out[r], work.out + static_cast<size_t>(r) * work.stride, row_bytes);
    tile.sum[r] = _mm512_reduce_add_ps(_mm512_loadu_ps(work.sums + r * 16));
  }
}

}  // namespace gemma::cpu
