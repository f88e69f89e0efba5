// What a file says about the vision encoder of a Gemma 3 model (SigLIP and the projector behind it), as the reader of
// its format has checked it.
#pragma once

#include <array>
#include <cstdint>

#include "backend/backend.h"
#include "model/tensor_source.h"

namespace gemma {

struct VisionConfig {
  int image_size = 0;  // pixels along a side of the square that goes in
  int patch_size = 0;  // likewise of a patch
  int n_side = 0;      // patches along a side: image_size / patch_size
  int n_patches = 0;   // n_side^2
  int n_pool = 0;      // patches along a side that are averaged into a token
  int n_tokens = 0;    // tokens of an image: (n_side / n_pool)^2
  int n_layers = 0;
  int model_dim = 0;
  int ffn_dim = 0;
  int n_heads = 0;
  int head_dim = 0;  // model_dim / n_heads
  int text_dim = 0;  // width of the decoder
  float layer_norm_eps = 1e-6f;
  std::array<float, 3> image_mean = {0.5f, 0.5f, 0.5f};  // of red, green, blue in 0..1
  std::array<float, 3> image_std = {0.5f, 0.5f, 0.5f};
};

// Rows that go through the encoder together: as many images as fit, one at least.
int vision_images_per_pass(const VisionConfig& config);
// Rows that go through its linear layers together, and what these hold.
inline constexpr int kVisionChunkRows = 512;
int vision_chunk_rows(const VisionConfig& config, int n_images);
// Whether the matrices of the layers are requantised to Q8_0. has_bulk: the backend's.
bool vision_requantizes(const VisionConfig& config, Arithmetic arithmetic, bool has_bulk);
// Width of the feed-forward part as it is computed: where it is requantised padded with zeros, so that rows are whole
// blocks of Q8_0.
int vision_ffn_dim(const VisionConfig& config, bool requantizes);

// Whether a matrix of a layer is replaced by one of n_out rows of n_in values in Q8_0.
bool vision_replaces(TensorType type, int stored_n_out, int stored_n_in, int n_out, int n_in);

// Bytes of the encoder's weights on a backend.
struct VisionWeightsPlan {
  uint64_t bytes = 0;
  uint64_t mapped_bytes = 0;  // of them, pages of the file
};
VisionWeightsPlan plan_vision_weights(const TensorSource& tensors, const VisionConfig& config, bool requantizes,
                                      const BackendTraits& traits);
// Whether any matrix is multiplied as it is stored, in quantised blocks.
bool has_quantized_vision(const TensorSource& tensors, const VisionConfig& config);

}  // namespace gemma
