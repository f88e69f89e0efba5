#include "runtime/merge_file.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "model/layer_tensors.h"
#include "model/memory_plan.h"
#include "model/vision_tensors.h"
#include "reader/hf_names.h"
#include "runtime/importance.h"

namespace gemma {
namespace {

using Steps = std::vector<std::unique_ptr<RowStep>>;

// What adapters change of a model's tensors.
class AdapterChanges {
 public:
  explicit AdapterChanges(const std::vector<MergedAdapter>& adapters) {
    for (const MergedAdapter& adapter : adapters)
      uses_.push_back({adapter.source.path, read_adapter(adapter.source, false), adapter.scale});
  }

  // Names, shapes and ranks, as they are looked at where a model is loaded.
  void check(const ModelConfig& config, const TensorSource& decoder, const VisionConfig* vision,
             const TensorSource* vision_tensors) const {
    const std::unique_ptr<const BackendTraits> traits = cpu_traits("", 1);
    const AdapterTarget target{.stages = {{traits.get(), 0, config.n_layers()}},
                               .config = config,
                               .max_rows = 1,
                               .tensors = decoder,
                               .vision = vision,
                               .vision_tensors = vision_tensors};
    size_t n_tables = 0;
    size_t n_heads = 0;
    size_t n_norms = 0;
    for (const Use& use : uses_) {
      in_file(use.path, [&] {
        Adapter::planned_bytes(use.tensors, target);
        for (const auto& [name, matrix] : use.tensors.matrices) {
          if (!matrix.bias) continue;
          bad_adapter("UNSUPPORTED",
                      matrix.bias->name + ": adds a bias, for which a GGUF file of Gemma 3 has no place");
        }
      });
      const bool has_rows = use.tensors.token_rows.has_value();
      n_tables += use.replaces(kTokenEmbd) || has_rows;
      n_heads += use.replaces(kOutput) || (has_rows && !config.has_output);
      n_norms += std::ranges::any_of(use.tensors.replaced, [](const auto& one) { return is_norm_of_gemma(one.first); });
    }
    if (n_tables > 1 || n_heads > 1 || n_norms > 1)
      bad_adapter("CONFLICT", "several adapters replace the same tensor, and only one can");
  }

  bool change_vision() const {
    return std::ranges::any_of(uses_, [](const Use& use) {
      return std::ranges::any_of(use.tensors.matrices, [](const auto& one) { return is_vision_tensor(one.first); });
    });
  }
  // Whether the embedding and an output matrix that is the same no longer are.
  bool part_embedding_and_output() const {
    return std::ranges::any_of(uses_, [](const Use& use) {
      return use.replaces(kTokenEmbd) || use.replaces(kOutput) || use.tensors.matrices.contains(kTokenEmbd) ||
             use.tensors.matrices.contains(kOutput);
    });
  }

  // In the order in which a loaded model applies them (forward.cpp: embed(); heads.cpp: multiply()). is_tied: the model's
  // output matrix is its embedding.
  Steps steps(const std::string& name, bool is_tied) const {
    Steps steps;
    const bool is_table = name == kTokenEmbd;
    const bool is_output = name == kOutput;
    for (const Use& use : uses_) {
      const auto whole = use.tensors.replaced.find(name);
      if (whole != use.tensors.replaced.end()) {
        const bool plus_one = use.tensors.norms_without_one && is_norm_of_gemma(name);
        steps.push_back(replace_step(whole->second, plus_one));
      }
      if (is_table && use.tensors.token_rows)
        steps.push_back(rows_step(*use.tensors.token_rows, use.tensors.token_ids));
    }
    for (const Use& use : uses_) {
      const auto matrix = use.tensors.matrices.find(name);
      if (matrix != use.tensors.matrices.end())
        steps.push_back(low_rank_step(matrix->second, static_cast<double>(use.scale), is_table));
    }
    if (!is_output || !is_tied) return steps;
    for (const Use& use : uses_) {
      if (use.tensors.token_rows) steps.push_back(rows_step(*use.tensors.token_rows, use.tensors.token_ids));
    }
    return steps;
  }

 private:
  struct Use {
    std::string path;
    AdapterTensors tensors;
    float scale;

