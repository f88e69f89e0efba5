// Products with weight matrices: out[n, n_out] = x[n, n_in] * W^T.
//   linear_one, linear_few   few rows: a weight row's blocks in kSegments lanes, dot products of four bytes
//   linear_tiled             many rows: tiles of 64 x 32 results, matrix instructions on shared memory
//   linear_float             F32, F16, BF16 weights and float x
//   linear_float_tiled       F16, BF16 weights and float x of prompts (Bulk): tiles, matrix instructions
// The first three add up a result in the order of kernel_list.h and the others in one of their own, so a row is the
// same to the bit in every batch.
#pragma once

#include "backend/gpu/blocks.h"
#include "backend/gpu/float_matrix.h"

namespace gemma::gpu::GPU_CHIP_NAMESPACE {

// First block of a segment; segment kSegments: the end.
GPU_FUNCTION int segment_begin(int n_blocks, int segment) {
  const int longer = n_blocks % kSegments;
  return segment * (n_blocks / kSegments) + (segment < longer ? segment : longer);
}

// What a block has to do: its job, and its number in there.
struct LinearPart {
  Matrix matrix;
  float* out;
  QuantizedX x;
  int n;
  int block;
};
GPU_FUNCTION LinearPart part_of_block(const LinearArguments& a) {
  const bool is_second = block_x() >= a.end_blocks[0];
  const bool is_third = block_x() >= a.end_blocks[1];
  // Not by an index: arguments would have to be copied to where one can be used.
  const LinearJobArguments job = is_third ? a.jobs[2] : is_second ? a.jobs[1] : a.jobs[0];
  const int first = is_third ? a.end_blocks[1] : is_second ? a.end_blocks[0] : 0;
  return {job.matrix, job.out, a.x, a.n, block_x() - first};
}

template <int kType, int kRows>
GPU_FUNCTION void multiply_rows(const LinearPart& a) {
  constexpr PlaneLayout kLayout = plane_layout(kType);
  const int n_blocks = a.matrix.n_in / 32;
  const int lane = thread_index() % kLanes;
  const int segment = lane % kSegments;
  const int row = a.block * kRowsOfLinear + thread_index() / kSegments;
  const int stored_row = row < a.matrix.n_out ? row : a.matrix.n_out - 1;
  const int first_x = block_y() * kRows;
  float sums[kRows] = {};
  const int end = segment_begin(n_blocks, segment + 1);
  for (int b = segment_begin(n_blocks, segment); b < end; ++b) {
    const Block block = load_block<kType>(a.matrix, stored_row, b);
    GPU_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int x_row = first_x + r < a.n ? first_x + r : a.n - 1;
      const size_t at = static_cast<size_t>(x_row) * static_cast<size_t>(n_blocks) + static_cast<size_t>(b);
      const uint4* x = reinterpret_cast<const uint4*>(a.x.q) + 2 * at;
      const uint4 low = load(x);
      const uint4 high = load(x + 1);
      const unsigned words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      int dots[2] = {0, 0};
      GPU_UNROLL
      for (int w = 0; w < 8; ++w) dots[w / 4] = dot4(block.q[w], static_cast<int>(words[w]), dots[w / 4]);
      const float d = load(a.x.d + at);
      float sum = sums[r];
      if constexpr (kLayout.halves) {
        GPU_UNROLL
        for (int h = 0; h < 2; ++h) {
          sum = fmaf(static_cast<float>(dots[h]), block.d[h] * d, sum);
          if constexpr (kLayout.has_min) sum = fmaf(block.m[h], load(a.x.half_sums + 2 * at + h), sum);
        }
      } else {
        sum = fmaf(static_cast<float>(dots[0] + dots[1]), block.d[0] * d, sum);
        if constexpr (kLayout.has_min) sum = fmaf(block.m[0], load(a.x.sums + at), sum);
      }
      sums[r] = sum;
    }
  }
  GPU_UNROLL
  for (int r = 0; r < kRows; ++r) {
    float total = 0;
    GPU_UNROLL
    for (int s = 0; s < kSegments; ++s) total += shuffle(sums[r], lane / kSegments * kSegments + s);
    if (segment == 0 && row < a.matrix.n_out && first_x + r < a.n)
      a.out[static_cast<size_t>(first_x + r) * static_cast<size_t>(a.matrix.n_out) + static_cast<size_t>(row)] = total;
  }
}

GPU_KERNEL(linear_one)(const LinearArguments arguments) {
  const LinearPart a = part_of_block(arguments);
  for_type(a.matrix.type, [&](auto tag) { multiply_rows<decltype(tag)::value, 1>(a); });
}

