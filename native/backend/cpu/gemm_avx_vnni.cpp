// Quantised matrix products with AVX-VNNI (Alder Lake, Zen 5 and later): the panels of AVX2 (gemm_panels_avx2.h), bytes
// multiplied and added up in 32 bits by one instruction, vpdpbusd. It takes unsigned codes times signed x, so codes of
// all 8 bits are stored with an offset of 128.
#include <immintrin.h>

#include "backend/cpu/gemm_panels_avx2.h"
#include "backend/cpu/kernels_avx2.h"

namespace gemma::cpu {
namespace {

struct Dpbusd {
  static constexpr bool kSigned = false;
  static constexpr bool kOffsetLast = false;

  template <class Kind>
  struct Codes {
    __m256i w;
    Codes() = default;
    GEMMA_INLINE explicit Codes(__m256i v) : w(v) {}
  };

  template <class Kind>
  struct Dot {
    __m256i total;
    GEMMA_INLINE __m256i& latest() { return total; }
    GEMMA_INLINE void add(int, const Codes<Kind>& codes, __m256i four, bool /*in_tile*/) {
      total = _mm256_dpbusd_avx_epi32(total, codes.w, four);
    }
  };
};

}  // namespace

void gemm_quantized_avx_vnni(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                             const Scratch& scratch) {
  gemm_quantized<Dpbusd>(w, x, out, out_stride, scratch);
}

}  // namespace gemma::cpu
