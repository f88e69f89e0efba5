// Stored blocks of 8 weight rows -> codes and scales in registers with a row in each lane, for the quantised products of
// the sets with 256-bit registers. Internal to each file that includes it (they are compiled with different flags).
#pragma once

#include <immintrin.h>

#include "backend/cpu/inlining.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/unrolled.h"

namespace gemma::cpu {
namespace {

constexpr int kLanes = 8;

// As unrolled(), by calls inside each other. GCC chooses other registers for either form, and the numbers that these
// kernels' comments give are of this one.
template <int kN, int kI = 0, class F>
GEMMA_INLINE void unroll(const F& f) {
  if constexpr (kI < kN) {
    f(Constant<kI>{});
    unroll<kN, kI + 1>(f);
  }
}

// What the product needs to know of a type: its largest code, the offset 2^kShift of codes (none if negative), whether
// it has minima, whether scales belong to halves of a block. With an offset of 128 codes have all 8 bits.
template <int kMax, int kShift, bool kHasMin, bool kHasHalves>
struct Form {
  using Kind = Form;
  static constexpr int kMaxCode = kMax;
  static constexpr int kOffsetShift = kShift;
  static constexpr bool kMin = kHasMin;
  static constexpr bool kHalves = kHasHalves;
  static constexpr int kParts = kHalves ? 2 : 1;
  static constexpr int kPartDwords = 8 / kParts;
  static constexpr bool kAllBits = kShift == 7;
};

// One block of 32 columns of 8 weight rows.
struct alignas(32) PanelBlock {
  uint8_t u[8][32];    // u[j][4 * lane + i]: column 4 * j + i
  float d[2][kLanes];  // scale of each part
  float m[2][kLanes];  // minimum, for types that have one
};

// ---- Loads of 8 rows, `stride` bytes apart. None leaves the bytes from p to the end of what it wants of the last row.

// 16 bytes of each row, transposed: out[j] holds dword j of all 8 rows, in the order of rows.
GEMMA_INLINE void load_transposed(const uint8_t* p, size_t stride, __m256i out[4]) {
  const auto load = [&](size_t row) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + row * stride)); };
  __m256i r[4];
  for (size_t i = 0; i < 4; ++i) r[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(load(i)), load(i + 4), 1);
  const __m256i t0 = _mm256_unpacklo_epi32(r[0], r[1]);
  const __m256i t1 = _mm256_unpackhi_epi32(r[0], r[1]);
  const __m256i t2 = _mm256_unpacklo_epi32(r[2], r[3]);
  const __m256i t3 = _mm256_unpackhi_epi32(r[2], r[3]);
  out[0] = _mm256_unpacklo_epi64(t0, t2);
  out[1] = _mm256_unpackhi_epi64(t0, t2);
  out[2] = _mm256_unpacklo_epi64(t1, t3);
  out[3] = _mm256_unpackhi_epi64(t1, t3);
}

// The two bytes at p of each row. Row i is loaded from 2 * i bytes before, where word i is the wanted one: a blend with
// memory takes half the instructions of an insertion.
GEMMA_INLINE __m128i load_words(const uint8_t* p, size_t stride) {
  const auto load = [&](size_t row) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + row * (stride - 2)));
  };
  __m128i v = load(0);
  v = _mm_blend_epi16(v, load(1), 0x02);
  v = _mm_blend_epi16(v, load(2), 0x04);
  v = _mm_blend_epi16(v, load(3), 0x08);
  v = _mm_blend_epi16(v, load(4), 0x10);
  v = _mm_blend_epi16(v, load(5), 0x20);
  v = _mm_blend_epi16(v, load(6), 0x40);
  return _mm_blend_epi16(v, load(7), 0x80);
}

