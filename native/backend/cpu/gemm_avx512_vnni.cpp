// Matrix products with AVX-512 VNNI. 16 weight rows ride in the 16 lanes of a register: a group of blocks of these rows
// is unpacked once into a panel of unsigned bytes, four columns of a row beside each other, with float scales, and then
// used by every row of x (vpdpbusd: unsigned weights times signed activations, whose four bytes are broadcast). Because
// a lane is a weight row there is no horizontal sum, and the order of arithmetic of kernels.h holds for one row of x as
// for a thousand: decode and prefill run the same code, the panel living in L1 in the first case and in L2 in the
// second.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "backend/cpu/inlining.h"
#include "backend/cpu/kernels_avx512.h"

namespace gemma::cpu {
namespace {

constexpr int kLanes = 16;

// One block of 32 columns of 16 weight rows.
struct alignas(64) PanelBlock {
  uint8_t u[8][64];    // u[j][4 * lane + i]: column 4 * j + i
  float d[2][kLanes];  // scale of each half (equal when the type has one per block)
  float m[2][kLanes];  // minimum, for types that have one
};

// Columns that are unpacked at a time: a multiple of every type's block.
constexpr int kFewColumns = 256;    // one panel of 6 KiB, stays in L1
constexpr int kManyColumns = 1024;  // at most: eight panels of 24 KiB each, in L2
constexpr int kBlocksMany = kManyColumns / 32;
constexpr int kPanelsMany = 8;

// A value whose origin the compiler forgets, so that it keeps it in a register instead of deriving it again.
inline size_t opaque(size_t value) {
#if defined(__GNUC__)
  asm("" : "+r"(value));
#endif
  return value;
}

// 16 rows at equal distances. Two bases and four multiples of the distance reach all of them with the processor's own
// addressing (1, 2, 4 or 8 times an index), without an addition per row and without running out of registers.
class PanelRows {
 public:
  PanelRows(const uint8_t* p, size_t stride)
      : p_(p),
        p8_(p + 8 * stride),
        s1_(stride),
        s3_(opaque(3 * stride)),
        s5_(opaque(5 * stride)),
        s7_(opaque(7 * stride)) {}

  PanelRows at(int offset) const {
    PanelRows moved = *this;
    moved.p_ += offset;
    moved.p8_ += offset;
    return moved;
  }
  const uint8_t* row(int lane) const {
    const uint8_t* p = lane < 8 ? p_ : p8_;
    switch (lane % 8) {
      case 0: return p;
      case 3: return p + s3_;
      case 5: return p + s5_;
      case 6: return p + 2 * s3_;
      case 7: return p + s7_;
      default: return p + static_cast<size_t>(lane % 8) * s1_;  // 1, 2, 4
    }
  }

 private:
  const uint8_t* p_;
  const uint8_t* p8_;
  size_t s1_, s3_, s5_, s7_;
};

// 16 bytes at offset of each row, transposed: out[j] holds dword j of all 16 rows, in the order of rows.
inline void load_transposed(const PanelRows& rows, int offset, __m512i out[4]) {
  __m512i r[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto load = [&](int lane) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.row(i + 4 * lane) + offset));
    };
    // Loads into a part of the register need no shuffle.
    r[i] = _mm512_castsi128_si512(load(0));
    r[i] = _mm512_mask_broadcast_i32x4(r[i], 0x00f0, load(1));
    r[i] = _mm512_mask_broadcast_i32x4(r[i], 0x0f00, load(2));
    r[i] = _mm512_mask_broadcast_i32x4(r[i], 0xf000, load(3));
  }
  const __m512i t0 = _mm512_unpacklo_epi32(r[0], r[1]);
  const __m512i t1 = _mm512_unpackhi_epi32(r[0], r[1]);
  const __m512i t2 = _mm512_unpacklo_epi32(r[2], r[3]);
  const __m512i t3 = _mm512_unpackhi_epi32(r[2], r[3]);
  out[0] = _mm512_unpacklo_epi64(t0, t2);
  out[1] = _mm512_unpackhi_epi64(t0, t2);
  out[2] = _mm512_unpacklo_epi64(t1, t3);
  out[3] = _mm512_unpackhi_epi64(t1, t3);
}

// The low 16 bits of each lane as half floats.
inline __m512 halves_to_floats(__m512i v) {
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
}
inline __m512 high_halves_to_floats(__m512i v) {
  return halves_to_floats(_mm512_srli_epi32(v, 16));
}

