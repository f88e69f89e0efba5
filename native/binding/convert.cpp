#include "binding/convert.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <new>
#include <utility>

#include "binding/read.h"

namespace gemma::binding {
namespace {

Napi::Number number(Napi::Env env, uint64_t value) {
  return Napi::Number::New(env, static_cast<double>(value));
}

const char* kv_type_name(KvType type) {
  switch (type) {
    case KvType::kF32: return "f32";
    case KvType::kF16: return "f16";
    case KvType::kQ8_0: return "q8_0";
  }
  return "";
}

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kCancelled: return "cancelled";
    case FinishReason::kError: return "error";
  }
  return "";
}

const char* arithmetic_name(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::kExact ? "exact" : "int8";
}

Arithmetic to_arithmetic(const std::string& name) {
  for (const Arithmetic arithmetic : {Arithmetic::kExact, Arithmetic::kFast}) {
    if (name == arithmetic_name(arithmetic)) return arithmetic;
  }
  throw Error(ErrorCode::kInvalidArgument, "", "visionPrecision: expected exact or int8, found " + name);
}

template <class T>
Napi::TypedArrayOf<T> new_array(Napi::Env env, std::span<const T> values) {
  std::span<T> elements;
  const Napi::TypedArrayOf<T> array = make_array(env, values.size(), &elements);
  if (!values.empty()) std::memcpy(elements.data(), values.data(), values.size_bytes());
  return array;
}

}  // namespace

// As JavaScript makes it, because that throws where there is no memory; Node-API ends the process.
template <class T>
Napi::TypedArrayOf<T> make_array(Napi::Env env, size_t n, std::span<T>* elements) {
  Napi::Value array;
  try {
    array = env.Global()
                .Get(ArrayOf<T>::kName)
                .template As<Napi::Function>()
                .New({Napi::Number::New(env, static_cast<double>(n))});
  } catch (const Napi::Error&) {
    throw std::bad_alloc();
  }
  const std::span<const T> found = elements_of<T>(array, ArrayOf<T>::kName);
  if (found.size() != n) throw std::bad_alloc();
  *elements = {const_cast<T*>(found.data()), n};
  return array.As<Napi::TypedArrayOf<T>>();
}
template Napi::TypedArrayOf<uint8_t> make_array(Napi::Env env, size_t n, std::span<uint8_t>* elements);
template Napi::TypedArrayOf<int32_t> make_array(Napi::Env env, size_t n, std::span<int32_t>* elements);
template Napi::TypedArrayOf<float> make_array(Napi::Env env, size_t n, std::span<float>* elements);

Napi::Object to_object(const Napi::Value& value, const char* name) {
  if (!value.IsObject()) bad_type(value.Env(), name, "an object");
  return value.As<Napi::Object>();
}

Napi::Function to_function(const Napi::Value& value, const char* name) {
  if (!value.IsFunction()) bad_type(value.Env(), name, "a function");
  return value.As<Napi::Function>();
}

bool to_bool(const Napi::Value& value, const char* name) {
  if (!value.IsBoolean()) bad_type(value.Env(), name, "true or false");
  return value.As<Napi::Boolean>().Value();
}

int to_int(const Napi::Value& value, const char* name) {
  constexpr auto kLeast = std::numeric_limits<int>::min();
  constexpr auto kMost = std::numeric_limits<int>::max();
  return static_cast<int>(to_integer(value, name, kLeast, kMost));
}

int to_int(const Napi::Object& options, const char* key) {
  return to_int(options.Get(key), key);
}

uint64_t to_id(const Napi::Value& value) {
  return static_cast<uint64_t>(to_integer(value, "id", 0, kMaxExact));
}

std::vector<int> to_contexts(const Napi::Object& options) {
  std::vector<int> contexts;
  for_each(options.Get("contexts"), "contexts",
           [&](const Napi::Value& value) { contexts.push_back(to_int(value, "contexts")); });
  return contexts;
}

KvType to_kv_type(const std::string& name) {
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    if (name == kv_type_name(type)) return type;
  }
  throw Error(ErrorCode::kInvalidArgument, "", "kvCache: expected f32, f16 or q8_0, found " + name);
}

