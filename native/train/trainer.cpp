#include "train/trainer.h"

#include <algorithm>
#include <cmath>
#include <new>

#include "backend/cpu/cpu_features.h"
#include "backend/cpu/kernels.h"
#include "base/error.h"
#include "train/adapter_parameters.h"
#include "train/decoder.h"
#include "train/loss.h"
#include "train/products.h"
#include "train/row_layout.h"

namespace gemma::train {
namespace {

[[noreturn]] void bad_option(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "TRAINING_OPTION", message);
}

ModelConfig check(const ModelConfig& config, const TrainerOptions& options) {
  if (config.is_encoder)
    throw Error(ErrorCode::kUnsupportedModel, "ENCODER", "an embedding model cannot be trained: it makes no logits");
  const LossConfig& loss = options.loss;
  if (!(loss.temperature > 0) || !std::isfinite(loss.temperature)) bad_option("temperature: expected above 0");
  if (!(loss.alpha >= 0 && loss.alpha <= 1)) bad_option("alpha of the distillation: expected 0 to 1");
  if (!(loss.beta > 0) || !std::isfinite(loss.beta)) bad_option("beta of DPO: expected above 0");
  if (options.n_threads < 0) bad_option("threads: expected at least 0");
  if (options.max_rows < 2) bad_option("rows of a micro-batch: expected at least 2");
  return config;
}

int thread_count(const TrainerOptions& options) {
  return options.n_threads > 0 ? options.n_threads : cpu::usable_cores();
}

bool is_fraction_of_batch(float weight) {
  return weight >= 0 && std::isfinite(weight);
}

double log_sigmoid(double x) {
  return x < 0 ? x - std::log1p(std::exp(x)) : -std::log1p(std::exp(-x));
}

// What bad_alloc says, typed.
template <class F>
auto with_memory_errors(const F& f) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory, "", "not enough memory for this step of the training");
  } catch (const std::length_error&) {
    throw Error(ErrorCode::kOutOfMemory, "", "not enough memory for this step of the training");
  }
}

}  // namespace

TrainingPlan plan_training(const ModelConfig& config, const TrainerOptions& options, int n_rows) {
  check(config, options);
  const int n_threads = thread_count(options);
  const LoraConfig& lora = options.lora;
  int first_layer = lora.layers.empty() ? 0 : config.n_layers();
  for (const int layer : lora.layers) first_layer = std::min(first_layer, layer);
  TrainingPlan plan;
  plan.parameters = AdapterParameters::planned_bytes(config, lora, options.optimizer);
  const Decoder::Plan decoder =
      Decoder::plan(config, lora.rank, first_layer, n_threads, n_rows, n_rows, options.activation_bytes);
  plan.activations = decoder.kept;
  plan.kept_layers = decoder.kept_layers;
  const uint64_t gradient_of_rows =
      static_cast<uint64_t>(n_rows) * static_cast<uint64_t>(config.model_dim) * sizeof(float);
  plan.workspace = decoder.workspace + Products::workspace_bytes(n_threads) +
                   OutputLoss::planned_bytes(config, n_threads, n_rows) + gradient_of_rows;
  return plan;
}

class Trainer::Impl {
 public:
  Impl(const TensorSource& tensors, const ModelConfig& config, const TrainerOptions& options)
      : tensors_(tensors),
        config_(check(config, options)),
        options_(options),
        parameters_(config_, options.lora, options.optimizer, options.init),
        weights_(tensors, config_),
        products_(cpu::select_kernels(options.isa), thread_count(options)),
        decoder_(config_, weights_, parameters_, products_),
        loss_(config_, weights_, options.loss, products_) {
    options_.init = nullptr;
  }

  // Loss and, in training, gradients.
  EvalStats run(std::span<const MicroBatch> batch, const std::function<bool()>& should_stop, bool is_training,
                bool use_adapter) {
    const Totals totals = check_batch(batch);
    decoder_.reserve(totals.rows, totals.longest, options_.activation_bytes);
    loss_.reserve(totals.counted);
    if (is_training) parameters_.clear_gradients();
    EvalStats stats;
    stats.weight = is_dpo() ? totals.pairs : totals.weight;
    stats.tokens = totals.tokens;
    for (size_t i = 0; i < batch.size(); ++i)
      run_micro_batch(batch[i], i, stats, should_stop, is_training, use_adapter);
    if (is_dpo()) {
      stats.reward_margin /= totals.pairs;
      stats.reward_accuracy /= totals.pairs;
    }
    tensors_.check();
    if (!std::isfinite(stats.loss)) {
      throw Error(ErrorCode::kNonFinite, "LOSS",
                  "the loss is not finite: the learning rate may be too high, or the weights are damaged");
    }
    return stats;
  }

