// How much memory a model takes, from the headers of its files and the limits it is loaded with. Sizes come from where
// memory is allocated by them: weights.h, cache.h, activations.h, heads.h, vision.h, and the backends' traits.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/stage.h"
#include "model/tensor_source.h"
#include "model/vision_config.h"

namespace gemma {

// In bytes.
struct MemoryPlan {
  uint64_t weights_bytes = 0;  // mapped pages of the file, or memory of a device; vectors are copied
  uint64_t kv_bytes = 0;       // of one sequence (local layers: window plus one batch), and the prefix cache's
  uint64_t scratch_bytes = 0;  // activations of one batch, logits, working memory of backends
  uint64_t screen_bytes = 0;   // of the output matrix (Backend::make_output)
  uint64_t adapter_bytes = 0;  // of adapters that are loaded with the model, with their working memory
  uint64_t vision_bytes = 0;   // of a vision encoder at work: weights, activations, more working memory
  uint64_t grammar_bytes = 0;  // what grammars know of the vocabulary, from the first one on
  uint64_t total_bytes = 0;    // of all these
  uint64_t mapped_bytes = 0;   // of all these, pages of the file
};

// A stage, by what is known of its backend.
struct PlannedStage {
  const BackendTraits* traits = nullptr;
  int first_layer = 0;
  int end_layer = 0;
};
std::vector<PlannedStage> planned(std::span<const Stage> stages);

class MemoryPlanner {
 public:
  // The stages of the model that add_model() is called for; traits must outlive the planner.
  explicit MemoryPlanner(std::vector<PlannedStage> stages);

  // A model over the stages. Throws Error{kInvalidArgument}, for a cache that does not fit the model with KV_TYPE.
  void add_model(const TensorSource& tensors, const ModelConfig& config, const ModelLimits& limits);
  // Beside it, on the last stage's backend:
  void add_draft_model(const TensorSource& tensors, const ModelConfig& config, const ModelLimits& limits);
  void add_vision(const TensorSource& tensors, const VisionConfig& config, Arithmetic arithmetic);
  // Keys and values of finished requests that may be kept.
  void add_prefix_cache(uint64_t bytes) { plan_.kv_bytes += bytes; }
  void add_adapter(uint64_t bytes) { plan_.adapter_bytes += bytes; }
  void add_grammars(uint64_t bytes) { plan_.grammar_bytes += bytes; }

  MemoryPlan plan() const;

 private:
  void add(const TensorSource& tensors, const ModelConfig& config, const ModelLimits& limits, size_t first_stage,
           std::span<const PlannedStage> stages);

  std::vector<PlannedStage> stages_;
  std::vector<std::vector<uint64_t>> workspaces_;  // of each stage's backend, for models
  std::vector<uint64_t> vision_workspaces_;        // of the last one's, for the vision encoder
  MemoryPlan plan_;
};

// Bytes of the parts that layers are placed by.
uint64_t layer_weight_bytes(const TensorSource& tensors, const ModelConfig& config, int layer,
                            const BackendTraits& traits);
uint64_t layer_kv_bytes(const ModelConfig& config, const ModelLimits& limits, int layer, const BackendTraits& traits);
uint64_t matrix_bytes(const TensorSource& tensors, std::string_view name, const BackendTraits& traits);
uint64_t activation_bytes(const ModelConfig& config, int n_rows, const BackendTraits& traits);
// Buffers of the heads.
uint64_t head_bytes(const ModelConfig& config, const ModelLimits& limits, const BackendTraits& traits);
// Working memory of a stage with the heads.
uint64_t work_bytes(const TensorSource& tensors, const ModelConfig& config, const ModelLimits& limits,
                    const BackendTraits& traits);

}  // namespace gemma
