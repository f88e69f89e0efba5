// Matrix products of many rows in bfloat16 on a processor's matrix tiles. Weights of any type are unpacked into panels
// of tiles once for all rows of x, which lie in pairs. Rounding weights and x to 8 significant bits costs less than x
// in 8-bit integers with a step for each block does, and the sums need no scaling.
//
// 8-bit integers on tiles, which would equal the other sets' products to the bit, were measured: 17.9 ns for such a
// product of 8,192 multiply-adds against 4.4 ns here (and 17.6 ns at the peak of the vector unit), because every sum of
// a block has to come back, be converted, scaled and added by instructions that cannot run beside the tiles'.
//
// Internal to each file that includes it; tiles_avx512.h tells of the tiles.
#pragma once

#include "backend/cpu/kernels_avx512.h"
#include "backend/cpu/small_math.h"
#include "backend/cpu/tiles_avx512.h"
#include "backend/cpu/unpack_tiles_avx512.h"

namespace gemma::cpu {
namespace {

// Blocked for the caches (Xeon: 48 KiB and 2 MiB): steps of 8 blocks of columns, in which two panels of weights
// (16 KiB) stay in L1 while 512 rows of x (256 KiB) go by in L2, where the sums of 512 x 256 (512 KiB) are as well, in
// whole tiles: rows of a result are often multiples of 4 KiB apart, where a cache holds few of them.
//
// For up to 32 rows unpacking is most of the work. The sums of two or four panels stay in the processor over all
// columns, and products with a panel's blocks of a step go between those rows of the next panel that are unpacked, so
// that both run at once.
template <class Tiles>
class BulkTiles {
 public:
  static size_t packed_bytes(int n_rows, int n_cols) {
    return static_cast<size_t>(tiles_of(n_rows, kTileRows)) *
           static_cast<size_t>(tiles_of(tiles_of(n_cols, kTileColumns), kStepBlocks)) * kStepBlocks * sizeof(PairTile);
  }

  // Rows that are not there and columns from n_cols on are zero. Tiles: [steps][groups of 16 rows][kStepBlocks].
  static void pack(const float* x, int n_rows, int n_cols, int first_row, std::byte* packed) {
    const size_t n_groups = static_cast<size_t>(tiles_of(n_rows, kTileRows));
    const int n_blocks = tiles_of(n_cols, kTileColumns);
    PairTile* tiles = reinterpret_cast<PairTile*>(packed);
    for (int b = 0; b < n_blocks; ++b) {
      RowTile rows;
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        __m512i values = _mm512_setzero_si512();
        if (first_row + r < n_rows) {
          const float* row = x + static_cast<size_t>(first_row + r) * static_cast<size_t>(n_cols);
          values = in_tile_order(load_32<Float32>(reinterpret_cast<const uint8_t*>(row), b * kTileColumns, n_cols));
        }
        _mm512_store_si512(rows.rows[r], values);
      }
      transpose_pairs(
          &rows, &tiles[(static_cast<size_t>(b / kStepBlocks) * n_groups + static_cast<size_t>(first_row / kTileRows)) *
                            kStepBlocks +
                        static_cast<size_t>(b % kStepBlocks)]);
    }
  }

  static void multiply(const WeightRows& w, const std::byte* packed, int n_rows, int n_cols, float* out,
                       size_t out_stride, const Scratch& scratch) {
    const Product product{
        w,          reinterpret_cast<const PairTile*>(packed), n_rows, tiles_of(n_cols, kTileColumns), out,
        out_stride, *reinterpret_cast<Memory*>(scratch.data)};
    const auto run_floats = [&]<class Type> {
      run(product,
          [&](int row, int b, int n, uint8_t* /*tail*/) { return TileUnpackerOfFloats<Type>(w, row, b, n, n_cols); });
    };
    switch (w.type) {
      case TensorType::kF32: return run_floats.template operator()<Float32>();
      case TensorType::kF16: return run_floats.template operator()<Float16>();
      case TensorType::kBF16: return run_floats.template operator()<BFloat16>();
      default: break;
    }
    with_unpacker(w.type, n_cols, [&]<class Type> {
      run(product, [&](int row, int b, int n, uint8_t* tail) { return TileUnpacker<Type>(w, row, b, n, tail); });
    });
  }

