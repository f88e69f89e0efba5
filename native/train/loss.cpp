#include "train/loss.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "quant/dequantize.h"

namespace gemma::train {
namespace {

// Logits of so many rows and words exist at a time.
constexpr int kBlockRows = 44 * cpu::kPanelRows;
constexpr int kWords = 2048;
constexpr size_t kStride = kWords + kReadAhead;

size_t sz(int n) {
  return static_cast<size_t>(n);
}

}  // namespace

struct OutputLoss::Shape {
  size_t block;
  size_t rows;
  size_t model_dim;
  size_t n_threads;

  Shape(const ModelConfig& config, int n_threads_, int n_rows)
      : block(sz(std::min(n_rows, kBlockRows))),
        rows(sz(n_rows)),
        model_dim(sz(config.model_dim)),
        n_threads(sz(n_threads_)) {}
};

template <class F>
void OutputLoss::each(Buffers& b, const Shape& s, F& f) {
  f(b.normed, s.block * s.model_dim);
  f(b.packed, packed_floats(s.block, s.model_dim));
  f(b.logits, s.block * kStride);
  f(b.packed_logits, packed_floats(s.block, kWords));
  f(b.copies, s.n_threads * kWords);
  f(b.gradients, s.rows * s.model_dim);
}

OutputLoss::OutputLoss(const ModelConfig& config, const FrozenWeights& weights, const LossConfig& loss,
                       Products& products)
    : config_(config), weights_(weights), loss_(loss), products_(products) {}

uint64_t OutputLoss::planned_bytes(const ModelConfig& config, int n_threads, int n_rows) {
  Buffers buffers;
  Arena arena;
  each(buffers, Shape(config, n_threads, n_rows), arena);
  return arena.bytes();
}

void OutputLoss::reserve(int n_rows) {
  if (n_rows <= n_reserved_) return;
  n_reserved_ = 0;
  memory_.reset();
  memory_ = std::make_unique<LargeMemory>(planned_bytes(config_, products_.n_threads(), n_rows));
  Arena arena(memory_->data());
  each(buffers_, Shape(config_, products_.n_threads(), n_rows), arena);
  n_reserved_ = n_rows;
}

template <class F>
void OutputLoss::for_rows(int n, const F& f) {
  constexpr int kChunk = 4;
  products_.pool().parallel_for((n + kChunk - 1) / kChunk, [&](int chunk, int thread) {
    for (int i = chunk * kChunk; i < std::min(n, (chunk + 1) * kChunk); ++i) f(sz(i), sz(thread));
  });
}

template <class F>
void OutputLoss::for_teacher(const Teacher& teacher, int first_word, int n_words, const F& f) {
  if (teacher.ids.empty()) {
    for (int j = 0; j < n_words; ++j) f(sz(j), teacher.probabilities[sz(first_word + j)]);
    return;
  }
  const auto begin = std::lower_bound(teacher.ids.begin(), teacher.ids.end(), first_word);
  for (auto id = begin; id != teacher.ids.end() && *id < first_word + n_words; ++id)
    f(sz(*id - first_word), teacher.probabilities[sz(static_cast<int>(id - teacher.ids.begin()))]);
}

OutputLoss::Teacher OutputLoss::read_teacher(const TeacherRow& row) const {
  Teacher teacher;
  const size_t n = row.logits.size();
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  if (!row.ids.empty())
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return row.ids[a] < row.ids[b]; });
  const double most = static_cast<double>(*std::max_element(row.logits.begin(), row.logits.end()));
  const double temperature = static_cast<double>(loss_.temperature);
  const auto scaled = [&](size_t i) { return (static_cast<double>(row.logits[i]) - most) / temperature; };
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += std::exp(scaled(i));
  const double log_sum = std::log(sum);
  for (const size_t i : order) {
    const double p = std::exp(scaled(i) - log_sum);
    if (!row.ids.empty()) teacher.ids.push_back(row.ids[i]);
    teacher.probabilities.push_back(static_cast<float>(p));
    if (p > 0) teacher.negative_entropy += p * (scaled(i) - log_sum);
  }
  return teacher;
}

float OutputLoss::slope(float logit) const {
  const float ratio = logit / config_.final_softcap;
  return 1 - ratio * ratio;
}

