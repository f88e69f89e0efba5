// Names as PEFT saves them (utils/save_and_load.py): base_model.model.MODULE.lora_A.weight and so on, where MODULE is the
// module's path in the model. Models with vision have had other paths before transformers 4.52; all end alike.
#include "reader/peft_adapter.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "model/layer_tensors.h"

namespace gemma {
namespace {

enum class Part { kA, kB, kBias, kMagnitude, kEmbeddingA, kEmbeddingB, kBase, kTokenRows, kWhole };

struct PeftName {
  std::string module;  // "model.layers.0.self_attn.q_proj"
  Part part = Part::kWhole;
};

[[noreturn]] void bad_name(const std::string& name, const std::string& message) {
  bad_adapter("BAD_NAME", name + ": " + message);
}

PeftName parse_name(const std::string& name) {
  constexpr std::string_view kPrefix = "base_model.model.";
  // Longer ones before those that they end in.
  constexpr std::pair<std::string_view, Part> kEnds[] = {
      {".lora_A.weight", Part::kA},
      {".lora_B.weight", Part::kB},
      {".lora_B.bias", Part::kBias},
      {".lora_magnitude_vector.weight", Part::kMagnitude},
      {".lora_magnitude_vector", Part::kMagnitude},
      {".lora_embedding_A", Part::kEmbeddingA},
      {".lora_embedding_B", Part::kEmbeddingB},
      {".base_layer.weight", Part::kBase},
      {".token_adapter.trainable_tokens_delta", Part::kTokenRows},
      {".weight", Part::kWhole},
  };
  if (!name.starts_with(kPrefix)) bad_name(name, "expected a name that begins with base_model.model.");
  const std::string_view rest = std::string_view(name).substr(kPrefix.size());
  for (const auto& [end, part] : kEnds) {
    if (rest.ends_with(end)) return {std::string(rest.substr(0, rest.size() - end.size())), part};
  }
  bad_name(name, "expected a name that ends in .lora_A.weight, .lora_B.weight or another part that PEFT's LoRA has");
}

bool skip(std::string_view* text, std::string_view beginning) {
  if (!text->starts_with(beginning)) return false;
  text->remove_prefix(beginning.size());
  return true;
}

// "layers.3.": 3.
std::optional<int> skip_layer(std::string_view* text) {
  if (!skip(text, "layers.")) return std::nullopt;
  int layer = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), layer);
  if (error != std::errc() || end == text->data() + text->size() || *end != '.' || layer < 0) return std::nullopt;
  text->remove_prefix(static_cast<size_t>(end - text->data()) + 1);
  return layer;
}

// The name of the model's tensor; none for a module that no Gemma 3 has.
std::optional<std::string> tensor_of(std::string_view module) {
  using Names = std::pair<std::string_view, const char*>;
  constexpr Names kOutside[] = {{"embed_tokens", kTokenEmbd}, {"norm", kOutputNorm}, {"lm_head", kOutput}};
  constexpr Names kLayer[] = {{"self_attn.q_proj", "attn_q"},
                              {"self_attn.k_proj", "attn_k"},
                              {"self_attn.v_proj", "attn_v"},
                              {"self_attn.o_proj", "attn_output"},
                              {"self_attn.q_norm", "attn_q_norm"},
                              {"self_attn.k_norm", "attn_k_norm"},
                              {"mlp.gate_proj", "ffn_gate"},
                              {"mlp.up_proj", "ffn_up"},
                              {"mlp.down_proj", "ffn_down"},
                              {"input_layernorm", "attn_norm"},
                              {"post_attention_layernorm", "post_attention_norm"},
                              {"pre_feedforward_layernorm", "ffn_norm"},
                              {"post_feedforward_layernorm", "post_ffw_norm"}};
  constexpr Names kVisionLayer[] = {{"self_attn.q_proj", "attn_q"}, {"self_attn.k_proj", "attn_k"},
                                    {"self_attn.v_proj", "attn_v"}, {"self_attn.out_proj", "attn_out"},
                                    {"mlp.fc1", "ffn_up"},          {"mlp.fc2", "ffn_down"}};
  const auto look_up = [](const auto& names, std::string_view name) {
    const auto* const found =
        std::find_if(std::begin(names), std::end(names), [&](const Names& entry) { return entry.first == name; });
    return found == std::end(names) ? nullptr : found->second;
  };
  skip(&module, "model.");
  if (skip(&module, "vision_tower.")) {
    skip(&module, "vision_model.");
    if (!skip(&module, "encoder.")) return std::nullopt;
    const std::optional<int> layer = skip_layer(&module);
    const char* name = layer ? look_up(kVisionLayer, module) : nullptr;
    if (name == nullptr) return std::nullopt;
    return "v.blk." + std::to_string(*layer) + "." + name + ".weight";
  }
  if (skip(&module, "language_model.")) skip(&module, "model.");
  if (const char* name = look_up(kOutside, module)) return name;
  const std::optional<int> layer = skip_layer(&module);
  const char* name = layer ? look_up(kLayer, module) : nullptr;
  if (name == nullptr) return std::nullopt;
  return "blk." + std::to_string(*layer) + "." + name + ".weight";
}

Tensor tensor_from(const SafetensorsTensor& stored) {
  if (!stored.type->type || !is_float_type(*stored.type->type)) {
    bad_adapter("BAD_TENSOR", stored.name + ": expected F32, F16 or BF16, file has " + stored.type->name);
  }
  if (stored.shape.empty() || std::find(stored.shape.begin(), stored.shape.end(), 0) != stored.shape.end())
    bad_adapter("BAD_TENSOR", stored.name + ": expected values, the tensor is empty or a scalar");
  Tensor tensor;
  tensor.name = stored.name;
  tensor.type = *stored.type->type;
  tensor.shape = stored.shape;
  tensor.data = stored.data;
  tensor.bytes = stored.bytes;
  return tensor;
}

