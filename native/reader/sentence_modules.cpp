#include "reader/sentence_modules.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <span>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "reader/hparam_limits.h"

namespace gemma {
namespace {

constexpr uint64_t kMaxBytes = uint64_t{1} << 20;  // published files have below 1 KB
constexpr size_t kMaxModules = 64;
constexpr size_t kMaxDense = 16;

constexpr JsonRules kModuleRules = {
    .code = ErrorCode::kSafetensorsInvalid, .detail = "BAD_MODULES", .max_depth = 16, .max_values = 1 << 16};
constexpr JsonRules kConfigRules = {
    .code = ErrorCode::kSafetensorsInvalid, .detail = "BAD_HPARAM", .max_depth = 32, .max_values = 1 << 20};

[[noreturn]] void unsupported(const std::string& message) {
  throw Error(ErrorCode::kUnsupportedModel, "SENTENCE_MODULE", message);
}

[[noreturn]] void bad_modules(const std::string& message) {
  throw Error(ErrorCode::kSafetensorsInvalid, "BAD_MODULES", message);
}

std::string joined(const std::string& folder, std::string_view name) {
  const bool has_slash = folder.ends_with('/') || folder.ends_with('\\');
  return folder + (has_slash ? "" : "/") + std::string(name);
}

// f(text of the file), with the file's name in what it throws.
template <class F>
void read_json(const std::string& path, const F& f) {
  if (path_kind(path) == PathKind::kNone) {
    throw Error(ErrorCode::kFile, "MISSING_MODULE",
                shown_path(path) + ": missing; modules.json says that it is a part of the model, fetch it again");
  }
  const std::vector<std::byte> bytes = read_file(path, kMaxBytes);
  in_file(path, [&] { f(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size())); });
}

// The class, of whichever version's package: "sentence_transformers.models.Dense",
// "sentence_transformers.base.modules.dense.Dense".
std::string class_of(std::string_view type) {
  if (!type.starts_with("sentence_transformers."))
    unsupported("a module of type " + quoted(type) + ", which is a program of the model's own");
  return std::string(type.substr(type.rfind('.') + 1));
}

// "2_Dense": a number and a class, as every version writes it. No other path is followed, and none leads out of the folder;
// lib/model-files.ts knows the same names (SENTENCE_MODULE).
bool is_folder_name(std::string_view name) {
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  const auto is_word = [&](char c) {
    return is_digit(c) || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
  };
  const size_t n = std::min(name.find('_'), name.size());
  const std::string_view number = name.substr(0, n);
  const std::string_view rest = name.substr(std::min(n + 1, name.size()));
  return !number.empty() && number.size() <= 4 && std::all_of(number.begin(), number.end(), is_digit) &&
         !rest.empty() && rest.size() <= 64 && std::all_of(rest.begin(), rest.end(), is_word);
}

Pooling pooling_of(std::string_view name) {
  const std::optional<Pooling> found = find_pooling(name);
  if (!found) unsupported("pooling of mode " + quoted(name));
  return *found;
}

Activation activation_of(std::string_view name) {
  struct Known {
    std::string_view name;
    Activation activation;
  };
  constexpr Known kKnown[] = {{"Identity", Activation::kIdentity}, {"Tanh", Activation::kTanh},
                              {"ReLU", Activation::kRelu},         {"Sigmoid", Activation::kSigmoid},
                              {"GELU", Activation::kGelu},         {"SiLU", Activation::kSilu}};
  const auto* const found = std::find_if(std::begin(kKnown), std::end(kKnown), [&](const Known& known) {
    return name.starts_with("torch.nn.modules.") && name.ends_with(known.name) &&
           name[name.size() - known.name.size() - 1] == '.';
  });
  if (found == std::end(kKnown))
    unsupported("a dense layer with activation " + quoted(name) +
                " (expected Identity, Tanh, ReLU, Sigmoid, GELU or SiLU of torch.nn)");
  return found->activation;
}

}  // namespace

std::vector<SentenceModule> read_module_list(std::string_view text) {
  JsonReader json(text, kModuleRules);
  std::vector<SentenceModule> modules;
  json.read_array([&] {
    if (modules.size() == kMaxModules)
      json.fail("more than " + std::to_string(kMaxModules) + " modules are not accepted", json.offset());
    SentenceModule& module = modules.emplace_back();
    bool has_path = false;
    json.read_object([&](std::string_view key) {
      const size_t at = json.offset();
      if (key == "type") {
        module.type = class_of(json.read_string());
      } else if (key == "path") {
        has_path = true;
        module.path = json.read_string();
        if (!module.path.empty() && !is_folder_name(module.path))
          json.fail("expected the name of a folder beside this file, such as \"2_Dense\", found " + quoted(module.path),
                    at);
      } else if (key == "kwargs") {
        if (json.kind() != JsonKind::kArray) return json.skip();
        json.read_array([&] { unsupported("a module that takes arguments (kwargs)"); });
      } else {
        json.skip();
      }
    });
    if (module.type.empty() || !has_path) bad_modules("a module without its type or its path");
  });
  json.end();
  return modules;
}