  static constexpr BulkGemm kKernel = {packed_bytes, pack, multiply};

 private:
  static constexpr int kPanels = 16;
  static constexpr int kGroups = 32;  // of 16 rows of x
  // So few rows that reading the weights is what takes the time: two panels at a time with all their columns, which
  // memory likes better than a step of the columns of many rows.
  static constexpr int kFewGroups = 8;
  static constexpr int kFewPanels = 2;

  struct Memory {
    SumTile sums[kPanels][kGroups];
    RowTile panels[kPanels][kStepBlocks];
    uint8_t tail[kLanes * kStepBlocks * 34];  // stored blocks of a panel with fewer than 16 rows: 34 bytes at most
  };
  static_assert(sizeof(Memory) <= kScratchBytes);

  struct Product {
    const WeightRows& w;
    const PairTile* x;
    int n_rows;
    int n_blocks;
    float* out;
    size_t out_stride;
    Memory& memory;

    int n_groups() const { return tiles_of(n_rows, kTileRows); }
    // The first tile of a group of rows in the step that begins with block b.
    const PairTile* x_at(int b, int group) const {
      return x + (static_cast<size_t>(b / kStepBlocks) * static_cast<size_t>(n_groups()) + static_cast<size_t>(group)) *
                     kStepBlocks;
    }
    int blocks_at(int b) const { return least(kStepBlocks, n_blocks - b); }
  };

  // unpacker(row, b, n, tail): of a panel, as TileUnpacker.
  template <class Unpacker>
  static void run(const Product& product, const Unpacker& unpacker) {
    Tiles::configure();
    switch (product.n_groups()) {
      case 1: run_few<1>(product, unpacker); break;
      case 2: run_few<2>(product, unpacker); break;
      default: run_many(product, unpacker); break;
    }
    Tiles::release();
  }

  template <class Unpacker>
  static void run_many(const Product& product, const Unpacker& unpacker) {
    Memory& memory = product.memory;
    const WeightRows& w = product.w;
    for (int group = 0; group < product.n_groups(); group += kGroups) {
      const int n_here = least(kGroups, product.n_groups() - group);
      const int n_at_once = kLanes * (n_here <= kFewGroups ? kFewPanels : kPanels);
      for (int row = w.row_begin; row < w.row_end; row += n_at_once) {
        const int n_panels = tiles_of(least(n_at_once, w.row_end - row), kLanes);
        for (int b = 0; b < product.n_blocks; b += kStepBlocks) {
          const int n = product.blocks_at(b);
          for (int p = 0; p < n_panels; ++p)
            unpacker(row + p * kLanes, b, n, memory.tail).unpack(0, kLanes, memory.panels[p]);
          Tiles::written();
          for (int p = 0; p < n_panels; p += 2)
            multiply_panels(memory, p, n_panels - p, product.x_at(b, group), n_here, n, b == 0);
        }
        Tiles::written();
        store(product, row, n_panels, group, n_here);
      }
    }
  }

  // Panels p and p + 1, as far as there are so many, times all groups of rows.
  static void multiply_panels(Memory& memory, int p, int n_panels, const PairTile* x, int n_groups, int n_blocks,
                              bool first) {
    for (int g = 0; g < n_groups; g += 2, x += 2 * kStepBlocks) {
      const TileProduct product{memory.panels[p], kStepBlocks,        x,       kStepBlocks,
                                n_blocks,         &memory.sums[p][g], kGroups, 1};
      const bool two = n_groups - g > 1;
      if (n_panels > 1) {
        two ? multiply_tiles<Tiles, 2, 2>(product, first) : multiply_tiles<Tiles, 2, 1>(product, first);
      } else {
        two ? multiply_tiles<Tiles, 1, 2>(product, first) : multiply_tiles<Tiles, 1, 1>(product, first);
      }
    }
  }

  template <int kX, class Unpacker>
  static void run_few(const Product& product, const Unpacker& unpacker) {
    constexpr int kMostPanels = kX == 1 ? 4 : 2;  // whose sums there are tiles for
    const WeightRows& w = product.w;
    int row = w.row_begin;
    for (; w.row_end - row > (kMostPanels - 1) * kLanes; row += kMostPanels * kLanes)
      run_few_panels<kMostPanels, kX>(product, unpacker, row);
    for (; w.row_end > row; row += kLanes) run_few_panels<1, kX>(product, unpacker, row);
  }

