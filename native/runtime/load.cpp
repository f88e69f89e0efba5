#include "runtime/load.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "base/error.h"
#include "model/weights.h"
#include "reader/model_file.h"
#include "runtime/adapters.h"
#include "runtime/devices.h"
#include "runtime/inspect.h"
#include "runtime/load_plan.h"
#include "runtime/quantize_load.h"
#include "runtime/vision_source.h"

namespace gemma {
namespace {

std::vector<TokenId> find_banned(const Tokenizer& tokenizer, int n_vocab) {
  std::vector<TokenId> banned;
  const SpecialIds& special = tokenizer.special();
  for (const TokenId id : {special.start_of_image, special.end_of_image, special.image_soft}) {
    if (id >= 0 && id < n_vocab) banned.push_back(id);
  }
  for (TokenId id = 0; id < n_vocab; ++id) {
    if (id >= tokenizer.n_vocab() || tokenizer.token_bytes(id, true).empty()) banned.push_back(id);
  }
  return banned;
}

// Positions per sequence. Throws Error{kInvalidArgument, CONTEXT_SIZE}.
int choose_context(int wanted, const ModelConfig& config) {
  if (wanted > config.n_ctx_train) {
    throw Error(
        ErrorCode::kInvalidArgument, "CONTEXT_SIZE",
        "contextSize " + std::to_string(wanted) + ": the model was trained for " + std::to_string(config.n_ctx_train));
  }
  return wanted > 0 ? wanted : default_context(config);
}

// One loading: the steps in order, and what several of them need.
class Loader {
 public:
  explicit Loader(const LoadOptions& options) : options_(options) { open_options_.mmap = options.mmap; }

  std::unique_ptr<LoadedModel> run() {
    progress(0.0);
    info_.n_threads = cpu_threads(options_);
    make_cpu_backend(options_.isa, 1);  // a wrong name is an error wherever the layers go
    read_file();
    Placement placement = place();
    tensors_->prefetch([&](double fraction) { progress(0.2 + 0.6 * fraction); });
    build(std::move(placement));
    add_adapters();
    add_drafter();
    tensors_->check();  // a file that was cut meanwhile
    progress(1.0);
    return std::move(loaded_);
  }

 private:
  void progress(double fraction) const {
    if (options_.cancel != nullptr && options_.cancel->load())
      throw Error(ErrorCode::kDisposed, "CANCELLED", "loading was cancelled");
    if (options_.on_progress) options_.on_progress(fraction);
  }

  // Configuration, vocabulary, and where the vision encoder is.
  void read_file() {
    const ModelFile& file = file_.emplace(ModelFile::open(options_.path, open_options_));
    info_.chat = file.chat_metadata();
    progress(0.1);
    config_ = file.config();
    const std::shared_ptr<const TensorSource> stored = file.decoder_tensors();
    tensors_ = quantized(stored, config_, options_.path);
    if (tensors_ != stored) info_.quantize = options_.quantize;
    vocabulary_ = file.vocabulary(config_.n_vocab);
    config_.embeds_eos = vocabulary_.adds_eos.value_or(config_.embeds_eos);
    loaded_->tokenizer = file.make_tokenizer(vocabulary_);
    loaded_->grammars = std::make_unique<GrammarCompiler>(*loaded_->tokenizer);
    loaded_->banned = find_banned(*loaded_->tokenizer, config_.n_vocab);
    progress(0.2);
    info_.n_ctx = in_file(options_.path, [&] { return choose_context(options_.n_ctx, config_); });
    in_file(options_.path, [&] { check_embedding_model(file); });
    vision_ = open_vision(options_, file, config_, open_options_);
    if (vision_) info_.vision = vision_->config;
    info_.vision_arithmetic = options_.vision_arithmetic;
    adapters_ = read_adapters(options_, /*headers_only=*/true);
  }

  std::shared_ptr<const TensorSource> quantized(std::shared_ptr<const TensorSource> tensors, const ModelConfig& config,
                                                const std::string& path) const {
    if (options_.quantize.empty()) return tensors;
    return quantized_tensors(std::move(tensors), config, options_.quantize, path, info_.n_threads);
  }

  void check_embedding_model(const ModelFile& file) const {
    if (config_.is_encoder && !options_.draft_path.empty()) {
      throw Error(ErrorCode::kUnsupportedInput, "EMBEDDING_MODEL",
                  "draft: an embedding model writes nothing that could be guessed");
    }
    if (options_.needs_dense && config_.lacks_dense) {
      throw Error(ErrorCode::kUnsupportedModel, "NO_DENSE_LAYERS",
                  file.dense_hint() + "; or take vectors that are not the model's (option denseLayers: 'optional')");
    }
  }

