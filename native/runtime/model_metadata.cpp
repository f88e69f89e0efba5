// Source: llama.cpp's converter (conversion/gemma.py: Gemma3Model, EmbeddingGemma, Gemma3VisionModel; gguf-py: constants.py)
// and its loader (src/models/gemma3.cpp).
#include "runtime/model_metadata.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/error.h"

namespace gemma {
namespace {

[[noreturn]] void not_in_gguf(const std::string& what) {
  throw Error(ErrorCode::kUnsupportedModel, "NOT_IN_GGUF", what + ": a GGUF file of Gemma 3 cannot say this");
}

// Readers take the scale of queries from the shape of the model (gguf_model.cpp: query_pre_attn_scalar).
void check_query_scale(const ModelConfig& config) {
  constexpr int kLayersOf27B = 62;
  for (const LayerConfig& layer : config.layers) {
    const double divisor =
        config.n_layers() == kLayersOf27B ? static_cast<double>(config.model_dim) / layer.n_heads : layer.head_dim;
    const double expected = 1.0 / std::sqrt(divisor);
    if (std::abs(layer.query_scale - expected) <= 1e-6 * expected) continue;
    not_in_gguf("query_pre_attn_scalar is " + std::to_string(1.0 / (layer.query_scale * layer.query_scale)) +
                ", expected " + std::to_string(divisor) + " of a model of this shape");
  }
}

// The layers have all in common but their windows and rotations.
void check_layers(const ModelConfig& config, const LayerConfig& local, const LayerConfig* global) {
  const LayerConfig& first = config.layers.front();
  for (const LayerConfig& layer : config.layers) {
    const LayerConfig& alike = layer.is_local() || global == nullptr ? local : *global;
    const bool is_alike = layer.n_heads == first.n_heads && layer.n_kv_heads == first.n_kv_heads &&
                          layer.head_dim == first.head_dim && layer.ffn_dim == first.ffn_dim &&
                          layer.n_window == alike.n_window && layer.rope_base == alike.rope_base &&
                          layer.rope_factor == alike.rope_factor;
    if (!is_alike) not_in_gguf("layers that differ in more than their windows");
  }
  if (local.rope_factor != 1.0f) not_in_gguf("scaled RoPE in local layers");
}

// The period of global layers: the last of so many. 0: there is none.
int period_of(const ModelConfig& config) {
  const auto has_period = [&](int period) {
    for (int i = 0; i < config.n_layers(); ++i) {
      if (config.layers[static_cast<size_t>(i)].is_local() != ((i + 1) % period != 0)) return false;
    }
    return true;
  };
  for (int period = 2; period <= config.n_layers() + 1; ++period) {
    if (has_period(period)) return period;
  }
  return 0;
}

void set_layers(GgufMetadata& metadata, const ModelConfig& config, const std::string& prefix) {
  check_query_scale(config);
  const LayerConfig* local = nullptr;
  const LayerConfig* global = nullptr;
  for (const LayerConfig& layer : config.layers) (layer.is_local() ? local : global) = &layer;
  if (local == nullptr) not_in_gguf("a model without local layers");
  check_layers(config, *local, global);
  const LayerConfig& layer = config.layers.front();
  const auto set = [&](const char* key, int value) { metadata.set_u32(prefix + key, static_cast<uint32_t>(value)); };
  set("feed_forward_length", layer.ffn_dim);
  set("attention.head_count", layer.n_heads);
  set("attention.head_count_kv", layer.n_kv_heads);
  set("attention.key_length", layer.head_dim);
  set("attention.value_length", layer.head_dim);
  set("attention.sliding_window", local->n_window);
  metadata.set_f32(prefix + "rope.freq_base", global != nullptr ? global->rope_base : 1e6f);
  metadata.set_f32(prefix + "rope.freq_base_swa", local->rope_base);
  if (global != nullptr && global->rope_factor != 1.0f) {
    metadata.set_string(prefix + "rope.scaling.type", "linear");
    metadata.set_f32(prefix + "rope.scaling.factor", global->rope_factor);
  }
  // As a number where there is a period: what reads the list reads the number too, but not the other way round.
  constexpr int kDefaultPeriod = 6;
  const int period = period_of(config);
  const std::string pattern = prefix + "attention.sliding_window_pattern";
  if (period == 0) {
    std::vector<bool> is_local;
    for (const LayerConfig& one : config.layers) is_local.push_back(one.is_local());
    metadata.set_bools(pattern, is_local);
  } else if (period != std::min(kDefaultPeriod, config.n_layers() + 1)) {
    metadata.set_u32(pattern, static_cast<uint32_t>(period));
  }
}

// Of an encoder a mean, two matrices behind it, and a length of 1; of a decoder that embeds too no more than that.
void check_embedding(const ModelConfig& config) {
  const auto is_plain = [](const DenseConfig& layer) {
    return !layer.has_bias && layer.activation == Activation::kIdentity;
  };
  const bool has_own_dense = config.is_encoder ? !std::ranges::all_of(config.dense, is_plain) ||
                                                     config.dense.size() % 2 != 0 || config.dense.size() > 2
                                               : config.has_dense();
  if (has_own_dense) not_in_gguf("dense layers other than two matrices of EmbeddingGemma");
  if (config.pooling != Pooling::kMean)
    not_in_gguf("embeddings by " + std::string(pooling_name(config.pooling)) + ", not by the mean of rows");
  if (!config.normalizes) not_in_gguf("embeddings that are not normalised");
}

void set_vocabulary(GgufMetadata& metadata, const Vocabulary& vocabulary, bool adds_eos) {
  constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581, which stands for a blank
  constexpr float kScoreOfNone = -10000.0f;
  std::vector<std::string> pieces;
  std::vector<float> scores = vocabulary.scores;
  std::vector<int32_t> kinds;
  pieces.reserve(vocabulary.pieces.size());
  kinds.reserve(vocabulary.pieces.size());
  for (size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    std::string piece(vocabulary.pieces[i]);
    TokenKind kind = vocabulary.kinds[i];
    if (piece.empty()) {
      piece = "[PAD" + std::to_string(i) + "]";
      kind = TokenKind::kUnused;
      scores[i] = kScoreOfNone;
    }
    if (kind == TokenKind::kUserDefined) {
      for (size_t at = 0; (at = piece.find(kSpace, at)) != std::string::npos; ++at)
        piece.replace(at, kSpace.size(), " ");
    }
    pieces.push_back(std::move(piece));
    kinds.push_back(static_cast<int32_t>(kind));
  }
  metadata.set_string("tokenizer.ggml.model", "llama");
  metadata.set_string("tokenizer.ggml.pre", "default");
  metadata.set_strings("tokenizer.ggml.tokens", pieces);
  metadata.set_f32s("tokenizer.ggml.scores", scores);
  metadata.set_i32s("tokenizer.ggml.token_type", kinds);
  const auto set_id = [&](const char* name, TokenId id) {
    if (id >= 0) metadata.set_u32("tokenizer.ggml." + std::string(name), static_cast<uint32_t>(id));
  };
  set_id("bos_token_id", vocabulary.bos);
  set_id("eos_token_id", vocabulary.eos);
  set_id("unknown_token_id", vocabulary.unk);
  set_id("padding_token_id", vocabulary.pad);
  std::vector<int32_t> ends;  // beside eos
  for (const TokenId id : vocabulary.ends) {
    if (id >= 0 && id != vocabulary.eos) ends.push_back(id);
  }
  if (!ends.empty()) set_id("eot_token_id", ends.front());
  if (ends.size() > 1) metadata.set_i32s("tokenizer.ggml.eos_token_ids", ends);
  metadata.set_bool("tokenizer.ggml.add_bos_token", true);
  metadata.set_bool("tokenizer.ggml.add_eos_token", adds_eos);
  metadata.set_bool("tokenizer.ggml.add_sep_token", false);
  metadata.set_bool("tokenizer.ggml.add_space_prefix", false);
}

void set_sampling(GgufMetadata& metadata, const HfSampling& sampling) {
  if (sampling.top_k) metadata.set_i32("general.sampling.top_k", static_cast<int32_t>(*sampling.top_k));
  const auto set = [&](const char* key, const std::optional<double>& value) {
    if (value) metadata.set_f32("general.sampling." + std::string(key), static_cast<float>(*value));
  };
  set("top_p", sampling.top_p);
  set("min_p", sampling.min_p);
  set("temp", sampling.temperature);
  set("penalty_repeat", sampling.repetition_penalty);
}

}  // namespace

GgufMetadata decoder_metadata(const ModelConfig& config, const Vocabulary& vocabulary, const std::string& chat_template,
                              const HfSampling& sampling) {
  const std::string architecture = config.is_encoder ? "gemma-embedding" : "gemma3";
  const std::string prefix = architecture + ".";
  GgufMetadata metadata;
  metadata.set_string("general.architecture", architecture);
  metadata.set_string("general.type", "model");
  if (!config.name.empty()) metadata.set_string("general.name", config.name);
  if (!config.size_label.empty()) metadata.set_string("general.size_label", config.size_label);
  set_sampling(metadata, sampling);
  const auto set = [&](const char* key, int value) { metadata.set_u32(prefix + key, static_cast<uint32_t>(value)); };
  set("context_length", config.n_ctx_train);
  set("embedding_length", config.model_dim);
  set("block_count", config.n_layers());
  metadata.set_f32(prefix + "attention.layer_norm_rms_epsilon", config.rms_eps);
  if (config.final_softcap > 0) metadata.set_f32(prefix + "final_logit_softcapping", config.final_softcap);
  set_layers(metadata, config, prefix);
  check_embedding(config);
  if (config.is_encoder) {
    constexpr int kMean = 1;
    set("pooling_type", kMean);
    for (size_t i = 0; i < config.dense.size(); ++i) {
      const std::string layer = "dense_" + std::to_string(i + 2);
      set((layer + "_feat_in").c_str(), config.dense_in_dim(i));
      set((layer + "_feat_out").c_str(), config.dense[i].out_dim);
    }
  }
  set_vocabulary(metadata, vocabulary, vocabulary.adds_eos.value_or(config.embeds_eos));
  if (!chat_template.empty()) metadata.set_string("tokenizer.chat_template", chat_template);
  return metadata;
}

GgufMetadata vision_metadata(const VisionConfig& config, const std::string& name) {
  GgufMetadata metadata;
  metadata.set_string("general.architecture", "clip");
  metadata.set_string("general.type", "mmproj");
  if (!name.empty()) metadata.set_string("general.name", name);
  metadata.set_bool("clip.has_vision_encoder", true);
  metadata.set_string("clip.projector_type", "gemma3");
  metadata.set_bool("clip.use_gelu", true);
  const auto set = [&](const char* key, int value) {
    metadata.set_u32("clip.vision." + std::string(key), static_cast<uint32_t>(value));
  };
  set("image_size", config.image_size);
  set("patch_size", config.patch_size);
  set("embedding_length", config.model_dim);
  set("feed_forward_length", config.ffn_dim);
  set("block_count", config.n_layers);
  set("attention.head_count", config.n_heads);
  set("projection_dim", config.text_dim);
  set("projector.scale_factor", config.n_pool);
  metadata.set_f32("clip.vision.attention.layer_norm_epsilon", config.layer_norm_eps);
  metadata.set_f32s("clip.vision.image_mean", config.image_mean);
  metadata.set_f32s("clip.vision.image_std", config.image_std);
  return metadata;
}

}  // namespace gemma
