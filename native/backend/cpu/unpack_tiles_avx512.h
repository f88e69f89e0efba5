// Stored blocks of 16 weight rows -> rows of bfloat16 for matrix tiles (tiles_avx512.h). A weight row stays a row, so
// nothing is transposed: the scales of a panel come from the unpackers of unpack_avx512.h, a lane per row; the codes
// are read row by row.
//
// Columns of a tile lie in kTileOrder: what the 16-bit words of stored codes hold in their low bytes, then what they
// hold in their high ones.
#pragma once

#include <cstring>

#include "backend/cpu/small_math.h"
#include "backend/cpu/tiles_avx512.h"
#include "backend/cpu/unpack_avx512.h"

namespace gemma::cpu {
namespace {

// Blocks of 32 columns that are unpacked at a time: a multiple of every type's group.
constexpr int kStepBlocks = 8;

// The even columns, then the odd ones.
inline __m512i in_tile_order(__m512i words) {
  const __m512i order = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24, 22,
                                         20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  return _mm512_permutexvar_epi16(order, words);
}

// value = d * code + base; of halves of a block (the first stands for both where the type has one scale per block).
struct alignas(64) PanelScales {
  float d[kStepBlocks][2][kLanes];
  float base[kStepBlocks][2][kLanes];
};

// A sink of unpack_avx512.h that keeps scales and minima; that it drops the codes spares their loads as well.
template <class Type>
struct ToScales {
  PanelScales* out;
  int first;  // block of the group
  void codes(int, int, __m512i) const {}
  void scale(int b, int half, __m512 v) const {
    constexpr float kOffset = Type::kOffsetShift >= 0 ? static_cast<float>(1 << (Type::kOffsetShift & 31)) : 0.0f;
    _mm512_store_ps(out->d[first + b][half], v);
    _mm512_store_ps(out->base[first + b][half], _mm512_mul_ps(v, _mm512_set1_ps(-kOffset)));
  }
  void minimum(int b, int half, __m512 m) const { _mm512_store_ps(out->base[first + b][half], m); }
};

// 16 bytes in each quarter of a register, or 32 in each half.
inline __m512i four_times(const uint8_t* p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline __m512i twice(const uint8_t* p) {
  return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// Bits 1 to 4 of both bytes of word 4 * i + k: 4 bits of qword i, those from bit 16 * k + shift[i / 2] on.
inline __m512i nibbles_of(__m512i qwords, int s0, int s1, int s2, int s3) {
  const auto from = [](int first) {  // bit -1 is bit 63
    const auto both = [&](int k) { return static_cast<int64_t>((16 * k + first + 63) % 64) * 0x0101; };
    return both(0) | both(1) << 16 | both(2) << 32 | both(3) << 48;
  };
  const __m512i bits =
      _mm512_setr_epi64(from(s0), from(s0), from(s1), from(s1), from(s2), from(s2), from(s3), from(s3));
  return _mm512_multishift_epi64_epi8(bits, qwords);
}
// Words of each half shifted to the left, or to the right by -n.
inline __m512i shift_halves(__m512i v, int a, int b) {
  const auto by = [](int n, int m) {
    const auto both = [](int shift) { return (shift > 0 ? shift : 0) * int64_t{0x0001000100010001}; };
    return _mm512_setr_epi64(both(n), both(n), both(n), both(n), both(m), both(m), both(m), both(m));
  };
  if (a > 0 || b > 0) v = _mm512_sllv_epi16(v, by(a, b));
  if (a < 0 || b < 0) v = _mm512_srlv_epi16(v, by(-a, -b));
  return v;
}
inline __m512i and_or(__m512i a, char mask_a, __m512i b, char mask_b) {
  return _mm512_or_si512(_mm512_and_si512(a, mask_bytes(mask_a)), _mm512_and_si512(b, mask_bytes(mask_b)));
}

// How a type's codes are read.
//   Codes of 4 bits: the 16 values that they can have are rounded once for a block and looked up. nibbles(p, b): words
//   in tile order, of which bits 1 to 4 of both bytes are the codes of block b, of a group that begins at p; levels():
//   the numbers that scale and minimum make values of.
//   Others: codes(p, i): bytes of two blocks, 2 * i and 2 * i + 1, or of the only one of a group.
template <class Type>
struct RowCodes;

// Four bits each of 16 bytes, low nibbles first.
template <int kOffset, int kStride = 0>
struct BlockNibbles {
  static constexpr bool kLookedUp = true;
  static __m512i nibbles(const uint8_t* p, int b) {
    return nibbles_of(four_times(p + kOffset + b * kStride), 0, 4, 8, 12);
  }
};
struct FromZero {
  static __m512 levels() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
};

template <>
struct RowCodes<Q4_0> : BlockNibbles<2>, FromZero {};
template <>
struct RowCodes<Q4_0x4> : BlockNibbles<2, 18>, FromZero {};
template <>
struct RowCodes<Q4_1> : BlockNibbles<4>, FromZero {};
template <>
struct RowCodes<Q4_K> : FromZero {
  static constexpr bool kLookedUp = true;
  static __m512i nibbles(const uint8_t* p, int b) {
    const int low = 4 * (b % 2);
    return nibbles_of(twice(p + 16 + b / 2 * 32), low, low, 8 + low, 8 + low);
  }
};
// Plus what base takes away.
struct NonLinear {
  static __m512 levels() { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm512_castsi512_si128(IQ4_NL::table()))); }
};
template <>
struct RowCodes<IQ4_NL> : BlockNibbles<2>, NonLinear {};
template <>
struct RowCodes<IQ4_XS> : BlockNibbles<8, 16>, NonLinear {};
template <>
struct RowCodes<MXFP4> : BlockNibbles<1> {
  static __m512 levels() { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm512_castsi512_si128(MXFP4::table()))); }
};

