#include "runtime/load_plan.h"

#include <algorithm>

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

ModelLimits model_limits(const LoadOptions& options, const ModelConfig& config, int n_ctx,
                         const std::optional<VisionSource>& vision) {
  const int n_rows = rows_per_step(wanted_rows(options), vision ? std::optional(vision->config) : std::nullopt);
  return {.n_ctx = n_ctx,
          .kv_type = options.kv_type,
          .max_batch = config.is_encoder ? std::max(n_rows, n_ctx) : n_rows,
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
