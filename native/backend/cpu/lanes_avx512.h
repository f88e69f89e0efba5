// Sums over the lanes of vectors and masks for AVX-512, internal to each file that includes it (all are compiled with
// the same flags).
#pragma once

#include <immintrin.h>

namespace {

inline __mmask16 first_lanes(int n) {
  return static_cast<__mmask16>((1u << n) - 1u);
}

// Any n: none of the lanes, or all.
inline __mmask16 lanes_below(int n) {
  return n >= 16 ? __mmask16{0xffff} : first_lanes(n > 0 ? n : 0);
}

// The lanes of each of 16 vectors added up, as the float products of kernels.h: j and j + 8, + 4, + 2, + 1. The sum of
// vector 4 i + l in lane 4 l + i.
inline __m512 sum_lanes(const __m512* v) {
  __m512 halves[8];
  for (int i = 0; i < 8; ++i) {
    const __m512 a = v[2 * i];
    const __m512 b = v[2 * i + 1];
    halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
  __m512 quarters[4];  // four vectors each, one in every 128 bits
  for (int i = 0; i < 4; ++i) {
    const __m512 a = halves[2 * i];
    const __m512 b = halves[2 * i + 1];
    quarters[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  const auto pairs = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  const __m512 a = pairs(quarters[0], quarters[1]);
  const __m512 b = pairs(quarters[2], quarters[3]);
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}

}  // namespace
