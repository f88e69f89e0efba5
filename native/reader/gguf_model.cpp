// Metadata and tensor list of a gemma3 or gemma-embedding file -> ModelConfig. Sources: llama.cpp's converter and loader
// (convert_hf_to_gguf.py: Gemma3Model, EmbeddingGemma; llama-model.cpp: LLM_ARCH_GEMMA3, LLM_ARCH_GEMMA_EMBEDDING),
// Ollama's converter (convert_gemma3.go).
#include <algorithm>
#include <cmath>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "model/layer_tensors.h"
#include "model/vision_tensors.h"
#include "reader/family.h"
#include "reader/gguf_keys.h"
#include "reader/gguf_reader.h"
#include "reader/hparam_limits.h"

namespace gemma {
namespace {

constexpr int kDefaultPattern = 6;  // every sixth layer is global
constexpr int kDefaultHeadDim = 256;

// Ollama leaves the linear scaling of the long-context sizes out; Gemma 3 scales global layers by 8 from 4B on.
constexpr int kOllamaScaledContext = 131072;
constexpr float kOllamaScaledFactor = 8.0f;

[[noreturn]] void unsupported(const std::string& message) {
  throw Error(ErrorCode::kUnsupportedModel, "",
              message +
                  "; supported are GGUF files of Gemma 3 (architecture gemma3: 270M, 1B, 4B, 12B, 27B) and of "
                  "EmbeddingGemma (gemma-embedding)");
}

constexpr const char* kDecoder = "gemma3";
constexpr const char* kEncoder = "gemma-embedding";

// Returns the architecture.
std::string check_kind(const GgufFile& file) {
  const std::optional<std::string> architecture = file.find_string("general.architecture");
  if (!architecture) unsupported("the file names no architecture");
  if (*architecture == "clip") unsupported("this is a vision encoder (mmproj), which goes beside a text model");
  if (*architecture != kDecoder && *architecture != kEncoder) {
    unsupported("the file's architecture is " + shown(*architecture) + family_note(*architecture));
  }
  const std::string type = file.find_string("general.type").value_or("model");
  if (type != "model") unsupported("the file's general.type is " + shown(type) + ", expected \"model\"");
  if (*architecture == kDecoder &&
      (file.find_tensor("dense.0.weight") != nullptr || file.find("gemma3.pooling_type") != nullptr)) {
    unsupported("this is an EmbeddingGemma model in a layout of its own: convert it with llama.cpp's converter");
  }
  const std::string tokenizer = file.find_string("tokenizer.ggml.model").value_or("llama");
  if (tokenizer != "llama") {
    unsupported("the file's tokenizer is " + shown(tokenizer) + ", expected \"llama\" (SentencePiece)");
  }
  return *architecture;
}

bool has_ollama_layout(const GgufFile& file) {
  for (const char* key : {"gemma3.rope.local.freq_base", "gemma3.rope.global.freq_base", "gemma3.mm.tokens_per_image",
                          "gemma3.vision.block_count"}) {
    if (file.find(key) != nullptr) return true;
  }
  return std::any_of(file.tensors().begin(), file.tensors().end(),
                     [](const Tensor& t) { return is_vision_tensor(t.name); });
}

// For each layer whether it is local.
std::vector<bool> read_layer_pattern(const GgufFile& file, const Keys& keys, int n_layers) {
  const std::string name = "attention.sliding_window_pattern";
  const GgufValue* value = file.find(keys.full(name));
  std::vector<bool> is_local(static_cast<size_t>(n_layers));
  if (value != nullptr && value->is_array) {
    if (value->type != GgufType::kBool) {
      throw Error(ErrorCode::kGgufInvalid, "BAD_TYPE",
                  "metadata \"" + keys.full(name) + "\": expected a u32 or an array of bool");
    }
    if (value->count != is_local.size()) {
      bad_hparam(keys.full(name), "expected one entry for each of " + std::to_string(n_layers) + " layers, found " +
                                      std::to_string(value->count));
    }
    for (size_t i = 0; i < is_local.size(); ++i) is_local[i] = value->raw[i] != std::byte{0};
    return is_local;
  }
  const int period = keys.find_int(name, 1, kMaxLayers).value_or(kDefaultPattern);
  for (int i = 0; i < n_layers; ++i) is_local[static_cast<size_t>(i)] = (i + 1) % period != 0;
  return is_local;
}

float read_rope_factor(const GgufFile& file, const Keys& keys, int n_ctx_train) {
  const std::optional<std::string> type = file.find_string(keys.full("rope.scaling.type"));
  const std::optional<float> factor = keys.find_float("rope.scaling.factor", 1e-3, 1e6);
  if (type && *type != "linear" && *type != "none") {
    unsupported("RoPE scaling of type " + shown(*type) + " (expected \"linear\" or \"none\")");
  }
  if (type && *type == "none") return 1.0f;
  if (!type && !factor && has_ollama_layout(file) && n_ctx_train >= kOllamaScaledContext) return kOllamaScaledFactor;
  return factor.value_or(1.0f);
}

int read_head_dim(const GgufFile& file, const Keys& keys) {
  int fallback = kDefaultHeadDim;  // files without the key: the norm over a head tells its width
  const Tensor* norm = file.find_tensor("blk.0.attn_q_norm.weight");
  if (norm != nullptr && norm->shape.back() <= kMaxHeadDim) fallback = static_cast<int>(norm->shape.back());
  const int head_dim = keys.find_int("attention.key_length", 2, kMaxHeadDim).value_or(fallback);
  if (head_dim % 2 != 0)
    bad_hparam(keys.full("attention.key_length"), "expected an even number, found " + std::to_string(head_dim));
  const int value_dim = keys.find_int("attention.value_length", 2, kMaxHeadDim).value_or(head_dim);
  if (value_dim != head_dim) {
    bad_hparam(keys.full("attention.value_length"),
               "expected " + std::to_string(head_dim) + " as key_length, found " + std::to_string(value_dim));
  }
  return head_dim;
}

// Attention scores are divided by the root of this, which Google's configurations call query_pre_attn_scalar: the head
// size, but in the 27B model the width per head, 5376 / 32 (gemma_pytorch: config.py, get_config_for_27b_v3). No key of
// GGUF holds it. What tells the 27B model is its 62 layers, by which llama.cpp and Ollama know it too, so that files
// made for them mean the same here.
double query_pre_attn_scalar(int n_layers, int model_dim, const LayerConfig& layer) {
  constexpr int kLayersOf27B = 62;
  return n_layers == kLayersOf27B ? static_cast<double>(model_dim) / layer.n_heads : layer.head_dim;
}

int read_vocabulary_size(const GgufFile& file) {
  const Tensor* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr) bad_tensor("token_embd.weight", "missing");
  const int64_t rows = embedding->shape.front();
  if (embedding->shape.size() != 2 || rows > kMaxVocab) {
    bad_tensor("token_embd.weight", "expected [n_vocab, model_dim] with at most " + std::to_string(kMaxVocab) +
                                        " rows, file has " + shape_text(embedding->shape));
  }
  return static_cast<int>(rows);
}

// What makes an embedding model of the layers. No key says that its attention is not causal: the architecture does.
void read_encoder(const GgufFile& file, const Keys& keys, ModelConfig& c) {
  constexpr int kMean = 1;
  c.is_encoder = true;
  const int pooling = keys.find_int("pooling_type", 0, 64).value_or(kMean);
  if (pooling != kMean) {
    unsupported("metadata \"" + keys.full("pooling_type") + "\" is " + std::to_string(pooling) +
                ", expected 1 (the mean of a text's rows)");
  }
  const bool has_tensor = file.find_tensor(dense_weight(0)) != nullptr || file.find_tensor(dense_weight(1)) != nullptr;
  c.lacks_dense = !has_tensor && !keys.find_int("dense_2_feat_out", 1, kMaxDenseDim);
  if (c.lacks_dense) return;
  // As the tensors have them where the file has no keys.
  const auto dim = [&](const char* key, size_t layer) {
    const std::optional<int> found = keys.find_int(key, 1, kMaxDenseDim);
    const Tensor* matrix = file.find_tensor(dense_weight(layer));
    if (found || matrix == nullptr || matrix->shape.empty() || matrix->shape.front() > kMaxDenseDim)
      return found.value_or(c.model_dim);
    return static_cast<int>(matrix->shape.front());
  };
  c.dense = {{.out_dim = dim("dense_2_feat_out", 0)}, {.out_dim = dim("dense_3_feat_out", 1)}};
}

void add_decoder_tensors(const GgufFile& file, TensorSource& source) {
  source.set_split(file.find_int("split.count").value_or(0) > 1);
  for (const Tensor& tensor : file.tensors()) {
    // The vision half of an Ollama file, and frequency tables that some converters add (Gemma 3's follow from the
    // metadata).
    if (!is_vision_tensor(tensor.name) && !tensor.name.starts_with("rope_f")) source.add(tensor.name, tensor);
  }
}

}  // namespace

