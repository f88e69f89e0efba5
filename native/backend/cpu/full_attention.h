// Attention of a head without mask or cache, for any vector type; internal to each file that includes it.
//
// Rows of q lie in the lanes, so that maxima, sums and scales of rows are plain vectors; keys and values are broadcast.
// A block of rows (two vectors) passes over all keys a tile at a time with the running softmax of Milakov and
// Gimelshein (arXiv 1805.02867). Both products are the same loop: sums[column][row] += y[step][column] * x[step][row],
// a step being a dimension (scores: columns are keys) or a key (output: columns are dimensions), or four of them where
// products are of 8 bits.
//
// V, the vector type, has:
//   kLanes, kColumns (two vectors of sums for each column must fit into the registers), Float, load, store, set1, add,
//   sub, mul, max (the second operand where the first is NaN), fma(a, b, c) = a * b + c, exp.
#pragma once

#include <cstddef>
#include <cstring>

#include "backend/cpu/bump_allocator.h"
#include "backend/cpu/inlining.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/small_math.h"
#include "backend/cpu/unrolled.h"

namespace gemma::cpu {
namespace {

constexpr int kVectors = 2;

// 255 * 2^f for f in 0..1 as a polynomial with the least relative error, 8e-5.
constexpr float kExp2Codes[4] = {254.98093f, 177.43755f, 57.647126f, 19.896253f};

template <class V>
constexpr int kBlockRows = kVectors * V::kLanes;

// finish(column, vector, sums) of kColumns columns, sums = y[0][column] * x[0][vector] + ..., n steps. `Ops`
// multiplies: load(x) -> Factor, broadcast(y) -> Factor, multiply_add(sums, x, y) -> Sums.
template <class V, class Ops, class X, class Y, class Finish>
GEMMA_INLINE void product(const X* x, const Y* y, size_t y_stride, int n, const Finish& finish) {
  typename Ops::Sums sums[V::kColumns][kVectors];
  unrolled<V::kColumns>([&](auto c) __attribute__((always_inline)) { sums[c][0] = sums[c][1] = typename Ops::Sums{}; });
  for (int s = 0; s < n; ++s, x += kBlockRows<V>, y += y_stride) {
    const auto x0 = Ops::load(x);
    const auto x1 = Ops::load(x + V::kLanes);
    unrolled<V::kColumns>([&](auto c) __attribute__((always_inline)) {
      const auto value = Ops::broadcast(y + c);
      sums[c][0] = Ops::multiply_add(sums[c][0], x0, value);
      sums[c][1] = Ops::multiply_add(sums[c][1], x1, value);
    });
  }
  unrolled<V::kColumns>([&](auto c) __attribute__((always_inline)) {
    finish(c, 0, sums[c][0]);
    finish(c, 1, sums[c][1]);
  });
}

// out[row][0..head_dim-1] = sums[.][row] / total[row] + shift for the rows of a block that there are.
template <class V>
void write_block(const FullAttentionHead& head, int first_row, int n_rows, const float* sums, const float* factor,
                 const float* shift) {
  for (int r = 0; r < n_rows; ++r) {
    float* out = head.out + static_cast<size_t>(first_row + r) * head.stride;
    for (int j = 0; j < head.head_dim; ++j) {
      const float value = sums[j * kBlockRows<V> + r] * factor[r];
      out[j] = shift == nullptr ? value : value + shift[j];
    }
  }
}

// In float32.
template <class V>
struct ExactAttention {
  using Float = typename V::Float;
  static constexpr int kRows = kBlockRows<V>;
  static constexpr int kColumns = V::kColumns;
  static constexpr int kTile = 4 * 12;  // keys
  static_assert(kTile % kColumns == 0);

  struct Ops {
    using Sums = Float;
    static Float load(const float* x) { return V::load(x); }
    static Float broadcast(const float* y) { return V::set1(*y); }
    static Float multiply_add(Float sums, Float x, Float y) { return V::fma(x, y, sums); }
  };