// The four bytes at p of each row, in the same way.
GEMMA_INLINE __m256i load_dwords(const uint8_t* p, size_t stride) {
  const auto load = [&](size_t row) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + row * (stride - 4)));
  };
  __m256i v = load(0);
  v = _mm256_blend_epi32(v, load(1), 0x02);
  v = _mm256_blend_epi32(v, load(2), 0x04);
  v = _mm256_blend_epi32(v, load(3), 0x08);
  v = _mm256_blend_epi32(v, load(4), 0x10);
  v = _mm256_blend_epi32(v, load(5), 0x20);
  v = _mm256_blend_epi32(v, load(6), 0x40);
  return _mm256_blend_epi32(v, load(7), 0x80);
}

GEMMA_INLINE __m256 load_halves(const uint8_t* p, size_t stride) {
  return _mm256_cvtph_ps(load_words(p, stride));
}

// Two half floats per lane: the low and the high 16 bits.
struct HalfPairs {
  __m256 low;
  __m256 high;
  GEMMA_INLINE explicit HalfPairs(__m256i v) {
    const __m256i apart = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12,
                                           13, 2, 3, 6, 7, 10, 11, 14, 15);
    const __m256i sorted = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(v, apart), 0xd8);
    low = _mm256_cvtph_ps(_mm256_castsi256_si128(sorted));
    high = _mm256_cvtph_ps(_mm256_extracti128_si256(sorted, 1));
  }
};

// ---- Small steps that types share

GEMMA_INLINE __m256i bytes(int value) {
  return _mm256_set1_epi8(static_cast<char>(value));
}
GEMMA_INLINE __m256i dwords(int value) {
  return _mm256_set1_epi32(value);
}
GEMMA_INLINE __m256 negative(__m256 v) {
  return _mm256_xor_ps(v, _mm256_set1_ps(-0.0f));
}
// Bits shifted within 16; callers mask what crosses bytes. Negative: to the right.
template <int kLeft>
GEMMA_INLINE __m256i shift_bits(__m256i v) {
  return kLeft == 0  ? v
         : kLeft > 0 ? _mm256_slli_epi16(v, kLeft > 0 ? kLeft : 0)
                     : _mm256_srli_epi16(v, kLeft < 0 ? -kLeft : 0);
}
// Byte i of each lane as a float, unsigned or signed.
template <int kI>
GEMMA_INLINE __m256 unsigned_byte(__m256i v) {
  const __m256i low = kI == 0 ? v : _mm256_srli_epi32(v, 8 * kI);
  return _mm256_cvtepi32_ps(kI == 3 ? low : _mm256_and_si256(low, dwords(0xff)));
}
template <int kI>
GEMMA_INLINE __m256 signed_byte(__m256i v) {
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * kI), 24));
}
GEMMA_INLINE __m256i table16(const int8_t (&values)[16], int flip) {
  const __m128i v =
      _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)), _mm_set1_epi8(static_cast<char>(flip)));
  return _mm256_broadcastsi128_si256(v);
}

// The fifth bits of a block: bit 4 * j + i of each lane's dword, at bit 4 of byte i. Byte j / 2 comes to all four
// places, then one bit each is tested.
template <int kJ>
GEMMA_INLINE __m256i fifth_bits(__m256i high) {
  const int b = kJ / 2;
  const __m256i pick = _mm256_add_epi8(
      _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c), bytes(b));
  const __m256i bit = dwords(kJ % 2 == 0 ? 0x08040201 : static_cast<int>(0x80402010u));
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(high, pick), bit), bit);
  return _mm256_and_si256(set, bytes(0x10));
}

// 16 bytes of nibbles per row to one block; map(j, nibbles) makes the codes of dword j.
template <class Sink, class Map>
GEMMA_INLINE void unpack_nibbles(const uint8_t* p, size_t stride, int block, Sink& sink, const Map& map) {
  __m256i q[4];
  load_transposed(p, stride, q);
  unroll<8>([&](auto j) {
    const __m256i nibbles = j < 4 ? q[j % 4] : _mm256_srli_epi16(q[j % 4], 4);
    sink.codes(block, j, map(j, _mm256_and_si256(nibbles, bytes(0x0f))));
  });
}

