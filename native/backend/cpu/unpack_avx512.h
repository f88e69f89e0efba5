// Stored blocks of 16 weight rows -> codes and scales in registers with a row in each lane, for the quantised products
// of AVX-512. Internal to each file that includes it (they are compiled with different flags).
//
// A type has
//   kGroup, kGroupBytes   blocks of 32 columns that a call unpacks, and their bytes
//   kOffsetShift          codes are unsigned and 2^kOffsetShift too large; -1: they are as they should be
//   kMin, kHalves         as in quant/dequantize.h
//   unpack(rows, sink)    a group of blocks of 16 rows
#pragma once

#include <immintrin.h>

#include "backend/cpu/inlining.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/panel_avx512.h"

namespace gemma::cpu {
namespace {

// Where unpacked blocks go. codes(b, j, v): columns 4 * j .. + 3 of block b of the group; scale and minimum: of a half
// (0 stands for both where the type has one per block).

// Into a panel, for several rows of x.
struct ToPanel {
  PanelBlock* out;
  void codes(int b, int j, __m512i v) const { _mm512_store_si512(out[b].u[j], v); }
  void scale(int b, int half, __m512 d) const { _mm512_store_ps(out[b].d[half], d); }
  void minimum(int b, int half, __m512 m) const { _mm512_store_ps(out[b].m[half], m); }
};

// Each type: how 16 rows' group of blocks is unpacked. kGroup: blocks of 32 a call unpacks, in kGroupBytes bytes.

// Codes of 4 bits, low nibbles first.
template <class Sink>
inline void unpack_nibbles(Sink& sink, int b, const __m512i q[4]) {
  const __m512i low = mask_bytes(0x0f);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    sink.codes(b, j, _mm512_and_si512(q[j], low));
    sink.codes(b, j + 4, _mm512_and_si512(_mm512_srli_epi16(q[j], 4), low));
  }
}

// Codes of 4 bits looked up in a table.
template <class Sink>
inline void unpack_table(Sink& sink, int b, const __m512i q[4], __m512i table) {
  const __m512i low = mask_bytes(0x0f);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    sink.codes(b, j, _mm512_shuffle_epi8(table, _mm512_and_si512(q[j], low)));
    sink.codes(b, j + 4, _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(q[j], 4), low)));
  }
}

// Half floats in the low and the high 16 bits of each lane: scale and minimum.
template <class Sink>
inline void unpack_scale_minimum(Sink& sink, int b, __m512i head) {
  sink.scale(b, 0, halves_to_floats(head));
  sink.minimum(b, 0, high_halves_to_floats(head));
}

// Byte i of each lane as a float, unsigned or signed.
inline __m512 unsigned_byte(__m512i v, unsigned i) {
  return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(v, 8 * i), _mm512_set1_epi32(0xff)));
}
inline __m512 signed_byte(__m512i v, unsigned i) {
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(v, 24 - 8 * i), 24));
}

struct Q4_0 {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 18;
  static constexpr int kOffsetShift = 3;
  static constexpr bool kMin = false;
  static constexpr bool kHalves = false;
  template <class Sink>
  static void unpack(const PanelRows& rows, Sink& sink) {
    __m512i q[4];
    load_transposed(rows, 2, q);
    sink.scale(0, 0, load_scales(rows, 0));
    unpack_nibbles(sink, 0, q);
  }
};

// Four blocks of Q4_0: 72 bytes of a row are 18 dwords, which saves the loads of single scales.
struct Q4_0x4 : Q4_0 {
  static constexpr int kGroup = 4;
  static constexpr int kGroupBytes = 72;
  template <class Sink>
  static void unpack(const PanelRows& rows, Sink& sink) {
    __m512i s[20];
    load_transposed(rows, 0, s);
    load_transposed(rows, 16, s + 4);
    unpack_even(sink, 0, s);
    load_transposed(rows, 32, s + 8);
    unpack_odd(sink, 1, s + 4);
    load_transposed(rows, 48, s + 12);
    unpack_even(sink, 2, s + 9);
    load_transposed(rows, 56, s + 14);  // 14 and 15 once more
    unpack_odd(sink, 3, s + 13);
  }
  // Scale in the low half of the first dword, then the codes.
  template <class Sink>
  static void unpack_even(Sink& sink, int b, const __m512i* s) {
    __m512i q[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) q[j] = _mm512_or_si512(_mm512_srli_epi32(s[j], 16), _mm512_slli_epi32(s[j + 1], 16));
    sink.scale(b, 0, halves_to_floats(s[0]));
    unpack_nibbles(sink, b, q);
  }
  // In the high half.
  template <class Sink>
  static void unpack_odd(Sink& sink, int b, const __m512i* s) {
    sink.scale(b, 0, high_halves_to_floats(s[0]));
    unpack_nibbles(sink, b, s + 1);
  }
};