  // Keys: [n_rows / kColumns][head_dim][kColumns], then values: [n_rows][head_dim rounded up to kColumns].
  struct Packed {
    size_t width;
    float* keys;
    float* values;
    size_t bytes;
    Packed(std::byte* memory, int n_rows, int head_dim) {
      BumpAllocator allocator(memory);
      width = round_up(static_cast<size_t>(head_dim), kColumns);
      keys = allocator.take<float>(round_up(static_cast<size_t>(n_rows), kColumns) * static_cast<size_t>(head_dim));
      values = allocator.take<float>(static_cast<size_t>(n_rows) * width);
      bytes = allocator.used();
    }
  };

  static size_t packed_bytes(int n_rows, int head_dim) { return Packed(nullptr, n_rows, head_dim).bytes; }

  static void pack(const FullAttentionHead& head, const Scratch& /*scratch*/) {
    const Packed packed(head.packed, head.n_rows, head.head_dim);
    const size_t dim = static_cast<size_t>(head.head_dim);
    float* keys = packed.keys;
    for (int p = 0; p < head.n_rows; p += kColumns, keys += dim * kColumns) {
      for (int c = 0; c < kColumns; ++c) {
        const bool exists = p + c < head.n_rows;
        const float* k = head.k + static_cast<size_t>(p + c) * head.stride;
        for (size_t j = 0; j < dim; ++j) keys[j * kColumns + static_cast<size_t>(c)] = exists ? k[j] : 0;
      }
    }
    for (int p = 0; p < head.n_rows; ++p) {
      float* values = packed.values + static_cast<size_t>(p) * packed.width;
      std::memcpy(values, head.v + static_cast<size_t>(p) * head.stride, dim * sizeof(float));
      std::memset(values + dim, 0, (packed.width - dim) * sizeof(float));
    }
  }

  static GEMMA_FLATTEN void attend(const FullAttentionHead& head, int row_begin, int row_end, const Scratch& scratch) {
    for (int r = row_begin; r < row_end; r += kRows)
      attend_block(head, r, row_end - r < kRows ? row_end - r : kRows, scratch);
  }

  static void attend_block(const FullAttentionHead& head, int first_row, int n_rows, const Scratch& scratch) {
    const Packed packed(head.packed, head.n_rows, head.head_dim);
    const size_t dim = static_cast<size_t>(head.head_dim);
    BumpAllocator allocator(scratch.data);
    float* q = allocator.take<float>(dim * kRows);
    float* scores = allocator.take<float>(size_t{kTile} * kRows);
    float* out = allocator.take<float>(packed.width * kRows);
    for (int r = 0; r < kRows; ++r) {
      const float* row = head.q + static_cast<size_t>(first_row + r) * head.stride;
      for (size_t j = 0; j < dim; ++j) q[j * kRows + static_cast<size_t>(r)] = r < n_rows ? row[j] * head.scale : 0;
    }
    std::memset(out, 0, packed.width * kRows * sizeof(float));
    Float max[kVectors];
    Float sum[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      max[i] = V::set1(-kInfinity);
      sum[i] = V::set1(0);
    }
    for (int tile = 0; tile < head.n_rows; tile += kTile) {
      const int n = head.n_rows - tile < kTile ? head.n_rows - tile : kTile;
      for (int p = 0; p < n; p += kColumns) {
        product<V, Ops>(q, packed.keys + static_cast<size_t>(tile + p) * dim, kColumns, head.head_dim,
                        [&](int c, int i, Float s) { V::store(scores + (p + c) * kRows + i * V::kLanes, s); });
      }
      Float rescale[kVectors];
      for (int i = 0; i < kVectors; ++i) {
        float* row = scores + i * V::kLanes;
        Float top = max[i];
        // A NaN score is dropped here; it still reaches the sum through exp(NaN - top).
        for (int p = 0; p < n; ++p) top = V::max(V::load(row + p * kRows), top);
        rescale[i] = V::exp(V::sub(max[i], top));
        max[i] = top;
        Float total = V::set1(0);
        for (int p = 0; p < n; ++p) {
          const Float weight = V::exp(V::sub(V::load(row + p * kRows), top));
          V::store(row + p * kRows, weight);
          total = V::add(total, weight);
        }
        sum[i] = V::fma(sum[i], rescale[i], total);
      }
      for (size_t j = 0; j < packed.width; j += kColumns) {
        float* columns = out + j * kRows;
        product<V, Ops>(scores, packed.values + static_cast<size_t>(tile) * packed.width + j, packed.width, n,
                        [&](int c, int i, Float s) {
                          float* at = columns + c * kRows + i * V::kLanes;
                          V::store(at, V::fma(V::load(at), rescale[i], s));
                        });
      }
    }
    alignas(64) float factor[kRows];
    for (int i = 0; i < kVectors; ++i) V::store(factor + i * V::kLanes, sum[i]);
    for (float& f : factor) f = 1.0f / f;
    write_block<V>(head, first_row, n_rows, out, factor, nullptr);
  }

