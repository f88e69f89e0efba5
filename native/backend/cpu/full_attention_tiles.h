// Attention of a head without mask or cache on a processor's matrix tiles, in bfloat16 with float32 sums. Internal to
// each file that includes it; tiles_avx512.h tells of the tiles.
//
// As in the other fast kernel, rows of q lie in the lanes, so that maxima, weights and scales are plain vectors, and
// means are taken away first (kernels.h says why). Of two products, both with the queries as "weights" of the tiles:
//   scores[key][row] = keys[key][dimension] . q[dimension][row]
//   out[dimension][row] = values[dimension][key] . weights[key][row]
// What the mean of q adds to a key's score takes part as three dimensions more (a float is three bfloat16), for which q
// is 1; the sum of a row's rounded weights, which divides, is one more column of the values, which is 1.
#pragma once

#include <cstring>

#include "backend/cpu/full_attention.h"
#include "backend/cpu/tiles_avx512.h"

namespace gemma::cpu {
namespace {

template <class Tiles>
class TileAttention {
 public:
  static size_t packed_bytes(int n_rows, int head_dim) { return Packed(nullptr, n_rows, head_dim).bytes; }

  static void pack(const FullAttentionHead& head, const Scratch& scratch) {
    const Packed packed(head.packed, head.n_rows, head.head_dim);
    float* k_mean = reinterpret_cast<float*>(scratch.data);
    float* row = k_mean + kMostDims;
    mean_of(head.q, head, packed.q_mean);
    mean_of(head.k, head, k_mean);
    mean_of(head.v, head, packed.v_mean);
    for (int p = 0; p < packed.n_keys; ++p) {
      float bias[3] = {kNever, 0, 0};
      std::memset(row, 0, kMostDims * sizeof(float));
      if (p < head.n_rows) {
        const float* k = head.k + static_cast<size_t>(p) * head.stride;
        __m512 sum = _mm512_setzero_ps();
        for (int j = 0; j < head.head_dim; j += kLanes) {
          const __m512 difference = difference_at(k, k_mean, j, head.head_dim);
          _mm512_store_ps(row + j, difference);
          sum = _mm512_fmadd_ps(_mm512_load_ps(packed.q_mean + j), difference, sum);
        }
        split(_mm512_reduce_add_ps(sum), bias);
      }
      std::memcpy(row + head.head_dim, bias, sizeof bias);
      RowTile* tile = packed.keys + static_cast<size_t>(p / kTileRows) * packed.n_steps;
      for (size_t s = 0; s < packed.n_steps; ++s)
        _mm512_store_si512(tile[s].rows[p % kTileRows], row_of(row + s * kTileColumns));
    }
    pack_values(head, packed);
  }

  static void attend(const FullAttentionHead& head, int row_begin, int row_end, const Scratch& scratch) {
    const Packed packed(head.packed, head.n_rows, head.head_dim);
    Memory& memory = *reinterpret_cast<Memory*>(scratch.data);
    const int n_pairs = tiles_of(row_end - row_begin, 2 * kLanes);
    for (int g = 0; g < 2 * n_pairs; ++g) pack_queries(head, packed, row_begin + g * kLanes, row_end, memory.q[g]);
    Tiles::configure();
    Tiles::written();
    for (int first = 0; first < packed.n_keys; first += kTileKeys) {
      for (int pair = 0; pair < n_pairs; ++pair) attend_tile(packed, first, pair, head.scale * kLog2E, memory);
    }
    Tiles::release();
    for (int r = 0; r < row_end - row_begin; ++r) {
      const SumTile* sums = memory.pairs[r / (2 * kLanes)].out + r / kLanes % 2;
      const auto sum_of = [&](int j) { return sums[2 * (j / kTileRows)].rows[j % kTileRows][r % kLanes]; };
      const float factor = 1.0f / sum_of(head.head_dim);
      float* out = head.out + static_cast<size_t>(row_begin + r) * head.stride;
      for (int j = 0; j < head.head_dim; ++j) out[j] = sum_of(j) * factor + packed.v_mean[j];
    }
  }

  static constexpr FullAttention kKernel = {packed_bytes, pack, attend};

 private:
  static constexpr int kTileKeys = 256;
  static constexpr int kKeyGroups = kTileKeys / kTileRows;
  static constexpr int kKeyBlocks = kTileKeys / kTileColumns;
  static constexpr int kMostSteps = (kMaxFullHeadDim + 3 + kTileColumns - 1) / kTileColumns;
  static constexpr int kMostDims = kMostSteps * kTileColumns;
  static constexpr int kMostGroups = (kMaxFullHeadDim + 1 + kTileRows - 1) / kTileRows;
  static constexpr float kNever = -1e30f;  // the score of a key that does not exist

