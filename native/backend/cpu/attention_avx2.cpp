// A tile of attention with AVX2: a page of keys is widened to float once for all rows of the tile, scores are formed in
// register tiles of 2 rows by 4 positions, the running softmax goes page by page, values likewise. What a row gets does
// not depend on which rows share its tile.
#include <immintrin.h>

#include <cstring>
#include <limits>

#include "backend/cpu/exp_avx2.h"
#include "backend/cpu/kernels_avx2.h"

namespace gemma::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int kQuarters = kPagePositions / 8;  // vectors of a row of scores

inline int least(int a, int b) {
  return a < b ? a : b;
}
inline int most(int a, int b) {
  return a > b ? a : b;
}

// Rows of a page, positions first..last-1, to float [position][head_stride]; what is past head_dim stays as it is.
void widen(const KvLayout& layout, const std::byte* rows, int first, int last, float* out, size_t head_stride) {
  const int whole = layout.head_dim / 8 * 8;
  for (int p = first; p < last; ++p) {
    const std::byte* row = rows + static_cast<size_t>(p) * layout.row_bytes;
    float* o = out + static_cast<size_t>(p) * head_stride;
    if (layout.type == KvType::kF32) {
      std::memcpy(o, row, static_cast<size_t>(layout.head_dim) * 4);
    } else if (layout.type == KvType::kF16) {
      for (int j = 0; j < whole; j += 8) {
        _mm256_storeu_ps(
            o + j,
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + static_cast<size_t>(j) * 2))));
      }
      for (int j = whole; j < layout.head_dim; ++j) {
        uint16_t half = 0;
        std::memcpy(&half, row + static_cast<size_t>(j) * 2, 2);
        o[j] = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
      }
    } else {
      for (int b = 0; b < layout.head_dim / 32; ++b) {
        const std::byte* block = row + static_cast<size_t>(b) * 34;
        uint16_t half = 0;
        std::memcpy(&half, block, 2);
        const __m256 d = _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(half)));
        for (int i = 0; i < 4; ++i) {
          const __m128i q = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(block + 2 + 8 * i));
          _mm256_storeu_ps(o + b * 32 + 8 * i, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)), d));
        }
      }
    }
  }
}

// Sums of the lanes of four vectors, each by the same tree.
inline __m128 sum_lanes(__m256 a, __m256 b, __m256 c, __m256 d) {
  const auto four = [](__m256 v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); };
  __m128 r0 = four(a);
  __m128 r1 = four(b);
  __m128 r2 = four(c);
  __m128 r3 = four(d);
  _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
  return _mm_add_ps(_mm_add_ps(r0, r2), _mm_add_ps(r1, r3));
}

inline float sum_all(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline float max_all(__m256 v) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// scores[r][p] of two rows of q (copies, zero padded) and positions p..p+3.
void score_tile(const float* q, size_t stride, const float* k, float* scores) {
  __m256 acc[2][4];
  for (auto& row : acc) {
    for (__m256& v : row) v = _mm256_setzero_ps();
  }
  for (size_t j = 0; j < stride; j += 8) {
    const __m256 q0 = _mm256_loadu_ps(q + j);
    const __m256 q1 = _mm256_loadu_ps(q + stride + j);
    for (size_t p = 0; p < 4; ++p) {
      const __m256 kv = _mm256_loadu_ps(k + p * stride + j);
      acc[0][p] = _mm256_fmadd_ps(q0, kv, acc[0][p]);
      acc[1][p] = _mm256_fmadd_ps(q1, kv, acc[1][p]);
    }
  }
  for (size_t r = 0; r < 2; ++r)
    _mm_storeu_ps(scores + r * kPagePositions, sum_lanes(acc[r][0], acc[r][1], acc[r][2], acc[r][3]));
}

// out[4 rows][stride] = out * rescale + weights[4][32] x v[first..last-1][stride].
void accumulate(float* out, size_t stride, const float* weights, const float* rescale, const float* v, int first,
                int last) {
  for (size_t j = 0; j < stride; j += 16) {
    __m256 acc[4][2];
    for (size_t r = 0; r < 4; ++r) {
      const __m256 s = _mm256_set1_ps(rescale[r]);
      acc[r][0] = _mm256_mul_ps(_mm256_loadu_ps(out + r * stride + j), s);
      acc[r][1] = _mm256_mul_ps(_mm256_loadu_ps(out + r * stride + j + 8), s);
    }
    for (int p = first; p < last; ++p) {
      const float* row = v + static_cast<size_t>(p) * stride + j;
      const __m256 v0 = _mm256_loadu_ps(row);
      const __m256 v1 = _mm256_loadu_ps(row + 8);
      for (size_t r = 0; r < 4; ++r) {
        const __m256 w = _mm256_set1_ps(weights[r * kPagePositions + static_cast<size_t>(p)]);
        acc[r][0] = _mm256_fmadd_ps(w, v0, acc[r][0]);
        acc[r][1] = _mm256_fmadd_ps(w, v1, acc[r][1]);
      }
    }
    for (size_t r = 0; r < 4; ++r) {
      _mm256_storeu_ps(out + r * stride + j, acc[r][0]);
      _mm256_storeu_ps(out + r * stride + j + 8, acc[r][1]);
    }
  }
}

// One page of one row's softmax: scores of positions from..to-1 of the page become weights (the others 0). Returns the
// factor that what the row has gathered so far is to be multiplied with.
float soften(float* row, int from, int to, float* max, float* sum) {
  __m256 score[kQuarters];
  __m256 visible[kQuarters];
  __m256 top = _mm256_set1_ps(kMinusInfinity);
  for (int i = 0; i < kQuarters; ++i) {
    const __m256i p = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(8 * i));
    visible[i] = _mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(p, _mm256_set1_epi32(from - 1)),
                                                      _mm256_cmpgt_epi32(_mm256_set1_epi32(to), p)));
    score[i] = _mm256_blendv_ps(_mm256_set1_ps(kMinusInfinity), _mm256_loadu_ps(row + 8 * i), visible[i]);
    // The second operand is what max returns for NaN; a NaN score still reaches the sum through exp(NaN - max).
    top = _mm256_max_ps(score[i], top);
  }
  const float page_max = max_all(top);
  const float new_max = *max < page_max ? page_max : *max;
  __m256 total = _mm256_setzero_ps();
  for (int i = 0; i < kQuarters; ++i) {
    const __m256 e = _mm256_and_ps(exp_ps(_mm256_sub_ps(score[i], _mm256_set1_ps(new_max))), visible[i]);
    _mm256_storeu_ps(row + 8 * i, e);
    total = _mm256_add_ps(total, e);
  }
  const float rescale = _mm256_cvtss_f32(exp_ps(_mm256_set1_ps(*max - new_max)));
  *sum = *sum * rescale + sum_all(total);
  *max = new_max;
  return rescale;
}

}  // namespace