  static constexpr FullAttention kKernel = {packed_bytes, pack, attend};
};

// With products of 8 bits; the arithmetic is that of kernels.h.
//
// V has besides: Int, to_float(Int), exp2_codes(Float x) -> Int: 255 * 2^x rounded, x <= 0 (0 below -100), pack_codes
// (four Ints of 0..255: their bytes side by side), store_codes and ScoreOps and ValueOps for product(): factors are
// four codes a lane, x unsigned in ValueOps. What is added to codes of q and of values to suit the instruction:
// kQueryOffset, kValueOffset.
template <class V>
struct FastAttention {
  using Float = typename V::Float;
  using Sums = typename V::Sums;
  static constexpr int kRows = kBlockRows<V>;
  static constexpr int kColumns = V::kColumns;
  static constexpr int kTile = kFastAttentionTile;
  static_assert(kTile % kColumns == 0 && kTile % 4 == 0);
  static constexpr float kNever = -1e30f;  // the score of a key that does not exist

  static constexpr size_t kPad = 48;  // whole vectors and whole columns
  static_assert(kPad % V::kLanes == 0 && kPad % kColumns == 0);

  // Four codes of a key or a value.
  using Four = uint32_t;

  struct Packed {
    size_t n_keys;      // n_rows rounded up to whole tiles
    size_t n_groups;    // of four dimensions
    size_t width;       // head_dim rounded up to kColumns
    size_t padded;      // head_dim rounded up to kPad
    Four* keys;         // [n_keys / kColumns][n_groups][kColumns]
    Four* values;       // [n_keys / 4][width]
    float* key_step;    // [n_keys]
    float* key_base;    // [n_keys] what the query offset adds to a key's products, to be added
    float* key_bias;    // [n_keys] product with the mean of q, times log2(e)
    float* value_step;  // [n_keys / kTile][width]
    float* q_mean;      // [padded]
    float* v_mean;      // [padded]
    float* poison;      // 0, or NaN when q or k are not finite
    size_t bytes;

    Packed(std::byte* memory, int n_rows, int head_dim) {
      BumpAllocator allocator(memory);
      n_keys = round_up(static_cast<size_t>(n_rows), kTile);
      n_groups = round_up(static_cast<size_t>(head_dim), 4) / 4;
      width = round_up(static_cast<size_t>(head_dim), kColumns);
      padded = round_up(static_cast<size_t>(head_dim), kPad);
      keys = allocator.take<Four>(n_keys * n_groups);
      values = allocator.take<Four>(n_keys / 4 * width);
      key_step = allocator.take<float>(n_keys);
      key_base = allocator.take<float>(n_keys);
      key_bias = allocator.take<float>(n_keys);
      value_step = allocator.take<float>(n_keys / kTile * width);
      q_mean = allocator.take<float>(padded);
      v_mean = allocator.take<float>(padded);
      poison = allocator.take<float>(1);
      bytes = allocator.used();
    }
  };

