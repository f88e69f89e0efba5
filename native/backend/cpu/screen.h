// A screen tells which rows of a large matrix can have one of the largest products with x, for a quarter to a half of
// the bytes that all products cost. Sampling wants the best few of 262,144 logits: only the rows that the screen lets
// through are computed, exactly, by the kernels of the matrix.
//
// Rows are rotated by a Walsh-Hadamard transform in blocks, and so is x, which keeps every product and makes the values
// of a row close to Gaussian whatever the model. Then each value becomes 4 bits with one step per row:
//   w ~ step * (code - 7.5),   step = |w|^2 / <w, code - 7.5>
// a step that leaves products with the row's own direction unbiased. What the codes leave out and x are as good as
// independent: the error of a product is close to Gaussian with variance |residual|^2 |x|^2 / n (and a little for
// rounding x to 8 bits), so that kScreenSigmas standard deviations above the product bound it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "base/thread_pool.h"

namespace gemma::cpu {

// Chance of one row to exceed its bound: 1e-11 (one side of the Gaussian).
inline constexpr float kScreenSigmas = 6.7f;

// Sizes of the buffers of a screen: codes; step, deviation and rounding of each row, and what max_rows rows of x need in
// a step. 0 for a matrix too small to screen.
std::array<size_t, 2> screen_parts(int n_out, int n_in, int max_rows);

class Screen final : public OutputMatrix {
 public:
  // enabled: false keeps it empty for ever, and every product is computed. backend gives the memory, with the first
  // slice. max_rows: of x at a time.
  Screen(Backend& backend, const Weight& weight, bool enabled, int max_rows);

  const Weight& weight() const { return weight_; }
  int max_rows() const { return max_rows_; }
  bool ready() const { return enabled_ && n_built_ == n_panels_; }

  // Builds the next part, one of kSlices, so that no token waits long. Does nothing when ready or when there is none:
  // the matrix holds NaN or infinity, or memory ran out.
  void build_slice(const Kernels& kernels, ThreadPool& pool, std::span<const Scratch> scratch);
  static constexpr int kSlices = 16;

  // Where x[n, n_in] is to be written before bound(). The screen must be ready.
  std::span<float> input(int n);
  // Bounds of the products of the input's n rows with all rows of the matrix, for the questions below. memory: room for
  // n rows of n_out floats rounded up to kScreenLanes, as long as there are questions. False when x holds NaN, infinity
  // or values whose squares overflow.
  bool bound(const Kernels& kernels, ThreadPool& pool, int n, float* memory);
  std::span<const float> bounds(int query) const { return {row_of_bounds(query), static_cast<size_t>(weight_.n_out)}; }
  // These may be asked about different queries at a time.
  // Takes rows out of the choice.
  void exclude(int query, std::span<const int32_t> rows);
  // Takes out all rows but those whose bit is 1 (TopRows::allowed).
  void keep(int query, std::span<const uint32_t> allowed);
  // The k >= 1 rows with the largest bounds are appended, in no order; fewer when fewer are above -infinity.
  void best(int query, size_t k, std::vector<int32_t>* rows);
  // All rows with a bound of at least `least` and above -infinity are appended, ascending.
  void at_least(int query, float least, std::vector<int32_t>* rows);

 private:
  float* row_of_bounds(int query) const {
    return bounds_ + static_cast<size_t>(query) * static_cast<size_t>(n_panels_) * kScreenLanes;
  }
  std::span<float> maxima(int query);
  void update_maximum(int query, int panel);
  void allocate();
  void disable();

  Backend& backend_;
  Weight weight_;
  bool enabled_;
  int max_rows_;
  int n_panels_;
  int block_;
  int n_built_ = 0;
  std::array<std::unique_ptr<Buffer>, 2> parts_;  // screen_parts()
  // in parts_
  uint8_t* codes_ = nullptr;
  float* step_ = nullptr;
  float* deviation_ = nullptr;
  float* rounding_ = nullptr;
  // in parts_, of a step
  float* rotated_ = nullptr;
  float* maxima_ = nullptr;  // of each panel
  int8_t* q_ = nullptr;
  std::vector<ScreenQuery> queries_;
  float* bounds_ = nullptr;  // of a step, the caller's memory
};

}  // namespace gemma::cpu
