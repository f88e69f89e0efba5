// Quantised products with the matrix instruction of ARMv8.6: smmla multiplies two rows of 8 bytes by two others, four
// dot products at once, twice the work of sdot. So panels hold pairs of weight rows, 8 columns of both beside each
// other, and rows of x are paired likewise. With few rows of x half of that would be wasted, and sdot does them.
#include <arm_neon.h>

#include "backend/cpu/gemm_neon.h"

namespace gemma::cpu {
namespace {

inline int8x16_t low_halves(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s64(vtrn1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}
inline int8x16_t high_halves(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s64(vtrn2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

struct Smmla {
  static constexpr int kRows = 4;  // of x: 8 sums and 8 dot products, 2 registers of x, the others of weights

  // 16 columns (half h) of four rows: q[step][pair][row of the pair][i] is column 8 * step + i.
  static void store(int8_t* q, int four, int h, const uint32x4_t (&rows)[4]) {
    for (int i = 0; i < 2; ++i) {
      const int8x16_t a = vreinterpretq_s8_u32(rows[2 * i]);
      const int8x16_t b = vreinterpretq_s8_u32(rows[2 * i + 1]);
      vst1q_s8(q + 2 * h * 64 + (2 * four + i) * 16, low_halves(a, b));
      vst1q_s8(q + (2 * h + 1) * 64 + (2 * four + i) * 16, high_halves(a, b));
    }
  }

  // A block of pairs of rows of x; d and dsum are those of the first, the second, and both again.
  template <int kPairs>
  struct alignas(16) XBlock {
    int8_t q[4][kPairs][16];
    float d[kPairs][4];
    float dsum[2][kPairs][4];
  };

  template <class Type, int n_x>
  static void multiply(const Panels& panels, const QuantizedRows& x, int first_row, float* out, size_t out_stride,
                       std::byte* scratch) {
    constexpr int kPairs = (n_x + 1) / 2;
    auto* packed = reinterpret_cast<XBlock<kPairs>*>(scratch);
    pack<Type, n_x>(panels, x, first_row, packed);
    for (int p = 0; p * kLanes < panels.n_rows; ++p) {
      multiply_panel<Type, n_x>(panels, p, packed, out + p * kLanes, out_stride);
    }
  }

  // An odd last row is paired with itself.
  template <class Type, int n_x, int kPairs>
  static void pack(const Panels& panels, const QuantizedRows& x, int first_row, XBlock<kPairs>* packed) {
    const size_t blocks_per_row = static_cast<size_t>(x.n_cols / 32);
    const auto pair_of = [](float a, float b) {
      const float32x2_t v = vset_lane_f32(b, vdup_n_f32(a), 1);
      return vcombine_f32(v, v);
    };
    for (int p = 0; p < kPairs; ++p) {
      size_t i[2];
      for (int r = 0; r < 2; ++r) {
        i[r] = static_cast<size_t>(first_row + least(2 * p + r, n_x - 1)) * blocks_per_row +
               static_cast<size_t>(panels.first_block);
      }
      for (int b = 0; b < panels.n_blocks; ++b, ++i[0], ++i[1]) {
        XBlock<kPairs>& block = packed[b];
        for (size_t h = 0; h < 2; ++h) {
          const int8x16_t r0 = vld1q_s8(x.q + i[0] * 32 + 16 * h);
          const int8x16_t r1 = vld1q_s8(x.q + i[1] * 32 + 16 * h);
          vst1q_s8(block.q[2 * h][p], low_halves(r0, r1));
          vst1q_s8(block.q[2 * h + 1][p], high_halves(r0, r1));
        }
        vst1q_f32(block.d[p], pair_of(x.d[i[0]], x.d[i[1]]));
        if constexpr (Type::kMin && Type::kHalves) {
          for (size_t h = 0; h < 2; ++h)
            vst1q_f32(block.dsum[h][p], pair_of(x.dsum16[2 * i[0] + h], x.dsum16[2 * i[1] + h]));
        } else if constexpr (Type::kMin) {
          vst1q_f32(block.dsum[0][p], pair_of(x.dsum[i[0]], x.dsum[i[1]]));
        }
      }
    }
  }

  template <class Type, int n_x, int kPairs>
  static void multiply_panel(const Panels& panels, int panel, const XBlock<kPairs>* packed, float* out,
                             size_t out_stride) {
    const int n_lanes = least(kLanes, panels.n_rows - panel * kLanes);
    // acc[i][p]: weight rows 2 * i and 2 * i + 1, of each both rows of pair p.
    float32x4_t acc[4][kPairs];
    const auto row_of = [&](int r) { return out + static_cast<size_t>(r) * out_stride; };
    unrolled<kPairs>([&](auto p) __attribute__((always_inline)) {
      float32x4_t first[2] = {vdupq_n_f32(0), vdupq_n_f32(0)};
      float32x4_t second[2] = {vdupq_n_f32(0), vdupq_n_f32(0)};
      if (panels.first_block > 0) {
        load_lanes(row_of(2 * p), n_lanes, first);
        load_lanes(row_of(least(2 * p + 1, n_x - 1)), n_lanes, second);
      }
      unrolled<2>([&](auto k) __attribute__((always_inline)) {
        acc[2 * k][p] = vzip1q_f32(first[k], second[k]);
        acc[2 * k + 1][p] = vzip2q_f32(first[k], second[k]);
      });
    });
    const PanelBlock* block = panels.blocks + panel * kBlocks;
    for (int b = 0; b < panels.n_blocks; ++b, ++block, ++packed) {
      for (int part = 0; part < Type::kParts; ++part) {
        int32x4_t dot[4][kPairs];
        unrolled<4 / Type::kParts>([&](auto k) __attribute__((always_inline)) {
          const int step = 4 / Type::kParts * part + k;
          int8x16_t xq[kPairs];
          unrolled<kPairs>([&](auto p) __attribute__((always_inline)) { xq[p] = vld1q_s8(packed->q[step][p]); });
          unrolled<4>([&](auto i) __attribute__((always_inline)) {
            const int8x16_t w = vld1q_s8(block->q + step * 64 + i * 16);
            unrolled<kPairs>([&](auto p) __attribute__((always_inline)) {
              dot[i][p] = vmmlaq_s32(k == 0 ? vdupq_n_s32(0) : dot[i][p], w, xq[p]);
            });
          });
        });
        unrolled<4>([&](auto i) __attribute__((always_inline)) {
          // Each scale twice, for the two rows of x.
          const auto twice = [&](const float* lanes) {
            const float32x4_t v = vld1q_f32(lanes + i / 2 * 4);
            return i % 2 == 0 ? vzip1q_f32(v, v) : vzip2q_f32(v, v);
          };
          const float32x4_t d = twice(block->d[part]);
          unrolled<kPairs>([&](auto p) __attribute__((always_inline)) {
            acc[i][p] = vfmaq_f32(acc[i][p], to_float<Type>(dot[i][p]), vmulq_f32(d, vld1q_f32(packed->d[p])));
            if constexpr (Type::kMin) {
              acc[i][p] = vfmaq_f32(acc[i][p], twice(block->m[part]), vld1q_f32(packed->dsum[part][p]));
            }
          });
        });
      }
    }
    unrolled<kPairs>([&](auto p) __attribute__((always_inline)) {
      const float32x4_t first[2] = {vuzp1q_f32(acc[0][p], acc[1][p]), vuzp1q_f32(acc[2][p], acc[3][p])};
      const float32x4_t second[2] = {vuzp2q_f32(acc[0][p], acc[1][p]), vuzp2q_f32(acc[2][p], acc[3][p])};
      store_lanes(row_of(2 * p), n_lanes, first);
      if (2 * p + 1 < n_x) store_lanes(row_of(2 * p + 1), n_lanes, second);
    });
  }
};

}  // namespace

void gemm_quantized_neon_i8mm(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                              const Scratch& scratch) {
  with_type(w.type, [&](auto type) {
    using Type = decltype(type);
    if (x.n_rows <= kFewRows<Type>) return gemm_quantized_neon_dotprod(w, x, out, out_stride, scratch);
    run_panels<Type, Smmla>(w, x, out, out_stride, scratch);
  });
}

}  // namespace gemma::cpu