  static size_t packed_bytes(int n_rows, int head_dim) { return Packed(nullptr, n_rows, head_dim).bytes; }

  // Rows as vectors; what is past head_dim is 0.
  static Float part(const float* row, int j, int head_dim) { return V::load_first(row + j, head_dim - j); }
  static Float magnitude(Float v) { return V::max(v, V::sub(V::set1(0), v)); }

  static void mean_of(const float* rows, const FullAttentionHead& head, float* mean) {
    const Float inverse = V::set1(1.0f / static_cast<float>(head.n_rows));
    for (int j = 0; j < head.head_dim; j += V::kLanes) {
      Float sum = V::set1(0);
      for (int p = 0; p < head.n_rows; ++p)
        sum = V::add(sum, part(rows + static_cast<size_t>(p) * head.stride, j, head.head_dim));
      V::store(mean + j, V::mul(sum, inverse));
    }
  }

  // What a step of 127 codes for the largest magnitude is, and its inverse. Below 1e-30 the inverse would overflow;
  // what is so small is zero for all that follows.
  static float step_of(float largest) { return largest > 1e-30f ? largest * (1.0f / 127) : 0.0f; }
  static float inverse_step_of(float largest) { return largest > 1e-30f ? 127.0f / largest : 0.0f; }

  // row - mean as codes of one step, which is returned. difference, codes: [head_dim rounded up to kPad], also written.
  static float quantize_row(const float* row, const float* mean, int head_dim, float* difference, int8_t* codes) {
    Float largest = V::set1(0);
    for (int j = 0; j < head_dim; j += V::kLanes) {
      const Float v = V::sub(part(row, j, head_dim), V::load(mean + j));
      V::store(difference + j, v);
      largest = V::max(magnitude(v), largest);
    }
    const float most = V::max_lanes(largest);
    const Float inverse = V::set1(inverse_step_of(most));
    for (int j = 0; j < head_dim; j += V::kLanes) V::store_codes8(codes + j, V::mul(V::load(difference + j), inverse));
    return step_of(most);
  }

  static void pack(const FullAttentionHead& head, const Scratch& scratch) {
    const Packed packed(head.packed, head.n_rows, head.head_dim);
    const int dim = head.head_dim;
    BumpAllocator allocator(scratch.data);
    float* k_mean = allocator.take<float>(packed.padded);
    float* difference = allocator.take<float>(packed.padded);
    int8_t* codes = allocator.take<int8_t>(packed.padded);
    mean_of(head.q, head, packed.q_mean);
    mean_of(head.k, head, k_mean);
    float poison = 0;
    for (int j = 0; j < dim; ++j) poison += (packed.q_mean[j] + k_mean[j]) * 0.0f;
    *packed.poison = poison;
    const float to_log2 = head.scale * kLog2E;
    for (size_t p = 0; p < packed.n_keys; ++p) {
      Four* keys = packed.keys + p / kColumns * kColumns * packed.n_groups + p % kColumns;
      if (p >= static_cast<size_t>(head.n_rows)) {
        for (size_t g = 0; g < packed.n_groups; ++g) keys[g * kColumns] = 0;
        packed.key_step[p] = 0;
        packed.key_base[p] = 0;
        packed.key_bias[p] = kNever;
        continue;
      }
      const float step = quantize_row(head.k + p * head.stride, k_mean, dim, difference, codes);
      int32_t sum = 0;
      for (int j = 0; j < dim; ++j) sum += codes[j];
      Float bias = V::set1(0);
      for (int j = 0; j < dim; j += V::kLanes) bias = V::fma(V::load(packed.q_mean + j), V::load(difference + j), bias);
      packed.key_step[p] = step;
      packed.key_base[p] = static_cast<float>(-V::kQueryOffset * sum) * step;
      packed.key_bias[p] = V::sum_lanes(bias) * to_log2;
      for (size_t g = 0; g < packed.n_groups; ++g) std::memcpy(keys + g * kColumns, codes + 4 * g, 4);
    }
    pack_values(head, packed, scratch.data);
  }

