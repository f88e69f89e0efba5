// Matrix tiles of bfloat16: 16 rows times 16 rows of 32 columns are one instruction that adds exact products up in
// float32 (Intel's TDPBF16PS). It wants one of them as it is (rows) and the other turned over, two columns of each row
// in a dword (pairs). Internal to each file that includes it.
//
// Tiles, a template parameter: AmxTiles (tiles_amx_bf16.cpp), or arrays that behave like them, with which tests run the
// same code on processors that have none. Sums (i, j), i and j 0 or 1, are products of rows i and pairs j.
#pragma once

#include "backend/cpu/lanes_avx512.h"
#include "backend/cpu/panel_avx512.h"
#include "backend/cpu/vector_avx512.h"

namespace gemma::cpu {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileColumns = 32;

struct alignas(64) RowTile {
  uint16_t rows[kTileRows][kTileColumns];
};
struct alignas(64) PairTile {
  uint32_t pairs[16][kLanes];  // pairs[j][lane]: columns 2 * j (low half) and 2 * j + 1 of a row
};
struct alignas(64) SumTile {
  float rows[kTileRows][kLanes];  // of each of the rows with each of the pairs
};
static_assert(sizeof(PairTile) == 1024 && sizeof(RowTile) == 1024 && sizeof(SumTile) == 1024);

constexpr int tiles_of(int n, int size) {
  return (n + size - 1) / size;
}

// Two registers of floats as pairs of bfloat16, rounded to nearest, ties to even; NaN stays NaN.
inline __m512i bf16_pairs(__m512 even, __m512 odd) {
  const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                              6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(interleave, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even)));
}

// Values of a float type.
struct Float32 {
  static constexpr size_t kBytes = 4;
  static __m512 load(const uint8_t* p, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, p); }
};
struct Float16 {
  static constexpr size_t kBytes = 2;
  static __m512 load(const uint8_t* p, __mmask16 lanes) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, p)); }
};
struct BFloat16 {
  static constexpr size_t kBytes = 2;
  static __m512 load(const uint8_t* p, __mmask16 lanes) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, p)), 16));
  }
};

// 32 floats from column c on as bfloat16; zero from n_cols on.
template <class Type>
inline __m512i load_32(const uint8_t* row, int c, int n_cols) {
  const uint8_t* p = row + static_cast<size_t>(c) * Type::kBytes;
  const __m512 low = Type::load(p, lanes_below(n_cols - c));
  const __m512 high = Type::load(p + kLanes * Type::kBytes, lanes_below(n_cols - c - kLanes));
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

// 16 x 16 dwords, transposed: a RowTile to the PairTile with the same rows and columns, or the reverse.
inline void transpose_pairs(const void* from, void* to) {
  const PanelRows rows(static_cast<const uint8_t*>(from), 64);
  uint8_t* out = static_cast<uint8_t*>(to);
  for (int j = 0; j < 16; j += 4) {
    __m512i transposed[4];
    load_transposed(rows, 4 * j, transposed);
    for (int k = 0; k < 4; ++k) _mm512_store_si512(out + static_cast<size_t>(j + k) * 64, transposed[k]);
  }
}

// 2^x, relative error 8e-5, below what is lost when weights are rounded. x <= 0, or NaN, which stays.
inline __m512 exp2_of(__m512 x) {
  static constexpr float kExp2[4] = {1.0f, 0.69588557f, 0.22608407f, 0.07803036f};
  return exp2_ps(x, kExp2);
}

// A product of up to two groups of 16 rows with up to two that lie in pairs, over n tiles of columns.
struct TileProduct {
  const RowTile* rows;  // the second group rows_stride tiles on
  size_t rows_stride;
  const PairTile* pairs;
  size_t pairs_stride;
  int n;
  SumTile* sums;  // of groups i of rows and j of pairs: sums[i * sums_rows_stride + j * sums_pairs_stride]
  size_t sums_rows_stride;
  size_t sums_pairs_stride;
};

// f.operator()<i, j>() for each of kRows x kPairs sums.
template <int kRows, int kPairs, class F>
inline void for_sums(const F& f) {
  f.template operator()<0, 0>();
  if constexpr (kPairs == 2) f.template operator()<0, 1>();
  if constexpr (kRows == 2) f.template operator()<1, 0>();
  if constexpr (kRows == 2 && kPairs == 2) f.template operator()<1, 1>();
}
template <class Tiles, int kRows, int kPairs>
inline void zero_sums() {
  for_sums<kRows, kPairs>([]<int i, int j> { Tiles::template zero<i, j>(); });
}
template <class Tiles, int kRows, int kPairs>
inline void load_sums(const TileProduct& p) {
  for_sums<kRows, kPairs>([&]<int i, int j> {
    Tiles::template load_sums<i, j>(p.sums[i * p.sums_rows_stride + j * p.sums_pairs_stride].rows);
  });
}
template <class Tiles, int kRows, int kPairs>
inline void store_sums(const TileProduct& p) {
  for_sums<kRows, kPairs>([&]<int i, int j> {
    Tiles::template store_sums<i, j>(p.sums[i * p.sums_rows_stride + j * p.sums_pairs_stride].rows);
  });
}

// Tiles begin .. end - 1 of a product of kRows and kPairs groups, added to the sums that the processor holds.
template <class Tiles, int kRows, int kPairs>
inline void add_products(const TileProduct& p, int begin, int end) {
  for (int b = begin; b < end; ++b) {
    Tiles::template load_rows<0>(p.rows[b].rows);
    Tiles::template load_pairs<0>(p.pairs[b].pairs);
    Tiles::template multiply<0, 0>();
    if constexpr (kPairs == 2) {
      Tiles::template load_pairs<1>(p.pairs[p.pairs_stride + static_cast<size_t>(b)].pairs);
      Tiles::template multiply<0, 1>();
    }
    if constexpr (kRows == 2) {
      Tiles::template load_rows<1>(p.rows[p.rows_stride + static_cast<size_t>(b)].rows);
      Tiles::template multiply<1, 0>();
      if constexpr (kPairs == 2) Tiles::template multiply<1, 1>();
    }
  }
}

// All of it, added to the sums, or written where they are the first.
template <class Tiles, int kRows, int kPairs>
inline void multiply_tiles(const TileProduct& p, bool first) {
  first ? zero_sums<Tiles, kRows, kPairs>() : load_sums<Tiles, kRows, kPairs>(p);
  add_products<Tiles, kRows, kPairs>(p, 0, p.n);
  store_sums<Tiles, kRows, kPairs>(p);
}

}  // namespace
}  // namespace gemma::cpu