// ---- Each type: how a group of blocks of 8 rows (kGroup blocks of 32 columns, kGroupBytes a row) becomes codes,
// scales and minima. sink.codes(block, j, columns 4 * j .. 4 * j + 3), sink.scale(block, part, d), sink.minimum, and
// sink.end(block) once a block is complete, in order. Layouts: quant/dequantize.cpp. Super-blocks tell a scale when its
// block ends: sixteen of them made beforehand would wait on the stack.

struct Q4_0 : Form<15, 3, false, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 18;
  template <class Sink>
  GEMMA_INLINE static void unpack(const uint8_t* p, size_t stride, Sink& sink) {
    sink.scale(0, 0, load_halves(p, stride));
    unpack_nibbles(p + 2, stride, 0, sink, [](auto, __m256i codes) { return codes; });
    sink.end(0);
  }
};

struct Q4_1 : Form<15, -1, true, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 20;
  template <class Sink>
  GEMMA_INLINE static void unpack(const uint8_t* p, size_t stride, Sink& sink) {
    const HalfPairs head(load_dwords(p, stride));
    sink.scale(0, 0, head.low);
    sink.minimum(0, 0, head.high);
    unpack_nibbles(p + 4, stride, 0, sink, [](auto, __m256i codes) { return codes; });
    sink.end(0);
  }
};

struct Q5_0 : Form<31, 4, false, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 22;
  template <class Sink>
  GEMMA_INLINE static void unpack(const uint8_t* p, size_t stride, Sink& sink) {
    const __m256i high = load_dwords(p + 2, stride);
    sink.scale(0, 0, load_halves(p, stride));
    unpack_nibbles(p + 6, stride, 0, sink,
                   [&](auto j, __m256i codes) { return _mm256_or_si256(codes, fifth_bits<j>(high)); });
    sink.end(0);
  }
};

struct Q5_1 : Form<31, -1, true, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 24;
  template <class Sink>
  GEMMA_INLINE static void unpack(const uint8_t* p, size_t stride, Sink& sink) {
    const HalfPairs head(load_dwords(p, stride));
    const __m256i high = load_dwords(p + 4, stride);
    sink.scale(0, 0, head.low);
    sink.minimum(0, 0, head.high);
    unpack_nibbles(p + 8, stride, 0, sink,
                   [&](auto j, __m256i codes) { return _mm256_or_si256(codes, fifth_bits<j>(high)); });
    sink.end(0);
  }
};

struct Q8_0 : Form<255, 7, false, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 34;
  template <class Sink>
  GEMMA_INLINE static void unpack(const uint8_t* p, size_t stride, Sink& sink) {
    sink.scale(0, 0, load_halves(p, stride));
    unroll<2>([&](auto half) {
      __m256i q[4];
      load_transposed(p + 2 + 16 * half, stride, q);
      unroll<4>(
          [&](auto j) { sink.codes(0, 4 * half + j, Sink::kSigned ? q[j] : _mm256_xor_si256(q[j], bytes(0x80))); });
    });
    sink.end(0);
  }
};

struct IQ4_NL : Form<255, 7, false, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 18;
  static constexpr int8_t kValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  template <class Sink>
  GEMMA_INLINE static void unpack(const uint8_t* p, size_t stride, Sink& sink) {
    const __m256i table = table16(kValues, Sink::kSigned ? 0 : 0x80);
    sink.scale(0, 0, load_halves(p, stride));
    unpack_nibbles(p + 2, stride, 0, sink, [&](auto, __m256i codes) { return _mm256_shuffle_epi8(table, codes); });
    sink.end(0);
  }
};

