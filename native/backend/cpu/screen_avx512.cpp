// The screen with AVX-512 VNNI: a register of codes holds eight columns of 16 rows.
#include <immintrin.h>

#include "backend/cpu/kernels_avx512.h"
#include "backend/cpu/products_avx512.h"
#include "backend/cpu/screen_loops.h"

namespace gemma::cpu {
namespace {

template <int kQueries>
void bound(const ScreenTable& table, int panel_begin, int panel_end, const ScreenQuery* queries) {
  const size_t n_groups = static_cast<size_t>(table.n_cols / 8);
  const __m512i low = _mm512_set1_epi8(0x0f);
  for (size_t panel = static_cast<size_t>(panel_begin); panel < static_cast<size_t>(panel_end); ++panel) {
    const uint8_t* codes = table.codes + panel * n_groups * 64;
    __m512i first[kQueries];
    // 16 times as much: these codes stay in the high half of their bytes. The largest model that is loaded has 65,536
    // columns: 240 * 127 * 32,768 fits.
    __m512i second[kQueries];
#pragma GCC unroll 8
    for (int i = 0; i < kQueries; ++i) first[i] = second[i] = _mm512_setzero_si512();
    for (size_t g = 0; g < n_groups; ++g) {
      const __m512i both = _mm512_loadu_si512(codes + g * 64);
      _mm_prefetch(reinterpret_cast<const char*>(codes + g * 64 + 4096), _MM_HINT_T0);
      const __m512i low_codes = _mm512_and_si512(both, low);
      const __m512i high_codes = _mm512_andnot_si512(low, both);
#pragma GCC unroll 8
      for (int i = 0; i < kQueries; ++i) {
        add_products(first[i], low_codes, queries[i].q + g * 8);
        add_products(second[i], high_codes, queries[i].q + g * 8 + 4);
      }
    }
    const size_t row = panel * kScreenLanes;
    const __m512 step = _mm512_loadu_ps(table.step + row);
    const __m512 deviation = _mm512_loadu_ps(table.deviation + row);
    const __m512 rounding = _mm512_loadu_ps(table.rounding + row);
#pragma GCC unroll 8
    for (int i = 0; i < kQueries; ++i) {
      const ScreenQuery& query = queries[i];
      const __m512 exact = _mm512_cvtepi32_ps(_mm512_add_epi32(first[i], _mm512_srai_epi32(second[i], 4)));
      const __m512 product = _mm512_mul_ps(_mm512_add_ps(exact, _mm512_set1_ps(query.offset)),
                                           _mm512_mul_ps(step, _mm512_set1_ps(query.scale)));
      const __m512 margin = _mm512_add_ps(_mm512_mul_ps(deviation, _mm512_set1_ps(query.deviation_part)),
                                          _mm512_mul_ps(rounding, _mm512_set1_ps(query.rounding_part)));
      const __m512 upper = _mm512_add_ps(product, margin);
      _mm512_storeu_ps(query.bounds + row, upper);
      query.maxima[panel] = _mm512_reduce_max_ps(upper);
    }
  }
}

}  // namespace

bool screen_pack_avx512(float* columns, int n_cols, int block, uint8_t* codes, float* step, float* deviation,
                        float* rounding) {
  float squares[kScreenLanes];
  float inverse[kScreenLanes];
  float product[kScreenLanes];
  float length[kScreenLanes];
  if (!rotate_columns(columns, n_cols, block, squares)) return false;
  level_widths(squares, n_cols, inverse);
  const __m512 scale = _mm512_loadu_ps(inverse);
  __m512 products = _mm512_setzero_ps();
  __m512 lengths = _mm512_setzero_ps();
  for (size_t c = 0; c < static_cast<size_t>(n_cols); c += 8) {
    __m512i packed = _mm512_setzero_si512();
    for (size_t i = 0; i < 8; ++i) {
      const __m512 w = _mm512_loadu_ps(columns + (c + i) * kScreenLanes);
      const __m512 level =
          _mm512_min_ps(_mm512_max_ps(_mm512_add_ps(_mm512_mul_ps(w, scale), _mm512_set1_ps(8)), _mm512_setzero_ps()),
                        _mm512_set1_ps(15));
      const __m512i code = _mm512_cvttps_epi32(level);
      const __m512 value = _mm512_sub_ps(_mm512_cvtepi32_ps(code), _mm512_set1_ps(7.5f));
      products = _mm512_add_ps(products, _mm512_mul_ps(w, value));
      lengths = _mm512_add_ps(lengths, _mm512_mul_ps(value, value));
      packed = _mm512_or_si512(packed, _mm512_slli_epi32(code, static_cast<unsigned>(i % 4 * 8 + i / 4 * 4)));
    }
    _mm512_storeu_si512(codes + c * 8, packed);
  }
  _mm512_storeu_ps(product, products);
  _mm512_storeu_ps(length, lengths);
  finish_panel(squares, inverse, product, length, step, deviation, rounding);
  return true;
}

void screen_bound_avx512_vnni(const ScreenTable& table, int panel_begin, int panel_end, const ScreenQuery* queries,
                              int n_queries) {
  in_groups<8>(n_queries,
               [&](auto n, int first) { bound<decltype(n)::value>(table, panel_begin, panel_end, queries + first); });
}

}  // namespace gemma::cpu
