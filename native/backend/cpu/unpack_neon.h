// Stored blocks -> signed bytes and scales in registers, for the quantised products of arm64. Internal to each file
// that includes it (they are compiled with different flags).
//
// A type has
//   kGroup, kGroupBytes   blocks of 32 columns in a stored block, and its bytes
//   kMin, kHalves         as in quant/dequantize.h
//   kFractionBits         its bytes are 2^kFractionBits times code - offset: shifting a code to the top of its byte
//   gives
//                         it a sign for nothing, and the conversion to float takes the factor back exactly
//   codes<s>(p, c)        32 columns of block s of the stored block at p
//   Scales(p)             scales of a stored block of four rows; d<s, h>() and m<s, h>(): of half h of block s, a row
//   in
//                         each lane
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "backend/cpu/unrolled.h"
#include "quant/types.h"

namespace gemma::cpu {
namespace {

using Rows4 = const uint8_t* const (&)[4];

inline uint8x16_t load16(const uint8_t* p) {
  return vld1q_u8(p);
}
inline int8x16_t as_signed(uint8x16_t v) {
  return vreinterpretq_s8_u8(v);
}
inline uint8x16_t low_nibbles(uint8x16_t v) {
  return vandq_u8(v, vdupq_n_u8(0x0f));
}
template <int n>
inline uint8x16_t shift_right(uint8x16_t v) {
  if constexpr (n == 0)
    return v;
  else
    return vshrq_n_u8(v, n);
}
template <int n>
inline uint32x4_t byte_of(uint32x4_t v) {  // n-th of each lane
  if constexpr (n == 0)
    return vandq_u32(v, vdupq_n_u32(0xff));
  else if constexpr (n == 3)
    return vshrq_n_u32(v, 24);
  else
    return vandq_u32(vshrq_n_u32(v, 8 * n), vdupq_n_u32(0xff));
}
template <int n>
inline int32x4_t signed_byte_of(int32x4_t v) {
  if constexpr (n == 3)
    return vshrq_n_s32(v, 24);
  else
    return vshrq_n_s32(vshlq_n_s32(v, 24 - 8 * n), 24);
}

inline float32x4_t halves_to_floats(uint16x4_t v) {
  return vcvt_f32_f16(vreinterpret_f16_u16(v));
}
inline float32x4_t load_halves(Rows4 p, size_t offset) {
  const auto half = [&](size_t row) {
    uint16_t bits = 0;
    std::memcpy(&bits, p[row] + offset, 2);
    return bits;
  };
  uint16x4_t v = vdup_n_u16(half(0));
  v = vset_lane_u16(half(1), v, 1);
  v = vset_lane_u16(half(2), v, 2);
  v = vset_lane_u16(half(3), v, 3);
  return halves_to_floats(v);
}

// Dwords of four registers transposed.
inline void transpose(const uint32x4_t r[4], uint32x4_t out[4]) {
  const auto wide = [](uint32x4_t v) { return vreinterpretq_u64_u32(v); };
  const auto narrow = [](uint64x2_t v) { return vreinterpretq_u32_u64(v); };
  const uint32x4_t t0 = vtrn1q_u32(r[0], r[1]);
  const uint32x4_t t1 = vtrn2q_u32(r[0], r[1]);
  const uint32x4_t t2 = vtrn1q_u32(r[2], r[3]);
  const uint32x4_t t3 = vtrn2q_u32(r[2], r[3]);
  out[0] = narrow(vtrn1q_u64(wide(t0), wide(t2)));
  out[1] = narrow(vtrn1q_u64(wide(t1), wide(t3)));
  out[2] = narrow(vtrn2q_u64(wide(t0), wide(t2)));
  out[3] = narrow(vtrn2q_u64(wide(t1), wide(t3)));
}

// 16 bytes at offset of each row: out[j] holds dword j of the four rows.
inline void load_transposed(Rows4 p, size_t offset, uint32x4_t out[4]) {
  uint32x4_t r[4];
  for (size_t i = 0; i < 4; ++i) r[i] = vreinterpretq_u32_u8(load16(p[i] + offset));
  transpose(r, out);
}

template <int kBits, bool kHasMin, bool kHasHalves>
struct Form {
  using Numbers = Form;  // all that a product needs to know of a type
  static constexpr int kFractionBits = kBits;
  static constexpr bool kMin = kHasMin;
  static constexpr bool kHalves = kHasHalves;
  static constexpr int kParts = kHalves ? 2 : 1;
};

// One f16 scale in a stored block, perhaps one f16 minimum.
template <size_t kOffset>
struct OneScale {
  float32x4_t scale;
  explicit OneScale(Rows4 p) : scale(load_halves(p, kOffset)) {}
  template <int s, int h>
  float32x4_t d() const {
    return scale;
  }
};
struct ScaleAndMinimum {
  float32x4_t scale;
  float32x4_t minimum;
  explicit ScaleAndMinimum(Rows4 p) : scale(load_halves(p, 0)), minimum(load_halves(p, 2)) {}
  template <int s, int h>
  float32x4_t d() const {
    return scale;
  }
  template <int s, int h>
  float32x4_t m() const {
    return minimum;
  }
};

struct Q4_0 : Form<4, false, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 18;
  using Scales = OneScale<0>;
  template <int s>
  static void codes(const uint8_t* p, int8x16_t c[2]) {
    const uint8x16_t v = veorq_u8(load16(p + 2), vdupq_n_u8(0x88));  // code - 8 in four bits
    c[0] = as_signed(vshlq_n_u8(v, 4));
    c[1] = as_signed(vandq_u8(v, vdupq_n_u8(0xf0)));
  }
};

struct Q4_1 : Form<0, true, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 20;
  using Scales = ScaleAndMinimum;
  template <int s>
  static void codes(const uint8_t* p, int8x16_t c[2]) {
    const uint8x16_t v = load16(p + 4);
    c[0] = as_signed(low_nibbles(v));
    c[1] = as_signed(vshrq_n_u8(v, 4));
  }
};

