// Attention over the paged cache with AVX2.
#include <immintrin.h>

#include <cstring>

#include "backend/cpu/attention_vectors.h"
#include "backend/cpu/kernels_avx2.h"
#include "backend/cpu/vector_avx2.h"

namespace gemma::cpu {
namespace {

struct Vector : Vector256 {
  // Values j..j+7 of a row of the cache; j is a multiple of 8.
  struct LoadF32 {
    static constexpr size_t kValueBytes = 4;
    static __m256 at(const std::byte* row, size_t j) {
      return _mm256_loadu_ps(reinterpret_cast<const float*>(row + j * 4));
    }
  };
  struct LoadF16 {
    static constexpr size_t kValueBytes = 2;
    static __m256 at(const std::byte* row, size_t j) {
      return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + j * 2)));
    }
  };
  struct LoadQ8 {
    static constexpr size_t kValueBytes = 0;  // whole blocks: no row ends inside 8 values
    static __m256 at(const std::byte* row, size_t j) {
      const std::byte* block = row + j / 32 * kKvBlockBytes;
      uint16_t half = 0;
      std::memcpy(&half, block, 2);
      const __m256 d = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
      const __m128i q = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(block + 2 + j % 32));
      return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)), d);
    }
  };

  using Mask = __m256;  // all bits of a lane, or none
  static Mask visible(int first, int from, int to) {
    const __m256i p = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(p, _mm256_set1_epi32(from - 1)),
                                                _mm256_cmpgt_epi32(_mm256_set1_epi32(to), p)));
  }
  static Float where(Mask mask, Float v, Float otherwise) { return _mm256_blendv_ps(otherwise, v, mask); }
  static Float keep(Mask mask, Float v) { return _mm256_and_ps(v, mask); }
  template <int kRows>
  static void store_rows(float* p, Float v) {
    const __m128 low = _mm256_castps256_ps128(v);
    const __m128 high = _mm256_extractf128_ps(v, 1);
    if constexpr (kRows == 2) {
      _mm_storeu_ps(p, low);
      _mm_storeu_ps(p + kPagePositions, high);
    } else {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), low);
      _mm_storeh_pi(reinterpret_cast<__m64*>(p + kPagePositions), low);
      _mm_storel_pi(reinterpret_cast<__m64*>(p + 2 * kPagePositions), high);
      _mm_storeh_pi(reinterpret_cast<__m64*>(p + 3 * kPagePositions), high);
    }
  }
  static void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }
};

}  // namespace

void attention_avx2(const AttentionTile& tile, const Scratch& scratch) {
  PagedAttention<Vector>::attend(tile, scratch);
}

}  // namespace gemma::cpu