void OutputLoss::compute_logits(int n, int first_word, int n_words) {
  const Term term = {{buffers_.packed, sz(config_.model_dim) * cpu::kPanelRows},
                     config_.model_dim,
                     {RightSide::Kind::kWeight, &weights_.output, first_word, {}}};
  products_.multiply({&term, 1}, n, n_words, buffers_.logits, kStride, false);
  if (!(config_.final_softcap > 0)) return;
  for_rows(n, [&](size_t i, size_t) {
    float* row = buffers_.logits + i * kStride;
    for (int j = 0; j < n_words; ++j) row[j] = config_.final_softcap * std::tanh(row[j] / config_.final_softcap);
  });
}

void OutputLoss::add_words(int n, int first_word, int n_words, float* gradients) {
  const Term term = {products_.pack({buffers_.logits, kStride}, n, n_words, 1, buffers_.packed_logits),
                     n_words,
                     {RightSide::Kind::kWeightTransposed, &weights_.output, first_word, {}}};
  products_.multiply({&term, 1}, n, config_.model_dim, gradients, sz(config_.model_dim), first_word > 0);
}

void OutputLoss::sum_words(std::span<const CountedToken> tokens, int first_word, int n_words, bool wants_gradient,
                           float* gradients) {
  const cpu::Kernels& kernels = products_.kernels();
  const size_t dim = sz(config_.model_dim);
  const bool has_cap = config_.final_softcap > 0;
  const float inverse_temperature = 1 / loss_.temperature;
  for_rows(static_cast<int>(tokens.size()), [&](size_t i, size_t thread) {
    float* row = buffers_.logits + i * kStride;
    float* copy = buffers_.copies + thread * kWords;
    RowSums& s = sums_[i];
    const int target = tokens[i].token - first_word;
    if (target >= 0 && target < n_words) {
      s.target = row[target];
      if (has_cap) s.slope = slope(s.target);
    }
    const float most = std::max(s.most, kernels.largest(row, n_words));
    if (most > s.most && first_word > 0) {
      const float factor = std::exp(s.most - most);
      s.sum *= static_cast<double>(factor);
      s.tempered *= std::exp(static_cast<double>((s.most - most) * inverse_temperature));
      for (size_t j = 0; wants_gradient && !distills() && j < dim; ++j) gradients[i * dim + j] *= factor;
    }
    s.most = most;
    if (distills()) {
      Teacher& teacher = teachers_[i];
      for_teacher(teacher, first_word, n_words, [&](size_t j, float p) {
        teacher.cross +=
            static_cast<double>(p) * static_cast<double>(row[j]) * static_cast<double>(inverse_temperature);
      });
      std::copy_n(row, n_words, copy);
      s.tempered +=
          static_cast<double>(kernels.exp_row(copy, n_words, inverse_temperature, most * inverse_temperature));
    }
    if (has_cap) std::copy_n(row, n_words, copy);
    s.sum += static_cast<double>(kernels.exp_row(row, n_words, 1, most));
    for (int j = 0; has_cap && j < n_words; ++j) row[j] *= slope(copy[j]);
  });
}

void OutputLoss::distill_words(std::span<const CountedToken> tokens, int first_word, int n_words) {
  const cpu::Kernels& kernels = products_.kernels();
  const float t = loss_.temperature;
  const float share = loss_.alpha;
  for_rows(static_cast<int>(tokens.size()), [&](size_t i, size_t thread) {
    float* row = buffers_.logits + i * kStride;
    float* tempered = buffers_.copies + thread * kWords;
    const RowSums& s = sums_[i];
    std::copy_n(row, n_words, tempered);
    kernels.exp_row(tempered, n_words, 1 / t, s.most / t);
    const float teachers_factor = share * t;
    const float factor = teachers_factor / static_cast<float>(s.tempered);
    for (int j = 0; j < n_words; ++j) tempered[j] *= factor;
    for_teacher(teachers_[i], first_word, n_words, [&](size_t j, float p) { tempered[j] -= teachers_factor * p; });
    const int target = tokens[i].token - first_word;
    if (target >= 0 && target < n_words) tempered[target] -= 1 - share;
    if (config_.final_softcap > 0) {
      for (int j = 0; j < n_words; ++j) {
        const float p = std::exp(row[j] - s.most) / static_cast<float>(s.sum);
        row[j] = ((1 - share) * p + tempered[j]) * slope(row[j]);
      }
      return;
    }
    kernels.exp_row(row, n_words, 1, s.most);
    const float own = (1 - share) / static_cast<float>(s.sum);
    for (int j = 0; j < n_words; ++j) row[j] = own * row[j] + tempered[j];
  });
}