// Two or four bytes at offset of each row. Row i of a group of 8 is loaded from so many bytes before them that they
// land in place i: a blend with memory takes half the instructions of an insertion.
inline __m128i load_8_words(const PanelRows& rows, int first, int offset) {
  const auto load = [&](int i) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.row(first + i) + offset - 2 * i));
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
inline __m256i load_8_dwords(const PanelRows& rows, int first, int offset) {
  const auto load = [&](int i) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows.row(first + i) + offset - 4 * i));
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
inline __m256i load_words(const PanelRows& rows, int offset) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load_8_words(rows, 0, offset)), load_8_words(rows, 8, offset),
                                 1);
}
inline __m512i load_dwords(const PanelRows& rows, int offset) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(load_8_dwords(rows, 0, offset)), load_8_dwords(rows, 8, offset), 1);
}
inline __m512 load_scales(const PanelRows& rows, int offset) {
  return _mm512_cvtph_ps(load_words(rows, offset));
}

inline __m512i mask_bytes(char value) {
  return _mm512_set1_epi8(value);
}

// The product is started at offset * -sum(x): what unsigned codes add too much.
template <int kShift>
inline __m512i start(int32_t neg_sum) {
  if constexpr (kShift < 0) {
    return _mm512_setzero_si512();
  } else {
    return _mm512_slli_epi32(_mm512_set1_epi32(neg_sum), kShift);
  }
}

inline __m512i broadcast4(const int8_t* q) {
  int32_t four = 0;
  std::memcpy(&four, q, 4);
  return _mm512_set1_epi32(four);
}

// Fetches the bytes that come after a panel's share, spread over the work on the panel: sixteen rows are more streams
// than the hardware follows, and a burst of prefetches fills the queues that the panel's own loads need.
class Prefetcher {
 public:
  // panel_bytes: of 16 whole rows, the time that passes before what is fetched is used.
  Prefetcher(const uint8_t* next, size_t panel_bytes) : next_(next), near_(panel_bytes <= kNear) {}
  void advance(size_t bytes) {
    for (end_ += bytes; done_ < end_; done_ += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(next_ + done_ + kFar), _MM_HINT_T1);
      if (near_) _mm_prefetch(reinterpret_cast<const char*>(next_ + done_), _MM_HINT_T0);
    }
  }

 private:
  static constexpr size_t kFar = 4096;    // first into L2, which has more requests under way than L1
  static constexpr size_t kNear = 24576;  // a larger panel would leave L1 again before its turn
  const uint8_t* next_;
  bool near_;
  size_t done_ = 0;
  size_t end_ = 0;
};

// Where unpacked blocks go. codes(b, j, v): columns 4 * j .. + 3 of block b of the group; scale and minimum: of a half
// (0 stands for both where the type has one per block).

// Into a panel, for several rows of x.
struct ToPanel {
  PanelBlock* out;
  void codes(int b, int j, __m512i v) const { _mm512_store_si512(out[b].u[j], v); }
  void scale(int b, int half, __m512 d) const { _mm512_store_ps(out[b].d[half], d); }
  void minimum(int b, int half, __m512 m) const { _mm512_store_ps(out[b].m[half], m); }
};

// Straight into the product with a single row of x. Dot products stay in registers.
template <class Type>
struct ToProduct {
  static constexpr int kParts = Type::kHalves ? 2 : 1;
  const int8_t* q;
  __m512i dot[Type::kGroup][kParts];
  __m512 d[Type::kGroup][kParts];
  __m512 m[Type::kMin ? Type::kGroup : 1][kParts];

  Prefetcher& prefetcher;

  // x from its block i on.
  ToProduct(const QuantizedRows& x, size_t i, Prefetcher& p) : q(x.q + i * 32), prefetcher(p) {
#pragma GCC unroll 8
    for (size_t b = 0; b < Type::kGroup; ++b) {
#pragma GCC unroll 2
      for (size_t h = 0; h < kParts; ++h)
        dot[b][h] = start<Type::kOffsetShift>(kParts == 2 ? x.neg_sum16[2 * (i + b) + h] : x.neg_sum[i + b]);
    }
  }
  void codes(int b, int j, __m512i v) {
    __m512i& sum = dot[b][kParts == 2 ? j / 4 : 0];
    sum = _mm512_dpbusd_epi32(sum, v, broadcast4(q + 32 * b + 4 * j));
    if (j % 4 == 0) prefetcher.advance(Type::kGroupBytes * kLanes / (2 * Type::kGroup));
  }
  void scale(int b, int half, __m512 v) { d[b][half] = v; }
  void minimum(int b, int half, __m512 v) { m[b][half] = v; }

