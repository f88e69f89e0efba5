// Eight floats in a register of AVX2, for kernels that are written for any vector type; internal to each file that
// includes it.
#pragma once

#include <immintrin.h>

#include "backend/cpu/exp.h"
#include "backend/cpu/lanes_avx2.h"

namespace gemma::cpu {
namespace {

struct Vector256 {
  static constexpr int kLanes = 8;
  static constexpr int kColumns = 6;  // full_attention.h
  using Float = __m256;
  static Float load(const float* p) { return _mm256_load_ps(p); }
  static void store(float* p, Float v) { _mm256_store_ps(p, v); }
  static Float set1(float v) { return _mm256_set1_ps(v); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float fnma(Float a, Float b, Float c) { return _mm256_fnmadd_ps(a, b, c); }
  static Float round(Float v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Float clamp(Float v, float low, float high) {
    // max and min return their second operand when one is NaN.
    return _mm256_min_ps(set1(high), _mm256_max_ps(set1(low), v));
  }
  static Float scale(Float p, Float n) {
    // 2^n as two normal factors: only the last product may round (to a subnormal).
    const __m256i whole = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    const auto power = [](__m256i e) {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
    };
    return _mm256_mul_ps(_mm256_mul_ps(p, power(half)), power(_mm256_sub_epi32(whole, half)));
  }
  static Float exp(Float v) { return exp_of<Vector256>(v); }
  static float first_lane(Float v) { return _mm256_cvtss_f32(v); }
  static float max_lanes(Float v) { return ::max_lanes(v); }
  static float sum_lanes(Float v) { return ::sum_lanes(v); }
  static Float sum_lanes(const Float* v) { return ::sum_lanes(v); }
};

}  // namespace
}  // namespace gemma::cpu