void OutputLoss::run_block(const float* hidden, std::span<const CountedToken> tokens, bool wants_gradient,
                           const std::function<bool()>* should_stop, double* log_probs, double* divergences,
                           float* gradients) {
  const int n = static_cast<int>(tokens.size());
  const size_t dim = sz(config_.model_dim);
  sums_.assign(tokens.size(), {-std::numeric_limits<float>::infinity(), 0, 0, 0, 1});
  teachers_.clear();
  for (size_t i = 0; distills() && i < tokens.size(); ++i) teachers_.push_back(read_teacher(*tokens[i].teacher));
  for_rows(n, [&](size_t i, size_t) {
    rms_norm(buffers_.normed + i * dim, hidden + sz(tokens[i].row) * dim, weights_.output_norm, dim, config_.rms_eps);
  });
  products_.pack({buffers_.normed, dim}, n, config_.model_dim, 1, buffers_.packed);
  const auto for_words = [&](const auto& f) {
    for (int word = 0; word < config_.n_vocab; word += kWords) {
      stop_if(should_stop);
      const int n_words = std::min(kWords, config_.n_vocab - word);
      compute_logits(n, word, n_words);
      f(word, n_words);
    }
  };
  for_words([&](int word, int n_words) {
    sum_words(tokens, word, n_words, wants_gradient, gradients);
    if (wants_gradient && !distills()) add_words(n, word, n_words, gradients);
  });
  for (size_t i = 0; i < tokens.size(); ++i) {
    const RowSums& s = sums_[i];
    log_probs[i] = static_cast<double>(s.target) - static_cast<double>(s.most) - std::log(s.sum);
    if (!distills()) continue;
    const Teacher& teacher = teachers_[i];
    const double log_sum = static_cast<double>(s.most / loss_.temperature) + std::log(s.tempered);
    divergences[i] = teacher.negative_entropy - teacher.cross + log_sum;
  }
  if (!wants_gradient) return;
  if (distills()) {
    for_words([&](int word, int n_words) {
      distill_words(tokens, word, n_words);
      add_words(n, word, n_words, gradients);
    });
    return;
  }
  const size_t bytes = row_bytes(weights_.output.type, weights_.output.n_in);
  for_rows(n, [&](size_t i, size_t) {
    const RowSums& s = sums_[i];
    float* own = buffers_.normed + i * dim;
    dequantize_row(weights_.output.type, weights_.output.data + static_cast<size_t>(tokens[i].token) * bytes, own,
                   config_.model_dim);
    const float inverse = static_cast<float>(1 / s.sum);
    float* row = gradients + i * dim;
    for (size_t j = 0; j < dim; ++j) row[j] = row[j] * inverse - s.slope * own[j];
  });
}

void OutputLoss::run(const float* hidden, std::span<const CountedToken> tokens, bool wants_gradient,
                     const std::function<bool()>* should_stop, double* log_probs, double* divergences) {
  for (size_t first = 0; first < tokens.size(); first += kBlockRows) {
    const size_t n = std::min<size_t>(kBlockRows, tokens.size() - first);
    run_block(hidden, tokens.subspan(first, n), wants_gradient, should_stop, log_probs + first, divergences + first,
              buffers_.gradients + first * sz(config_.model_dim));
  }
}

void OutputLoss::hidden_gradient(const float* hidden, std::span<const CountedToken> tokens,
                                 std::span<const double> factors, int n_rows, float* d_x) {
  const size_t dim = sz(config_.model_dim);
  std::fill_n(d_x, sz(n_rows) * dim, 0.0f);
  for_rows(static_cast<int>(tokens.size()), [&](size_t i, size_t) {
    float* d = buffers_.gradients + i * dim;
    const float factor = static_cast<float>(factors[i]);
    for (size_t j = 0; j < dim; ++j) d[j] *= factor;
    const size_t row = sz(tokens[i].row) * dim;
    rms_norm_backward(d_x + row, hidden + row, weights_.output_norm, d, dim, config_.rms_eps, false);
  });
}

}  // namespace gemma::train
