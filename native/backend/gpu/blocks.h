// Stored blocks on the device: 32 values of a quantised matrix (kernel_list.h: Matrix, repack.h: its planes) as
//   value[j] = d[j / 16] * q[j] + m[j / 16],   q signed bytes
// with d and m as unpack_block32 (quant/dequantize.h) makes them, rounded alike.
#pragma once

#include "backend/gpu/gpu.h"
#include "backend/gpu/plane_layout.h"

namespace gemma::gpu::GPU_CHIP_NAMESPACE {

struct Block {
  int q[8];  // four signed bytes each, in order
  float d[2];
  float m[2];
};

// code - offset in each byte; codes below 128.
GPU_FUNCTION int subtract_offset(unsigned codes, unsigned offset) {
  return static_cast<int>(((codes | 0x80808080u) - offset * 0x01010101u) ^ 0x80808080u);
}
// Bytes of a table of sixteen, by the four 4-bit codes.
GPU_FUNCTION int look_up(unsigned codes, uint64_t low, uint64_t high) {
  unsigned out = 0;
  GPU_UNROLL
  for (int i = 0; i < 4; ++i) {
    const unsigned code = codes >> (8 * i) & 15;
    const uint64_t half = code < 8 ? low : high;
    out |= (static_cast<unsigned>(half >> (8 * (code & 7))) & 255u) << (8 * i);
  }
  return static_cast<int>(out);
}
constexpr uint64_t pack_bytes(int a, int b, int c, int d, int e, int f, int g, int h) {
  const int bytes[8] = {a, b, c, d, e, f, g, h};
  uint64_t packed = 0;
  for (int i = 0; i < 8; ++i) packed |= static_cast<uint64_t>(bytes[i] & 255) << (8 * i);
  return packed;
}

GPU_FUNCTION float load_half(const uint8_t* p) {
  return half_to_float(load(reinterpret_cast<const uint16_t*>(p)));
}
// The six bits of scale s of Q4_K and Q5_K, and of its minimum.
GPU_FUNCTION void k_scale_min(const uint8_t* scales, int s, int* scale, int* min) {
  if (s < 4) {
    *scale = load(scales + s) & 63;
    *min = load(scales + s + 4) & 63;
  } else {
    const int low = load(scales + s + 4);
    *scale = (low & 15) | (load(scales + s - 4) >> 6) << 4;
    *min = low >> 4 | (load(scales + s) >> 6) << 4;
  }
}

template <int kType>
GPU_FUNCTION void load_scales(const uint8_t* tail, int s, Block* block) {
  float* d = block->d;
  float* m = block->m;
  m[0] = m[1] = 0;
  if constexpr (kType == kTypeQ2_K) {
    const float scale = load_half(tail + 16);
    const float min = load_half(tail + 18);
    GPU_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int packed = load(tail + 2 * s + h);
      d[h] = scale * static_cast<float>(packed & 15);
      m[h] = -(min * static_cast<float>(packed >> 4));
    }
  } else if constexpr (kType == kTypeQ3_K) {
    const float scale = load_half(tail + 12);
    GPU_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int k = 2 * s + h;
      const int low = k < 8 ? load(tail + k) & 15 : load(tail + k - 8) >> 4;
      const int high = load(tail + 8 + (k & 3)) >> (k >> 2) * 2 & 3;
      d[h] = scale * static_cast<float>(16 * high + low - 32);
    }
  } else if constexpr (kType == kTypeQ4_K || kType == kTypeQ5_K) {
    int scale;
    int min;
    k_scale_min(tail + 4, s, &scale, &min);
    d[0] = d[1] = load_half(tail) * static_cast<float>(scale);
    m[0] = m[1] = -(load_half(tail + 2) * static_cast<float>(min));
  } else if constexpr (kType == kTypeQ6_K) {
    const float scale = load_half(tail + 16);
    GPU_UNROLL
    for (int h = 0; h < 2; ++h) d[h] = scale * static_cast<float>(static_cast<int8_t>(load(tail + 2 * s + h)));
  } else if constexpr (kType == kTypeIQ4_XS) {
    const int low = load(tail + 4 + s / 2) >> (4 * (s & 1)) & 15;
    const int high = load(tail + 2 + s / 4) >> (s % 4 * 2) & 3;
    d[0] = d[1] = load_half(tail) * static_cast<float>(16 * high + low - 32);
  } else if constexpr (kType == kTypeMXFP4) {
    const unsigned exponent = load(tail);  // 2^(exponent - 128): subnormal for 0 and 1
    d[0] = d[1] = bits_to_float(exponent >= 2 ? (exponent - 1) << 23 : 0x00200000u << exponent);
  } else {
    d[0] = d[1] = load_half(tail);
    if constexpr (kType == kTypeQ4_1 || kType == kTypeQ5_1) m[0] = m[1] = load_half(tail + 2);
  }
}

