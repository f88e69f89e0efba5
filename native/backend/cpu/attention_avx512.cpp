// A tile of attention with AVX-512: a page of keys is widened to float once for all rows of the tile, scores are formed
// in register tiles of 4 rows by 4 positions, the running softmax goes page by page, values likewise. What a row gets
// does not depend on which rows share its tile.
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "backend/cpu/exp_avx512.h"
#include "backend/cpu/kernels_avx512.h"
#include "base/half.h"

namespace gemma::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

inline __mmask16 first_lanes(int n) {
  return static_cast<__mmask16>((1u << n) - 1u);
}

// Rows of a page, positions first..last-1, to float [position][head_stride], padded with zeros.
void widen(const KvLayout& layout, const std::byte* rows, int first, int last, float* out, size_t head_stride) {
  for (int p = first; p < last; ++p) {
    const std::byte* row = rows + static_cast<size_t>(p) * layout.row_bytes;
    float* o = out + static_cast<size_t>(p) * head_stride;
    if (layout.type == KvType::kQ8_0) {
      for (int b = 0; b < layout.head_dim / 32; ++b) {
        const std::byte* block = row + static_cast<size_t>(b) * 34;
        uint16_t half = 0;
        std::memcpy(&half, block, 2);
        const __m512 d = _mm512_set1_ps(f16_to_f32(half));
        for (int h = 0; h < 2; ++h) {
          const __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 2 + 16 * h));
          _mm512_storeu_ps(o + b * 32 + 16 * h, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)), d));
        }
      }
      continue;
    }
    for (int j = 0; j < layout.head_dim; j += 16) {
      const __mmask16 m = first_lanes(std::min(16, layout.head_dim - j));
      const __m512 v = layout.type == KvType::kF16
                           ? _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, row + static_cast<size_t>(j) * 2))
                           : _mm512_maskz_loadu_ps(m, row + static_cast<size_t>(j) * 4);
      _mm512_storeu_ps(o + j, v);
    }
  }
}

// Sums of the lanes of four vectors, each by the same tree.
inline __m128 sum_lanes(__m512 a, __m512 b, __m512 c, __m512 d) {
  const auto eight = [](__m512 v) { return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)); };
  const auto four = [](__m256 v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); };
  __m128 r0 = four(eight(a));
  __m128 r1 = four(eight(b));
  __m128 r2 = four(eight(c));
  __m128 r3 = four(eight(d));
  _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
  return _mm_add_ps(_mm_add_ps(r0, r2), _mm_add_ps(r1, r3));
}

// scores[r][p] of four rows of q (copies, zero padded) and positions p..p+3.
void score_tile(const float* q, size_t stride, const float* k, float* scores) {
  __m512 acc[4][4];
  for (auto& row : acc) {
    for (__m512& v : row) v = _mm512_setzero_ps();
  }
  for (size_t j = 0; j < stride; j += 16) {
    __m512 kv[4];
    for (size_t p = 0; p < 4; ++p) kv[p] = _mm512_loadu_ps(k + p * stride + j);
    for (size_t r = 0; r < 4; ++r) {
      const __m512 qv = _mm512_loadu_ps(q + r * stride + j);
      for (size_t p = 0; p < 4; ++p) acc[r][p] = _mm512_fmadd_ps(qv, kv[p], acc[r][p]);
    }
  }
  for (size_t r = 0; r < 4; ++r)
    _mm_storeu_ps(scores + r * kPagePositions, sum_lanes(acc[r][0], acc[r][1], acc[r][2], acc[r][3]));
}

// out[4 rows][stride] = out * rescale + weights[4][32] x v[first..last-1][stride].
void accumulate(float* out, size_t stride, const float* weights, const float* rescale, const float* v, int first,
                int last) {
  for (size_t j = 0; j < stride; j += 32) {
    const bool wide = j + 16 < stride;
    __m512 acc[4][2];
    for (size_t r = 0; r < 4; ++r) {
      const __m512 s = _mm512_set1_ps(rescale[r]);
      acc[r][0] = _mm512_mul_ps(_mm512_loadu_ps(out + r * stride + j), s);
      acc[r][1] = wide ? _mm512_mul_ps(_mm512_loadu_ps(out + r * stride + j + 16), s) : _mm512_setzero_ps();
    }
    for (int p = first; p < last; ++p) {
      const float* row = v + static_cast<size_t>(p) * stride + j;
      const __m512 v0 = _mm512_loadu_ps(row);
      const __m512 v1 = wide ? _mm512_loadu_ps(row + 16) : _mm512_setzero_ps();
      for (size_t r = 0; r < 4; ++r) {
        const __m512 w = _mm512_set1_ps(weights[r * kPagePositions + static_cast<size_t>(p)]);
        acc[r][0] = _mm512_fmadd_ps(w, v0, acc[r][0]);
        acc[r][1] = _mm512_fmadd_ps(w, v1, acc[r][1]);
      }
    }
    for (size_t r = 0; r < 4; ++r) {
      _mm512_storeu_ps(out + r * stride + j, acc[r][0]);
      if (wide) _mm512_storeu_ps(out + r * stride + j + 16, acc[r][1]);
    }
  }
}

}  // namespace

