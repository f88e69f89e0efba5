#include "model/vision.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace gemma {

VisionEncoder::VisionEncoder(Backend& backend, std::shared_ptr<const TensorSource> tensors, VisionConfig config,
                             Arithmetic arithmetic)
    : backend_(backend),
      tensors_(std::move(tensors)),
      config_(config),
      arithmetic_(arithmetic),
      requantizes_(vision_requantizes(config, arithmetic, backend.traits().has_bulk())) {}

void VisionEncoder::start(std::span<const uint8_t> pixels, int n_images, const AdapterMix* adapters) {
  pixels_ = pixels;
  adapters_ = adapters;
  n_images_ = n_images;
  n_done_ = 0;
  n_pass_ = std::min(n_images, vision_images_per_pass(config_));
  step_ = 0;
  embeddings_.clear();
  if (weights_.layers.empty()) weights_ = load_vision_weights(backend_, tensors_, config_, requantizes_);
  a_.each(config_, requantizes_, n_pass_, [&](std::unique_ptr<Buffer>& buffer, size_t bytes) {
    if (buffer != nullptr && buffer->bytes() >= bytes) return;
    buffer.reset();
    buffer = backend_.allocate(bytes);
  });
  backend_.reserve(vision_work(config_, requantizes_, has_quantized_vision(*tensors_, config_), arithmetic_, n_pass_));
  embeddings_.reserve(static_cast<size_t>(n_images) * static_cast<size_t>(config_.n_tokens) *
                      static_cast<size_t>(config_.text_dim));
}

void VisionEncoder::rest() {
  a_ = {};
  pixels_ = {};
  adapters_ = nullptr;
  n_images_ = n_done_ = n_pass_ = 0;
}

double VisionEncoder::progress() const {
  if (n_images_ == 0) return 1;
  return (n_done_ + static_cast<double>(n_pass_) * step_ / n_steps_of_pass()) / n_images_;
}

bool VisionEncoder::advance(const std::function<bool()>& should_stop) {
  if (n_done_ == n_images_) return false;
  if (step_ == 0) {
    embed();
  } else if (step_ <= config_.n_layers) {
    VisionLayer& layer = weights_.layers[static_cast<size_t>(step_ - 1)];
    requantize_layer(backend_, config_, requantizes_, layer);
    if (!run_layer(step_ - 1, should_stop)) return true;
  } else {
    if (!finish_pass(should_stop)) return true;
  }
  if (++step_ == n_steps_of_pass()) {
    n_done_ += n_pass_;
    n_pass_ = std::min(n_images_ - n_done_, n_pass_);
    step_ = 0;
  }
  return n_done_ < n_images_;
}

bool VisionEncoder::for_chunks(const std::function<bool()>& should_stop,
                               const std::function<void(size_t first, int n)>& f) {
  const size_t n_rows = static_cast<size_t>(n_pass_) * static_cast<size_t>(config_.n_patches);
  for (size_t first = 0; first < n_rows; first += kVisionChunkRows) {
    if (should_stop()) return false;
    f(first, static_cast<int>(std::min<size_t>(kVisionChunkRows, n_rows - first)));
  }
  return true;
}

// x = patch_embd . patch + bias + position: the convolution, whose windows do not overlap, as a matrix product.
void VisionEncoder::embed() {
  const size_t patch = static_cast<size_t>(config_.patch_size);
  const size_t side = static_cast<size_t>(config_.n_side);
  const size_t size = static_cast<size_t>(config_.image_size);
  // As the reference does it, level by level: v / 255 in float32, then (v - mean) / std.
  float value_of[3][256];
  for (size_t colour = 0; colour < 3; ++colour) {
    for (int level = 0; level < 256; ++level) {
      value_of[colour][level] =
          (static_cast<float>(level) / 255.0f - config_.image_mean[colour]) / config_.image_std[colour];
    }
  }
  std::vector<float> patches;
  for_chunks([] { return false; },
             [&](size_t first, int n) {
               patches.clear();
               for (size_t i = first; i < first + static_cast<size_t>(n); ++i) {
                 const size_t image = static_cast<size_t>(n_done_) + i / (side * side);
                 const size_t top = i / side % side * patch;
                 const size_t left = i % side * patch;
                 for (size_t colour = 0; colour < 3; ++colour) {
                   for (size_t y = top; y < top + patch; ++y) {
                     const uint8_t* line = &pixels_[((image * size + y) * size + left) * 3];
                     for (size_t x = 0; x < patch; ++x) patches.push_back(value_of[colour][line[x * 3 + colour]]);
                   }
                 }
               }
               backend_.upload(a_.ffn->data(), patches.data(), patches.size() * sizeof(float));
               const LinearJob job[] = {{&weights_.patch_embd, row(a_.x, first)}};
               backend_.linear(job, a_.ffn->floats(), n, bulk(n));
               backend_.add_bias(row(a_.x, first), weights_.patch_embd_bias, n, config_.model_dim);
             });
  // An image's rows are one row of n_patches * model_dim values, and so are all positions.
  backend_.add_bias(a_.x->floats(), weights_.position_embd, n_pass_, config_.n_patches * config_.model_dim);
}

void VisionEncoder::project(int layer, std::span<const Product> products, const float* x, int n) {
  const VisionLayer& weights = weights_.layers[static_cast<size_t>(layer)];
  LinearJob jobs[kMostProducts];
  added_.clear();
  for (size_t i = 0; i < products.size(); ++i) {
    const Weight& weight = weights.*products[i].weight;
    jobs[i] = {&weight, products[i].out};
    if (adapters_ == nullptr) continue;
    for (const AdapterMix::Use& use : adapters_->uses) {
      if (const LowRankWeights* own = use.adapter->find(layer, products[i].weight))
        added_.push_back(own->of(0, n, use.scale, products[i].out, weight.n_out));
    }
  }
  backend_.linear(std::span(jobs).first(products.size()), x, n, bulk(n), added_);
}