struct Q4_1 {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 20;
  static constexpr int kOffsetShift = -1;
  static constexpr bool kMin = true;
  static constexpr bool kHalves = false;
  template <class Sink>
  static void unpack(const PanelRows& rows, Sink& sink) {
    __m512i q[4];
    load_transposed(rows, 4, q);
    unpack_scale_minimum(sink, 0, load_dwords(rows, 0));
    unpack_nibbles(sink, 0, q);
  }
};

struct Q5_0 {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 22;
  static constexpr int kOffsetShift = 4;
  static constexpr bool kMin = false;
  static constexpr bool kHalves = false;
  template <class Sink>
  static void unpack(const PanelRows& rows, Sink& sink) {
    __m512i head[4];  // d, qh, first codes
    __m512i q[4];
    load_transposed(rows, 0, head);
    load_transposed(rows, 6, q);
    sink.scale(0, 0, halves_to_floats(head[0]));
    unpack_fifth_bits(sink, 0, q, _mm512_or_si512(_mm512_srli_epi32(head[0], 16), _mm512_slli_epi32(head[1], 16)));
  }
  // Codes of 4 bits, low nibbles first; bit 4 of column c is bit c of high.
  template <class Sink>
  static void unpack_fifth_bits(Sink& sink, int b, const __m512i q[4], __m512i high) {
    const __m512i low = mask_bytes(0x0f);
    const __m512i bit4 = mask_bytes(0x10);
    // Bring the byte that holds the bits of four columns to all four places, then test one bit each.
    const __m512i even = _mm512_set1_epi32(0x08040201);
    const __m512i odd = _mm512_set1_epi32(static_cast<int>(0x80402010u));
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const int byte = j / 2 * 0x01010101;
      const __m512i pick =
          _mm512_broadcast_i32x4(_mm_setr_epi32(byte, byte + 0x04040404, byte + 0x08080808, byte + 0x0c0c0c0c));
      const __m512i codes = _mm512_and_si512(j < 4 ? q[j % 4] : _mm512_srli_epi16(q[j % 4], 4), low);
      const __mmask64 set = _mm512_test_epi8_mask(_mm512_shuffle_epi8(high, pick), j % 2 == 0 ? even : odd);
      sink.codes(b, j, _mm512_mask_add_epi8(codes, set, codes, bit4));
    }
  }
};

struct Q5_1 {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 24;
  static constexpr int kOffsetShift = -1;
  static constexpr bool kMin = true;
  static constexpr bool kHalves = false;
  template <class Sink>
  static void unpack(const PanelRows& rows, Sink& sink) {
    __m512i q[4];
    load_transposed(rows, 8, q);
    unpack_scale_minimum(sink, 0, load_dwords(rows, 0));
    Q5_0::unpack_fifth_bits(sink, 0, q, load_dwords(rows, 4));
  }
};

struct Q8_0 {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 34;
  static constexpr int kOffsetShift = 7;
  static constexpr bool kMin = false;
  static constexpr bool kHalves = false;
  template <class Sink>
  static void unpack(const PanelRows& rows, Sink& sink) {
    const __m512i sign = mask_bytes(static_cast<char>(0x80));
    sink.scale(0, 0, load_scales(rows, 0));
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m512i q[4];
      load_transposed(rows, 2 + 16 * half, q);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sink.codes(0, 4 * half + j, _mm512_xor_si512(q[j], sign));
    }
  }
};

