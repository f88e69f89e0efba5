#include "runtime/inspect.h"

#include <algorithm>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "backend/cpu/cpu_features.h"
#include "model/layer_tensors.h"
#include "quant/types.h"
#include "reader/model_file.h"
#include "runtime/load_plan.h"
#include "runtime/quantize_load.h"
#include "runtime/vision_source.h"

namespace gemma {
ModelDescription describe_model(const ModelConfig& config) {
  ModelDescription model;
  model.name = config.name;
  model.size_label = config.size_label;
  model.n_layers = config.n_layers();
  model.model_dim = config.model_dim;
  model.n_vocab = config.n_vocab;
  model.n_ctx_train = config.n_ctx_train;
  model.rms_eps = config.rms_eps;
  model.final_softcap = config.final_softcap;
  model.is_encoder = config.is_encoder;
  model.has_dense = config.has_dense();
  model.embedding_dim = config.embedding_dim();
  model.pooling = pooling_name(config.pooling);
  model.normalizes = config.normalizes;
  // Layers of Gemma 3 differ in window and rotation alone.
  for (const LayerConfig& layer : config.layers) {
    model.ffn_dim = layer.ffn_dim;
    model.n_heads = layer.n_heads;
    model.n_kv_heads = layer.n_kv_heads;
    model.head_dim = layer.head_dim;
    model.query_scale = layer.query_scale;
    if (layer.is_local()) {
      model.n_window = layer.n_window;
      model.rope_base_local = layer.rope_base;
    } else {
      ++model.n_global_layers;
      model.rope_base_global = layer.rope_base;
      model.rope_factor_global = layer.rope_factor;
    }
  }
  return model;
}

int cpu_threads(const LoadOptions& options) {
  return options.n_threads > 0 ? options.n_threads : cpu::usable_cores();
}

int default_context(const ModelConfig& config) {
  return std::min(config.n_ctx_train, kDefaultContext);
}

FileSummary summarize_file(const LoadOptions& options, const std::vector<int>& contexts) {
  const FileOptions headers = {.headers_only = true};
  const ModelFile file = ModelFile::open(options.path, headers);
  FileSummary summary;
  const ModelConfig config = file.config();
  summary.model = describe_model(config);
  const auto as_loaded = [&](std::shared_ptr<const TensorSource> source, const ModelConfig& its,
                             const std::string& path) {
    if (options.quantize.empty()) return source;
    return quantized_tensors(std::move(source), its, options.quantize, path, cpu_threads(options));
  };
  const std::shared_ptr<const TensorSource> tensors = as_loaded(file.decoder_tensors(), config, options.path);
  const std::optional<VisionSource> vision = open_vision(options, file, config, headers);
  if (vision) summary.vision = vision->config;
  std::optional<DraftSource> draft;
  if (!options.draft_path.empty()) {
    draft = open_draft(options.draft_path, headers);
    draft->tensors = as_loaded(draft->tensors, draft->config, draft->path);
  }
  const std::vector<AdapterTensors> adapters = read_adapters(options, /*headers_only=*/true);
  summary.architecture = file.architecture();
  summary.chat = file.chat_metadata();
  summary.file_bytes = file.bytes();
  std::unordered_map<std::string_view, const Tensor*> loaded;  // by the file's names
  for (const Tensor* tensor : tensors->tensors()) loaded.emplace(tensor->name, tensor);
  TypeCounts types;
  for (const Tensor& tensor : file.tensors()) {
    uint64_t n_elements = 1;
    for (const int64_t dimension : tensor.shape) n_elements *= static_cast<uint64_t>(dimension);
    summary.n_parameters += n_elements;
    const auto found = loaded.find(tensor.name);
    const Tensor& counted = found == loaded.end() ? tensor : *found->second;
    types.add(counted.type, counted.bytes);
  }
  summary.types = types.most_bytes_first();
  if (!config.is_encoder) summary.output_bytes = tensors->find(config.has_output ? kOutput : kTokenEmbd)->bytes;
  const std::unique_ptr<const BackendTraits> traits = cpu_traits(options.isa, cpu_threads(options));
  for (int n_ctx : contexts) {
    if (n_ctx == 0) n_ctx = default_context(config);
    const LoadSources sources{*tensors, config, vision, draft, adapters};
    const MemoryPlan plan =
        plan_load(sources, model_limits(options, sources, n_ctx), options, {{traits.get(), 0, config.n_layers()}});
    summary.plans.push_back({n_ctx, plan});
  }
  return summary;
}

}  // namespace gemma
