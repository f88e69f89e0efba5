// Metadata and tensor list -> VisionConfig. Sources: llama.cpp's converter and loader (convert_hf_to_gguf.py:
// Gemma3VisionModel; tools/mtmd/clip.cpp), Ollama's converter (convert_gemma3.go).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <unordered_map>

#include "base/error.h"
#include "model/vision_tensors.h"
#include "reader/family.h"
#include "reader/gguf_keys.h"
#include "reader/gguf_reader.h"
#include "reader/hparam_limits.h"

namespace gemma {
namespace {

[[noreturn]] void unsupported(const std::string& message) {
  throw Error(ErrorCode::kUnsupportedModel, "",
              "vision encoder: " + message + "; supported are the mmproj files of Gemma 3 and Ollama's model files");
}

// Today's name of a tensor, and Ollama's.
struct Alias {
  std::string_view name;
  std::string_view ollama;
};
constexpr Alias kAliases[] = {
    {"patch_embd", "patch_embedding"},
    {"position_embd", "position_embedding"},
    {"post_ln", "post_layernorm"},
    {"soft_emb_norm", "mm_soft_emb_norm"},
    {"input_projection", "mm_input_projection"},
    {"ln1", "layer_norm1"},
    {"ln2", "layer_norm2"},
    {"attn_out", "attn_output"},
    {"ffn_up", "mlp.fc1"},
    {"ffn_down", "mlp.fc2"},
};

// mmproj files of early 2025 call fc1 ffn_down and fc2 ffn_up. Only the shapes tell; equal widths mean today's names.
bool has_swapped_names(const GgufFile& file, const VisionConfig& config) {
  const Tensor* down = file.find_tensor("v.blk.0.ffn_down.weight");
  return down != nullptr && down->shape.size() == 2 && down->shape[1] == config.model_dim &&
         config.model_dim != config.ffn_dim;
}

// The tensor of today's name, by whatever name the file has for it. Null when absent.
const Tensor* find_by_any_name(const GgufFile& file, bool swapped, const std::string& name) {
  const size_t end = name.rfind('.');
  const size_t begin = name.rfind('.', end - 1) + 1;
  const std::string field = name.substr(begin, end - begin);
  const auto find = [&](std::string_view other) {
    return file.find_tensor(name.substr(0, begin).append(other).append(name, end));
  };
  if (swapped && field == "ffn_up") return find("ffn_down");
  if (swapped && field == "ffn_down") return find("ffn_up");
  const Tensor* tensor = find(field);
  for (const Alias& alias : kAliases) {
    if (tensor == nullptr && alias.name == field) tensor = find(alias.ollama);
  }
  return tensor;
}

void add_vision_tensors(const GgufFile& file, const VisionConfig& config, TensorSource& source) {
  source.set_split(file.find_int("split.count").value_or(0) > 1);
  const bool swapped = has_swapped_names(file, config);
  std::unordered_map<const Tensor*, std::string> names;
  for (ExpectedTensor& expected : expected_tensors(config)) {
    const Tensor* tensor = find_by_any_name(file, swapped, expected.name);
    if (tensor != nullptr) names.emplace(tensor, std::move(expected.name));
  }
  const bool has_text = has_vision(file);
  for (const Tensor& tensor : file.tensors()) {
    if (has_text && !is_vision_tensor(tensor.name)) continue;
    const auto name = names.find(&tensor);
    source.add(name != names.end() ? name->second : tensor.name, tensor);
  }
}

void read_rgb(const GgufFile& file, const std::string& key, float min, float max, std::array<float, 3>* out) {
  const GgufValue* value = file.find(key);
  if (value == nullptr) return;
  if (!value->is_array || value->type != GgufType::kF32)
    throw Error(ErrorCode::kGgufInvalid, "BAD_TYPE", "metadata \"" + key + "\": expected an array of 32-bit floats");
  if (value->count != out->size())
    bad_hparam(key, "expected 3 values, one for each colour, found " + std::to_string(value->count));
  std::memcpy(out->data(), value->raw.data(), sizeof *out);
  for (const float v : *out) {
    if (!(v >= min && v <= max))
      bad_hparam(key,
                 "expected " + std::to_string(min) + " to " + std::to_string(max) + ", found " + std::to_string(v));
  }
}

void check_kind(const GgufFile& file) {
  const std::string architecture = file.find_string("general.architecture").value_or("");
  if (architecture == "gemma3") {
    if (!has_vision(file)) unsupported("this is a text model without one");
    return;
  }
  if (architecture != "clip") {
    unsupported("the file's architecture is " + shown(architecture) + family_note(architecture));
  }
  if (!file.find_bool("clip.has_vision_encoder").value_or(true)) unsupported("the file says it has none");
  std::optional<std::string> projector = file.find_string("clip.projector_type");
  if (!projector) projector = file.find_string("clip.vision.projector_type");
  if (!projector) unsupported("the file names no projector type");
  if (*projector != "gemma3") {
    unsupported("the file's projector type is " + shown(*projector) + family_note(*projector));
  }
}

// Patches along a side of a token.
int read_pool(const GgufFile& file, const Keys& keys, int n_side) {
  if (!has_vision(file)) {
    const int n_pool = keys.find_int("projector.scale_factor", 1, n_side).value_or(std::min(4, n_side));
    if (n_side % n_pool != 0) {
      bad_hparam(keys.full("projector.scale_factor"), "expected a divisor of the " + std::to_string(n_side) +
                                                          " patches of a side, found " + std::to_string(n_pool));
    }
    return n_pool;
  }
  const int n_tokens = Keys(file, "gemma3.").find_int("mm.tokens_per_image", 1, kMaxPatches).value_or(256);
  const int side = static_cast<int>(std::lround(std::sqrt(n_tokens)));
  if (side * side != n_tokens || n_side % side != 0) {
    bad_hparam("gemma3.mm.tokens_per_image", "expected the square of a divisor of the " + std::to_string(n_side) +
                                                 " patches of a side, found " + std::to_string(n_tokens));
  }
  return n_side / side;
}

}  // namespace

bool has_vision(const GgufFile& file) {
  return file.find_string("general.architecture").value_or("") == "gemma3" &&
         file.find("gemma3.vision.block_count") != nullptr &&
         std::any_of(file.tensors().begin(), file.tensors().end(),
                     [](const Tensor& t) { return is_vision_tensor(t.name); });
}

std::shared_ptr<const TensorSource> vision_tensors(const std::shared_ptr<const GgufFile>& file,
                                                   const VisionConfig& config) {
  auto source = std::make_shared<TensorSource>();
  keep_weights(*file, *source);
  add_vision_tensors(*file, config, *source);
  return source;
}

VisionConfig read_vision_config(const GgufFile& file, int text_dim) {
  check_kind(file);
  const Keys keys(file, has_vision(file) ? "gemma3.vision." : "clip.vision.");
  VisionConfig c;
  c.image_size = keys.need_int("image_size", 1, kMaxImageSize);
  c.patch_size = keys.need_int("patch_size", 2, kMaxPatchSize);
  if (c.image_size % c.patch_size != 0) {
    bad_hparam(keys.full("image_size"), "expected a multiple of the patch size " + std::to_string(c.patch_size) +
                                            ", found " + std::to_string(c.image_size));
  }
  c.n_side = c.image_size / c.patch_size;
  c.n_patches = c.n_side * c.n_side;
  if (c.n_patches > kMaxPatches) {
    bad_hparam(keys.full("image_size"), "expected at most " + std::to_string(kMaxPatches) + " patches, found " +
                                            std::to_string(c.n_side) + " x " + std::to_string(c.n_side));
  }
  if (keys.find_int("num_channels", 1, 4).value_or(3) != 3) bad_hparam(keys.full("num_channels"), "expected 3 colours");
  c.n_pool = read_pool(file, keys, c.n_side);
  c.n_tokens = (c.n_side / c.n_pool) * (c.n_side / c.n_pool);
  c.n_layers = keys.need_int("block_count", 1, kMaxVisionLayers);
  c.model_dim = keys.need_int("embedding_length", 1, kMaxVisionDim);
  c.ffn_dim = keys.need_int("feed_forward_length", 1, kMaxVisionFfnDim);
  c.n_heads = keys.need_int("attention.head_count", 1, kMaxVisionHeads);
  if (c.model_dim % c.n_heads != 0 || c.model_dim / c.n_heads > kMaxFullHeadDim) {
    bad_hparam(keys.full("attention.head_count"), "expected a divisor of the width " + std::to_string(c.model_dim) +
                                                      " into heads of at most " + std::to_string(kMaxFullHeadDim) +
                                                      ", found " + std::to_string(c.n_heads));
  }
  c.head_dim = c.model_dim / c.n_heads;
  c.layer_norm_eps = keys.find_float("attention.layer_norm_epsilon", 1e-12, 1e-1).value_or(c.layer_norm_eps);
  c.text_dim = text_dim;
  const int projection_dim = keys.find_int("projection_dim", 1, 1 << 20).value_or(text_dim);
  if (projection_dim != text_dim) {
    bad_hparam(keys.full("projection_dim"), "expected " + std::to_string(text_dim) + " as the model is wide, found " +
                                                std::to_string(projection_dim) +
                                                "; the vision encoder belongs to another model");
  }
  read_rgb(file, keys.full("image_mean"), -100.0f, 100.0f, &c.image_mean);
  read_rgb(file, keys.full("image_std"), 1e-4f, 100.0f, &c.image_std);
  TensorSource source;
  add_vision_tensors(file, c, source);
  check_tensors(source, expected_tensors(c), "a vision encoder of " + std::to_string(c.n_layers) + " layers");
  return c;
}

}  // namespace gemma
