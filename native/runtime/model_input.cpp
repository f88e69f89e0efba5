#include "runtime/model_input.h"

#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "model/layer_tensors.h"
#include "model/vision_tensors.h"
#include "quant/quantize.h"
#include "reader/gguf_reader.h"
#include "reader/hparam_limits.h"
#include "reader/safetensors_reader.h"
#include "runtime/model_metadata.h"

namespace gemma {
namespace {

int read_heads_per_kv_head(const GgufFile& file, const std::string& architecture) {
  const auto count = [&](const char* name) -> int64_t {
    const GgufValue* value = file.find(architecture + ".attention." + name);
    if (value == nullptr || value->is_array) return 0;
    return file.find_int(architecture + ".attention." + name).value_or(0);
  };
  const int64_t n_heads = count("head_count");
  const int64_t n_kv_heads = count("head_count_kv");
  return n_kv_heads > 0 && n_heads > 0 && n_heads < 65536 ? static_cast<int>(n_heads / n_kv_heads) : 1;
}

InputFile file_of(const TensorSource& source, const std::vector<ExpectedTensor>& expected, GgufMetadata metadata) {
  InputFile file;
  file.metadata = std::move(metadata);
  file.of_checkpoint = true;
  for (const ExpectedTensor& e : expected) file.tensors.push_back({e.name, e.name, source.find(e.name)});
  return file;
}

// What the type of a tensor counts as before types are chosen. A checkpoint has all tensors in one type; files of GGUF
// have what is not chosen in F32, and the projector in 16 bits that llama.cpp can transpose.
TensorType own_type(const InputTensor& tensor, bool of_checkpoint, TensorType wanted) {
  if (!of_checkpoint) return tensor.tensor->type;
  const bool is_projector = tensor.name == "mm.input_projection.weight";
  return is_projector && wanted != TensorType::kF32 ? TensorType::kF16 : TensorType::kF32;
}

void check_type(const Tensor& tensor, TensorType type, bool is_changed, bool allow_requantize) {
  if (tensor.type == type && !is_changed) return;
  if (!is_computed_type(tensor.type)) {
    throw Error(ErrorCode::kUnsupportedModel, "TENSOR_TYPE",
                "tensor " + tensor.name + ": nothing reads values of the type " + type_traits(tensor.type).name);
  }
  if (!can_quantize(type)) {
    throw Error(ErrorCode::kUnsupportedModel, "TENSOR_TYPE",
                "tensor " + tensor.name + ": nothing writes values of the type " + type_traits(type).name);
  }
  if (is_float_type(tensor.type) || allow_requantize) return;
  throw Error(ErrorCode::kUnsupportedInput, "REQUANTIZE",
              "tensor " + tensor.name + " is " + type_traits(tensor.type).name +
                  " already, and would lose once more as " + type_traits(type).name +
                  ": take a file of floats, or say allowRequantize: true");
}

const float* importance_of(const FileTypes& types, const InputTensor& tensor, TensorType type, bool is_kept) {
  if (types.importance == nullptr || is_float_type(type) || is_kept) return nullptr;
  const auto found = types.importance->find(tensor.name);
  if (found == types.importance->end()) return nullptr;
  if (static_cast<int64_t>(found->second.size()) != tensor.tensor->shape.back()) {
    throw Error(ErrorCode::kInvalidArgument, "IMPORTANCE_SHAPE",
                "importance: tensor " + tensor.name + " has " + std::to_string(tensor.tensor->shape.back()) +
                    " columns, the importance matrix has " + std::to_string(found->second.size()) +
                    ": it is of another model");
  }
  return found->second.data();
}

}  // namespace

ModelInput ModelInput::open(const std::string& path, const std::string& chat_template) {
  ModelInput input;
  input.path_ = path;
  if (path_kind(path) == PathKind::kFolder) {
    input.open_folder(chat_template);
  } else {
    input.gguf_ = GgufFile::open(path, {});
    in_file(path, [&] { input.open_file(); });
  }
  return input;
}

void ModelInput::open_file() {
  const std::string architecture = gguf_->find_string("general.architecture").value_or("");
  if (architecture != "gemma3" && architecture != "gemma-embedding" && architecture != "clip") {
    throw Error(ErrorCode::kUnsupportedModel, "ARCHITECTURE",
                "architecture \"" + shown_path(architecture) +
                    "\": expected gemma3, gemma-embedding, or clip for a vision encoder");
  }
  heads_per_kv_head_ = read_heads_per_kv_head(*gguf_, architecture);
  for (const auto& [key, value] : gguf_->metadata()) main_.metadata.set(key, value);
  for (const char* key : {"split.no", "split.count", "split.tensors.count"}) main_.metadata.remove(key);
  main_.alignment = static_cast<uint64_t>(gguf_->find_int("general.alignment").value_or(32));
  for (const Tensor& tensor : gguf_->tensors()) main_.tensors.push_back({tensor.name, tensor.name, &tensor});
  const std::shared_ptr<const GgufWeights> weights = gguf_->weights();
  check_ = [weights] { weights->check(); };
  release_ = [weights](std::span<const std::byte> data) { weights->release(data); };
  version_ = weights->version();
  bytes_ = weights->file_bytes;
}

void ModelInput::open_folder(const std::string& chat_template) {
  const std::shared_ptr<const SafetensorsModel> folder = SafetensorsModel::open(path_, {});
  config_ = folder->config();
  decoder_ = folder->decoder_tensors();
  heads_per_kv_head_ = config_->layers.front().n_heads / config_->layers.front().n_kv_heads;
  in_file(path_, [&] {
    main_ = file_of(*decoder_, expected_tensors(*config_),
                    decoder_metadata(*config_, folder->vocabulary(), chat_template, folder->sampling()));
  });
  if (folder->has_vision()) {
    vision_config_ = folder->vision_config();
    vision_tensors_ = folder->vision_tensors();
    vision_ =
        file_of(*vision_tensors_, expected_tensors(*vision_config_), vision_metadata(*vision_config_, config_->name));
  }
  // Both sources are of the same files.
  const std::shared_ptr<const TensorSource> source = decoder_;
  check_ = [source] { source->check(); };
  release_ = [source](std::span<const std::byte> data) { source->release(data); };
  version_ = source->version();
  bytes_ = folder->bytes();
}

const ModelConfig& ModelInput::config() {
  if (!config_) config_ = in_file(path_, [&] { return read_model_config(*gguf_); });
  return *config_;
}

const TensorSource& ModelInput::decoder() {
  if (!decoder_) decoder_ = decoder_tensors(gguf_);
  return *decoder_;
}

const VisionConfig* ModelInput::vision_config(int text_dim) {
  if (!vision_config_ && gguf_) {
    const bool is_vision = gguf_->find_string("general.architecture").value_or("") == "clip";
    if (!is_vision && !has_vision(*gguf_)) return nullptr;
    vision_config_ = in_file(path_, [&] {
      const char* width = is_vision ? "clip.vision.projection_dim" : "gemma3.embedding_length";
      const int64_t own = text_dim > 0 ? text_dim : gguf_->find_int(width).value_or(0);
      return read_vision_config(*gguf_, own > 0 && own <= kMaxModelDim ? static_cast<int>(own) : 0);
    });
    vision_tensors_ = gemma::vision_tensors(gguf_, *vision_config_);
    name_vision_tensors();
  }
  return vision_config_ ? &*vision_config_ : nullptr;
}

// Files of earlier converters have names of their own.
void ModelInput::name_vision_tensors() {
  std::map<const Tensor*, std::string> names;
  for (const ExpectedTensor& e : expected_tensors(*vision_config_)) names[vision_tensors_->find(e.name)] = e.name;
  for (InputTensor& tensor : main_.tensors) {
    const auto found = names.find(tensor.tensor);
    if (found != names.end()) tensor.model_name = found->second;
  }
}

FileToWrite plan_file(const std::string& path, const InputFile& input, const FileTypes& types,
                      const std::function<std::shared_ptr<RowChange>(const InputTensor&)>& change,
                      std::vector<TypeFallback>* fallbacks) {
  std::vector<TensorToPlan> tensors;
  for (const InputTensor& t : input.tensors) {
    tensors.push_back({t.name, own_type(t, input.of_checkpoint, types.quantization->type), t.tensor->shape});
  }
  const QuantizedModel model{.heads_per_kv_head = types.heads_per_kv_head,
                             .has_importance = types.importance != nullptr};
  const std::vector<PlannedType> plan = plan_types(tensors, model, *types.quantization, types.overrides);
  FileToWrite file;
  file.path = path;
  file.metadata = input.metadata;
  file.metadata.set_u32("general.quantization_version", 2);
  file.metadata.set_u32("general.file_type", types.quantization->file_type);
  file.alignment = input.alignment;
  for (size_t i = 0; i < plan.size(); ++i) {
    const InputTensor& tensor = input.tensors[i];
    std::shared_ptr<RowChange> its_change = change ? change(tensor) : nullptr;
    const bool is_kept = tensor.tensor->type == plan[i].type && !its_change;
    check_type(*tensor.tensor, plan[i].type, its_change != nullptr, types.allow_requantize);
    if (plan[i].type != plan[i].wanted) {
      fallbacks->push_back({tensor.name, type_traits(plan[i].wanted).name, type_traits(plan[i].type).name});
    }
    file.tensors.push_back({tensor.name, tensor.tensor, plan[i].type,
                            importance_of(types, tensor, plan[i].type, is_kept), std::move(its_change)});
  }
  return file;
}

}  // namespace gemma