// Since version 5.4 one name, or a list; before that a flag for each mode.
Pooling read_sentence_pooling(std::string_view text, int model_dim) {
  constexpr std::string_view kFlag = "pooling_mode_";
  JsonReader json(text, kConfigRules);
  std::vector<Pooling> by_name;
  std::vector<Pooling> by_flag;
  json.read_object([&](std::string_view key) {
    const size_t at = json.offset();
    if (key == "pooling_mode" && json.kind() == JsonKind::kArray) {
      json.read_array([&] { by_name.push_back(pooling_of(json.read_string())); });
    } else if (key == "pooling_mode") {
      by_name.push_back(pooling_of(json.read_string()));
    } else if (key.starts_with(kFlag)) {
      std::string name(key.substr(kFlag.size()));
      if (name == "cls_token") name = "cls";
      if (name == "max_tokens" || name == "mean_tokens" || name == "weightedmean_tokens")
        name.resize(name.size() - std::string_view("_tokens").size());
      if (json.read_bool()) by_flag.push_back(pooling_of(name));
    } else if (key == "word_embedding_dimension" || key == "embedding_dimension") {
      const int64_t dim = json.read_int();
      if (dim != model_dim) {
        json.fail("expected " + std::to_string(model_dim) + ", the model's width, found " + std::to_string(dim), at);
      }
    } else if (key == "include_prompt") {
      if (!json.read_bool()) unsupported("pooling that leaves the prompt's tokens out (include_prompt)");
    } else {
      json.skip();
    }
  });
  json.end();
  const std::vector<Pooling>& found = by_name.empty() ? by_flag : by_name;
  if (found.size() > 1) unsupported("pooling of several modes, one behind the other");
  return found.empty() ? Pooling::kMean : found.front();
}

DenseConfig read_sentence_dense(std::string_view text, int in_dim) {
  constexpr std::string_view kEmbedding = "sentence_embedding";
  JsonReader json(text, kConfigRules);
  DenseConfig dense{.has_bias = true, .activation = Activation::kTanh};  // what the class does where nothing is said
  json.read_object([&](std::string_view key) {
    const size_t at = json.offset();
    if (key == "in_features") {
      const int64_t dim = json.read_int();
      if (dim != in_dim) {
        json.fail(
            "expected " + std::to_string(in_dim) + ", the width of what comes before it, found " + std::to_string(dim),
            at);
      }
    } else if (key == "out_features") {
      dense.out_dim = static_cast<int>(json.read_int(1, kMaxDenseDim));
    } else if (key == "bias") {
      dense.has_bias = json.read_bool();
    } else if (key == "activation_function") {
      dense.activation = json.read_null() ? Activation::kIdentity : activation_of(json.read_string());
    } else if (key == "module_input_name" || key == "module_output_name") {
      if (json.read_null()) return;
      const std::string name(json.read_string());
      if (name != kEmbedding) unsupported("a dense layer of " + quoted(name) + " (" + std::string(key) + ")");
    } else if (key == "use_residual") {
      if (json.read_bool()) unsupported("a dense layer whose input is added to its output (use_residual)");
    } else {
      json.skip();
    }
  });
  json.end();
  if (dense.out_dim == 0) {
    throw Error(ErrorCode::kSafetensorsInvalid, "BAD_HPARAM", "out_features: missing");
  }
  return dense;
}

// The other keys may change what the model is given.
std::optional<int> read_sentence_transformer(std::string_view text) {
  JsonReader json(text, kConfigRules);
  std::optional<int> max_length;
  json.read_object([&](std::string_view key) {
    if (key == "max_seq_length") {
      if (!json.read_null()) max_length = static_cast<int>(json.read_int(1, kMaxPositions));
    } else if (key == "do_lower_case") {
      if (!json.read_null() && json.read_bool()) unsupported("texts that are put into lower case (do_lower_case)");
    } else if (key == "transformer_task") {
      const std::string task(json.read_string());
      if (task != "feature-extraction") unsupported("a model for the task " + quoted(task) + " (transformer_task)");
    } else if (key == "modality_config") {
      bool takes_text = false;
      json.read_object([&](std::string_view modality) {
        takes_text |= modality == "text";
        json.skip();
      });
      if (!takes_text) unsupported("a model that takes no plain texts (modality_config)");
    } else if (key == "processing_kwargs" || key == "query_length" || key == "document_length" ||
               key == "query_expansion") {
      if (json.read_null()) return;
      if (json.kind() != JsonKind::kObject) unsupported("texts that are prepared by " + std::string(key));
      const std::string name(key);
      json.read_object([&](std::string_view) { unsupported("texts that are prepared by " + name); });
    } else {
      json.skip();
    }
  });
  json.end();
  return max_length;
}