// Bit c of a dword is bit 4 of column c.
template <int kHigh, int kLow>
struct FifthBits {
  static constexpr bool kLookedUp = false;
  static __m512i codes(const uint8_t* p, int /*pair*/) {
    uint32_t high = 0;
    std::memcpy(&high, p + kHigh, 4);
    const __m128i stored = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + kLow));
    const __m256i nibbles =
        _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(stored, 4), stored), _mm256_set1_epi8(0x0f));
    return _mm512_castsi256_si512(_mm256_mask_add_epi8(nibbles, high, nibbles, _mm256_set1_epi8(0x10)));
  }
};
template <>
struct RowCodes<Q5_0> : FifthBits<2, 6> {};
template <>
struct RowCodes<Q5_1> : FifthBits<4, 8> {};
template <>
struct RowCodes<Q8_0> {
  static constexpr bool kLookedUp = false;
  static __m512i codes(const uint8_t* p, int /*pair*/) {
    const __m256i stored = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 2));
    return _mm512_castsi256_si512(_mm256_xor_si256(stored, _mm256_set1_epi8(static_cast<char>(0x80))));
  }
};
template <>
struct RowCodes<Q5_K> {
  static constexpr bool kLookedUp = false;
  static __m512i codes(const uint8_t* p, int pair) {
    return and_or(shift_halves(twice(p + 48 + 32 * pair), 0, -4), 0x0f,
                  shift_halves(twice(p + 16), 4 - 2 * pair, 3 - 2 * pair), 0x10);
  }
};
template <>
struct RowCodes<Q6_K> {
  static constexpr bool kLookedUp = false;
  static __m512i codes(const uint8_t* p, int pair) {
    const int n = pair / 2;
    const __m512i low = _mm512_loadu_si512(p + 64 * n);
    const __m512i high = twice(p + 128 + 32 * n);
    return pair % 2 == 0 ? and_or(low, 0x0f, shift_halves(high, 4, 2), 0x30)
                         : and_or(_mm512_srli_epi16(low, 4), 0x0f, shift_halves(high, 0, -2), 0x30);
  }
};
// Two bits each of 64 bytes.
inline __m512i two_bits(const uint8_t* p, int pair) {
  const int shift = 4 * (pair % 2);
  return _mm512_and_si512(shift_halves(twice(p + pair / 2 * 32), -shift, -shift - 2), mask_bytes(3));
}
template <>
struct RowCodes<Q2_K> {
  static constexpr bool kLookedUp = false;
  static __m512i codes(const uint8_t* p, int pair) { return two_bits(p + 16, pair); }
};
template <>
struct RowCodes<Q3_K> {
  static constexpr bool kLookedUp = false;
  static __m512i codes(const uint8_t* p, int pair) {
    const __m512i high = _mm512_and_si512(shift_halves(twice(p), 2 - 2 * pair, 1 - 2 * pair), mask_bytes(4));
    return _mm512_or_si512(two_bits(p + 32, pair), high);
  }
};
template <>
struct RowCodes<TQ2_0> {
  static constexpr bool kLookedUp = false;
  static __m512i codes(const uint8_t* p, int pair) { return two_bits(p, pair); }
};

// A panel on its way into tiles, so that its rows can be unpacked between products with others.
template <class Type>
class TileUnpacker {
 public:
  // Blocks b .. b + n - 1, n <= kStepBlocks, of the 16 rows from `row` on. tail: room for kLanes * n stored blocks.
  GEMMA_FLATTEN TileUnpacker(const WeightRows& w, int row, int b, int n, uint8_t* tail)
      : n_groups_(n / Type::kGroup), bytes_(panel_bytes(w, row, group_offset(b), group_offset(n), tail)) {
    PanelRows rows(bytes_.p, bytes_.stride);
    for (int g = 0; g < n_groups_; ++g) {
      ToScales<Type> sink{&scales_, g * Type::kGroup};
      Type::unpack(rows, sink);
      rows = rows.at(Type::kGroupBytes);
    }
  }

