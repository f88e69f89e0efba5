// Stored blocks -> values, in two independent ways. dequantize_row evaluates the formula of each type element by
// element (d, m and dmin are f16; the product of scale and sub-scale is rounded to float before it is multiplied by the
// code, as in gguf-py). unpack_block32 reads 32 elements in storage order into the integer form of the matrix products.
// A test compares the two. Source: the block structures of ggml-quants and gguf-py's quants.py.
#include "quant/dequantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "base/error.h"
#include "base/half.h"

namespace gemma {
namespace {

using Byte = const uint8_t*;

// Blocks are unaligned in general; the files are little endian.
uint16_t u16_at(Byte p) {
  return static_cast<uint16_t>(p[0] | (p[1] << 8));
}
uint32_t u32_at(Byte p) {
  return u16_at(p) | (static_cast<uint32_t>(u16_at(p + 2)) << 16);
}
float f16_at(Byte p) {
  return f16_to_f32(u16_at(p));
}
float float_of(int i) {
  return static_cast<float>(i);
}

constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kMxfp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};  // twice the FP4 values

// ---- one element: value of element j of the block at b

// The 4-bit code of element j in the 16 bytes of a block of 32: low nibbles are elements 0..15.
int nibble(Byte qs, int j) {
  return (qs[j % 16] >> (4 * (j / 16))) & 15;
}
// The 2-bit code of element j of 256 in 64 bytes.
int two_bits(Byte qs, int j) {
  return (qs[32 * (j / 128) + j % 32] >> (2 * ((j % 128) / 32))) & 3;
}

float element_q4_0(Byte b, int j) {
  return f16_at(b) * float_of(nibble(b + 2, j) - 8);
}
float element_q4_1(Byte b, int j) {
  return f16_at(b) * float_of(nibble(b + 4, j)) + f16_at(b + 2);
}
float element_q5_0(Byte b, int j) {
  const int high = static_cast<int>(u32_at(b + 2) >> j & 1);
  return f16_at(b) * float_of((nibble(b + 6, j) | high << 4) - 16);
}
float element_q5_1(Byte b, int j) {
  const int high = static_cast<int>(u32_at(b + 4) >> j & 1);
  return f16_at(b) * float_of(nibble(b + 8, j) | high << 4) + f16_at(b + 2);
}
float element_q8_0(Byte b, int j) {
  return f16_at(b) * float_of(static_cast<int8_t>(b[2 + j]));
}

float element_q2_k(Byte b, int j) {
  const int s = b[j / 16];
  const float scale = f16_at(b + 80) * float_of(s & 15);
  const float min = f16_at(b + 82) * float_of(s >> 4);
  return scale * float_of(two_bits(b + 16, j)) - min;
}
float element_q3_k(Byte b, int j) {
  const Byte scales = b + 96;
  const int k = j / 16;
  const int s = (((scales[k % 8] >> (4 * (k / 8))) & 15) | ((scales[8 + k % 4] >> (2 * (k / 4))) & 3) << 4) - 32;
  const int high = (b[j % 32] >> (4 * (j / 128) + (j % 128) / 32)) & 1;
  return f16_at(b + 108) * float_of(s) * float_of(two_bits(b + 32, j) - (high ? 0 : 4));
}
// Scale a and minimum c (6 bits each) of the 32 elements s of a Q4_K or Q5_K block.
void k_scale_min(Byte scales, int s, int* a, int* c) {
  if (s < 4) {
    *a = scales[s] & 63;
    *c = scales[s + 4] & 63;
  } else {
    *a = (scales[s + 4] & 15) | (scales[s - 4] >> 6) << 4;
    *c = (scales[s + 4] >> 4) | (scales[s] >> 6) << 4;
  }
}
float element_q4_k(Byte b, int j) {
  const int s = j / 32;
  int a, c;
  k_scale_min(b + 4, s, &a, &c);
  const int q = (b[16 + 32 * (j / 64) + j % 32] >> (4 * (s % 2))) & 15;
  return f16_at(b) * float_of(a) * float_of(q) - f16_at(b + 2) * float_of(c);
}
float element_q5_k(Byte b, int j) {
  const int s = j / 32;
  int a, c;
  k_scale_min(b + 4, s, &a, &c);
  int q = (b[48 + 32 * (j / 64) + j % 32] >> (4 * (s % 2))) & 15;
  q |= ((b[16 + j % 32] >> s) & 1) << 4;
  return f16_at(b) * float_of(a) * float_of(q) - f16_at(b + 2) * float_of(c);
}
float element_q6_k(Byte b, int j) {
  const int n = j / 128;
  const int r = j % 128;
  const int low = (b[64 * n + r % 64] >> (4 * (r / 64))) & 15;
  const int high = (b[128 + 32 * n + r % 32] >> (2 * (r / 32))) & 3;
  const int scale = static_cast<int8_t>(b[192 + j / 16]);
  return f16_at(b + 208) * float_of(scale) * float_of((low | high << 4) - 32);
}
float element_iq4_nl(Byte b, int j) {
  return f16_at(b) * float_of(kIq4Values[nibble(b + 2, j)]);
}
float element_iq4_xs(Byte b, int j) {
  const int s = j / 32;
  const int scale = ((b[4 + s / 2] >> (4 * (s % 2))) & 15) | ((u16_at(b + 2) >> (2 * s)) & 3) << 4;
  return f16_at(b) * float_of(scale - 32) * float_of(kIq4Values[nibble(b + 8 + 16 * s, j % 32)]);
}
float element_mxfp4(Byte b, int j) {
  return std::ldexp(1.0f, b[0] - 128) * float_of(kMxfp4Values[nibble(b + 1, j)]);
}
float element_tq2_0(Byte b, int j) {
  return f16_at(b + 64) * float_of(two_bits(b, j) - 1);
}

template <float (*kElement)(Byte, int)>
void dequantize_blocks(const TypeTraits& traits, Byte src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n; i += traits.block_elems, src += traits.block_bytes) {
    for (int j = 0; j < traits.block_elems; ++j) dst[i + j] = kElement(src, j);
  }
}

