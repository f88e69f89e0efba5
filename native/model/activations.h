// What a model computes with besides weights and cache. The sizes stand here once: the model allocates by them and
// memory is planned by them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/stage.h"

namespace gemma {

// Activations of a stage, [n_rows, width] floats each.
struct Activations {
  std::unique_ptr<Buffer> x;                  // model_dim: the residual stream
  std::unique_ptr<Buffer> h;                  // model_dim: normed input, branch output
  std::unique_ptr<Buffer> q;                  // q_dim, the widest layer's, as those below
  std::unique_ptr<Buffer> k;                  // kv_dim
  std::unique_ptr<Buffer> v;                  // kv_dim
  std::unique_ptr<Buffer> attn;               // q_dim
  std::unique_ptr<Buffer> gate;               // ffn_dim
  std::unique_ptr<Buffer> up;                 // ffn_dim
  std::vector<std::unique_ptr<Buffer>> rope;  // head_dim, by rope_groups()

  // Calls f(buffer, bytes) for each.
  template <class F>
  void each(const ModelConfig& config, int n_rows, const F& f) {
    const auto rows = [&](std::unique_ptr<Buffer>& buffer, int width) {
      f(buffer, static_cast<size_t>(n_rows) * static_cast<size_t>(width) * sizeof(float));
    };
    const int q_dim = config.widest(&LayerConfig::q_dim);
    const int kv_dim = config.widest(&LayerConfig::kv_dim);
    const int ffn_dim = config.widest(&LayerConfig::ffn_dim);
    rows(x, config.model_dim);
    rows(h, config.model_dim);
    rows(q, q_dim);
    rows(k, kv_dim);
    rows(v, kv_dim);
    rows(attn, q_dim);
    rows(gate, ffn_dim);
    rows(up, ffn_dim);
    const LayerGroups rotations = rope_groups(config);
    rope.resize(rotations.size());
    for (size_t g = 0; g < rope.size(); ++g) rows(rope[g], config.layers[rotations.first_layer[g]].head_dim);
  }
};

// Floats of the residual stream on the host, on its way between stages.
inline size_t carried_floats(const ModelConfig& config, size_t n_stages, int n_rows) {
  return n_stages > 1 ? static_cast<size_t>(n_rows) * static_cast<size_t>(config.model_dim) : 0;
}

// What a model's layers ask of a backend. quantized_weights: whether any of its matrices are.
inline WorkLimits layer_work(const ModelConfig& config, const ModelLimits& limits, bool quantized_weights) {
  WorkLimits work;
  work.n_rows = limits.max_batch;
  work.n_in = std::max({config.model_dim, config.widest(&LayerConfig::q_dim), config.widest(&LayerConfig::ffn_dim)});
  for (size_t i = 0; i < config.dense.size(); ++i) work.n_in = std::max(work.n_in, config.dense_in_dim(i));
  work.quantized_weights = quantized_weights;
  work.n_ctx = limits.n_ctx;
  work.n_heads = config.widest(&LayerConfig::n_heads);
  work.head_dim = config.widest(&LayerConfig::head_dim);
  return work;
}

}  // namespace gemma
