// The sum of the lanes of a vector for NEON, internal to each file that includes it.
#pragma once

#include <arm_neon.h>

namespace {

inline float sum_lanes(float32x4_t v) {
  const float32x2_t two = vadd_f32(vget_low_f32(v), vget_high_f32(v));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

}  // namespace
