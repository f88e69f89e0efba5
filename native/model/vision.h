// The vision encoder of Gemma 3: SigLIP (pre-norm transformer over patches), average pooling, norm and projection into
// the decoder's width. Written once, over backend.h. Source: Hugging Face modeling_siglip.py and
// Gemma3MultiModalProjector.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "model/adapter.h"
#include "model/tensor_source.h"
#include "model/vision_activations.h"
#include "model/vision_config.h"
#include "model/vision_weights.h"

namespace gemma {

// Works in steps, so that whoever runs it can do other things between them. An image's embedding does not depend on the
// images beside it.
class VisionEncoder {
 public:
  // config is of the same file as the tensors, which have been checked. Weights are read when the first image comes: a model that sees none
  // pays nothing for it.
  VisionEncoder(Backend& backend, std::shared_ptr<const TensorSource> tensors, VisionConfig config,
                Arithmetic arithmetic);

  const VisionConfig& config() const { return config_; }

  // Begins with pixels[n_images, image_size, image_size, 3], red green blue, n_images >= 1; they must stay until the
  // end, and so must the adapters (null: none). What was under way is dropped. Throws Error{kOutOfMemory}.
  void start(std::span<const uint8_t> pixels, int n_images, const AdapterMix* adapters = nullptr);
  // One step: a layer, or what comes before or after them. False when all is done. should_stop is asked within the
  // step; when it says true the step is left in the middle and the work can only be started again. Throws Error:
  // kOutOfMemory; kNonFinite, NONFINITE when an embedding holds NaN or infinity; kFile as TensorSource::check.
  bool advance(const std::function<bool()>& should_stop);
  double progress() const;  // 0..1
  // The result of the finished work: [n_images, n_tokens, text_dim]. Not scaled by sqrt(text_dim), and not to be.
  std::vector<float> take() { return std::move(embeddings_); }
  // Gives the activations back; the weights stay.
  void rest();

 private:
  void embed();
  bool run_layer(int layer, const std::function<bool()>& should_stop);
  // Writes x[n, n_in] * weight^T of every product with a layer's weights, with what adapters add.
  struct Product {
    Weight VisionLayer::* weight;
    float* out;
  };
  static constexpr size_t kMostProducts = 3;
  void project(int layer, std::span<const Product> products, const float* x, int n);
  bool finish_pass(const std::function<bool()>& should_stop);
  int n_steps_of_pass() const { return config_.n_layers + 2; }
  // Calls f(first row, rows) over the rows of the pass; false when should_stop said true.
  bool for_chunks(const std::function<bool()>& should_stop, const std::function<void(size_t first, int n)>& f);
  // All rows are many.
  Bulk bulk(int n) const { return arithmetic_ == Arithmetic::kFast ? Bulk{n, true} : Bulk{}; }
  float* row(const std::unique_ptr<Buffer>& buffer, size_t i) const {
    return buffer->floats() + i * static_cast<size_t>(config_.model_dim);
  }

  Backend& backend_;
  std::shared_ptr<const TensorSource> tensors_;
  VisionConfig config_;
  Arithmetic arithmetic_;
  bool requantizes_;
  VisionWeights weights_;  // none before the first image

  std::span<const uint8_t> pixels_;
  int n_images_ = 0;
  int n_done_ = 0;  // images
  int n_pass_ = 0;  // images of the pass under way
  int step_ = 0;    // of the pass: 0 embeds, then the layers, then the projection
  std::vector<float> embeddings_;
  const AdapterMix* adapters_ = nullptr;
  std::vector<LowRank> added_;  // of the products under way

  VisionActivations a_;  // of the pass under way
};

}  // namespace gemma
