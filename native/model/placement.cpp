#include "model/placement.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "model/layer_tensors.h"
#include "model/memory_plan.h"

namespace gemma {
namespace {

// What the driver and other programs need: not planned with.
constexpr uint64_t kMostReserved = uint64_t{512} << 20;

uint64_t usable(uint64_t free_bytes) {
  return free_bytes - std::min(free_bytes / 8, kMostReserved);
}

// As many layers as fit from the last GPU backwards; the result begins with the CPU unless all fit.
std::vector<LayerRange> fill(const LayerCosts& costs, std::span<const uint64_t> free_bytes, uint64_t other_bytes) {
  std::vector<LayerRange> ranges;
  int end = static_cast<int>(costs.layers.size());
  for (size_t g = free_bytes.size(); g-- > 0 && end > 0;) {
    const bool is_last = ranges.empty();
    uint64_t needed = costs.scratch + (is_last ? costs.output + other_bytes : 0);
    const uint64_t room = usable(free_bytes[g]);
    int first = end;
    while (first > 0) {
      uint64_t more = costs.layers[static_cast<size_t>(first - 1)];
      // The first layer brings the embedding with it, unless the output matrix beside it is the same.
      if (first == 1 && !(is_last && costs.is_tied)) more += costs.embedding;
      if (needed + more > room) break;
      needed += more;
      --first;
    }
    if (first == end) {
      if (is_last) continue;  // too small even for the output matrix: perhaps the one before is not
      break;
    }
    ranges.insert(ranges.begin(), {static_cast<int>(g), first, end});
    end = first;
  }
  if (end > 0) ranges.insert(ranges.begin(), {-1, 0, end});
  return ranges;
}

}  // namespace

LayerCosts layer_costs(const TensorSource& tensors, const ModelConfig& config, const ModelLimits& limits,
                       const BackendTraits& traits) {
  LayerCosts costs;
  costs.is_tied = !config.has_output && !config.is_encoder;
  costs.embedding = matrix_bytes(tensors, kTokenEmbd, traits);
  costs.output = head_bytes(config, limits, traits);
  if (config.has_output) {
    costs.output += matrix_bytes(tensors, kOutput, traits);
  } else if (!config.is_encoder) {
    costs.output += costs.embedding;
  }
  for (size_t i = 0; i < config.dense.size(); ++i) costs.output += matrix_bytes(tensors, dense_weight(i), traits);
  for (int i = 0; i < config.n_layers(); ++i) {
    costs.layers.push_back(layer_weight_bytes(tensors, config, i, traits) + layer_kv_bytes(config, limits, i, traits));
  }
  costs.scratch = activation_bytes(config, limits.max_batch, traits) + work_bytes(tensors, config, limits, traits);
  return costs;
}

std::vector<LayerRange> place_layers(const LayerCosts& costs, std::span<const uint64_t> free_bytes, int n_gpu_layers,
                                     uint64_t other_bytes) {
  const int n_layers = static_cast<int>(costs.layers.size());
  if (n_gpu_layers == kAutoLayers) {
    std::vector<LayerRange> ranges;
    for (size_t n = 1; n <= free_bytes.size(); ++n) {
      ranges = fill(costs, free_bytes.first(n), other_bytes);
      if (ranges.front().gpu >= 0) return ranges;
    }
    return free_bytes.empty() ? std::vector<LayerRange>{{-1, 0, n_layers}} : ranges;
  }
  const int n_on_gpus = std::min(n_gpu_layers, n_layers);
  std::vector<LayerRange> ranges;
  int first = n_layers - n_on_gpus;
  if (first > 0) ranges.push_back({-1, 0, first});
  uint64_t left = std::accumulate(free_bytes.begin(), free_bytes.end(), uint64_t{0});
  for (size_t g = 0; g < free_bytes.size() && first < n_layers; ++g) {
    const int n_left = n_layers - first;
    const double share = left > 0 ? static_cast<double>(free_bytes[g]) / static_cast<double>(left) : 1.0;
    const bool is_last = g + 1 == free_bytes.size();
    const int n = is_last ? n_left : std::clamp(static_cast<int>(std::lround(n_left * share)), 0, n_left);
    left -= free_bytes[g];
    if (n == 0) continue;
    ranges.push_back({static_cast<int>(g), first, first + n});
    first += n;
  }
  return ranges;
}

}  // namespace gemma