struct MXFP4 : Form<28, 4, false, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 17;
  static constexpr int8_t kValues[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};
  template <class Sink>
  GEMMA_INLINE static void unpack(const uint8_t* p, size_t stride, Sink& sink) {
    const __m256i table = table16(kValues, 0);
    // d = 2^(e - 128); the exponents 0 and 1 give subnormal floats.
    const __m256i e = _mm256_and_si256(_mm256_cvtepu16_epi32(load_words(p, stride)), dwords(0xff));
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, dwords(1)), 23);
    const __m256i subnormal = _mm256_sllv_epi32(dwords(1 << 21), e);
    const __m256i d = _mm256_blendv_epi8(normal, subnormal, _mm256_cmpgt_epi32(dwords(2), e));
    sink.scale(0, 0, _mm256_castsi256_ps(d));
    unpack_nibbles(p + 1, stride, 0, sink, [&](auto, __m256i codes) { return _mm256_shuffle_epi8(table, codes); });
    sink.end(0);
  }
};

struct Q2_K : Form<3, -1, true, true> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 84;
  template <class Sink>
  GEMMA_INLINE static void unpack(const uint8_t* p, size_t stride, Sink& sink) {
    __m256i packed[4];  // a byte per half block: scale, minimum
    load_transposed(p, stride, packed);
    const HalfPairs head(load_dwords(p + 80, stride));
    const __m256 dmin = negative(head.high);
    unroll<2>([&](auto n) {
      unroll<2>([&](auto part) {
        __m256i q[4];
        load_transposed(p + 16 + 32 * n + 16 * part, stride, q);
        unroll<4>([&](auto s) {
          unroll<4>([&](auto j) {
            sink.codes(4 * n + s, 4 * part + j, _mm256_and_si256(shift_bits<-2 * s>(q[j]), bytes(3)));
          });
        });
      });
      unroll<4>([&](auto s) {
        unroll<2>([&](auto part) {
          constexpr int kFirstBit = 16 * (s % 2) + 8 * part;
          const __m256i both = packed[2 * n + s / 2];
          const __m256i scale = _mm256_and_si256(_mm256_srli_epi32(both, kFirstBit), dwords(15));
          const __m256i minimum = _mm256_and_si256(_mm256_srli_epi32(both, kFirstBit + 4), dwords(15));
          sink.scale(4 * n + s, part, _mm256_mul_ps(head.low, _mm256_cvtepi32_ps(scale)));
          sink.minimum(4 * n + s, part, _mm256_mul_ps(dmin, _mm256_cvtepi32_ps(minimum)));
        });
        sink.end(4 * n + s);
      });
    });
  }
};

struct Q3_K : Form<7, 2, false, true> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 110;
  template <class Sink>
  GEMMA_INLINE static void unpack(const uint8_t* p, size_t stride, Sink& sink) {
    __m256i tail[4];  // two codes, 12 bytes of scales, d
    load_transposed(p + 94, stride, tail);
    const HalfPairs last(tail[3]);
    __m256i packed[3];
    unroll<3>([&](auto i) {
      packed[i] = _mm256_or_si256(_mm256_srli_epi32(tail[i], 16), _mm256_slli_epi32(tail[i + 1], 16));
    });
    // Bytes 0-7: the low nibbles of scales 0-7 and 8-15. Byte 8 + k: two high bits each of scales k, 4 + k, 8 + k and
    // 12 + k.
    __m256i scales[4];
    unroll<4>([&](auto i) {
      const __m256i low = _mm256_and_si256(shift_bits<(i < 2 ? 0 : -4)>(packed[i % 2]), bytes(0x0f));
      const __m256i high = _mm256_and_si256(shift_bits<4 - 2 * i>(packed[2]), bytes(0x30));
      scales[i] = _mm256_sub_epi8(_mm256_or_si256(low, high), bytes(32));
    });
    unroll<2>([&](auto n) {
      unroll<2>([&](auto part) {
        __m256i q[4];
        __m256i h[4];  // bit s: of block s
        load_transposed(p + 32 + 32 * n + 16 * part, stride, q);
        load_transposed(p + 16 * part, stride, h);
        unroll<4>([&](auto s) {
          unroll<4>([&](auto j) {
            const __m256i high = _mm256_and_si256(shift_bits<2 - 4 * n - s>(h[j]), bytes(4));
            sink.codes(4 * n + s, 4 * part + j,
                       _mm256_or_si256(_mm256_and_si256(shift_bits<-2 * s>(q[j]), bytes(3)), high));
          });
        });
      });
      unroll<4>([&](auto s) {
        unroll<2>([&](auto part) {
          const __m256 scale = signed_byte<2 * (s % 2) + part>(scales[2 * n + s / 2]);
          sink.scale(4 * n + s, part, _mm256_mul_ps(last.high, scale));
        });
        sink.end(4 * n + s);
      });
    });
  }
};

