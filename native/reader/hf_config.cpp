// Sources: transformers (configuration_gemma3.py, configuration_siglip.py; versions 4.50 and 5), released config.json
// files. Two forms exist of how RoPE and the order of layers are written: rope_parameters and layer_types since
// transformers 5; rope_theta, rope_local_base_freq, rope_scaling and sliding_window_pattern in the files of 2025.
#include "reader/hf_config.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/json.h"
#include "reader/family.h"
#include "reader/hparam_limits.h"

namespace gemma {
namespace {

constexpr JsonRules kRules = {
    .code = ErrorCode::kSafetensorsInvalid, .detail = "BAD_HPARAM", .max_depth = 32, .max_values = 1 << 20};

[[noreturn]] void bad_hparam(const std::string& key, const std::string& message) {
  throw Error(ErrorCode::kSafetensorsInvalid, "BAD_HPARAM", key + ": " + message);
}

[[noreturn]] void unsupported(const std::string& message) {
  throw Error(ErrorCode::kUnsupportedModel, "",
              message + "; supported are checkpoints of Gemma 3 (model_type gemma3 or gemma3_text)");
}

void read_int(JsonReader& json, int min, int max, int* value) {
  if (!json.read_null()) *value = static_cast<int>(json.read_int(min, max));
}

void read_number(JsonReader& json, double min, double max, double* value) {
  if (!json.read_null()) *value = json.read_number(min, max);
}

void read_bool(JsonReader& json, bool* value) {
  if (!json.read_null()) *value = json.read_bool();
}

void read_id(JsonReader& json, int64_t* id) {
  if (!json.read_null()) *id = json.read_int();
}

// One id or a list.
void read_ends(JsonReader& json, int64_t* first, std::vector<int64_t>* ends) {
  if (json.kind() != JsonKind::kArray) {
    int64_t id = -1;
    read_id(json, &id);
    if (id >= 0) ends->assign(1, id);
  } else {
    ends->clear();
    json.read_array([&] {
      if (ends->size() == 1024) json.fail("more than 1024 ids are not accepted", json.offset());
      ends->push_back(json.read_int());
    });
  }
  if (!ends->empty()) *first = ends->front();
}

constexpr double kMinBase = 1.0;
constexpr double kMaxBase = 1e12;

struct Rope {
  double base = 0;  // 0: not said
  double factor = 1;
};

// The text model's fields, with the defaults of Gemma3TextConfig.
struct Text {
  bool is_there = false;
  int model_dim = 2304;
  int n_layers = 26;
  int ffn_dim = 9216;
  int n_heads = 8;
  int n_kv_heads = 4;
  int head_dim = 256;
  int n_vocab = 262208;
  int n_positions = 131072;
  int n_window = 4096;
  int period = 6;
  double query_scalar = 256;
  double rms_eps = 1e-6;
  double softcap = 0;
  double base = 0;        // of global layers, files of 2025
  double local_base = 0;  // of local ones, likewise
  Rope global, local;
  std::vector<bool> is_local;  // of each layer; empty: by the period
  std::optional<bool> is_tied;
  bool is_bidirectional = false;
  HfTokenIds tokens;

