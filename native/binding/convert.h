// Plain structs <-> JavaScript values, and the one place where C++ exceptions become descriptions of JavaScript errors.
#pragma once

#include <napi.h>

#include <exception>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "image/image.h"
#include "runtime/engine.h"

namespace gemma::binding {

struct ErrorInfo {
  std::string code;
  std::string detail;
  std::string message;
};

ErrorInfo describe(const Error& error);
ErrorInfo describe(const std::exception_ptr& exception);

// What metadata alone says about a model file; n_ctx 0 in a plan stands for the default context.
struct FileSummary {
  ModelConfig config;
  std::optional<VisionConfig> vision;
  std::string architecture;
  bool instruction_tuned = false;
  uint64_t file_bytes = 0;
  uint64_t n_parameters = 0;
  struct TypeCount {
    TensorType type;
    uint64_t n_tensors = 0;
    uint64_t bytes = 0;
  };
  std::vector<TypeCount> types;  // most bytes first
  struct Plan {
    int n_ctx = 0;
    MemoryPlan memory;
  };
  std::vector<Plan> plans;
};
// An instruction-tuned file calls itself "it", or carries a chat template and does not call itself "pt" (pretrained).
bool is_instruction_tuned(const GgufFile& file);
// options: as for loading the file; contexts instead of its context.
FileSummary summarize_file(const LoadOptions& options, const std::vector<int>& contexts);

// JavaScript to C++. The values were checked in lib/options.ts; a wrong type here throws a Napi::Error all the same.
LoadOptions to_load_options(const Napi::Object& options);
GenerateParams to_generate_params(const Napi::Object& params);
KvType to_kv_type(const std::string& name);                // throws Error{kInvalidArgument}
DraftMode to_draft_mode(const std::string& name);          // throws Error{kInvalidArgument}
std::vector<TokenId> to_tokens(const Napi::Value& value);  // Int32Array
CropOptions to_crop_options(const Napi::Object& options);  // { panAndScan?: { minCropSize, .. }, tile? }
// { data: Uint8Array, width, height, layout }: a view of the array, which must stay alive and unchanged.
Image to_image(const Napi::Object& options);
// [{ first: number, embedding: Float32Array }], or undefined
std::vector<PromptImage> to_prompt_images(const Napi::Value& value);
EncodeParams to_encode_params(const Napi::Object& params);  // { pixels: Uint8Array, n: number }

// C++ to JavaScript.
Napi::Value to_js(Napi::Env env, std::span<const TokenId> tokens);  // Int32Array
Napi::Value to_js(Napi::Env env, const std::vector<Box>& boxes);    // { x, y, width, height }[]
Napi::Value to_js(Napi::Env env, const PreparedImage& prepared);    // { pixels: Uint8Array, crops }
Napi::Value to_js(Napi::Env env, const ModelConfig& config);
Napi::Value to_js(Napi::Env env, const VisionConfig& vision);
Napi::Value to_js(Napi::Env env, const MemoryPlan& memory);
Napi::Value to_js(Napi::Env env, const FileSummary& summary);
Napi::Value to_js(Napi::Env env, const EngineInfo& info);
Napi::Value to_js(Napi::Env env, const EngineStats& stats);
Napi::Value to_js(Napi::Env env, const std::vector<DeviceInfo>& devices);
Napi::Value to_js(Napi::Env env, const TokenLogprob& entry);
Napi::Value to_js(Napi::Env env, const std::vector<TokenLogprob>& entries);
// Everything but the error of a kError event, whose class belongs to the environment.
Napi::Object to_js(Napi::Env env, const GenerateEvent& event);

}  // namespace gemma::binding