// Scales and minima of the eight blocks of Q4_K and Q5_K, 6 bits each in 12 bytes.
struct KScales {
  __m256 d;
  __m256 dmin;
  __m256i scales[2];  // a byte for each of four blocks
  __m256i minima[2];

  GEMMA_INLINE KScales(const uint8_t* p, size_t stride) {
    __m256i head[4];  // d | dmin, then the 12 bytes
    load_transposed(p, stride, head);
    const HalfPairs both(head[0]);
    d = both.low;
    dmin = negative(both.high);
    scales[0] = _mm256_and_si256(head[1], bytes(0x3f));
    minima[0] = _mm256_and_si256(head[2], bytes(0x3f));
    scales[1] = last_four(head[3], head[1]);
    minima[1] = last_four(_mm256_srli_epi16(head[3], 4), head[2]);
  }
  // Ends a block whose codes are complete.
  template <int kBlock, class Sink>
  GEMMA_INLINE void end(Sink& sink) const {
    sink.scale(kBlock, 0, _mm256_mul_ps(d, unsigned_byte<kBlock % 4>(scales[kBlock / 4])));
    sink.minimum(kBlock, 0, _mm256_mul_ps(dmin, unsigned_byte<kBlock % 4>(minima[kBlock / 4])));
    sink.end(kBlock);
  }

 private:
  GEMMA_INLINE static __m256i last_four(__m256i low, __m256i high) {
    const __m256i top = _mm256_and_si256(_mm256_srli_epi16(high, 2), bytes(0x30));
    return _mm256_or_si256(_mm256_and_si256(low, bytes(0x0f)), top);
  }
};

struct Q4_K : Form<15, -1, true, false> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 144;
  template <class Sink>
  GEMMA_INLINE static void unpack(const uint8_t* p, size_t stride, Sink& sink) {
    const KScales scales(p, stride);
    unroll<4>([&](auto chunk) {
      unroll<2>([&](auto part) {
        __m256i q[4];
        load_transposed(p + 16 + 32 * chunk + 16 * part, stride, q);
        unroll<4>([&](auto j) {
          sink.codes(2 * chunk, 4 * part + j, _mm256_and_si256(q[j], bytes(0x0f)));
          sink.codes(2 * chunk + 1, 4 * part + j, _mm256_and_si256(_mm256_srli_epi16(q[j], 4), bytes(0x0f)));
        });
      });
      scales.end<2 * chunk>(sink);
      scales.end<2 * chunk + 1>(sink);
    });
  }
};

struct Q5_K : Form<31, -1, true, false> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 176;
  template <class Sink>
  GEMMA_INLINE static void unpack(const uint8_t* p, size_t stride, Sink& sink) {
    const KScales scales(p, stride);
    __m256i high[2][4];  // bit s: of block s
    load_transposed(p + 16, stride, high[0]);
    load_transposed(p + 32, stride, high[1]);
    const __m256i bit4 = bytes(0x10);
    unroll<4>([&](auto chunk) {
      unroll<2>([&](auto part) {
        __m256i q[4];
        load_transposed(p + 48 + 32 * chunk + 16 * part, stride, q);
        unroll<4>([&](auto j) {
          const __m256i even = _mm256_and_si256(shift_bits<4 - 2 * chunk>(high[part][j]), bit4);
          const __m256i odd = _mm256_and_si256(shift_bits<3 - 2 * chunk>(high[part][j]), bit4);
          sink.codes(2 * chunk, 4 * part + j, _mm256_or_si256(_mm256_and_si256(q[j], bytes(0x0f)), even));
          sink.codes(2 * chunk + 1, 4 * part + j,
                     _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(q[j], 4), bytes(0x0f)), odd));
        });
      });
      scales.end<2 * chunk>(sink);
      scales.end<2 * chunk + 1>(sink);
    });
  }
};