GPU_KERNEL(linear_few)(const LinearArguments arguments) {
  const LinearPart a = part_of_block(arguments);
  for_type(a.matrix.type, [&](auto tag) { multiply_rows<decltype(tag)::value, kFewRows>(a); });
}

constexpr int kTileK = 64;                // two blocks at a time
constexpr int kTileStride = kTileK + 16;  // no two rows of a fragment in the same bank

// What a block of linear_tiled holds of its rows of x and of the matrix.
struct TileX {
  int8_t q[kTileX * kTileStride];
  float d[kTileX][2];
  float sums[kTileX][2][2];  // of half blocks; of the block first where the type has no halves
};
struct TileWeights {
  int8_t q[kTileOut * kTileStride];
  float d[kTileOut][2][2];
  float m[kTileOut][2][2];
};

template <bool kHalves>
GPU_FUNCTION void fetch_x(const LinearPart& a, TileX& tile, int first_x, int first_block) {
  const int n_blocks = a.matrix.n_in / 32;
  const int t = thread_index();
  {  // 32 rows of 64 bytes: one copy for each thread
    const int row = t / 4;
    const int x_row = first_x + row < a.n ? first_x + row : a.n - 1;
    const int block = first_block + t % 4 / 2 < n_blocks ? first_block + t % 4 / 2 : n_blocks - 1;
    copy16_async(&tile.q[row * kTileStride + 16 * (t % 4)],
                 a.x.q + static_cast<size_t>(x_row) * static_cast<size_t>(a.matrix.n_in) + 32 * block + 16 * (t % 2));
    commit_copies();
  }
  if (t < 2 * kTileX) {
    const int row = t / 2;
    const int x_row = first_x + row < a.n ? first_x + row : a.n - 1;
    const int block = first_block + t % 2 < n_blocks ? first_block + t % 2 : n_blocks - 1;
    const size_t at = static_cast<size_t>(x_row) * static_cast<size_t>(n_blocks) + static_cast<size_t>(block);
    tile.d[row][t % 2] = load(a.x.d + at);
    if constexpr (kHalves) {
      tile.sums[row][t % 2][0] = load(a.x.half_sums + 2 * at);
      tile.sums[row][t % 2][1] = load(a.x.half_sums + 2 * at + 1);
    } else {
      tile.sums[row][t % 2][0] = load(a.x.sums + at);
    }
  }
}

template <int kType>
GPU_FUNCTION void fetch_weights(const LinearPart& a, TileWeights& tile, int first_row, int first_block) {
  const int n_blocks = a.matrix.n_in / 32;
  const int row = thread_index() / 2;  // 64 rows of two blocks: one block for each thread
  const int part = thread_index() % 2;
  const int stored_row = first_row + row < a.matrix.n_out ? first_row + row : a.matrix.n_out - 1;
  const int b = first_block + part < n_blocks ? first_block + part : n_blocks - 1;
  const Block block = load_block<kType>(a.matrix, stored_row, b);
  uint4* q = reinterpret_cast<uint4*>(&tile.q[row * kTileStride + 32 * part]);
  q[0] = {static_cast<unsigned>(block.q[0]), static_cast<unsigned>(block.q[1]), static_cast<unsigned>(block.q[2]),
          static_cast<unsigned>(block.q[3])};
  q[1] = {static_cast<unsigned>(block.q[4]), static_cast<unsigned>(block.q[5]), static_cast<unsigned>(block.q[6]),
          static_cast<unsigned>(block.q[7])};
  GPU_UNROLL
  for (int h = 0; h < 2; ++h) {
    tile.d[row][part][h] = block.d[h];
    tile.m[row][part][h] = block.m[h];
  }
}

