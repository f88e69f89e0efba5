// The decoder's layers in float32 with low-rank adapters, forward and backward. Norms, products and attention are those
// of native/model/; what the backward pass needs of a layer is kept, or computed again from the layer's input.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/large_memory.h"
#include "model/config.h"
#include "model/tensor_source.h"
#include "model/weights.h"
#include "train/adapter_parameters.h"
#include "train/attention.h"
#include "train/products.h"
#include "train/random.h"
#include "train/row_layout.h"

namespace gemma::train {

// The weights as they are stored, and norms in float32.
struct FrozenWeights {
  Weight token_embd;
  Weight output;
  const float* output_norm = nullptr;
  std::vector<LayerWeights> layers;
  std::vector<std::vector<float>> vectors;  // behind the pointers

  // Throws Error{kGgufInvalid, BAD_TENSOR} for a tensor that is missing.
  FrozenWeights(const TensorSource& tensors, const ModelConfig& config);
};

// Row-wise helpers, also of the loss.
void rms_norm(float* out, const float* x, const float* weight, size_t dim, float eps);
// From the gradient d of the result that of x, added to d_x or put there.
void rms_norm_backward(float* d_x, const float* x, const float* weight, const float* d, size_t dim, float eps,
                       bool add);

// What is kept of a layer.
struct LayerRecord {
  float* q = nullptr;         // [n, q_dim] as projected
  float* k = nullptr;         // [n, kv_dim]
  float* v = nullptr;         // [n, kv_dim]
  float* attended = nullptr;  // [n, q_dim]
  float* log_sums = nullptr;  // [n, n_heads]
  float* output = nullptr;    // [n, model_dim] of attn_output
  float* gate = nullptr;      // [n, ffn_dim]
  float* up = nullptr;        // [n, ffn_dim]
  float* down = nullptr;      // [n, model_dim]
  float* t[kTargets] = {};    // [n, rank]: x A^T of each matrix
};

// How a pass goes through the layers.
struct Pass {
  bool use_adapter = true;
  bool is_training = false;  // keeps what backward() needs
  float dropout = 0;
  RandomStream dropout_stream{0};  // of this micro-batch
  const std::function<bool()>* should_stop = nullptr;
};
// Throws Error{kDisposed, CANCELLED}.
void stop_if(const std::function<bool()>* should_stop);

class Decoder {
 public:
  Decoder(const ModelConfig& config, const FrozenWeights& weights, const AdapterParameters& parameters,
          Products& products);

  struct Plan {
    uint64_t workspace = 0;
    uint64_t kept = 0;
    int kept_layers = 0;
  };
  // For n rows, of sequences of up to `longest`; first_layer: the lowest that is trained.
  static Plan plan(const ModelConfig& config, int rank, int first_layer, int n_threads, int n, int longest,
                   uint64_t activation_bytes);
  // Takes memory for passes of up to so many rows.
  void reserve(int n, int longest, uint64_t activation_bytes);

  // Groups of windows, for RowLayout::of.
  const std::vector<int>& windows() const { return windows_; }

  // Returns the rows after the last layer, [n, model_dim], before the output norm: valid until the next pass.
  const float* forward(const RowLayout& rows, const Pass& pass);
  // After a forward pass in training with the same arguments: adds to the gradients of the parameters. d_x: [n,
  // model_dim], the gradient of the rows; it is overwritten.
  void backward(const RowLayout& rows, const Pass& pass, float* d_x);

 private:
  struct Shape;
  struct Buffers {
    float* x = nullptr;            // [n, model_dim] where no inputs of layers are kept
    float* normed = nullptr;       // [n, model_dim]
    float* middle = nullptr;       // [n, model_dim] between the halves of a layer
    float* rotated_q = nullptr;    // [n, q_dim]
    float* rotated_k = nullptr;    // [n, kv_dim]
    float* hidden = nullptr;       // [n, ffn_dim]
    float* d_wide = nullptr;       // [n, widest] gradients of an input of a product
    float* d_first = nullptr;      // [n, widest] gradients of results of products
    float* d_second = nullptr;     // likewise
    float* d_third = nullptr;      // [n, kv_dim]
    float* parts = nullptr;        // [2, n, q_dim] of attention
    float* dropped = nullptr;      // [n, widest] input of A after dropout
    float* packed = nullptr;       // of an input
    float* packed_many = nullptr;  // of gradients of results
    float* packed_t = nullptr;     // [3] of rows' products with A or B
    float* packed_rank = nullptr;  // [rank, n]
    float* d_t = nullptr;          // [n, rank]
    float* rank_rows = nullptr;    // [rank, widest]
    float* rope = nullptr;         // [rope groups][n][head_dim]: cosines, then sines
    float* attention = nullptr;
  };
  template <class F>
  static void each(Buffers& b, const Shape& s, F& f);
  template <class F>
  static void each(LayerRecord& r, const ModelConfig& config, int layer, int rank, int n, F& f);

  const float* input(int layer, const RowLayout& rows) const;
  void embed(const RowLayout& rows, float* x);
  void fill_rope(const RowLayout& rows);
  void rotate(int layer, const RowLayout& rows, const LayerRecord& record);
  void compute_layer(int layer, const RowLayout& rows, const Pass& pass, const float* x, const LayerRecord& record,
                     float* out);
  void backward_layer(int layer, const RowLayout& rows, const Pass& pass, const float* x, const LayerRecord& record,
                      float* d_x);

  struct Projection {
    int target = 0;
    float* out = nullptr;          // forward
    const float* d_out = nullptr;  // backward
  };
  void project(int layer, const RowLayout& rows, const Pass& pass, const LayerRecord& record,
               std::span<const Projection> projections, const float* x);
  // d_x: null where nobody needs it.
  void project_backward(int layer, const RowLayout& rows, const Pass& pass, const LayerRecord& record,
                        std::span<const Projection> projections, const float* x, float* d_x);
  const float* dropped_input(int layer, int target, const Pass& pass, const float* x, int n, int dim);
  template <class F>
  void for_rows(int n, const F& f);

  const ModelConfig& config_;
  const FrozenWeights& weights_;
  const AdapterParameters& parameters_;
  Products& products_;
  Attention attention_;
  std::vector<int> windows_;
  std::vector<size_t> window_of_layer_;
  LayerGroups rope_groups_;
  std::vector<std::vector<float>> frequencies_;

  int n_reserved_ = 0;
  int longest_reserved_ = 0;
  std::unique_ptr<LargeMemory> workspace_;
  std::unique_ptr<LargeMemory> kept_;
  Buffers buffers_;
  std::vector<float*> inputs_;        // [layers + 1], the rows before each layer; null below the first trained one
  std::vector<LayerRecord> records_;  // [layers]; without pointers where a layer is computed again
  LayerRecord shared_;                // of layers that have none of their own
};

}  // namespace gemma::train