LoadOptions to_load_options(const Napi::Object& options) {
  LoadOptions result;
  read(options, "path", &result.path);
  read(options, "draft", &result.draft_path);
  read(options, "device", &result.device);
  read(options, "gpuLayers", &result.n_gpu_layers, -1, kMaxGpuLayers);
  read(options, "isa", &result.isa);
  read(options, "threads", &result.n_threads, 0, kMaxThreads);
  read(options, "contextSize", &result.n_ctx, 0, std::numeric_limits<int>::max());
  read(options, "batchSize", &result.n_batch, 0, kMaxBatch);
  read(options, "mmap", &result.mmap);
  read(options, "screenLogits", &result.screen_logits);
  read(options, "quantize", &result.quantize);
  read(options, "prefixCacheBytes", &result.prefix_cache_bytes);
  read(options, "adapters", [&](const Napi::Value& value) {
    for_each(value, "adapters", [&](const Napi::Value& source) {
      result.adapters.push_back(to_named_adapter(to_object(source, "adapters")));
    });
  });
  read(options, "mmproj", &result.mmproj_path);
  read(options, "vision", &result.vision);
  std::string dense = "required";
  read(options, "denseLayers", &dense);
  if (dense != "required" && dense != "optional") {
    throw Error(ErrorCode::kInvalidArgument, "", "denseLayers: expected required or optional, found " + dense);
  }
  result.needs_dense = dense == "required";
  std::string precision = arithmetic_name(result.vision_arithmetic);
  read(options, "visionPrecision", &precision);
  result.vision_arithmetic = to_arithmetic(precision);
  read(options, "kvCache", [&](const Napi::Value& value) { result.kv_type = to_kv_type(to_string(value, "kvCache")); });
  if (const char* chip = std::getenv("GEMMA_EMULATED_CHIP")) result.emulated_chip = chip;  // for tests
  return result;
}

namespace {

void read_quantize_options(const Napi::Object& options, QuantizeOptions& result) {
  read(options, "path", &result.path);
  read(options, "mmprojOutput", &result.mmproj_output);
  read(options, "mmprojType", &result.mmproj_type);
  read(options, "needsMmproj", &result.needs_mmproj);
  read(options, "chatTemplate", &result.chat_template);
  read(options, "output", &result.output);
  read(options, "type", &result.type);
  read(options, "importance", &result.importance_path);
  read(options, "allowRequantize", &result.allow_requantize);
  read(options, "overwrite", &result.overwrite);
  read(options, "threads", &result.n_threads, 0, kMaxThreads);
  read(options, "overrides", [&](const Napi::Value& value) {
    for_each(value, "overrides", [&](const Napi::Value& element) {
      const Napi::Object item = to_object(element, "overrides");
      TypeOverride added;
      std::string type;
      read(item, "pattern", &added.pattern);
      read(item, "type", &type);
      const std::optional<TensorType> found = find_quantizable_type(type);
      if (!found) {
        throw Error(ErrorCode::kInvalidArgument, "UNKNOWN_TYPE",
                    "overrides: \"" + shown_path(type) + "\" is no type that a tensor can be given");
      }
      added.type = *found;
      result.overrides.push_back(std::move(added));
    });
  });
}

// 0: the model, 1: the other.
double to_merge_weight(const Napi::Value& value, const char* name) {
  const double weight = to_double(value, name);
  if (weight >= 0 && weight <= 1) return weight;
  throw Error(ErrorCode::kInvalidArgument, "",
              std::string(name) + ": expected 0 to 1, found " + std::to_string(weight));
}

}  // namespace

QuantizeOptions to_quantize_options(const Napi::Object& options) {
  QuantizeOptions result;
  read_quantize_options(options, result);
  return result;
}

MergeOptions to_merge_options(const Napi::Object& options) {
  MergeOptions result;
  read_quantize_options(options, result);
  read(options, "mmproj", &result.mmproj_path);
  read(options, "other", &result.other_path);
  read(options, "weight", [&](const Napi::Value& value) { result.weight = to_merge_weight(value, "weight"); });
  std::string blend = "linear";
  read(options, "blend", &blend);
  if (blend != "linear" && blend != "slerp")
    throw Error(ErrorCode::kInvalidArgument, "", "blend: expected linear or slerp, found " + shown_path(blend));
  result.blend = blend == "slerp" ? Blend::kSlerp : Blend::kLinear;
  read(options, "weights", [&](const Napi::Value& value) {
    for_each(value, "weights", [&](const Napi::Value& element) {
      const Napi::Object item = to_object(element, "weights");
      WeightOverride added;
      read(item, "pattern", &added.pattern);
      read(item, "weight", [&](const Napi::Value& number) { added.weight = to_merge_weight(number, "weights"); });
      result.weights.push_back(std::move(added));
    });
  });
  read(options, "adapters", [&](const Napi::Value& value) {
    for_each(value, "adapters", [&](const Napi::Value& element) {
      const Napi::Object item = to_object(element, "adapters");
      MergedAdapter added;
      added.source = to_named_adapter(item).source;
      read(item, "scale",
           [&](const Napi::Value& number) { added.scale = static_cast<float>(to_double(number, "scale")); });
      result.adapters.push_back(std::move(added));
    });
  });
  return result;
}

