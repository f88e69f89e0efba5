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

class Screen final : public OutputMatrix {
 public:
  // enabled: false keeps it empty for ever, and every product is computed. backend gives the memory, with the first
  // slice.
  Screen(Backend& backend, const Weight& weight, bool enabled);

  const Weight& weight() const { return weight_; }
  bool ready() const { return enabled_ && n_built_ == n_panels_; }

  // Builds the next part, one of kSlices, so that no token waits long. Does nothing when ready or when there is none:
  // the matrix holds NaN or infinity, or memory ran out.
  void build_slice(const Kernels& kernels, ThreadPool& pool, std::span<const Scratch> scratch);
  static constexpr int kSlices = 16;

  // Bounds of the products of x[n][n_in] with all rows, for the questions below. False when x holds NaN, infinity or
  // values whose squares overflow. The screen must be ready.
  bool bound(const Kernels& kernels, ThreadPool& pool, const float* x, int n);
  std::span<const float> bounds(int query) const {
    const size_t stride = static_cast<size_t>(n_panels_) * kScreenLanes;
    return std::span(bounds_).subspan(static_cast<size_t>(query) * stride, static_cast<size_t>(weight_.n_out));
  }
  // These may be asked about different queries at a time.
  // Takes rows out of the choice.
  void exclude(int query, std::span<const int32_t> rows);
  // The k >= 1 rows with the largest bounds are appended, in no order; fewer when fewer are above -infinity.
  void best(int query, size_t k, std::vector<int32_t>* rows);
  // All rows with a bound of at least `least` and above -infinity are appended, ascending.
  void at_least(int query, float least, std::vector<int32_t>* rows);

 private:
  std::span<float> maxima(int query);
  void update_maximum(int query, int panel);
  void disable();

  Backend& backend_;
  Weight weight_;
  bool enabled_;
  int n_panels_;
  int block_;
  int n_built_ = 0;
  std::unique_ptr<Buffer> codes_;
  std::vector<float> step_, deviation_, rounding_;
  // of a step
  std::vector<float> rotated_;
  std::vector<int8_t> q_;
  std::vector<ScreenQuery> queries_;
  std::vector<float> bounds_;
  std::vector<float> maxima_;  // of each panel
  std::vector<float> sorted_;  // a copy that best() may reorder
};

}  // namespace gemma::cpu
