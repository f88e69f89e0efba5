// Attention without mask or cache with NEON and its dot products.
#include <arm_neon.h>

#include "backend/cpu/full_attention.h"
#include "backend/cpu/kernels_neon.h"
#include "backend/cpu/vector_neon.h"

namespace gemma::cpu {
namespace {

struct Vector : Vector128 {
  using Int = uint32x4_t;
  static constexpr int kQueryOffset = 0;
  static constexpr int kValueOffset = 128;  // both factors signed, or both unsigned: weights take all 8 bits
  using Sums = int32x4_t;
  struct ScoreOps {
    using Sums = int32x4_t;
    static int8x16_t load(const uint32_t* x) { return vreinterpretq_s8_u32(vld1q_u32(x)); }
    static int8x16_t broadcast(const uint32_t* y) { return vreinterpretq_s8_u32(vld1q_dup_u32(y)); }
    static Sums multiply_add(Sums sums, int8x16_t x, int8x16_t y) { return vdotq_s32(sums, x, y); }
  };
  struct ValueOps {
    using Sums = int32x4_t;
    static Int load(const uint32_t* x) { return vld1q_u32(x); }
    static Int broadcast(const uint32_t* y) { return vld1q_dup_u32(y); }
    static Sums multiply_add(Sums sums, Int x, Int y) {
      return vreinterpretq_s32_u32(
          vdotq_u32(vreinterpretq_u32_s32(sums), vreinterpretq_u8_u32(x), vreinterpretq_u8_u32(y)));
    }
  };
  static Int ones() { return vreinterpretq_u32_u8(vdupq_n_u8(1)); }
  static Sums without_offset(Sums products, Sums total) { return vmlsq_n_s32(products, total, kValueOffset); }
  static Float to_float(Sums sums) { return vcvtq_f32_s32(sums); }
  static Int exp2_codes(Float x) {
    x = vmaxq_f32(x, vdupq_n_f32(-100.0f));
    const Float whole = vrndmq_f32(x);
    const Float f = vsubq_f32(x, whole);
    Float p = vdupq_n_f32(kExp2Codes[3]);
    p = vfmaq_f32(vdupq_n_f32(kExp2Codes[2]), p, f);
    p = vfmaq_f32(vdupq_n_f32(kExp2Codes[1]), p, f);
    p = vfmaq_f32(vdupq_n_f32(kExp2Codes[0]), p, f);
    const int32x4_t power = vshlq_n_s32(vcvtq_s32_f32(whole), 23);
    return vcvtnq_u32_f32(vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), power)));
  }
  static Int pack_codes(Int a, Int b, Int c, Int d) {
    return vsliq_n_u32(vsliq_n_u32(vsliq_n_u32(a, b, 8), c, 16), d, 24);
  }
  static void store_codes(uint32_t* p, Int v) { vst1q_u32(p, v); }
  static Float load_first(const float* p, int n) {
    if (n >= kLanes) return vld1q_f32(p);
    float lanes[kLanes] = {};
    std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
    return vld1q_f32(lanes);
  }
  static void store_codes8(int8_t* p, Float x) {
    const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(x));
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
    vst1_lane_s32(reinterpret_cast<int32_t*>(p), vreinterpret_s32_s8(bytes), 0);
  }
};

}  // namespace

const FullAttention kExactAttentionNeon = ExactAttention<Vector>::kKernel;
const FullAttention kFastAttentionNeonDotprod = FastAttention<Vector>::kKernel;

}  // namespace gemma::cpu
