// Quantised products with the dot product instructions of ARMv8.2: sdot adds, in each of four lanes, the products of
// four pairs of signed bytes.
//
// Few rows of x (decode): four weight rows at a time, each block unpacked into registers and used at once; the four
// partial sums of a row are added pairwise, so that a row ends up in a lane of its own. Many rows: panels in cache,
// four columns of a row beside each other, so that weight rows ride in the lanes and there is nothing to add up. Either
// way a block's dot product is an exact integer, and the order of arithmetic of kernels.h holds.
#include <arm_neon.h>

#include <atomic>

#include "backend/cpu/gemm_neon.h"

namespace gemma::cpu {
namespace {

// Four weight rows times kRows rows of x.
template <class Type, int kRows>
[[gnu::always_inline]] inline void multiply_few(Rows4 w, size_t w_row_bytes, QuantizedRows x, float32x4_t acc[kRows]) {
  const size_t n_blocks = static_cast<size_t>(x.n_cols / 32);
  unrolled<kRows>([&](auto r) __attribute__((always_inline)) { acc[r] = vdupq_n_f32(0); });
  for (size_t b = 0; b < n_blocks; b += Type::kGroup) {
    const size_t offset = b / Type::kGroup * Type::kGroupBytes;
    const uint8_t* at[4] = {w[0] + offset, w[1] + offset, w[2] + offset, w[3] + offset};
    prefetch_next<Type>(w[0], w_row_bytes, offset);
    const typename Type::Scales scales(at);
    unrolled<Type::kGroup>([&](auto s) __attribute__((always_inline)) {
      // Bytes that several blocks share are loaded again: kept, they would need more registers than there are.
      if constexpr (s > 0 && (s % 2 == 0 || kRows > 1)) std::atomic_signal_fence(std::memory_order_seq_cst);
      int32x4_t dot[kRows][Type::kParts][4];
      unrolled<4>([&](auto i) __attribute__((always_inline)) {
        int8x16_t c[2];
        Type::template codes<s>(at[i], c);
        unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
          const int8_t* q = x.q + (r * n_blocks + b + s) * 32;
          dot[r][0][i] = vdotq_s32(vdupq_n_s32(0), c[0], vld1q_s8(q));
          int32x4_t& last = dot[r][Type::kParts - 1][i];
          last = vdotq_s32(Type::kHalves ? vdupq_n_s32(0) : last, c[1], vld1q_s8(q + 16));
        });
      });
      unrolled<Type::kParts>([&](auto h) __attribute__((always_inline)) {
        const float32x4_t d = scales.template d<s, h>();
        unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
          const int32x4_t* v = dot[r][h];
          const int32x4_t rows = vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]));
          const size_t i = r * n_blocks + b + s;
          acc[r] = vfmaq_f32(acc[r], to_float<Type>(rows), vmulq_n_f32(d, x.d[i]));
          if constexpr (Type::kMin) {
            acc[r] = vfmaq_n_f32(acc[r], scales.template m<s, h>(), Type::kHalves ? x.dsum16[2 * i + h] : x.dsum[i]);
          }
        });
      });
    });
  }
}

template <class Type, int kRows>
void run_few(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride) {
  for (int row = w.row_begin; row < w.row_end; row += 4) {
    const uint8_t* p[4];
    for (int r = 0; r < 4; ++r) {
      const size_t n = static_cast<size_t>(least(row + r, w.row_end - 1));
      p[r] = reinterpret_cast<const uint8_t*>(w.w) + n * w.w_row_bytes;
    }
    float32x4_t acc[kRows];
    multiply_few<Type, kRows>(p, w.w_row_bytes, x, acc);
    unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
      float* o = out + static_cast<size_t>(r) * out_stride + row;
      if (row + 4 <= w.row_end) {
        vst1q_f32(o, acc[r]);
      } else {
        float lanes[4];
        vst1q_f32(lanes, acc[r]);
        std::memcpy(o, lanes, static_cast<size_t>(w.row_end - row) * sizeof(float));
      }
    });
  }
}

struct Sdot {
  static constexpr int kRows = 4;  // of x: 8 sums and 8 dot products, 2 registers of weights, 4 of x

  // 16 columns (half h) of four rows: q[j][row][i] is column 4 * j + i.
  static void store(int8_t* q, int four, int h, const uint32x4_t (&rows)[4]) {
    uint32x4_t t[4];
    transpose(rows, t);
    for (int j = 0; j < 4; ++j) vst1q_s8(q + (4 * h + j) * 32 + 16 * four, vreinterpretq_s8_u32(t[j]));
  }

