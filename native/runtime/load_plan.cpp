#include "runtime/load_plan.h"

#include "grammar/grammar.h"

namespace gemma {
namespace {

void add_beside(MemoryPlanner& planner, const LoadSources& sources, const ModelLimits& limits,
                const LoadOptions& options) {
  if (sources.vision) planner.add_vision(*sources.vision->tensors, sources.vision->config, options.vision_arithmetic);
  if (sources.draft) planner.add_draft_model(*sources.draft->tensors, sources.draft->config, limits);
}

}  // namespace

ModelLimits model_limits(const LoadOptions& options, int n_ctx, const std::optional<VisionSource>& vision) {
  const int n_batch = options.n_batch > 0 ? options.n_batch : kDefaultBatch;
  return {.n_ctx = n_ctx,
          .kv_type = options.kv_type,
          .max_batch = rows_per_step(n_batch, vision ? std::optional(vision->config) : std::nullopt),
          .screened = options.screen_logits};
}

MemoryPlan plan_load(const LoadSources& sources, const ModelLimits& limits, const LoadOptions& options,
                     std::vector<PlannedStage> stages) {
  MemoryPlanner planner(std::move(stages));
  planner.add_model(sources.tensors, sources.config, limits);
  add_beside(planner, sources, limits, options);
  planner.add_prefix_cache(options.prefix_cache_bytes);
  planner.add_grammars(grammar_vocabulary_bytes(sources.config.n_vocab));
  return planner.plan();
}

uint64_t bytes_beside(const LoadSources& sources, const ModelLimits& limits, const LoadOptions& options,
                      const BackendTraits& traits) {
  MemoryPlanner planner({{&traits, 0, 0}});
  add_beside(planner, sources, limits, options);
  return planner.plan().total_bytes;
}

}  // namespace gemma