  struct Packed {
    int n_keys;       // n_rows rounded up to whole tiles of keys
    size_t n_steps;   // of 32 dimensions
    size_t n_groups;  // of 16 dimensions of the values
    RowTile* keys;    // [n_keys / 16][n_steps]
    RowTile* values;  // [n_keys / kTileKeys][n_groups][kKeyBlocks]
    float* q_mean;    // [kMostDims], as v_mean
    float* v_mean;
    size_t bytes;

    Packed(std::byte* memory, int n_rows, int head_dim) {
      BumpAllocator allocator(memory);
      n_keys = tiles_of(n_rows, kTileKeys) * kTileKeys;
      n_steps = static_cast<size_t>(tiles_of(head_dim + 3, kTileColumns));
      n_groups = static_cast<size_t>(tiles_of(head_dim + 1, kTileRows));
      keys = allocator.take<RowTile>(static_cast<size_t>(n_keys / kTileRows) * n_steps);
      values = allocator.take<RowTile>(static_cast<size_t>(n_keys / kTileColumns) * n_groups);
      q_mean = allocator.take<float>(kMostDims);
      v_mean = allocator.take<float>(kMostDims);
      bytes = allocator.used();
    }
  };

  // Of two groups of 16 rows.
  struct Pair {
    SumTile out[2 * kMostGroups];  // [groups of dimensions][2]
    __m512 top[2];                 // largest scores so far
  };
  struct Memory {
    PairTile q[kFullAttentionRows / kLanes][kMostSteps];
    Pair pairs[kFullAttentionRows / kLanes / 2];
    SumTile scores[2 * kKeyGroups];    // [groups of keys][2]
    PairTile weights[2 * kKeyBlocks];  // [2][blocks of keys]
  };
  static_assert(sizeof(Memory) <= kScratchBytes);

  static __m512 difference_at(const float* row, const float* mean, int j, int head_dim) {
    const __mmask16 lanes = lanes_below(head_dim - j);
    return _mm512_maskz_sub_ps(lanes, _mm512_maskz_loadu_ps(lanes, row + j), _mm512_load_ps(mean + j));
  }
  static __m512i row_of(const float* values) {
    return load_32<Float32>(reinterpret_cast<const uint8_t*>(values), 0, kTileColumns);
  }

  static void mean_of(const float* rows, const FullAttentionHead& head, float* mean) {
    const __m512 inverse = _mm512_set1_ps(1.0f / static_cast<float>(head.n_rows));
    for (int j = 0; j < kMostDims; j += kLanes) {
      __m512 sum = _mm512_setzero_ps();
      for (int p = 0; p < head.n_rows && j < head.head_dim; ++p) {
        const float* row = rows + static_cast<size_t>(p) * head.stride;
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes_below(head.head_dim - j), row + j));
      }
      _mm512_store_ps(mean + j, _mm512_mul_ps(sum, inverse));
    }
  }

  // Three numbers of 8 significant bits that together are `value` but for what float32 cannot tell.
  static void split(float value, float parts[3]) {
    for (int i = 0; i < 3; ++i) {
      const __m128i half = reinterpret_cast<__m128i>(_mm_cvtneps_pbh(_mm_set_ss(value)));
      parts[i] = _mm_cvtss_f32(_mm_castsi128_ps(_mm_slli_epi32(half, 16)));
      value -= parts[i];
    }
  }

  static void pack_values(const FullAttentionHead& head, const Packed& packed) {
    RowTile* out = packed.values;
    for (int tile = 0; tile < packed.n_keys; tile += kTileKeys) {
      for (int d = 0; d < static_cast<int>(packed.n_groups) * kTileRows; d += kTileRows) {
        const int column_of_ones = head.head_dim - d;
        const __mmask16 ones = column_of_ones < kLanes ? static_cast<__mmask16>(1u << column_of_ones) : __mmask16{0};
        const auto value_at = [&](int p) {
          if (p >= head.n_rows) return _mm512_setzero_ps();
          const float* v = head.v + static_cast<size_t>(p) * head.stride;
          return _mm512_mask_mov_ps(difference_at(v, packed.v_mean, d, head.head_dim), ones, _mm512_set1_ps(1));
        };
        for (int block = tile; block < tile + kTileKeys; block += kTileColumns, ++out) {
          PairTile pairs;
          for (int j = 0; j < 16; ++j)
            _mm512_store_si512(pairs.pairs[j], bf16_pairs(value_at(block + 2 * j), value_at(block + 2 * j + 1)));
          transpose_pairs(&pairs, out);
        }
      }
    }
  }