class PeftReader {
 public:
  explicit PeftReader(const PeftSettings& settings) : settings_(settings) {
    for (const PeftModule& module : settings.modules) modules_.emplace(module.name, &module);
  }

  AdapterTensors read(const SafetensorsFile& file) {
    adapter_.norms_without_one = true;
    for (const SafetensorsTensor& stored : file.tensors()) add(parse_name(stored.name), tensor_from(stored));
    if (file.tensors().empty()) bad_adapter("MISSING_TENSOR", "the file holds no tensors");
    for (const auto& [name, matrix] : adapter_.matrices) check_kind(name, matrix);
    if (adapter_.token_rows.has_value() != !settings_.token_ids.empty()) {
      bad_adapter("MISSING_TENSOR",
                  "trainable_token_indices: expected them in the configuration and their rows in the "
                  "file, found one without the other");
    }
    adapter_.token_ids = settings_.token_ids;
    return std::move(adapter_);
  }

 private:
  void add(const PeftName& name, Tensor tensor) {
    const std::optional<std::string> target = tensor_of(name.module);
    if (!target) bad_name(tensor.name, "no module of Gemma 3 that an adapter can change here");
    const auto put = [&](std::optional<Tensor> AdapterMatrix::* place) {
      AdapterMatrix& matrix = adapter_.matrices[*target];
      if (matrix.*place) bad_name(tensor.name, "another tensor changes the same matrix");
      matrix.*place = std::move(tensor);
    };
    const bool is_embedding = *target == kTokenEmbd;
    if ((name.part == Part::kEmbeddingA || name.part == Part::kEmbeddingB) != is_embedding &&
        (name.part <= Part::kB || name.part == Part::kEmbeddingA || name.part == Part::kEmbeddingB)) {
      bad_name(tensor.name, "lora_embedding_A and lora_embedding_B are of embed_tokens, and no others are");
    }
    switch (name.part) {
      case Part::kA:
      case Part::kEmbeddingA: put(&AdapterMatrix::a); break;
      case Part::kB:
      case Part::kEmbeddingB:
        set_scale(name, *target, tensor);
        put(&AdapterMatrix::b);
        break;
      case Part::kBias: put(&AdapterMatrix::bias); break;
      case Part::kMagnitude: put(&AdapterMatrix::magnitude); break;
      case Part::kBase: break;  // the model's own matrix once more, as PEFT saves it beside changes of the vocabulary's
      case Part::kTokenRows:
        if (!is_embedding) bad_name(tensor.name, "rows of single tokens are of embed_tokens");
        adapter_.token_rows = std::move(tensor);
        break;
      case Part::kWhole: {
        const std::string last = name.module.substr(name.module.rfind('.') + 1);
        if (std::find(settings_.saved.begin(), settings_.saved.end(), last) == settings_.saved.end())
          bad_name(tensor.name, "a whole module that modules_to_save does not name");
        adapter_.replaced[*target] = std::move(tensor);
        break;
      }
    }
  }

  void set_scale(const PeftName& name, const std::string& target, const Tensor& b) {
    const auto found = modules_.find(name.module);
    if (found == modules_.end()) bad_name(b.name, "the configuration says nothing of this module");
    const int64_t rank = b.shape.size() == 2 ? b.shape[1] : 0;
    if (rank != found->second->rank) {
      bad_adapter("BAD_RANK", b.name + ": expected rank " + std::to_string(found->second->rank) +
                                  " as the configuration says, file has " + shape_text(b.shape));
    }
    adapter_.matrices[target].scale = found->second->scale;
  }

  void check_kind(const std::string& name, const AdapterMatrix& matrix) const {
    const auto need = [&](bool is_there, bool is_wanted, const char* what, const char* option) {
      if (is_there == is_wanted) return;
      bad_adapter("MISSING_TENSOR", name + ": expected " + what + " exactly where the configuration has " + option);
    };
    need(matrix.magnitude.has_value(), settings_.dora, "lora_magnitude_vector", "use_dora");
    need(matrix.bias.has_value(), settings_.bias, "lora_B.bias", "lora_bias");
  }

  const PeftSettings& settings_;
  std::unordered_map<std::string, const PeftModule*> modules_;
  AdapterTensors adapter_;
};

}  // namespace

AdapterTensors read_peft_adapter(const std::string& path, const PeftSettings& settings, bool headers_only) {
  const std::shared_ptr<const SafetensorsFile> file =
      SafetensorsFile::open(path, {.mmap = false, .headers_only = headers_only});
  return in_file(path, [&] { return peft_adapter(file, settings); });
}

AdapterTensors peft_adapter(const std::shared_ptr<const SafetensorsFile>& file, const PeftSettings& settings) {
  AdapterTensors adapter = PeftReader(settings).read(*file);
  adapter.file = file;
  return adapter;
}

std::vector<std::string> peft_modules(const std::string& path) {
  const std::shared_ptr<const SafetensorsFile> file =
      SafetensorsFile::open(path, {.mmap = false, .headers_only = true});
  return in_file(path, [&] { return peft_modules(*file); });
}

std::vector<std::string> peft_modules(const SafetensorsFile& file) {
  std::vector<std::string> modules;
  for (const SafetensorsTensor& tensor : file.tensors()) {
    PeftName name = parse_name(tensor.name);
    if (name.part == Part::kB || name.part == Part::kEmbeddingB) modules.push_back(std::move(name.module));
  }
  return modules;
}

}  // namespace gemma
