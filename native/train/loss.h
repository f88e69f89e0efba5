// The loss of rows and its gradient, streamed over the vocabulary: logits exist for some rows and some words at a time.
// With the gradient of its input in the same pass, as FlashAttention has it for softmax: sums of exp(logit - max) W go
// along with the maximum so far and are divided at the end. Distillation needs its sums before and takes a second pass.
// Source: Cut Cross-Entropy (Wijmans et al. 2024).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/large_memory.h"
#include "model/config.h"
#include "train/decoder.h"
#include "train/products.h"
#include "train/trainer.h"

namespace gemma::train {

// A token whose loss counts.
struct CountedToken {
  int row = 0;  // which predicts it
  int32_t token = 0;
  double weight = 0;
  const TeacherRow* teacher = nullptr;
};

class OutputLoss {
 public:
  OutputLoss(const ModelConfig& config, const FrozenWeights& weights, const LossConfig& loss, Products& products);

  static uint64_t planned_bytes(const ModelConfig& config, int n_threads, int n_rows);
  void reserve(int n_rows);

  // For each token log p in log_probs and, where the loss is a distillation and it has a teacher, KL(teacher || student)
  // at the loss's temperature in divergences. hidden: rows of the decoder, [., model_dim].
  void run(const float* hidden, std::span<const CountedToken> tokens, bool wants_gradient,
           const std::function<bool()>* should_stop, double* log_probs, double* divergences);
  // After run() with a gradient: d_x, [n_rows, model_dim], of all rows of hidden. That of token i has factors[i] times the
  // gradient of its own loss (-log p, or what a distillation mixes), rows without a token have 0.
  void hidden_gradient(const float* hidden, std::span<const CountedToken> tokens, std::span<const double> factors,
                       int n_rows, float* d_x);

 private:
  struct Shape;
  struct Buffers {
    float* normed = nullptr;         // [block, model_dim]
    float* packed = nullptr;         // the same as the left side of a product
    float* logits = nullptr;         // [block, words]
    float* packed_logits = nullptr;  // likewise
    float* copies = nullptr;         // [threads][words]
    float* gradients = nullptr;      // [rows, model_dim]
  };
  struct RowSums {
    float most = 0;       // of the logits so far
    double sum = 0;       // of exp(logit - most)
    double tempered = 0;  // of exp((logit - most) / T)
    float target = 0;     // the target's logit
    float slope = 1;      // its gradient by the product that was soft-capped
  };
  // What a teacher says, by ids in order; without ids of all words.
  struct Teacher {
    std::vector<int32_t> ids;
    std::vector<float> probabilities;
    double negative_entropy = 0;  // sum of p log p
    double cross = 0;             // sum of p * logit / T of the student
  };
  template <class F>
  static void each(Buffers& b, const Shape& s, F& f);
  template <class F>
  void for_rows(int n, const F& f);
  // f(word - first_word, probability) for those of the teacher's that are among these words.
  template <class F>
  static void for_teacher(const Teacher& teacher, int first_word, int n_words, const F& f);
  Teacher read_teacher(const TeacherRow& row) const;
  bool distills() const { return loss_.kind == LossConfig::Kind::kDistill; }

  void run_block(const float* hidden, std::span<const CountedToken> tokens, bool wants_gradient,
                 const std::function<bool()>* should_stop, double* log_probs, double* divergences, float* gradients);
  // The first pass over some words: sums and, but for a distillation, what the gradient adds up.
  void sum_words(std::span<const CountedToken> tokens, int first_word, int n_words, bool wants_gradient,
                 float* gradients);
  // The second one of a distillation: logits become their gradients.
  void distill_words(std::span<const CountedToken> tokens, int first_word, int n_words);
  void compute_logits(int n, int first_word, int n_words);
  void add_words(int n, int first_word, int n_words, float* gradients);
  float slope(float logit) const;

  const ModelConfig& config_;
  const FrozenWeights& weights_;
  LossConfig loss_;
  Products& products_;
  int n_reserved_ = 0;
  std::unique_ptr<LargeMemory> memory_;
  Buffers buffers_;
  std::vector<RowSums> sums_;
  std::vector<Teacher> teachers_;
};

}  // namespace gemma::train
