// What merging makes of a matrix: a mean with that of another checkpoint, then what adapters change, step by step and row
// by row. Sums are in double precision and in a fixed order, so bytes do not depend on threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/adapter.h"
#include "quant/tensor.h"
#include "runtime/model_writer.h"

namespace gemma {

enum class Blend : uint8_t { kLinear, kSlerp };

// A step of a change. A step sees the rows that those before it have made.
class RowStep {
 public:
  virtual ~RowStep() = default;
  virtual uint64_t hash() const = 0;
  virtual void begin(ThreadPool&, const std::function<void()>&) {}
  // base: the row as it was before the first step.
  virtual void apply(int64_t row, std::span<const float> base, std::span<double> values) const = 0;
  virtual void release(int64_t, int64_t) const {}
  virtual void end() {}
};

// (1 - t) a + t b, or on the arc between the two where it is kSlerp: source: mergekit, merge_methods/slerp.py (tensors as
// a whole; nearly parallel ones linearly). a: what is read of the model. minus_one: norms that are stored as 1 + w.
std::unique_ptr<RowStep> blend_step(const Tensor& a, const Tensor& b, Blend blend, double t, bool minus_one,
                                    std::function<void(std::span<const std::byte>)> release);
// f (w + s B A), as LowRank says (backend.h); s: the matrix's own scale times scale. matrix: of an adapter that
// Adapter::planned_bytes() has taken for the model. is_table: A and B stand for the transpose of the matrix.
std::unique_ptr<RowStep> low_rank_step(const AdapterMatrix& matrix, double scale, bool is_table);
// In place of the whole tensor; plus_one: it is w of 1 + w.
std::unique_ptr<RowStep> replace_step(const Tensor& whole, bool plus_one);
// In place of some rows. ids: ascending.
std::unique_ptr<RowStep> rows_step(const Tensor& rows, const std::vector<int32_t>& ids);

// Null without steps.
std::shared_ptr<RowChange> make_change(std::vector<std::unique_ptr<RowStep>> steps);

}  // namespace gemma
