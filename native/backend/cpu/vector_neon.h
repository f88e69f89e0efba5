// Four floats in a register of NEON, for kernels that are written for any vector type; internal to each file that
// includes it.
#pragma once

#include <arm_neon.h>

#include "backend/cpu/exp.h"
#include "backend/cpu/lanes_neon.h"

namespace gemma::cpu {
namespace {

struct Vector128 {
  static constexpr int kLanes = 4;
  static constexpr int kColumns = 12;  // full_attention.h
  using Float = float32x4_t;
  static Float load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Float v) { vst1q_f32(p, v); }
  static Float set1(float v) { return vdupq_n_f32(v); }
  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float sub(Float a, Float b) { return vsubq_f32(a, b); }
  static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  static Float max(Float a, Float b) { return vmaxnmq_f32(a, b); }
  static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static Float fnma(Float a, Float b, Float c) { return vfmsq_f32(c, a, b); }
  static Float round(Float v) { return vrndnq_f32(v); }
  static Float clamp(Float v, float low, float high) {  // vmin and vmax pass NaN on
    return vminq_f32(set1(high), vmaxq_f32(set1(low), v));
  }
  static Float scale(Float p, Float n) {
    // 2^n as two normal factors: only the last product may round (to a subnormal).
    const int32x4_t whole = vcvtq_s32_f32(n);
    const int32x4_t half = vshrq_n_s32(whole, 1);
    const auto power = [](int32x4_t e) {
      return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(e, vdupq_n_s32(127)), 23));
    };
    return vmulq_f32(vmulq_f32(p, power(half)), power(vsubq_s32(whole, half)));
  }
  static Float exp(Float v) { return exp_of<Vector128>(v); }
  static float first_lane(Float v) { return vgetq_lane_f32(v, 0); }
  static float max_lanes(Float v) { return vmaxnmvq_f32(v); }
  static float sum_lanes(Float v) { return ::sum_lanes(v); }
};

}  // namespace
}  // namespace gemma::cpu