ImportanceOptions to_importance_options(const Napi::Object& options) {
  ImportanceOptions result;
  result.model = to_load_options(options);
  read(options, "text", &result.text);
  read(options, "output", &result.output);
  read(options, "chunkSize", &result.n_chunk, 8, kMaxBatch);
  return result;
}

DraftMode to_draft_mode(const std::string& name) {
  if (name == "auto") return DraftMode::kAuto;
  if (name == "off") return DraftMode::kOff;
  if (name == "prompt-lookup") return DraftMode::kPromptLookup;
  if (name == "model") return DraftMode::kModel;
  throw Error(ErrorCode::kInvalidArgument, "", "draft: expected auto, off, prompt-lookup or model, found " + name);
}

GrammarSource to_grammar_source(const Napi::Object& source) {
  constexpr std::pair<const char*, GrammarKind> kKinds[] = {{"json", GrammarKind::kJson},
                                                            {"jsonSchema", GrammarKind::kJsonSchema},
                                                            {"regex", GrammarKind::kRegex},
                                                            {"ebnf", GrammarKind::kEbnf},
                                                            {"structuralTag", GrammarKind::kStructuralTag}};
  GrammarSource result;
  const std::string kind = to_string(source.Get("kind"), "kind");
  const auto* const found =
      std::find_if(std::begin(kKinds), std::end(kKinds), [&](const auto& entry) { return kind == entry.first; });
  if (found == std::end(kKinds)) {
    bad_type(source.Env(), "kind", "json, jsonSchema, regex, ebnf or structuralTag");
  }
  result.kind = found->second;
  if (result.kind != GrammarKind::kJson) result.text = to_string(source.Get("text"), "text");
  read(source, "root", &result.root);
  return result;
}

// Tells a grammar from whatever else a caller may pass.
static constexpr napi_type_tag kGrammarTag = {0x51e7a90c3b6f4d82, 0xb4c81d2f97e6a035};
using HeldGrammar = std::shared_ptr<const Grammar>;

Napi::Value to_js(Napi::Env env, std::shared_ptr<const Grammar> grammar, bool cached) {
  Napi::Object object = Napi::Object::New(env);
  object["bytes"] = number(env, grammar->bytes());
  object["compileMs"] = cached ? 0 : grammar->compile_ms();
  object.TypeTag(&kGrammarTag);
  auto held = std::make_unique<HeldGrammar>(std::move(grammar));
  const auto forget = [](napi_env, void* data, void*) { delete static_cast<HeldGrammar*>(data); };
  if (napi_wrap(env, object, held.get(), forget, nullptr, nullptr) != napi_ok) throw Napi::Error::New(env);
  [[maybe_unused]] const auto* const owned = held.release();  // by the object
  return object;
}

static HeldGrammar to_grammar(const Napi::Value& value) {
  void* data = nullptr;
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&kGrammarTag) ||
      napi_unwrap(value.Env(), value, &data) != napi_ok) {
    bad_type(value.Env(), "grammar", "what compileGrammar() made");
  }
  return *static_cast<HeldGrammar*>(data);
}

GenerateParams to_generate_params(const Napi::Object& params) {
  GenerateParams result;
  result.tokens = to_tokens(params.Get("tokens"));
  read(params, "maxOutputTokens", &result.max_tokens);
  read(params, "overflowIsError", &result.overflow_is_error);
  read(params, "maxUnread", &result.max_unread);
  std::string draft = "auto";
  read(params, "draft", &draft);
  result.draft = to_draft_mode(draft);
  read(params, "grammar", [&](const Napi::Value& value) { result.grammar = to_grammar(value); });
  result.images = to_prompt_images(params.Get("images"));
  result.adapters = to_adapter_uses(params.Get("adapters"));
  read(params, "background", &result.background);
  read(params, "stopSequences", [&](const Napi::Value& value) {
    for_each(value, "stopSequences",
             [&](const Napi::Value& stop) { result.stop_sequences.push_back(to_string(stop, "stopSequences")); });
  });
  read(params, "stopTokens", [&](const Napi::Value& value) { result.stop_tokens = to_tokens(value); });
  SamplingParams& sampling = result.sampling;
  read(params, "temperature", &sampling.temperature);
  read(params, "topK", &sampling.top_k);
  read(params, "topP", &sampling.top_p);
  read(params, "minP", &sampling.min_p);
  read(params, "repetitionPenalty", &sampling.repetition_penalty);
  read(params, "frequencyPenalty", &sampling.frequency_penalty);
  read(params, "presencePenalty", &sampling.presence_penalty);
  read(params, "penaltyWindow", &sampling.penalty_window);
  read(params, "logprobs", &sampling.n_logprobs);
  read(params, "seed", &sampling.seed);
  read(params, "logitBias", [&](const Napi::Value& value) {  // [id, bias, id, bias, ...]
    const std::span<const double> list = elements_of<double>(value, "logitBias");
    for (size_t i = 0; i + 1 < list.size(); i += 2) {
      constexpr double kMost = std::numeric_limits<TokenId>::max();
      if (!(list[i] >= 0 && list[i] <= kMost)) bad_range(value.Env(), "logitBias: token id", 0, kMost, list[i]);
      sampling.logit_bias.emplace_back(static_cast<TokenId>(list[i]), static_cast<float>(list[i + 1]));
    }
  });
  return result;
}