// Block b of a row.
template <int kType>
GPU_FUNCTION Block load_block(const Matrix& matrix, int row, int b) {
  constexpr PlaneLayout kLayout = plane_layout(kType);
  const int n_blocks = matrix.n_in / 32;
  const size_t at = static_cast<size_t>(row) * static_cast<size_t>(n_blocks) + static_cast<size_t>(b);
  const uint8_t* low = matrix.low + at * kLayout.low_bytes;
  const uint8_t* high = matrix.high + at * kLayout.high_bytes;
  Block block;
  GPU_UNROLL
  for (int part = 0; part < 2; ++part) {  // 16 values each, from codes of 4 or 2 bits
    GPU_UNROLL
    for (int w = 0; w < 4; ++w) block.q[4 * part + w] = 0;
  }
  if constexpr (kLayout.low_bytes == 32) {
    const uint4 a = load(reinterpret_cast<const uint4*>(low));
    const uint4 c = load(reinterpret_cast<const uint4*>(low) + 1);
    const unsigned words[8] = {a.x, a.y, a.z, a.w, c.x, c.y, c.z, c.w};
    GPU_UNROLL
    for (int w = 0; w < 8; ++w) block.q[w] = static_cast<int>(words[w]);
  } else {
    unsigned codes[8];
    if constexpr (kLayout.low_bytes == 16) {
      const uint4 a = load(reinterpret_cast<const uint4*>(low));
      const unsigned words[4] = {a.x, a.y, a.z, a.w};
      GPU_UNROLL
      for (int w = 0; w < 8; ++w) codes[w] = words[w % 4] >> (4 * (w / 4)) & 0x0f0f0f0fu;
    } else {
      const uint2 a = load(reinterpret_cast<const uint2*>(low));
      GPU_UNROLL
      for (int w = 0; w < 8; ++w) codes[w] = (w % 2 != 0 ? a.y : a.x) >> (2 * (w / 2)) & 0x03030303u;
    }
    if constexpr (kLayout.high_bytes == 4) {
      const unsigned bits = load(reinterpret_cast<const unsigned*>(high));
      GPU_UNROLL
      for (int w = 0; w < 8; ++w) codes[w] |= (bits >> w & 0x01010101u) << (kLayout.low_bytes == 16 ? 4 : 2);
    } else if constexpr (kLayout.high_bytes == 8) {
      const uint2 bits = load(reinterpret_cast<const uint2*>(high));
      GPU_UNROLL
      for (int w = 0; w < 8; ++w) codes[w] |= ((w % 2 != 0 ? bits.y : bits.x) >> (2 * (w / 2)) & 0x03030303u) << 4;
    }
    GPU_UNROLL
    for (int w = 0; w < 8; ++w) {
      if constexpr (kType == kTypeIQ4_NL || kType == kTypeIQ4_XS) {
        block.q[w] = look_up(codes[w], pack_bytes(-127, -104, -83, -65, -49, -35, -22, -10),
                             pack_bytes(1, 13, 25, 38, 53, 69, 89, 113));
      } else if constexpr (kType == kTypeMXFP4) {
        block.q[w] = look_up(codes[w], pack_bytes(0, 1, 2, 3, 4, 6, 8, 12), pack_bytes(0, -1, -2, -3, -4, -6, -8, -12));
      } else {
        block.q[w] = subtract_offset(codes[w], kLayout.offset);
      }
    }
  }
  const size_t n_tails = static_cast<size_t>(n_blocks / kLayout.tail_blocks);
  const size_t tail = static_cast<size_t>(row) * n_tails + static_cast<size_t>(b / kLayout.tail_blocks);
  load_scales<kType>(matrix.tail + tail * kLayout.tail_bytes, b % kLayout.tail_blocks, &block);
  return block;
}

// Calls f(std::integral_constant-like tag) for the matrix's type.
template <int kType>
struct TypeTag {
  static constexpr int value = kType;
};
template <class F>
GPU_FUNCTION void for_type(int type, const F& f) {
  switch (type) {
    case kTypeQ4_0: return f(TypeTag<kTypeQ4_0>());
    case kTypeQ4_1: return f(TypeTag<kTypeQ4_1>());
    case kTypeQ5_0: return f(TypeTag<kTypeQ5_0>());
    case kTypeQ5_1: return f(TypeTag<kTypeQ5_1>());
    case kTypeQ8_0: return f(TypeTag<kTypeQ8_0>());
    case kTypeQ2_K: return f(TypeTag<kTypeQ2_K>());
    case kTypeQ3_K: return f(TypeTag<kTypeQ3_K>());
    case kTypeQ4_K: return f(TypeTag<kTypeQ4_K>());
    case kTypeQ5_K: return f(TypeTag<kTypeQ5_K>());
    case kTypeQ6_K: return f(TypeTag<kTypeQ6_K>());
    case kTypeIQ4_NL: return f(TypeTag<kTypeIQ4_NL>());
    case kTypeIQ4_XS: return f(TypeTag<kTypeIQ4_XS>());
    case kTypeMXFP4: return f(TypeTag<kTypeMXFP4>());
    case kTypeTQ2_0: return f(TypeTag<kTypeTQ2_0>());
    default: return;
  }
}

// Element j of a row of F32, F16 or BF16.
GPU_FUNCTION float load_float(int type, const void* row, size_t j) {
  if (type == kTypeF32) return load(static_cast<const float*>(row) + j);
  const uint16_t half = load(static_cast<const uint16_t*>(row) + j);
  return type == kTypeF16 ? half_to_float(half) : bits_to_float(static_cast<uint32_t>(half) << 16);
}

}  // namespace gemma::gpu::GPU_CHIP_NAMESPACE