  __m512 add_to(__m512 acc, const QuantizedRows& x, size_t i) const {
#pragma GCC unroll 8
    for (size_t b = 0; b < Type::kGroup; ++b) {
      const __m512 step = _mm512_set1_ps(x.d[i + b]);
#pragma GCC unroll 2
      for (size_t h = 0; h < kParts; ++h) {
        acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[b][h]), _mm512_mul_ps(d[b][h], step), acc);
        if constexpr (Type::kMin) {
          const float sum = kParts == 2 ? x.dsum16[2 * (i + b) + h] : x.dsum[i + b];
          acc = _mm512_fmadd_ps(m[b][h], _mm512_set1_ps(sum), acc);
        }
      }
    }
    return acc;
  }
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
  template <class Sink>
  static void unpack(const PanelRows& rows, Sink& sink) {
    // Twice the values plus 16.
    const __m512i table =
        _mm512_broadcast_i32x4(_mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4));
    __m512i q[4];
    load_transposed(rows, 1, q);
    // 2^(e - 128); exponents 0 and 1 give subnormal floats.
    const __m512i e = _mm512_and_si512(_mm512_cvtepu16_epi32(load_words(rows, 0)), _mm512_set1_epi32(0xff));
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    const __mmask16 is_subnormal = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
    sink.scale(0, 0, _mm512_castsi512_ps(_mm512_mask_sllv_epi32(normal, is_subnormal, _mm512_set1_epi32(1 << 21), e)));
    unpack_table(sink, 0, q, table);
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

