// The memory of all that is loaded together: the model, and beside it a vision encoder, a draft model, a prefix cache.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "model/memory_plan.h"
#include "runtime/draft_source.h"
#include "runtime/load_options.h"
#include "runtime/vision_source.h"

namespace gemma {

struct LoadSources {
  const TensorSource& tensors;  // the model's
  const ModelConfig& config;
  const std::optional<VisionSource>& vision;
  const std::optional<DraftSource>& draft;
  std::span<const AdapterTensors> adapters;
};

// The adapters that are to be loaded beside.
std::vector<AdapterTensors> read_adapters(const LoadOptions& options, bool headers_only);
// Rows that an adapter is computed for at a time, at most.
int adapter_rows(int max_batch, const VisionConfig* vision);

// The model's sequences have n_ctx positions. Steps have as many rows as are asked for, or as an image needs; an
// encoder's have room for a text of n_ctx.
ModelLimits model_limits(const LoadOptions& options, const LoadSources& sources, int n_ctx);
// Half floats. An encoder's keys and values take next to nothing: where its weights are floats, so are they.
KvType default_kv_type(const TensorSource& tensors, const ModelConfig& config);
// Rows that are asked for.
int wanted_rows(const LoadOptions& options);

// Throws Error as MemoryPlanner does.
MemoryPlan plan_load(const LoadSources& sources, const ModelLimits& limits, const LoadOptions& options,
                     const std::vector<PlannedStage>& stages);
// What lies on the last stage's backend beside the model. The prefix cache gives way where memory ends.
uint64_t bytes_beside(const LoadSources& sources, const ModelLimits& limits, const LoadOptions& options,
                      const BackendTraits& traits);

}  // namespace gemma
