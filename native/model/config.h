// What a model file says about its layers, as the reader of its format has checked it. Source: Gemma 3 report, table 1.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
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

// What is made of the rows of a text that is embedded. Names are sentence-transformers' (Pooling).
enum class Pooling { kMean, kFirst, kLast, kMax, kMeanSqrtLength, kWeightedMean };
// "mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean".
const char* pooling_name(Pooling pooling);
// Nothing for a name that is none of these.
std::optional<Pooling> find_pooling(std::string_view name);

// What a dense layer does with its products, as torch.nn's modules of these names do.
enum class Activation { kIdentity, kTanh, kRelu, kSigmoid, kGelu, kSilu };

// A dense layer of an embedding model: activation(W x + b).
struct DenseConfig {
  int out_dim = 0;  // its input is as wide as what comes before it is
  bool has_bias = false;
  Activation activation = Activation::kIdentity;
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
  // What a text's embedding is made of: its rows in one, then the dense layers in their order, of a length of 1 where it
  // is asked for nothing else.
  Pooling pooling = Pooling::kMean;
  std::vector<DenseConfig> dense;
  bool normalizes = true;
  bool lacks_dense = false;  // its embeddings are not the model's: the file was made without its dense layers
  std::vector<LayerConfig> layers;

  int n_layers() const { return static_cast<int>(layers.size()); }
  bool has_dense() const { return !dense.empty(); }
  int embedding_dim() const { return has_dense() ? dense.back().out_dim : model_dim; }  // of a text's embedding
  int dense_in_dim(size_t i) const { return i == 0 ? model_dim : dense[i - 1].out_dim; }
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