std::span<const TokenId> token_view(const Napi::Value& value) {
  return elements_of<TokenId>(value, "tokens");
}

std::vector<TokenId> to_tokens(const Napi::Value& value) {
  const std::span<const TokenId> tokens = token_view(value);
  return {tokens.begin(), tokens.end()};
}

std::vector<PromptPart> to_prompt_parts(const Napi::Value& value, std::vector<Napi::ObjectReference>* arrays) {
  std::vector<PromptPart> parts;
  std::vector<size_t> of_arrays;
  for_each(value, "parts", [&](const Napi::Value& part) {
    if (part.IsString()) {
      parts.emplace_back(to_string(part, "parts"));
    } else if (part.IsTypedArray()) {
      arrays->push_back(Napi::Persistent(part.As<Napi::Object>()));
      of_arrays.push_back(parts.size());
      parts.emplace_back(std::string_view());
    } else {
      const auto number = static_cast<int>(to_integer(part, "parts: marker or -1 - id", std::numeric_limits<int>::min(),
                                                      static_cast<double>(kLastMarker)));
      if (number < 0) {
        parts.emplace_back(TokenId{-1 - number});
      } else {
        parts.emplace_back(static_cast<Marker>(number));
      }
    }
  });
  // Last: an element of the list may be a getter that takes away the bytes of one before.
  for (size_t i = 0; i < of_arrays.size(); ++i) {
    const std::span<const uint8_t> bytes = elements_of<uint8_t>((*arrays)[i].Value(), "parts");
    parts[of_arrays[i]] = std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return parts;
}

std::function<bool()> to_stop_flag(const Napi::Value& value) {
  const std::span<const int32_t> flag = elements_of<int32_t>(value, "stop");
  if (flag.empty()) bad_type(value.Env(), "stop", "an Int32Array of one element");
  const auto keep = std::make_shared<Napi::ObjectReference>(Napi::Persistent(value.As<Napi::Object>()));
  return [keep, at = static_cast<const volatile int32_t*>(flag.data())] { return *at != 0; };
}

CropOptions to_crop_options(const Napi::Object& options) {
  CropOptions result;
  read(options, "panAndScan", [&](const Napi::Value& value) {
    const Napi::Object object = to_object(value, "panAndScan");
    PanAndScan pan_and_scan;
    read(object, "minCropSize", &pan_and_scan.min_crop_size);
    read(object, "maxCrops", &pan_and_scan.max_crops);
    read(object, "minRatio", &pan_and_scan.min_ratio);
    result.pan_and_scan = pan_and_scan;
  });
  read(options, "tile", &result.tile);
  return result;
}

Box to_box(const Napi::Object& options) {
  Box box;
  read(options, "x", &box.x);
  read(options, "y", &box.y);
  read(options, "width", &box.width);
  read(options, "height", &box.height);
  return box;
}

Image to_image(const Napi::Object& options, Napi::Object* array) {
  Image image;
  read(options, "width", &image.width);
  read(options, "height", &image.height);
  std::string name = "rgb";
  read(options, "layout", &name);
  if (name == "grey") {
    image.layout = PixelLayout::kGrey;
  } else if (name == "grey-alpha") {
    image.layout = PixelLayout::kGreyAlpha;
  } else if (name == "rgba") {
    image.layout = PixelLayout::kRgba;
  } else if (name == "cmyk") {
    image.layout = PixelLayout::kCmyk;
  } else if (name != "rgb") {
    throw Error(ErrorCode::kInvalidArgument, "", "layout: expected grey, grey-alpha, rgb, rgba or cmyk, found " + name);
  }
  std::string alpha = "drop";
  read(options, "alpha", &alpha);
  if (alpha == "white") {
    image.alpha = Alpha::kWhite;
  } else if (alpha != "drop") {
    throw Error(ErrorCode::kInvalidArgument, "", "alpha: expected drop or white, found " + alpha);
  }
  const Napi::Value data = options.Get("data");
  image.data = elements_of<uint8_t>(data, "data");
  *array = data.As<Napi::Object>();
  return image;
}

// Tells what hold_rows() made from whatever else a caller may pass.
static constexpr napi_type_tag kRowsTag = {0x3d0c1f6e8a524b97, 0x9b71e25d40f8a63c};

Napi::Value hold_rows(Napi::Env env, const Napi::Value& value) {
  const std::span<const float> values = elements_of<float>(value, "embedding");
  auto rows = std::make_unique<std::vector<float>>(values.begin(), values.end());
  Napi::Object held = Napi::Object::New(env);
  held.TypeTag(&kRowsTag);
  const auto forget = [](napi_env, void* data, void*) { delete static_cast<std::vector<float>*>(data); };
  if (napi_wrap(env, held, rows.get(), forget, nullptr, nullptr) != napi_ok) throw Napi::Error::New(env);
  [[maybe_unused]] const auto* const owned = rows.release();  // by held
  return held;
}

// The rows that hold_rows() keeps in an object; null for any other value.
static std::vector<float>* held_rows(const Napi::Value& value) {
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&kRowsTag)) return nullptr;
  void* data = nullptr;
  return napi_unwrap(value.Env(), value, &data) == napi_ok ? static_cast<std::vector<float>*>(data) : nullptr;
}

