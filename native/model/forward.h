// The forward pass of Gemma 3's decoder over a ragged batch: rows of any number of sequences go through the layers
// together. Written once, over backend.h. Source: Gemma 3 report, section 2; Hugging Face modeling_gemma3.py.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "model/cache.h"
#include "model/config.h"
#include "model/logits.h"
#include "model/weights.h"

namespace gemma {

// The rows of an image in a sequence: they stand where the embeddings of tokens would, and see each other both ways.
struct ImageRows {
  int first_position = 0;
  int n = 0;
  const float* embedding = nullptr;  // [n, model_dim] on the host, not scaled
};

// What one sequence adds to a step: n tokens at positions first_position, first_position + 1, ...
struct SequenceInput {
  KvSequence* kv = nullptr;
  int first_position = 0;
  std::span<const int32_t> tokens;
  int n_logits = 0;  // logits are wanted for this many of the last tokens
  TopRows top;       // which of a row's logits are needed; the others may be left out
  // The sequence's images in order; one that the step touches lies in it as a whole. Tokens in their place mean
  // nothing.
  std::span<const ImageRows> images;
  // The tokens are part of a prompt: they may be computed by faster arithmetic than tokens that come one by one
  // (Bulk). Of a step's inputs, those come last.
  bool is_prompt = false;
};

class Model {
 public:
  // stages: all layers in order; weights: of load_weights with the same stages. max_batch: rows of a step at most.
  // screened: keep what makes the best few logits cheap (Backend::make_output).
  Model(std::span<const Stage> stages, ModelConfig config, Weights weights, KvType kv_type, int max_batch,
        bool screened);

  const ModelConfig& config() const { return config_; }
  KvPool& kv_pool() { return kv_pool_; }
  int max_batch() const { return max_batch_; }
  // Whether a token of a prompt (SequenceInput::is_prompt) differs in the last bits from the same token coming alone.
  bool computes_prompts_apart() const;
  // Bytes of activation buffers.
  size_t scratch_bytes() const;

  // Runs the tokens of all sequences through the layers and calls on_logits(sequence, index, logits) for every wanted
  // row, in order; logits may be changed in place and are valid during the call. should_stop is asked between
  // layers; when it says true the step is given up and false returned: nothing is lost but the work, the step can be
  // repeated. Throws Error{kOutOfMemory} when the cache cannot grow.
  bool forward(std::span<const SequenceInput> inputs, const std::function<bool()>& should_stop,
               const std::function<void(size_t sequence, int index, const Logits& logits)>& on_logits);

 private:
  // One step's rows, as the backend wants them. Kept, so that a step allocates nothing.
  struct Batch {
    int n = 0;
    std::vector<int32_t> tokens;
    std::vector<int32_t> positions;
    std::vector<RowSpan> spans[2];  // by KvGroup
    struct Sequences {
      std::vector<BatchSequence> of[2];  // by KvGroup
    };
    std::vector<Sequences> sequences;  // for each stage
    struct Wanted {
      size_t sequence;
      int index;
      int32_t row;
    };
    std::vector<Wanted> wanted;  // rows whose logits are computed
    struct Image {
      int32_t row;
      int n;
      const float* embedding;
    };
    std::vector<Image> images;  // rows that are no tokens
    Bulk bulk;                  // rows of prompts
  };
  void plan(std::span<const SequenceInput> inputs);
  // A stage with its activations, [max_batch, width].
  struct StageState {
    Backend* backend = nullptr;
    int first_layer = 0;
    int end_layer = 0;
    std::unique_ptr<Buffer> x;        // model_dim: the residual stream
    std::unique_ptr<Buffer> h;        // model_dim: normed input, branch output
    std::unique_ptr<Buffer> q;        // q_dim
    std::unique_ptr<Buffer> k;        // kv_dim
    std::unique_ptr<Buffer> v;        // kv_dim
    std::unique_ptr<Buffer> attn;     // q_dim
    std::unique_ptr<Buffer> gate;     // ffn_dim
    std::unique_ptr<Buffer> up;       // ffn_dim
    std::unique_ptr<Buffer> rope[2];  // head_dim, by KvGroup
  };
  void begin_stage(size_t stage);
  void attention_block(size_t stage, int layer);   // attention.cpp
  void ffn_block(const StageState& s, int layer);  // ffn.cpp

  ModelConfig config_;
  Weights weights_;
  KvPool kv_pool_;
  int max_batch_;
  Batch batch_;

  std::vector<StageState> stages_;
  std::vector<float> carried_;      // [max_batch, model_dim]: the residual stream between stages, if there are several
  std::unique_ptr<Buffer> head_x_;  // [kLogitRows, model_dim], on the last stage as what follows
  std::unique_ptr<Buffer> logits_;  // [kLogitRows, n_vocab]
  std::vector<float> host_logits_;
  std::vector<TopProducts> found_;  // [kLogitRows]
  std::unique_ptr<OutputMatrix> output_;
};

}  // namespace gemma