  // 16 rows of q from first_row on, zero from row_end on.
  static void pack_queries(const FullAttentionHead& head, const Packed& packed, int first_row, int row_end,
                           PairTile* out) {
    RowTile tiles[kMostSteps];
    for (int r = 0; r < kLanes; ++r) {
      alignas(64) float row[kMostDims] = {};
      if (first_row + r < row_end) {
        const float* q = head.q + static_cast<size_t>(first_row + r) * head.stride;
        for (int j = 0; j < head.head_dim; j += kLanes)
          _mm512_store_ps(row + j, difference_at(q, packed.q_mean, j, head.head_dim));
        for (int i = 0; i < 3; ++i) row[head.head_dim + i] = 1.0f;
      }
      for (size_t s = 0; s < packed.n_steps; ++s) _mm512_store_si512(tiles[s].rows[r], row_of(row + s * kTileColumns));
    }
    for (size_t s = 0; s < packed.n_steps; ++s) transpose_pairs(&tiles[s], &out[s]);
  }

  // The keys from `first` on for two groups of rows.
  static void attend_tile(const Packed& packed, int first, int pair, float to_log2, Memory& memory) {
    const PairTile* q = memory.q[2 * pair];
    const RowTile* keys = packed.keys + static_cast<size_t>(first / kTileRows) * packed.n_steps;
    for (size_t g = 0; g < kKeyGroups; g += 2, keys += 2 * packed.n_steps) {
      multiply_tiles<Tiles, 2, 2>(
          {keys, packed.n_steps, q, kMostSteps, static_cast<int>(packed.n_steps), memory.scores + 2 * g, 2, 1}, true);
    }
    Tiles::written();
    Pair& sums = memory.pairs[pair];
    for (int i = 0; i < 2; ++i) weigh(first == 0, i, to_log2, packed, sums, memory);
    Tiles::written();
    const RowTile* values = packed.values + static_cast<size_t>(first / kTileColumns) * packed.n_groups;
    for (size_t d = 0; d < packed.n_groups; d += 2) {
      const TileProduct product{
          values + d * kKeyBlocks, kKeyBlocks, memory.weights, kKeyBlocks, kKeyBlocks, sums.out + 2 * d, 2, 1};
      packed.n_groups - d > 1 ? multiply_tiles<Tiles, 2, 2>(product, first == 0)
                              : multiply_tiles<Tiles, 1, 2>(product, first == 0);
    }
  }

  // Weights of 16 rows from their scores; sums so far follow the largest score.
  static void weigh(bool is_first, int i, float to_log2, const Packed& packed, Pair& sums, Memory& memory) {
    const __m512 before = is_first ? _mm512_set1_ps(2 * kNever) : sums.top[i];
    // A NaN score is dropped here; it still reaches the sum through its weight.
    __m512 top[4] = {before, before, before, before};
    for (int g = 0; g < kKeyGroups; ++g) {
      const SumTile& scores = memory.scores[2 * g + i];
#pragma GCC unroll 16
      for (int p = 0; p < kTileRows; ++p) top[p % 4] = _mm512_max_ps(_mm512_load_ps(scores.rows[p]), top[p % 4]);
    }
    sums.top[i] = _mm512_max_ps(_mm512_max_ps(top[0], top[1]), _mm512_max_ps(top[2], top[3]));
    if (!is_first && _mm512_cmp_ps_mask(sums.top[i], before, _CMP_NEQ_UQ) != 0) {
      const __m512 rescale = exp2_of(_mm512_mul_ps(_mm512_sub_ps(before, sums.top[i]), _mm512_set1_ps(to_log2)));
      for (size_t d = 0; d < packed.n_groups; ++d) {
        for (float* row : sums.out[2 * d + static_cast<size_t>(i)].rows)
          _mm512_store_ps(row, _mm512_mul_ps(_mm512_load_ps(row), rescale));
      }
    }
    const __m512 factor = _mm512_set1_ps(to_log2);
    const __m512 shift = _mm512_mul_ps(sums.top[i], factor);
    for (int g = 0; g < kKeyGroups; ++g) {
      const SumTile& scores = memory.scores[2 * g + i];
      const auto weight = [&](int p) {
        return exp2_of(_mm512_fmsub_ps(_mm512_load_ps(scores.rows[p]), factor, shift));
      };
      uint32_t (*pairs)[kLanes] = memory.weights[i * kKeyBlocks + g / 2].pairs + g % 2 * 8;
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) _mm512_store_si512(pairs[j], bf16_pairs(weight(2 * j), weight(2 * j + 1)));
    }
  }
};

}  // namespace
}  // namespace gemma::cpu
