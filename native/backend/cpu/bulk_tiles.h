// Matrix products of many rows in bfloat16 on a processor's matrix tiles. Weights of any type are unpacked into panels
// of tiles once for all rows of x. Rounding weights and x to 8 significant bits costs less than x in 8-bit integers
// with a step for each block does, and the sums need no scaling.
//
// 8-bit integers on tiles, which would equal the other sets' products to the bit, were measured: 17.9 ns for such a
// product of 8,192 multiply-adds against 4.4 ns here (and 17.6 ns at the peak of the vector unit), because every sum of
// a block has to come back, be converted, scaled and added by instructions that cannot run beside the tiles'.
//
// Internal to each file that includes it; tiles_avx512.h tells of the tiles.
#pragma once

#include "backend/cpu/kernels_avx512.h"
#include "backend/cpu/tiles_avx512.h"
#include "backend/cpu/unpack_avx512.h"

namespace gemma::cpu {
namespace {

// Where unpack_avx512.h puts a quantised type's values. A register of floats holds two columns of eight rows, which is
// the order of the tile: two of them are rounded to one register of pairs without a shuffle.
template <class Type>
struct ToTiles {
  static constexpr int kParts = Type::kHalves ? 2 : 1;
  // A code is put into a float's mantissa: below 128 into the highest bits of 128.0, other ones into lower bits of
  // 32768.0, which is taken away first, for base would not be exact enough.
  static constexpr bool kSmall = Type::kOffsetShift < 7;
  static constexpr int kOffset =
      (kSmall ? 128 : 0) + (kSmall && Type::kOffsetShift >= 0 ? 1 << (Type::kOffsetShift & 31) : 0);
  struct Rows {
    __m512 d[2];     // of rows 0 to 7 and 8 to 15, each twice
    __m512 base[2];  // what a value is when the float that stands for its code is 0
  };
  WeightTile* out;
  Rows parts[Type::kGroup][kParts];

  explicit ToTiles(WeightTile* tiles) : out(tiles) {}
  void scale(int b, int half, __m512 v) {
    Rows& rows = parts[b][half];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      rows.d[i] = twice(v, i);
      rows.base[i] = _mm512_mul_ps(rows.d[i], _mm512_set1_ps(-static_cast<float>(kOffset)));
    }
  }
  void minimum(int b, int half, __m512 m) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) parts[b][half].base[i] = _mm512_add_ps(parts[b][half].base[i], twice(m, i));
  }
  void codes(int b, int j, __m512i v) const {
    const Rows& rows = parts[b][kParts == 2 ? j / 4 : 0];
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; ++pair) {
      const __m512 low = _mm512_fmadd_ps(float_of(v, pair, 0), rows.d[0], rows.base[0]);
      const __m512 high = _mm512_fmadd_ps(float_of(v, pair, 1), rows.d[1], rows.base[1]);
      _mm512_store_si512(out[b].pairs[2 * j + pair], reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
    }
  }

 private:
  static __m512 twice(__m512 v, int i) {
    const __m512i rows = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return _mm512_permutexvar_ps(_mm512_add_epi32(rows, _mm512_set1_epi32(8 * i)), v);
  }
  // Codes 2 * pair and 2 * pair + 1 of rows 8 * half to 8 * half + 7.
  static __m512 float_of(__m512i v, int pair, int half) {
    constexpr int kByte = kSmall ? 2 : 1;  // of the float, to which the code goes
    const __m512i bytes = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29);
    const __m512i index =
        _mm512_slli_epi32(_mm512_add_epi32(bytes, _mm512_set1_epi32(32 * half + 2 * pair)), 8 * kByte);
    const __m512i power = _mm512_set1_epi32(kSmall ? 0x43000000 : 0x47000000);
    const __m512 f =
        _mm512_castsi512_ps(_mm512_mask_permutexvar_epi8(power, uint64_t{0x1111111111111111} << kByte, index, v));
    return kSmall ? f : _mm512_sub_ps(f, _mm512_set1_ps(32768.0f + 128.0f));
  }
};