  bool read(JsonReader& json, std::string_view key);
  void read_rope(JsonReader& json);
  void read_rope_of(JsonReader& json, Rope* rope);
  void read_layer_types(JsonReader& json);
};

// Of global layers, or of each kind of layers apart.
void Text::read_rope(JsonReader& json) {
  if (!json.read_null()) read_rope_of(json, &global);
}

void Text::read_rope_of(JsonReader& json, Rope* rope) {
  bool is_linear = false;
  std::optional<double> factor;
  const size_t at = json.offset();
  json.read_object([&](std::string_view key) {
    if (key == "full_attention" || key == "sliding_attention") {
      Rope* inner = key == "full_attention" ? &global : &local;
      if (!json.read_null()) read_rope_of(json, inner);
    } else if (key == "rope_theta") {
      read_number(json, kMinBase, kMaxBase, &rope->base);
    } else if (key == "factor") {
      if (!json.read_null()) factor = json.read_number(1e-3, 1e6);
    } else if (key == "rope_type" || key == "type") {
      const std::string type(json.read_string());
      if (type != "linear" && type != "default")
        unsupported("RoPE scaling of type " + quoted(type) + " (expected \"linear\" or \"default\")");
      is_linear = type == "linear";
    } else {
      json.skip();
    }
  });
  if (!is_linear) return;
  if (!factor) json.fail("\"factor\" is missing, which RoPE of type \"linear\" needs", at);
  rope->factor = *factor;
}

void Text::read_layer_types(JsonReader& json) {
  if (json.read_null()) return;
  json.read_array([&] {
    if (is_local.size() == kMaxLayers) json.fail("more layers are not accepted", json.offset());
    const std::string type(json.read_string());
    if (type != "sliding_attention" && type != "full_attention")
      unsupported("layers of type " + quoted(type) + " (expected \"sliding_attention\" or \"full_attention\")");
    is_local.push_back(type == "sliding_attention");
  });
}

// False for a key that is none of the text model's; the value has not been read then.
bool Text::read(JsonReader& json, std::string_view key) {
  const auto integer = [&](int min, int max, int* value) { read_int(json, min, max, value); };
  if (key == "hidden_size") {
    integer(1, kMaxModelDim, &model_dim);
  } else if (key == "num_hidden_layers") {
    integer(1, kMaxLayers, &n_layers);
  } else if (key == "intermediate_size") {
    integer(1, kMaxFfnDim, &ffn_dim);
  } else if (key == "num_attention_heads") {
    integer(1, kMaxHeads, &n_heads);
  } else if (key == "num_key_value_heads") {
    integer(1, kMaxHeads, &n_kv_heads);
  } else if (key == "head_dim") {
    integer(2, kMaxHeadDim, &head_dim);
  } else if (key == "vocab_size") {
    integer(1, kMaxVocab, &n_vocab);
  } else if (key == "max_position_embeddings") {
    integer(1, kMaxPositions, &n_positions);
  } else if (key == "sliding_window") {
    integer(1, kMaxPositions, &n_window);
  } else if (key == "sliding_window_pattern" || key == "_sliding_window_pattern") {
    integer(1, kMaxLayers, &period);
  } else if (key == "query_pre_attn_scalar") {
    read_number(json, 1e-3, 1e6, &query_scalar);
  } else if (key == "rms_norm_eps") {
    read_number(json, 1e-12, 1e-1, &rms_eps);
  } else if (key == "final_logit_softcapping") {
    read_number(json, 0, 1e6, &softcap);
  } else if (key == "rope_theta") {
    read_number(json, kMinBase, kMaxBase, &base);
  } else if (key == "rope_local_base_freq") {
    read_number(json, kMinBase, kMaxBase, &local_base);
  } else if (key == "rope_parameters" || key == "rope_scaling") {
    read_rope(json);
  } else if (key == "layer_types") {
    read_layer_types(json);
  } else if (key == "bos_token_id") {
    read_id(json, &tokens.bos);
  } else if (key == "pad_token_id") {
    read_id(json, &tokens.pad);
  } else if (key == "eos_token_id") {
    read_ends(json, &tokens.eos, &tokens.ends);
  } else if (key == "tie_word_embeddings") {
    if (!json.read_null()) is_tied = json.read_bool();
  } else if (key == "attn_logit_softcapping") {
    double cap = 0;
    read_number(json, 0, 1e6, &cap);
    if (cap != 0) unsupported("attention scores with a cap (attn_logit_softcapping)");
  } else if (key == "attention_bias") {
    bool has_bias = false;
    read_bool(json, &has_bias);
    if (has_bias) unsupported("attention with biases (attention_bias)");
  } else if (key == "use_bidirectional_attention") {
    read_bool(json, &is_bidirectional);
  } else if (key == "hidden_activation" || key == "hidden_act") {
    if (json.read_null()) return true;
    const std::string activation(json.read_string());
    if (activation != "gelu_pytorch_tanh") unsupported("activation " + quoted(activation));
  } else {
    return false;
  }
  return true;
}

ModelConfig model_config(const Text& text) {
  ModelConfig c;
  c.model_dim = text.model_dim;
  c.n_vocab = text.n_vocab;
  c.n_ctx_train = text.n_positions;
  c.rms_eps = static_cast<float>(text.rms_eps);
  c.final_softcap = static_cast<float>(text.softcap);
  c.is_encoder = text.is_bidirectional;
  c.embeds_eos = text.is_bidirectional;
  if (text.n_heads % text.n_kv_heads != 0) {
    bad_hparam("num_key_value_heads", "expected a divisor of the " + std::to_string(text.n_heads) + " heads, found " +
                                          std::to_string(text.n_kv_heads));
  }
  if (text.head_dim % 2 != 0) bad_hparam("head_dim", "expected an even number, found " + std::to_string(text.head_dim));
  if (!text.is_local.empty() && text.is_local.size() != static_cast<size_t>(text.n_layers)) {
    bad_hparam("layer_types", "expected one entry for each of " + std::to_string(text.n_layers) + " layers, found " +
                                  std::to_string(text.is_local.size()));
  }
  LayerConfig global;
  global.ffn_dim = text.ffn_dim;
  global.n_heads = text.n_heads;
  global.n_kv_heads = text.n_kv_heads;
  global.head_dim = text.head_dim;
  global.query_scale = static_cast<float>(1.0 / std::sqrt(text.query_scalar));
  LayerConfig local = global;
  const auto first_of = [](double a, double b, double otherwise) {
    return static_cast<float>(a > 0 ? a : b > 0 ? b : otherwise);
  };
  global.rope_base = first_of(text.global.base, text.base, 1e6);
  global.rope_factor = static_cast<float>(text.global.factor);
  local.rope_base = first_of(text.local.base, text.local_base, 1e4);
  local.rope_factor = static_cast<float>(text.local.factor);
  local.n_window = text.n_window;
  for (int i = 0; i < text.n_layers; ++i) {
    const bool is_local =
        text.is_local.empty() ? (i + 1) % text.period != 0 : bool{text.is_local[static_cast<size_t>(i)]};
    c.layers.push_back(is_local ? local : global);
  }
  return c;
}

// The vision encoder's fields, with the defaults of SiglipVisionConfig.
struct Vision {
  int model_dim = 768;
  int ffn_dim = 3072;
  int n_layers = 12;
  int n_heads = 12;
  int image_size = 224;
  int patch_size = 16;
  double eps = 1e-6;

