// Attention without mask or cache with AVX-512.
#include <immintrin.h>

#include "backend/cpu/full_attention.h"
#include "backend/cpu/kernels_avx512.h"
#include "backend/cpu/vector_avx512.h"

namespace gemma::cpu {
namespace {

struct Vector : Vector512 {
  using Int = __m512i;
  static constexpr int kQueryOffset = 128;  // the instruction takes unsigned x and signed y
  static constexpr int kValueOffset = 0;
  // Of the type that the instruction has in GCC's eyes: it stores arrays of __m512i to the stack, each time round a
  // loop.
  using Sums = int __attribute__((vector_size(64)));
  struct ScoreOps {
    using Sums = Vector::Sums;
    static Int load(const uint32_t* x) { return _mm512_load_si512(x); }
    static Int broadcast(const uint32_t* y) { return _mm512_set1_epi32(static_cast<int>(*y)); }
    static Sums multiply_add(Sums sums, Int x, Int y) {
      return reinterpret_cast<Sums>(_mm512_dpbusd_epi32(reinterpret_cast<Int>(sums), x, y));
    }
  };
  using ValueOps = ScoreOps;
  static Int ones() { return _mm512_set1_epi8(1); }
  static Sums without_offset(Sums products, Sums /*total*/) { return products; }
  static Float to_float(Sums sums) { return _mm512_cvtepi32_ps(reinterpret_cast<Int>(sums)); }
  static Int exp2_codes(Float x) { return _mm512_cvtps_epi32(exp2_ps(x, kExp2Codes)); }
  static Int pack_codes(Int a, Int b, Int c, Int d) {
    constexpr int kOr = 0xfe;
    const Int low = _mm512_or_si512(a, _mm512_slli_epi32(b, 8));
    return _mm512_ternarylogic_epi32(low, _mm512_slli_epi32(c, 16), _mm512_slli_epi32(d, 24), kOr);
  }
  static Float load_first(const float* p, int n) {
    return n >= kLanes ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(first_lanes(n), p);
  }
  static void store_codes8(int8_t* p, Float x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
  }
  static void store_codes(uint32_t* p, Int v) { _mm512_store_si512(p, v); }
};

}  // namespace

const FullAttention kExactAttentionAvx512 = ExactAttention<Vector>::kKernel;
const FullAttention kFastAttentionAvx512Vnni = FastAttention<Vector>::kKernel;

}  // namespace gemma::cpu