// kPanels panels of 16 weight rows times kRows rows of x over n_blocks blocks, added to out (or replacing it at the
// first columns). out points at the first row of x and weight row 0 of the panels.
template <int kShift, bool kMin, bool kHalves, int kPanels, int kRows>
void multiply(const PanelBlock* panels, size_t panel_stride, int n_blocks, const QuantizedRows& x, int first_row,
              int first_block, float* out, size_t out_stride, bool first, const __mmask16* lanes) {
  const size_t blocks_per_row = static_cast<size_t>(x.n_cols / 32);
  size_t index[kRows];
  __m512 acc[kPanels][kRows];
  for (int r = 0; r < kRows; ++r) {
    index[r] = static_cast<size_t>(first_row + r) * blocks_per_row + static_cast<size_t>(first_block);
    for (int p = 0; p < kPanels; ++p) {
      float* o = out + static_cast<size_t>(r) * out_stride + p * kLanes;
      acc[p][r] = first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(lanes[p], o);
    }
  }
  for (int b = 0; b < n_blocks; ++b) {
    __m512i dot[kPanels][kRows];
    const PanelBlock* block[kPanels];
    for (int p = 0; p < kPanels; ++p) block[p] = panels + static_cast<size_t>(p) * panel_stride + b;
    const int8_t* q[kRows];
    for (int r = 0; r < kRows; ++r) q[r] = x.q + (index[r] + static_cast<size_t>(b)) * 32;
    constexpr int kParts = kHalves ? 2 : 1;
    for (int h = 0; h < kParts; ++h) {
      for (int r = 0; r < kRows; ++r) {
        const size_t i = index[r] + static_cast<size_t>(b);
        const __m512i s = start<kShift>(kHalves ? x.neg_sum16[2 * i + static_cast<size_t>(h)] : x.neg_sum[i]);
        for (int p = 0; p < kPanels; ++p) dot[p][r] = s;
      }
      for (int j = h * (8 / kParts); j < (h + 1) * (8 / kParts); ++j) {
        __m512i w[kPanels];
        for (int p = 0; p < kPanels; ++p) w[p] = _mm512_load_si512(block[p]->u[j]);
        for (int r = 0; r < kRows; ++r) {
          const __m512i four = broadcast4(q[r] + 4 * j);
          for (int p = 0; p < kPanels; ++p) dot[p][r] = _mm512_dpbusd_epi32(dot[p][r], w[p], four);
        }
      }
      for (int p = 0; p < kPanels; ++p) {
        const __m512 d = _mm512_load_ps(block[p]->d[h]);
        for (int r = 0; r < kRows; ++r) {
          const size_t i = index[r] + static_cast<size_t>(b);
          const __m512 scale = _mm512_mul_ps(d, _mm512_set1_ps(x.d[i]));
          acc[p][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[p][r]), scale, acc[p][r]);
        }
        if constexpr (kMin) {
          const __m512 m = _mm512_load_ps(block[p]->m[h]);
          for (int r = 0; r < kRows; ++r) {
            const size_t i = index[r] + static_cast<size_t>(b);
            const float sum = kHalves ? x.dsum16[2 * i + static_cast<size_t>(h)] : x.dsum[i];
            acc[p][r] = _mm512_fmadd_ps(m, _mm512_set1_ps(sum), acc[p][r]);
          }
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPanels; ++p) {
      _mm512_mask_storeu_ps(out + static_cast<size_t>(r) * out_stride + p * kLanes, lanes[p], acc[p][r]);
    }
  }
}

constexpr __mmask16 kAllLanes = 0xffff;

// Fetches a share of the columns of the rows of x that come next: of n_parts shares, part and the one after it.
inline void prefetch_rows(const QuantizedRows& x, int first_row, int n_rows, int first_block, int n_blocks, int part,
                          int n_parts) {
  const int begin = n_blocks * part / n_parts / 2 * 2;  // two blocks are a cache line
  const int end = n_blocks * std::min(part + 2, n_parts) / n_parts;
  for (int r = first_row; r < std::min(first_row + n_rows, x.n_rows); ++r) {
    const int8_t* q = x.q + static_cast<size_t>(r) * static_cast<size_t>(x.n_cols) + first_block * 32;
    for (int b = begin; b < end; b += 2) _mm_prefetch(reinterpret_cast<const char*>(q + 32 * b), _MM_HINT_T1);
  }
}

// The same for n_rows <= kRows rows.
template <int kShift, bool kMin, bool kHalves, int kPanels, int kRows>
void multiply_tail(int n_rows, const PanelBlock* panels, size_t panel_stride, int n_blocks, const QuantizedRows& x,
                   int first_row, int first_block, float* out, size_t out_stride, bool first, const __mmask16* lanes) {
  if constexpr (kRows > 0) {
    if (n_rows == kRows) {
      multiply<kShift, kMin, kHalves, kPanels, kRows>(panels, panel_stride, n_blocks, x, first_row, first_block, out,
                                                      out_stride, first, lanes);
    } else {
      multiply_tail<kShift, kMin, kHalves, kPanels, kRows - 1>(n_rows, panels, panel_stride, n_blocks, x, first_row,
                                                               first_block, out, out_stride, first, lanes);
    }
  }
}

// The rows of x in tiles, each with all panels before the next one, so that a tile is read from far away once. n_panels
// panels, kBlocksMany apart; lanes of the last one only.
template <int kShift, bool kMin, bool kHalves>
void multiply_all(const PanelBlock* panels, int n_panels, int n_blocks, const QuantizedRows& x, int first_block,
                  float* out, size_t out_stride, bool first, __mmask16 last_lanes) {
  // Accumulators and dot products of a tile fit into 32 registers.
  constexpr int kRows = 6;
  constexpr int kRowsAlone = 8;
  const int tile = n_panels == 1 ? kRowsAlone : kRows;
  for (int r = 0; r < x.n_rows; r += tile) {
    const int n = std::min(tile, x.n_rows - r);
    float* o = out + static_cast<size_t>(r) * out_stride;
    for (int p = 0; p < n_panels; p += 2) {
      prefetch_rows(x, r + tile, tile, first_block, n_blocks, p, n_panels);
      const PanelBlock* panel = panels + static_cast<size_t>(p) * kBlocksMany;
      const __mmask16 lanes[2] = {p + 1 < n_panels ? kAllLanes : last_lanes, p + 2 < n_panels ? kAllLanes : last_lanes};
      if (p + 1 < n_panels) {
        multiply_tail<kShift, kMin, kHalves, 2, kRows>(n, panel, kBlocksMany, n_blocks, x, r, first_block,
                                                       o + p * kLanes, out_stride, first, lanes);
      } else {
        multiply_tail<kShift, kMin, kHalves, 1, kRowsAlone>(n, panel, kBlocksMany, n_blocks, x, r, first_block,
                                                            o + p * kLanes, out_stride, first, lanes);
      }
    }
  }
}

// Panels of 16 rows over the wanted range. unpack(rows, first_block, n_blocks, panel) fills a panel.
template <int kShift, bool kMin, bool kHalves, class Unpack>
void run_panels(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride, const Scratch& scratch,
                const Unpack& unpack) {
  const int n_blocks = x.n_cols / 32;
  PanelBlock* panels = reinterpret_cast<PanelBlock*>(scratch.data);
  const bool many = x.n_rows > 8;
  // Many: steps of about equal length, in whole groups of 8 blocks.
  const int n_steps = (n_blocks + kBlocksMany - 1) / kBlocksMany;
  const int step = many ? ((n_blocks + n_steps - 1) / n_steps + 7) / 8 * 8 : kFewColumns / 32;
  const int rows_step = many ? kPanelsMany * kLanes : kLanes;
  for (int row = w.row_begin; row < w.row_end; row += rows_step) {
    const int n_rows = std::min(rows_step, w.row_end - row);
    const int n_panels = (n_rows + kLanes - 1) / kLanes;
    const __mmask16 last_lanes = static_cast<__mmask16>((1u << (n_rows - (n_panels - 1) * kLanes)) - 1u);
    for (int b = 0; b < n_blocks; b += step) {
      const int n = std::min(step, n_blocks - b);
      for (int p = 0; p < n_panels; ++p) unpack(row + p * kLanes, b, n, panels + p * kBlocksMany);
      multiply_all<kShift, kMin, kHalves>(panels, n_panels, n, x, b, out + row, out_stride, b == 0, last_lanes);
    }
  }
}

// The bytes of a panel of 16 rows. A last panel with fewer rows is copied, so that no load leaves the matrix.
inline PanelRows panel_rows(const WeightRows& w, int row, size_t offset, size_t bytes, uint8_t* tail) {
  const uint8_t* p = reinterpret_cast<const uint8_t*>(w.w) + static_cast<size_t>(row) * w.w_row_bytes + offset;
  const int rows = w.row_end - row;
  if (rows >= kLanes) return {p, w.w_row_bytes};
  for (int r = 0; r < kLanes; ++r)
    std::memcpy(tail + static_cast<size_t>(r) * bytes, p + static_cast<size_t>(std::min(r, rows - 1)) * w.w_row_bytes,
                bytes);
  return {tail, bytes};
}

// One row of x: products straight from the unpacked registers.
template <class Type>
GEMMA_FLATTEN void gemv_type(const WeightRows& w, const QuantizedRows& x, float* out, const Scratch& scratch) {
  const int n_groups = x.n_cols / 32 / Type::kGroup;
  uint8_t* tail = reinterpret_cast<uint8_t*>(scratch.data);
  const int groups_per_step = kManyColumns / 32 / Type::kGroup;  // what the copy of a last panel has room for
  for (int row = w.row_begin; row < w.row_end; row += kLanes) {
    Prefetcher prefetcher(reinterpret_cast<const uint8_t*>(w.w) + static_cast<size_t>(row + kLanes) * w.w_row_bytes,
                          kLanes * w.w_row_bytes);
    __m512 acc = _mm512_setzero_ps();
    for (int first = 0; first < n_groups; first += groups_per_step) {
      const int n = std::min(groups_per_step, n_groups - first);
      PanelRows from = panel_rows(w, row, static_cast<size_t>(first) * Type::kGroupBytes,
                                  static_cast<size_t>(n) * Type::kGroupBytes, tail);
      for (int g = 0; g < n; ++g) {
        const size_t i = static_cast<size_t>((first + g) * Type::kGroup);
        ToProduct<Type> product(x, i, prefetcher);
        Type::unpack(from, product);
        from = from.at(Type::kGroupBytes);
        acc = product.add_to(acc, x, i);
      }
    }
    const int left = std::min(kLanes, w.row_end - row);
    _mm512_mask_storeu_ps(out + row, static_cast<__mmask16>((1u << left) - 1u), acc);
  }
}

// Blocks b .. b + n - 1 of 16 rows into a panel.
template <class Type>
GEMMA_FLATTEN void unpack_panel(const WeightRows& w, int row, int b, int n, PanelBlock* panel, uint8_t* tail) {
  const size_t bytes = static_cast<size_t>(n / Type::kGroup) * Type::kGroupBytes;
  const size_t offset = static_cast<size_t>(b / Type::kGroup) * Type::kGroupBytes;
  PanelRows from = panel_rows(w, row, offset, bytes, tail);
  Prefetcher prefetcher(
      reinterpret_cast<const uint8_t*>(w.w) + static_cast<size_t>(row + kLanes) * w.w_row_bytes + offset * kLanes,
      kLanes * w.w_row_bytes);
  for (int g = 0; g < n / Type::kGroup; ++g) {
    prefetcher.advance(Type::kGroupBytes * kLanes);
    ToPanel sink{panel + g * Type::kGroup};
    Type::unpack(from, sink);
    from = from.at(Type::kGroupBytes);
  }
}

template <class Type>
void gemm_type(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride, const Scratch& scratch) {
  if (x.n_rows == 1) return gemv_type<Type>(w, x, out, scratch);
  uint8_t* tail = reinterpret_cast<uint8_t*>(scratch.data) + kPanelsMany * kBlocksMany * sizeof(PanelBlock);
  run_panels<Type::kOffsetShift, Type::kMin, Type::kHalves>(
      w, x, out, out_stride, scratch,
      [&](int row, int b, int n, PanelBlock* panel) { unpack_panel<Type>(w, row, b, n, panel, tail); });
}

// A panel's values as columns of floats, for each of the 16 rows a lane.
template <class Type>
GEMMA_FLATTEN void columns_of(const WeightRows& w, int n_cols, float* columns, const Scratch& scratch) {
  const int n_groups = n_cols / 32 / Type::kGroup;
  const size_t bytes = static_cast<size_t>(Type::kGroupBytes);
  const __m512i byte = _mm512_set1_epi32(0xff);
  const __m512i offset = _mm512_set1_epi32(Type::kOffsetShift < 0 ? 0 : 1 << (Type::kOffsetShift & 31));
  uint8_t* tail = reinterpret_cast<uint8_t*>(scratch.data);
  alignas(64) PanelBlock blocks[Type::kGroup];
  for (int g = 0; g < n_groups; ++g) {
    ToPanel sink{blocks};
    Type::unpack(panel_rows(w, w.row_begin, static_cast<size_t>(g) * bytes, bytes, tail), sink);
    for (const PanelBlock& block : blocks) {
      for (size_t j = 0; j < 8; ++j) {
        const __m512i codes = _mm512_load_si512(block.u[j]);
        const size_t half = Type::kHalves ? j / 4 : 0;
        const __m512 d = _mm512_load_ps(block.d[half]);
        for (unsigned i = 0; i < 4; ++i, columns += kLanes) {
          const __m512i code = _mm512_and_si512(_mm512_srli_epi32(codes, 8 * i), byte);
          __m512 value = _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_sub_epi32(code, offset)));
          if constexpr (Type::kMin) value = _mm512_add_ps(value, _mm512_load_ps(block.m[half]));
          _mm512_storeu_ps(columns, value);
        }
      }
    }
  }
}