  StepStats backward(std::span<const MicroBatch> batch, const std::function<bool()>& should_stop) {
    const EvalStats stats = run(batch, should_stop, true, true);
    StepStats step;
    step.loss = stats.loss;
    step.tokens = stats.tokens;
    step.reward_margin = stats.reward_margin;
    step.reward_accuracy = stats.reward_accuracy;
    step.gradient_norm = parameters_.gradient_norm(products_.pool());
    if (!std::isfinite(step.gradient_norm)) {
      throw Error(ErrorCode::kNonFinite, "GRADIENT",
                  "a gradient is not finite: the learning rate may be too high, or the weights are damaged");
    }
    return step;
  }

  StepStats step(std::span<const MicroBatch> batch, double learning_rate, const std::function<bool()>& should_stop) {
    if (!std::isfinite(learning_rate) || learning_rate < 0) bad_option("learning rate: expected at least 0");
    const StepStats stats = backward(batch, should_stop);
    parameters_.step(products_.pool(), learning_rate, stats.gradient_norm);
    return stats;
  }

  AdapterParameters& parameters() { return parameters_; }

 private:
  // Of all micro-batches.
  struct Totals {
    int rows = 0;     // of the largest
    int longest = 0;  // example
    int counted = 0;  // tokens of a micro-batch, the most
    int64_t tokens = 0;
    double weight = 0;
    double pairs = 0;
  };

  bool is_dpo() const { return options_.loss.kind == LossConfig::Kind::kDpo; }
  bool distills() const { return options_.loss.kind == LossConfig::Kind::kDistill; }

  Totals check_batch(std::span<const MicroBatch> batch) {
    Totals totals;
    for (size_t i = 0; i < batch.size(); ++i) {
      const MicroBatch& micro = batch[i];
      const auto bad = [&](size_t example, const std::string& what) {
        throw Error(ErrorCode::kInvalidArgument, "BAD_EXAMPLE",
                    "micro-batch " + std::to_string(i) + ", example " + std::to_string(example) + ": " + what);
      };
      if (is_dpo() && micro.size() % 2 != 0) bad(micro.size() - 1, "DPO takes pairs, this one has no second");
      int rows = 0;
      int counted = 0;
      for (size_t j = 0; j < micro.size(); ++j) {
        const int n = check_example(micro[j], [&](const std::string& what) { bad(j, what); });
        rows += n;
        if (rows > options_.max_rows || n > options_.max_rows) {
          bad(j, "the micro-batch has more than " + std::to_string(options_.max_rows) + " tokens");
        }
        totals.longest = std::max(totals.longest, n);
        int own = 0;
        for (const float weight : micro[j].weights) {
          own += weight > 0;
          totals.weight += static_cast<double>(weight);
        }
        if (is_dpo() && own == 0) bad(j, "no token of an answer counts");
        counted += own;
      }
      totals.rows = std::max(totals.rows, rows);
      totals.counted = std::max(totals.counted, counted);
      totals.tokens += counted;
      const size_t n_pairs = micro.size() / 2;
      totals.pairs += static_cast<double>(n_pairs);
    }
    if (totals.tokens == 0) throw Error(ErrorCode::kInvalidArgument, "NO_TARGET", "no token of any example counts");
    return totals;
  }

  // Returns the number of its tokens.
  template <class Bad>
  int check_example(const Example& example, const Bad& bad) {
    const size_t n = example.tokens.size();
    if (n == 0) bad("it is empty");
    if (n > static_cast<size_t>(options_.max_rows) || n > static_cast<size_t>(config_.n_ctx_train)) {
      bad("it has " + std::to_string(n) + " tokens, expected at most " +
          std::to_string(std::min(options_.max_rows, config_.n_ctx_train)));
    }
    if (example.weights.size() != n)
      bad("expected a weight for each of " + std::to_string(n) + " tokens, found " +
          std::to_string(example.weights.size()));
    if (!std::all_of(example.weights.begin(), example.weights.end(), is_fraction_of_batch))
      bad("a weight is negative or not finite");
    if (example.weights[0] != 0) bad("the first token has a weight, and nothing predicts it");
    int end = 0;
    for (const ImageRows& image : example.images) {
      if (image.n < 1 || image.first < end || static_cast<size_t>(image.first) + static_cast<size_t>(image.n) > n)
        bad("pictures overlap, are empty or not in order, or are not within the tokens");
      if (image.embeddings.size() != static_cast<size_t>(image.n) * static_cast<size_t>(config_.model_dim))
        bad("a picture's rows are not as wide as the model");
      end = image.first + image.n;
      for (int i = image.first; i < end; ++i) {
        if (example.weights[static_cast<size_t>(i)] != 0) bad("a row of a picture has a weight");
      }
    }
    auto image = example.images.begin();
    for (size_t i = 0; i < n; ++i) {
      while (image != example.images.end() && static_cast<size_t>(image->first + image->n) <= i) ++image;
      if (image != example.images.end() && static_cast<size_t>(image->first) <= i) continue;
      if (example.tokens[i] < 0 || example.tokens[i] >= config_.n_vocab) {
        bad("token " + std::to_string(example.tokens[i]) + " at " + std::to_string(i) +
            " is not in the vocabulary of " + std::to_string(config_.n_vocab));
      }
    }
    if (example.reference_log_prob && !std::isfinite(*example.reference_log_prob))
      bad("the reference's log-probability is not finite");
    if (distills()) check_teacher(example, bad);
    return static_cast<int>(n);
  }