std::shared_ptr<const TensorSource> decoder_tensors(const std::shared_ptr<const GgufFile>& file) {
  auto source = std::make_shared<TensorSource>();
  keep_weights(*file, *source);
  add_decoder_tensors(*file, *source);
  return source;
}

ModelConfig read_model_config(const GgufFile& file) {
  const std::string architecture = check_kind(file);
  const Keys keys(file, architecture + ".");
  ModelConfig c;
  c.name = file.find_string("general.name").value_or("");
  const int n_layers = keys.need_int("block_count", 1, kMaxLayers);
  c.model_dim = keys.need_int("embedding_length", 1, kMaxModelDim);
  LayerConfig layer;  // what all layers have in common
  layer.ffn_dim = keys.need_int("feed_forward_length", 1, kMaxFfnDim);
  layer.n_heads = keys.need_int("attention.head_count", 1, kMaxHeads);
  layer.n_kv_heads = keys.need_int("attention.head_count_kv", 1, kMaxHeads);
  if (layer.n_heads % layer.n_kv_heads != 0) {
    bad_hparam(keys.full("attention.head_count_kv"), "expected a divisor of the " + std::to_string(layer.n_heads) +
                                                         " heads, found " + std::to_string(layer.n_kv_heads));
  }
  layer.head_dim = read_head_dim(file, keys);
  c.n_ctx_train = keys.need_int("context_length", 1, kMaxPositions);
  const int n_window = keys.need_int("attention.sliding_window", 1, kMaxPositions);
  const std::vector<bool> is_local = read_layer_pattern(file, keys, n_layers);
  c.rms_eps = keys.find_float("attention.layer_norm_rms_epsilon", 1e-12, 1e-1).value_or(1e-6f);
  layer.query_scale = static_cast<float>(1.0 / std::sqrt(query_pre_attn_scalar(n_layers, c.model_dim, layer)));

  LayerConfig local = layer;
  LayerConfig global = layer;
  local.n_window = n_window;
  global.rope_base = 1e6f;
  constexpr double kMinBase = 1.0;
  constexpr double kMaxBase = 1e12;
  for (const char* name : {"rope.global.freq_base", "rope.freq_base"}) {
    global.rope_base = keys.find_float(name, kMinBase, kMaxBase).value_or(global.rope_base);
  }
  for (const char* name : {"rope.local.freq_base", "rope.freq_base_swa"}) {
    local.rope_base = keys.find_float(name, kMinBase, kMaxBase).value_or(local.rope_base);
  }
  global.rope_factor = read_rope_factor(file, keys, c.n_ctx_train);
  for (const bool is_this_local : is_local) c.layers.push_back(is_this_local ? local : global);

  // Ollama's converter of 2025 wrote 30 into every text-only file; no Gemma 3 has a cap, and Ollama's engine ignores
  // the key.
  c.final_softcap = keys.find_float("final_logit_softcapping", 0, 1e6).value_or(0);
  if (has_ollama_layout(file)) c.final_softcap = 0;

  c.n_vocab = read_vocabulary_size(file);
  if (architecture == kEncoder) read_encoder(file, keys, c);
  c.embeds_eos = file.find_bool("tokenizer.ggml.add_eos_token").value_or(c.is_encoder);
  c.has_output = !c.is_encoder && file.find_tensor(kOutput) != nullptr;
  TensorSource source;
  add_decoder_tensors(file, source);
  check_tensors(source, expected_tensors(c), "a Gemma 3 model of " + std::to_string(n_layers) + " layers");
  c.size_label = file.find_string("general.size_label").value_or("");
  if (c.size_label.empty()) c.size_label = size_label(c);
  return c;
}

ChatMetadata read_chat_metadata(const GgufFile& file) {
  constexpr size_t kMaxTemplateBytes = size_t{1} << 20;  // long ones have 30 KB
  ChatMetadata chat;
  chat.chat_template = file.find_string("tokenizer.chat_template").value_or("");
  if (chat.chat_template.size() > kMaxTemplateBytes) {
    throw Error(ErrorCode::kGgufInvalid, "TEMPLATE_LIMIT",
                "tokenizer.chat_template: expected at most 1 MiB, found " + std::to_string(chat.chat_template.size()) +
                    " bytes");
  }
  chat.base_name = file.find_string("general.basename").value_or("");
  chat.finetune = file.find_string("general.finetune").value_or("");
  return chat;
}

}  // namespace gemma
