#include "binding/convert.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <new>
#include <stdexcept>

#include "gguf/gguf.h"
#include "quant/types.h"

namespace gemma::binding {
namespace {

constexpr int kDefaultContext = 32768;

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

// True when text holds a word of two letters as a word of its own: "it" in "gemma-3-1b-it", "Gemma 3 27b It".
bool says(std::string_view text, std::string_view word) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  for (size_t i = 0; i + 2 <= text.size(); ++i) {
    if ((text[i] | 0x20) == word[0] && (text[i + 1] | 0x20) == word[1] && (i == 0 || !is_letter(text[i - 1])) &&
        (i + 2 == text.size() || !is_letter(text[i + 2]))) {
      return true;
    }
  }
  return false;
}

// An optional property of options: absent or undefined leaves *out as it is.
void read(const Napi::Object& options, const char* key, const auto& take) {
  const Napi::Value value = options.Get(key);
  if (!value.IsUndefined()) take(value);
}
void read(const Napi::Object& options, const char* key, int* out) {
  read(options, key, [out](const Napi::Value& value) { *out = value.As<Napi::Number>().Int32Value(); });
}
void read(const Napi::Object& options, const char* key, float* out) {
  read(options, key, [out](const Napi::Value& value) { *out = value.As<Napi::Number>().FloatValue(); });
}
void read(const Napi::Object& options, const char* key, double* out) {
  read(options, key, [out](const Napi::Value& value) { *out = value.As<Napi::Number>().DoubleValue(); });
}
void read(const Napi::Object& options, const char* key, bool* out) {
  read(options, key, [out](const Napi::Value& value) { *out = value.As<Napi::Boolean>().Value(); });
}
void read(const Napi::Object& options, const char* key, std::string* out) {
  read(options, key, [out](const Napi::Value& value) { *out = value.As<Napi::String>().Utf8Value(); });
}

// The bytes of a Uint8Array where they are.
std::span<const uint8_t> bytes_of(const Napi::Object& options, const char* key) {
  const Napi::Value value = options.Get(key);
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throw Napi::TypeError::New(options.Env(), std::string(key) + ": expected a Uint8Array");
  }
  const auto array = value.As<Napi::Uint8Array>();
  return {array.Data(), array.ElementLength()};
}

}  // namespace

ErrorInfo describe(const Error& error) {
  return {error_code_name(error.code()), error.detail(), error.what()};
}

ErrorInfo describe(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const Error& error) {
    return describe(error);
  } catch (const std::bad_alloc&) {
    return {"ERR_OUT_OF_MEMORY", "", "not enough memory; try a smaller context or a smaller model"};
  } catch (const std::length_error& error) {
    return {"ERR_OUT_OF_MEMORY", "", std::string("a size is too large for this machine: ") + error.what()};
  } catch (const std::exception& error) {
    return {"ERR_INTERNAL", "", std::string("unexpected failure in the native core: ") + error.what()};
  } catch (...) {
    return {"ERR_INTERNAL", "", "unexpected failure in the native core"};
  }
}

bool is_instruction_tuned(const GgufFile& file) {
  const std::string name =
      file.find_string("general.finetune").value_or("") + " " + file.find_string("general.name").value_or("");
  if (says(name, "it")) return true;
  return !says(name, "pt") && file.find("tokenizer.chat_template") != nullptr;
}

