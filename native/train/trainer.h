// Training of low-rank adapters (LoRA) on frozen weights of any stored type. The forward pass is that of
// native/model/forward.cpp in float32; weights are unpacked panel by panel in both directions and never copied whole, so
// a quantised model is trained on as it is stored (QLoRA).
// Sources: LoRA (Hu et al. 2021), PEFT's tuners/lora/layer.py for scales, dropout and initial values, torch.optim for
// AdamW and SGD, torch.nn.utils.clip_grad_norm_, DPO (Rafailov et al. 2023).
//
// One order of arithmetic: results do not depend on the number of threads, and a state that was saved and loaded goes on
// to the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/adapter.h"
#include "model/config.h"
#include "model/tensor_source.h"

namespace gemma::train {

struct LoraConfig {
  int rank = 8;
  float alpha = 16;     // the change of a matrix is alpha / rank * B A
  bool rslora = false;  // alpha / sqrt(rank) instead
  float dropout = 0;    // of the input of A, 0 <= dropout < 1
  uint64_t seed = 0;    // of A's initial values and of dropout
  // q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; empty: all seven.
  std::vector<std::string> targets;
  std::vector<int> layers;  // empty: all
};

struct OptimizerConfig {
  enum class Kind { kAdamW, kSgd };
  Kind kind = Kind::kAdamW;
  float beta1 = 0.9f;
  float beta2 = 0.999f;
  float epsilon = 1e-8f;
  float weight_decay = 0.01f;  // AdamW: decoupled; SGD: added to the gradient
  float momentum = 0;          // of SGD
  float clip = 0;              // largest norm of all gradients together; 0: no limit
};

struct LossConfig {
  enum class Kind {
    kNextToken,  // sum of w_i * -log p(token i | before) / sum of w_i, over all micro-batches of a step
    kDistill,    // alpha * T^2 * KL(teacher || student) + (1 - alpha) * next token, means over the counted tokens
    kDpo,        // examples come in pairs, chosen and rejected; mean over pairs of
                 // -log sigmoid(beta * ((log p_chosen - log r_chosen) - (log p_rejected - log r_rejected)))
  };
  Kind kind = Kind::kNextToken;
  float temperature = 1;  // T
  float alpha = 1;        // share of the teacher
  float beta = 0.1f;      // of DPO
};

// Rows of the frozen vision encoder in place of tokens first .. first + n - 1. They see each other both ways.
struct ImageRows {
  int first = 0;
  int n = 0;
  std::vector<float> embeddings;  // [n, model_dim]
};

// What the teacher of a distillation thinks of the token at one position.
struct TeacherRow {
  int target = 0;             // index of the token
  std::vector<int32_t> ids;   // of the logits, distinct; empty: logits are of the whole vocabulary
  std::vector<float> logits;  // up to a constant. The teacher's distribution is softmax(logits / T) over ids.
};

struct Example {
  std::vector<int32_t> tokens;  // positions from 0; where pictures are, ids do not count
  // [tokens] >= 0: weight of the loss of token i given those before it. 0: not counted. weights[0] is 0.
  std::vector<float> weights;
  std::vector<ImageRows> images;    // in their order, apart from each other
  std::vector<TeacherRow> teacher;  // kDistill: one for each counted token, in their order
  // kDpo: log p of the answer (sum of w_i log p_i) by the model without its adapter. Absent: computed, each time.
  std::optional<double> reference_log_prob;
};

// Examples that go through the layers together, one after the other in one packed row; none sees another.
using MicroBatch = std::vector<Example>;

struct TrainerOptions {
  LoraConfig lora;
  OptimizerConfig optimizer;
  LossConfig loss;
  std::string isa;    // of kernels; "": the best
  int n_threads = 0;  // 0: as many as there are cores
  // For what is kept of the forward pass, in bytes. What does not fit is computed again in the backward pass, a layer at
  // a time (activation checkpointing); the results are the same bits. The layers' inputs are kept in any case.
  uint64_t activation_bytes = uint64_t{512} << 20;
  int max_rows = 2048;  // tokens of a micro-batch
  // Where training begins; null: A uniform in +-1 / sqrt(n_in), B zero, as PEFT. Has to hold a pair for every matrix that
  // is trained and nothing else, with the rank and the scale of lora. Copied.
  const AdapterTensors* init = nullptr;
};

struct StepStats {
  double loss = 0;
  double gradient_norm = 0;  // before clipping
  int64_t tokens = 0;        // counted ones
  // kDpo, means over the pairs: beta * (log p_chosen - log r_chosen - (log p_rejected - log r_rejected)), and how often
  // that is above 0.
  double reward_margin = 0;
  double reward_accuracy = 0;
};

struct EvalStats {
  double loss = 0;
  double weight = 0;   // what the loss was divided by (sum of weights; kDpo: pairs): to join parts of a data set
  int64_t tokens = 0;  // counted ones
  double reward_margin = 0;
  double reward_accuracy = 0;
  std::vector<double> log_probs;  // [examples of all micro-batches]: sum of w_i * log p_i
};

// A matrix A or B.
struct AdapterParameter {
  std::string name;  // PEFT's: "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
  int layer = 0;
  std::string target;  // "down_proj"
  bool is_a = false;
  int n_rows = 0;                 // A: rank; B: n_out
  int n_cols = 0;                 // A: n_in; B: rank
  std::span<const float> values;  // [n_rows, n_cols]; changes with the next step
};

// What a training takes, in bytes.
struct TrainingPlan {
  uint64_t parameters = 0;   // A, B, their gradients and moments
  uint64_t activations = 0;  // what is kept of the layers
  uint64_t workspace = 0;    // everything else
  int kept_layers = 0;       // of which nothing is computed again
  uint64_t total() const { return parameters + activations + workspace; }
};
// For micro-batches of up to n_rows tokens. Weights are not counted. Throws as the constructor of Trainer.
TrainingPlan plan_training(const ModelConfig& config, const TrainerOptions& options, int n_rows);

// Not for several threads at once. An error leaves the state as it was before the call.
class Trainer {
 public:
  // tensors have to outlive this object. Throws Error: kInvalidArgument (an option; a target or layer that does not
  // exist), kUnsupportedModel (an encoder), kAdapterInvalid (init), kBackendUnavailable (isa), kGgufInvalid (tensors),
  // kOutOfMemory.
  Trainer(const TensorSource& tensors, const ModelConfig& config, const TrainerOptions& options);
  ~Trainer();
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  // One step of the optimiser over the micro-batches. should_stop may be empty; it is asked several times a layer.
  // Throws Error: kInvalidArgument with BAD_EXAMPLE (message names micro-batch and example) or NO_TARGET (nothing is
  // counted); kNonFinite with LOSS or GRADIENT (NaN or infinity: a learning rate too high, damaged weights);
  // kDisposed, CANCELLED; kOutOfMemory; kFile, FILE_CHANGED.
  StepStats step(std::span<const MicroBatch> batch, double learning_rate, const std::function<bool()>& should_stop);

  // The loss without dropout and gradients. use_adapter: false for the model as it is. Throws as step().
  EvalStats evaluate(std::span<const MicroBatch> batch, const std::function<bool()>& should_stop,
                     bool use_adapter = true);

  // Loss and gradients without a step: for tests. gradients() has them, until the next call.
  StepStats backward(std::span<const MicroBatch> batch, const std::function<bool()>& should_stop);

  // A and B of every trained matrix, sorted by name.
  std::vector<AdapterParameter> parameters() const;
  // The same with gradients as values.
  std::vector<AdapterParameter> gradients() const;

  float scale() const;         // of B A
  int64_t steps_done() const;  // also those before load_state()

  // Everything that training goes on from: A, B, moments, the number of steps.
  std::vector<std::byte> save_state() const;
  // Throws Error: kInvalidArgument, BAD_STATE when it is damaged or of another configuration.
  void load_state(std::span<const std::byte> state);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gemma::train
