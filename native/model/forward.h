// The forward pass of Gemma 3 over a ragged batch: rows of any number of sequences go through the layers
// together. Written once, over backend.h. Source: Gemma 3 report, section 2; Hugging Face modeling_gemma3.py.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "model/activations.h"
#include "model/adapter.h"
#include "model/cache.h"
#include "model/config.h"
#include "model/heads.h"
#include "model/logits.h"
#include "model/weights.h"

namespace gemma {

// The rows of an image in a sequence: they stand where the embeddings of tokens would, and see each other both ways.
struct ImageRows {
  int first_position = 0;
  int n = 0;
  const float* embedding = nullptr;  // [n, model_dim] on the host, not scaled
};

// A token of a step whose row is wanted, and what of it.
struct WantedRow {
  int index = 0;  // among the tokens of the step
  TopRows top;    // which logits are needed; the others may be left out
};

// What one sequence adds to a step: n tokens at positions first_position, first_position + 1, ...
struct SequenceInput {
  KvSequence* kv = nullptr;
  int first_position = 0;
  std::span<const int32_t> tokens;
  std::span<const WantedRow> wanted;  // ascending
  // The sequence's images in order; one that the step touches lies in it as a whole. Tokens in their place mean
  // nothing.
  std::span<const ImageRows> images;
  // The tokens are part of a prompt: they may be computed by faster arithmetic than tokens that come one by one
  // (Bulk). Of a step's inputs, those come last.
  bool is_prompt = false;
  const AdapterMix* adapters = nullptr;  // null: none
};

class Model {
 public:
  // stages: all layers in order; weights: of load_weights with the same stages. Takes all memory but the cache's, of
  // which no sequence takes more than the limits say. Throws Error{kOutOfMemory}, and as KvPool does.
  Model(std::span<const Stage> stages, ModelConfig config, Weights weights, const ModelLimits& limits);

  const ModelConfig& config() const { return config_; }
  const TensorSource& tensors() const { return *weights_.tensors; }
  KvPool& kv_pool() { return kv_pool_; }
  int max_batch() const { return max_batch_; }
  // Whether a token of a prompt (SequenceInput::is_prompt) differs in the last bits from the same token coming alone.
  bool computes_prompts_apart() const { return computes_prompts_apart_; }

  // The body and then the logits head: runs the tokens of all sequences through the layers and calls
  // on_logits(sequence, index, logits) for every wanted row, in order; logits may be changed in place and are valid
  // during the call. should_stop is asked between layers; when it says true the step is given up and false returned:
  // nothing is lost but the work, the step can be repeated. Throws Error{kOutOfMemory} when the cache cannot grow.
  bool forward(std::span<const SequenceInput> inputs, const std::function<bool()>& should_stop,
               const std::function<void(size_t sequence, int index, const Logits& logits)>& on_logits);

  // The body and then the first half of the embedding head: adds the rows of each input, normed, to the sum of the same
  // index, [model_dim]. An encoder's inputs are whole texts. should_stop and errors as above; sums are as they were
  // where the step is given up.
  bool pool(std::span<const SequenceInput> inputs, const std::function<bool()>& should_stop,
            std::span<double* const> sums);
  EmbeddingHead& embedding_head() { return *embedding_head_; }

  // The body alone: its rows are in hidden() until the next step. should_stop and errors as above.
  bool run_layers(std::span<const SequenceInput> inputs, const std::function<bool()>& should_stop);
  // Called with what comes into each product of a layer's weights: x[n_rows, weight.n_in], in the memory of the weight's
  // backend. Set between steps; an empty function ends it.
  using OnProduct = std::function<void(const Weight& weight, const float* x, int n_rows)>;
  void watch_products(OnProduct on_product) { on_product_ = std::move(on_product); }

  // [rows of the step, model_dim] on the last stage's backend, a row for each token of each sequence in their order,
  // before the output norm.
  const float* hidden() const { return stages_.back().x->floats(); }

 private:
  // One step's rows, as the backend wants them. Kept, so that a step allocates nothing.
  struct Batch {
    int n = 0;
    std::vector<int32_t> tokens;
    std::vector<int32_t> positions;
    std::vector<std::vector<RowSpan>> spans;  // by group of the cache
    struct Sequences {
      std::vector<std::vector<BatchSequence>> of;  // by group of the cache
    };
    std::vector<Sequences> sequences;  // for each stage
    std::vector<LogitsRow> wanted;     // of all sequences
    struct Source {
      size_t sequence;
      int index;
    };
    std::vector<Source> sources;  // of each of wanted
    struct Image {
      int32_t row;
      int n;
      const float* embedding;
    };
    std::vector<Image> images;         // rows that are no tokens
    Bulk bulk;                         // rows of prompts
    std::vector<AdaptedRows> adapted;  // in order; rows without adapters are in none
  };
  bool finds_prompts_apart() const;
  void plan(std::span<const SequenceInput> inputs);
  struct StageState : Activations {
    Backend* backend = nullptr;
    int first_layer = 0;
    int end_layer = 0;
  };
  void begin_stage(size_t stage);
  // Writes x[n, n_in] * weight^T of every product, for the rows of the batch, with what their adapters add. Every product
  // of a layer's weights comes through here.
  struct Product {
    Weight LayerWeights::* weight;
    float* out;
  };
  static constexpr size_t kMostProducts = 3;
  void project(const StageState& s, int layer, std::span<const Product> products, const float* x);
  // Calls f(first, n, weight) for runs of the batch's rows, each with its norm.
  template <class F>
  void for_norms(int layer, const float* LayerWeights::* norm, const F& f) {
    for_norm_rows(
        batch_.adapted, batch_.n, weights_.layers[static_cast<size_t>(layer)].*norm,
        [&](const AdapterMix& mix) { return mix.find(layer, norm); }, f);
  }
  void embed();
  void attention_block(size_t stage, int layer);                                          // attention.cpp
  void ffn_block(const StageState& s, int layer);                                         // ffn.cpp
  void norm_rows(const StageState& s, int layer, const float* LayerWeights::* norm);      // h = norm(x)
  void add_norm_rows(const StageState& s, int layer, const float* LayerWeights::* norm);  // x += norm(h)

  ModelConfig config_;
  LayerGroups rope_groups_;
  Weights weights_;
  KvPool kv_pool_;
  int max_batch_;
  Batch batch_;
  std::vector<LowRank> added_;  // of the products under way

  std::vector<StageState> stages_;
  std::vector<float> carried_;  // [max_batch, model_dim]: the residual stream between stages, if there are several
  std::unique_ptr<LogitsHead> logits_head_;  // null: an encoder
  std::unique_ptr<EmbeddingHead> embedding_head_;
  bool computes_prompts_apart_ = false;
  OnProduct on_product_;
};

}  // namespace gemma
