// Attention over the paged cache with AVX-512.
#include <immintrin.h>

#include "backend/cpu/attention_vectors.h"
#include "backend/cpu/kernels_avx512.h"
#include "backend/cpu/kv_rows_avx512.h"
#include "backend/cpu/vector_avx512.h"

namespace gemma::cpu {
namespace {

struct Vector : Vector512 {
  using LoadF32 = cpu::LoadF32;
  using LoadF16 = cpu::LoadF16;
  using LoadQ8 = cpu::LoadQ8;

  using Mask = __mmask16;
  static Mask visible(int first, int from, int to) {
    return static_cast<Mask>(lanes_below(to - first) & ~lanes_below(from - first));
  }
  static Float where(Mask mask, Float v, Float otherwise) { return _mm512_mask_mov_ps(otherwise, mask, v); }
  static Float keep(Mask mask, Float v) { return _mm512_maskz_mov_ps(mask, v); }
  template <int kRows>
  static void store_rows(float* p, Float v) {
    if constexpr (kRows == 2) {
      _mm256_storeu_ps(p, _mm512_castps512_ps256(v));
      _mm256_storeu_ps(p + kPagePositions, _mm512_extractf32x8_ps(v, 1));
    } else {
      _mm_storeu_ps(p, _mm512_castps512_ps128(v));
      _mm_storeu_ps(p + kPagePositions, _mm512_extractf32x4_ps(v, 1));
      _mm_storeu_ps(p + 2 * kPagePositions, _mm512_extractf32x4_ps(v, 2));
      _mm_storeu_ps(p + 3 * kPagePositions, _mm512_extractf32x4_ps(v, 3));
    }
  }
  static void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }
};

}  // namespace

void attention_avx512(const AttentionTile& tile, const Scratch& scratch) {
  PagedAttention<Vector>::attend(tile, scratch);
}

}  // namespace gemma::cpu