template <bool kHalves, bool kMin>
GPU_FUNCTION void multiply_tiles(const LinearPart& a, TileWeights& weights, TileX* x) {
  constexpr int kHardwareWarps = kThreads / GPU_WARP;
  constexpr int kTilesX = kTileX / 16;
  constexpr int kTiles = kTileOut / 16 * kTilesX / kHardwareWarps;  // of a warp
  const int lane = thread_index() % GPU_WARP;
  const int warp = thread_index() / GPU_WARP;
  const int n_blocks = a.matrix.n_in / 32;
  const int first_row = a.block * kTileOut;
  const int first_x = block_y() * kTileX;
  float totals[kTiles][kTileElements] = {};
  float sums[kTiles][kTileElements] = {};
  int segment = 1;

  fetch_x<kHalves>(a, x[0], first_x, 0);
  for (int first = 0, buffer = 0; first < n_blocks; first += 2, buffer ^= 1) {
    for_type(a.matrix.type, [&](auto tag) {
      constexpr PlaneLayout kLayout = plane_layout(decltype(tag)::value);
      if constexpr (kLayout.halves == kHalves && kLayout.has_min == kMin)
        fetch_weights<decltype(tag)::value>(a, weights, first_row, first);
    });
    wait_copies();
    block_barrier();
    if (first + 2 < n_blocks) fetch_x<kHalves>(a, x[buffer ^ 1], first_x, first + 2);  // while this is multiplied
    for (int part = 0; part < 2 && first + part < n_blocks; ++part) {
      while (segment < kSegments && segment_begin(n_blocks, segment) <= first + part) {
        GPU_UNROLL
        for (int i = 0; i < kTiles; ++i) {
          GPU_UNROLL
          for (int r = 0; r < kTileElements; ++r) {
            totals[i][r] += sums[i][r];
            sums[i][r] = 0;
          }
        }
        ++segment;
      }
      GPU_UNROLL
      for (int i = 0; i < kTiles; ++i) {
        const int tile = warp * kTiles + i;
        const int tile_out = tile / kTilesX * 16;
        const int tile_x = tile % kTilesX * 16;
        const int8_t* left = &weights.q[tile_out * kTileStride + 32 * part];
        const int8_t* right = &x[buffer].q[tile_x * kTileStride + 32 * part];
        GPU_UNROLL
        for (int h = 0; h < (kHalves ? 2 : 1); ++h) {
          int dots[kTileElements] = {};
          if constexpr (kHalves) {
            multiply16(dots, left + 16 * h, kTileStride, right + 16 * h, kTileStride, lane);
          } else {
            multiply32(dots, left, kTileStride, right, kTileStride, lane);
          }
          GPU_UNROLL
          for (int r = 0; r < kTileElements; ++r) {
            const int row = tile_out + tile_row(lane, r);
            const int col = tile_x + tile_col(lane, r);
            const float d = weights.d[row][part][h] * x[buffer].d[col][part];
            sums[i][r] = fmaf(static_cast<float>(dots[r]), d, sums[i][r]);
            if constexpr (kMin) sums[i][r] = fmaf(weights.m[row][part][h], x[buffer].sums[col][part][h], sums[i][r]);
          }
        }
      }
    }
    block_barrier();
  }
  GPU_UNROLL
  for (int i = 0; i < kTiles; ++i) {
    const int tile = warp * kTiles + i;
    GPU_UNROLL
    for (int r = 0; r < kTileElements; ++r) {
      const int row = first_row + tile / kTilesX * 16 + tile_row(lane, r);
      const int x_row = first_x + tile % kTilesX * 16 + tile_col(lane, r);
      if (row < a.matrix.n_out && x_row < a.n)
        a.out[static_cast<size_t>(x_row) * static_cast<size_t>(a.matrix.n_out) + static_cast<size_t>(row)] =
            totals[i][r] + sums[i][r];
    }
  }
}

GPU_KERNEL(linear_tiled)(const LinearArguments arguments) {
  // To choose among jobs would cost registers, which are few here.
  const LinearPart a{arguments.jobs[0].matrix, arguments.jobs[0].out, arguments.x, arguments.n, block_x()};
  GPU_SHARED(TileWeights, weights, [1]);
  GPU_SHARED(TileX, x, [2]);
  const PlaneLayout layout = plane_layout(a.matrix.type);
  if (layout.halves) {
    if (layout.has_min) {
      multiply_tiles<true, true>(a, weights[0], x);
    } else {
      multiply_tiles<true, false>(a, weights[0], x);
    }
  } else if (layout.has_min) {
    multiply_tiles<false, true>(a, weights[0], x);
  } else {
    multiply_tiles<false, false>(a, weights[0], x);
  }
}