// The sum of the 16 lanes as the tree of kernels.h.
inline float tree_sum(__m512 v) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

struct F32 {
  static constexpr size_t kBytes = 4;
  static __m512 load(const std::byte* p) { return _mm512_loadu_ps(p); }
  static __m128 load4(const std::byte* p) { return _mm_loadu_ps(reinterpret_cast<const float*>(p)); }
  static __m512 load(const std::byte* p, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, p); }
};
struct F16 {
  static constexpr size_t kBytes = 2;
  static __m128 load4(const std::byte* p) { return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
  static __m512 load(const std::byte* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static __m512 load(const std::byte* p, __mmask16 lanes) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, p));
  }
};
struct BF16 {
  static constexpr size_t kBytes = 2;
  static __m128 load4(const std::byte* p) {
    const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), v));
  }
  static __m512 widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
  static __m512 load(const std::byte* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static __m512 load(const std::byte* p, __mmask16 lanes) { return widen(_mm256_maskz_loadu_epi16(lanes, p)); }
};

template <class Type>
GEMMA_FLATTEN void columns_of_floats(const WeightRows& w, int n_cols, float* columns) {
  const PanelRows rows(reinterpret_cast<const uint8_t*>(w.w) + static_cast<size_t>(w.row_begin) * w.w_row_bytes,
                       w.w_row_bytes);
  for (int c = 0; c < n_cols; c += 4) {  // four columns of 16 rows
    alignas(64) float four[kLanes][4];
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) {
      const std::byte* p = reinterpret_cast<const std::byte*>(rows.row(lane)) + static_cast<size_t>(c) * Type::kBytes;
      _mm_store_ps(four[lane], Type::load4(p));
    }
    __m512i transposed[4];
    load_transposed(PanelRows(reinterpret_cast<const uint8_t*>(four), 16), 0, transposed);
    for (int i = 0; i < 4; ++i, columns += kLanes) _mm512_storeu_ps(columns, _mm512_castsi512_ps(transposed[i]));
  }
}