  // The layers on devices by what they take, and what all of it takes there.
  Placement place() {
    if (!options_.draft_path.empty()) {
      draft_ = open_draft(options_.draft_path, open_options_);
      draft_->tensors = quantized(draft_->tensors, draft_->config, draft_->path);
    }
    const LoadSources sources{*tensors_, config_, vision_, draft_, adapters_};
    limits_ = model_limits(options_, sources, info_.n_ctx);
    info_.kv_type = limits_.kv_type;
    loaded_->max_text_rows = std::min(wanted_rows(options_), limits_.max_batch);
    loaded_->max_image_rows = limits_.max_batch - kMaxRunning;
    PlacementRequest request{.device = options_.device,
                             .n_gpu_layers = options_.n_gpu_layers,
                             .isa = options_.isa,
                             .n_threads = info_.n_threads,
                             .emulated_chip = options_.emulated_chip};
    request.other_bytes = [&](const BackendTraits& traits) { return bytes_beside(sources, limits_, options_, traits); };
    Placement placement = open_devices(request, config_.n_layers(), [&](const BackendTraits& traits) {
      return layer_costs(*tensors_, config_, limits_, traits);
    });
    info_.device = placement.device;
    info_.isa = placement.backends.back()->isa();
    info_.n_gpu_layers = placement.n_gpu_layers;
    info_.memory = plan_load(sources, limits_, options_, planned(placement.stages));
    return placement;
  }

  void build(Placement placement) {
    loaded_->backends = std::move(placement.backends);
    loaded_->stages = placement.stages;
    loaded_->tensors = tensors_;
    if (vision_) loaded_->vision_tensors = vision_->tensors;
    loaded_->model = in_file(options_.path, [&] {
      return std::make_unique<Model>(placement.stages, config_, load_weights(placement.stages, tensors_, config_),
                                     limits_);
    });
    if (vision_) {
      loaded_->encoder =
          std::make_unique<VisionEncoder>(last(), vision_->tensors, vision_->config, options_.vision_arithmetic);
    }
    loaded_->prefixes = std::make_unique<PrefixCache>(loaded_->model->kv_pool(), config_.model_dim,
                                                      config_.is_encoder ? 0 : options_.prefix_cache_bytes);
  }

  void add_adapters() {
    const AdapterTarget target = loaded_->adapter_target(*tensors_, loaded_->vision_tensors.get());
    for (const NamedAdapter& source : options_.adapters) {
      const std::shared_ptr<Adapter> adapter =
          prepare_adapter(source, target, [this] { return options_.cancel != nullptr && options_.cancel->load(); });
      loaded_->install(adapter);
    }
  }

  void add_drafter() {
    loaded_->drafter =
        std::make_unique<Drafter>(*loaded_->tokenizer, config_.n_vocab, loaded_->banned, tensors_->bytes());
    if (!draft_) return;
    progress(0.8);
    loaded_->drafter->load_model(last(), *draft_, vocabulary_, limits_,
                                 [&](double fraction) { progress(0.8 + 0.2 * fraction); });
    info_.has_draft_model = true;
  }

  Backend& last() const { return *loaded_->backends.back(); }

  const LoadOptions& options_;
  FileOptions open_options_;
  std::unique_ptr<LoadedModel> loaded_ = std::make_unique<LoadedModel>();
  ModelConfig& config_ = loaded_->config;
  EngineInfo& info_ = loaded_->info;
  std::optional<ModelFile> file_;
  std::shared_ptr<const TensorSource> tensors_;  // the decoder's; keeps the weights
  Vocabulary vocabulary_;                        // views into the file's headers
  std::optional<VisionSource> vision_;
  std::optional<DraftSource> draft_;
  std::vector<AdapterTensors> adapters_;  // headers
  ModelLimits limits_;
};

}  // namespace

void LoadedModel::release() {
  if (prefixes == nullptr) return;
  adapters.clear();
  tensors.reset();
  vision_tensors.reset();
  prefixes.reset();
  model.reset();  // weights, cache
  encoder.reset();
  drafter->close();
}

AdapterTarget LoadedModel::adapter_target(const TensorSource& model_tensors,
                                          const TensorSource* tensors_of_vision) const {
  const VisionConfig* vision = info.vision ? &*info.vision : nullptr;
  return {
      planned(stages),
      config,
      adapter_rows(max_image_rows + kMaxRunning, vision),
      model_tensors,
      vision,
      tensors_of_vision,
      vision != nullptr && vision_requantizes(*vision, info.vision_arithmetic, backends.back()->traits().has_bulk())};
}

void LoadedModel::install(const std::shared_ptr<Adapter>& adapter) {
  adapters.reserve(adapters.size() + 1);
  adapter->install(stages);
  adapters.push_back(adapter);
}

void LoadedModel::free_adapters() noexcept {
  std::erase_if(adapters, [](const std::shared_ptr<const Adapter>& adapter) { return adapter.use_count() == 1; });
}

std::unique_ptr<LoadedModel> load_model(const LoadOptions& options) {
  return Loader(options).run();
}

}  // namespace gemma