GPU_KERNEL(linear_float)(const LinearFloatArguments a) {
  constexpr int kPartial = 16;
  const int lane = thread_index() % kPartial;
  const int row = block_x() * kFloatOut + thread_index() / kPartial;
  const int first_x = block_y() * kFloatX;
  const size_t n_in = static_cast<size_t>(a.n_in);
  const size_t stored_row = static_cast<size_t>(row < a.n_out ? row : a.n_out - 1);
  const size_t element_bytes = a.type == kTypeF32 ? 4 : 2;
  const void* weight = static_cast<const uint8_t*>(a.weight) + stored_row * n_in * element_bytes;
  const float* x[kFloatX];
  GPU_UNROLL
  for (int r = 0; r < kFloatX; ++r) x[r] = a.x + static_cast<size_t>(first_x + r < a.n ? first_x + r : a.n - 1) * n_in;
  float sums[kFloatX] = {};
  const int n_x = a.n - first_x;  // uniform: one row costs one
  for (size_t j = static_cast<size_t>(lane); j < n_in; j += kPartial) {
    const float w = load_float(a.type, weight, j);
    GPU_UNROLL
    for (int r = 0; r < kFloatX; ++r) {
      if (r < n_x) sums[r] = fmaf(w, load(x[r] + j), sums[r]);
    }
  }
  GPU_UNROLL
  for (int r = 0; r < kFloatX; ++r) {
    if (r >= n_x) break;
    GPU_UNROLL
    for (int mask = kPartial / 2; mask > 0; mask /= 2) sums[r] += shuffle_xor(sums[r], mask);
    if (lane == 0 && row < a.n_out)
      a.out[static_cast<size_t>(first_x + r) * static_cast<size_t>(a.n_out) + static_cast<size_t>(row)] = sums[r];
  }
}

GPU_KERNEL(add_low_rank)(const LowRankArguments a) {
  const int column = block_x() * kThreads + thread_index();
  if (column >= a.n_out) return;
  const int first = block_y() * kLowRankRows;
  const size_t j = static_cast<size_t>(column);
  const size_t rank = static_cast<size_t>(a.rank);
  const int n = a.n - first < kLowRankRows ? a.n - first : kLowRankRows;
  const float bias = a.bias != nullptr ? load(a.bias + j) : 0.0f;
  float sums[kLowRankRows];
  GPU_UNROLL
  for (int r = 0; r < kLowRankRows; ++r) sums[r] = bias;
  const float* t = a.t + static_cast<size_t>(first) * rank;
  for (size_t k = 0; k < rank; ++k) {
    const float b = load_float(a.type, a.b, k * static_cast<size_t>(a.n_columns) + j);
    GPU_UNROLL
    for (int r = 0; r < kLowRankRows; ++r) {
      if (r < n) sums[r] = fmaf(load(t + static_cast<size_t>(r) * rank + k), b, sums[r]);
    }
  }
  float factor = 1.0f;
  if (a.norms != nullptr) {
    const float* norms = a.norms + j;
    const size_t next = static_cast<size_t>(a.n_columns);
    const float square =
        fmaf(a.scale, fmaf(a.scale, load(norms + 3 * next), load(norms + 2 * next)), load(norms + next));
    factor = load(norms) / sqrtf(square);
  }
  GPU_UNROLL
  for (int r = 0; r < kLowRankRows; ++r) {
    if (r >= n) break;
    float* out = a.out + static_cast<size_t>(first + r) * static_cast<size_t>(a.stride) + j;
    *out = fmaf(a.scale, sums[r], *out) * factor;
  }
}

// What a thread holds of the next tiles while these are multiplied: twice eight weights and twice four values of x.
struct FloatFetch {
  unsigned weights[2][4];
  float x[2][4];
};

// Past the end of a row there are zeros. Rows past the last are the last once more.
GPU_FUNCTION void fetch_floats(const LinearFloatArguments& a, FloatFetch& fetch, int first_row, int first_x,
                               int first_k) {
  const size_t n_in = static_cast<size_t>(a.n_in);
  GPU_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int chunk = i * kThreads + thread_index();
    const int row = first_row + chunk / (kFloatK / 8);
    const int k = first_k + 8 * (chunk % (kFloatK / 8));
    const uint16_t* weights = static_cast<const uint16_t*>(a.weight) +
                              static_cast<size_t>(row < a.n_out ? row : a.n_out - 1) * n_in + static_cast<size_t>(k);
    GPU_UNROLL
    for (int w = 0; w < 4; ++w) fetch.weights[i][w] = 0;
    if (a.n_in % 8 == 0) {
      if (k < a.n_in) {
        const uint4 eight = load(reinterpret_cast<const uint4*>(weights));
        fetch.weights[i][0] = eight.x, fetch.weights[i][1] = eight.y;
        fetch.weights[i][2] = eight.z, fetch.weights[i][3] = eight.w;
      }
    } else {
      GPU_UNROLL
      for (int j = 0; j < 8; ++j) {
        if (k + j < a.n_in) fetch.weights[i][j / 2] |= static_cast<unsigned>(load(weights + j)) << (16 * (j % 2));
      }
    }
  }
  GPU_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int chunk = i * kThreads + thread_index();
    const int row = first_x + chunk / (kFloatK / 4);
    const int k = first_k + 4 * (chunk % (kFloatK / 4));
    const float* x = a.x + static_cast<size_t>(row < a.n ? row : a.n - 1) * n_in + static_cast<size_t>(k);
    GPU_UNROLL
    for (int j = 0; j < 4; ++j) fetch.x[i][j] = 0;
    if (a.n_in % 4 == 0) {
      if (k < a.n_in) {
        const float4 four = load(reinterpret_cast<const float4*>(x));
        fetch.x[i][0] = four.x, fetch.x[i][1] = four.y, fetch.x[i][2] = four.z, fetch.x[i][3] = four.w;
      }
    } else {
      GPU_UNROLL
      for (int j = 0; j < 4; ++j) {
        if (k + j < a.n_in) fetch.x[i][j] = load(x + j);
      }
    }
  }
}