    bool replaces(const char* name) const { return tensors.replaced.contains(name); }
  };
  std::vector<Use> uses_;
};

// The mean of a model's tensors and those of another.
class BlendChanges {
 public:
  BlendChanges(const MergeOptions& options, ModelInput& other)
      : options_(options), other_(other), used_(options.weights.size(), false) {}

  // Also that the other has no more.
  void check(const InputFile& file, InputFile* other) const {
    if (other == nullptr) refuse("it has no vision encoder; mmproj: false leaves the model's out");
    std::map<std::string, const Tensor*> known;
    for (const InputTensor& tensor : other->tensors) known[tensor.model_name] = tensor.tensor;
    for (const InputTensor& tensor : file.tensors) {
      const auto found = known.find(tensor.model_name);
      if (found == known.end()) refuse("tensor " + tensor.name + " is missing");
      if (found->second->shape != tensor.tensor->shape) {
        refuse("tensor " + tensor.name + ": expected " + shape_text(tensor.tensor->shape) + ", found " +
               shape_text(found->second->shape));
      }
      if (!is_computed_type(found->second->type))
        refuse("tensor " + tensor.name + ": nothing reads values of the type " + type_traits(found->second->type).name);
      known.erase(found);
    }
    if (!known.empty()) refuse("tensor " + known.begin()->first + " is none of the model's");
  }

  Steps steps(const InputTensor& tensor, const InputFile& other) {
    double weight = options_.weight;
    bool is_named = false;
    for (size_t i = 0; i < options_.weights.size(); ++i) {
      if (!pattern_names(options_.weights[i].pattern, tensor.name)) continue;
      used_[i] = true;
      if (!is_named) weight = options_.weights[i].weight;
      is_named = true;
    }
    Steps steps;
    if (weight == 0) return steps;
    const auto found = std::ranges::find(other.tensors, tensor.model_name, &InputTensor::model_name);
    steps.push_back(blend_step(*tensor.tensor, *found->tensor, options_.blend, weight,
                               is_norm_of_gemma(tensor.model_name),
                               [this](std::span<const std::byte> data) { other_.release(data); }));
    return steps;
  }

  void check_used() const {
    for (size_t i = 0; i < used_.size(); ++i) {
      if (used_[i]) continue;
      throw Error(ErrorCode::kInvalidArgument, "NO_SUCH_TENSOR",
                  "weights: \"" + shown_path(options_.weights[i].pattern) + "\" names no tensor of the model");
    }
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(ErrorCode::kInvalidArgument, "OTHER_MODEL",
                shown_path(options_.other_path) + ": not the same model in other weights: " + what);
  }

  const MergeOptions& options_;
  ModelInput& other_;
  std::vector<bool> used_;
};

class Merger {
 public:
  explicit Merger(const MergeOptions& options) : options_(options) {}

  MergeResult run() {
    if (options_.cancel != nullptr && options_.cancel->load())
      throw Error(ErrorCode::kDisposed, "CANCELLED", "merging was cancelled");
    types_.quantization = &need_file_quantization(options_.type, "type");
    types_.overrides = options_.overrides;
    types_.allow_requantize = options_.allow_requantize;
    mmproj_types_.quantization = &need_file_quantization(options_.mmproj_type, "mmprojType");
    mmproj_types_.allow_requantize = options_.allow_requantize;
    if (options_.adapters.empty() == options_.other_path.empty())
      throw Error(ErrorCode::kInvalidArgument, "", "expected adapters, or another model to merge with, not both");
    check_output(options_.output, options_.overwrite);
    model_.emplace(ModelInput::open(options_.path, options_.chat_template));
    types_.heads_per_kv_head = model_->heads_per_kv_head();
    if (!options_.importance_path.empty()) importance_ = read_importance(options_.importance_path);
    if (importance_) types_.importance = &importance_->columns;
    if (options_.adapters.empty()) {
      plan_blend();
    } else {
      plan_adapters();
    }
    const WriteSource source{.name = options_.path,
                             .version = version(),
                             .check = [&] { for_each_input([](const ModelInput& input) { input.check(); }); },
                             .release =
                                 [&](std::span<const std::byte> data) {
                                   for_each_input([&](const ModelInput& input) { input.release(data); });
                                 }};
    result_.take(write_files(files_, source, options_), files_);
    for_each_input([&](const ModelInput& input) { result_.source_bytes += input.bytes(); });
    return std::move(result_);
  }

