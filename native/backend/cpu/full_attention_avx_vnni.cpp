// Attention without mask or cache in products of 8 bits with AVX-VNNI.
#include "backend/cpu/kernels_avx2.h"
#include "backend/cpu/vector_codes_avx2.h"

namespace gemma::cpu {
namespace {

struct Vector : VectorCodes256 {
  static constexpr int kQueryOffset = 128;  // the instruction takes unsigned x and signed y
  static constexpr int kValueOffset = 0;
  struct ScoreOps {
    using Sums = Vector::Sums;
    static Int load(const uint32_t* x) { return _mm256_load_si256(reinterpret_cast<const Int*>(x)); }
    static Int broadcast(const uint32_t* y) { return _mm256_set1_epi32(static_cast<int>(*y)); }
    static Sums multiply_add(Sums sums, Int x, Int y) {
      return reinterpret_cast<Sums>(_mm256_dpbusd_avx_epi32(reinterpret_cast<Int>(sums), x, y));
    }
  };
  using ValueOps = ScoreOps;
  static Sums without_offset(Sums products, Sums /*total*/) { return products; }
};

}  // namespace

const FullAttention kFastAttentionAvxVnni = FastAttention<Vector>::kKernel;

}  // namespace gemma::cpu
