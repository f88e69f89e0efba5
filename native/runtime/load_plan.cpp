#include "runtime/load_plan.h"

#include <algorithm>

#include "model/layer_tensors.h"

namespace gemma {
namespace {

void add_beside(MemoryPlanner& planner, const LoadSources& sources, const ModelLimits& limits,
                const LoadOptions& options) {
  if (sources.vision) planner.add_vision(*sources.vision->tensors, sources.vision->config, options.vision_arithmetic);
  if (sources.draft) planner.add_draft_model(*sources.draft->tensors, sources.draft->config, limits);
}

}  // namespace

int wanted_rows(const LoadOptions& options) {
  return options.n_batch > 0 ? options.n_batch : kDefaultBatch;
}

KvType default_kv_type(const TensorSource& tensors, const ModelConfig& config) {
  return config.is_encoder && !has_quantized_weights(tensors, config) ? KvType::kF32 : KvType::kF16;
}

ModelLimits model_limits(const LoadOptions& options, const LoadSources& sources, int n_ctx) {
  const int n_rows =
      rows_per_step(wanted_rows(options), sources.vision ? std::optional(sources.vision->config) : std::nullopt);
  return {.n_ctx = n_ctx,
          .kv_type = options.kv_type.value_or(default_kv_type(sources.tensors, sources.config)),
          .max_batch = sources.config.is_encoder ? std::max(n_rows, n_ctx) : n_rows,
          .screened = options.screen_logits};
}

MemoryPlan plan_load(const LoadSources& sources, const ModelLimits& limits, const LoadOptions& options,
                     std::vector<PlannedStage> stages) {
  MemoryPlanner planner(std::move(stages));
  planner.add_model(sources.tensors, sources.config, limits);
  add_beside(planner, sources, limits, options);
  if (!sources.config.is_encoder) planner.add_prefix_cache(options.prefix_cache_bytes);
  return planner.plan();
}

uint64_t bytes_beside(const LoadSources& sources, const ModelLimits& limits, const LoadOptions& options,
                      const BackendTraits& traits) {
  MemoryPlanner planner({{&traits, 0, 0}});
  add_beside(planner, sources, limits, options);
  return planner.plan().total_bytes;
}

}  // namespace gemma
