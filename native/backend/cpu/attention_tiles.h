// Attention of a prompt's rows over the paged cache on a processor's matrix tiles: a segment of keys at a time, so that
// there is no running softmax. Internal to each file that includes it; tiles_avx512.h tells of the tiles.
//
//   scores[key][row] = keys[key][dimension] . q[dimension][row]
//   out[row][dimension] = weights[row][key] . values[key][dimension]
// Queries and keys are sums of two bfloat16 each (what the cache holds in 16 bits or fewer is exact that way), of whose
// products the smallest, 2^-16 of the whole, is left out; an error of a score would be one of its exponential. Weights
// and values are rounded to bfloat16, as the result is before the product that follows.
#pragma once

#include "backend/cpu/kv_rows_avx512.h"
#include "backend/cpu/small_math.h"
#include "backend/cpu/tiles_avx512.h"

namespace gemma::cpu {
namespace {

template <class Tiles>
class TileSegment {
 public:
  static void attend(const AttentionTile& tile, const Scratch& scratch) {
    switch (tile.type) {
      case KvType::kF32: return attend_as<LoadF32>(tile, scratch);
      case KvType::kF16: return attend_as<LoadF16>(tile, scratch);
      case KvType::kQ8_0: return attend_as<LoadQ8>(tile, scratch);
    }
  }

 private:
  static constexpr int kRowGroups = kBulkAttentionRows / kLanes;
  static constexpr int kSteps = kMaxBulkHeadDim / kTileColumns;
  static constexpr int kPages = kSegment / kPagePositions;
  static constexpr int kPageGroups = kPagePositions / kTileRows;  // of 16 keys
  static_assert(kPagePositions == kTileColumns);

  struct Memory {
    PairTile q[kRowGroups][2][kSteps];     // high and low parts, times log2(e)
    RowTile keys[kPageGroups][2][kSteps];  // of one page
    SumTile scores[kPages][kPageGroups][kRowGroups];
    RowTile weights[kRowGroups][kPages];
    PairTile values[2][kPages];  // 32 dimensions
    SumTile out[kRowGroups][2];
    alignas(64) int32_t from[kRowGroups][kLanes];  // each row's span, from the segment's first position on
    alignas(64) int32_t to[kRowGroups][kLanes];
  };
  static_assert(2 * sizeof(Memory) <= kScratchBytes);  // what the caller keeps there needs less than the other half

  // The pages that rows see, in order.
  struct Pages {
    int n = 0;
    int index[kPages];              // in the segment
    const std::byte* keys[kPages];  // of the head
    const std::byte* values[kPages];
  };

  template <class Load>
  static void attend_as(const AttentionTile& tile, const Scratch& scratch) {
    Memory& memory = *reinterpret_cast<Memory*>(scratch.data);
    const int head_dim = tile.head_dim;
    const int n_groups = tiles_of(tile.n_rows, kLanes);
    const Pages pages = find_pages(tile, memory);
    pack_queries(tile, memory);
    Tiles::configure();
    for (int i = 0; i < pages.n; ++i) {
      load_keys<Load>(pages.keys[i], tile, memory);
      Tiles::written();
      for (int g = 0; g < n_groups; g += 2)
        n_groups - g > 1 ? score<2>(memory, i, g, head_dim) : score<1>(memory, i, g, head_dim);
    }
    Tiles::written();
    for (int g = 0; g < n_groups; ++g) weigh(tile, pages, g, memory);
    for (int d = 0; d < head_dim; d += 2 * kLanes) {
      for (int i = 0; i < pages.n; ++i) load_values<Load>(pages.values[i], tile, d, i, memory);
      Tiles::written();
      for (int g = 0; g < n_groups; g += 2) {
        const TileProduct product{memory.weights[g], kPages, memory.values[0], kPages, pages.n, memory.out[g], 2, 1};
        n_groups - g > 1 ? multiply_tiles<Tiles, 2, 2>(product, true) : multiply_tiles<Tiles, 1, 2>(product, true);
      }
      Tiles::written();
      for (int r = 0; r < tile.n_rows; ++r) {
        for (int part = 0; part < 2; ++part) {
          const int j = d + part * kLanes;
          _mm512_mask_storeu_ps(tile.out[r] + j, lanes_below(head_dim - j),
                                _mm512_load_ps(memory.out[r / kLanes][part].rows[r % kLanes]));
        }
      }
    }
    Tiles::release();
  }