  template <class Type, int n_x>
  static void multiply(const Panels& panels, const QuantizedRows& x, int first_row, float* out, size_t out_stride,
                       std::byte* /*scratch*/) {
    for (int p = 0; p * kLanes < panels.n_rows; ++p) {
      multiply_panel<Type, n_x>(panels, p, x, first_row, out + p * kLanes, out_stride);
    }
  }

  template <class Type, int n_x>
  static void multiply_panel(const Panels& panels, int panel, const QuantizedRows& x, int first_row, float* out,
                             size_t out_stride) {
    const size_t blocks_per_row = static_cast<size_t>(x.n_cols / 32);
    const int n_lanes = least(kLanes, panels.n_rows - panel * kLanes);
    size_t index[n_x];
    float32x4_t acc[n_x][2];
    unrolled<n_x>([&](auto r) __attribute__((always_inline)) {
      index[r] = static_cast<size_t>(first_row + r) * blocks_per_row + static_cast<size_t>(panels.first_block);
      float32x4_t before[2] = {vdupq_n_f32(0), vdupq_n_f32(0)};
      if (panels.first_block > 0) load_lanes(out + static_cast<size_t>(r) * out_stride, n_lanes, before);
      acc[r][0] = before[0];
      acc[r][1] = before[1];
    });
    const PanelBlock* block = panels.blocks + panel * kBlocks;
    for (size_t b = 0; b < static_cast<size_t>(panels.n_blocks); ++b, ++block) {
      for (int part = 0; part < Type::kParts; ++part) {
        int32x4_t dot[n_x][2];
        unrolled<2 / Type::kParts>([&](auto i) __attribute__((always_inline)) {
          const int h = part + i;
          int8x16_t xq[n_x];
          unrolled<n_x>([&](auto r)
                            __attribute__((always_inline)) { xq[r] = vld1q_s8(x.q + (index[r] + b) * 32 + 16 * h); });
          unrolled<4>([&](auto j) __attribute__((always_inline)) {
            constexpr int lane = j;
            const int8_t* q = block->q + (4 * h + j) * 32;
            const int8x16_t w[2] = {vld1q_s8(q), vld1q_s8(q + 16)};
            unrolled<n_x>([&](auto r) __attribute__((always_inline)) {
              constexpr bool kFirst = i == 0 && j == 0;
              dot[r][0] = vdotq_laneq_s32(kFirst ? vdupq_n_s32(0) : dot[r][0], w[0], xq[r], lane);
              dot[r][1] = vdotq_laneq_s32(kFirst ? vdupq_n_s32(0) : dot[r][1], w[1], xq[r], lane);
            });
          });
        });
        unrolled<2>([&](auto k) __attribute__((always_inline)) {
          const float32x4_t d = vld1q_f32(block->d[part] + 4 * k);
          unrolled<n_x>([&](auto r) __attribute__((always_inline)) {
            acc[r][k] = vfmaq_f32(acc[r][k], to_float<Type>(dot[r][k]), vmulq_n_f32(d, x.d[index[r] + b]));
            if constexpr (Type::kMin) {
              const size_t i = index[r] + b;
              const float dsum = Type::kHalves ? x.dsum16[2 * i + static_cast<size_t>(part)] : x.dsum[i];
              acc[r][k] = vfmaq_n_f32(acc[r][k], vld1q_f32(block->m[part] + 4 * k), dsum);
            }
          });
        });
      }
    }
    unrolled<n_x>([&](auto r) __attribute__((always_inline)) {
      const float32x4_t after[2] = {acc[r][0], acc[r][1]};
      store_lanes(out + static_cast<size_t>(r) * out_stride, n_lanes, after);
    });
  }
};

}  // namespace

void gemm_quantized_neon_dotprod(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                                 const Scratch& scratch) {
  with_type(w.type, [&](auto type) {
    using Type = decltype(type);
    if (x.n_rows == 1) return run_few<Type, 1>(w, x, out, out_stride);
    if (x.n_rows == 2) return run_few<Type, 2>(w, x, out, out_stride);
    if constexpr (kFewRows<Type> == 3) {
      if (x.n_rows == 3) return run_few<Type, 3>(w, x, out, out_stride);
    }
    run_panels<Type, Sdot>(w, x, out, out_stride, scratch);
  });
}

}  // namespace gemma::cpu