std::vector<PromptImage> to_prompt_images(const Napi::Value& value) {
  std::vector<PromptImage> images;
  if (value.IsUndefined()) return images;
  for_each(value, "images", [&](const Napi::Value& element) {
    const Napi::Object object = to_object(element, "images");
    const int first = to_int(object, "first");
    const Napi::Value embedding = object.Get("embedding");
    if (std::vector<float>* held = held_rows(embedding)) {
      images.push_back({first, std::move(*held)});
    } else {
      const std::span<const float> values = elements_of<float>(embedding, "embedding");
      images.push_back({first, {values.begin(), values.end()}});
    }
  });
  return images;
}

EvaluateParams to_evaluate_params(const Napi::Object& params) {
  EvaluateParams result;
  result.logits.tokens = to_tokens(params.Get("tokens"));
  result.logits.images = to_prompt_images(params.Get("images"));
  result.logits.adapters = to_adapter_uses(params.Get("adapters"));
  read(params, "background", &result.logits.background);
  result.logits.all = to_bool(params.Get("all"), "all");
  result.rows = to_bool(params.Get("rows"), "rows");
  result.next = to_bool(params.Get("next"), "next");
  result.n_top = to_int(params, "top");
  return result;
}

ScoreParams to_score_params(const Napi::Object& params) {
  ScoreParams result;
  result.tokens = to_tokens(params.Get("tokens"));
  result.images = to_prompt_images(params.Get("images"));
  result.adapters = to_adapter_uses(params.Get("adapters"));
  read(params, "background", &result.background);
  result.candidates = to_tokens(params.Get("candidates"));
  result.lengths = to_tokens(params.Get("lengths"));
  return result;
}

static std::vector<std::string> to_strings(const Napi::Value& value, const char* name) {
  std::vector<std::string> strings;
  for_each(value, name, [&](const Napi::Value& text) { strings.push_back(to_string(text, name)); });
  return strings;
}

NamedAdapter to_named_adapter(const Napi::Object& source) {
  NamedAdapter result;
  result.name = to_string(source.Get("name"), "name");
  result.source.path = to_string(source.Get("path"), "path");
  read(source, "peft", [&](const Napi::Value& value) {
    const Napi::Object peft = to_object(value, "peft");
    PeftSettings settings;
    const std::vector<std::string> modules = to_strings(peft.Get("modules"), "modules");
    settings.saved = to_strings(peft.Get("saved"), "saved");
    settings.dora = to_bool(peft.Get("dora"), "dora");
    settings.bias = to_bool(peft.Get("bias"), "bias");
    settings.token_ids = to_tokens(peft.Get("tokens"));
    const std::vector<TokenId> ranks = to_tokens(peft.Get("ranks"));
    const std::span<const double> scales = elements_of<double>(peft.Get("scales"), "scales");
    if (ranks.size() != modules.size() || scales.size() != modules.size())
      bad_type(peft.Env(), "peft", "a rank and a scale for each module");
    for (size_t i = 0; i < modules.size(); ++i)
      settings.modules.push_back({modules[i], ranks[i], static_cast<float>(scales[i])});
    result.source.peft = std::move(settings);
  });
  return result;
}

