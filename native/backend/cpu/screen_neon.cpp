// The screen with the dot product instructions of ARMv8.2: eight columns of four rows in a register.
#include <arm_neon.h>

#include "backend/cpu/kernels_neon.h"
#include "backend/cpu/screen_loops.h"

namespace gemma::cpu {
namespace {

template <int kQueries>
void bound(const ScreenTable& table, int panel_begin, int panel_end, const ScreenQuery* queries) {
  constexpr size_t kFours = kScreenLanes / 4;
  constexpr int kChains = kQueries == 1 ? 2 : 1;  // of additions per row: with few queries one would wait for itself
  const size_t n_groups = static_cast<size_t>(table.n_cols / 8);
  const uint8x16_t low = vdupq_n_u8(0x0f);
  for (size_t panel = static_cast<size_t>(panel_begin); panel < static_cast<size_t>(panel_end); ++panel) {
    const uint8_t* codes = table.codes + panel * n_groups * 64;
    int32x4_t dot[kQueries][kFours][kChains];
    for (auto& query : dot) {
      for (auto& four : query) {
        for (int32x4_t& sum : four) sum = vdupq_n_s32(0);
      }
    }
    for (size_t g = 0; g < n_groups; ++g) {
      __builtin_prefetch(codes + g * 64 + 4096);
      int8x8_t q[kQueries];
      for (int i = 0; i < kQueries; ++i) q[i] = vld1_s8(queries[i].q + g * 8);
      for (size_t k = 0; k < kFours; ++k) {
        const uint8x16_t both = vld1q_u8(codes + g * 64 + 16 * k);
        const int8x16_t first = vreinterpretq_s8_u8(vandq_u8(both, low));
        const int8x16_t second = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
        for (int i = 0; i < kQueries; ++i) {
          int32x4_t* sums = dot[i][k];
          sums[0] = vdotq_lane_s32(sums[0], first, q[i], 0);
          sums[kChains - 1] = vdotq_lane_s32(sums[kChains - 1], second, q[i], 1);
        }
      }
    }
    const size_t row = panel * kScreenLanes;
    for (int i = 0; i < kQueries; ++i) {
      const ScreenQuery& query = queries[i];
      float32x4_t largest = vdupq_n_f32(0);
      for (size_t k = 0; k < kFours; ++k) {
        const size_t at = row + 4 * k;
        const int32x4_t sum = kChains == 1 ? dot[i][k][0] : vaddq_s32(dot[i][k][0], dot[i][k][kChains - 1]);
        const float32x4_t product = vmulq_f32(vaddq_f32(vcvtq_f32_s32(sum), vdupq_n_f32(query.offset)),
                                              vmulq_n_f32(vld1q_f32(table.step + at), query.scale));
        const float32x4_t margin = vaddq_f32(vmulq_n_f32(vld1q_f32(table.deviation + at), query.deviation_part),
                                             vmulq_n_f32(vld1q_f32(table.rounding + at), query.rounding_part));
        const float32x4_t upper = vaddq_f32(product, margin);
        vst1q_f32(query.bounds + at, upper);
        largest = k == 0 ? upper : vmaxq_f32(largest, upper);
      }
      query.maxima[panel] = vmaxvq_f32(largest);
    }
  }
}

}  // namespace

bool screen_pack_neon(float* columns, int n_cols, int block, uint8_t* codes, float* step, float* deviation,
                      float* rounding) {
  float squares[kScreenLanes];
  float inverse[kScreenLanes];
  float product[kScreenLanes];
  float length[kScreenLanes];
  if (!rotate_columns(columns, n_cols, block, squares)) return false;
  level_widths(squares, n_cols, inverse);
  for (size_t lane = 0; lane < kScreenLanes; lane += 4) {
    const float32x4_t scale = vld1q_f32(inverse + lane);
    float32x4_t products = vdupq_n_f32(0);
    float32x4_t lengths = vdupq_n_f32(0);
    for (size_t c = 0; c < static_cast<size_t>(n_cols); c += 8) {
      int32x4_t packed = vdupq_n_s32(0);
      for (size_t i = 0; i < 8; ++i) {
        const float32x4_t w = vld1q_f32(columns + (c + i) * kScreenLanes + lane);
        const float32x4_t scaled = vaddq_f32(vmulq_f32(w, scale), vdupq_n_f32(8));
        const int32x4_t code = vcvtq_s32_f32(vminq_f32(vmaxq_f32(scaled, vdupq_n_f32(0)), vdupq_n_f32(15)));
        const float32x4_t value = vsubq_f32(vcvtq_f32_s32(code), vdupq_n_f32(7.5f));
        products = vaddq_f32(products, vmulq_f32(w, value));
        lengths = vaddq_f32(lengths, vmulq_f32(value, value));
        packed = vorrq_s32(packed, vshlq_s32(code, vdupq_n_s32(static_cast<int>(i % 4 * 8 + i / 4 * 4))));
      }
      vst1q_u8(codes + c * 8 + lane * 4, vreinterpretq_u8_s32(packed));
    }
    vst1q_f32(product + lane, products);
    vst1q_f32(length + lane, lengths);
  }
  finish_panel(squares, inverse, product, length, step, deviation, rounding);
  return true;
}

void screen_bound_neon(const ScreenTable& table, int panel_begin, int panel_end, const ScreenQuery* queries,
                       int n_queries) {
  in_groups<4>(n_queries,
               [&](auto n, int first) { bound<decltype(n)::value>(table, panel_begin, panel_end, queries + first); });
}

}  // namespace gemma::cpu
