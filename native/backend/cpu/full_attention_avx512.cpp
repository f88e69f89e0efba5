// Attention without mask or cache with AVX-512.
#include <immintrin.h>

#include "backend/cpu/exp_avx512.h"
#include "backend/cpu/full_attention.h"
#include "backend/cpu/kernels_avx512.h"

namespace gemma::cpu {
namespace {

struct Vector {
  static constexpr int kLanes = 16;
  static constexpr int kColumns = 12;
  using Float = __m512;
  static Float load(const float* p) { return _mm512_load_ps(p); }
  static void store(float* p, Float v) { _mm512_store_ps(p, v); }
  static Float set1(float v) { return _mm512_set1_ps(v); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float exp(Float v) { return exp_ps(v); }
};

}  // namespace

const FullAttention kExactAttentionAvx512 = ExactAttention<Vector>::kKernel;

}  // namespace gemma::cpu
