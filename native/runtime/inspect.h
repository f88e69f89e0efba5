// What metadata alone says about a model file, and what it would take to load it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/vision_config.h"
#include "quant/type_counts.h"
#include "runtime/load_options.h"

namespace gemma {

// A model's shape as callers are told it.
struct ModelDescription {
  std::string name;        // may be empty
  std::string size_label;  // "270M", "1B", ...
  int n_layers = 0;
  int n_global_layers = 0;  // of them, those that see all positions
  int model_dim = 0;
  int ffn_dim = 0;
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int n_vocab = 0;
  int n_ctx_train = 0;
  int n_window = 0;
  float rms_eps = 0;
  float query_scale = 0;
  float rope_base_global = 0;
  float rope_base_local = 0;
  float rope_factor_global = 0;
  float final_softcap = 0;
  bool is_encoder = false;  // an embedding model
  bool has_dense = false;   // with its dense layers
  int embedding_dim = 0;    // of a text's embedding
  std::string pooling;      // pooling_name()
  bool normalizes = true;   // embeddings have a length of 1 where nothing else is asked for
};
ModelDescription describe_model(const ModelConfig& config);

struct FileSummary {
  ModelDescription model;
  std::optional<VisionConfig> vision;
  std::string architecture;
  ChatMetadata chat;
  uint64_t file_bytes = 0;
  uint64_t n_parameters = 0;
  uint64_t output_bytes = 0;     // of the matrix that logits are computed with; 0: an embedding model
  std::vector<TypeCount> types;  // most bytes first; with options.quantize as the model would be loaded
  struct Plan {
    int n_ctx = 0;
    MemoryPlan memory;
  };
  std::vector<Plan> plans;  // for each of the contexts
};

// Threads that compute, physical cores where no number is asked for.
int cpu_threads(const LoadOptions& options);
// Positions per sequence where none are asked for.
int default_context(const ModelConfig& config);
// options: as for loading the file; contexts, in positions, instead of its context, 0 for the default. Reads headers
// only. Throws Error as ModelFile::open, ModelFile::config, open_vision, open_draft and plan_load do.
FileSummary summarize_file(const LoadOptions& options, const std::vector<int>& contexts);

}  // namespace gemma
