// What the vision encoder computes with besides weights. The sizes stand here once, as those of the decoder in
// activations.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>

#include "backend/backend.h"
#include "model/vision_config.h"

namespace gemma {

// Activations of a pass of images, [rows, width] floats each.
struct VisionActivations {
  std::unique_ptr<Buffer> x;          // model_dim: the residual stream
  std::unique_ptr<Buffer> q;          // model_dim: queries, then attention's output
  std::unique_ptr<Buffer> k;          // model_dim
  std::unique_ptr<Buffer> v;          // model_dim
  std::unique_ptr<Buffer> h;          // a chunk's: model_dim, normed input, branch output
  std::unique_ptr<Buffer> ffn;        // a chunk's: ffn_dim, or a patch
  std::unique_ptr<Buffer> projected;  // of tokens: text_dim

  // Calls f(buffer, bytes) for each.
  template <class F>
  void each(const VisionConfig& config, bool requantizes, int n_images, const F& f) {
    const auto rows = [&](std::unique_ptr<Buffer>& buffer, int n_rows, int width) {
      f(buffer, static_cast<size_t>(n_rows) * static_cast<size_t>(width) * sizeof(float));
    };
    const int n_rows = n_images * config.n_patches;
    for (std::unique_ptr<Buffer>* buffer : {&x, &q, &k, &v}) rows(*buffer, n_rows, config.model_dim);
    rows(h, vision_chunk_rows(config, n_images), config.model_dim);
    rows(ffn, vision_chunk_rows(config, n_images),
         std::max(vision_ffn_dim(config, requantizes), 3 * config.patch_size * config.patch_size));
    rows(projected, n_images * config.n_tokens, config.text_dim);
  }
};

// What the encoder asks of a backend for a pass of images. quantized_weights: has_quantized_vision().
inline WorkLimits vision_work(const VisionConfig& config, bool requantizes, bool quantized_weights,
                              Arithmetic arithmetic, int n_images) {
  WorkLimits work;
  work.n_rows = vision_chunk_rows(config, n_images);
  work.n_in =
      std::max({config.model_dim, vision_ffn_dim(config, requantizes), 3 * config.patch_size * config.patch_size});
  work.quantized_weights = requantizes || quantized_weights;
  work.bulk_floats = arithmetic == Arithmetic::kFast;
  work.n_groups = n_images;
  work.group_rows = config.n_patches;
  work.n_full_heads = config.n_heads;
  work.full_head_dim = config.head_dim;
  work.arithmetic = arithmetic;
  return work;
}

}  // namespace gemma
