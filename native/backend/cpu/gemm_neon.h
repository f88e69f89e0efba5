// What the quantised products of arm64 have in common: panels of 8 weight rows unpacked into cache, and the walk over
// weight rows, columns and rows of x. Internal to each file that includes it.
#pragma once

#include "backend/cpu/kernels_neon.h"
#include "backend/cpu/small_math.h"
#include "backend/cpu/unpack_neon.h"

namespace gemma::cpu {
namespace {

constexpr int kLanes = 8;  // weight rows of a panel
constexpr int kPanels = 4;
constexpr int kBlocks = 16;  // of 32 columns in a panel, a multiple of every type's group: four panels are 24 KiB

// Rows of x up to which weights are unpacked into registers instead (gemm_neon_dotprod.cpp): as many as fit.
template <class Type>
constexpr int kFewRows = Type::kHalves ? 2 : 3;

// One block of 32 columns of 8 weight rows; each product has an order of bytes of its own.
struct alignas(64) PanelBlock {
  int8_t q[32 * kLanes];
  float d[2][kLanes];  // scale of each half (equal when the type has one per block)
  float m[2][kLanes];  // minimum, for types that have one
};

// Unpacked columns of up to kPanels panels.
struct Panels {
  const PanelBlock* blocks;  // panels are kBlocks apart
  int n_rows;                // of the weight
  int n_blocks;
  int first_block;  // of x's row
};

template <class Type>
inline float32x4_t to_float(int32x4_t dot) {
  if constexpr (Type::kFractionBits == 0)
    return vcvtq_f32_s32(dot);
  else
    return vcvtq_n_f32_s32(dot, Type::kFractionBits);
}

// The first n of eight lanes; all of them is the common case.
inline void load_lanes(const float* p, int n, float32x4_t v[2]) {
  float lanes[kLanes] = {};
  if (n < kLanes) p = static_cast<const float*>(std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float)));
  v[0] = vld1q_f32(p);
  v[1] = vld1q_f32(p + 4);
}
inline void store_lanes(float* p, int n, const float32x4_t v[2]) {
  float lanes[kLanes];
  float* to = n < kLanes ? lanes : p;
  vst1q_f32(to, v[0]);
  vst1q_f32(to + 4, v[1]);
  if (n < kLanes) std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
}

// The bytes that the next four rows will need, as far along as these four are; prefetches past the matrix are harmless.
// (GCC 12 drops prefetches in a loop of their own.)
template <class Type>
[[gnu::always_inline]] inline void prefetch_next(const uint8_t* row, size_t row_bytes, size_t offset) {
  const uint8_t* next = row + 4 * (row_bytes + offset);
  unrolled<(4 * Type::kGroupBytes + 63) / 64>(
      [&](auto i) __attribute__((always_inline)) { __builtin_prefetch(next + 64 * i); });
}

// n_blocks blocks of rows row..row+7 (where there are fewer, the last again) into a panel.
template <class Type, class Product>
void fill_panel(const WeightRows& w, int row, int first_block, int n_blocks, PanelBlock* panel) {
  for (int four = 0; four < 2; ++four) {
    const uint8_t* p[4];
    for (int r = 0; r < 4; ++r) {
      const size_t n = static_cast<size_t>(least(row + 4 * four + r, w.row_end - 1));
      p[r] = reinterpret_cast<const uint8_t*>(w.w) + n * w.w_row_bytes;
    }
    for (int b = 0; b < n_blocks; b += Type::kGroup) {
      const size_t offset = static_cast<size_t>((first_block + b) / Type::kGroup) * Type::kGroupBytes;
      const uint8_t* at[4] = {p[0] + offset, p[1] + offset, p[2] + offset, p[3] + offset};
      prefetch_next<Type>(p[0], w.w_row_bytes, offset);
      const typename Type::Scales scales(at);
      unrolled<Type::kGroup>([&](auto s) __attribute__((always_inline)) {
        PanelBlock& block = panel[b + s];
        int8x16_t c[4][2];
        for (int r = 0; r < 4; ++r) Type::template codes<s>(at[r], c[r]);
        for (int h = 0; h < 2; ++h) {
          Product::store(block.q, four, h,
                         {vreinterpretq_u32_s8(c[0][h]), vreinterpretq_u32_s8(c[1][h]), vreinterpretq_u32_s8(c[2][h]),
                          vreinterpretq_u32_s8(c[3][h])});
        }
        unrolled<Type::kParts>([&](auto h) __attribute__((always_inline)) {
          const float32x4_t d = scales.template d<s, h>();
          vst1q_f32(block.d[h] + 4 * four, d);
          if constexpr (Type::kMin) {
            const float32x4_t m = scales.template m<s, h>();
            vst1q_f32(block.m[h] + 4 * four, m);
          }
        });
      });
    }
  }
}

// The last n_rows < kRows + 1 rows of x.
template <class Type, class Product, int kRows>
void multiply_tail(int n_rows, const Panels& panels, const QuantizedRows& x, int first_row, float* out,
                   size_t out_stride, std::byte* scratch) {
  if constexpr (kRows > 0) {
    if (n_rows == kRows) {
      Product::template multiply<Type, kRows>(panels, x, first_row, out, out_stride, scratch);
    } else {
      multiply_tail<Type, Product, kRows - 1>(n_rows, panels, x, first_row, out, out_stride, scratch);
    }
  }
}

template <class Type, class Product>
void run_panels(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride, const Scratch& scratch) {
  const int n_blocks = x.n_cols / 32;
  PanelBlock* blocks = reinterpret_cast<PanelBlock*>(scratch.data);
  std::byte* rest = scratch.data + kPanels * kBlocks * sizeof(PanelBlock);
  for (int row = w.row_begin; row < w.row_end; row += kPanels * kLanes) {
    for (int b = 0; b < n_blocks; b += kBlocks) {
      const Panels panels{blocks, least(kPanels * kLanes, w.row_end - row), least(kBlocks, n_blocks - b), b};
      for (int p = 0; p * kLanes < panels.n_rows; ++p) {
        fill_panel<Type, Product>(w, row + p * kLanes, b, panels.n_blocks, blocks + p * kBlocks);
      }
      using Numbers = typename Type::Numbers;
      constexpr int kRows = Product::kRows;
      int r = 0;
      for (; r + kRows <= x.n_rows; r += kRows) {
        Product::template multiply<Numbers, kRows>(panels, x, r, out + static_cast<size_t>(r) * out_stride + row,
                                                   out_stride, rest);
      }
      multiply_tail<Numbers, Product, kRows - 1>(x.n_rows - r, panels, x, r,
                                                 out + static_cast<size_t>(r) * out_stride + row, out_stride, rest);
    }
  }
}

}  // namespace
}  // namespace gemma::cpu
