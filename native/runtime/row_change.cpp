#include "runtime/row_change.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "quant/dequantize.h"

namespace gemma {
namespace {

int64_t rows_of(const Tensor& tensor) {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) rows *= tensor.shape[i];
  return rows;
}

void read_row(const Tensor& tensor, int64_t row, std::span<float> out) {
  const int64_t n = tensor.shape.back();
  dequantize_row(tensor.type, tensor.data + static_cast<size_t>(row) * row_bytes(tensor.type, n), out.data(), n);
}

std::vector<float> floats_of(const Tensor& tensor) {
  std::vector<float> values(static_cast<size_t>(rows_of(tensor) * tensor.shape.back()));
  dequantize_row(tensor.type, tensor.data, values.data(), static_cast<int64_t>(values.size()));
  for (const float value : values) {
    if (!std::isfinite(value)) bad_adapter("NONFINITE", tensor.name + ": holds NaN or infinity");
  }
  return values;
}

uint64_t hash_tensor(uint64_t hash, const Tensor& tensor) {
  return hash_bytes(hash_value(hash, tensor.type), {tensor.data, tensor.bytes});
}

class BlendStep final : public RowStep {
 public:
  BlendStep(const Tensor& a, const Tensor& b, Blend blend, double t, bool minus_one,
            std::function<void(std::span<const std::byte>)> release)
      : a_(a), b_(b), blend_(blend), t_(t), one_(minus_one ? 1.0 : 0.0), release_(std::move(release)) {}

  uint64_t hash() const override { return hash_value(hash_value(hash_value(1, blend_), t_), one_); }

  void begin(ThreadPool& pool, const std::function<void()>& check_cancelled) override {
    of_a_ = 1 - t_;
    of_b_ = t_;
    if (blend_ == Blend::kSlerp) find_arc(pool, check_cancelled);
  }

  void apply(int64_t row, std::span<const float>, std::span<double> values) const override {
    thread_local std::vector<float> other;
    other.resize(values.size());
    read_row(b_, row, other);
    for (size_t j = 0; j < values.size(); ++j)
      values[j] = of_a_ * (values[j] - one_) + of_b_ * (static_cast<double>(other[j]) - one_) + one_;
  }

  void release(int64_t first_row, int64_t n_rows) const override {
    const size_t row = row_bytes(b_.type, b_.shape.back());
    release_({b_.data + static_cast<size_t>(first_row) * row, static_cast<size_t>(n_rows) * row});
  }

 private:
  struct Sums {
    double aa = 0, ab = 0, bb = 0;
  };

  // The angle between the tensors as a whole, from sums of chunks that are added in their order.
  void find_arc(ThreadPool& pool, const std::function<void()>& check_cancelled) {
    const int64_t n = a_.shape.back();
    const int64_t n_rows = rows_of(a_);
    const int64_t n_chunk_rows = std::max<int64_t>(1, (int64_t{1} << 16) / n);
    constexpr int64_t kSlab = 256;
    Sums all;
    std::vector<Sums> sums;
    const int64_t n_chunks = (n_rows + n_chunk_rows - 1) / n_chunk_rows;
    for (int64_t slab = 0; slab < n_chunks; slab += kSlab) {
      const int n_of_slab = static_cast<int>(std::min(kSlab, n_chunks - slab));
      sums.assign(static_cast<size_t>(n_of_slab), {});
      pool.parallel_for(n_of_slab, [&](int i, int) {
        check_cancelled();
        const int64_t first = (slab + i) * n_chunk_rows;
        sums[static_cast<size_t>(i)] = sums_of(first, std::min(n_chunk_rows, n_rows - first));
      });
      for (const Sums& one : sums) {
        all.aa += one.aa;
        all.ab += one.ab;
        all.bb += one.bb;
      }
      release(slab * n_chunk_rows, std::min(n_of_slab * n_chunk_rows, n_rows - slab * n_chunk_rows));
    }
    constexpr double kParallel = 0.9995;
    const double lengths = std::sqrt(all.aa) * std::sqrt(all.bb);
    const double cosine = lengths > 0 ? all.ab / lengths : 1;
    if (!(std::abs(cosine) <= kParallel)) return;
    const double angle = std::acos(cosine);
    of_a_ = std::sin((1 - t_) * angle) / std::sin(angle);
    of_b_ = std::sin(t_ * angle) / std::sin(angle);
  }