  template <class Bad>
  void check_teacher(const Example& example, const Bad& bad) {
    size_t next = 0;
    for (size_t i = 0; i < example.weights.size(); ++i) {
      if (example.weights[i] == 0) continue;
      if (next == example.teacher.size() || example.teacher[next].target != static_cast<int>(i))
        bad("expected a row of the teacher for each token that counts, in their order; none for token " +
            std::to_string(i));
      const TeacherRow& row = example.teacher[next++];
      const size_t expected = row.ids.empty() ? static_cast<size_t>(config_.n_vocab) : row.ids.size();
      if (row.logits.size() != expected) {
        bad("a teacher's row has " + std::to_string(row.logits.size()) + " logits, expected " +
            std::to_string(expected));
      }
      if (!std::all_of(row.logits.begin(), row.logits.end(), [](float x) { return std::isfinite(x); }))
        bad("a teacher's logit is not finite");
      std::vector<int32_t> ids = row.ids;
      std::sort(ids.begin(), ids.end());
      if (!ids.empty() && (ids.front() < 0 || ids.back() >= config_.n_vocab))
        bad("a teacher's token is not in the vocabulary");
      if (std::adjacent_find(ids.begin(), ids.end()) != ids.end()) bad("a teacher's row names a token twice");
    }
    if (next != example.teacher.size()) bad("a teacher's row is of a token that does not count");
  }

  static std::vector<CountedToken> counted_tokens(const MicroBatch& micro, std::vector<size_t>& first_of_example) {
    std::vector<CountedToken> all;
    int row = 0;
    for (const Example& example : micro) {
      first_of_example.push_back(all.size());
      size_t next = 0;
      for (size_t i = 0; i < example.tokens.size(); ++i, ++row) {
        if (example.weights[i] == 0) continue;
        const TeacherRow* teacher = next < example.teacher.size() ? &example.teacher[next++] : nullptr;
        all.push_back({row - 1, example.tokens[i], static_cast<double>(example.weights[i]), teacher});
      }
    }
    first_of_example.push_back(all.size());
    return all;
  }

  // Log-probabilities of the examples' answers.
  std::vector<double> answer_log_probs(std::span<const CountedToken> tokens, std::span<const size_t> first,
                                       std::span<const double> log_probs) const {
    std::vector<double> sums;
    for (size_t example = 0; example + 1 < first.size(); ++example) {
      double sum = 0;
      for (size_t i = first[example]; i < first[example + 1]; ++i) sum += tokens[i].weight * log_probs[i];
      sums.push_back(sum);
    }
    return sums;
  }

  // Of DPO, without the adapter, where examples do not say them.
  std::vector<double> reference_log_probs(const MicroBatch& micro, const RowLayout& rows,
                                          std::span<const CountedToken> tokens, std::span<const size_t> first,
                                          Pass pass) {
    std::vector<double> sums(micro.size());
    if (!std::all_of(micro.begin(), micro.end(), [](const Example& e) { return e.reference_log_prob.has_value(); })) {
      pass.use_adapter = false;
      pass.is_training = false;
      std::vector<double> log_probs(tokens.size());
      std::vector<double> divergences(tokens.size());
      loss_.run(decoder_.forward(rows, pass), tokens, false, pass.should_stop, log_probs.data(), divergences.data());
      sums = answer_log_probs(tokens, first, log_probs);
    }
    for (size_t i = 0; i < micro.size(); ++i) sums[i] = micro[i].reference_log_prob.value_or(sums[i]);
    return sums;
  }