  static Pages find_pages(const AttentionTile& tile, Memory& memory) {
    int begin = kMaxInt;
    uint32_t used = 0;
    for (int r = 0; r < tile.n_rows; ++r) {
      if (tile.spans[r].begin < tile.spans[r].end) begin = least(begin, tile.spans[r].begin);
    }
    const int base = begin / kSegment * kSegment;
    for (int r = 0; r < kRowGroups * kLanes; ++r) {
      const bool sees = r < tile.n_rows && tile.spans[r].begin < tile.spans[r].end;
      const int from = sees ? tile.spans[r].begin - base : 0;
      const int to = sees ? tile.spans[r].end - base : 0;
      memory.from[r / kLanes][r % kLanes] = from;
      memory.to[r / kLanes][r % kLanes] = to;
      for (int p = from / kPagePositions; p * kPagePositions < to; ++p) used |= 1u << p;
    }
    Pages pages;
    for (int p = 0; p < kPages; ++p) {
      if ((used >> p & 1u) == 0) continue;
      const std::byte* page = tile.pages[base / kPagePositions + p];
      pages.index[pages.n] = p;
      pages.keys[pages.n] = page + tile.k_offset;
      pages.values[pages.n] = page + tile.v_offset;
      ++pages.n;
    }
    return pages;
  }

