#include "runtime/load_plan.h"

#include <algorithm>

#include "base/error.h"
#include "grammar/grammar.h"
#include "model/heads.h"
#include "model/layer_tensors.h"

namespace gemma {
namespace {

void add_beside(MemoryPlanner& planner, const LoadSources& sources, const ModelLimits& limits,
                const LoadOptions& options, const std::vector<PlannedStage>& stages) {
  const VisionConfig* vision = sources.vision ? &sources.vision->config : nullptr;
  const AdapterTarget target{
      stages,
      sources.config,
      adapter_rows(limits.max_batch, vision),
      sources.tensors,
      vision,
      sources.vision ? sources.vision->tensors.get() : nullptr,
      vision != nullptr && vision_requantizes(*vision, options.vision_arithmetic, stages.back().traits->has_bulk())};
  for (size_t i = 0; i < sources.adapters.size(); ++i) {
    planner.add_adapter(
        in_file(options.adapters[i].source.path, [&] { return Adapter::planned_bytes(sources.adapters[i], target); }));
  }
  if (sources.vision) planner.add_vision(*sources.vision->tensors, sources.vision->config, options.vision_arithmetic);
  if (sources.draft) planner.add_draft_model(*sources.draft->tensors, sources.draft->config, limits);
}

}  // namespace

std::vector<AdapterTensors> read_adapters(const LoadOptions& options, bool headers_only) {
  std::vector<AdapterTensors> all;
  for (const NamedAdapter& adapter : options.adapters) all.push_back(read_adapter(adapter.source, headers_only));
  return all;
}

int adapter_rows(int max_batch, const VisionConfig* vision) {
  const int rows = std::max(max_batch, kLogitRows);
  return vision != nullptr ? std::max(rows, vision_chunk_rows(*vision, vision_images_per_pass(*vision))) : rows;
}

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
                     const std::vector<PlannedStage>& stages) {
  MemoryPlanner planner(stages);
  planner.add_model(sources.tensors, sources.config, limits);
  add_beside(planner, sources, limits, options, stages);
  if (!sources.config.is_encoder) {
    planner.add_prefix_cache(options.prefix_cache_bytes);
    planner.add_grammars(grammar_vocabulary_bytes(sources.config.n_vocab));
  }
  return planner.plan();
}

uint64_t bytes_beside(const LoadSources& sources, const ModelLimits& limits, const LoadOptions& options,
                      const BackendTraits& traits) {
  const std::vector<PlannedStage> all = {{&traits, 0, sources.config.n_layers()}};
  MemoryPlanner planner(all);
  add_beside(planner, sources, limits, options, all);
  return planner.plan().total_bytes;
}

}  // namespace gemma