  Sums sums_of(int64_t first_row, int64_t n_rows) const {
    std::vector<float> a(static_cast<size_t>(a_.shape.back()));
    std::vector<float> b(a.size());
    Sums sums;
    for (int64_t row = first_row; row < first_row + n_rows; ++row) {
      read_row(a_, row, a);
      read_row(b_, row, b);
      for (size_t j = 0; j < a.size(); ++j) {
        const double x = static_cast<double>(a[j]) - one_;
        const double y = static_cast<double>(b[j]) - one_;
        sums.aa += x * x;
        sums.ab += x * y;
        sums.bb += y * y;
      }
    }
    return sums;
  }

  const Tensor& a_;
  const Tensor& b_;
  Blend blend_;
  double t_;
  double one_;
  double of_a_ = 1;
  double of_b_ = 0;
  std::function<void(std::span<const std::byte>)> release_;
};

class LowRankStep final : public RowStep {
 public:
  LowRankStep(const AdapterMatrix& matrix, double scale, bool is_table)
      : m_(matrix), scale_(matrix.scale * scale), is_table_(is_table), hash_(hash_of()) {}

  uint64_t hash() const override { return hash_; }

  void begin(ThreadPool&, const std::function<void()>& check_cancelled) override {
    check_cancelled();
    // As [n_out, rank] and [rank, n_in] of the matrix whose rows are changed. Of a table these are A^T and B^T.
    const Tensor& left = is_table_ ? *m_.a : *m_.b;
    const Tensor& right = is_table_ ? *m_.b : *m_.a;
    rank_ = static_cast<size_t>(m_.b->shape[1]);
    left_ = floats_of(left);
    right_ = floats_of(right);
    if (is_table_ && !m_.a_is_transposed) transpose(left_, left);
    if (is_table_ || m_.a_is_transposed) transpose(right_, right);
    if (m_.magnitude) magnitude_ = floats_of(*m_.magnitude);
    check_cancelled();
  }

  void apply(int64_t row, std::span<const float> base, std::span<double> values) const override {
    thread_local std::vector<double> added;
    added.assign(values.size(), 0.0);
    const float* factors = left_.data() + static_cast<size_t>(row) * rank_;
    for (size_t k = 0; k < rank_; ++k) {
      const double factor = static_cast<double>(factors[k]);
      const float* direction = right_.data() + k * values.size();
      for (size_t j = 0; j < values.size(); ++j) added[j] += factor * static_cast<double>(direction[j]);
    }
    double length = 1;
    double wanted = 1;
    if (!magnitude_.empty()) {
      double sum = 0;
      for (size_t j = 0; j < values.size(); ++j) {
        const double changed = static_cast<double>(base[j]) + scale_ * added[j];
        sum += changed * changed;
      }
      length = std::sqrt(sum);
      wanted = static_cast<double>(magnitude_[static_cast<size_t>(row)]);
    }
    for (size_t j = 0; j < values.size(); ++j) values[j] = wanted / length * (values[j] + scale_ * added[j]);
  }

  void end() override {
    left_ = {};
    right_ = {};
    magnitude_ = {};
  }

 private:
  uint64_t hash_of() const {
    uint64_t hash = hash_value(hash_value(hash_value(2, scale_), is_table_), m_.a_is_transposed);
    hash = hash_tensor(hash_tensor(hash, *m_.a), *m_.b);
    return m_.magnitude ? hash_tensor(hash, *m_.magnitude) : hash;
  }

  // Of the shape of tensor.
  static void transpose(std::vector<float>& values, const Tensor& tensor) {
    const size_t rows = static_cast<size_t>(tensor.shape[0]);
    const size_t columns = static_cast<size_t>(tensor.shape[1]);
    std::vector<float> out(values.size());
    for (size_t i = 0; i < rows; ++i) {
      for (size_t j = 0; j < columns; ++j) out[j * rows + i] = values[i * columns + j];
    }
    values = std::move(out);
  }