  // 32 floats as the sum of two bfloat16 each.
  static void split(__m512 low, __m512 high, void* rounded, void* rest) {
    const __m512i first = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    const auto left = [](__m512 value, __m256i halves) {
      return _mm512_sub_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)));
    };
    const __m512 low_left = left(low, _mm512_castsi512_si256(first));
    const __m512 high_left = left(high, _mm512_extracti64x4_epi64(first, 1));
    _mm512_store_si512(rounded, first);
    _mm512_store_si512(rest, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high_left, low_left)));
  }

  static void pack_queries(const AttentionTile& tile, Memory& memory) {
    const int head_dim = tile.head_dim;
    const int n_steps = tiles_of(head_dim, kTileColumns);
    const __m512 to_log2 = _mm512_set1_ps(kLog2E);
    for (int first = 0; first < tile.n_rows; first += kLanes) {
      for (int s = 0; s < n_steps; ++s) {
        RowTile rounded;
        RowTile rest;
        for (int r = 0; r < kLanes; ++r) {
          const auto part = [&](int j) {
            if (first + r >= tile.n_rows) return _mm512_setzero_ps();
            return _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes_below(head_dim - j), tile.q[first + r] + j), to_log2);
          };
          split(part(s * kTileColumns), part(s * kTileColumns + kLanes), rounded.rows[r], rest.rows[r]);
        }
        transpose_pairs(&rounded, &memory.q[first / kLanes][0][s]);
        transpose_pairs(&rest, &memory.q[first / kLanes][1][s]);
      }
    }
  }

  template <class Load>
  static void load_keys(const std::byte* keys, const AttentionTile& tile, Memory& memory) {
    for (int p = 0; p < kPagePositions; ++p) {
      const std::byte* row = keys + static_cast<size_t>(p) * tile.row_bytes;
      RowTile(*out)[kSteps] = memory.keys[p / kTileRows];
      for (int s = 0; s < tiles_of(tile.head_dim, kTileColumns); ++s) {
        const int j = s * kTileColumns;
        split(load_part<Vector512, Load>(row, j, tile.head_dim),
              load_part<Vector512, Load>(row, j + kLanes, tile.head_dim), out[0][s].rows[p % kTileRows],
              out[1][s].rows[p % kTileRows]);
      }
    }
  }

  // Scores of page i's keys and of kW groups of rows from g on.
  template <int kW>
  static void score(Memory& memory, int i, int g, int head_dim) {
    Tiles::template zero<0, 0>();
    Tiles::template zero<1, 0>();
    if constexpr (kW == 2) {
      Tiles::template zero<0, 1>();
      Tiles::template zero<1, 1>();
    }
    const auto load_keys_of = [&](int part, int s) {
      Tiles::template load_rows<0>(memory.keys[0][part][s].rows);
      Tiles::template load_rows<1>(memory.keys[1][part][s].rows);
    };
    const auto load_rows_of = [&](int part, int s) {
      Tiles::template load_pairs<0>(memory.q[g][part][s].pairs);
      if constexpr (kW == 2) Tiles::template load_pairs<1>(memory.q[g + 1][part][s].pairs);
    };
    const auto multiply = [] {
      Tiles::template multiply<0, 0>();
      Tiles::template multiply<1, 0>();
      if constexpr (kW == 2) {
        Tiles::template multiply<0, 1>();
        Tiles::template multiply<1, 1>();
      }
    };
    for (int s = 0; s < tiles_of(head_dim, kTileColumns); ++s) {
      load_keys_of(0, s);
      load_rows_of(1, s);
      multiply();
      load_rows_of(0, s);
      multiply();
      load_keys_of(1, s);
      multiply();
    }
    Tiles::template store_sums<0, 0>(memory.scores[i][0][g].rows);
    Tiles::template store_sums<1, 0>(memory.scores[i][1][g].rows);
    if constexpr (kW == 2) {
      Tiles::template store_sums<0, 1>(memory.scores[i][0][g + 1].rows);
      Tiles::template store_sums<1, 1>(memory.scores[i][1][g + 1].rows);
    }
  }

  // Maximum, weights and their sum of 16 rows.
  static void weigh(const AttentionTile& tile, const Pages& pages, int g, Memory& memory) {
    const __m512i from = _mm512_load_si512(memory.from[g]);
    const __m512i to = _mm512_load_si512(memory.to[g]);
    const auto sees = [&](int position) {
      const __m512i p = _mm512_set1_epi32(position);
      return _mm512_mask_cmpgt_epi32_mask(_mm512_cmple_epi32_mask(from, p), to, p);
    };
    const __m512 never = _mm512_set1_ps(-kInfinity);
    __m512 tops[4] = {never, never, never, never};
    for (int i = 0; i < pages.n; ++i) {
      for (int p = 0; p < kPagePositions; ++p) {
        // A NaN score is dropped here; it still reaches the sum through its weight.
        const __m512 score = _mm512_load_ps(memory.scores[i][p / kTileRows][g].rows[p % kTileRows]);
        tops[p % 4] = _mm512_mask_max_ps(tops[p % 4], sees(pages.index[i] * kPagePositions + p), score, tops[p % 4]);
      }
    }
    const __m512 top = _mm512_max_ps(_mm512_max_ps(tops[0], tops[1]), _mm512_max_ps(tops[2], tops[3]));
    const __m512 shift = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(top, never, _CMP_NEQ_UQ), top);
    const __m512bh ones = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f803f80));
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < pages.n; ++i) {
      PairTile pairs;
#pragma GCC unroll 4
      for (int j = 0; j < 16; ++j) {
        const auto weight = [&](int p) {
          const __m512 score = _mm512_load_ps(memory.scores[i][p / kTileRows][g].rows[p % kTileRows]);
          return _mm512_maskz_mov_ps(sees(pages.index[i] * kPagePositions + p), exp2_of(_mm512_sub_ps(score, shift)));
        };
        const __m512i rounded = bf16_pairs(weight(2 * j), weight(2 * j + 1));
        // The sum is of the weights as they will be used.
        sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(rounded), ones);
        _mm512_store_si512(pairs.pairs[j], rounded);
      }
      transpose_pairs(&pairs, &memory.weights[g][i]);
    }
    const __mmask16 rows = lanes_below(tile.n_rows - g * kLanes);
    _mm512_mask_storeu_ps(tile.max + g * kLanes, rows, _mm512_mul_ps(top, _mm512_set1_ps(kLn2)));
    _mm512_mask_storeu_ps(tile.sum + g * kLanes, rows, sum);
  }

  // Dimensions d to d + 31 of a page's values.
  template <class Load>
  static void load_values(const std::byte* values, const AttentionTile& tile, int d, int i, Memory& memory) {
    for (int j = 0; j < 16; ++j) {
      const std::byte* even = values + static_cast<size_t>(2 * j) * tile.row_bytes;
      const std::byte* odd = even + tile.row_bytes;
      for (int part = 0; part < 2; ++part) {
        const int column = d + part * kLanes;
        _mm512_store_si512(memory.values[part][i].pairs[j],
                           bf16_pairs(load_part<Vector512, Load>(even, column, tile.head_dim),
                                      load_part<Vector512, Load>(odd, column, tile.head_dim)));
      }
    }
  }
};

}  // namespace
}  // namespace gemma::cpu
