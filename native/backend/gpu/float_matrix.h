// Products of tiles of floats: C[16][16] += A[16][kFloatK] * B[16][kFloatK]^T, A and B in shared memory, C as matrix.h
// has it. Where the chip multiplies matrices of bfloat16, a value is the sum of two of them, and of the four products
// of two values the one of their lower parts is left out: what is lost is 2^-15 of a product at most. Elsewhere in
// float32. Register layouts: PTX ISA (mma for .bf16), AMD's matrix instruction calculator.
#pragma once

#include "backend/gpu/matrix.h"

namespace gemma::gpu::GPU_CHIP_NAMESPACE {

constexpr int kFloatK = 32;

#if GPU_MATRIX == GPU_MATRIX_NONE || GPU_MATRIX == GPU_MATRIX_SM75

template <int kRows>
struct FloatTile {
  static constexpr int kStride = kFloatK + 1;  // no two rows in the same bank
  float values[kRows * kStride];
};

// Values k..k+3 of a row.
template <int kRows>
GPU_FUNCTION void store_values(FloatTile<kRows>& tile, int row, int k, const float* values) {
  GPU_UNROLL
  for (int i = 0; i < 4; ++i) tile.values[row * FloatTile<kRows>::kStride + k + i] = values[i];
}

// From rows a_row of a and b_row of b on. kSplit: values of a have lower parts.
template <bool kSplit, int kRowsA, int kRowsB>
GPU_FUNCTION void multiply_values(float* c, const FloatTile<kRowsA>& a, int a_row, const FloatTile<kRowsB>& b,
                                  int b_row, int lane) {
  constexpr int kStride = FloatTile<kRowsA>::kStride;
  GPU_ROLLED
  for (int first = 0; first < kFloatK; first += 4) {
    GPU_UNROLL
    for (int k = first; k < first + 4; ++k) {
      GPU_UNROLL
      for (int r = 0; r < kTileElements; ++r) {
        c[r] = fmaf(a.values[(a_row + tile_row(lane, r)) * kStride + k],
                    b.values[(b_row + tile_col(lane, r)) * kStride + k], c[r]);
      }
    }
  }
}

#else

template <int kRows>
struct FloatTile {
  static constexpr int kStride = kFloatK + 8;  // no two rows of a fragment in the same bank
  uint16_t upper[kRows * kStride];
  uint16_t lower[kRows * kStride];
};

// Nearest, ties to even; not a number stays one.
GPU_FUNCTION unsigned to_bf16(float value) {
  const uint32_t bits = float_to_bits(value);
  return value != value ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

// Values k..k+3 of a row.
template <int kRows>
GPU_FUNCTION void store_values(FloatTile<kRows>& tile, int row, int k, const float* values) {
  unsigned upper[4];
  unsigned lower[4];
  GPU_UNROLL
  for (int i = 0; i < 4; ++i) {
    upper[i] = to_bf16(values[i]);
    lower[i] = to_bf16(values[i] - bits_to_float(upper[i] << 16));
  }
  const int at = row * FloatTile<kRows>::kStride + k;
  *reinterpret_cast<uint2*>(tile.upper + at) = {upper[0] | upper[1] << 16, upper[2] | upper[3] << 16};
  *reinterpret_cast<uint2*>(tile.lower + at) = {lower[0] | lower[1] << 16, lower[2] | lower[3] << 16};
}

// C += A * B^T for 16 of k.
GPU_FUNCTION void multiply_bf16(float* c, const uint16_t* a, const uint16_t* b, int stride, int lane) {
#if GPU_MATRIX == GPU_MATRIX_SM80
  const auto load2 = [](const uint16_t* p) { return *reinterpret_cast<const unsigned*>(p); };
  const int row = lane >> 2;
  const int k = 2 * (lane & 3);
  const unsigned left[4] = {load2(a + row * stride + k), load2(a + (row + 8) * stride + k),
                            load2(a + row * stride + 8 + k), load2(a + (row + 8) * stride + 8 + k)};
  GPU_UNROLL
  for (int half = 0; half < 2; ++half) {
    const uint16_t* column = b + (row + 8 * half) * stride + k;
    const unsigned right[2] = {load2(column), load2(column + 8)};
    float* d = c + 4 * half;
#if defined(GEMMA_EMULATED)
    emulate_matrix<LayoutM16N8Bf16, 16, 8, 16, 8, 4, 4, uint16_t>(d, left, right);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
#endif
  }
#else
#if GPU_MATRIX == GPU_MATRIX_WMMA11
  constexpr int kOfK = 16;  // all in every lane
  const int k = 0;
#elif GPU_MATRIX == GPU_MATRIX_WMMA12
  constexpr int kOfK = 8;
  const int k = 8 * (lane >> 4);
#else
  constexpr int kOfK = 4;
  const int k = 4 * (lane >> 4);
#endif
  struct Operand {
    unsigned words[kOfK / 2];
  };
  Operand left;
  Operand right;
  GPU_UNROLL
  for (int i = 0; i < kOfK / 4; ++i) {
    const uint2 x = reinterpret_cast<const uint2*>(a + (lane & 15) * stride + k)[i];
    const uint2 y = reinterpret_cast<const uint2*>(b + (lane & 15) * stride + k)[i];
    left.words[2 * i] = x.x, left.words[2 * i + 1] = x.y;
    right.words[2 * i] = y.x, right.words[2 * i + 1] = y.y;
  }
#if defined(GEMMA_EMULATED) && GPU_MATRIX == GPU_MATRIX_WMMA11
  emulate_matrix<LayoutWmma11, 16, 16, 16, 16, 16, 8, uint16_t>(c, &left, &right);
#elif defined(GEMMA_EMULATED) && GPU_MATRIX == GPU_MATRIX_WMMA12
  emulate_matrix<LayoutWmma12, 16, 16, 16, 8, 8, 8, uint16_t>(c, &left, &right);
#elif defined(GEMMA_EMULATED)
  emulate_matrix<LayoutMfma<4>, 16, 16, 16, 4, 4, 4, uint16_t>(c, &left, &right);
#else
  typedef float Sums __attribute__((ext_vector_type(kTileElements)));
  Sums d;
  for (int r = 0; r < kTileElements; ++r) d[r] = c[r];
#if GPU_MATRIX == GPU_MATRIX_WMMA11
  typedef short Sixteen __attribute__((ext_vector_type(16)));
  d = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(__builtin_bit_cast(Sixteen, left), __builtin_bit_cast(Sixteen, right),
                                                  d);
#elif GPU_MATRIX == GPU_MATRIX_WMMA12
  typedef short Eight __attribute__((ext_vector_type(8)));
  d = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(__builtin_bit_cast(Eight, left),
                                                        __builtin_bit_cast(Eight, right), d);
#elif defined(__gfx908__)
  // Two of eight: which of k a lane holds does not matter as long as it is the same on both sides.
  typedef short Two __attribute__((ext_vector_type(2)));
  for (int i = 0; i < 2; ++i)
    d = __builtin_amdgcn_mfma_f32_16x16x8bf16(__builtin_bit_cast(Two, left.words[i]),
                                              __builtin_bit_cast(Two, right.words[i]), d, 0, 0, 0);
#else
  typedef short Four __attribute__((ext_vector_type(4)));
  d = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(__builtin_bit_cast(Four, left), __builtin_bit_cast(Four, right), d, 0,
                                                0, 0);
#endif
  for (int r = 0; r < kTileElements; ++r) c[r] = d[r];
#endif
#endif
}

// From rows a_row of a and b_row of b on; the small products first. kSplit: values of a have lower parts.
template <bool kSplit, int kRowsA, int kRowsB>
GPU_FUNCTION void multiply_values(float* c, const FloatTile<kRowsA>& a, int a_row, const FloatTile<kRowsB>& b,
                                  int b_row, int lane) {
  constexpr int kStride = FloatTile<kRowsA>::kStride;
  GPU_UNROLL
  for (int k = 0; k < kFloatK; k += 16) {
    const int left = a_row * kStride + k;
    const int right = b_row * kStride + k;
    multiply_bf16(c, a.upper + left, b.lower + right, kStride, lane);
    if constexpr (kSplit) multiply_bf16(c, a.lower + left, b.upper + right, kStride, lane);
    multiply_bf16(c, a.upper + left, b.upper + right, kStride, lane);
  }
}

#endif

}  // namespace gemma::gpu::GPU_CHIP_NAMESPACE