template <bool kIsF16>
GPU_FUNCTION void store_floats(const FloatFetch& fetch, FloatTile<kTileOut>& weights, FloatTile<kTileX>& x) {
  GPU_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int chunk = i * kThreads + thread_index();
    float values[8];
    GPU_UNROLL
    for (int j = 0; j < 8; ++j) {
      const unsigned bits = fetch.weights[i][j / 2] >> (16 * (j % 2)) & 0xffffu;
      values[j] = kIsF16 ? half_to_float(static_cast<uint16_t>(bits)) : bits_to_float(bits << 16);
    }
    const int row = chunk / (kFloatK / 8);
    const int k = 8 * (chunk % (kFloatK / 8));
    store_values(weights, row, k, values);
    store_values(weights, row, k + 4, values + 4);
    store_values(x, chunk / (kFloatK / 4), 4 * (chunk % (kFloatK / 4)), fetch.x[i]);
  }
}

// Each kFloatK products are added up by themselves, and these sums in order: how instructions round what they add to
// differs, and shows less.
template <bool kIsF16>
GPU_FUNCTION void multiply_float_tiles(const LinearFloatArguments& a, FloatTile<kTileOut>& weights,
                                       FloatTile<kTileX>& x) {
  constexpr int kTilesX = kTileX / 16;
  constexpr int kTiles = kTileOut / 16 * kTilesX / (kThreads / GPU_WARP);  // of a warp
  const int lane = thread_index() % GPU_WARP;
  const int warp = thread_index() / GPU_WARP;
  const int first_row = block_x() * kTileOut;
  const int first_x = block_y() * kTileX;
  float totals[kTiles][kTileElements] = {};
  FloatFetch fetch;
  fetch_floats(a, fetch, first_row, first_x, 0);
  for (int first = 0; first < a.n_in; first += kFloatK) {
    store_floats<kIsF16>(fetch, weights, x);
    block_barrier();
    if (first + kFloatK < a.n_in) fetch_floats(a, fetch, first_row, first_x, first + kFloatK);
    GPU_UNROLL
    for (int i = 0; i < kTiles; ++i) {
      const int tile = warp * kTiles + i;
      float sums[kTileElements] = {};
      multiply_values<kIsF16>(sums, weights, tile / kTilesX * 16, x, tile % kTilesX * 16, lane);
      GPU_UNROLL
      for (int r = 0; r < kTileElements; ++r) totals[i][r] += sums[r];
    }
    block_barrier();
  }
  GPU_UNROLL
  for (int i = 0; i < kTiles; ++i) {
    const int tile = warp * kTiles + i;
    GPU_UNROLL
    for (int r = 0; r < kTileElements; ++r) {
      const int row = first_row + tile / kTilesX * 16 + tile_row(lane, r);
      const int x_row = first_x + tile % kTilesX * 16 + tile_col(lane, r);
      if (row < a.n_out && x_row < a.n)
        a.out[static_cast<size_t>(x_row) * static_cast<size_t>(a.n_out) + static_cast<size_t>(row)] = totals[i][r];
    }
  }
}

GPU_KERNEL(linear_float_tiled)(const LinearFloatArguments a) {
  GPU_SHARED(FloatTile<kTileOut>, weights, [1]);
  GPU_SHARED(FloatTile<kTileX>, x, [1]);
  if (a.type == kTypeF16) {
    multiply_float_tiles<true>(a, weights[0], x[0]);
  } else {
    multiply_float_tiles<false>(a, weights[0], x[0]);
  }
}

}  // namespace gemma::gpu::GPU_CHIP_NAMESPACE
