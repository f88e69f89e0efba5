// What a model file says about its layers, as the reader of its format has checked it. Source: Gemma 3 report, table 1.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/tensor_source.h"

namespace gemma {

// One layer. Nothing says that layers are alike: what a layer computes follows from its own entry.
struct LayerConfig {
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int ffn_dim = 0;
  int n_window = 0;       // positions seen, the own one included; 0: all up to the own one.
  float query_scale = 0;  // of attention scores
  float rope_base = 1e4f;
  float rope_factor = 1.0f;  // positions are divided by it

  int q_dim() const { return n_heads * head_dim; }
  int kv_dim() const { return n_kv_heads * head_dim; }
  bool is_local() const { return n_window > 0; }
};

struct ModelConfig {
  std::string name;        // may be empty
  std::string size_label;  // "270M", "1B", ...
  int model_dim = 0;
  int n_vocab = 0;      // rows of the embedding that are logits (<= rows in the file, see vocabulary)
  int n_ctx_train = 0;  // positions
  float rms_eps = 1e-6f;
  float final_softcap = 0;  // 0: none
  bool has_output = false;  // an output matrix of its own; else the embedding is the output matrix
  // An embedding model (EmbeddingGemma): rows see all of their text, in local layers n_window / 2 positions to either
  // side of them, and no logits are made of them.
  bool is_encoder = false;
  bool embeds_eos = false;  // a text that is embedded ends with <eos>
  // Behind the mean of an encoder's rows come two matrices, [dense_dim, model_dim] and [dense_out_dim, dense_dim]; 0:
  // none.
  int dense_dim = 0;
  int dense_out_dim = 0;
  std::vector<LayerConfig> layers;

  int n_layers() const { return static_cast<int>(layers.size()); }
  bool has_dense() const { return dense_dim > 0; }
  int embedding_dim() const { return has_dense() ? dense_out_dim : model_dim; }  // of a text's embedding
  // The largest of a width over all layers: widest(&LayerConfig::q_dim). Buffers that layers share are made for it.
  template <class Width>
  int widest(Width width) const {
    int most = 0;
    for (const LayerConfig& layer : layers) most = std::max(most, static_cast<int>(std::invoke(width, layer)));
    return most;
  }
};

// Layers that have something in common, in groups that are numbered in the order of their first layers.
struct LayerGroups {
  std::vector<size_t> of_layer;     // [n_layers] -> group
  std::vector<size_t> first_layer;  // [n_groups]

  size_t size() const { return first_layer.size(); }
};
// By window: the mask of these layers is the same, and so are the positions that their caches hold.
LayerGroups window_groups(const ModelConfig& config);
// By rotation: the RoPE tables of these layers are the same.
LayerGroups rope_groups(const ModelConfig& config);

// "270M", "1B", ...: the published size of this shape, else the number of parameters.
std::string size_label(const ModelConfig& config);

}  // namespace gemma
