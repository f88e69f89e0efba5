// Sources: transformers (modeling_utils.py: which files it looks for, in which order), huggingface_hub's index of shards.
#include "reader/safetensors_reader.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "base/json.h"
#include "model/layer_tensors.h"
#include "model/vision_tensors.h"
#include "quant/dequantize.h"
#include "reader/hf_names.h"
#include "reader/hf_vocabulary.h"

namespace gemma {
namespace {

constexpr uint64_t kMaxConfigBytes = uint64_t{4} << 20;       // published files have below 10 KB
constexpr uint64_t kMaxTokenizerBytes = uint64_t{512} << 20;  // published files have 33 MB
constexpr uint64_t kMaxIndexBytes = uint64_t{64} << 20;       // published files have 110 KB
constexpr size_t kMaxFiles = 1024;                            // the 27B model has 12

[[noreturn]] void invalid(const char* detail, const std::string& message) {
  throw Error(ErrorCode::kSafetensorsInvalid, detail, message);
}

std::string_view as_text(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// What f() returns. What the model's own checks throw of a file is said of GGUF; here it is of a checkpoint.
template <class F>
auto of_checkpoint(const F& f) {
  try {
    return f();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kGgufInvalid) throw;
    throw Error(ErrorCode::kSafetensorsInvalid, "BAD_TENSOR", error.what());
  }
}

// The last part of a path that is a name: of a hub's cache that of the repository.
std::string name_of_folder(std::string path) {
  const auto take_last = [&] {
    while (!path.empty() && (path.back() == '/' || path.back() == '\\')) path.pop_back();
    const size_t slash = path.find_last_of("/\\");
    std::string name = path.substr(slash == std::string::npos ? 0 : slash + 1);
    path.resize(slash == std::string::npos ? 0 : slash);
    return name;
  };
  std::string name = take_last();
  constexpr std::string_view kModels = "models--";
  if (take_last() == "snapshots") name = take_last();
  if (!name.starts_with(kModels)) return name;
  name.erase(0, kModels.size());
  const size_t mark = name.find("--");
  return mark == std::string::npos ? name : name.replace(mark, 2, "/");
}

}  // namespace

std::map<std::string, std::string> read_safetensors_index(std::string_view text) {
  JsonReader json(text, {.code = ErrorCode::kSafetensorsInvalid, .detail = "BAD_INDEX", .max_depth = 16});
  std::map<std::string, std::string> files;
  bool has_map = false;
  json.read_object([&](std::string_view key) {
    if (key != "weight_map") return json.skip();
    has_map = true;
    json.read_object([&](std::string_view tensor) {
      std::string& file = files[std::string(tensor)];
      const size_t at = json.offset();
      file = json.read_string();
      const bool is_name = file.find_first_of(std::string_view("/\\:\0", 4)) == std::string::npos;
      if (!is_name || !file.ends_with(".safetensors") || file.starts_with('.'))
        json.fail("expected the name of a .safetensors file in this folder, found " + quoted(file), at);
    });
  });
  json.end();
  if (!has_map) invalid("BAD_INDEX", "\"weight_map\" is missing");
  return files;
}

std::string SafetensorsModel::path(const char* name) const {
  const bool has_slash = folder_.ends_with('/') || folder_.ends_with('\\');
  return folder_ + (has_slash ? "" : "/") + name;
}

std::shared_ptr<const SafetensorsModel> SafetensorsModel::open(const std::string& folder, const FileOptions& options) {
  const std::shared_ptr<SafetensorsModel> model(new SafetensorsModel(folder));
  model->read_configuration();
  model->open_weights(options);
  in_file(folder, [&] { of_checkpoint([&] { model->make_tensors(options); }); });
  model->add_dense(options);
  in_file(folder, [&] { of_checkpoint([&] { model->check(); }); });
  if (model->config_.model.size_label.empty()) model->config_.model.size_label = size_label(model->config_.model);
  return model;
}

void SafetensorsModel::read_configuration() {
  // f(text of the file), with the file's name in what it throws.
  const auto read = [&](const char* name, bool is_needed, const auto& f) {
    const std::string file = path(name);
    if (!is_needed && path_kind(file) == PathKind::kNone) return false;
    const std::vector<std::byte> bytes = read_file(file, kMaxConfigBytes);
    in_file(file, [&] { f(as_text(bytes)); });
    return true;
  };
  read("config.json", true, [&](std::string_view text) { config_ = read_hf_config(text); });
  ModelConfig& model = config_.model;
  modules_ = read_sentence_modules(folder_, model.model_dim);
  if (modules_) {
    model.pooling = modules_->pooling;
    model.dense = modules_->dense;
    model.normalizes = modules_->normalizes;
    std::optional<int> limit = modules_->max_length;
    if (!limit) {
      read("tokenizer_config.json", false, [&](std::string_view text) { limit = read_model_max_length(text); });
    }
    model.n_ctx_train = std::min(model.n_ctx_train, limit.value_or(model.n_ctx_train));
  }
  model.lacks_dense = modules_ ? !modules_->missing_dense.empty() : model.is_encoder;
  config_.model.name = config_.name.empty() ? name_of_folder(folder_) : config_.name;
  if (config_.vision) {
    const auto f = [&](std::string_view text) { read_hf_preprocessor(text, &*config_.vision); };
    if (!read("preprocessor_config.json", false, f)) read("processor_config.json", false, f);
  }
  read("generation_config.json", false,
       [&](std::string_view text) { read_hf_generation_config(text, &config_.tokens, &config_.sampling); });
}

void SafetensorsModel::add_file(const std::string& path, const FileOptions& options) {
  weights_->files.push_back(SafetensorsFile::open(path, options));
  weights_->file_bytes += weights_->files.back()->file_bytes();
}

void SafetensorsModel::open_weights(const FileOptions& options) {
  const std::string single = path("model.safetensors");
  const std::string index = path("model.safetensors.index.json");
  if (path_kind(single) != PathKind::kNone) return add_file(single, options);
  if (path_kind(index) != PathKind::kNone) return open_shards(index, options);
  const bool has_pickle = path_kind(path("pytorch_model.bin")) != PathKind::kNone ||
                          path_kind(path("pytorch_model.bin.index.json")) != PathKind::kNone;
  throw Error(
      ErrorCode::kFile, "NO_WEIGHTS",
      shown_path(folder_) + ": expected model.safetensors or model.safetensors.index.json beside config.json, " +
          (has_pickle ? "found pytorch_model.bin, which is a program and is not read; save the model again with "
                        "save_pretrained"
                      : "found neither"));
}

void SafetensorsModel::open_shards(const std::string& index, const FileOptions& options) {
  const std::vector<std::byte> bytes = read_file(index, kMaxIndexBytes);
  const std::map<std::string, std::string> file_of =
      in_file(index, [&] { return read_safetensors_index(as_text(bytes)); });
  std::map<std::string, size_t> n_tensors;
  for (const auto& [tensor, file] : file_of) ++n_tensors[file];
  in_file(index, [&] {
    if (n_tensors.size() > kMaxFiles)
      invalid("BAD_INDEX", "more than " + std::to_string(kMaxFiles) + " files are not accepted");
    if (n_tensors.empty()) invalid("BAD_INDEX", "\"weight_map\" names no file");
  });
  for (const auto& [file, n] : n_tensors) {
    const std::string shard = path(file.c_str());
    if (path_kind(shard) == PathKind::kNone) {
      invalid("MISSING_SHARD", shown_path(shard) + ": missing, the index says that " + std::to_string(n) +
                                   " of the model's tensors are in it; fetch it again");
    }
    add_file(shard, options);
    in_file(shard, [&] {
      for (const SafetensorsTensor& tensor : weights_->files.back()->tensors()) {
        const auto it = file_of.find(tensor.name);
        if (it == file_of.end() || it->second != file) {
          invalid("BAD_INDEX", "tensor " + quoted(tensor.name) + " is in this file, the index says " +
                                   (it == file_of.end() ? "nothing of it" : quoted(it->second)));
        }
      }
    });
  }
  for (const auto& [tensor, file] : file_of) {
    const bool is_there = std::any_of(weights_->files.begin(), weights_->files.end(),
                                      [&](const auto& shard) { return shard->find(tensor) != nullptr; });
    if (!is_there) {
      invalid("BAD_INDEX",
              shown_path(index) + ": tensor " + quoted(tensor) + " is said to be in " + quoted(file) + ", it is not");
    }
  }
}

// With what is in a file, or a copy of it where the model is to have something else.
void SafetensorsModel::add_tensor(const SafetensorsTensor& stored, std::string name, const FileOptions& options) {
  Tensor tensor;
  tensor.name = stored.name;
  tensor.shape = stored.shape;
  tensor.data = stored.data;
  tensor.bytes = stored.bytes;
  if (!stored.type->type) {
    throw Error(ErrorCode::kUnsupportedModel, "TENSOR_TYPE",
                "tensor " + quoted(stored.name) + ": type " + stored.type->name +
                    " is not computed with; expected F32, F16 or BF16");
  }
  tensor.type = *stored.type->type;
  const size_t n = stored.bytes / row_bytes(tensor.type, 1);
  // Kernels read elements where elements may lie. Files of the reference's are always so.
  const bool is_aligned = (options.mmap ? stored.offset : stored.offset_in_data) % row_bytes(tensor.type, 1) == 0;
  const bool is_norm = is_norm_of_gemma(name);
  if (is_norm || !is_aligned) {
    tensor.is_copy = true;
    if (is_norm) {
      tensor.type = TensorType::kF32;
      tensor.bytes = n * sizeof(float);
    }
    if (tensor.data != nullptr) {
      std::unique_ptr<std::byte[]> copy(new std::byte[tensor.bytes]);
      if (is_norm) {
        const std::unique_ptr<std::byte[]> aligned(new std::byte[stored.bytes]);
        std::memcpy(aligned.get(), stored.data, stored.bytes);
        auto* values = reinterpret_cast<float*>(copy.get());
        dequantize_row(*stored.type->type, aligned.get(), values, static_cast<int64_t>(n));
        for (size_t i = 0; i < n; ++i) values[i] += 1.0f;
      } else {
        std::memcpy(copy.get(), stored.data, stored.bytes);
      }
      tensor.data = copy.get();
      weights_->copies.push_back(std::move(copy));
    }
  }
  weights_->tensors.push_back(std::move(tensor));
  weights_->names.push_back(std::move(name));
}

void SafetensorsModel::make_tensors(const FileOptions& options) {
  std::unordered_map<std::string, std::string> known;  // by its name in the model that in the file
  for (const auto& file : weights_->files) {
    for (const SafetensorsTensor& stored : file->tensors()) {
      if (is_ignored_tensor(stored.name)) continue;
      std::string name = model_tensor_name(stored.name);
      if (name.empty()) bad_tensor(quoted(stored.name), "no such tensor in a Gemma 3 model");
      const auto [it, is_new] = known.emplace(name, stored.name);
      if (!is_new) bad_tensor(quoted(stored.name), "it is there twice, also as " + quoted(it->second));
      if (name == kOutput && (config_.is_tied || config_.model.is_encoder)) continue;
      if (is_vision_tensor(name)) has_vision_ = true;
      add_tensor(stored, std::move(name), options);
    }
  }
  config_.model.has_output = !config_.is_tied && !config_.model.is_encoder;
}

// The weights of dense layers, each in a file of its own, all with the same names.
void SafetensorsModel::add_dense(const FileOptions& options) {
  const ModelConfig& model = config_.model;
  for (size_t i = 0; i < model.dense.size(); ++i) {
    const std::string& file = modules_->dense_files[i];
    add_file(file, options);
    in_file(file, [&] {
      of_checkpoint([&] {
        const SafetensorsFile& stored = *weights_->files.back();
        const auto add = [&](const char* name, std::string model_name, const std::vector<int64_t>& shape) {
          const SafetensorsTensor* tensor = stored.find(name);
          if (tensor == nullptr) bad_tensor(name, "missing, expected in a dense layer");
          if (tensor->shape != shape)
            bad_tensor(name, "expected " + shape_text(shape) + ", file has " + shape_text(tensor->shape));
          add_tensor(*tensor, std::move(model_name), options);
        };
        const int64_t out_dim = model.dense[i].out_dim;
        add("linear.weight", dense_weight(i), {out_dim, model.dense_in_dim(i)});
        if (model.dense[i].has_bias) add("linear.bias", dense_bias(i), {out_dim});
        for (const SafetensorsTensor& tensor : stored.tensors()) {
          const bool is_known =
              tensor.name == "linear.weight" || (model.dense[i].has_bias && tensor.name == "linear.bias");
          if (!is_known) bad_tensor(quoted(tensor.name), "no such tensor in this dense layer");
        }
      });
    });
  }
}

std::string SafetensorsModel::dense_hint() const {
  if (modules_)
    return "the folder lacks " + modules_->missing_dense +
           ", the dense layers that modules.json speaks of: fetch these folders too (Gemma.pull gets all of a model)";
  return "the folder has no modules.json, which says what is made of the model's rows, and none of the dense layers: "
         "fetch all of the repository (Gemma.pull does), with 1_Pooling, 2_Dense and 3_Dense";
}

// Every tensor's shape and type, and that none is missing, said with the names of checkpoints.
void SafetensorsModel::check() const {
  const auto check = [&](const TensorSource& source, const std::vector<ExpectedTensor>& expected,
                         const std::string& model) {
    for (const ExpectedTensor& e : expected) {
      if (source.find(e.name) == nullptr) bad_tensor(hf_tensor_name(e.name), "missing, expected in " + model);
    }
    check_tensors(source, expected, model);
  };
  check(*make_source(false), expected_tensors(config_.model),
        "a Gemma 3 model of " + std::to_string(config_.model.n_layers()) + " layers");
  if (!has_vision_) return;
  if (!config_.vision) bad_tensor("vision_tower", "there is a vision encoder, but no vision_config in config.json");
  check(*make_source(true), expected_tensors(*config_.vision),
        "a vision encoder of " + std::to_string(config_.vision->n_layers) + " layers");
}

std::shared_ptr<TensorSource> SafetensorsModel::make_source(bool vision) const {
  auto source = std::make_shared<TensorSource>();
  const std::shared_ptr<const SafetensorsWeights> weights = weights_;
  for (size_t i = 0; i < weights->tensors.size(); ++i) {
    if (is_vision_tensor(weights->names[i]) == vision) source->add(weights->names[i], weights->tensors[i]);
  }
  source->set_check([weights] {
    for (const auto& file : weights->files) file->check();
  });
  source->set_release([weights](std::span<const std::byte> bytes) {
    for (const auto& file : weights->files) file->release(bytes);
  });
  uint64_t version = 0;
  for (const auto& file : weights->files) version = hash_value(version, file->version());
  source->set_version(version);
  source->set_prefetch([weights](const TensorSource::OnRead& on_read) {
    uint64_t before = 0;
    for (const auto& file : weights->files) {
      file->prefetch([&](size_t bytes) {
        on_read(static_cast<double>(before + bytes) / static_cast<double>(weights->file_bytes));
      });
      before += file->file_bytes();
    }
  });
  return source;
}

std::shared_ptr<const TensorSource> SafetensorsModel::decoder_tensors() const {
  return make_source(false);
}

std::shared_ptr<const TensorSource> SafetensorsModel::vision_tensors() const {
  return make_source(true);
}

Vocabulary SafetensorsModel::vocabulary() const {
  struct Text {
    std::vector<std::byte> file;
    HfVocabulary vocabulary;
  };
  const int n_rows = config_.model.n_vocab;
  const auto text = std::make_shared<Text>(Text{{}, HfVocabulary(n_rows)});
  const std::string json = path("tokenizer.json");
  const std::string model = path("tokenizer.model");
  const bool has_json = path_kind(json) != PathKind::kNone;
  if (!has_json && path_kind(model) == PathKind::kNone) {
    throw Error(ErrorCode::kFile, "NO_TOKENIZER",
                shown_path(folder_) + ": expected tokenizer.json or tokenizer.model beside config.json, found neither");
  }
  const std::string& file = has_json ? json : model;
  text->file = read_file(file, kMaxTokenizerBytes);
  in_file(file, [&] {
    if (has_json) {
      read_tokenizer_json(as_text(text->file), &text->vocabulary);
    } else {
      read_sentencepiece_model(text->file, &text->vocabulary);
    }
  });
  HfSpecialTokens special;
  const std::string config = path("tokenizer_config.json");
  if (path_kind(config) != PathKind::kNone) {
    const std::vector<std::byte> bytes = read_file(config, kMaxTokenizerBytes);
    in_file(config, [&] { special = read_tokenizer_config(as_text(bytes), &text->vocabulary); });
  }
  return in_file(folder_, [&] {
    // By its spelling, else by its id.
    const auto find = [&](const std::string& spelling, int64_t id, const char* name) {
      const TokenId found = text->vocabulary.find(spelling);
      if (found >= 0 || id == -1) return found;
      if (id < 0 || id >= n_rows) {
        invalid("BAD_VOCAB",
                std::string(name) + ": expected 0 to " + std::to_string(n_rows - 1) + ", found " + std::to_string(id));
      }
      return static_cast<TokenId>(id);
    };
    Vocabulary v = text->vocabulary.tokens;
    v.bos = find(special.bos, config_.tokens.bos, "bos_token_id");
    v.eos = find(special.eos, config_.tokens.eos, "eos_token_id");
    v.pad = find(special.pad, config_.tokens.pad, "pad_token_id");
    if (v.unk < 0) v.unk = find(special.unk, config_.tokens.unk, "unk_token_id");
    for (const int64_t id : config_.tokens.ends) v.ends.push_back(find("", id, "eos_token_id"));
    // The tokenizer's configuration counts before its file, as in transformers.
    const bool is_said = special.adds_bos || special.adds_eos;
    const std::optional<bool> adds_bos = is_said ? special.adds_bos : text->vocabulary.adds_bos;
    v.adds_eos = is_said ? special.adds_eos.value_or(false) : text->vocabulary.adds_eos;
    if (modules_ && !adds_bos.value_or(true)) {
      throw Error(ErrorCode::kUnsupportedModel, "TOKENIZER",
                  "texts that are embedded without <bos> in front (add_bos_token, post_processor)");
    }
    v.text = text;
    return v;
  });
}

}  // namespace gemma
