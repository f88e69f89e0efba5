// What attention with products of 8 bits (full_attention.h) wants of a vector besides, but for the products: alike in the
// sets with 256-bit registers. Internal to each file that includes it.
#pragma once

#include "backend/cpu/full_attention.h"
#include "backend/cpu/vector_avx2.h"

namespace gemma::cpu {
namespace {

struct VectorCodes256 : Vector256 {
  using Int = __m256i;
  // Of the type that the instruction has in GCC's eyes: it stores arrays of __m256i to the stack, each time round a
  // loop.
  using Sums = int __attribute__((vector_size(32)));
  static Int ones() { return _mm256_set1_epi8(1); }
  static Float to_float(Sums sums) { return _mm256_cvtepi32_ps(reinterpret_cast<Int>(sums)); }
  static Int exp2_codes(Float x) {
    x = _mm256_max_ps(x, _mm256_set1_ps(-100.0f));
    const Float whole = _mm256_floor_ps(x);
    const Float f = _mm256_sub_ps(x, whole);
    Float p = _mm256_set1_ps(kExp2Codes[3]);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2Codes[2]));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2Codes[1]));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2Codes[0]));
    const Int power = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    return _mm256_cvtps_epi32(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power)));
  }
  static Int pack_codes(Int a, Int b, Int c, Int d) {
    const Int low = _mm256_or_si256(a, _mm256_slli_epi32(b, 8));
    return _mm256_or_si256(low, _mm256_or_si256(_mm256_slli_epi32(c, 16), _mm256_slli_epi32(d, 24)));
  }
  static void store_codes(uint32_t* p, Int v) { _mm256_store_si256(reinterpret_cast<Int*>(p), v); }
  static Float load_first(const float* p, int n) {
    if (n >= kLanes) return _mm256_loadu_ps(p);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
  }
  static void store_codes8(int8_t* p, Float x) {
    const Int whole = _mm256_cvtps_epi32(x);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
};

}  // namespace
}  // namespace gemma::cpu