struct Q4_K {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 144;
  static constexpr int kOffsetShift = -1;
  static constexpr bool kMin = true;
  static constexpr bool kHalves = false;
  template <class Sink>
  static void unpack(const PanelRows& rows, Sink& sink) {
    __m512i head[4];  // d | dmin, then the 12 bytes of 6-bit scales and minima
    load_transposed(rows, 0, head);
    unpack_scales(head, sink);
    const __m512i low = mask_bytes(0x0f);
#pragma GCC unroll 4
    for (int chunk = 0; chunk < 4; ++chunk) {
#pragma GCC unroll 2
      for (int part = 0; part < 2; ++part) {
        __m512i q[4];
        load_transposed(rows, 16 + 32 * chunk + 16 * part, q);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          sink.codes(2 * chunk, 4 * part + j, _mm512_and_si512(q[j], low));
          sink.codes(2 * chunk + 1, 4 * part + j, _mm512_and_si512(_mm512_srli_epi16(q[j], 4), low));
        }
      }
    }
  }
  // Scales of the eight blocks, one byte each of two dwords per row; minima likewise.
  template <class Sink>
  static void unpack_scales(const __m512i head[4], Sink& sink) {
    const __m512 d = halves_to_floats(head[0]);
    const __m512 dmin = _mm512_sub_ps(_mm512_setzero_ps(), high_halves_to_floats(head[0]));
    const __m512i six = _mm512_set1_epi32(0x3f3f3f3f);
    const __m512i four = _mm512_set1_epi32(0x0f0f0f0f);
    const __m512i two = _mm512_set1_epi32(0x30303030);
    const __m512i scales[2] = {
        _mm512_and_si512(head[1], six),
        _mm512_or_si512(_mm512_and_si512(head[3], four), _mm512_and_si512(_mm512_srli_epi32(head[1], 2), two))};
    const __m512i minima[2] = {_mm512_and_si512(head[2], six),
                               _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(head[3], 4), four),
                                               _mm512_and_si512(_mm512_srli_epi32(head[2], 2), two))};
    const __m512i byte = _mm512_set1_epi32(0xff);
#pragma GCC unroll 8
    for (int s = 0; s < 8; ++s) {
      const unsigned shift = static_cast<unsigned>(s % 4) * 8;
      const __m512i scale = _mm512_and_si512(_mm512_srli_epi32(scales[s / 4], shift), byte);
      const __m512i minimum = _mm512_and_si512(_mm512_srli_epi32(minima[s / 4], shift), byte);
      sink.scale(s, 0, _mm512_mul_ps(d, _mm512_cvtepi32_ps(scale)));
      sink.minimum(s, 0, _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(minimum)));
    }
  }
};

struct Q5_K {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 176;
  static constexpr int kOffsetShift = -1;
  static constexpr bool kMin = true;
  static constexpr bool kHalves = false;
  template <class Sink>
  static void unpack(const PanelRows& rows, Sink& sink) {
    __m512i head[4];  // as in Q4_K
    load_transposed(rows, 0, head);
    Q4_K::unpack_scales(head, sink);
    const __m512i low = mask_bytes(0x0f);
    const __m512i bit4 = mask_bytes(0x10);
#pragma GCC unroll 2
    for (int part = 0; part < 2; ++part) {
      __m512i high[4];  // bit s: of block s
      load_transposed(rows, 16 + 16 * part, high);
#pragma GCC unroll 4
      for (unsigned chunk = 0; chunk < 4; ++chunk) {
        const int b = 2 * static_cast<int>(chunk);
        __m512i q[4];
        load_transposed(rows, 48 + 32 * chunk + 16 * part, q);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const __m512i even =
              chunk < 2 ? _mm512_slli_epi16(high[j], 4 - 2 * chunk) : _mm512_srli_epi16(high[j], 2 * chunk - 4);
          const __m512i odd =
              chunk < 2 ? _mm512_slli_epi16(high[j], 3 - 2 * chunk) : _mm512_srli_epi16(high[j], 2 * chunk - 3);
          sink.codes(b, 4 * part + j, _mm512_or_si512(_mm512_and_si512(q[j], low), _mm512_and_si512(even, bit4)));
          sink.codes(b + 1, 4 * part + j,
                     _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(q[j], 4), low), _mm512_and_si512(odd, bit4)));
        }
      }
    }
  }
};

