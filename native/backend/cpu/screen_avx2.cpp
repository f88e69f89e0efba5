// The screen with AVX2: eight columns of eight rows in a register. Two codes times two bytes of x fit into 16 bits, and
// so do the sums of eight such pairs (8 * 2 * 15 * 127 = 30,480).
#include <immintrin.h>

#include <cstring>

#include "backend/cpu/kernels_avx2.h"
#include "backend/cpu/screen_loops.h"

namespace gemma::cpu {
namespace {

inline __m256i broadcast4(const int8_t* q) {
  int32_t four = 0;
  std::memcpy(&four, q, 4);
  return _mm256_set1_epi32(four);
}

template <int kQueries>
void bound(const ScreenTable& table, int panel_begin, int panel_end, const ScreenQuery* queries) {
  const size_t n_groups = static_cast<size_t>(table.n_cols / 8);
  const __m256i low = _mm256_set1_epi8(0x0f);
  const __m256i ones = _mm256_set1_epi16(1);
  for (size_t panel = static_cast<size_t>(panel_begin); panel < static_cast<size_t>(panel_end); ++panel) {
    for (size_t half = 0; half < 2; ++half) {
      const uint8_t* codes = table.codes + panel * n_groups * 64 + half * 32;
      __m256i dot[kQueries];
      for (__m256i& sum : dot) sum = _mm256_setzero_si256();
      for (size_t g = 0; g < n_groups; g += 4) {
        __m256i pairs[kQueries];
        for (__m256i& sum : pairs) sum = _mm256_setzero_si256();
        for (size_t k = g; k < least(g + 4, n_groups); ++k) {
          const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + k * 64));
          const __m256i first = _mm256_and_si256(both, low);
          const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
          for (int i = 0; i < kQueries; ++i) {
            // Each broadcast a load of its own: taking both from one would cost a shuffle each.
            const int8_t* q = queries[i].q + k * 8;
            pairs[i] = _mm256_add_epi16(pairs[i], _mm256_maddubs_epi16(first, broadcast4(q)));
            pairs[i] = _mm256_add_epi16(pairs[i], _mm256_maddubs_epi16(second, broadcast4(q + 4)));
          }
        }
        for (int i = 0; i < kQueries; ++i) dot[i] = _mm256_add_epi32(dot[i], _mm256_madd_epi16(pairs[i], ones));
      }
      const size_t row = panel * kScreenLanes + half * 8;
      const __m256 step = _mm256_loadu_ps(table.step + row);
      const __m256 deviation = _mm256_loadu_ps(table.deviation + row);
      const __m256 rounding = _mm256_loadu_ps(table.rounding + row);
      for (int i = 0; i < kQueries; ++i) {
        const ScreenQuery& query = queries[i];
        const __m256 product = _mm256_mul_ps(_mm256_add_ps(_mm256_cvtepi32_ps(dot[i]), _mm256_set1_ps(query.offset)),
                                             _mm256_mul_ps(step, _mm256_set1_ps(query.scale)));
        const __m256 margin = _mm256_add_ps(_mm256_mul_ps(deviation, _mm256_set1_ps(query.deviation_part)),
                                            _mm256_mul_ps(rounding, _mm256_set1_ps(query.rounding_part)));
        const __m256 upper = _mm256_add_ps(product, margin);
        _mm256_storeu_ps(query.bounds + row, upper);
        __m128 largest = _mm_max_ps(_mm256_castps256_ps128(upper), _mm256_extractf128_ps(upper, 1));
        largest = _mm_max_ps(largest, _mm_movehl_ps(largest, largest));
        const float max = _mm_cvtss_f32(_mm_max_ss(largest, _mm_movehdup_ps(largest)));
        query.maxima[panel] = half == 0 ? max : most(query.maxima[panel], max);
      }
    }
  }
}

}  // namespace

bool screen_pack_avx2(float* columns, int n_cols, int block, uint8_t* codes, float* step, float* deviation,
                      float* rounding) {
  float squares[kScreenLanes];
  float inverse[kScreenLanes];
  float product[kScreenLanes];
  float length[kScreenLanes];
  if (!rotate_columns(columns, n_cols, block, squares)) return false;
  level_widths(squares, n_cols, inverse);
  for (size_t half = 0; half < kScreenLanes; half += 8) {
    const __m256 scale = _mm256_loadu_ps(inverse + half);
    __m256 products = _mm256_setzero_ps();
    __m256 lengths = _mm256_setzero_ps();
    for (size_t c = 0; c < static_cast<size_t>(n_cols); c += 8) {
      __m256i packed = _mm256_setzero_si256();
      for (size_t i = 0; i < 8; ++i) {
        const __m256 w = _mm256_loadu_ps(columns + (c + i) * kScreenLanes + half);
        const __m256 level =
            _mm256_min_ps(_mm256_max_ps(_mm256_add_ps(_mm256_mul_ps(w, scale), _mm256_set1_ps(8)), _mm256_setzero_ps()),
                          _mm256_set1_ps(15));
        const __m256i code = _mm256_cvttps_epi32(level);
        const __m256 value = _mm256_sub_ps(_mm256_cvtepi32_ps(code), _mm256_set1_ps(7.5f));
        products = _mm256_add_ps(products, _mm256_mul_ps(w, value));
        lengths = _mm256_add_ps(lengths, _mm256_mul_ps(value, value));
        const int shift = static_cast<int>(i % 4 * 8 + i / 4 * 4);
        packed = _mm256_or_si256(packed, _mm256_sll_epi32(code, _mm_cvtsi32_si128(shift)));
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + c * 8 + half * 4), packed);
    }
    _mm256_storeu_ps(product + half, products);
    _mm256_storeu_ps(length + half, lengths);
  }
  finish_panel(squares, inverse, product, length, step, deviation, rounding);
  return true;
}

void screen_bound_avx2(const ScreenTable& table, int panel_begin, int panel_end, const ScreenQuery* queries,
                       int n_queries) {
  in_groups<4>(n_queries,
               [&](auto n, int first) { bound<decltype(n)::value>(table, panel_begin, panel_end, queries + first); });
}

}  // namespace gemma::cpu