template <float (*kConvert)(uint16_t)>
void convert_halves(Byte src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    uint16_t half;
    std::memcpy(&half, src + 2 * i, sizeof half);
    dst[i] = kConvert(half);
  }
}

// ---- 32 elements in storage order

void low_high_nibbles(Byte qs, uint8_t* u) {
  for (int i = 0; i < 16; ++i) {
    u[i] = qs[i] & 15;
    u[i + 16] = qs[i] >> 4;
  }
}
void add_fifth_bits(uint32_t bits, uint8_t* u) {
  for (int i = 0; i < 32; ++i, bits >>= 1) u[i] = static_cast<uint8_t>(u[i] + 16 * (bits & 1));
}
void set_scales(Block32* out, float d, float m) {
  out->d[0] = out->d[1] = d;
  out->m[0] = out->m[1] = m;
}
// Eight 6-bit scales and eight 6-bit minimums in 12 bytes: bytes 0-3 hold scales 0-3 and 4-7 minimums 0-3 in their low
// six bits, bytes 8-11 the low nibbles of scales and minimums 4-7, whose upper two bits are the top bits of bytes 0-7.
void k_scales(Byte p, uint8_t* scales, uint8_t* mins) {
  for (int i = 0; i < 4; ++i) {
    scales[i] = p[i] & 0x3f;
    mins[i] = p[4 + i] & 0x3f;
    scales[4 + i] = static_cast<uint8_t>((p[8 + i] & 0x0f) + 16 * (p[i] / 64));
    mins[4 + i] = static_cast<uint8_t>(p[8 + i] / 16 + 16 * (p[4 + i] / 64));
  }
}

[[noreturn]] void no_canonical_form(TensorType type) {
  throw Error(ErrorCode::kInternal, "", std::string("tensor type ") + type_traits(type).name + " has no integer form");
}

}  // namespace

void dequantize_row(TensorType type, const void* src, float* dst, int64_t n) {
  const TypeTraits& t = type_traits(type);
  const Byte b = static_cast<Byte>(src);
  switch (type) {
    case TensorType::kF32: std::memcpy(dst, src, static_cast<size_t>(n) * sizeof *dst); return;
    case TensorType::kF16: return convert_halves<f16_to_f32>(b, dst, n);
    case TensorType::kBF16: return convert_halves<bf16_to_f32>(b, dst, n);
    case TensorType::kQ4_0: return dequantize_blocks<element_q4_0>(t, b, dst, n);
    case TensorType::kQ4_1: return dequantize_blocks<element_q4_1>(t, b, dst, n);
    case TensorType::kQ5_0: return dequantize_blocks<element_q5_0>(t, b, dst, n);
    case TensorType::kQ5_1: return dequantize_blocks<element_q5_1>(t, b, dst, n);
    case TensorType::kQ8_0: return dequantize_blocks<element_q8_0>(t, b, dst, n);
    case TensorType::kQ2_K: return dequantize_blocks<element_q2_k>(t, b, dst, n);
    case TensorType::kQ3_K: return dequantize_blocks<element_q3_k>(t, b, dst, n);
    case TensorType::kQ4_K: return dequantize_blocks<element_q4_k>(t, b, dst, n);
    case TensorType::kQ5_K: return dequantize_blocks<element_q5_k>(t, b, dst, n);
    case TensorType::kQ6_K: return dequantize_blocks<element_q6_k>(t, b, dst, n);
    case TensorType::kIQ4_NL: return dequantize_blocks<element_iq4_nl>(t, b, dst, n);
    case TensorType::kIQ4_XS: return dequantize_blocks<element_iq4_xs>(t, b, dst, n);
    case TensorType::kMXFP4: return dequantize_blocks<element_mxfp4>(t, b, dst, n);
    case TensorType::kTQ2_0: return dequantize_blocks<element_tq2_0>(t, b, dst, n);
  }
}

