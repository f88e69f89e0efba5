// The vectors of full_attention.h with AVX2, for the sets of 256 bits; internal to each file that includes it.
#pragma once

#include <immintrin.h>

#include "backend/cpu/exp_avx2.h"
#include "backend/cpu/full_attention.h"
#include "backend/cpu/lanes_avx2.h"

namespace gemma::cpu {
namespace {

struct Vector256 {
  static constexpr int kLanes = 8;
  static constexpr int kColumns = 6;
  using Float = __m256;
  static Float load(const float* p) { return _mm256_load_ps(p); }
  static void store(float* p, Float v) { _mm256_store_ps(p, v); }
  static Float set1(float v) { return _mm256_set1_ps(v); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float exp(Float v) { return exp_ps(v); }
};

}  // namespace
}  // namespace gemma::cpu
