#include "model/config.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <iterator>

#include "model/layer_tensors.h"

namespace gemma {
namespace {

struct PoolingName {
  Pooling pooling;
  const char* name;
};
constexpr PoolingName kPoolings[] = {{Pooling::kMean, "mean"},
                                     {Pooling::kFirst, "cls"},
                                     {Pooling::kLast, "lasttoken"},
                                     {Pooling::kMax, "max"},
                                     {Pooling::kMeanSqrtLength, "mean_sqrt_len_tokens"},
                                     {Pooling::kWeightedMean, "weightedmean"}};

// same: whether two layers belong together.
LayerGroups group_layers(const ModelConfig& config, const auto& same) {
  LayerGroups groups;
  for (size_t i = 0; i < config.layers.size(); ++i) {
    size_t g = 0;
    while (g < groups.size() && !same(config.layers[groups.first_layer[g]], config.layers[i])) ++g;
    if (g == groups.size()) groups.first_layer.push_back(i);
    groups.of_layer.push_back(g);
  }
  return groups;
}

}  // namespace

const char* pooling_name(Pooling pooling) {
  for (const PoolingName& known : kPoolings) {
    if (known.pooling == pooling) return known.name;
  }
  return "";
}

std::optional<Pooling> find_pooling(std::string_view name) {
  for (const PoolingName& known : kPoolings) {
    if (known.name == name) return known.pooling;
  }
  return std::nullopt;
}

LayerGroups window_groups(const ModelConfig& config) {
  return group_layers(config, [](const LayerConfig& a, const LayerConfig& b) { return a.n_window == b.n_window; });
}

LayerGroups rope_groups(const ModelConfig& config) {
  return group_layers(config, [](const LayerConfig& a, const LayerConfig& b) {
    return a.head_dim == b.head_dim && a.rope_base == b.rope_base && a.rope_factor == b.rope_factor;
  });
}

std::string size_label(const ModelConfig& config) {
  struct Size {
    int n_layers, model_dim;
    const char* label;
  };
  constexpr std::array<Size, 5> kSizes = {
      {{18, 640, "270M"}, {26, 1152, "1B"}, {34, 2560, "4B"}, {48, 3840, "12B"}, {62, 5376, "27B"}}};
  for (const Size& size : kSizes) {
    if (size.n_layers == config.n_layers() && size.model_dim == config.model_dim) return size.label;
  }
  double n_params = 0;
  for (const ExpectedTensor& e : expected_tensors(config)) {
    if (e.name == kOutput) continue;  // the published sizes count the embedding once
    double n = 1;
    for (const int64_t dim : e.shape) n *= static_cast<double>(dim);
    n_params += n;
  }
  const bool billions = n_params >= 1e9;
  const bool millions = n_params >= 1e6;
  char text[32];
  std::snprintf(text, sizeof text, "%.3g%s",
                n_params / (billions   ? 1e9
                            : millions ? 1e6
                                       : 1e3),
                billions   ? "B"
                : millions ? "M"
                           : "K");
  return text;
}

}  // namespace gemma