void quantize_row_q8_0(const float* src, void* dst, int64_t n) {
  auto* out = static_cast<uint8_t*>(dst);
  for (int64_t first = 0; first < n; first += 32, out += 34) {
    const float* x = src + first;
    // Eight maxima and sums in parallel, as vector lanes. A sum is NaN if an element is NaN or infinite.
    float largest[8] = {};
    float not_finite[8] = {};
    for (int j = 0; j < 32; j += 8) {
      for (int i = 0; i < 8; ++i) {
        const float size = std::fabs(x[j + i]);
        largest[i] = size > largest[i] ? size : largest[i];
        not_finite[i] += x[j + i] * 0.0f;
      }
    }
    float step = *std::max_element(largest, largest + 8) / 127;
    for (const float sum : not_finite) step += sum;
    const uint16_t half = f32_to_f16(step);
    const float d = f16_to_f32(half);  // codes are of the step that is stored
    std::memcpy(out, &half, sizeof half);
    std::memset(out + 2, 0, 32);
    if (!(d > 0) || !std::isfinite(d)) continue;  // zeros, or a block that is NaN
    const float levels = 1 / d;
    for (int j = 0; j < 32; ++j) {
      constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer, ties to even
      const float code = (x[j] * levels + kRound) - kRound;
      const float at_most = code > 127.0f ? 127.0f : code;
      out[2 + j] = static_cast<uint8_t>(static_cast<int32_t>(at_most < -127.0f ? -127.0f : at_most));
    }
  }
}

CanonicalTraits canonical_traits(TensorType type) {
  switch (type) {
    case TensorType::kQ4_0: return {8, false, false};
    case TensorType::kQ4_1: return {0, true, false};
    case TensorType::kQ5_0: return {16, false, false};
    case TensorType::kQ5_1: return {0, true, false};
    case TensorType::kQ8_0: return {128, false, false};
    case TensorType::kQ2_K: return {0, true, true};
    case TensorType::kQ3_K: return {4, false, true};
    case TensorType::kQ4_K: return {0, true, false};
    case TensorType::kQ5_K: return {0, true, false};
    case TensorType::kQ6_K: return {32, false, true};
    case TensorType::kIQ4_NL: return {128, false, false};
    case TensorType::kIQ4_XS: return {128, false, false};
    case TensorType::kMXFP4: return {16, false, false};
    case TensorType::kTQ2_0: return {1, false, false};
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16: break;
  }
  no_canonical_form(type);
}

