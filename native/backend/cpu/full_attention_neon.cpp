// Attention without mask or cache with NEON.
#include <arm_neon.h>

#include "backend/cpu/exp_neon.h"
#include "backend/cpu/full_attention.h"
#include "backend/cpu/kernels_neon.h"

namespace gemma::cpu {
namespace {

struct Vector {
  static constexpr int kLanes = 4;
  static constexpr int kColumns = 12;
  using Float = float32x4_t;
  static Float load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Float v) { vst1q_f32(p, v); }
  static Float set1(float v) { return vdupq_n_f32(v); }
  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float sub(Float a, Float b) { return vsubq_f32(a, b); }
  static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  static Float max(Float a, Float b) { return vmaxnmq_f32(a, b); }
  static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static Float exp(Float v) { return exp_ps(v); }
};

}  // namespace

const FullAttention kExactAttentionNeon = ExactAttention<Vector>::kKernel;

}  // namespace gemma::cpu