// For columns 0..15 and 16..31: all ones where the bit of a column in the 4 bytes at p is not set.
inline void clear_bits(const uint8_t* p, uint8x16_t masks[2]) {
  uint32_t bits = 0;
  std::memcpy(&bits, p, 4);
  const uint8x16_t v = vreinterpretq_u8_u32(vdupq_n_u32(~bits));
  const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
  const uint8x16_t first = vcombine_u8(vdup_n_u8(0), vdup_n_u8(1));
  masks[0] = vtstq_u8(vqtbl1q_u8(v, first), bit);
  masks[1] = vtstq_u8(vqtbl1q_u8(v, vaddq_u8(first, vdupq_n_u8(2))), bit);
}

struct Q5_0 : Form<0, false, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 22;
  using Scales = OneScale<0>;
  template <int s>
  static void codes(const uint8_t* p, int8x16_t c[2]) {
    uint8x16_t clear[2];  // codes below 16, which become negative: their upper four bits are ones
    clear_bits(p + 2, clear);
    const uint8x16_t v = load16(p + 6);
    c[0] = as_signed(vsliq_n_u8(v, clear[0], 4));
    c[1] = as_signed(vsliq_n_u8(vshrq_n_u8(v, 4), clear[1], 4));
  }
};

struct Q5_1 : Form<0, true, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 24;
  using Scales = ScaleAndMinimum;
  template <int s>
  static void codes(const uint8_t* p, int8x16_t c[2]) {
    uint8x16_t clear[2];
    clear_bits(p + 4, clear);
    const uint8x16_t v = load16(p + 8);
    const uint8x16_t bit4 = vdupq_n_u8(0x10);
    c[0] = as_signed(vorrq_u8(low_nibbles(v), vbicq_u8(bit4, clear[0])));
    c[1] = as_signed(vorrq_u8(vshrq_n_u8(v, 4), vbicq_u8(bit4, clear[1])));
  }
};

struct Q8_0 : Form<0, false, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 34;
  using Scales = OneScale<0>;
  template <int s>
  static void codes(const uint8_t* p, int8x16_t c[2]) {
    c[0] = as_signed(load16(p + 2));
    c[1] = as_signed(load16(p + 18));
  }
};

