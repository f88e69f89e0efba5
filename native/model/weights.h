// The tensors of a model as the backend holds them. Field names are those of the tensors (layer_tensors.h).
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/stage.h"
#include "model/tensor_source.h"

namespace gemma {

struct LayerWeights {
  const float* attn_norm = nullptr;            // [model_dim], 1 + w as all norms
  Weight attn_q;                               // [q_dim, model_dim]
  Weight attn_k;                               // [kv_dim, model_dim]
  Weight attn_v;                               // [kv_dim, model_dim]
  const float* attn_q_norm = nullptr;          // [head_dim]
  const float* attn_k_norm = nullptr;          // [head_dim]
  Weight attn_output;                          // [model_dim, q_dim]
  const float* post_attention_norm = nullptr;  // [model_dim]
  const float* ffn_norm = nullptr;             // [model_dim]
  Weight ffn_gate;                             // [ffn_dim, model_dim]
  Weight ffn_up;                               // [ffn_dim, model_dim]
  Weight ffn_down;                             // [model_dim, ffn_dim]
  const float* post_ffw_norm = nullptr;        // [model_dim]
};

struct DenseWeights {
  Weight matrix;            // [out_dim, what comes before]
  std::vector<float> bias;  // [out_dim], on the host; empty: none
};

struct Weights {
  Weight token_embd;                // [rows, model_dim]
  Weight output;                    // [n_vocab, model_dim]: output.weight, or the embedding again; an encoder has none
  std::vector<DenseWeights> dense;  // of each of config.dense
  const float* output_norm = nullptr;  // [model_dim]
  std::vector<LayerWeights> layers;
  // For each stage, of each of rope_groups(): [head_dim / 2], divided by the RoPE factor.
  std::vector<std::vector<const float*>> inv_freq;

  std::vector<std::unique_ptr<Buffer>> small;   // norms and frequencies, copied to each stage's backend
  std::shared_ptr<const TensorSource> tensors;  // keeps the mapping
};

// [head_dim / 2], in float32, as Hugging Face computes them (Gemma3RotaryEmbedding): base^(-2j / head_dim), then divided
// by the factor.
std::vector<float> inverse_frequencies(const LayerConfig& layer);

// Hands every tensor to the backend of its stage: the embedding to the first, the output matrix, which may be the same
// tensor, to the last. config is of the same file, whose tensors have been checked.
Weights load_weights(std::span<const Stage> stages, std::shared_ptr<const TensorSource> tensors,
                     const ModelConfig& config);

}  // namespace gemma