struct Q6_K {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 210;
  static constexpr int kOffsetShift = 5;
  static constexpr bool kMin = false;
  static constexpr bool kHalves = true;
  template <class Sink>
  static void unpack(const PanelRows& rows, Sink& sink) {
    __m512i scales[4];
    load_transposed(rows, 192, scales);
    const __m512 d = load_scales(rows, 208);
#pragma GCC unroll 16
    for (int s = 0; s < 16; ++s) {  // a signed byte per half block
      const __m512i scale =
          _mm512_srai_epi32(_mm512_slli_epi32(scales[s / 4], static_cast<unsigned>(24 - 8 * (s % 4))), 24);
      sink.scale(s / 2, s % 2, _mm512_mul_ps(d, _mm512_cvtepi32_ps(scale)));
    }
    const __m512i low = mask_bytes(0x0f);
    const __m512i high = mask_bytes(0x30);
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
#pragma GCC unroll 2
      for (int part = 0; part < 2; ++part) {  // 16 of the 32 columns of each of the four blocks
        __m512i a[4];
        __m512i b[4];
        __m512i h[4];
        load_transposed(rows, 64 * n + 16 * part, a);
        load_transposed(rows, 64 * n + 32 + 16 * part, b);
        load_transposed(rows, 128 + 32 * n + 16 * part, h);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const int column = 4 * part + j;
          const auto join = [&](__m512i codes, __m512i bits) {
            return _mm512_or_si512(_mm512_and_si512(codes, low), _mm512_and_si512(bits, high));
          };
          sink.codes(4 * n, column, join(a[j], _mm512_slli_epi16(h[j], 4)));
          sink.codes(4 * n + 1, column, join(b[j], _mm512_slli_epi16(h[j], 2)));
          sink.codes(4 * n + 2, column, join(_mm512_srli_epi16(a[j], 4), h[j]));
          sink.codes(4 * n + 3, column, join(_mm512_srli_epi16(b[j], 4), _mm512_srli_epi16(h[j], 2)));
        }
      }
    }
  }
};

struct IQ4_NL {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 18;
  static constexpr int kOffsetShift = 7;
  static constexpr bool kMin = false;
  static constexpr bool kHalves = false;
  // The values plus 128.
  static __m512i table() {
    return _mm512_broadcast_i32x4(_mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, static_cast<char>(129),
                                                static_cast<char>(141), static_cast<char>(153), static_cast<char>(166),
                                                static_cast<char>(181), static_cast<char>(197), static_cast<char>(217),
                                                static_cast<char>(241)));
  }
  template <class Sink>
  static void unpack(const PanelRows& rows, Sink& sink) {
    __m512i q[4];
    load_transposed(rows, 2, q);
    sink.scale(0, 0, load_scales(rows, 0));
    unpack_table(sink, 0, q, table());
  }
};

struct IQ4_XS {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 136;
  static constexpr int kOffsetShift = 7;
  static constexpr bool kMin = false;
  static constexpr bool kHalves = false;
  template <class Sink>
  static void unpack(const PanelRows& rows, Sink& sink) {
    const __m512i head = load_dwords(rows, 0);  // d, then two high bits of each scale
    const __m512i nibbles = load_dwords(rows, 4);
    const __m512 d = halves_to_floats(head);
    const __m512i high = _mm512_srli_epi32(head, 12);
#pragma GCC unroll 8
    for (unsigned b = 0; b < 8; ++b) {
      const __m512i low4 = _mm512_and_si512(_mm512_srli_epi32(nibbles, 4 * b), _mm512_set1_epi32(0x0f));
      const __m512i high2 = _mm512_and_si512(_mm512_srli_epi32(high, 2 * b), _mm512_set1_epi32(0x30));
      const __m512i scale = _mm512_sub_epi32(_mm512_or_si512(low4, high2), _mm512_set1_epi32(32));
      sink.scale(static_cast<int>(b), 0, _mm512_mul_ps(d, _mm512_cvtepi32_ps(scale)));
    }
#pragma GCC unroll 8
    for (int b = 0; b < 8; ++b) {
      __m512i q[4];
      load_transposed(rows, 8 + 16 * b, q);
      unpack_table(sink, b, q, IQ4_NL::table());
    }
  }
};