template <class Type>
GEMMA_FLATTEN void unpack_floats(const WeightRows& w, int row, int n_cols, int b, int n, WeightTile* tiles) {
  const int n_rows = std::min(kLanes, w.row_end - row);
  const uint8_t* first = reinterpret_cast<const uint8_t*>(w.w) + static_cast<size_t>(row) * w.w_row_bytes;
  for (int i = 0; i < n; ++i) {
    XTile tile;
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint8_t* p = first + static_cast<size_t>(std::min(lane, n_rows - 1)) * w.w_row_bytes;
      _mm512_store_si512(tile.rows[lane], load_32<Type>(p, (b + i) * kTileColumns, n_cols));
    }
    transpose_pairs(&tile, &tiles[i]);
  }
}

// Blocked for the caches (Xeon: 48 KiB and 2 MiB): steps of 8 blocks of columns, in which two panels of weights
// (16 KiB) stay in L1 while 512 rows of x (256 KiB) go by in L2, where the sums of 512 x 256 (512 KiB) are as well, in
// whole tiles: rows of a result are often multiples of 4 KiB apart, where a cache holds few of them.
template <class Tiles>
class BulkTiles {
 public:
  static size_t packed_bytes(int n_rows, int n_cols) {
    return static_cast<size_t>(tiles_of(n_rows, kTileRows)) *
           static_cast<size_t>(tiles_of(tiles_of(n_cols, kTileColumns), kStepBlocks)) * kStepBlocks * sizeof(XTile);
  }