FileSummary summarize_file(const LoadOptions& options, const std::vector<int>& contexts) {
  const GgufOpenOptions headers = {.mmap = true, .headers_only = true};
  const std::shared_ptr<const GgufFile> file = GgufFile::open(options.path, headers);
  FileSummary summary;
  summary.config = read_model_config(*file);
  uint64_t vision_bytes = 0;
  if (const std::optional<VisionSource> vision = open_vision(options, file, summary.config, headers)) {
    summary.vision = vision->config;
    vision_bytes =
        plan_vision_bytes(*vision->file, vision->config,
                          vision_requantizes(vision->config, options.vision_arithmetic, cpu_has_bulk(options.isa)));
  }
  summary.architecture = file->find_string("general.architecture").value_or("");
  summary.instruction_tuned = is_instruction_tuned(*file);
  summary.file_bytes = file->file_bytes();
  std::map<TensorType, FileSummary::TypeCount> types;
  for (const GgufTensor& tensor : file->tensors()) {
    uint64_t n_elements = 1;
    for (const int64_t dimension : tensor.shape) n_elements *= static_cast<uint64_t>(dimension);
    summary.n_parameters += n_elements;
    FileSummary::TypeCount& count = types[tensor.type];
    count.type = tensor.type;
    ++count.n_tensors;
    count.bytes += tensor.bytes;
  }
  for (const auto& [type, count] : types) summary.types.push_back(count);
  std::stable_sort(summary.types.begin(), summary.types.end(),
                   [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  for (int n_ctx : contexts) {
    if (n_ctx == 0) n_ctx = std::min(summary.config.n_ctx_train, kDefaultContext);
    const int n_batch = rows_per_step(options.n_batch, summary.vision);
    MemoryPlan plan = plan_memory(*file, summary.config, n_ctx, options.kv_type, n_batch, options.screen_logits);
    plan.add_vision(vision_bytes);
    summary.plans.push_back({n_ctx, plan});
  }
  return summary;
}

KvType to_kv_type(const std::string& name) {
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    if (name == kv_type_name(type)) return type;
  }
  throw Error(ErrorCode::kInvalidArgument, "", "kvCache: expected f32, f16 or q8_0, found " + name);
}

LoadOptions to_load_options(const Napi::Object& options) {
  LoadOptions result;
  std::string kv_cache = kv_type_name(result.kv_type);
  read(options, "path", &result.path);
  read(options, "draft", &result.draft_path);
  read(options, "device", &result.device);
  read(options, "gpuLayers", &result.n_gpu_layers);
  read(options, "isa", &result.isa);
  read(options, "threads", &result.n_threads);
  read(options, "contextSize", &result.n_ctx);
  read(options, "batchSize", &result.n_batch);
  read(options, "mmap", &result.mmap);
  read(options, "screenLogits", &result.screen_logits);
  read(options, "prefixCacheBytes", [&](const Napi::Value& value) {
    result.prefix_cache_bytes = static_cast<uint64_t>(std::max<int64_t>(0, value.As<Napi::Number>().Int64Value()));
  });
  read(options, "mmproj", &result.mmproj_path);
  read(options, "vision", &result.vision);
  std::string precision = arithmetic_name(result.vision_arithmetic);
  read(options, "visionPrecision", &precision);
  result.vision_arithmetic = to_arithmetic(precision);
  read(options, "kvCache", &kv_cache);
  result.kv_type = to_kv_type(kv_cache);
  return result;
}

DraftMode to_draft_mode(const std::string& name) {
  if (name == "auto") return DraftMode::kAuto;
  if (name == "off") return DraftMode::kOff;
  if (name == "prompt-lookup") return DraftMode::kPromptLookup;
  if (name == "model") return DraftMode::kModel;
  throw Error(ErrorCode::kInvalidArgument, "", "draft: expected auto, off, prompt-lookup or model, found " + name);
}

GenerateParams to_generate_params(const Napi::Object& params) {
  GenerateParams result;
  result.tokens = to_tokens(params.Get("tokens"));
  read(params, "maxOutputTokens", &result.max_tokens);
  read(params, "overflowIsError", &result.overflow_is_error);
  read(params, "stopAtEndToken", &result.stop_at_end_token);
  read(params, "maxUnread", &result.max_unread);
  std::string draft = "auto";
  read(params, "draft", &draft);
  result.draft = to_draft_mode(draft);
  result.images = to_prompt_images(params.Get("images"));
  read(params, "stopSequences", [&](const Napi::Value& value) {
    const auto list = value.As<Napi::Array>();
    for (uint32_t i = 0; i < list.Length(); ++i)
      result.stop_sequences.push_back(list.Get(i).As<Napi::String>().Utf8Value());
  });
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
  read(params, "seed",
       [&](const Napi::Value& value) { sampling.seed = static_cast<uint64_t>(value.As<Napi::Number>().Int64Value()); });
  read(params, "logitBias", [&](const Napi::Value& value) {  // [id, bias, id, bias, ...]
    const auto list = value.As<Napi::Float64Array>();
    for (size_t i = 0; i + 1 < list.ElementLength(); i += 2) {
      sampling.logit_bias.emplace_back(static_cast<TokenId>(list[i]), static_cast<float>(list[i + 1]));
    }
  });
  return result;
}

std::vector<TokenId> to_tokens(const Napi::Value& value) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_int32_array) {
    throw Napi::TypeError::New(value.Env(), "tokens: expected an Int32Array");
  }
  const auto array = value.As<Napi::Int32Array>();
  return {array.Data(), array.Data() + array.ElementLength()};
}