struct MXFP4 {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 17;
  static constexpr int kOffsetShift = 4;
  static constexpr bool kMin = false;
  static constexpr bool kHalves = false;
  // Twice the values plus 16.
  static __m512i table() {
    return _mm512_broadcast_i32x4(_mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4));
  }
  template <class Sink>
  static void unpack(const PanelRows& rows, Sink& sink) {
    __m512i q[4];
    load_transposed(rows, 1, q);
    // 2^(e - 128); exponents 0 and 1 give subnormal floats.
    const __m512i e = _mm512_and_si512(_mm512_cvtepu16_epi32(load_words(rows, 0)), _mm512_set1_epi32(0xff));
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    const __mmask16 is_subnormal = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
    sink.scale(0, 0, _mm512_castsi512_ps(_mm512_mask_sllv_epi32(normal, is_subnormal, _mm512_set1_epi32(1 << 21), e)));
    unpack_table(sink, 0, q, table());
  }
};

// 64 bytes of codes of 2 bits; map(b, j, codes) makes the codes of dword j of block b.
template <class Sink, class Map>
inline void unpack_two_bits(const PanelRows& rows, int offset, Sink& sink, const Map& map) {
#pragma GCC unroll 2
  for (int n = 0; n < 2; ++n) {
#pragma GCC unroll 2
    for (int part = 0; part < 2; ++part) {
      __m512i q[4];
      load_transposed(rows, offset + 32 * n + 16 * part, q);
#pragma GCC unroll 4
      for (unsigned s = 0; s < 4; ++s) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const int b = 4 * n + static_cast<int>(s);
          const __m512i codes = _mm512_and_si512(_mm512_srli_epi16(q[j], 2 * s), mask_bytes(3));
          sink.codes(b, 4 * part + j, map(b, 4 * part + j, codes));
        }
      }
    }
  }
}

struct Q2_K {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 84;
  static constexpr int kOffsetShift = -1;
  static constexpr bool kMin = true;
  static constexpr bool kHalves = true;
  template <class Sink>
  static void unpack(const PanelRows& rows, Sink& sink) {
    __m512i packed[4];  // a byte per half block: scale in the low nibble, minimum in the high one
    load_transposed(rows, 0, packed);
    const __m512i head = load_dwords(rows, 80);
    const __m512 d = halves_to_floats(head);
    const __m512 dmin = _mm512_sub_ps(_mm512_setzero_ps(), high_halves_to_floats(head));
#pragma GCC unroll 16
    for (int s = 0; s < 16; ++s) {
      const unsigned byte = static_cast<unsigned>(s % 4);
      const __m512i scales = _mm512_and_si512(packed[s / 4], mask_bytes(0x0f));
      const __m512i minima = _mm512_and_si512(_mm512_srli_epi16(packed[s / 4], 4), mask_bytes(0x0f));
      sink.scale(s / 2, s % 2, _mm512_mul_ps(d, unsigned_byte(scales, byte)));
      sink.minimum(s / 2, s % 2, _mm512_mul_ps(dmin, unsigned_byte(minima, byte)));
    }
    unpack_two_bits(rows, 16, sink, [](int, int, __m512i codes) { return codes; });
  }
};

struct Q3_K {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 110;
  static constexpr int kOffsetShift = 2;
  static constexpr bool kMin = false;
  static constexpr bool kHalves = true;
  template <class Sink>
  static void unpack(const PanelRows& rows, Sink& sink) {
    __m512i tail[4];  // two codes, 12 bytes of scales, d
    load_transposed(rows, 94, tail);
    const __m512 d = high_halves_to_floats(tail[3]);
    __m512i packed[3];
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i)
      packed[i] = _mm512_or_si512(_mm512_srli_epi32(tail[i], 16), _mm512_slli_epi32(tail[i + 1], 16));
    // Bytes 0-7: the low nibbles of scales 0-7 and 8-15. Byte 8 + k: two high bits each of scales k, 4 + k, 8 + k and
    // 12 + k.
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; ++i) {
      const __m512i low4 = _mm512_and_si512(_mm512_srli_epi16(packed[i % 2], i / 2 * 4), mask_bytes(0x0f));
      const __m512i shifted = i < 2 ? _mm512_slli_epi16(packed[2], 4 - 2 * i) : _mm512_srli_epi16(packed[2], 2 * i - 4);
      const __m512i high2 = _mm512_and_si512(shifted, mask_bytes(0x30));
      const __m512i scales = _mm512_sub_epi8(_mm512_or_si512(low4, high2), mask_bytes(32));
#pragma GCC unroll 4
      for (unsigned k = 0; k < 4; ++k)
        sink.scale(static_cast<int>(2 * i + k / 2), static_cast<int>(k % 2), _mm512_mul_ps(d, signed_byte(scales, k)));
    }
    __m512i high[8];  // bit b: of block b
    load_transposed(rows, 0, high);
    load_transposed(rows, 16, high + 4);
    unpack_two_bits(rows, 32, sink, [&](int b, int j, __m512i codes) {
      const unsigned shift = static_cast<unsigned>(b < 2 ? 2 - b : b - 2);
      const __m512i bit2 = b < 2 ? _mm512_slli_epi16(high[j], shift) : _mm512_srli_epi16(high[j], shift);
      return _mm512_or_si512(codes, _mm512_and_si512(bit2, mask_bytes(4)));
    });
  }
};