std::vector<AdapterUse> to_adapter_uses(const Napi::Value& value) {
  std::vector<AdapterUse> uses;
  if (value.IsUndefined()) return uses;
  for_each(value, "adapters", [&](const Napi::Value& element) {
    const Napi::Object use = to_object(element, "adapters");
    const double scale = to_double(use.Get("scale"), "scale");
    constexpr double kMost = 1e6;
    if (!(scale >= -kMost && scale <= kMost))
      throw Napi::RangeError::New(use.Env(), "scale: expected a number from -1e6 to 1e6");
    uses.push_back({to_string(use.Get("name"), "name"), static_cast<float>(scale)});
  });
  return uses;
}

SaveParams to_save_params(const Napi::Object& params) {
  SaveParams result;
  read(params, "path", &result.path);
  result.tokens = to_tokens(params.Get("tokens"));
  result.images = to_prompt_images(params.Get("images"));
  read(params, "metadata", &result.metadata);
  result.adapters = to_adapter_uses(params.Get("adapters"));
  return result;
}

EmbedParams to_embed_params(const Napi::Object& params) {
  EmbedParams result;
  result.tokens = to_tokens(params.Get("tokens"));
  result.lengths = to_tokens(params.Get("lengths"));
  result.n_dims = to_int(params, "dimensions");
  result.normalize = to_bool(params.Get("normalize"), "normalize");
  result.adapters = to_adapter_uses(params.Get("adapters"));
  read(params, "background", &result.background);
  return result;
}

EncodeParams to_encode_params(const Napi::Object& params) {
  EncodeParams result;
  result.n_images = to_int(params, "n");
  result.adapters = to_adapter_uses(params.Get("adapters"));
  read(params, "background", &result.background);
  const std::span<const uint8_t> pixels = elements_of<uint8_t>(params.Get("pixels"), "pixels");
  result.pixels.assign(pixels.begin(), pixels.end());
  return result;
}

Napi::Value to_js(Napi::Env env, std::span<const TokenId> tokens) {
  return new_array<int32_t>(env, tokens);
}

Napi::Value to_js(Napi::Env env, const std::vector<Box>& boxes) {
  Napi::Array array = Napi::Array::New(env, boxes.size());
  for (uint32_t i = 0; i < boxes.size(); ++i) {
    Napi::Object object = Napi::Object::New(env);
    object["x"] = boxes[i].x;
    object["y"] = boxes[i].y;
    object["width"] = boxes[i].width;
    object["height"] = boxes[i].height;
    array.Set(i, object);
  }
  return array;
}

Napi::Value to_js(Napi::Env env, std::span<const uint8_t> bytes) {
  return new_array(env, bytes);
}

Napi::Value to_js(Napi::Env env, const ModelDescription& model) {
  Napi::Object object = Napi::Object::New(env);
  object["name"] = model.name;
  object["size"] = model.size_label;
  object["layers"] = model.n_layers;
  object["modelDim"] = model.model_dim;
  object["ffnDim"] = model.ffn_dim;
  object["heads"] = model.n_heads;
  object["kvHeads"] = model.n_kv_heads;
  object["headDim"] = model.head_dim;
  object["vocabularySize"] = model.n_vocab;
  object["trainedContext"] = model.n_ctx_train;
  object["slidingWindow"] = model.n_window;
  object["globalLayers"] = model.n_global_layers;
  object["rmsEpsilon"] = model.rms_eps;
  object["queryScale"] = model.query_scale;
  object["ropeBaseGlobal"] = model.rope_base_global;
  object["ropeBaseLocal"] = model.rope_base_local;
  object["ropeFactorGlobal"] = model.rope_factor_global;
  object["finalSoftcap"] = model.final_softcap;
  object["encoder"] = model.is_encoder;
  object["denseLayers"] = model.has_dense;
  object["embeddingDim"] = model.embedding_dim;
  object["pooling"] = model.pooling;
  object["normalizedEmbeddings"] = model.normalizes;
  return object;
}

Napi::Value to_js(Napi::Env env, const VisionConfig& vision) {
  Napi::Object object = Napi::Object::New(env);
  object["imageSize"] = vision.image_size;
  object["patchSize"] = vision.patch_size;
  object["tokensPerImage"] = vision.n_tokens;
  object["layers"] = vision.n_layers;
  object["modelDim"] = vision.model_dim;
  object["ffnDim"] = vision.ffn_dim;
  object["heads"] = vision.n_heads;
  return object;
}

Napi::Value to_js(Napi::Env env, const MemoryPlan& memory) {
  Napi::Object object = Napi::Object::New(env);
  object["weightsBytes"] = number(env, memory.weights_bytes);
  object["kvBytes"] = number(env, memory.kv_bytes);
  object["scratchBytes"] = number(env, memory.scratch_bytes);
  object["screenBytes"] = number(env, memory.screen_bytes);
  object["adapterBytes"] = number(env, memory.adapter_bytes);
  object["visionBytes"] = number(env, memory.vision_bytes);
  object["grammarBytes"] = number(env, memory.grammar_bytes);
  object["totalBytes"] = number(env, memory.total_bytes);
  return object;
}