void unpack_block32(TensorType type, const void* row, int64_t b32, Block32* out) {
  const TypeTraits& traits = type_traits(type);
  const int64_t n_parts = traits.block_elems / 32;  // 1, or 8 in a super-block of 256
  const Byte b = static_cast<Byte>(row) + (n_parts == 0 ? 0 : b32 / n_parts * traits.block_bytes);
  const int s = n_parts == 0 ? 0 : static_cast<int>(b32 % n_parts);  // which 32 of the super-block
  uint8_t* u = out->u;
  switch (type) {
    case TensorType::kQ4_0: low_high_nibbles(b + 2, u); return set_scales(out, f16_at(b), 0);
    case TensorType::kQ4_1: low_high_nibbles(b + 4, u); return set_scales(out, f16_at(b), f16_at(b + 2));
    case TensorType::kQ5_0:
      low_high_nibbles(b + 6, u);
      add_fifth_bits(u32_at(b + 2), u);
      return set_scales(out, f16_at(b), 0);
    case TensorType::kQ5_1:
      low_high_nibbles(b + 8, u);
      add_fifth_bits(u32_at(b + 4), u);
      return set_scales(out, f16_at(b), f16_at(b + 2));
    case TensorType::kQ8_0:
      for (int i = 0; i < 32; ++i) u[i] = b[2 + i] ^ 0x80;  // two's complement + 128
      return set_scales(out, f16_at(b), 0);
    case TensorType::kQ2_K: {
      const Byte qs = b + 16 + (s >= 4 ? 32 : 0);
      for (int i = 0; i < 32; ++i) u[i] = (qs[i] >> (2 * (s & 3))) & 3;
      const float d = f16_at(b + 80);
      const float dmin = f16_at(b + 82);
      for (int half = 0; half < 2; ++half) {
        const int packed = b[2 * s + half];
        out->d[half] = d * float_of(packed & 0x0f);
        out->m[half] = -(dmin * float_of(packed >> 4));
      }
      return;
    }
    case TensorType::kQ3_K: {
      const Byte qs = b + 32 + (s >= 4 ? 32 : 0);
      for (int i = 0; i < 32; ++i) u[i] = static_cast<uint8_t>(((qs[i] >> (2 * (s & 3))) & 3) + (b[i] >> s & 1) * 4);
      // Sixteen 6-bit scales: bytes 0-7 hold the low nibbles of 0-7 and 8-15, bytes 8-11 the upper two
      // bits of four scales each.
      const float d = f16_at(b + 108);
      for (int half = 0; half < 2; ++half) {
        const int k = 2 * s + half;
        const int low = k < 8 ? b[96 + k] & 0x0f : b[96 + k - 8] >> 4;
        const int high = b[104 + (k & 3)] >> (k >> 2) * 2 & 3;
        out->d[half] = d * float_of(16 * high + low - 32);
        out->m[half] = 0;
      }
      return;
    }
    case TensorType::kQ4_K:
    case TensorType::kQ5_K: {
      uint8_t scales[8];
      uint8_t mins[8];
      k_scales(b + 4, scales, mins);
      const Byte qs = b + (type == TensorType::kQ4_K ? 16 : 48) + s / 2 * 32;
      for (int i = 0; i < 32; ++i) u[i] = s % 2 == 0 ? qs[i] & 0x0f : qs[i] >> 4;
      if (type == TensorType::kQ5_K) {
        for (int i = 0; i < 32; ++i) u[i] = static_cast<uint8_t>(u[i] + (b[16 + i] >> s & 1) * 16);
      }
      return set_scales(out, f16_at(b) * float_of(scales[s]), -(f16_at(b + 2) * float_of(mins[s])));
    }
    case TensorType::kQ6_K: {
      // Each half of 128: 64 bytes of nibbles (low: parts 0 and 1, high: parts 2 and 3), 32 bytes of two bits per part.
      const int part = s % 4;
      const Byte ql = b + s / 4 * 64 + part % 2 * 32;
      const Byte qh = b + 128 + s / 4 * 32;
      for (int i = 0; i < 32; ++i) {
        const int low = part < 2 ? ql[i] & 0x0f : ql[i] >> 4;
        u[i] = static_cast<uint8_t>(low + (qh[i] >> (2 * part) & 3) * 16);
      }
      const float d = f16_at(b + 208);
      for (int half = 0; half < 2; ++half) {
        out->d[half] = d * float_of(static_cast<int8_t>(b[192 + 2 * s + half]));
        out->m[half] = 0;
      }
      return;
    }
    case TensorType::kIQ4_NL:
      low_high_nibbles(b + 2, u);
      for (int i = 0; i < 32; ++i) u[i] = static_cast<uint8_t>(kIq4Values[u[i]] + 128);
      return set_scales(out, f16_at(b), 0);
    case TensorType::kIQ4_XS: {
      low_high_nibbles(b + 8 + 16 * s, u);
      for (int i = 0; i < 32; ++i) u[i] = static_cast<uint8_t>(kIq4Values[u[i]] + 128);
      const int low = s % 2 == 0 ? b[4 + s / 2] & 0x0f : b[4 + s / 2] >> 4;
      const int high = b[s < 4 ? 2 : 3] >> (s % 4 * 2) & 3;
      return set_scales(out, f16_at(b) * float_of(16 * high + low - 32), 0);
    }
    case TensorType::kMXFP4:
      low_high_nibbles(b + 1, u);
      for (int i = 0; i < 32; ++i) u[i] = static_cast<uint8_t>(kMxfp4Values[u[i]] + 16);
      return set_scales(out, std::ldexp(1.0f, b[0] - 128), 0);
    case TensorType::kTQ2_0: {
      const Byte qs = b + (s >= 4 ? 32 : 0);
      for (int i = 0; i < 32; ++i) u[i] = (qs[i] >> (2 * (s & 3))) & 3;
      return set_scales(out, f16_at(b + 64), 0);
    }
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16: break;
  }
  no_canonical_form(type);
}

}  // namespace gemma