bool VisionEncoder::run_layer(int layer, const std::function<bool()>& should_stop) {
  const VisionLayer& w = weights_.layers[static_cast<size_t>(layer)];
  const int dim = config_.model_dim;
  const float eps = config_.layer_norm_eps;
  bool done = for_chunks(should_stop, [&](size_t first, int n) {
    backend_.layer_norm(a_.h->floats(), row(a_.x, first), w.ln1_weight, w.ln1_bias, n, dim, eps);
    const Product qkv[] = {{&VisionLayer::attn_q, row(a_.q, first)},
                           {&VisionLayer::attn_k, row(a_.k, first)},
                           {&VisionLayer::attn_v, row(a_.v, first)}};
    project(layer, qkv, a_.h->floats(), n);
    backend_.add_bias(row(a_.q, first), w.attn_q_bias, n, dim);
    backend_.add_bias(row(a_.k, first), w.attn_k_bias, n, dim);
    backend_.add_bias(row(a_.v, first), w.attn_v_bias, n, dim);
  });
  if (!done || should_stop()) return false;
  backend_.full_attention(a_.q->floats(), a_.q->floats(), a_.k->floats(), a_.v->floats(), n_pass_, config_.n_patches,
                          config_.n_heads, config_.head_dim, 1.0f / std::sqrt(static_cast<float>(config_.head_dim)),
                          arithmetic_);
  return for_chunks(should_stop, [&](size_t first, int n) {
    float* x = row(a_.x, first);
    const Product out[] = {{&VisionLayer::attn_out, a_.h->floats()}};
    project(layer, out, row(a_.q, first), n);
    backend_.add_residual_bias(x, a_.h->floats(), w.attn_out_bias, n, dim);
    backend_.layer_norm(a_.h->floats(), x, w.ln2_weight, w.ln2_bias, n, dim, eps);
    const Product up[] = {{&VisionLayer::ffn_up, a_.ffn->floats()}};
    project(layer, up, a_.h->floats(), n);
    backend_.bias_gelu(a_.ffn->floats(), w.ffn_up_bias, n, w.ffn_up.n_out);
    const Product down[] = {{&VisionLayer::ffn_down, a_.h->floats()}};
    project(layer, down, a_.ffn->floats(), n);
    backend_.add_residual_bias(x, a_.h->floats(), w.ffn_down_bias, n, dim);
  });
}

// Post norm, the mean over n_pool x n_pool patches, the projector's norm and matrix.
bool VisionEncoder::finish_pass(const std::function<bool()>& should_stop) {
  const size_t dim = static_cast<size_t>(config_.model_dim);
  const size_t text_dim = static_cast<size_t>(config_.text_dim);
  const size_t side = static_cast<size_t>(config_.n_side);
  const size_t pool = static_cast<size_t>(config_.n_pool);
  const size_t n_patches = static_cast<size_t>(config_.n_patches);
  const size_t n_tokens = static_cast<size_t>(config_.n_tokens);
  std::vector<float> normed;
  std::vector<float> pooled(static_cast<size_t>(n_pass_) * n_tokens * dim);
  const bool done = for_chunks(should_stop, [&](size_t first, int n) {
    backend_.layer_norm(a_.h->floats(), row(a_.x, first), weights_.post_ln_weight, weights_.post_ln_bias, n,
                        config_.model_dim, config_.layer_norm_eps);
    normed.resize(static_cast<size_t>(n) * dim);
    backend_.download(normed.data(), a_.h->data(), normed.size() * sizeof(float));
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      const size_t patch = (first + i) % n_patches;
      const size_t token = patch / side / pool * (side / pool) + patch % side / pool;
      float* sum = &pooled[((first + i) / n_patches * n_tokens + token) * dim];
      for (size_t j = 0; j < dim; ++j) sum[j] += normed[i * dim + j];
    }
  });
  if (!done) return false;
  for (float& value : pooled) value /= static_cast<float>(pool * pool);

  // Tokens are fewer than patches, x holds them.
  const int n = n_pass_ * config_.n_tokens;
  backend_.upload(a_.x->data(), pooled.data(), pooled.size() * sizeof(float));
  constexpr float kRmsEps = 1e-6f;  // of the projector's norm: no file says another
  backend_.rms_norm(a_.x->floats(), a_.x->floats(), weights_.mm_soft_emb_norm, n, config_.model_dim, kRmsEps);
  const size_t n_values = static_cast<size_t>(n) * text_dim;
  const std::unique_ptr<Buffer>& out = a_.projected;
  const LinearJob projection[] = {{&weights_.mm_input_projection, out->floats()}};
  backend_.linear(projection, a_.x->floats(), n, {});
  const size_t so_far = embeddings_.size();
  embeddings_.resize(so_far + n_values);
  backend_.download(embeddings_.data() + so_far, out->data(), n_values * sizeof(float));
  tensors_->check();  // what a file that was cut makes is no embedding
  for (size_t i = so_far; i < embeddings_.size(); ++i) {
    if (!std::isfinite(embeddings_[i])) {
      throw Error(ErrorCode::kNonFinite, "NONFINITE",
                  "the embedding of image " + std::to_string(i / (n_tokens * text_dim)) +
                      " holds NaN or infinity: the vision encoder's weights are damaged");
    }
  }
  return true;
}

}  // namespace gemma