struct Q2_K : Form<0, true, true> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 84;
  struct Scales {
    uint32x4_t packed[4];  // a byte per half block: four bits of scale, four of minimum
    float32x4_t scale;
    float32x4_t minimum;
    explicit Scales(Rows4 p) : scale(load_halves(p, 80)), minimum(vnegq_f32(load_halves(p, 82))) {
      load_transposed(p, 0, packed);
    }
    template <int s, int h>
    float32x4_t d() const {
      const uint32x4_t byte = byte_of<(2 * s + h) % 4>(packed[s / 2]);
      return vmulq_f32(scale, vcvtq_f32_u32(vandq_u32(byte, vdupq_n_u32(15))));
    }
    template <int s, int h>
    float32x4_t m() const {
      const uint32x4_t byte = byte_of<(2 * s + h) % 4>(packed[s / 2]);
      return vmulq_f32(minimum, vcvtq_f32_u32(vshrq_n_u32(byte, 4)));
    }
  };
  template <int s>
  static void codes(const uint8_t* p, int8x16_t c[2]) {
    for (int h = 0; h < 2; ++h) {
      const uint8x16_t v = load16(p + 16 + s / 4 * 32 + 16 * h);
      c[h] = as_signed(vandq_u8(shift_right<2 * (s % 4)>(v), vdupq_n_u8(3)));
    }
  }
};

struct Q3_K : Form<0, false, true> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 110;
  struct Scales {
    int32x4_t scales[4];  // a signed byte per half block
    float32x4_t scale;
    explicit Scales(Rows4 p) : scale(load_halves(p, 108)) {
      // The 12 bytes of scales and their neighbours: low nibbles of 0..7 and 8..15, then upper two bits, four to a
      // byte.
      uint32x4_t packed[4];
      load_transposed(p, 94, packed);
      const auto join = [](uint32x4_t a, uint32x4_t b) { return vorrq_u32(vshrq_n_u32(a, 16), vshlq_n_u32(b, 16)); };
      const uint32x4_t low[2] = {join(packed[0], packed[1]), join(packed[1], packed[2])};
      const uint32x4_t high = join(packed[2], packed[3]);
      const uint32x4_t four = vdupq_n_u32(0x0f0f0f0f);
      const uint32x4_t two = vdupq_n_u32(0x30303030);
      const uint32x4_t codes[4] = {
          vorrq_u32(vandq_u32(low[0], four), vandq_u32(vshlq_n_u32(high, 4), two)),
          vorrq_u32(vandq_u32(low[1], four), vandq_u32(vshlq_n_u32(high, 2), two)),
          vorrq_u32(vandq_u32(vshrq_n_u32(low[0], 4), four), vandq_u32(high, two)),
          vorrq_u32(vandq_u32(vshrq_n_u32(low[1], 4), four), vandq_u32(vshrq_n_u32(high, 2), two))};
      for (int i = 0; i < 4; ++i) {
        scales[i] = vreinterpretq_s32_s8(vsubq_s8(vreinterpretq_s8_u32(codes[i]), vdupq_n_s8(32)));
      }
    }
    template <int s, int h>
    float32x4_t d() const {
      return vmulq_f32(scale, vcvtq_f32_s32(signed_byte_of<(2 * s + h) % 4>(scales[s / 2])));
    }
  };
  template <int s>
  static void codes(const uint8_t* p, int8x16_t c[2]) {
    for (int h = 0; h < 2; ++h) {
      const uint8x16_t v = load16(p + 32 + s / 4 * 32 + 16 * h);
      // Where the third bit is clear the code is negative: its upper six bits are ones.
      const uint8x16_t clear = vtstq_u8(vmvnq_u8(load16(p + 16 * h)), vdupq_n_u8(1 << s));
      c[h] = as_signed(vsliq_n_u8(shift_right<2 * (s % 4)>(v), clear, 2));
    }
  }
};