Napi::Value to_js(Napi::Env env, const ChatMetadata& chat) {
  Napi::Object object = Napi::Object::New(env);
  object["template"] = chat.chat_template;
  object["baseName"] = chat.base_name;
  object["finetune"] = chat.finetune;
  return object;
}

static Napi::Value to_js(Napi::Env env, const std::vector<TypeCount>& types) {
  Napi::Array array = Napi::Array::New(env, types.size());
  for (uint32_t i = 0; i < types.size(); ++i) {
    Napi::Object entry = Napi::Object::New(env);
    entry["type"] = types[i].type;
    entry["tensors"] = number(env, types[i].n_tensors);
    entry["bytes"] = number(env, types[i].bytes);
    array.Set(i, entry);
  }
  return array;
}

Napi::Value to_js(Napi::Env env, const FileSummary& summary) {
  Napi::Object object = Napi::Object::New(env);
  object["architecture"] = summary.architecture;
  object["chat"] = to_js(env, summary.chat);
  object["fileBytes"] = number(env, summary.file_bytes);
  object["parameters"] = number(env, summary.n_parameters);
  object["outputBytes"] = number(env, summary.output_bytes);
  object["config"] = to_js(env, summary.model);
  if (summary.vision) object["vision"] = to_js(env, *summary.vision);
  object["tensorTypes"] = to_js(env, summary.types);
  Napi::Array plans = Napi::Array::New(env, summary.plans.size());
  for (uint32_t i = 0; i < summary.plans.size(); ++i) {
    Napi::Object plan = to_js(env, summary.plans[i].memory).As<Napi::Object>();
    plan["contextSize"] = summary.plans[i].n_ctx;
    plans.Set(i, plan);
  }
  object["memory"] = plans;
  return object;
}

Napi::Value to_js(Napi::Env env, const EngineInfo& info) {
  Napi::Object object = Napi::Object::New(env);
  object["device"] = info.device;
  object["gpuLayers"] = info.n_gpu_layers;
  object["isa"] = info.isa;
  object["threads"] = info.n_threads;
  object["contextSize"] = info.n_ctx;
  object["kvCache"] = kv_type_name(info.kv_type);
  object["draftModel"] = info.has_draft_model;
  if (!info.quantize.empty()) object["quantize"] = info.quantize;
  object["memory"] = to_js(env, info.memory);
  object["chat"] = to_js(env, info.chat);
  if (info.vision) {
    Napi::Object vision = to_js(env, *info.vision).As<Napi::Object>();
    vision["precision"] = arithmetic_name(info.vision_arithmetic);
    object["vision"] = vision;
  }
  return object;
}

Napi::Value to_js(Napi::Env env, const EngineStats& stats) {
  Napi::Object object = Napi::Object::New(env);
  object["steps"] = number(env, stats.steps);
  object["kvPagesInUse"] = number(env, stats.kv_pages_in_use);
  object["kvBytesResident"] = number(env, stats.kv_bytes_resident);
  object["running"] = stats.running;
  object["waiting"] = stats.waiting;
  object["prefixes"] = stats.prefixes;
  object["prefixBytes"] = number(env, stats.prefix_bytes);
  object["promptTokens"] = number(env, stats.prompt_tokens);
  object["cachedPromptTokens"] = number(env, stats.cached_prompt_tokens);
  object["paused"] = stats.paused;
  return object;
}

Napi::Value to_js(Napi::Env env, const AdapterInfo& adapter) {
  Napi::Object object = Napi::Object::New(env);
  object["name"] = adapter.name;
  object["rank"] = adapter.rank;
  object["tensors"] = number(env, adapter.n_tensors);
  object["bytes"] = number(env, adapter.bytes);
  object["vision"] = adapter.has_vision;
  object["hash"] = adapter.hash;
  return object;
}

Napi::Value to_js(Napi::Env env, const std::vector<DeviceInfo>& devices) {
  Napi::Array array = Napi::Array::New(env, devices.size());
  for (uint32_t i = 0; i < devices.size(); ++i) {
    const DeviceInfo& device = devices[i];
    Napi::Object object = Napi::Object::New(env);
    object["name"] = device.name;
    object["description"] = device.description;
    Napi::Array isas = Napi::Array::New(env, device.isas.size());
    for (uint32_t j = 0; j < device.isas.size(); ++j) isas.Set(j, device.isas[j]);
    object["isas"] = isas;
    object["isa"] = device.isa_default;
    object["cores"] = device.n_cores;
    object["memoryBytes"] = number(env, device.memory_bytes);
    object["available"] = device.available;
    if (!device.available) object["reason"] = device.reason;
    array.Set(i, object);
  }
  return array;
}