void attention_avx512(const AttentionTile& tile, const Scratch& scratch) {
  const KvLayout& layout = tile.layout;
  const int head_dim = layout.head_dim;
  const size_t stride = static_cast<size_t>((head_dim + 15) / 16 * 16);
  const int n_rows4 = (tile.n_rows + 3) / 4 * 4;
  float* q = reinterpret_cast<float*>(scratch.data);
  float* k = q + kAttentionRows * stride;
  float* v = k + kPagePositions * stride;
  float* out = v + kPagePositions * stride;
  float* scores = out + kAttentionRows * stride;
  std::memset(q, 0, kAttentionRows * stride * sizeof(float));
  std::memset(out, 0, kAttentionRows * stride * sizeof(float));
  if (stride != static_cast<size_t>(head_dim)) std::memset(k, 0, 2 * kPagePositions * stride * sizeof(float));

  int begin = std::numeric_limits<int>::max();
  int end = 0;
  for (int r = 0; r < tile.n_rows; ++r) {
    tile.max[r] = kMinusInfinity;
    tile.sum[r] = 0;
    std::memcpy(q + static_cast<size_t>(r) * stride, tile.q[r], static_cast<size_t>(head_dim) * sizeof(float));
    if (tile.spans[r].begin < tile.spans[r].end) {
      begin = std::min(begin, tile.spans[r].begin);
      end = std::max(end, tile.spans[r].end);
    }
  }

  const size_t head_offset = static_cast<size_t>(tile.kv_head) * kPagePositions * layout.row_bytes;
  for (int page = begin / kPagePositions; page * kPagePositions < end; ++page) {
    const int base = page * kPagePositions;
    int first = kPagePositions;
    int last = 0;
    for (int r = 0; r < tile.n_rows; ++r) {
      const int from = std::max(tile.spans[r].begin - base, 0);
      const int to = std::min(tile.spans[r].end - base, kPagePositions);
      if (from >= to) continue;
      first = std::min(first, from);
      last = std::max(last, to);
    }
    if (first >= last) continue;  // between the spans: there need not be a page
    // Score tiles take four positions: widen whole groups of four. Positions outside the spans are of this page too,
    // and pages are zeroed when they are handed out, so what is read there is finite; it is masked below.
    const int first4 = first / 4 * 4;
    const int last4 = (last + 3) / 4 * 4;
    widen(layout, tile.pages[page] + layout.layer_offset + head_offset, first4, last4, k, stride);
    widen(layout, tile.pages[page] + layout.v_offset() + head_offset, first, last, v, stride);
    for (int r4 = 0; r4 < n_rows4; r4 += 4) {
      float rescale[4];
      bool any = false;
      for (int p = first4; p < last4; p += 4) {
        score_tile(q + static_cast<size_t>(r4) * stride, stride, k + static_cast<size_t>(p) * stride, scores + p);
      }
      for (int i = 0; i < 4; ++i) {
        const int r = r4 + i;
        float* row = scores + i * kPagePositions;
        const int from = r < tile.n_rows ? std::max(tile.spans[r].begin - base, 0) : 0;
        const int to = r < tile.n_rows ? std::min(tile.spans[r].end - base, kPagePositions) : 0;
        rescale[i] = 1.0f;
        if (from >= to) {  // nothing of this page: the row stays as it is
          std::memset(row, 0, kPagePositions * sizeof(float));
          continue;
        }
        any = true;
        const uint32_t visible = (to == 32 ? 0xffffffffu : (1u << to) - 1u) & ~((1u << from) - 1u);
        const __mmask16 m0 = static_cast<__mmask16>(visible & 0xffffu);
        const __mmask16 m1 = static_cast<__mmask16>(visible >> 16);
        const __m512 minus = _mm512_set1_ps(kMinusInfinity);
        const __m512 s0 = _mm512_mask_loadu_ps(minus, m0, row);
        const __m512 s1 = _mm512_mask_loadu_ps(minus, m1, row + 16);
        // max_ps drops NaN; a NaN score still reaches the sum through exp(NaN - max).
        const float page_max = _mm512_reduce_max_ps(_mm512_max_ps(s0, s1));
        const float new_max = std::max(tile.max[r], page_max);
        const __m512 top = _mm512_set1_ps(new_max);
        const __m512 e0 = _mm512_maskz_mov_ps(m0, exp_ps(_mm512_sub_ps(s0, top)));
        const __m512 e1 = _mm512_maskz_mov_ps(m1, exp_ps(_mm512_sub_ps(s1, top)));
        _mm512_storeu_ps(row, e0);
        _mm512_storeu_ps(row + 16, e1);
        rescale[i] = _mm512_cvtss_f32(exp_ps(_mm512_set1_ps(tile.max[r] - new_max)));
        tile.sum[r] = tile.sum[r] * rescale[i] + _mm512_reduce_add_ps(_mm512_add_ps(e0, e1));
        tile.max[r] = new_max;
      }
      if (any) accumulate(out + static_cast<size_t>(r4) * stride, stride, scores, rescale, v, first, last);
    }
  }
  for (int r = 0; r < tile.n_rows; ++r) {
    std::memcpy(tile.out[r], out + static_cast<size_t>(r) * stride, static_cast<size_t>(head_dim) * sizeof(float));
  }
}

}  // namespace gemma::cpu