// kW weight rows times kX rows of x.
template <class Type, int kW, int kX>
void multiply_float(const std::byte* w, size_t w_row_bytes, const float* x, int n_cols, float* out, size_t out_stride) {
  __m512 acc[kW][kX];
  for (int i = 0; i < kW; ++i) {
    for (int r = 0; r < kX; ++r) acc[i][r] = _mm512_setzero_ps();
  }
  const size_t cols = static_cast<size_t>(n_cols);
  size_t j = 0;
  for (; j + 16 <= cols; j += 16) {
    __m512 xv[kX];
    for (int r = 0; r < kX; ++r) xv[r] = _mm512_loadu_ps(x + static_cast<size_t>(r) * cols + j);
    for (int i = 0; i < kW; ++i) {
      const std::byte* p = w + static_cast<size_t>(i) * w_row_bytes + j * Type::kBytes;
      if constexpr (kX == 1) _mm_prefetch(reinterpret_cast<const char*>(p + kW * w_row_bytes), _MM_HINT_T0);
      const __m512 wv = Type::load(p);
      for (int r = 0; r < kX; ++r) acc[i][r] = _mm512_fmadd_ps(wv, xv[r], acc[i][r]);
    }
  }
  if (j < cols) {
    const __mmask16 lanes = static_cast<__mmask16>((1u << (cols - j)) - 1u);
    for (int i = 0; i < kW; ++i) {
      const __m512 wv = Type::load(w + static_cast<size_t>(i) * w_row_bytes + j * Type::kBytes, lanes);
      for (int r = 0; r < kX; ++r) {
        const __m512 xv = _mm512_maskz_loadu_ps(lanes, x + static_cast<size_t>(r) * cols + j);
        acc[i][r] = _mm512_mask3_fmadd_ps(wv, xv, acc[i][r], lanes);
      }
    }
  }
  for (int i = 0; i < kW; ++i) {
    for (int r = 0; r < kX; ++r)
      out[static_cast<size_t>(r) * out_stride + static_cast<size_t>(i)] = tree_sum(acc[i][r]);
  }
}