  // Rows first .. end - 1 of all blocks; both even.
  GEMMA_FLATTEN void unpack(int first, int end, RowTile* tiles) {
    for (int lane = first; lane < end; lane += 2) {
      const uint8_t* p = bytes_.p + static_cast<size_t>(lane) * bytes_.stride;
      for (size_t row = 0; row < 2; ++row) fetch_ahead(p + row * bytes_.stride);
      for (int g = 0; g < n_groups_; ++g, p += Type::kGroupBytes) {
#pragma GCC unroll 8
        for (int b = 0; b < Type::kGroup; ++b)
          unpack_two(p, g * Type::kGroup, b, lane, tiles[g * Type::kGroup + b].rows + lane);
      }
    }
  }

 private:
  static size_t group_offset(int b) { return static_cast<size_t>(b / Type::kGroup) * Type::kGroupBytes; }

  // The same blocks 16 rows on are next, the row's next ones come with the next step.
  void fetch_ahead(const uint8_t* p) const {
    const size_t bytes = static_cast<size_t>(n_groups_) * Type::kGroupBytes;
    for (size_t i = 0; i < bytes; i += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(p + kLanes * bytes_.stride + i), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(p + bytes + i), _MM_HINT_T1);
    }
  }

  // Of a block of a row: its scale, or its base.
  static __m512 of_halves(const float (*scales)[kLanes], int lane) {
    const __m512 low = _mm512_set1_ps(scales[0][lane]);
    return Type::kHalves ? _mm512_mask_mov_ps(low, 0xff00, _mm512_set1_ps(scales[1][lane])) : low;
  }

  // Block b of the group at p, whose first block is `first` of the panel's, of two rows.
  void unpack_two(const uint8_t* p, int first, int b, int lane, uint16_t (*out)[kTileColumns]) const {
    using Codes = RowCodes<Type>;
    const auto d = [&](int i) { return of_halves(scales_.d[first + b], lane + i); };
    const auto base = [&](int i) { return of_halves(scales_.base[first + b], lane + i); };
    if constexpr (Codes::kLookedUp) {
      const auto values = [&](int i) { return _mm512_fmadd_ps(Codes::levels(), d(i), base(i)); };
      const __m512i tables = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(values(1), values(0)));
      for (int i = 0; i < 2; ++i) {
        // Two bytes of a table: twice the code and one more, in the lower half or the upper.
        constexpr int kMaskMerge = 0xea;  // a & b | c
        const __m512i which = _mm512_set1_epi16(static_cast<int16_t>(0x0100 + 0x2020 * i));
        const __m512i codes = Codes::nibbles(p + static_cast<size_t>(i) * bytes_.stride, b);
        const __m512i index = _mm512_ternarylogic_epi32(codes, mask_bytes(0x1e), which, kMaskMerge);
        _mm512_store_si512(out[i], _mm512_permutexvar_epi8(index, tables));
      }
    } else {
      for (int i = 0; i < 2; ++i) {
        const __m512i codes = Codes::codes(p + static_cast<size_t>(i) * bytes_.stride, b / 2);
        const __m512 even = _mm512_fmadd_ps(columns(codes, 32 * (b % 2)), d(i), base(i));
        const __m512 odd = _mm512_fmadd_ps(columns(codes, 32 * (b % 2) + 1), d(i), base(i));
        _mm512_store_si512(out[i], reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even)));
      }
    }
  }
  // Every second byte from `first` on, 16 of them, as floats.
  static __m512 columns(__m512i codes, int first) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i index = _mm512_add_epi32(even, _mm512_set1_epi32(first));
    return _mm512_cvtepi32_ps(_mm512_maskz_permutexvar_epi8(0x1111111111111111, index, codes));
  }

  int n_groups_;
  PanelBytes bytes_;
  PanelScales scales_;
};

// Weights of a float type.
template <class Type>
class TileUnpackerOfFloats {
 public:
  TileUnpackerOfFloats(const WeightRows& w, int row, int b, int n, int n_cols)
      : w_(w), row_(row), block_(b), n_(n), n_cols_(n_cols) {}
  GEMMA_FLATTEN void unpack(int first, int end, RowTile* tiles) const {
    for (int lane = first; lane < end; ++lane) {
      const uint8_t* p = reinterpret_cast<const uint8_t*>(w_.w) +
                         static_cast<size_t>(least(row_ + lane, w_.row_end - 1)) * w_.w_row_bytes;
      for (int i = 0; i < n_; ++i) {
        const __m512i row = load_32<Type>(p, (block_ + i) * kTileColumns, n_cols_);
        _mm512_store_si512(tiles[i].rows[lane], in_tile_order(row));
      }
    }
  }

 private:
  const WeightRows& w_;
  int row_;
  int block_;
  int n_;
  int n_cols_;
};

}  // namespace
}  // namespace gemma::cpu
