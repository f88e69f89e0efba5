// Metadata and tensor list -> VisionConfig. Sources: gemma3.md sections 3.1 and 3.2 of the project's notes, after
// llama.cpp's converter and loader and Ollama's converter.
#include "model/vision_config.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "model/file_checks.h"

namespace gemma {
namespace {

// Above the published encoder (27 layers, 1152 wide, 4304 FFN, 64 x 64 patches of 14 x 14) by a wide margin; products
// of them stay far below 2^63, and attention's work, the square of the patches, stays within hours.
constexpr int kMaxLayers = 256;
constexpr int kMaxModelDim = 8192;
constexpr int kMaxFfnDim = 65536;
constexpr int kMaxHeads = 256;
constexpr int kMaxImageSize = 8192;
constexpr int kMaxPatchSize = 256;
constexpr int kMaxPatches = 32768;
// Images go through the layers together up to so many rows: the published encoder's one fills all machines.
constexpr int kPassRows = 4096;

constexpr int kBlock = 32;  // of Q8_0

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

const GgufTensor* find_by_any_name(const GgufFile& file, const std::string& scope, std::string_view field,
                                   const char* suffix) {
  const GgufTensor* tensor = file.find_tensor(scope + std::string(field) + suffix);
  for (const Alias& alias : kAliases) {
    if (tensor == nullptr && alias.name == field) tensor = file.find_tensor(scope + std::string(alias.ollama) + suffix);
  }
  return tensor;
}

// mmproj files of early 2025 call fc1 ffn_down and fc2 ffn_up. Only the shapes tell; equal widths mean today's names.
bool has_swapped_names(const GgufFile& file, const VisionConfig& config) {
  const GgufTensor* down = file.find_tensor("v.blk.0.ffn_down.weight");
  return down != nullptr && down->shape.size() == 2 && down->shape[1] == config.model_dim &&
         config.model_dim != config.ffn_dim;
}

struct VisionTensor {
  std::string scope;
  const char* field;
  const char* suffix;
  std::vector<int64_t> shape;
  bool is_float = false;  // F32, F16 or BF16 only
};

// Every tensor of the encoder, shapes outermost first.
std::vector<VisionTensor> vision_tensors(const VisionConfig& c) {
  std::vector<VisionTensor> all = {
      {"v.", "patch_embd", ".weight", {c.model_dim, 3, c.patch_size, c.patch_size}, true},
      {"v.", "patch_embd", ".bias", {c.model_dim}},
      {"v.", "position_embd", ".weight", {c.n_patches, c.model_dim}, true},
      {"v.", "post_ln", ".weight", {c.model_dim}},
      {"v.", "post_ln", ".bias", {c.model_dim}},
      {"mm.", "soft_emb_norm", ".weight", {c.model_dim}},
      // As Hugging Face keeps it, x * P: the transpose of every other linear layer's.
      {"mm.", "input_projection", ".weight", {c.model_dim, c.text_dim}},
  };
  for (int i = 0; i < c.n_layers; ++i) {
    const std::string block = "v.blk." + std::to_string(i) + ".";
    for (const char* norm : {"ln1", "ln2"}) {
      all.push_back({block, norm, ".weight", {c.model_dim}});
      all.push_back({block, norm, ".bias", {c.model_dim}});
    }
    for (const char* linear : {"attn_q", "attn_k", "attn_v", "attn_out"}) {
      all.push_back({block, linear, ".weight", {c.model_dim, c.model_dim}});
      all.push_back({block, linear, ".bias", {c.model_dim}});
    }
    all.push_back({block, "ffn_up", ".weight", {c.ffn_dim, c.model_dim}});
    all.push_back({block, "ffn_up", ".bias", {c.ffn_dim}});
    all.push_back({block, "ffn_down", ".weight", {c.model_dim, c.ffn_dim}});
    all.push_back({block, "ffn_down", ".bias", {c.model_dim}});
  }
  return all;
}

void check_tensors(const GgufFile& file, const VisionConfig& config) {
  std::unordered_set<std::string_view> known;
  for (const VisionTensor& t : vision_tensors(config)) {
    const GgufTensor* tensor = find_vision_tensor(file, config, t.scope, t.field, t.suffix);
    const std::string name = tensor != nullptr ? tensor->name : t.scope + t.field + t.suffix;
    check_tensor(file, {name, t.shape});
    if (t.is_float && !is_float_type(tensor->type))
      bad_tensor(name, std::string("expected F32, F16 or BF16, file has ") + type_traits(tensor->type).name);
    known.insert(tensor->name);
  }
  const bool has_text = has_vision(file);
  for (const GgufTensor& tensor : file.tensors()) {
    if (known.contains(tensor.name) || (has_text && !is_vision_tensor(tensor.name))) continue;
    bad_tensor(tensor.name, "no such tensor in a vision encoder of " + std::to_string(config.n_layers) + " layers");
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
  if (architecture != "clip") unsupported("the file's architecture is " + shown(architecture));
  if (!file.find_bool("clip.has_vision_encoder").value_or(true)) unsupported("the file says it has none");
  std::optional<std::string> projector = file.find_string("clip.projector_type");
  if (!projector) projector = file.find_string("clip.vision.projector_type");
  if (!projector) unsupported("the file names no projector type");
  if (*projector != "gemma3") unsupported("the file's projector type is " + shown(*projector));
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

uint64_t elements(const GgufTensor& tensor) {
  uint64_t n = 1;
  for (const int64_t dim : tensor.shape) n *= static_cast<uint64_t>(dim);
  return n;
}

}  // namespace

bool has_vision(const GgufFile& file) {
  return file.find_string("general.architecture").value_or("") == "gemma3" &&
         file.find("gemma3.vision.block_count") != nullptr &&
         std::any_of(file.tensors().begin(), file.tensors().end(),
                     [](const GgufTensor& t) { return is_vision_tensor(t.name); });
}

const GgufTensor* find_vision_tensor(const GgufFile& file, const VisionConfig& config, const std::string& scope,
                                     std::string_view field, const char* suffix) {
  if ((field == "ffn_up" || field == "ffn_down") && has_swapped_names(file, config))
    return file.find_tensor(scope + (field == "ffn_up" ? "ffn_down" : "ffn_up") + suffix);
  return find_by_any_name(file, scope, field, suffix);
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
  c.n_layers = keys.need_int("block_count", 1, kMaxLayers);
  c.model_dim = keys.need_int("embedding_length", 1, kMaxModelDim);
  c.ffn_dim = keys.need_int("feed_forward_length", 1, kMaxFfnDim);
  c.n_heads = keys.need_int("attention.head_count", 1, kMaxHeads);
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
  check_tensors(file, c);
  return c;
}

int vision_images_per_pass(const VisionConfig& config) {
  return std::max(1, kPassRows / config.n_patches);
}

bool vision_requantizes(const VisionConfig& config, Arithmetic arithmetic, bool has_bulk) {
  return !has_bulk && arithmetic == Arithmetic::kFast && config.model_dim % kBlock == 0;
}

int vision_ffn_dim(const VisionConfig& config, bool requantizes) {
  return requantizes ? (config.ffn_dim + kBlock - 1) / kBlock * kBlock : config.ffn_dim;
}

uint64_t plan_vision_bytes(const GgufFile& file, const VisionConfig& config, bool requantizes) {
  const uint64_t dim = static_cast<uint64_t>(config.model_dim);
  const uint64_t ffn_dim = static_cast<uint64_t>(vision_ffn_dim(config, requantizes));
  uint64_t bytes = 0;
  for (const VisionTensor& t : vision_tensors(config)) {
    const GgufTensor& tensor = *find_vision_tensor(file, config, t.scope, t.field, t.suffix);
    const bool is_layer_matrix = t.shape.size() == 2 && t.scope.size() > 2 && t.scope != "mm.";
    if (!is_layer_matrix) {
      bytes += 4 * elements(tensor);  // float copies
    } else if (requantizes && is_float_type(tensor.type)) {
      const bool is_ffn = std::string_view(t.field).starts_with("ffn");
      bytes += dim * (is_ffn ? ffn_dim : dim) / kBlock * 34;
    } else {
      bytes += tensor.bytes;
    }
  }
  const uint64_t n_rows =
      static_cast<uint64_t>(vision_images_per_pass(config)) * static_cast<uint64_t>(config.n_patches);
  const uint64_t n_chunk = std::min<uint64_t>(n_rows, kVisionChunkRows);
  return bytes + 4 * (n_rows * 4 * dim + n_chunk * (dim + ffn_dim));  // residual, q, k, v; a chunk's h and ffn
}

}  // namespace gemma