  // Rows that are not there and columns from n_cols on are zero. Tiles: [steps][groups of 16 rows][kStepBlocks].
  static void pack(const float* x, int n_rows, int n_cols, int first_row, std::byte* packed) {
    const size_t n_groups = static_cast<size_t>(tiles_of(n_rows, kTileRows));
    const int n_blocks = tiles_of(n_cols, kTileColumns);
    XTile* tiles = reinterpret_cast<XTile*>(packed);
    for (int b = 0; b < n_blocks; ++b) {
      XTile& tile =
          tiles[(static_cast<size_t>(b / kStepBlocks) * n_groups + static_cast<size_t>(first_row / kTileRows)) *
                    kStepBlocks +
                static_cast<size_t>(b % kStepBlocks)];
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        __m512i values = _mm512_setzero_si512();
        if (first_row + r < n_rows) {
          const float* row = x + static_cast<size_t>(first_row + r) * static_cast<size_t>(n_cols);
          values = load_32<Float32>(reinterpret_cast<const uint8_t*>(row), b * kTileColumns, n_cols);
        }
        _mm512_store_si512(tile.rows[r], values);
      }
    }
  }

  static void multiply(const WeightRows& w, const std::byte* packed, int n_rows, int n_cols, float* out,
                       size_t out_stride, const Scratch& scratch) {
    const auto run_floats = [&]<class Type> {
      run(w, packed, n_rows, n_cols, out, out_stride, scratch,
          [&](int row, int b, int n, WeightTile* tiles, uint8_t* /*tail*/) {
            unpack_floats<Type>(w, row, n_cols, b, n, tiles);
          });
    };
    switch (w.type) {
      case TensorType::kF32: return run_floats.template operator()<Float32>();
      case TensorType::kF16: return run_floats.template operator()<Float16>();
      case TensorType::kBF16: return run_floats.template operator()<BFloat16>();
      default: break;
    }
    with_unpacker(w.type, n_cols, [&]<class Type> {
      run(w, packed, n_rows, n_cols, out, out_stride, scratch,
          [&](int row, int b, int n, WeightTile* tiles, uint8_t* tail) {
            unpack_panel<Type, ToTiles<Type>>(w, row, b, n, tiles, tail, kFewPanels * kLanes);
          });
    });
  }

  static constexpr BulkGemm kKernel = {packed_bytes, pack, multiply};

 private:
  static constexpr int kStepBlocks = 8;  // a multiple of every type's group
  static constexpr int kPanels = 16;
  static constexpr int kGroups = 32;  // of 16 rows of x
  // So few rows that reading the weights is what takes the time: two panels at a time with all their columns, which
  // memory likes better than a step of the columns of many rows.
  static constexpr int kFewGroups = 8;
  static constexpr int kFewPanels = 2;

  struct Memory {
    SumTile sums[kPanels][kGroups];
    WeightTile panels[kPanels][kStepBlocks];
    uint8_t tail[kLanes * kStepBlocks * 34];  // stored blocks of a panel with fewer than 16 rows: 34 bytes at most
  };
  static_assert(sizeof(Memory) <= kScratchBytes);

  template <class Unpack>
  static void run(const WeightRows& w, const std::byte* packed, int n_rows, int n_cols, float* out, size_t out_stride,
                  const Scratch& scratch, const Unpack& unpack) {
    Memory& memory = *reinterpret_cast<Memory*>(scratch.data);
    const int n_blocks = tiles_of(n_cols, kTileColumns);
    const int n_groups = tiles_of(n_rows, kTileRows);
    Tiles::configure();
    for (int group = 0; group < n_groups; group += kGroups) {
      const int n_here = std::min(kGroups, n_groups - group);
      const int n_at_once = kLanes * (n_here <= kFewGroups ? kFewPanels : kPanels);
      for (int row = w.row_begin; row < w.row_end; row += n_at_once) {
        const int n_lanes = std::min(n_at_once, w.row_end - row);
        const int n_panels = tiles_of(n_lanes, kLanes);
        for (int b = 0; b < n_blocks; b += kStepBlocks) {
          const int n = std::min(kStepBlocks, n_blocks - b);
          for (int p = 0; p < n_panels; ++p) unpack(row + p * kLanes, b, n, memory.panels[p], memory.tail);
          Tiles::written();
          const XTile* x =
              reinterpret_cast<const XTile*>(packed) +
              (static_cast<size_t>(b / kStepBlocks) * static_cast<size_t>(n_groups) + static_cast<size_t>(group)) *
                  kStepBlocks;
          for (int p = 0; p < n_panels; p += 2) multiply_panels(memory, p, n_panels - p, x, n_here, n, b == 0);
        }
        const int first_row = group * kTileRows;
        store(memory, out + static_cast<size_t>(first_row) * out_stride + row, out_stride,
              std::min(kGroups * kTileRows, n_rows - first_row), n_lanes);
      }
    }
    Tiles::release();
  }

  // Panels p and p + 1, as far as there are so many, times all groups of rows.
  static void multiply_panels(Memory& memory, int p, int n_panels, const XTile* x, int n_groups, int n_blocks,
                              bool first) {
    for (int g = 0; g < n_groups; g += 2, x += 2 * kStepBlocks) {
      const TileProduct product{x, kStepBlocks, memory.panels[p], kStepBlocks, n_blocks, &memory.sums[p][g],
                                1, kGroups};
      const bool two = n_groups - g > 1;
      if (n_panels > 1) {
        two ? multiply_tiles<Tiles, 2, 2>(product, first) : multiply_tiles<Tiles, 1, 2>(product, first);
      } else {
        two ? multiply_tiles<Tiles, 2, 1>(product, first) : multiply_tiles<Tiles, 1, 1>(product, first);
      }
    }
  }

  static void store(const Memory& memory, float* out, size_t out_stride, int n_rows, int n_lanes) {
    for (int r = 0; r < n_rows; ++r) {
      float* row = out + static_cast<size_t>(r) * out_stride;
      // Past the caches, which are full of what the next products need.
      const bool streams = reinterpret_cast<uintptr_t>(row) % 64 == 0 && n_lanes % kLanes == 0;
      for (int lane = 0; lane < n_lanes; lane += kLanes) {
        const __m512 sums = _mm512_load_ps(memory.sums[lane / kLanes][r / kTileRows].rows[r % kTileRows]);
        if (streams) {
          _mm512_stream_ps(row + lane, sums);
        } else {
          _mm512_mask_storeu_ps(row + lane, lanes_below(n_lanes - lane), sums);
        }
      }
    }
    _mm_sfence();
  }
};

}  // namespace
}  // namespace gemma::cpu
