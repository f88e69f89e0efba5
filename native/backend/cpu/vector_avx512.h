// Sixteen floats in a register of AVX-512, for kernels that are written for any vector type; internal to each file that
// includes it (all are compiled with the same flags for what is used here).
#pragma once

#include <immintrin.h>

#include "backend/cpu/exp.h"
#include "backend/cpu/lanes_avx512.h"

namespace gemma::cpu {
namespace {

struct Vector512 {
  static constexpr int kLanes = 16;
  static constexpr int kColumns = 12;  // full_attention.h
  using Float = __m512;
  static Float load(const float* p) { return _mm512_load_ps(p); }
  static void store(float* p, Float v) { _mm512_store_ps(p, v); }
  static Float set1(float v) { return _mm512_set1_ps(v); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float fnma(Float a, Float b, Float c) { return _mm512_fnmadd_ps(a, b, c); }
  static Float round(Float v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Float clamp(Float v, float low, float high) {
    // max and min return their second operand when one is NaN.
    return _mm512_min_ps(set1(high), _mm512_max_ps(set1(low), v));
  }
  static Float scale(Float p, Float n) { return _mm512_scalef_ps(p, n); }
  static Float exp(Float v) { return exp_of<Vector512>(v); }
  static float first_lane(Float v) { return _mm512_cvtss_f32(v); }
  static float max_lanes(Float v) { return _mm512_reduce_max_ps(v); }
  static float sum_lanes(Float v) { return _mm512_reduce_add_ps(v); }
  static Float sum_lanes(const Float* v) { return ::sum_lanes(v); }
};

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
}  // namespace gemma::cpu
