#include "model/memory_plan.h"

#include <algorithm>
#include <memory>
#include <string>
#include <unordered_set>

#include "base/error.h"
#include "model/activations.h"
#include "model/cache.h"
#include "model/heads.h"
#include "model/layer_tensors.h"
#include "model/small_vectors.h"
#include "model/vision.h"

namespace gemma {
namespace {

uint64_t weight_bytes(const Tensor& tensor, const BackendTraits& traits) {
  return traits.weight_bytes(tensor.type, static_cast<int>(tensor.shape[0]), static_cast<int>(tensor.shape[1]));
}

uint64_t sum_of(const BackendTraits& traits, const std::vector<uint64_t>& workspaces) {
  uint64_t bytes = 0;
  for (const uint64_t workspace : workspaces) bytes += traits.buffer_bytes(workspace);
  return bytes;
}

// What shares a backend shares its workspaces.
void take_largest(std::vector<uint64_t>& workspaces, const std::vector<uint64_t>& others) {
  workspaces.resize(std::max(workspaces.size(), others.size()));
  for (size_t i = 0; i < others.size(); ++i) workspaces[i] = std::max(workspaces[i], others[i]);
}

}  // namespace

std::vector<PlannedStage> planned(std::span<const Stage> stages) {
  std::vector<PlannedStage> all;
  for (const Stage& stage : stages) all.push_back({&stage.backend->traits(), stage.first_layer, stage.end_layer});
  return all;
}

uint64_t matrix_bytes(const TensorSource& tensors, std::string_view name, const BackendTraits& traits) {
  const Tensor* tensor = tensors.find(name);
  return tensor != nullptr ? weight_bytes(*tensor, traits) : 0;
}

uint64_t layer_weight_bytes(const TensorSource& tensors, const ModelConfig& config, int layer,
                            const BackendTraits& traits) {
  uint64_t bytes = 0;
  for (const LayerTensor& expected : layer_tensors(config, layer)) {
    const Tensor* tensor = expected.matrix != nullptr ? tensors.find(expected.name) : nullptr;
    if (tensor != nullptr) bytes += weight_bytes(*tensor, traits);
  }
  return bytes;
}

uint64_t layer_kv_bytes(const ModelConfig& config, const ModelLimits& limits, int layer, const BackendTraits& traits) {
  std::vector<KvLayout> layouts;
  uint64_t bytes = 0;
  for (const KvGroupPages& pages : kv_pages(config, limits, layer, layer + 1, &layouts))
    bytes += pages.max_pages * traits.buffer_bytes(pages.page_bytes);
  return bytes;
}

uint64_t activation_bytes(const ModelConfig& config, int n_rows, const BackendTraits& traits) {
  uint64_t sum = 0;
  Activations().each(config, n_rows,
                     [&](std::unique_ptr<Buffer>&, size_t bytes) { sum += traits.buffer_bytes(bytes); });
  return sum;
}

uint64_t head_bytes(const ModelConfig& config, const ModelLimits& limits, const BackendTraits& traits) {
  uint64_t sum = 0;
  LogitsBuffers().each(config, limits,
                       [&](std::unique_ptr<Buffer>&, size_t bytes) { sum += traits.buffer_bytes(bytes); });
  EmbeddingBuffers().each(config, [&](std::unique_ptr<Buffer>&, size_t bytes) { sum += traits.buffer_bytes(bytes); });
  return sum;
}

uint64_t work_bytes(const TensorSource& tensors, const ModelConfig& config, const ModelLimits& limits,
                    const BackendTraits& traits) {
  const WorkLimits work = layer_work(config, limits, has_quantized_weights(tensors, config));
  return sum_of(traits, traits.workspace_bytes(with_logits(work, config, limits)));
}

MemoryPlanner::MemoryPlanner(std::vector<PlannedStage> stages)
    : stages_(std::move(stages)), workspaces_(stages_.size()) {}

void MemoryPlanner::add_model(const TensorSource& tensors, const ModelConfig& config, const ModelLimits& limits) {
  add(tensors, config, limits, 0, stages_);
}

void MemoryPlanner::add_draft_model(const TensorSource& tensors, const ModelConfig& config, const ModelLimits& limits) {
  const PlannedStage all{stages_.back().traits, 0, config.n_layers()};
  add(tensors, config, limits, stages_.size() - 1, {&all, 1});
}

void MemoryPlanner::add(const TensorSource& tensors, const ModelConfig& config, const ModelLimits& limits,
                        size_t first_stage, std::span<const PlannedStage> stages) {
  if (limits.n_ctx < 1 || limits.max_batch < 0) {
    throw Error(ErrorCode::kInvalidArgument, "",
                "memory plan: expected a context of at least 1 and a batch of at least 0 positions, found " +
                    std::to_string(limits.n_ctx) + " and " + std::to_string(limits.max_batch));
  }
  std::unordered_set<const Tensor*> used_in_place;  // of the copies
  const auto add_matrix = [&](const std::string& name, const BackendTraits& traits) {
    const Tensor* tensor = tensors.find(name);
    if (tensor == nullptr) return;
    const uint64_t bytes = weight_bytes(*tensor, traits);
    plan_.weights_bytes += bytes;
    if (!traits.maps_weights()) return;
    if (tensor->is_copy) {
      used_in_place.insert(tensor);
    } else {
      plan_.mapped_bytes += bytes;
    }
  };
  const BackendTraits& first = *stages.front().traits;
  const BackendTraits& last = *stages.back().traits;
  add_matrix(kTokenEmbd, first);
  if (config.has_output) {
    add_matrix(kOutput, last);
  } else if (!config.is_encoder && stages.size() > 1 && !(first.maps_weights() && last.maps_weights())) {
    add_matrix(kTokenEmbd, last);
  }
  for (size_t i = 0; i < config.dense.size(); ++i) add_matrix(dense_weight(i), last);
  const LayerGroups rotations = rope_groups(config);
  const WorkLimits work = layer_work(config, limits, has_quantized_weights(tensors, config));
  for (size_t s = 0; s < stages.size(); ++s) {
    const BackendTraits& traits = *stages[s].traits;
    const bool is_last = s + 1 == stages.size();
    size_t n_small = 0;  // floats: norms, and frequencies of rotations
    const auto add_vector = [&](size_t n) { n_small = SmallVectors::aligned(n_small) + n; };
    for (int layer = stages[s].first_layer; layer < stages[s].end_layer; ++layer) {
      for (const LayerTensor& tensor : layer_tensors(config, layer)) {
        if (tensor.matrix != nullptr) add_matrix(tensor.name, traits);
        if (tensor.vector != nullptr) add_vector(static_cast<size_t>(tensor.shape[0]));
      }
    }
    for (const size_t layer : rotations.first_layer)
      add_vector(static_cast<size_t>((config.layers[layer].head_dim + 1) / 2));
    if (is_last) add_vector(static_cast<size_t>(config.model_dim));
    plan_.weights_bytes += traits.buffer_bytes(n_small * sizeof(float));

    std::vector<KvLayout> layouts;
    for (const KvGroupPages& pages : kv_pages(config, limits, stages[s].first_layer, stages[s].end_layer, &layouts)) {
      const uint64_t n_slabs = (pages.max_pages + pages.pages_per_slab - 1) / pages.pages_per_slab;
      plan_.kv_bytes += n_slabs * traits.buffer_bytes(pages.page_bytes * pages.pages_per_slab);
    }
    plan_.scratch_bytes += activation_bytes(config, limits.max_batch, traits);
    take_largest(workspaces_[first_stage + s],
                 traits.workspace_bytes(is_last ? with_logits(work, config, limits) : work));
  }
  // Copies are kept beside what is uploaded; those that are used where they are have been counted.
  for (const Tensor* tensor : tensors.tensors()) {
    if (tensor->is_copy && !used_in_place.contains(tensor)) plan_.weights_bytes += tensor->bytes;
  }
  plan_.scratch_bytes += head_bytes(config, limits, last);
  plan_.scratch_bytes += sizeof(float) * (carried_floats(config, stages.size(), limits.max_batch) +
                                          host_logits_floats(config) + host_pooled_floats(config));
  if (has_screen(config, limits))
    plan_.screen_bytes += last.output_bytes(config.n_vocab, config.model_dim, logit_rows(config, limits));
}

void MemoryPlanner::add_vision(const TensorSource& tensors, const VisionConfig& config, Arithmetic arithmetic) {
  const BackendTraits& traits = *stages_.back().traits;
  const bool requantizes = vision_requantizes(config, arithmetic, traits.has_bulk());
  const int n_images = vision_images_per_pass(config);
  const VisionWeightsPlan weights = plan_vision_weights(tensors, config, requantizes, traits);
  plan_.vision_bytes += weights.bytes;
  plan_.mapped_bytes += weights.mapped_bytes;
  for (const Tensor* tensor : tensors.tensors()) {
    if (tensor->is_copy) plan_.vision_bytes += tensor->bytes;
  }
  VisionActivations().each(config, requantizes, n_images, [&](std::unique_ptr<Buffer>&, size_t bytes) {
    plan_.vision_bytes += traits.buffer_bytes(bytes);
  });
  take_largest(vision_workspaces_,
               traits.workspace_bytes(
                   vision_work(config, requantizes, has_quantized_vision(tensors, config), arithmetic, n_images)));
}

MemoryPlan MemoryPlanner::plan() const {
  MemoryPlan plan = plan_;
  for (size_t s = 0; s < stages_.size(); ++s) plan.scratch_bytes += sum_of(*stages_[s].traits, workspaces_[s]);
  // The encoder shares the workspaces of its backend.
  std::vector<uint64_t> shared = workspaces_.back();
  take_largest(shared, vision_workspaces_);
  const BackendTraits& last = *stages_.back().traits;
  plan.vision_bytes += sum_of(last, shared) - sum_of(last, workspaces_.back());
  plan.total_bytes = plan.weights_bytes + plan.kv_bytes + plan.scratch_bytes + plan.screen_bytes + plan.adapter_bytes +
                     plan.vision_bytes + plan.grammar_bytes;
  return plan;
}

}  // namespace gemma