  void read(JsonReader& json);
};

void Vision::read(JsonReader& json) {
  json.read_object([&](std::string_view key) {
    if (key == "hidden_size") {
      read_int(json, 1, kMaxVisionDim, &model_dim);
    } else if (key == "intermediate_size") {
      read_int(json, 1, kMaxVisionFfnDim, &ffn_dim);
    } else if (key == "num_hidden_layers") {
      read_int(json, 1, kMaxVisionLayers, &n_layers);
    } else if (key == "num_attention_heads") {
      read_int(json, 1, kMaxVisionHeads, &n_heads);
    } else if (key == "image_size") {
      read_int(json, 1, kMaxImageSize, &image_size);
    } else if (key == "patch_size") {
      read_int(json, 2, kMaxPatchSize, &patch_size);
    } else if (key == "layer_norm_eps") {
      read_number(json, 1e-12, 1e-1, &eps);
    } else if (key == "num_channels") {
      int n_channels = 3;
      read_int(json, 3, 3, &n_channels);
    } else if (key == "hidden_act") {
      const std::string activation(json.read_string());
      if (activation != "gelu_pytorch_tanh") unsupported("a vision encoder with activation " + quoted(activation));
    } else if (key == "model_type") {
      const std::string type(json.read_string());
      if (type != "siglip_vision_model") unsupported("a vision encoder of type " + quoted(type));
    } else {
      json.skip();
    }
  });
}

VisionConfig vision_config(const Vision& vision, int n_tokens, int text_dim) {
  VisionConfig c;
  c.image_size = vision.image_size;
  c.patch_size = vision.patch_size;
  if (c.image_size % c.patch_size != 0) {
    bad_hparam("vision_config.image_size", "expected a multiple of the patch size " + std::to_string(c.patch_size) +
                                               ", found " + std::to_string(c.image_size));
  }
  c.n_side = c.image_size / c.patch_size;
  c.n_patches = c.n_side * c.n_side;
  if (c.n_patches > kMaxPatches) {
    bad_hparam("vision_config.image_size", "expected at most " + std::to_string(kMaxPatches) + " patches, found " +
                                               std::to_string(c.n_side) + " x " + std::to_string(c.n_side));
  }
  const int side = static_cast<int>(std::lround(std::sqrt(n_tokens)));
  if (side * side != n_tokens || c.n_side % side != 0) {
    bad_hparam("mm_tokens_per_image", "expected the square of a divisor of the " + std::to_string(c.n_side) +
                                          " patches of a side, found " + std::to_string(n_tokens));
  }
  c.n_pool = c.n_side / side;
  c.n_tokens = n_tokens;
  c.n_layers = vision.n_layers;
  c.model_dim = vision.model_dim;
  c.ffn_dim = vision.ffn_dim;
  c.n_heads = vision.n_heads;
  if (c.model_dim % c.n_heads != 0 || c.model_dim / c.n_heads > kMaxFullHeadDim) {
    bad_hparam("vision_config.num_attention_heads", "expected a divisor of the width " + std::to_string(c.model_dim) +
                                                        " into heads of at most " + std::to_string(kMaxFullHeadDim) +
                                                        ", found " + std::to_string(c.n_heads));
  }
  c.head_dim = c.model_dim / c.n_heads;
  c.text_dim = text_dim;
  c.layer_norm_eps = static_cast<float>(vision.eps);
  return c;
}

constexpr const char* kShieldGemma = "shieldgemma2";

// Before all else is read: of another kind of model its other fields mean other things.
std::string read_model_type(std::string_view text) {
  JsonReader json(text, kRules);
  std::string type;
  json.read_object([&](std::string_view key) {
    if (key == "model_type" && !json.read_null()) {
      type = json.read_string();
    } else if (key != "model_type") {
      json.skip();
    }
  });
  json.end();
  if (type.empty()) unsupported("the configuration names no model_type");
  if (type != "gemma3" && type != "gemma3_text" && type != kShieldGemma)
    unsupported("the configuration's model_type is " + quoted(type) + family_note(type));
  return type;
}

void read_rgb(JsonReader& json, double min, double max, std::array<float, 3>* out) {
  if (json.read_null()) return;
  const size_t at = json.offset();
  std::vector<float> values;
  json.read_array([&] {
    if (values.size() == out->size()) json.fail("expected 3 values, one for each colour", at);
    values.push_back(static_cast<float>(json.read_number(min, max)));
  });
  if (values.size() != out->size()) {
    json.fail("expected 3 values, one for each colour, found " + std::to_string(values.size()), at);
  }
  std::copy(values.begin(), values.end(), out->begin());
}

void read_preprocessor(JsonReader& json, VisionConfig* vision) {
  const auto must_be_true = [&](std::string_view key) {
    bool is_done = true;
    const std::string name(key);
    read_bool(json, &is_done);
    if (!is_done) unsupported("pictures that are prepared without " + name);
  };
  json.read_object([&](std::string_view key) {
    if (key == "image_mean") {
      read_rgb(json, -100, 100, &vision->image_mean);
    } else if (key == "image_std") {
      read_rgb(json, 1e-4, 100, &vision->image_std);
    } else if (key == "do_normalize" || key == "do_rescale" || key == "do_resize") {
      must_be_true(key);
    } else if (key == "resample") {
      constexpr int kBilinear = 2;
      int filter = kBilinear;
      read_int(json, 0, 100, &filter);
      if (filter != kBilinear) unsupported("pictures that are resized with filter " + std::to_string(filter));
    } else if (key == "size" && json.kind() == JsonKind::kObject) {
      json.read_object([&](std::string_view side) {
        int length = vision->image_size;
        if (side == "height" || side == "width") {
          read_int(json, vision->image_size, vision->image_size, &length);
        } else {
          json.skip();
        }
      });
    } else if (key == "image_processor" && json.kind() == JsonKind::kObject) {
      read_preprocessor(json, vision);  // as transformers 5 writes it; no deeper than the reader's limit
    } else {
      json.skip();
    }
  });
}

}  // namespace

HfConfig read_hf_config(std::string_view text) {
  HfConfig config;
  config.model_type = read_model_type(text);
  JsonReader json(text, kRules);
  Text outer;  // of a model of text alone
  Text inner;
  std::optional<Vision> vision;
  int n_image_tokens = 256;
  std::string quantization;
  json.read_object([&](std::string_view key) {
    if (key == "_name_or_path") {
      if (!json.read_null()) config.name = json.read_string();
    } else if (key == "text_config") {
      if (json.read_null()) return;
      inner.is_there = true;
      json.read_object([&](std::string_view name) {
        if (!inner.read(json, name)) json.skip();
      });
    } else if (key == "vision_config") {
      if (!json.read_null()) vision.emplace().read(json);
    } else if (key == "mm_tokens_per_image") {
      read_int(json, 1, kMaxPatches, &n_image_tokens);
    } else if (key == "quantization_config") {
      if (json.read_null()) return;
      quantization = "of a kind that it does not name";
      json.read_object([&](std::string_view name) {
        if (name == "quant_method" && json.kind() == JsonKind::kString) {
          quantization = quoted(json.read_string());
        } else {
          json.skip();
        }
      });
    } else if (!outer.read(json, key)) {
      json.skip();
    }
  });
  json.end();
  // It must be known by its name: its folder may be called anything.
  if (config.model_type == kShieldGemma) config.name = "ShieldGemma 2";
  if (!quantization.empty()) {
    throw Error(ErrorCode::kUnsupportedModel, "TENSOR_TYPE",
                "the checkpoint's weights are quantised (quantization_config: " + quantization +
                    "); supported are F32, F16 and BF16, and quantised GGUF files");
  }
  const Text& model = inner.is_there ? inner : outer;
  config.model = model_config(model);
  config.is_tied = outer.is_tied.value_or(inner.is_tied.value_or(true));
  if (vision && config.model.is_encoder) unsupported("an embedding model with a vision encoder");
  if (vision) config.vision = vision_config(*vision, n_image_tokens, model.model_dim);
  config.tokens = model.tokens;
  if (!outer.tokens.ends.empty()) {
    config.tokens.eos = outer.tokens.eos;
    config.tokens.ends = outer.tokens.ends;
  }
  if (outer.tokens.bos >= 0) config.tokens.bos = outer.tokens.bos;
  if (outer.tokens.pad >= 0) config.tokens.pad = outer.tokens.pad;
  return config;
}

void read_hf_preprocessor(std::string_view text, VisionConfig* vision) {
  JsonReader json(text, kRules);
  read_preprocessor(json, vision);
  json.end();
}

void read_hf_generation_config(std::string_view text, HfTokenIds* tokens, HfSampling* sampling) {
  JsonReader json(text, kRules);
  // Nothing here samples by them: what is none of a number is left out.
  const auto read_wish = [&](std::optional<double>* value) {
    if (json.kind() == JsonKind::kNumber) {
      *value = json.read_number();
    } else {
      json.skip();
    }
  };
  std::optional<double> top_k;
  json.read_object([&](std::string_view key) {
    if (key == "bos_token_id") {
      read_id(json, &tokens->bos);
    } else if (key == "pad_token_id") {
      read_id(json, &tokens->pad);
    } else if (key == "eos_token_id") {
      read_ends(json, &tokens->eos, &tokens->ends);
    } else if (key == "top_k") {
      read_wish(&top_k);
    } else if (key == "top_p") {
      read_wish(&sampling->top_p);
    } else if (key == "min_p") {
      read_wish(&sampling->min_p);
    } else if (key == "temperature") {
      read_wish(&sampling->temperature);
    } else if (key == "repetition_penalty") {
      read_wish(&sampling->repetition_penalty);
    } else {
      json.skip();
    }
  });
  json.end();
  if (top_k && *top_k >= 0 && *top_k <= 1e9) sampling->top_k = static_cast<int64_t>(*top_k);
}

}  // namespace gemma