namespace {

// One reading: the modules in their order, and what of them has come already.
class ModulesReader {
 public:
  ModulesReader(const std::string& folder, int model_dim) : folder_(folder), model_dim_(model_dim) {}

  SentenceModules read(const std::vector<SentenceModule>& modules) {
    for (size_t i = 0; i < modules.size(); ++i) {
      const SentenceModule& module = modules[i];
      const std::string what = "module " + std::to_string(i) + " is " + quoted(module.type);
      if (i == 0) {
        if (module.type != "Transformer") unsupported(what + ", expected \"Transformer\"");
        if (!module.path.empty()) unsupported("the model itself is in the folder " + quoted(module.path));
      } else if (module.type == "Pooling" && i == 1) {
        pooling_ = &module;
      } else if (module.type == "Dense" && i > 1 && !out_.normalizes) {
        if (dense_.size() == kMaxDense) unsupported("more than " + std::to_string(kMaxDense) + " dense layers");
        dense_.push_back(&module);
      } else if (module.type == "Normalize" && i > 1) {
        out_.normalizes = true;
      } else {
        unsupported(what + "; supported are Transformer, Pooling, then Dense as often as it comes, then Normalize");
      }
      if (i > 0 && module.type != "Normalize" && module.path.empty())
        bad_modules(what + " and has no folder of its own");
    }
    if (pooling_ == nullptr) unsupported("no module pools the rows of a text (Pooling)");
    return std::move(out_);
  }

  // What the modules' own files say.
  void read_files(SentenceModules* out) {
    const std::string transformer = joined(folder_, "sentence_bert_config.json");
    if (path_kind(transformer) != PathKind::kNone)
      read_json(transformer, [&](std::string_view text) { out->max_length = read_sentence_transformer(text); });
    read_json(joined(joined(folder_, pooling_->path), "config.json"),
              [&](std::string_view text) { out->pooling = read_sentence_pooling(text, model_dim_); });
    if (lacks_dense(out)) return;
    int in_dim = model_dim_;
    for (const SentenceModule* module : dense_) {
      const std::string folder = joined(folder_, module->path);
      read_json(joined(folder, "config.json"),
                [&](std::string_view text) { out->dense.push_back(read_sentence_dense(text, in_dim)); });
      in_dim = out->dense.back().out_dim;
      out->dense_files.push_back(joined(folder, "model.safetensors"));
      check_weights(folder);
    }
  }

 private:
  // A folder that was copied without those in it.
  bool lacks_dense(SentenceModules* out) const {
    std::string missing;
    for (const SentenceModule* module : dense_) {
      if (path_kind(joined(folder_, module->path)) != PathKind::kNone) return false;
      missing += (missing.empty() ? "" : ", ") + module->path;
    }
    out->missing_dense = std::move(missing);
    return !out->missing_dense.empty();
  }

  static void check_weights(const std::string& folder) {
    const std::string file = joined(folder, "model.safetensors");
    if (path_kind(file) != PathKind::kNone) return;
    const bool has_pickle = path_kind(joined(folder, "pytorch_model.bin")) != PathKind::kNone;
    throw Error(ErrorCode::kFile, "MISSING_MODULE",
                shown_path(file) + ": missing; " +
                    (has_pickle ? "pytorch_model.bin beside it is a program and is not read, save the model again with "
                                  "sentence-transformers' save_pretrained"
                                : "modules.json says that it is a part of the model, fetch it again"));
  }

  const std::string& folder_;
  int model_dim_;
  SentenceModules out_;
  const SentenceModule* pooling_ = nullptr;
  std::vector<const SentenceModule*> dense_;
};

}  // namespace

std::optional<SentenceModules> read_sentence_modules(const std::string& folder, int model_dim) {
  const std::string path = joined(folder, "modules.json");
  if (path_kind(path) == PathKind::kNone) return std::nullopt;
  std::vector<SentenceModule> modules;
  SentenceModules out;
  ModulesReader reader(folder, model_dim);
  read_json(path, [&](std::string_view text) {
    modules = read_module_list(text);
    out = reader.read(modules);
  });
  reader.read_files(&out);
  return out;
}

std::optional<int> read_model_max_length(std::string_view text) {
  JsonReader json(text, kConfigRules);
  std::optional<int> length;
  json.read_object([&](std::string_view key) {
    if (key != "model_max_length" || json.kind() != JsonKind::kNumber) return json.skip();
    // Without a limit it is 1e30.
    const double found = json.read_number();
    if (found >= 1 && found <= kMaxPositions) length = static_cast<int>(found);
  });
  json.end();
  return length;
}

}  // namespace gemma
