// What a file says about the vision encoder of a Gemma 3 model (SigLIP and the projector behind it), checked. The file
// is an mmproj file of llama.cpp's (architecture clip), or a model file of Ollama's that holds text and vision.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "backend/backend.h"
#include "gguf/gguf.h"

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

// True for a model file that holds its vision encoder too.
bool has_vision(const GgufFile& file);

// Checks kind, hyper-parameters and every tensor's shape and type; text_dim: width of the decoder it is to go with.
// Throws Error: kUnsupportedModel; kGgufInvalid with BAD_HPARAM, BAD_TENSOR, BAD_TYPE.
VisionConfig read_vision_config(const GgufFile& file, int text_dim);

// The tensor "v.blk.2." "ffn_up" ".weight" by whatever name the file has for it: scope, field and suffix as in today's
// mmproj files; fc1 is ffn_up and fc2 is ffn_down here, also where a file has them the other way round. Null when
// absent.
const GgufTensor* find_vision_tensor(const GgufFile& file, const VisionConfig& config, const std::string& scope,
                                     std::string_view field, const char* suffix);

// Rows that go through the encoder together: as many images as fit, one at least.
int vision_images_per_pass(const VisionConfig& config);
// Rows that go through its linear layers together, and what these hold.
inline constexpr int kVisionChunkRows = 512;
// Whether the matrices of the layers are requantised to Q8_0. has_bulk: the backend's.
bool vision_requantizes(const VisionConfig& config, Arithmetic arithmetic, bool has_bulk);
// Width of the feed-forward part as it is computed: where it is requantised padded with zeros, so that rows are whole
// blocks of Q8_0.
int vision_ffn_dim(const VisionConfig& config, bool requantizes);

// Bytes that an encoder keeps while it works: weights, and activations of one pass.
uint64_t plan_vision_bytes(const GgufFile& file, const VisionConfig& config, bool requantizes);

}  // namespace gemma