  static void pack_values(const FullAttentionHead& head, const Packed& packed, std::byte* memory) {
    const int dim = head.head_dim;
    BumpAllocator allocator(memory);
    float* differences = allocator.take<float>(kTile * packed.padded);
    float* largest = allocator.take<float>(packed.padded);
    int8_t* codes = allocator.take<int8_t>(4 * packed.padded);
    std::memset(codes, 0, 4 * packed.padded);
    std::memset(largest, 0, packed.padded * sizeof(float));
    mean_of(head.v, head, packed.v_mean);
    float* steps = packed.value_step;
    Four* values = packed.values;
    for (size_t tile = 0; tile < packed.n_keys; tile += kTile, steps += packed.width) {
      const size_t left = static_cast<size_t>(head.n_rows) - tile;
      const size_t n = left < kTile ? left : kTile;
      for (int j = 0; j < dim; j += V::kLanes) {
        Float most = V::set1(0);
        const Float mean = V::load(packed.v_mean + j);
        for (size_t p = 0; p < n; ++p) {
          const Float v = V::sub(part(head.v + (tile + p) * head.stride, j, dim), mean);
          V::store(differences + p * packed.padded + j, v);
          most = V::max(magnitude(v), most);
        }
        V::store(largest + j, most);
      }
      for (size_t j = 0; j < packed.width; ++j) {
        steps[j] = step_of(largest[j]);
        largest[j] = inverse_step_of(largest[j]);
      }
      for (size_t p = 0; p < kTile; p += 4, values += packed.width) {
        for (size_t i = 0; i < 4; ++i) {
          int8_t* row = codes + i * packed.padded;
          if (p + i >= n) {
            std::memset(row, 0, packed.padded);
            continue;
          }
          for (int j = 0; j < dim; j += V::kLanes) {
            V::store_codes8(row + j, V::mul(V::load(differences + (p + i) * packed.padded + j), V::load(largest + j)));
          }
        }
        const auto shifted = [&](size_t i, size_t j) {
          return static_cast<Four>(static_cast<uint8_t>(codes[i * packed.padded + j] + V::kValueOffset)) << (8 * i);
        };
        for (size_t j = 0; j < packed.width; ++j)
          values[j] = shifted(0, j) | shifted(1, j) | shifted(2, j) | shifted(3, j);
      }
    }
  }

  static GEMMA_FLATTEN void attend(const FullAttentionHead& head, int row_begin, int row_end, const Scratch& scratch) {
    for (int r = row_begin; r < row_end; r += kRows)
      attend_block(head, r, row_end - r < kRows ? row_end - r : kRows, scratch);
  }