struct Q4_K : Form<0, true, false> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 144;
  struct Scales {
    uint32x4_t scales[2];  // a byte per block
    uint32x4_t minima[2];
    float32x4_t scale;
    float32x4_t minimum;
    explicit Scales(Rows4 p) {
      uint32x4_t head[4];  // d | dmin, then the 12 bytes of 6-bit scales and minima
      load_transposed(p, 0, head);
      scale = halves_to_floats(vmovn_u32(head[0]));
      minimum = vnegq_f32(halves_to_floats(vshrn_n_u32(head[0], 16)));
      const uint32x4_t six = vdupq_n_u32(0x3f3f3f3f);
      const uint32x4_t four = vdupq_n_u32(0x0f0f0f0f);
      const uint32x4_t two = vdupq_n_u32(0x30303030);
      scales[0] = vandq_u32(head[1], six);
      minima[0] = vandq_u32(head[2], six);
      scales[1] = vorrq_u32(vandq_u32(head[3], four), vandq_u32(vshrq_n_u32(head[1], 2), two));
      minima[1] = vorrq_u32(vandq_u32(vshrq_n_u32(head[3], 4), four), vandq_u32(vshrq_n_u32(head[2], 2), two));
    }
    template <int s, int h>
    float32x4_t d() const {
      return vmulq_f32(scale, vcvtq_f32_u32(byte_of<s % 4>(scales[s / 4])));
    }
    template <int s, int h>
    float32x4_t m() const {
      return vmulq_f32(minimum, vcvtq_f32_u32(byte_of<s % 4>(minima[s / 4])));
    }
  };
  template <int s>
  static void codes(const uint8_t* p, int8x16_t c[2]) {
    for (int h = 0; h < 2; ++h) {
      const uint8x16_t v = load16(p + 16 + s / 2 * 32 + 16 * h);
      c[h] = as_signed(s % 2 == 0 ? low_nibbles(v) : vshrq_n_u8(v, 4));
    }
  }
};

struct Q5_K : Form<0, true, false> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 176;
  using Scales = Q4_K::Scales;
  template <int s>
  static void codes(const uint8_t* p, int8x16_t c[2]) {
    for (int h = 0; h < 2; ++h) {
      const uint8x16_t high = load16(p + 16 + 16 * h);  // bit s: of block s
      const uint8x16_t v = load16(p + 48 + s / 2 * 32 + 16 * h);
      uint8x16_t joined;
      if constexpr (s % 2 == 0) {
        joined = vsliq_n_u8(v, shift_right<s>(high), 4);
      } else if constexpr (s < 4) {
        joined = vsriq_n_u8(vshlq_n_u8(high, 4 - s), v, 4);
      } else {
        joined = vsriq_n_u8(vshrq_n_u8(high, s - 4), v, 4);
      }
      c[h] = as_signed(vandq_u8(joined, vdupq_n_u8(0x1f)));
    }
  }
};

struct Q6_K : Form<2, false, true> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 210;
  struct Scales {
    int32x4_t scales[4];  // a signed byte per half block
    float32x4_t scale;
    explicit Scales(Rows4 p) : scale(load_halves(p, 208)) {
      uint32x4_t bytes[4];
      load_transposed(p, 192, bytes);
      for (int i = 0; i < 4; ++i) scales[i] = vreinterpretq_s32_u32(bytes[i]);
    }
    template <int s, int h>
    float32x4_t d() const {
      return vmulq_f32(scale, vcvtq_f32_s32(signed_byte_of<(2 * s + h) % 4>(scales[s / 2])));
    }
  };
  template <int s>
  static void codes(const uint8_t* p, int8x16_t c[2]) {
    constexpr int part = s % 4;
    for (int h = 0; h < 2; ++h) {
      const uint8x16_t v = load16(p + s / 4 * 64 + part % 2 * 32 + 16 * h);
      // Two bits per part; the upper one flipped makes code - 32 of the six.
      const uint8x16_t high = veorq_u8(load16(p + 128 + s / 4 * 32 + 16 * h), vdupq_n_u8(0xaa));
      const uint8x16_t bits = shift_right<part % 2 * 2>(high);
      const uint8x16_t joined = part < 2 ? vsliq_n_u8(v, bits, 4) : vsriq_n_u8(bits, v, 4);
      c[h] = as_signed(vshlq_n_u8(joined, 2));
    }
  }
};

