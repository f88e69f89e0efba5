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
#include <limits>

#include "backend/cpu/inlining.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/unrolled.h"

namespace gemma::cpu {
namespace {

constexpr int kVectors = 2;

template <class V>
constexpr int kBlockRows = kVectors * V::kLanes;

constexpr size_t round_up(size_t n, size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// The next n values of working memory; each part begins on a cache line.
class Carve {
 public:
  explicit Carve(std::byte* memory) : memory_(memory) {}
  template <class T>
  T* take(size_t n) {
    T* part = reinterpret_cast<T*>(memory_ + used_);
    used_ += round_up(n * sizeof(T), 64);
    return part;
  }
  size_t used() const { return used_; }

 private:
  std::byte* memory_;
  size_t used_ = 0;
};

// finish(column, vector, sums) of kColumns columns, sums = y[0][column] * x[0][vector] + ..., n steps. `Ops`
// multiplies: load(x) -> Factor, broadcast(y) -> Factor, multiply_add(sums, x, y), zero() -> Sums.
template <class V, class Ops, class X, class Y, class Finish>
GEMMA_INLINE void product(const X* x, const Y* y, size_t y_stride, int n, const Finish& finish) {
  typename Ops::Sums sums[V::kColumns][kVectors];
  unrolled<V::kColumns>([&](auto c) __attribute__((always_inline)) { sums[c][0] = sums[c][1] = Ops::zero(); });
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
    static Float zero() { return V::set1(0); }
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
      Carve carve(memory);
      width = round_up(static_cast<size_t>(head_dim), kColumns);
      keys = carve.take<float>(round_up(static_cast<size_t>(n_rows), kColumns) * static_cast<size_t>(head_dim));
      values = carve.take<float>(static_cast<size_t>(n_rows) * width);
      bytes = carve.used();
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
    Carve carve(scratch.data);
    float* q = carve.take<float>(dim * kRows);
    float* scores = carve.take<float>(size_t{kTile} * kRows);
    float* out = carve.take<float>(packed.width * kRows);
    for (int r = 0; r < kRows; ++r) {
      const float* row = head.q + static_cast<size_t>(first_row + r) * head.stride;
      for (size_t j = 0; j < dim; ++j) q[j * kRows + static_cast<size_t>(r)] = r < n_rows ? row[j] * head.scale : 0;
    }
    std::memset(out, 0, packed.width * kRows * sizeof(float));
    Float max[kVectors];
    Float sum[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      max[i] = V::set1(-std::numeric_limits<float>::infinity());
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

}  // namespace
}  // namespace gemma::cpu