  void run_micro_batch(const MicroBatch& micro, size_t index, EvalStats& stats,
                       const std::function<bool()>& should_stop, bool is_training, bool use_adapter) {
    std::vector<size_t> first;
    const std::vector<CountedToken> tokens = counted_tokens(micro, first);
    if (tokens.empty()) {
      stats.log_probs.insert(stats.log_probs.end(), micro.size(), 0.0);
      return;
    }
    const RowLayout rows = RowLayout::of(micro, decoder_.windows());
    Pass pass;
    pass.use_adapter = use_adapter;
    pass.is_training = is_training;
    pass.dropout = is_training ? options_.lora.dropout : 0;
    pass.dropout_stream =
        RandomStream(options_.lora.seed).at(1).at(static_cast<uint64_t>(parameters_.steps_done())).at(index);
    pass.should_stop = &should_stop;
    std::vector<double> references;
    if (is_dpo()) references = reference_log_probs(micro, rows, tokens, first, pass);
    const float* hidden = decoder_.forward(rows, pass);
    std::vector<double> log_probs(tokens.size());
    std::vector<double> divergences(tokens.size());
    loss_.run(hidden, tokens, is_training, &should_stop, log_probs.data(), divergences.data());
    const std::vector<double> answers = answer_log_probs(tokens, first, log_probs);
    stats.log_probs.insert(stats.log_probs.end(), answers.begin(), answers.end());
    // The gradient of the loss of the whole batch by each token's own.
    std::vector<double> factors(tokens.size());
    if (is_dpo()) {
      const double beta = static_cast<double>(options_.loss.beta);
      for (size_t chosen = 0; chosen < micro.size(); chosen += 2) {
        const size_t rejected = chosen + 1;
        const double margin =
            beta * ((answers[chosen] - references[chosen]) - (answers[rejected] - references[rejected]));
        stats.loss -= log_sigmoid(margin) / stats.weight;
        stats.reward_margin += margin;
        stats.reward_accuracy += margin > 0;
        const double slope = beta * std::exp(log_sigmoid(-margin)) / stats.weight;
        for (size_t i = first[chosen]; i < first[rejected]; ++i) factors[i] = slope * tokens[i].weight;
        for (size_t i = first[rejected]; i < first[rejected + 1]; ++i) factors[i] = -slope * tokens[i].weight;
      }
    } else {
      const double t = static_cast<double>(options_.loss.temperature);
      const double share = distills() ? static_cast<double>(options_.loss.alpha) : 0;
      for (size_t i = 0; i < tokens.size(); ++i) {
        factors[i] = tokens[i].weight / stats.weight;
        stats.loss += factors[i] * (share * t * t * divergences[i] - (1 - share) * log_probs[i]);
      }
    }
    if (!is_training || !std::isfinite(stats.loss)) return;
    d_x_.resize(std::max(d_x_.size(), static_cast<size_t>(rows.n()) * static_cast<size_t>(config_.model_dim)));
    loss_.hidden_gradient(hidden, tokens, factors, rows.n(), d_x_.data());
    decoder_.backward(rows, pass, d_x_.data());
  }

  const TensorSource& tensors_;
  const ModelConfig config_;
  TrainerOptions options_;
  AdapterParameters parameters_;
  FrozenWeights weights_;
  Products products_;
  Decoder decoder_;
  OutputLoss loss_;
  std::vector<float> d_x_;
};

Trainer::Trainer(const TensorSource& tensors, const ModelConfig& config, const TrainerOptions& options)
    : impl_(with_memory_errors([&] { return std::make_unique<Impl>(tensors, config, options); })) {}

Trainer::~Trainer() = default;

StepStats Trainer::step(std::span<const MicroBatch> batch, double learning_rate,
                        const std::function<bool()>& should_stop) {
  return with_memory_errors([&] { return impl_->step(batch, learning_rate, should_stop); });
}

EvalStats Trainer::evaluate(std::span<const MicroBatch> batch, const std::function<bool()>& should_stop,
                            bool use_adapter) {
  return with_memory_errors([&] { return impl_->run(batch, should_stop, false, use_adapter); });
}

StepStats Trainer::backward(std::span<const MicroBatch> batch, const std::function<bool()>& should_stop) {
  return with_memory_errors([&] { return impl_->backward(batch, should_stop); });
}

std::vector<AdapterParameter> Trainer::parameters() const {
  return impl_->parameters().list(false);
}

std::vector<AdapterParameter> Trainer::gradients() const {
  return impl_->parameters().list(true);
}

float Trainer::scale() const {
  return impl_->parameters().scale();
}

int64_t Trainer::steps_done() const {
  return impl_->parameters().steps_done();
}

std::vector<std::byte> Trainer::save_state() const {
  return with_memory_errors([&] { return impl_->parameters().save(); });
}

void Trainer::load_state(std::span<const std::byte> state) {
  impl_->parameters().load(state);
}

}  // namespace gemma::train
