// Metadata and tensor list of a gemma3 file -> ModelConfig. Sources: gemma3.md sections 1, 3.2 and 8.2 of the project's
// notes, after llama.cpp's converter and loader and Ollama's converter.
#include "model/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <optional>
#include <unordered_set>

#include "base/error.h"
#include "model/file_checks.h"

namespace gemma {
namespace {

// Above the largest published model (27B: 62 layers, 5376 wide, 21504 FFN, 131072 positions) by a wide margin, and
// small enough that every product of them stays far below 2^63.
constexpr int kMaxLayers = 512;
constexpr int kMaxModelDim = 65536;
constexpr int kMaxFfnDim = 1 << 20;
constexpr int kMaxHeads = 1024;
constexpr int kMaxHeadDim = 1024;
constexpr int kMaxPositions = 1 << 24;
constexpr int kMaxVocab = 1 << 24;

constexpr int kDefaultPattern = 6;  // every sixth layer is global
constexpr int kDefaultHeadDim = 256;

// Ollama leaves the linear scaling of the long-context sizes out; Gemma 3 scales global layers by 8 from 4B on.
constexpr int kOllamaScaledContext = 131072;
constexpr float kOllamaScaledFactor = 8.0f;

[[noreturn]] void unsupported(const std::string& message) {
  throw Error(ErrorCode::kUnsupportedModel, "",
              message + "; supported are GGUF files of Gemma 3 (architecture gemma3: 270M, 1B, 4B, 12B, 27B)");
}

void check_kind(const GgufFile& file) {
  const std::optional<std::string> architecture = file.find_string("general.architecture");
  if (!architecture) unsupported("the file names no architecture");
  if (*architecture == "clip") unsupported("this is a vision encoder (mmproj), which goes beside a text model");
  if (*architecture != "gemma3") unsupported("the file's architecture is " + shown(*architecture));
  const std::string type = file.find_string("general.type").value_or("model");
  if (type != "model") unsupported("the file's general.type is " + shown(type) + ", expected \"model\"");
  if (file.find_tensor("dense.0.weight") != nullptr || file.find("gemma3.pooling_type") != nullptr) {
    unsupported("this is an EmbeddingGemma model");
  }
  const std::string tokenizer = file.find_string("tokenizer.ggml.model").value_or("llama");
  if (tokenizer != "llama") {
    unsupported("the file's tokenizer is " + shown(tokenizer) + ", expected \"llama\" (SentencePiece)");
  }
}

bool has_ollama_layout(const GgufFile& file) {
  for (const char* key : {"gemma3.rope.local.freq_base", "gemma3.rope.global.freq_base", "gemma3.mm.tokens_per_image",
                          "gemma3.vision.block_count"}) {
    if (file.find(key) != nullptr) return true;
  }
  return std::any_of(file.tensors().begin(), file.tensors().end(),
                     [](const GgufTensor& t) { return is_vision_tensor(t.name); });
}

std::vector<uint8_t> read_layer_pattern(const GgufFile& file, const Keys& keys, int n_layers) {
  const std::string name = "attention.sliding_window_pattern";
  const GgufValue* value = file.find("gemma3." + name);
  std::vector<uint8_t> is_local(static_cast<size_t>(n_layers));
  if (value != nullptr && value->is_array) {
    if (value->type != GgufType::kBool) {
      throw Error(ErrorCode::kGgufInvalid, "BAD_TYPE",
                  "metadata \"gemma3." + name + "\": expected a u32 or an array of bool");
    }
    if (value->count != is_local.size()) {
      bad_hparam("gemma3." + name, "expected one entry for each of " + std::to_string(n_layers) + " layers, found " +
                                       std::to_string(value->count));
    }
    for (size_t i = 0; i < is_local.size(); ++i) is_local[i] = value->raw[i] != std::byte{0};
    return is_local;
  }
  const int period = keys.find_int(name, 1, kMaxLayers).value_or(kDefaultPattern);
  for (int i = 0; i < n_layers; ++i) is_local[static_cast<size_t>(i)] = (i + 1) % period != 0;
  return is_local;
}

float read_rope_factor(const GgufFile& file, const Keys& keys, const ModelConfig& config) {
  const std::optional<std::string> type = file.find_string("gemma3.rope.scaling.type");
  const std::optional<float> factor = keys.find_float("rope.scaling.factor", 1e-3, 1e6);
  if (type && *type != "linear" && *type != "none") {
    unsupported("RoPE scaling of type " + shown(*type) + " (expected \"linear\" or \"none\")");
  }
  if (type && *type == "none") return 1.0f;
  if (!type && !factor && config.ollama_layout && config.n_ctx_train >= kOllamaScaledContext)
    return kOllamaScaledFactor;
  return factor.value_or(1.0f);
}

int read_head_dim(const GgufFile& file, const Keys& keys) {
  int fallback = kDefaultHeadDim;  // files without the key: the norm over a head tells its width
  const GgufTensor* norm = file.find_tensor("blk.0.attn_q_norm.weight");
  if (norm != nullptr && norm->shape.back() <= kMaxHeadDim) fallback = static_cast<int>(norm->shape.back());
  const int head_dim = keys.find_int("attention.key_length", 2, kMaxHeadDim).value_or(fallback);
  if (head_dim % 2 != 0)
    bad_hparam("gemma3.attention.key_length", "expected an even number, found " + std::to_string(head_dim));
  const int value_dim = keys.find_int("attention.value_length", 2, kMaxHeadDim).value_or(head_dim);
  if (value_dim != head_dim) {
    bad_hparam("gemma3.attention.value_length",
               "expected " + std::to_string(head_dim) + " as key_length, found " + std::to_string(value_dim));
  }
  return head_dim;
}

// Every tensor of the decoder, shapes outermost first.
std::vector<ExpectedTensor> expected_tensors(const ModelConfig& c) {
  std::vector<ExpectedTensor> all = {{"token_embd.weight", {c.n_vocab, c.model_dim}},
                                     {"output_norm.weight", {c.model_dim}},
                                     {"output.weight", {c.n_vocab, c.model_dim}, true}};
  for (int i = 0; i < c.n_layers; ++i) {
    const std::string block = "blk." + std::to_string(i) + ".";
    all.push_back({block + "attn_norm.weight", {c.model_dim}});
    all.push_back({block + "attn_q.weight", {c.q_dim, c.model_dim}});
    all.push_back({block + "attn_k.weight", {c.kv_dim, c.model_dim}});
    all.push_back({block + "attn_v.weight", {c.kv_dim, c.model_dim}});
    all.push_back({block + "attn_q_norm.weight", {c.head_dim}});
    all.push_back({block + "attn_k_norm.weight", {c.head_dim}});
    all.push_back({block + "attn_output.weight", {c.model_dim, c.q_dim}});
    all.push_back({block + "post_attention_norm.weight", {c.model_dim}});
    all.push_back({block + "ffn_norm.weight", {c.model_dim}});
    all.push_back({block + "ffn_gate.weight", {c.ffn_dim, c.model_dim}});
    all.push_back({block + "ffn_up.weight", {c.ffn_dim, c.model_dim}});
    all.push_back({block + "ffn_down.weight", {c.model_dim, c.ffn_dim}});
    all.push_back({block + "post_ffw_norm.weight", {c.model_dim}});
  }
  return all;
}

int read_vocabulary_size(const GgufFile& file) {
  const GgufTensor* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr) bad_tensor("token_embd.weight", "missing");
  const int64_t rows = embedding->shape.front();
  if (embedding->shape.size() != 2 || rows > kMaxVocab) {
    bad_tensor("token_embd.weight", "expected [n_vocab, model_dim] with at most " + std::to_string(kMaxVocab) +
                                        " rows, file has " + shape_text(embedding->shape));
  }
  return static_cast<int>(rows);
}

void check_tensors(const GgufFile& file, const ModelConfig& config) {
  const std::vector<ExpectedTensor> expected = expected_tensors(config);
  std::unordered_set<std::string_view> known;
  for (const ExpectedTensor& e : expected) {
    known.insert(e.name);
    check_tensor(file, e);
  }
  for (const GgufTensor& tensor : file.tensors()) {
    // The vision half of an Ollama file, and frequency tables that some converters add (Gemma 3's follow from the
    // metadata).
    if (known.contains(tensor.name) || is_vision_tensor(tensor.name) || tensor.name.starts_with("rope_f")) continue;
    bad_tensor(tensor.name, "no such tensor in a Gemma 3 model of " + std::to_string(config.n_layers) + " layers");
  }
}

std::string size_label(const GgufFile& file, const ModelConfig& config) {
  const std::optional<std::string> label = file.find_string("general.size_label");
  if (label && !label->empty()) return *label;
  struct Size {
    int n_layers, model_dim;
    const char* label;
  };
  constexpr std::array<Size, 5> kSizes = {
      {{18, 640, "270M"}, {26, 1152, "1B"}, {34, 2560, "4B"}, {48, 3840, "12B"}, {62, 5376, "27B"}}};
  for (const Size& size : kSizes) {
    if (size.n_layers == config.n_layers && size.model_dim == config.model_dim) return size.label;
  }
  double n_params = 0;
  for (const ExpectedTensor& e : expected_tensors(config)) {
    if (e.optional) continue;
    double n = 1;
    for (const int64_t dim : e.shape) n *= static_cast<double>(dim);
    n_params += n;
  }
  const bool billions = n_params >= 1e9;
  const bool millions = n_params >= 1e6;
  char text[32];
  std::snprintf(text, sizeof text, "%.3g%s",
                n_params / (billions   ? 1e9
                            : millions ? 1e6
                                       : 1e3),
                billions   ? "B"
                : millions ? "M"
                           : "K");
  return text;
}

uint64_t round_up(uint64_t n, uint64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace

ModelConfig read_model_config(const GgufFile& file) {
  check_kind(file);
  const Keys keys(file, "gemma3.");
  ModelConfig c;
  c.ollama_layout = has_ollama_layout(file);
  c.name = file.find_string("general.name").value_or("");
  c.n_layers = keys.need_int("block_count", 1, kMaxLayers);
  c.model_dim = keys.need_int("embedding_length", 1, kMaxModelDim);
  c.ffn_dim = keys.need_int("feed_forward_length", 1, kMaxFfnDim);
  c.n_heads = keys.need_int("attention.head_count", 1, kMaxHeads);
  c.n_kv_heads = keys.need_int("attention.head_count_kv", 1, kMaxHeads);
  if (c.n_heads % c.n_kv_heads != 0) {
    bad_hparam("gemma3.attention.head_count_kv", "expected a divisor of the " + std::to_string(c.n_heads) +
                                                     " heads, found " + std::to_string(c.n_kv_heads));
  }
  c.head_dim = read_head_dim(file, keys);
  c.q_dim = c.n_heads * c.head_dim;
  c.kv_dim = c.n_kv_heads * c.head_dim;
  c.n_ctx_train = keys.need_int("context_length", 1, kMaxPositions);
  c.n_window = keys.need_int("attention.sliding_window", 1, kMaxPositions);
  c.is_local = read_layer_pattern(file, keys, c.n_layers);
  c.rms_eps = keys.find_float("attention.layer_norm_rms_epsilon", 1e-12, 1e-1).value_or(1e-6f);

  // No key tells the 27B model's scale; llama.cpp and Ollama know it by the layer count as well.
  const double query_dim =
      c.n_layers == 62 ? static_cast<double>(c.model_dim) / c.n_heads : static_cast<double>(c.head_dim);
  c.query_scale = static_cast<float>(1.0 / std::sqrt(query_dim));

  constexpr double kMinBase = 1.0;
  constexpr double kMaxBase = 1e12;
  for (const char* name : {"rope.global.freq_base", "rope.freq_base"}) {
    c.rope_base_global = keys.find_float(name, kMinBase, kMaxBase).value_or(c.rope_base_global);
  }
  for (const char* name : {"rope.local.freq_base", "rope.freq_base_swa"}) {
    c.rope_base_local = keys.find_float(name, kMinBase, kMaxBase).value_or(c.rope_base_local);
  }
  c.rope_factor_global = read_rope_factor(file, keys, c);

  // Ollama's converter of 2025 wrote 30 into every text-only file; no Gemma 3 has a cap, and Ollama's engine ignores
  // the key.
  c.final_softcap = keys.find_float("final_logit_softcapping", 0, 1e6).value_or(0);
  if (c.ollama_layout) c.final_softcap = 0;

  c.n_vocab = read_vocabulary_size(file);
  check_tensors(file, c);
  c.size_label = size_label(file, c);
  return c;
}

MemoryPlan plan_memory(const GgufFile& file, const ModelConfig& config, int n_ctx, KvType kv_type, int n_batch,
                       bool screened) {
  if (n_ctx < 1 || n_batch < 0) {
    throw Error(ErrorCode::kInvalidArgument, "",
                "memory plan: expected a context of at least 1 and a batch of at least 0 positions, found " +
                    std::to_string(n_ctx) + " and " + std::to_string(n_batch));
  }
  MemoryPlan plan;
  for (const ExpectedTensor& e : expected_tensors(config)) {
    const GgufTensor* tensor = file.find_tensor(e.name);
    if (tensor != nullptr) plan.weights_bytes += tensor->bytes;
  }

  uint64_t head_bytes = 0;  // one head's key or value
  const uint64_t head_dim = static_cast<uint64_t>(config.head_dim);
  switch (kv_type) {
    case KvType::kF32: head_bytes = head_dim * 4; break;
    case KvType::kF16: head_bytes = head_dim * 2; break;
    case KvType::kQ8_0: head_bytes = round_up(head_dim, 32) / 32 * 34; break;
  }
  const uint64_t position_bytes = 2 * static_cast<uint64_t>(config.n_kv_heads) * head_bytes;
  const uint64_t n_all = round_up(static_cast<uint64_t>(n_ctx), kPagePositions);
  const uint64_t n_near =
      round_up(static_cast<uint64_t>(config.n_window) + static_cast<uint64_t>(n_batch), kPagePositions);
  for (const uint8_t is_local : config.is_local)
    plan.kv_bytes += position_bytes * (is_local ? std::min(n_near, n_all) : n_all);

  // Floats of one batch: residual, normed input and branch output; q and attention output; k and v; gate and up; then
  // the logits of one position.
  const uint64_t row_floats = 3 * static_cast<uint64_t>(config.model_dim) + 2 * static_cast<uint64_t>(config.q_dim) +
                              2 * static_cast<uint64_t>(config.kv_dim) + 2 * static_cast<uint64_t>(config.ffn_dim);
  plan.scratch_bytes = 4 * (static_cast<uint64_t>(n_batch) * row_floats + static_cast<uint64_t>(config.n_vocab));
  if (screened && config.final_softcap == 0) plan.screen_bytes = screen_bytes(config.n_vocab, config.model_dim);
  plan.total_bytes = plan.weights_bytes + plan.kv_bytes + plan.scratch_bytes + plan.screen_bytes;
  return plan;
}

MemoryPlan& MemoryPlan::operator+=(const MemoryPlan& other) {
  weights_bytes += other.weights_bytes;
  kv_bytes += other.kv_bytes;
  scratch_bytes += other.scratch_bytes;
  screen_bytes += other.screen_bytes;
  vision_bytes += other.vision_bytes;
  total_bytes += other.total_bytes;
  return *this;
}

}  // namespace gemma