struct TQ2_0 {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 66;
  static constexpr int kOffsetShift = 0;
  static constexpr bool kMin = false;
  static constexpr bool kHalves = false;
  template <class Sink>
  static void unpack(const PanelRows& rows, Sink& sink) {
    const __m512 d = load_scales(rows, 64);
#pragma GCC unroll 8
    for (int b = 0; b < 8; ++b) sink.scale(b, 0, d);
    unpack_two_bits(rows, 0, sink, [](int, int, __m512i codes) { return codes; });
  }
};

// Blocks b .. b + n - 1 of 16 rows, a Block of the panel each. Sink: ToPanel or one like it, made from its first Block.
// The rows to be unpacked after these are `ahead` rows on.
template <class Type, class Sink, class Block>
GEMMA_FLATTEN void unpack_panel(const WeightRows& w, int row, int b, int n, Block* panel, uint8_t* tail,
                                int ahead = kLanes) {
  const size_t bytes = static_cast<size_t>(n / Type::kGroup) * Type::kGroupBytes;
  const size_t offset = static_cast<size_t>(b / Type::kGroup) * Type::kGroupBytes;
  PanelRows from = panel_rows(w, row, offset, bytes, tail);
  Prefetcher prefetcher(
      reinterpret_cast<const uint8_t*>(w.w) + static_cast<size_t>(row + ahead) * w.w_row_bytes + offset * kLanes,
      kLanes * w.w_row_bytes);
  for (int g = 0; g < n / Type::kGroup; ++g) {
    prefetcher.advance(Type::kGroupBytes * kLanes);
    Sink sink{panel + g * Type::kGroup};
    Type::unpack(from, sink);
    from = from.at(Type::kGroupBytes);
  }
}

// f of the type's unpacker: with_unpacker(type, n_cols, [&]<class Type> { ... }). Float types have none.
template <class F>
inline void with_unpacker(TensorType type, int n_cols, const F& f) {
  switch (type) {
    case TensorType::kQ4_0: return n_cols % 128 == 0 ? f.template operator()<Q4_0x4>() : f.template operator()<Q4_0>();
    case TensorType::kQ4_1: return f.template operator()<Q4_1>();
    case TensorType::kQ5_0: return f.template operator()<Q5_0>();
    case TensorType::kQ5_1: return f.template operator()<Q5_1>();
    case TensorType::kQ8_0: return f.template operator()<Q8_0>();
    case TensorType::kQ2_K: return f.template operator()<Q2_K>();
    case TensorType::kQ3_K: return f.template operator()<Q3_K>();
    case TensorType::kQ4_K: return f.template operator()<Q4_K>();
    case TensorType::kQ5_K: return f.template operator()<Q5_K>();
    case TensorType::kQ6_K: return f.template operator()<Q6_K>();
    case TensorType::kIQ4_NL: return f.template operator()<IQ4_NL>();
    case TensorType::kIQ4_XS: return f.template operator()<IQ4_XS>();
    case TensorType::kMXFP4: return f.template operator()<MXFP4>();
    case TensorType::kTQ2_0: return f.template operator()<TQ2_0>();
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16: return;
  }
}

}  // namespace
}  // namespace gemma::cpu
