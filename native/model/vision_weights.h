// The tensors of the vision encoder as the backend holds them. Field names are the tensor names of mmproj files.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/tensor_source.h"
#include "model/vision_config.h"

namespace gemma {

struct VisionLayer {
  const float* ln1_weight = nullptr;  // norms and biases: [model_dim], ffn_up_bias [ffn_dim]
  const float* ln1_bias = nullptr;
  Weight attn_q, attn_k, attn_v, attn_out;  // [model_dim, model_dim]
  const float* attn_q_bias = nullptr;
  const float* attn_k_bias = nullptr;
  const float* attn_v_bias = nullptr;
  const float* attn_out_bias = nullptr;
  const float* ln2_weight = nullptr;
  const float* ln2_bias = nullptr;
  Weight ffn_up;  // [ffn_dim, model_dim], fc1
  const float* ffn_up_bias = nullptr;
  Weight ffn_down;  // [model_dim, ffn_dim], fc2
  const float* ffn_down_bias = nullptr;

  std::vector<std::unique_ptr<Buffer>> own;  // requantised matrices
};

struct VisionWeights {
  Weight patch_embd;  // [model_dim, 3 * patch_size * patch_size], a row by colour, then line, then column
  const float* patch_embd_bias = nullptr;   // [model_dim]
  const float* position_embd = nullptr;     // [n_patches, model_dim]
  const float* post_ln_weight = nullptr;    // [model_dim]
  const float* post_ln_bias = nullptr;      // [model_dim]
  const float* mm_soft_emb_norm = nullptr;  // [model_dim], 1 + w
  Weight mm_input_projection;               // [text_dim, model_dim], F32
  std::vector<VisionLayer> layers;
  int ffn_dim = 0;  // of ffn_up and ffn_down when all are requantised: vision_ffn_dim()

  std::unique_ptr<Buffer> small;                // norms, biases, positions and the projection, copied to the backend
  std::shared_ptr<const TensorSource> tensors;  // keeps the mapping
};

// Hands every tensor to the backend, matrices as they are stored. config is of the same file, whose
// tensors have been checked.
VisionWeights load_vision_weights(Backend& backend, std::shared_ptr<const TensorSource> tensors,
                                  const VisionConfig& config, bool requantizes);

// Makes the layer ready to be computed: in fast arithmetic its float matrices become Q8_0 in memory of their own, and
// the feed-forward width is padded. Once per layer; it reads all of the layer's weights.
void requantize_layer(Backend& backend, const VisionConfig& config, bool requantizes, VisionLayer& layer);

}  // namespace gemma