  // kW panels, kX groups of rows of x; the sums of panel p are (p % 2, p / 2), or of each group (p, group).
  template <int kW, int kX, class Unpacker>
  static void run_few_panels(const Product& product, const Unpacker& unpacker, int row) {
    Memory& memory = product.memory;
    constexpr int kRowSums = kW == 1 ? 1 : 2;
    constexpr int kPairSums = kW == 4 ? 2 : kX;
    static_assert(kX == 1 || kW <= 2);
    zero_sums<Tiles, kRowSums, kPairSums>();
    struct {
      const RowTile* w;
      const PairTile* x;
      int n = 0;
    } before;  // the panel's blocks that come next
    // Block i of panel p.
    const auto multiply = [&]<int p>(int i) {
      if (i >= before.n) return;
      Tiles::template load_rows<p % 2>(before.w[i].rows);
      Tiles::template load_pairs<p / 2>(before.x[i].pairs);
      Tiles::template multiply<p % 2, p / 2>();
      if constexpr (kX == 2) {
        Tiles::template load_pairs<1>(before.x[kStepBlocks + i].pairs);
        Tiles::template multiply<p % 2, 1>();
      }
    };
    int turn = 0;
    const auto unpack = [&]<int p>(int b) {
      if constexpr (p < kW) {
        constexpr int kBefore = (p + kW - 1) % kW;
        RowTile* tiles = memory.panels[turn];
        auto panel = unpacker(row + p * kLanes, b, product.blocks_at(b), memory.tail);
        for (int i = 0; i < kStepBlocks; ++i) {
          panel.unpack(2 * i, 2 * i + 2, tiles);
          multiply.template operator()<kBefore>(i);
        }
        Tiles::written();
        before = {tiles, product.x_at(b, 0), product.blocks_at(b)};
        turn ^= 1;
      }
    };
    static_assert(2 * kStepBlocks == kLanes);
    for (int b = 0; b < product.n_blocks; b += kStepBlocks) {
      unpack.template operator()<0>(b);
      unpack.template operator()<1>(b);
      unpack.template operator()<2>(b);
      unpack.template operator()<3>(b);
    }
    for (int i = 0; i < kStepBlocks; ++i) multiply.template operator()<kW - 1>(i);
    TileProduct sums{};
    sums.sums = memory.sums[0];
    sums.sums_rows_stride = kGroups;
    sums.sums_pairs_stride = kW == 4 ? 2 * kGroups : 1;
    store_sums<Tiles, kRowSums, kPairSums>(sums);
    Tiles::written();
    store(product, row, kW, 0, kX);
  }

  // The sums of n_panels from weight row `row` on and of n_groups of rows of x.
  static void store(const Product& product, int row, int n_panels, int group, int n_groups) {
    for (int g = 0; g < n_groups; ++g) {
      for (int r = 0; r < kTileRows; r += 4) {
        const int first_row = (group + g) * kTileRows + r;
        for (int p = 0; p < n_panels; ++p) {
          const int n_lanes = product.w.row_end - (row + p * kLanes);
          __m512i sums[4];
          load_transposed(PanelRows(reinterpret_cast<const uint8_t*>(product.memory.sums[p][g].rows), 64), 4 * r, sums);
          for (int i = 0; i < 4 && first_row + i < product.n_rows; ++i) {
            float* out = product.out + static_cast<size_t>(first_row + i) * product.out_stride + row + p * kLanes;
            // Past the caches, which are full of what the next products need.
            if (n_groups > kFewGroups && n_lanes >= kLanes && reinterpret_cast<uintptr_t>(out) % 64 == 0) {
              _mm512_stream_si512(reinterpret_cast<__m512i*>(out), sums[i]);
            } else {
              _mm512_mask_storeu_ps(out, lanes_below(n_lanes), _mm512_castsi512_ps(sums[i]));
            }
          }
        }
      }
    }
    _mm_sfence();
  }
};

}  // namespace
}  // namespace gemma::cpu