template <class Type, int kW, int kX>
void multiply_float_rows(const std::byte* w, size_t w_row_bytes, const float* x, int n_x, int n_cols, float* out,
                         size_t out_stride) {
  int r = 0;
  for (; r + kX <= n_x; r += kX) {
    multiply_float<Type, kW, kX>(w, w_row_bytes, x + static_cast<size_t>(r) * static_cast<size_t>(n_cols), n_cols,
                                 out + static_cast<size_t>(r) * out_stride, out_stride);
  }
  for (; r < n_x; ++r) {
    multiply_float<Type, kW, 1>(w, w_row_bytes, x + static_cast<size_t>(r) * static_cast<size_t>(n_cols), n_cols,
                                out + static_cast<size_t>(r) * out_stride, out_stride);
  }
}

template <class Type>
void gemm_float_type(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride) {
  int n = w.row_begin;
  if (n_x == 1) {
    for (; n + 8 <= w.row_end; n += 8) {
      multiply_float<Type, 8, 1>(w.w + static_cast<size_t>(n) * w.w_row_bytes, w.w_row_bytes, x, n_cols, out + n,
                                 out_stride);
    }
  } else {
    for (; n + 4 <= w.row_end; n += 4) {
      multiply_float_rows<Type, 4, 6>(w.w + static_cast<size_t>(n) * w.w_row_bytes, w.w_row_bytes, x, n_x, n_cols,
                                      out + n, out_stride);
    }
  }
  for (; n < w.row_end; ++n) {
    multiply_float_rows<Type, 1, 6>(w.w + static_cast<size_t>(n) * w.w_row_bytes, w.w_row_bytes, x, n_x, n_cols,
                                    out + n, out_stride);
  }
}

}  // namespace

