#include "model/vision_config.h"

#include <algorithm>

#include "model/small_vectors.h"
#include "model/vision_tensors.h"

namespace gemma {
namespace {

// Images go through the layers together up to so many rows: the published encoder's one fills all machines.
constexpr int kPassRows = 4096;

constexpr int kBlock = 32;  // of Q8_0

}  // namespace

int vision_images_per_pass(const VisionConfig& config) {
  return std::max(1, kPassRows / config.n_patches);
}

int vision_chunk_rows(const VisionConfig& config, int n_images) {
  return std::min(n_images * config.n_patches, kVisionChunkRows);
}

bool vision_requantizes(const VisionConfig& config, Arithmetic arithmetic, bool has_bulk) {
  return !has_bulk && arithmetic == Arithmetic::kFast && config.model_dim % kBlock == 0;
}

int vision_ffn_dim(const VisionConfig& config, bool requantizes) {
  return requantizes ? (config.ffn_dim + kBlock - 1) / kBlock * kBlock : config.ffn_dim;
}

bool vision_replaces(TensorType type, int stored_n_out, int stored_n_in, int n_out, int n_in) {
  return is_float_type(type) || stored_n_out != n_out || stored_n_in != n_in;
}

VisionWeightsPlan plan_vision_weights(const TensorSource& tensors, const VisionConfig& config, bool requantizes,
                                      const BackendTraits& traits) {
  VisionWeightsPlan plan;
  const auto add_stored = [&](const Tensor& tensor, int n_out, int n_in) {
    const uint64_t bytes = traits.weight_bytes(tensor.type, n_out, n_in);
    plan.bytes += bytes;
    if (traits.maps_weights()) plan.mapped_bytes += bytes;
  };
  const auto add_matrix = [&](const VisionLayerTensor& t) {
    const Tensor& tensor = *tensors.find(t.name);
    const int n_out = static_cast<int>(t.shape[0]);
    const int n_in = static_cast<int>(t.shape[1]);
    const int ffn_dim = vision_ffn_dim(config, requantizes);
    const int wanted_out = t.matrix == &VisionLayer::ffn_up ? ffn_dim : n_out;
    const int wanted_in = t.matrix == &VisionLayer::ffn_down ? ffn_dim : n_in;
    const bool is_replaced = requantizes && vision_replaces(tensor.type, n_out, n_in, wanted_out, wanted_in);
    // Mapped pages of a matrix that is replaced are read once and may go; what was uploaded stays.
    if (!is_replaced || !traits.maps_weights()) add_stored(tensor, n_out, n_in);
    if (is_replaced)
      plan.bytes += traits.buffer_bytes(static_cast<uint64_t>(wanted_out) * row_bytes(TensorType::kQ8_0, wanted_in));
  };
  size_t n_small = 0;  // floats
  const auto add_floats = [&](size_t n) { n_small = SmallVectors::aligned(n_small) + n; };
  for (const ExpectedTensor& t : expected_tensors(config)) {
    if (t.name.starts_with("v.blk.")) continue;
    size_t n = 1;
    for (const int64_t length : t.shape) n *= static_cast<size_t>(length);
    if (t.shape.size() == 4) {  // of patches
      add_stored(*tensors.find(t.name), config.model_dim, static_cast<int>(n) / config.model_dim);
    } else {
      add_floats(n);
    }
  }
  for (int i = 0; i < config.n_layers; ++i) {
    for (const VisionLayerTensor& t : vision_layer_tensors(config, i)) {
      if (t.matrix != nullptr) {
        add_matrix(t);
      } else {
        add_floats(static_cast<size_t>(t.vector == &VisionLayer::ffn_up_bias ? vision_ffn_dim(config, requantizes)
                                                                             : t.shape[0]));
      }
    }
  }
  plan.bytes += traits.buffer_bytes(n_small * sizeof(float));
  return plan;
}

bool has_quantized_vision(const TensorSource& tensors, const VisionConfig& config) {
  for (int i = 0; i < config.n_layers; ++i) {
    for (const VisionLayerTensor& t : vision_layer_tensors(config, i)) {
      if (t.matrix != nullptr && !is_float_type(tensors.find(t.name)->type)) return true;
    }
  }
  return false;
}

}  // namespace gemma
