// Products of F32, F16 and BF16 weights with NEON: the 16 partial sums of kernels.h are four registers.
#include <arm_neon.h>

#include <cstring>

#include "backend/cpu/kernels_neon.h"

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

// kW weight rows times kX rows of x; acc[..][h] are partial sums 4 * h .. 4 * h + 3.
template <class Type, int kW, int kX>
void multiply_float(const std::byte* w, size_t w_row_bytes, const float* x, int n_cols, float* out, size_t out_stride) {
  float32x4_t acc[kW][kX][4];
  for (auto& row : acc) {
    for (auto& sums : row) {
      for (float32x4_t& v : sums) v = vdupq_n_f32(0);
    }
  }
  const size_t cols = static_cast<size_t>(n_cols);
  size_t j = 0;
  for (; j + 16 <= cols; j += 16) {
    if constexpr (kX == 1) {
      for (size_t i = 0; i < kW; ++i) __builtin_prefetch(w + (i + kW) * w_row_bytes + j * Type::kBytes);
    }
    for (size_t h = 0; h < 4; ++h) {
      const size_t column = j + 4 * h;
      float32x4_t wv[kW];
      for (size_t i = 0; i < kW; ++i) wv[i] = Type::load(w + i * w_row_bytes + column * Type::kBytes);
      for (size_t r = 0; r < kX; ++r) {
        const float32x4_t xv = vld1q_f32(x + r * cols + column);
        for (size_t i = 0; i < kW; ++i) acc[i][r][h] = vfmaq_f32(acc[i][r][h], wv[i], xv);
      }
    }
  }
  if (j < cols) {
    const size_t left = cols - j;
    for (size_t i = 0; i < kW; ++i) {
      alignas(16) std::byte stored[16 * Type::kBytes] = {};
      std::memcpy(stored, w + i * w_row_bytes + j * Type::kBytes, left * Type::kBytes);
      for (size_t r = 0; r < kX; ++r) {
        float values[16] = {};
        std::memcpy(values, x + r * cols + j, left * sizeof(float));
        for (size_t h = 0; 4 * h < left; ++h) {
          const float32x4_t next =
              vfmaq_f32(acc[i][r][h], Type::load(stored + 4 * h * Type::kBytes), vld1q_f32(values + 4 * h));
          // Lanes past the end keep their bits: adding 0 would turn -0 into 0.
          const uint32_t lanes[4] = {0, 1, 2, 3};
          const uint32x4_t inside = vcltq_u32(vld1q_u32(lanes), vdupq_n_u32(static_cast<uint32_t>(left - 4 * h)));
          acc[i][r][h] = vbslq_f32(inside, next, acc[i][r][h]);
        }
      }
    }
  }
  for (size_t i = 0; i < kW; ++i) {
    for (size_t r = 0; r < kX; ++r) out[r * out_stride + i] = tree_sum(acc[i][r]);
  }
}

template <class Type, int kW, int kX>
void multiply_float_rows(const std::byte* w, size_t w_row_bytes, const float* x, int n_x, int n_cols, float* out,
                         size_t out_stride) {
  const auto row = [&](int r) { return x + static_cast<size_t>(r) * static_cast<size_t>(n_cols); };
  int r = 0;
  for (; r + kX <= n_x; r += kX) {
    multiply_float<Type, kW, kX>(w, w_row_bytes, row(r), n_cols, out + static_cast<size_t>(r) * out_stride, out_stride);
  }
  for (; r < n_x; ++r) {
    multiply_float<Type, kW, 1>(w, w_row_bytes, row(r), n_cols, out + static_cast<size_t>(r) * out_stride, out_stride);
  }
}

template <class Type>
void gemm_float_type(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride) {
  int n = w.row_begin;
  const auto row = [&] { return w.w + static_cast<size_t>(n) * w.w_row_bytes; };
  if (n_x == 1) {
    for (; n + 4 <= w.row_end; n += 4) multiply_float<Type, 4, 1>(row(), w.w_row_bytes, x, n_cols, out + n, out_stride);
  } else {
    for (; n + 2 <= w.row_end; n += 2)
      multiply_float_rows<Type, 2, 3>(row(), w.w_row_bytes, x, n_x, n_cols, out + n, out_stride);
  }
  for (; n < w.row_end; ++n) multiply_float_rows<Type, 1, 3>(row(), w.w_row_bytes, x, n_x, n_cols, out + n, out_stride);
}

}  // namespace

void gemm_float_neon(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride,
                     const Scratch& /*scratch*/) {
  switch (w.type) {
    case TensorType::kF32: return gemm_float_type<F32>(w, x, n_x, n_cols, out, out_stride);
    case TensorType::kF16: return gemm_float_type<F16>(w, x, n_x, n_cols, out, out_stride);
    default: return gemm_float_type<BF16>(w, x, n_x, n_cols, out, out_stride);
  }
}

}  // namespace gemma::cpu