  static void attend_block(const FullAttentionHead& head, int first_row, int n_rows, const Scratch& scratch) {
    const Packed packed(head.packed, head.n_rows, head.head_dim);
    const int dim = head.head_dim;
    BumpAllocator allocator(scratch.data);
    Four* q = allocator.take<Four>(packed.n_groups * kRows);
    float* q_step = allocator.take<float>(kRows);
    float* scores = allocator.take<float>(size_t{kTile} * kRows);
    Four* weights = allocator.take<Four>(size_t{kTile} / 4 * kRows);
    float* out = allocator.take<float>(packed.width * kRows);
    float* difference = allocator.take<float>(packed.padded);
    int8_t* codes = allocator.take<int8_t>(packed.padded);
    std::memset(q, 0, packed.n_groups * kRows * sizeof(Four));
    std::memset(q_step, 0, kRows * sizeof(float));
    for (int r = 0; r < n_rows; ++r) {
      const float* row = head.q + static_cast<size_t>(first_row + r) * head.stride;
      q_step[r] = quantize_row(row, packed.q_mean, dim, difference, codes) * (head.scale * kLog2E);
      for (size_t g = 0; g < packed.n_groups; ++g) {
        Four four = 0;
        std::memcpy(&four, codes + 4 * g, 4);
        q[g * kRows + static_cast<size_t>(r)] = four ^ (V::kQueryOffset * Four{0x01010101});  // 128: the highest bits
      }
    }
    std::memset(out, 0, packed.width * kRows * sizeof(float));
    Float max[kVectors];
    Float sum[kVectors];
    Float step[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      max[i] = V::set1(2 * kNever);
      sum[i] = V::set1(0);
      step[i] = V::load(q_step + i * V::kLanes);
    }
    const float* value_step = packed.value_step;
    for (size_t tile = 0; tile < packed.n_keys; tile += kTile, value_step += packed.width) {
      Float top[kVectors] = {V::set1(2 * kNever), V::set1(2 * kNever)};
      for (size_t p = 0; p < kTile; p += kColumns) {
        const size_t key = tile + p;
        product<V, typename V::ScoreOps>(q, packed.keys + key * packed.n_groups, kColumns,
                                         static_cast<int>(packed.n_groups), [&](int c, int i, Sums products) {
                                           const size_t at = key + static_cast<size_t>(c);
                                           const Float dot = V::fma(V::to_float(products), V::set1(packed.key_step[at]),
                                                                    V::set1(packed.key_base[at]));
                                           const Float score = V::fma(dot, step[i], V::set1(packed.key_bias[at]));
                                           top[i] = V::max(score, top[i]);
                                           V::store(scores + (static_cast<int>(p) + c) * kRows + i * V::kLanes, score);
                                         });
      }
      Float rescale[kVectors];
      Float tile_weight[kVectors];
      Sums total[kVectors];
      for (int i = 0; i < kVectors; ++i) {
        total[i] = Sums{};
        for (int p = 0; p < kTile; p += 4) {
          const float* at = scores + p * kRows + i * V::kLanes;
          const auto code_of = [&](int c) { return V::exp2_codes(V::sub(V::load(at + c * kRows), top[i])); };
          const auto four = V::pack_codes(code_of(0), code_of(1), code_of(2), code_of(3));
          V::store_codes(weights + p / 4 * kRows + i * V::kLanes, four);
          total[i] = V::ValueOps::multiply_add(total[i], four, V::ones());
        }
        const Float new_max = V::max(top[i], max[i]);
        rescale[i] = V::exp(V::mul(V::sub(max[i], new_max), V::set1(kLn2)));
        tile_weight[i] = V::exp(V::mul(V::sub(top[i], new_max), V::set1(kLn2)));
        max[i] = new_max;
        sum[i] = V::fma(V::to_float(total[i]), tile_weight[i], V::mul(sum[i], rescale[i]));
      }
      for (size_t j = 0; j < packed.width; j += kColumns) {
        product<V, typename V::ValueOps>(weights, packed.values + tile / 4 * packed.width + j, packed.width, kTile / 4,
                                         [&](int c, int i, Sums products) {
                                           float* at = out + (j + static_cast<size_t>(c)) * kRows + i * V::kLanes;
                                           const Float value =
                                               V::mul(V::to_float(V::without_offset(products, total[i])),
                                                      V::set1(value_step[j + static_cast<size_t>(c)]));
                                           V::store(at, V::fma(value, tile_weight[i], V::mul(V::load(at), rescale[i])));
                                         });
      }
    }
    alignas(64) float factor[kRows];
    for (int i = 0; i < kVectors; ++i) V::store(factor + i * V::kLanes, sum[i]);
    for (float& f : factor) f = 1.0f / f + *packed.poison;
    write_block<V>(head, first_row, n_rows, out, factor, packed.v_mean);
  }

  static constexpr FullAttention kKernel = {packed_bytes, pack, attend};
};

}  // namespace
}  // namespace gemma::cpu