void attention_avx2(const AttentionTile& tile, const Scratch& scratch) {
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
      begin = least(begin, tile.spans[r].begin);
      end = most(end, tile.spans[r].end);
    }
  }

  const size_t head_offset = static_cast<size_t>(tile.kv_head) * kPagePositions * layout.row_bytes;
  for (int page = begin / kPagePositions; page * kPagePositions < end; ++page) {
    const int base = page * kPagePositions;
    int first = kPagePositions;
    int last = 0;
    for (int r = 0; r < tile.n_rows; ++r) {
      const int from = most(tile.spans[r].begin - base, 0);
      const int to = least(tile.spans[r].end - base, kPagePositions);
      if (from >= to) continue;
      first = least(first, from);
      last = most(last, to);
    }
    if (first >= last) continue;  // between the spans: there need not be a page
    // Score tiles take four positions: widen whole groups of four. Positions outside the spans are of this page too,
    // and pages are zeroed when they are handed out, so what is read there is finite; it is masked in soften.
    const int first4 = first / 4 * 4;
    const int last4 = (last + 3) / 4 * 4;
    widen(layout, tile.pages[page] + layout.layer_offset + head_offset, first4, last4, k, stride);
    widen(layout, tile.pages[page] + layout.v_offset() + head_offset, first, last, v, stride);
    for (int r4 = 0; r4 < n_rows4; r4 += 4) {
      float rescale[4];
      bool any = false;
      for (int half = 0; half < 4; half += 2) {
        for (int p = first4; p < last4; p += 4) {
          score_tile(q + static_cast<size_t>(r4 + half) * stride, stride, k + static_cast<size_t>(p) * stride,
                     scores + half * kPagePositions + p);
        }
      }
      for (int i = 0; i < 4; ++i) {
        const int r = r4 + i;
        float* row = scores + i * kPagePositions;
        const int from = r < tile.n_rows ? most(tile.spans[r].begin - base, 0) : 0;
        const int to = r < tile.n_rows ? least(tile.spans[r].end - base, kPagePositions) : 0;
        if (from < to) {
          any = true;
          rescale[i] = soften(row, from, to, tile.max + r, tile.sum + r);
        } else {  // nothing of this page: the row stays as it is
          rescale[i] = 1.0f;
          std::memset(row, 0, kPagePositions * sizeof(float));
        }
      }
      if (any) accumulate(out + static_cast<size_t>(r4) * stride, stride, scores, rescale, v, first, last);
    }
  }
  for (int r = 0; r < tile.n_rows; ++r) {
    std::memcpy(tile.out[r], out + static_cast<size_t>(r) * stride, static_cast<size_t>(head_dim) * sizeof(float));
  }
}

}  // namespace gemma::cpu
