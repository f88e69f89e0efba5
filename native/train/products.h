// Products of training in float32: packed activations times matrices of any kind, which are unpacked a piece at a time
// where they are needed, weights from their stored blocks. Every element of a result is one chain of fused
// multiply-adds in the order of the terms and of their depth, so it does not depend on how the work was cut.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "base/large_memory.h"
#include "base/thread_pool.h"

namespace gemma::train {

// Floats anywhere: element (i, j) at data[i * row_stride + j * col_stride].
struct FloatView {
  const float* data = nullptr;
  size_t row_stride = 0;
  size_t col_stride = 1;

  FloatView transposed() const { return {data, col_stride, row_stride}; }
  float at(size_t i, size_t j) const { return data[i * row_stride + j * col_stride]; }
};

// What products read in whole vectors has so many floats of room behind it.
inline constexpr size_t kReadAhead = cpu::kPanelColumns;

// Rows packed as kernels take them: panels of kPanelRows, zero where a panel has no row.
struct Packed {
  const float* data = nullptr;
  size_t panel_stride = 0;
};
inline size_t packed_floats(size_t n_rows, size_t depth) {
  return (n_rows + cpu::kPanelRows - 1) / cpu::kPanelRows * cpu::kPanelRows * depth;
}
// Rows first .. first + n - 1 of x, scaled; out has packed_floats(n, depth). first a multiple of kPanelRows where out is
// a part of more: its place is out + first * depth.
void pack_rows(const FloatView& x, int first, int n, int depth, float scale, float* out);

// The right side of a product: B[depth, n_cols].
struct RightSide {
  enum class Kind {
    kWeight,            // B = W^T: columns are rows first_row .. of the weight, depth its columns
    kWeightTransposed,  // B = W: depth is rows first_row .. of the weight, columns its columns
    kFloats,            // B = floats
  };
  Kind kind = Kind::kFloats;
  const Weight* weight = nullptr;
  int first_row = 0;
  FloatView floats;
};

// A B, added to what other terms give.
struct Term {
  Packed a;
  int depth = 0;
  RightSide b;
};

// Arrays one after the other in one memory, each on a cache line of its own and with room to read ahead. Without memory it
// counts.
class Arena {
 public:
  explicit Arena(std::byte* memory = nullptr) : memory_(memory) {}
  void operator()(float*& array, size_t n) {
    if (memory_ != nullptr) array = reinterpret_cast<float*>(memory_ + bytes_);
    bytes_ += ((n + kReadAhead) * sizeof(float) + 63) / 64 * 64;
  }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  size_t bytes_ = 0;
};

class Products {
 public:
  Products(const cpu::Kernels& kernels, int n_threads);

  const cpu::Kernels& kernels() const { return kernels_; }
  ThreadPool& pool() { return pool_; }
  int n_threads() const { return pool_.n_threads(); }
  static size_t workspace_bytes(int n_threads);

  // c[n_rows, n_cols] = or += sum of the terms, by all threads. c_stride: of its rows.
  void multiply(std::span<const Term> terms, int n_rows, int n_cols, float* c, size_t c_stride, bool add);
  // The same by the calling thread of the pool.
  void multiply_alone(int thread, std::span<const Term> terms, int n_rows, int n_cols, float* c, size_t c_stride,
                      bool add);
  // All rows, by all threads.
  Packed pack(const FloatView& x, int n_rows, int depth, float scale, float* out);

 private:
  void multiply_part(int thread, std::span<const Term> terms, int row_begin, int row_end, int col_begin, int col_end,
                     float* c, size_t c_stride, bool add);
  void multiply_piece(const cpu::PanelProduct& shape, const float* b, size_t b_stride, size_t group_stride, size_t half,
                      int n_cols);

  const cpu::Kernels& kernels_;
  ThreadPool pool_;
  LargeMemory workspace_;
};

}  // namespace gemma::train