Napi::Value to_js(Napi::Env env, const TokenLogprob& entry) {
  Napi::Object object = Napi::Object::New(env);
  object["token"] = entry.token;
  object["logit"] = entry.logit;
  object["logprob"] = entry.logprob;
  return object;
}

Napi::Value to_js(Napi::Env env, const std::vector<TokenLogprob>& entries) {
  Napi::Array array = Napi::Array::New(env, entries.size());
  for (uint32_t i = 0; i < entries.size(); ++i) array.Set(i, to_js(env, entries[i]));
  return array;
}

Napi::Value to_js(Napi::Env env, std::span<const float> values) {
  return new_array(env, values);
}

Napi::Value to_js(Napi::Env env, std::span<const double> values) {
  return new_array(env, values);
}

Napi::Object to_js(Napi::Env env, const PositionScores& scores) {
  Napi::Object event = Napi::Object::New(env);
  event["kind"] = "position";
  event["position"] = scores.position;
  if (!scores.row.empty()) event["row"] = to_js(env, std::span<const float>(scores.row));
  if (!scores.top.empty()) event["top"] = to_js(env, scores.top);
  if (scores.next_logprob) event["nextLogprob"] = *scores.next_logprob;
  return event;
}

Napi::Object to_js(Napi::Env env, const GenerateEvent& event) {
  Napi::Object object = Napi::Object::New(env);
  switch (event.kind) {
    case GenerateEvent::kPrefillProgress:
      object["kind"] = "prefill";
      object["done"] = event.n_prefilled;
      break;
    case GenerateEvent::kToken:
      object["kind"] = "token";
      object["token"] = event.token.token;
      object["text"] = event.text;
      object["inText"] = event.in_text;
      if (event.token.chosen.token >= 0) {
        object["chosen"] = to_js(env, event.token.chosen);
        object["top"] = to_js(env, event.token.top);
      }
      break;
    case GenerateEvent::kFinish:
      object["kind"] = "finish";
      object["text"] = event.text;
      object["reason"] = finish_reason_name(event.reason);
      if (!event.matched_stop.empty()) object["stopSequence"] = event.matched_stop;
      object["inputTokens"] = event.n_input;
      object["outputTokens"] = event.n_output;
      object["cachedInputTokens"] = event.n_cached;
      object["draftedTokens"] = event.n_drafted;
      object["acceptedTokens"] = event.n_accepted;
      object["queueMs"] = event.timings.queue_ms;
      object["prefillMs"] = event.timings.prefill_ms;
      object["decodeMs"] = event.timings.decode_ms;
      if (event.has_grammar) object["grammarComplete"] = event.grammar_complete;
      break;
  }
  return object;
}

Napi::Value to_js(Napi::Env env, const QuantizeResult& result) {
  Napi::Object object = Napi::Object::New(env);
  object["bytes"] = static_cast<double>(result.bytes);
  object["sourceBytes"] = static_cast<double>(result.source_bytes);
  object["resumedTensors"] = static_cast<double>(result.n_resumed);
  object["types"] = to_js(env, result.types);
  Napi::Array fallbacks = Napi::Array::New(env, result.fallbacks.size());
  for (uint32_t i = 0; i < result.fallbacks.size(); ++i) {
    Napi::Object fallback = Napi::Object::New(env);
    fallback["tensor"] = result.fallbacks[i].tensor;
    fallback["wanted"] = result.fallbacks[i].wanted;
    fallback["type"] = result.fallbacks[i].type;
    fallbacks.Set(i, fallback);
  }
  object["fallbacks"] = fallbacks;
  if (result.mmproj) {
    Napi::Object mmproj = Napi::Object::New(env);
    mmproj["path"] = result.mmproj->path;
    mmproj["bytes"] = static_cast<double>(result.mmproj->bytes);
    mmproj["types"] = to_js(env, result.mmproj->types);
    object["mmproj"] = mmproj;
  }
  return object;
}

Napi::Value to_js(Napi::Env env, const MergeResult& result) {
  Napi::Object object = to_js(env, static_cast<const QuantizeResult&>(result)).As<Napi::Object>();
  object["changedTensors"] = static_cast<double>(result.n_changed);
  return object;
}

Napi::Value to_js(Napi::Env env, const ImportanceResult& result) {
  Napi::Object object = Napi::Object::New(env);
  object["bytes"] = static_cast<double>(result.bytes);
  object["tokens"] = static_cast<double>(result.n_tokens);
  object["chunks"] = static_cast<double>(result.n_chunks);
  object["tensors"] = static_cast<double>(result.n_tensors);
  return object;
}

}  // namespace gemma::binding