CropOptions to_crop_options(const Napi::Object& options) {
  CropOptions result;
  read(options, "panAndScan", [&](const Napi::Value& value) {
    const auto object = value.As<Napi::Object>();
    PanAndScan pan_and_scan;
    read(object, "minCropSize", &pan_and_scan.min_crop_size);
    read(object, "maxCrops", &pan_and_scan.max_crops);
    read(object, "minRatio", &pan_and_scan.min_ratio);
    result.pan_and_scan = pan_and_scan;
  });
  read(options, "tile", &result.tile);
  return result;
}

Image to_image(const Napi::Object& options) {
  Image image;
  image.data = bytes_of(options, "data");
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
  return image;
}

std::vector<PromptImage> to_prompt_images(const Napi::Value& value) {
  std::vector<PromptImage> images;
  if (value.IsUndefined()) return images;
  const auto list = value.As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const auto image = list.Get(i).As<Napi::Object>();
    const Napi::Value embedding = image.Get("embedding");
    if (!embedding.IsTypedArray() || embedding.As<Napi::TypedArray>().TypedArrayType() != napi_float32_array)
      throw Napi::TypeError::New(value.Env(), "embedding: expected a Float32Array");
    const auto array = embedding.As<Napi::Float32Array>();
    images.push_back(
        {image.Get("first").As<Napi::Number>().Int32Value(), {array.Data(), array.Data() + array.ElementLength()}});
  }
  return images;
}

EncodeParams to_encode_params(const Napi::Object& params) {
  const std::span<const uint8_t> pixels = bytes_of(params, "pixels");
  return {{pixels.begin(), pixels.end()}, params.Get("n").As<Napi::Number>().Int32Value()};
}

Napi::Value to_js(Napi::Env env, std::span<const TokenId> tokens) {
  auto array = Napi::Int32Array::New(env, tokens.size());
  if (!tokens.empty()) std::memcpy(array.Data(), tokens.data(), tokens.size_bytes());
  return array;
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

Napi::Value to_js(Napi::Env env, const PreparedImage& prepared) {
  Napi::Object object = Napi::Object::New(env);
  auto pixels = Napi::Uint8Array::New(env, prepared.pixels.size());
  std::copy(prepared.pixels.begin(), prepared.pixels.end(), pixels.Data());
  object["pixels"] = pixels;
  object["crops"] = to_js(env, prepared.crops);
  return object;
}

Napi::Value to_js(Napi::Env env, const ModelConfig& config) {
  Napi::Object object = Napi::Object::New(env);
  object["name"] = config.name;
  object["size"] = config.size_label;
  object["layers"] = config.n_layers;
  object["modelDim"] = config.model_dim;
  object["ffnDim"] = config.ffn_dim;
  object["heads"] = config.n_heads;
  object["kvHeads"] = config.n_kv_heads;
  object["headDim"] = config.head_dim;
  object["vocabularySize"] = config.n_vocab;
  object["trainedContext"] = config.n_ctx_train;
  object["slidingWindow"] = config.n_window;
  object["globalLayers"] = std::count(config.is_local.begin(), config.is_local.end(), uint8_t{0});
  object["rmsEpsilon"] = config.rms_eps;
  object["queryScale"] = config.query_scale;
  object["ropeBaseGlobal"] = config.rope_base_global;
  object["ropeBaseLocal"] = config.rope_base_local;
  object["ropeFactorGlobal"] = config.rope_factor_global;
  object["finalSoftcap"] = config.final_softcap;
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
  object["visionBytes"] = number(env, memory.vision_bytes);
  object["totalBytes"] = number(env, memory.total_bytes);
  return object;
}

Napi::Value to_js(Napi::Env env, const FileSummary& summary) {
  Napi::Object object = Napi::Object::New(env);
  object["architecture"] = summary.architecture;
  object["instructionTuned"] = summary.instruction_tuned;
  object["fileBytes"] = number(env, summary.file_bytes);
  object["parameters"] = number(env, summary.n_parameters);
  object["config"] = to_js(env, summary.config);
  if (summary.vision) object["vision"] = to_js(env, *summary.vision);
  Napi::Array types = Napi::Array::New(env, summary.types.size());
  for (uint32_t i = 0; i < summary.types.size(); ++i) {
    Napi::Object entry = Napi::Object::New(env);
    entry["type"] = type_traits(summary.types[i].type).name;
    entry["tensors"] = number(env, summary.types[i].n_tensors);
    entry["bytes"] = number(env, summary.types[i].bytes);
    types.Set(i, entry);
  }
  object["tensorTypes"] = types;
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
  object["memory"] = to_js(env, info.memory);
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
      break;
  }
  return object;
}

}  // namespace gemma::binding