// 4-bit codes that stand for values.
inline void look_up(const int8_t (&values)[16], const uint8_t* p, int8x16_t c[2]) {
  const int8x16_t table = vld1q_s8(values);
  const uint8x16_t v = load16(p);
  c[0] = vqtbl1q_s8(table, low_nibbles(v));
  c[1] = vqtbl1q_s8(table, vshrq_n_u8(v, 4));
}
constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kMxfp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct IQ4_NL : Form<0, false, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 18;
  using Scales = OneScale<0>;
  template <int s>
  static void codes(const uint8_t* p, int8x16_t c[2]) {
    look_up(kIq4Values, p + 2, c);
  }
};

struct IQ4_XS : Form<0, false, false> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 136;
  struct Scales {
    uint32x4_t low;   // a nibble per block
    uint32x4_t high;  // two bits per block
    float32x4_t scale;
    explicit Scales(Rows4 p) {
      uint32x4_t head[4];
      load_transposed(p, 0, head);
      scale = halves_to_floats(vmovn_u32(head[0]));
      high = vshrq_n_u32(head[0], 16);
      low = head[1];
    }
    template <int s, int h>
    float32x4_t d() const {
      const uint32x4_t four = low_bits<4 * s, 4>(low);
      const uint32x4_t two = low_bits<2 * s, 2>(high);
      const int32x4_t code = vreinterpretq_s32_u32(vorrq_u32(four, vshlq_n_u32(two, 4)));
      return vmulq_f32(scale, vcvtq_f32_s32(vsubq_s32(code, vdupq_n_s32(32))));
    }
    template <int shift, int n>
    static uint32x4_t low_bits(uint32x4_t v) {
      if constexpr (shift > 0) v = vshrq_n_u32(v, shift);
      return vandq_u32(v, vdupq_n_u32((1 << n) - 1));
    }
  };
  template <int s>
  static void codes(const uint8_t* p, int8x16_t c[2]) {
    look_up(kIq4Values, p + 8 + 16 * s, c);
  }
};

struct MXFP4 : Form<0, false, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 17;
  struct Scales {
    float32x4_t scale;
    explicit Scales(Rows4 p) {
      // 2^(e - 128); the two smallest are subnormal.
      const auto bits = [&](size_t row) {
        const uint32_t e = p[row][0];
        return e < 2 ? 0x00200000u << e : (e - 1) << 23;
      };
      const uint32_t lanes[4] = {bits(0), bits(1), bits(2), bits(3)};
      scale = vreinterpretq_f32_u32(vld1q_u32(lanes));
    }
    template <int s, int h>
    float32x4_t d() const {
      return scale;
    }
  };
  template <int s>
  static void codes(const uint8_t* p, int8x16_t c[2]) {
    look_up(kMxfp4Values, p + 1, c);
  }
};

struct TQ2_0 : Form<0, false, false> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 66;
  using Scales = OneScale<64>;
  template <int s>
  static void codes(const uint8_t* p, int8x16_t c[2]) {
    for (int h = 0; h < 2; ++h) {
      const uint8x16_t v = load16(p + s / 4 * 32 + 16 * h);
      const uint8x16_t code = vandq_u8(shift_right<2 * (s % 4)>(v), vdupq_n_u8(3));
      c[h] = vsubq_s8(as_signed(code), vdupq_n_s8(1));
    }
  }
};

// f(Type{}) for the type of that name; nothing for the float types, which are gemm_float's.
template <class F>
void with_type(TensorType type, const F& f) {
  switch (type) {
    case TensorType::kQ4_0: return f(Q4_0{});
    case TensorType::kQ4_1: return f(Q4_1{});
    case TensorType::kQ5_0: return f(Q5_0{});
    case TensorType::kQ5_1: return f(Q5_1{});
    case TensorType::kQ8_0: return f(Q8_0{});
    case TensorType::kQ2_K: return f(Q2_K{});
    case TensorType::kQ3_K: return f(Q3_K{});
    case TensorType::kQ4_K: return f(Q4_K{});
    case TensorType::kQ5_K: return f(Q5_K{});
    case TensorType::kQ6_K: return f(Q6_K{});
    case TensorType::kIQ4_NL: return f(IQ4_NL{});
    case TensorType::kIQ4_XS: return f(IQ4_XS{});
    case TensorType::kMXFP4: return f(MXFP4{});
    case TensorType::kTQ2_0: return f(TQ2_0{});
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16: return;
  }
}

}  // namespace
}  // namespace gemma::cpu
