// Attention without mask or cache with AVX2: in float32, and in products of 8 bits.
#include "backend/cpu/kernels_avx2.h"
#include "backend/cpu/vector_codes_avx2.h"

namespace gemma::cpu {
namespace {

// A product of four codes a lane takes four instructions, where vpdpbusd takes one; floats take eight.
struct Vector : VectorCodes256 {
  static constexpr int kColumns = 4;  // factors take more registers than floats
  static constexpr int kQueryOffset = 0;
  static constexpr int kValueOffset = 128;

  static Sums plus(Sums sums, Int pairs) {
    return reinterpret_cast<Sums>(_mm256_add_epi32(reinterpret_cast<Int>(sums), pairs));
  }

  // |x| times y with the sign of x: at most 2 * 127 * 127 for a pair, so its sum fits into 16 bits.
  struct ScoreOps {
    using Sums = Vector::Sums;
    struct Query {
      Int codes;
      Int magnitudes;
    };
    static Query load(const uint32_t* x) {
      const Int codes = _mm256_load_si256(reinterpret_cast<const Int*>(x));
      return {codes, _mm256_abs_epi8(codes)};
    }
    static Int broadcast(const uint32_t* y) { return _mm256_set1_epi32(static_cast<int>(*y)); }
    static Sums multiply_add(Sums sums, const Query& x, Int y) {
      const Int pairs = _mm256_maddubs_epi16(x.magnitudes, _mm256_sign_epi8(y, x.codes));
      return plus(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
  };

  // A pair of products of 255 does not fit into 16 bits, so unsigned codes are taken apart: the even ones and the odd
  // ones as 16 bits.
  struct ValueOps {
    using Sums = Vector::Sums;
    struct Apart {
      Int even;
      Int odd;
      explicit Apart(Int v) : even(_mm256_and_si256(v, _mm256_set1_epi16(0xff))), odd(_mm256_srli_epi16(v, 8)) {}
    };
    static Apart load(const uint32_t* x) { return Apart(_mm256_load_si256(reinterpret_cast<const Int*>(x))); }
    static Apart broadcast(const uint32_t* y) { return Apart(_mm256_set1_epi32(static_cast<int>(*y))); }
    static Sums multiply_add(Sums sums, const Apart& x, const Apart& y) {
      return plus(plus(sums, _mm256_madd_epi16(x.even, y.even)), _mm256_madd_epi16(x.odd, y.odd));
    }
    static Sums multiply_add(Sums sums, Int x, Int y) { return multiply_add(sums, Apart(x), Apart(y)); }
  };
  static Sums without_offset(Sums products, Sums total) { return products - (total << 7); }
};

}  // namespace

const FullAttention kExactAttentionAvx2 = ExactAttention<Vector256>::kKernel;
const FullAttention kFastAttentionAvx2 = FastAttention<Vector>::kKernel;

}  // namespace gemma::cpu