struct Q6_K : Form<63, 5, false, true> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 210;
  template <class Sink>
  GEMMA_INLINE static void unpack(const uint8_t* p, size_t stride, Sink& sink) {
    __m256i scales[4];  // a signed byte per half block
    load_transposed(p + 192, stride, scales);
    const __m256 d = load_halves(p + 208, stride);
    const auto join = [](__m256i codes, __m256i bits) {
      return _mm256_or_si256(_mm256_and_si256(codes, bytes(0x0f)), _mm256_and_si256(bits, bytes(0x30)));
    };
    unroll<2>([&](auto n) {
      unroll<2>([&](auto part) {  // 16 of the 32 columns of each of the four blocks
        __m256i high[4];
        load_transposed(p + 128 + 32 * n + 16 * part, stride, high);
        unroll<2>([&](auto s) {  // first and third block, second and fourth
          __m256i q[4];
          load_transposed(p + 64 * n + 32 * s + 16 * part, stride, q);
          unroll<4>([&](auto j) {
            sink.codes(4 * n + s, 4 * part + j, join(q[j], shift_bits<4 - 2 * s>(high[j])));
            sink.codes(4 * n + 2 + s, 4 * part + j, join(_mm256_srli_epi16(q[j], 4), shift_bits<-2 * s>(high[j])));
          });
        });
      });
      unroll<4>([&](auto s) {
        unroll<2>([&](auto part) {
          const __m256 scale = signed_byte<2 * (s % 2) + part>(scales[2 * n + s / 2]);
          sink.scale(4 * n + s, part, _mm256_mul_ps(d, scale));
        });
        sink.end(4 * n + s);
      });
    });
  }
};

struct IQ4_XS : Form<255, 7, false, false> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 136;
  template <class Sink>
  GEMMA_INLINE static void unpack(const uint8_t* p, size_t stride, Sink& sink) {
    const __m256i table = table16(IQ4_NL::kValues, Sink::kSigned ? 0 : 0x80);
    __m256i head[4];  // d | two high bits per scale, a low nibble per scale
    load_transposed(p, stride, head);
    const HalfPairs first(head[0]);
    const __m256i high = _mm256_srli_epi32(head[0], 16);
    unroll<8>([&](auto s) {
      unpack_nibbles(p + 8 + 16 * s, stride, s, sink,
                     [&](auto, __m256i codes) { return _mm256_shuffle_epi8(table, codes); });
      const __m256i low = _mm256_and_si256(_mm256_srli_epi32(head[1], 4 * s), dwords(15));
      const __m256i top = _mm256_and_si256(shift_bits<4 - 2 * s>(high), dwords(0x30));
      const __m256i scale = _mm256_sub_epi32(_mm256_or_si256(low, top), dwords(32));
      sink.scale(s, 0, _mm256_mul_ps(first.low, _mm256_cvtepi32_ps(scale)));
      sink.end(s);
    });
  }
};

struct TQ2_0 : Form<3, 0, false, false> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 66;
  template <class Sink>
  GEMMA_INLINE static void unpack(const uint8_t* p, size_t stride, Sink& sink) {
    const __m256 d = load_halves(p + 64, stride);
    unroll<2>([&](auto n) {
      unroll<2>([&](auto part) {
        __m256i q[4];
        load_transposed(p + 32 * n + 16 * part, stride, q);
        unroll<4>([&](auto s) {
          unroll<4>([&](auto j) {
            sink.codes(4 * n + s, 4 * part + j, _mm256_and_si256(shift_bits<-2 * s>(q[j]), bytes(3)));
          });
        });
      });
      unroll<4>([&](auto s) {
        sink.scale(4 * n + s, 0, d);
        sink.end(4 * n + s);
      });
    });
  }
};

}  // namespace
}  // namespace gemma::cpu
