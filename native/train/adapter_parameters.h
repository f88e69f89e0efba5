// A and B of the matrices that are trained, their gradients, and what the optimiser keeps of them. All lie in flat arrays
// in the order of their PEFT names.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "model/weights.h"
#include "train/trainer.h"

namespace gemma::train {

// Matrices of a layer that can be trained.
inline constexpr int kTargets = 7;
struct TargetMatrix {
  const char* name;    // PEFT's, "q_proj"
  const char* module;  // "self_attn"
  const char* tensor;  // the model's, "attn_q"
  Weight LayerWeights::* weight;
};
enum Target { kQ, kK, kV, kO, kGate, kUp, kDown };
extern const std::array<TargetMatrix, kTargets> kTargetMatrices;
int target_out(const ModelConfig& config, int layer, int target);
int target_in(const ModelConfig& config, int layer, int target);

// Of one matrix; pointers are null where it is not trained.
struct LowRankPair {
  float* a = nullptr;  // [rank, n_in]
  float* b = nullptr;  // [n_out, rank]
  float* a_gradient = nullptr;
  float* b_gradient = nullptr;
};

class AdapterParameters {
 public:
  // Throws as the constructor of Trainer does of options.
  AdapterParameters(const ModelConfig& config, const LoraConfig& lora, const OptimizerConfig& optimizer,
                    const AdapterTensors* init);
  static uint64_t planned_bytes(const ModelConfig& config, const LoraConfig& lora, const OptimizerConfig& optimizer);

  int rank() const { return rank_; }
  float scale() const { return scale_; }
  int first_layer() const { return first_layer_; }  // the lowest that is trained
  const LowRankPair& pair(int layer, int target) const {
    return pairs_[static_cast<size_t>(layer)][static_cast<size_t>(target)];
  }
  int64_t steps_done() const { return steps_done_; }

  void clear_gradients();
  // In an order of its own: not of the threads.
  double gradient_norm(ThreadPool& pool) const;
  // gradient_norm: as above, finite.
  void step(ThreadPool& pool, double learning_rate, double gradient_norm);

  std::vector<AdapterParameter> list(bool gradients) const;
  std::vector<std::byte> save() const;
  void load(std::span<const std::byte> state);

 private:
  struct Place {
    AdapterParameter parameter;
    size_t offset = 0;
    size_t size() const { return static_cast<size_t>(parameter.n_rows) * static_cast<size_t>(parameter.n_cols); }
  };
  static std::vector<Place> places(const ModelConfig& config, const LoraConfig& lora);
  uint64_t fingerprint() const;
  void initialize(uint64_t seed);
  void read(const AdapterTensors& init);

  LoraConfig lora_;
  OptimizerConfig optimizer_;
  int rank_;
  float scale_;
  int first_layer_;
  std::vector<Place> places_;
  std::vector<std::array<LowRankPair, kTargets>> pairs_;  // [layers]
  size_t size_ = 0;
  std::vector<float> values_;
  std::vector<float> gradients_;
  std::vector<float> first_moments_;   // SGD: the momentum's; empty without
  std::vector<float> second_moments_;  // AdamW
  int64_t steps_done_ = 0;
};

}  // namespace gemma::train