 private:
  template <class F>
  void for_each_input(const F& f) const {
    for (const std::optional<ModelInput>* input : {&model_, &mmproj_, &other_}) {
      if (*input) f(**input);
    }
  }

  uint64_t version() const {
    uint64_t hash = 0;
    for_each_input([&](const ModelInput& input) { hash = hash_value(hash, input.version()); });
    return hash;
  }

  template <class StepsOf>
  void plan(const std::string& path, const InputFile& file, const FileTypes& types, const StepsOf& steps_of) {
    files_.push_back(plan_file(
        path, file, types,
        [&](const InputTensor& tensor) {
          std::shared_ptr<RowChange> change = make_change(steps_of(tensor));
          result_.n_changed += change != nullptr;
          return change;
        },
        &result_.fallbacks));
  }

  void plan_adapters() {
    adapters_.emplace(options_.adapters);
    const ModelConfig& config = model_->config();
    if (!options_.mmproj_path.empty()) mmproj_.emplace(ModelInput::open(options_.mmproj_path, ""));
    ModelInput& vision = mmproj_ ? *mmproj_ : *model_;
    const VisionConfig* vision_config = vision.vision_config(config.model_dim);
    adapters_->check(config, model_->decoder(), vision_config, vision.vision_tensors());
    const bool is_tied = !config.has_output;
    InputFile& main = model_->main();
    if (is_tied && !config.is_encoder && adapters_->part_embedding_and_output())
      main.tensors.push_back({kOutput, kOutput, model_->decoder().find(kTokenEmbd)});
    const auto steps_of = [&](const InputTensor& tensor) { return adapters_->steps(tensor.model_name, is_tied); };
    in_file(options_.path, [&] { plan(options_.output, main, types_, steps_of); });
    InputFile* beside = mmproj_ ? &mmproj_->main() : model_->vision() ? &*model_->vision() : nullptr;
    if (beside == nullptr) return no_mmproj(options_);
    if (options_.mmproj_output.empty()) {
      if (!adapters_->change_vision()) return;
      throw Error(ErrorCode::kInvalidArgument, "NO_MMPROJ",
                  "an adapter changes the vision encoder, and it is left out: name a file for it");
    }
    in_file(vision.path(), [&] { plan(options_.mmproj_output, *beside, mmproj_types_, steps_of); });
  }

  void plan_blend() {
    other_.emplace(ModelInput::open(options_.other_path, ""));
    name_vision(*model_);
    name_vision(*other_);
    blend_.emplace(options_, *other_);
    const auto add = [&](const std::string& path, const InputFile& file, InputFile* other, const FileTypes& types) {
      blend_->check(file, other);
      plan(path, file, types, [&](const InputTensor& tensor) { return blend_->steps(tensor, *other); });
    };
    in_file(options_.path, [&] {
      add(options_.output, model_->main(), &other_->main(), types_);
      if (!model_->vision() || options_.mmproj_output.empty()) return no_mmproj(options_);
      add(options_.mmproj_output, *model_->vision(), other_->vision() ? &*other_->vision() : nullptr, mmproj_types_);
    });
    blend_->check_used();
  }

  // So that files of different converters have the same names for the same tensors.
  static void name_vision(ModelInput& input) { input.vision_config(0); }

  const MergeOptions& options_;
  FileTypes types_;
  FileTypes mmproj_types_;
  std::optional<Importance> importance_;
  std::optional<ModelInput> model_;
  std::optional<ModelInput> mmproj_;
  std::optional<ModelInput> other_;
  std::optional<AdapterChanges> adapters_;
  std::optional<BlendChanges> blend_;
  std::vector<FileToWrite> files_;
  MergeResult result_;
};

}  // namespace

MergeResult merge_file(const MergeOptions& options) {
  return Merger(options).run();
}

}  // namespace gemma