void gemm_quantized_avx512_vnni(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                                const Scratch& scratch) {
  switch (w.type) {
    case TensorType::kQ4_0:
      return x.n_cols % 128 == 0 ? gemm_type<Q4_0x4>(w, x, out, out_stride, scratch)
                                 : gemm_type<Q4_0>(w, x, out, out_stride, scratch);
    case TensorType::kQ5_0: return gemm_type<Q5_0>(w, x, out, out_stride, scratch);
    case TensorType::kQ8_0: return gemm_type<Q8_0>(w, x, out, out_stride, scratch);
    case TensorType::kQ4_K: return gemm_type<Q4_K>(w, x, out, out_stride, scratch);
    case TensorType::kQ5_K: return gemm_type<Q5_K>(w, x, out, out_stride, scratch);
    case TensorType::kQ6_K: return gemm_type<Q6_K>(w, x, out, out_stride, scratch);
    case TensorType::kQ4_1: return gemm_type<Q4_1>(w, x, out, out_stride, scratch);
    case TensorType::kQ5_1: return gemm_type<Q5_1>(w, x, out, out_stride, scratch);
    case TensorType::kQ2_K: return gemm_type<Q2_K>(w, x, out, out_stride, scratch);
    case TensorType::kQ3_K: return gemm_type<Q3_K>(w, x, out, out_stride, scratch);
    case TensorType::kIQ4_NL: return gemm_type<IQ4_NL>(w, x, out, out_stride, scratch);
    case TensorType::kIQ4_XS: return gemm_type<IQ4_XS>(w, x, out, out_stride, scratch);
    case TensorType::kMXFP4: return gemm_type<MXFP4>(w, x, out, out_stride, scratch);
    case TensorType::kTQ2_0: return gemm_type<TQ2_0>(w, x, out, out_stride, scratch);
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16: return;  // gemm_float's
  }
}

void gemm_float_avx512(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride,
                       const Scratch& /*scratch*/) {
  switch (w.type) {
    case TensorType::kF32: return gemm_float_type<F32>(w, x, n_x, n_cols, out, out_stride);
    case TensorType::kF16: return gemm_float_type<F16>(w, x, n_x, n_cols, out, out_stride);
    default: return gemm_float_type<BF16>(w, x, n_x, n_cols, out, out_stride);
  }
}

void load_columns_avx512(const WeightRows& w, int n_cols, float* columns, const Scratch& scratch) {
  if (w.row_end - w.row_begin < kLanes) return load_columns_ref(w, n_cols, columns, scratch);  // the last rows
  switch (w.type) {
    case TensorType::kF32: return columns_of_floats<F32>(w, n_cols, columns);
    case TensorType::kF16: return columns_of_floats<F16>(w, n_cols, columns);
    case TensorType::kBF16: return columns_of_floats<BF16>(w, n_cols, columns);
    case TensorType::kQ4_0: return columns_of<Q4_0>(w, n_cols, columns, scratch);
    case TensorType::kQ4_1: return columns_of<Q4_1>(w, n_cols, columns, scratch);
    case TensorType::kQ5_0: return columns_of<Q5_0>(w, n_cols, columns, scratch);
    case TensorType::kQ5_1: return columns_of<Q5_1>(w, n_cols, columns, scratch);
    case TensorType::kQ8_0: return columns_of<Q8_0>(w, n_cols, columns, scratch);
    case TensorType::kQ2_K: return columns_of<Q2_K>(w, n_cols, columns, scratch);
    case TensorType::kQ3_K: return columns_of<Q3_K>(w, n_cols, columns, scratch);
    case TensorType::kQ4_K: return columns_of<Q4_K>(w, n_cols, columns, scratch);
    case TensorType::kQ5_K: return columns_of<Q5_K>(w, n_cols, columns, scratch);
    case TensorType::kQ6_K: return columns_of<Q6_K>(w, n_cols, columns, scratch);
    case TensorType::kIQ4_NL: return columns_of<IQ4_NL>(w, n_cols, columns, scratch);
    case TensorType::kIQ4_XS: return columns_of<IQ4_XS>(w, n_cols, columns, scratch);
    case TensorType::kMXFP4: return columns_of<MXFP4>(w, n_cols, columns, scratch);
    case TensorType::kTQ2_0: return columns_of<TQ2_0>(w, n_cols, columns, scratch);
  }
}

}  // namespace gemma::cpu