  const AdapterMatrix& m_;
  double scale_;
  bool is_table_;
  uint64_t hash_;
  size_t rank_ = 0;
  std::vector<float> left_;   // [rows, rank]
  std::vector<float> right_;  // [rank, columns]
  std::vector<float> magnitude_;
};

class ReplaceStep final : public RowStep {
 public:
  ReplaceStep(const Tensor& whole, bool plus_one) : whole_(whole), one_(plus_one ? 1.0 : 0.0) {}

  uint64_t hash() const override { return hash_tensor(hash_value(3, one_), whole_); }

  void apply(int64_t row, std::span<const float>, std::span<double> values) const override {
    thread_local std::vector<float> own;
    own.resize(values.size());
    read_row(whole_, row, own);
    for (size_t j = 0; j < values.size(); ++j) values[j] = static_cast<double>(own[j]) + one_;
  }

 private:
  const Tensor& whole_;
  double one_;
};

class RowsStep final : public RowStep {
 public:
  RowsStep(const Tensor& rows, const std::vector<int32_t>& ids) : rows_(rows), ids_(ids) {}

  uint64_t hash() const override { return hash_tensor(hash_bytes(4, std::as_bytes(std::span(ids_))), rows_); }

  void apply(int64_t row, std::span<const float>, std::span<double> values) const override {
    const auto found = std::lower_bound(ids_.begin(), ids_.end(), row);
    if (found == ids_.end() || *found != row) return;
    thread_local std::vector<float> own;
    own.resize(values.size());
    read_row(rows_, found - ids_.begin(), own);
    std::copy(own.begin(), own.end(), values.begin());
  }

 private:
  const Tensor& rows_;
  const std::vector<int32_t>& ids_;
};

class Steps final : public RowChange {
 public:
  explicit Steps(std::vector<std::unique_ptr<RowStep>> steps) : steps_(std::move(steps)) {}

  uint64_t hash() const override {
    uint64_t hash = hash_value(0, steps_.size());
    for (const auto& step : steps_) hash = hash_value(hash, step->hash());
    return hash;
  }
  void begin(ThreadPool& pool, const std::function<void()>& check_cancelled) override {
    for (const auto& step : steps_) step->begin(pool, check_cancelled);
  }
  void apply(int64_t row, std::span<float> values, std::vector<double>& scratch) const override {
    scratch.assign(values.begin(), values.end());
    for (const auto& step : steps_) step->apply(row, values, scratch);
    for (size_t j = 0; j < values.size(); ++j) values[j] = static_cast<float>(scratch[j]);
  }
  void release(int64_t first_row, int64_t n_rows) const override {
    for (const auto& step : steps_) step->release(first_row, n_rows);
  }
  void end() override {
    for (const auto& step : steps_) step->end();
  }

 private:
  std::vector<std::unique_ptr<RowStep>> steps_;
};

}  // namespace

std::unique_ptr<RowStep> blend_step(const Tensor& a, const Tensor& b, Blend blend, double t, bool minus_one,
                                    std::function<void(std::span<const std::byte>)> release) {
  return std::make_unique<BlendStep>(a, b, blend, t, minus_one, std::move(release));
}

std::unique_ptr<RowStep> low_rank_step(const AdapterMatrix& matrix, double scale, bool is_table) {
  return std::make_unique<LowRankStep>(matrix, scale, is_table);
}

std::unique_ptr<RowStep> replace_step(const Tensor& whole, bool plus_one) {
  return std::make_unique<ReplaceStep>(whole, plus_one);
}

std::unique_ptr<RowStep> rows_step(const Tensor& rows, const std::vector<int32_t>& ids) {
  return std::make_unique<RowsStep>(rows, ids);
}

std::shared_ptr<RowChange> make_change(std::vector<std::unique_ptr<RowStep>> steps) {
  if (steps.empty()) return nullptr;
  return std::make_shared<Steps>(std::move(steps));
}

}  // namespace gemma
