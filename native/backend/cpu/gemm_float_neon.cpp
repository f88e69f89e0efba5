// Products of F32, F16 and BF16 weights with NEON: the 16 partial sums of kernels.h are four registers.
#include <arm_neon.h>

#include <cstring>

#include "backend/cpu/float_products.h"
#include "backend/cpu/kernels_neon.h"
#include "backend/cpu/low_rank.h"
#include "backend/cpu/unrolled.h"

namespace gemma::cpu {
namespace {

struct F32 {
  static constexpr size_t kBytes = 4;
  static float32x4_t load(const std::byte* p) {
    return vreinterpretq_f32_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(p)));
  }
};
struct F16 {
  static constexpr size_t kBytes = 2;
  static float32x4_t load(const std::byte* p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(reinterpret_cast<const uint8_t*>(p))));
  }
};
struct BF16 {
  static constexpr size_t kBytes = 2;
  static float32x4_t load(const std::byte* p) {
    const uint16x4_t v = vreinterpret_u16_u8(vld1_u8(reinterpret_cast<const uint8_t*>(p)));
    return vreinterpretq_f32_u32(vshll_n_u16(v, 16));
  }
};

// The sum of 16 lanes as the tree of kernels.h.
inline float tree_sum(const float32x4_t v[4]) {
  const float32x4_t four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

// The last n < 16 columns. Sums past the end keep their bits: adding 0 would turn -0 into 0.
template <class Type>
[[gnu::noinline]] void add_columns(const std::byte* w, const float* x, size_t n, float32x4_t sums[4]) {
  alignas(16) std::byte stored[16 * Type::kBytes] = {};
  float values[16] = {};
  float before[16];
  float after[16];
  std::memcpy(stored, w, n * Type::kBytes);
  std::memcpy(values, x, n * sizeof(float));
  for (size_t h = 0; h < 4; ++h) {
    vst1q_f32(before + 4 * h, sums[h]);
    vst1q_f32(after + 4 * h, vfmaq_f32(sums[h], Type::load(stored + 4 * h * Type::kBytes), vld1q_f32(values + 4 * h)));
  }
  std::memcpy(before, after, n * sizeof(float));
  for (size_t h = 0; h < 4; ++h) sums[h] = vld1q_f32(before + 4 * h);
}

struct FloatKernel {
  using F32 = cpu::F32;
  using F16 = cpu::F16;
  using BF16 = cpu::BF16;
  static constexpr int kSingle = 4;
  static constexpr int kW = 2;
  static constexpr int kX = 3;

  // kW weight rows times kX rows of x; acc[..][h] are partial sums 4 * h .. 4 * h + 3.
  template <class Type, int kW, int kX>
  static void multiply(const std::byte* w, size_t w_row_bytes, const float* x, int n_cols, float* out,
                       size_t out_stride) {
    const size_t cols = static_cast<size_t>(n_cols);
    const auto weights = [&](int i) { return w + static_cast<size_t>(i) * w_row_bytes; };
    const auto row_of_x = [&](int r) { return x + static_cast<size_t>(r) * cols; };
    float32x4_t acc[kW][kX][4];
    unrolled<kW * kX>([&](auto k) __attribute__((always_inline)) {
      unrolled<4>([&](auto h) __attribute__((always_inline)) { acc[k / kX][k % kX][h] = vdupq_n_f32(0); });
    });
    size_t j = 0;
    for (; j + 16 <= cols; j += 16) {
      if constexpr (kX == 1) {
        unrolled<kW>([&](auto i)
                         __attribute__((always_inline)) { __builtin_prefetch(weights(i + kW) + j * Type::kBytes); });
      }
      unrolled<4>([&](auto h) __attribute__((always_inline)) {
        const size_t column = j + 4 * h;
        float32x4_t wv[kW];
        unrolled<kW>([&](auto i)
                         __attribute__((always_inline)) { wv[i] = Type::load(weights(i) + column * Type::kBytes); });
        unrolled<kX>([&](auto r) __attribute__((always_inline)) {
          const float32x4_t xv = vld1q_f32(row_of_x(r) + column);
          unrolled<kW>([&](auto i)
                           __attribute__((always_inline)) { acc[i][r][h] = vfmaq_f32(acc[i][r][h], wv[i], xv); });
        });
      });
    }
    unrolled<kW * kX>([&](auto k) __attribute__((always_inline)) {
      constexpr int i = k / kX;
      constexpr int r = k % kX;
      float32x4_t sums[4] = {acc[i][r][0], acc[i][r][1], acc[i][r][2], acc[i][r][3]};
      if (j < cols) add_columns<Type>(weights(i) + j * Type::kBytes, row_of_x(r) + j, cols - j, sums);
      out[static_cast<size_t>(r) * out_stride + static_cast<size_t>(i)] = tree_sum(sums);
    });
  }
};

}  // namespace

void gemm_float_neon(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride,
                     const Scratch& /*scratch*/) {
  gemm_float<FloatKernel>(w, x, n_x, n_cols, out, out_stride);
}

namespace {

struct LowRankLanes {
  using F32 = cpu::F32;
  using F16 = cpu::F16;
  using BF16 = cpu::BF16;
  using Float = float32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kRows = 4;
  static constexpr int kColumns = 16;
  static constexpr int kSingleColumns = 32;
  static Float set1(float v) { return vdupq_n_f32(v); }
  static Float load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Float v) { vst1q_f32(p, v); }
  static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  static Float div(Float a, Float b) { return vdivq_f32(a, b); }
  static Float root(Float v) { return vsqrtq_f32(v); }
  static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
};

}  // namespace

void add_low_rank_neon(const LowRankRows& rows, int col_begin, int col_end) {
  add_low_rank<LowRankLanes>(rows, col_begin, col_end);
}

}  // namespace gemma::cpu
