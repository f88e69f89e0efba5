// exp for AVX-512, internal to each file that includes it (all are compiled with the same flags).
#pragma once

#include <immintrin.h>

namespace {

// 2^n * e^r with |r| <= ln(2) / 2 and a Taylor polynomial of degree 7, about 1 ulp. -infinity gives 0, NaN stays NaN.
inline __m512 exp_ps(__m512 x) {
  // max and min return their second operand when one is NaN.
  x = _mm512_min_ps(_mm512_set1_ps(89.0f), _mm512_max_ps(_mm512_set1_ps(-110.0f), x));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// 2^x * c[0], where c[0] + c[1] f + ... is 2^f * c[0] for f in 0..1; 0 far below 0, NaN stays.
inline __m512 exp2_ps(__m512 x, const float (&c)[4]) {
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
  __m512 p = _mm512_set1_ps(c[3]);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c[2]));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c[1]));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c[0]));
  return _mm512_scalef_ps(p, x);  // times 2^floor(x)
}

}  // namespace
