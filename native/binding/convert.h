// Plain structs <-> JavaScript values.
//
// Nothing is taken for what it should be: each value from JavaScript is checked for its type and, where a number chooses
// or counts something here, for its range. A property is read once, because a getter may answer differently the next
// time; and an array's bytes are looked at after all code of the caller that could take them away has run.
#pragma once

#include <napi.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "image/image.h"
#include "runtime/device_list.h"
#include "runtime/engine.h"
#include "runtime/evaluate.h"
#include "runtime/importance.h"
#include "runtime/inspect.h"
#include "runtime/merge_file.h"
#include "runtime/prompt_tokens.h"
#include "runtime/quantize_file.h"

namespace gemma::binding {

// JavaScript to C++. name is what messages call the value. All throw Napi::TypeError or Napi::RangeError, and
// std::bad_alloc.
Napi::Object to_object(const Napi::Value& value, const char* name);
Napi::Function to_function(const Napi::Value& value, const char* name);
bool to_bool(const Napi::Value& value, const char* name);
int to_int(const Napi::Value& value, const char* name);
int to_int(const Napi::Object& options, const char* key);
uint64_t to_id(const Napi::Value& value);                   // of an operation
std::vector<int> to_contexts(const Napi::Object& options);  // { contexts: number[] }
LoadOptions to_load_options(const Napi::Object& options);
// { path, output, type, overrides?: { pattern, type }[], importance?, allowRequantize?, overwrite?, threads?,
// mmprojOutput?, mmprojType?, needsMmproj?, chatTemplate? }
QuantizeOptions to_quantize_options(const Napi::Object& options);
// { ...as quantize, mmproj?, adapters?: { ...as load, scale }[], other?, blend?: 'linear' | 'slerp', weight?,
// weights?: { pattern, weight }[] }
MergeOptions to_merge_options(const Napi::Object& options);
ImportanceOptions to_importance_options(const Napi::Object& options);  // { ...as load, text, output, chunkSize }
GenerateParams to_generate_params(const Napi::Object& params);
GrammarSource to_grammar_source(const Napi::Object& source);    // { kind, text, root? }
KvType to_kv_type(const std::string& name);                     // throws Error{kInvalidArgument}
DraftMode to_draft_mode(const std::string& name);               // throws Error{kInvalidArgument}
std::vector<TokenId> to_tokens(const Napi::Value& value);       // Int32Array
std::span<const TokenId> token_view(const Napi::Value& value);  // likewise, where they are
// (string | Uint8Array | marker number | -1 - id)[]. Bytes are UTF-8; they stay where they are, in *arrays, which must stay alive
// and unchanged.
std::vector<PromptPart> to_prompt_parts(const Napi::Value& value, std::vector<Napi::ObjectReference>* arrays);
// An Int32Array whose first number JavaScript changes to ask for an end of work that goes on elsewhere.
std::function<bool()> to_stop_flag(const Napi::Value& value);
CropOptions to_crop_options(const Napi::Object& options);  // { panAndScan?: { minCropSize, .. }, tile? }
Box to_box(const Napi::Object& options);                   // { x, y, width, height }
// { data: Uint8Array, width, height, layout, alpha? }: a view of the array, which must stay alive and unchanged. *array:
// the array.
Image to_image(const Napi::Object& options, Napi::Object* array);
// A copy of a Float32Array that JavaScript holds, to be handed to generate or evaluate in place of the array, once. These
// copy all arrays of a prompt at one time; held ones were copied before, with turns of the event loop in between.
Napi::Value hold_rows(Napi::Env env, const Napi::Value& value);
// [{ first: number, embedding: Float32Array, or what hold_rows made of one }], or undefined
std::vector<PromptImage> to_prompt_images(const Napi::Value& value);
EvaluateParams to_evaluate_params(const Napi::Object& params);  // { tokens, images?, all, rows, top, next }
ScoreParams to_score_params(const Napi::Object& params);        // { tokens, images?, candidates, lengths }
// { name, path, peft? }: peft as lib/peft-config.ts makes it.
NamedAdapter to_named_adapter(const Napi::Object& source);
// [{ name, scale }], or undefined
std::vector<AdapterUse> to_adapter_uses(const Napi::Value& value);
SaveParams to_save_params(const Napi::Object& params);
EmbedParams to_embed_params(const Napi::Object& params);    // { tokens, lengths, dimensions, normalize, adapters }
EncodeParams to_encode_params(const Napi::Object& params);  // { pixels: Uint8Array, n: number }

// C++ to JavaScript.
// A typed array of n zeros. *elements: where they are. Throws std::bad_alloc. T: uint8_t, int32_t, float.
template <class T>
Napi::TypedArrayOf<T> make_array(Napi::Env env, size_t n, std::span<T>* elements);
Napi::Value to_js(Napi::Env env, const QuantizeResult& result);
Napi::Value to_js(Napi::Env env, const MergeResult& result);
Napi::Value to_js(Napi::Env env, const ImportanceResult& result);
Napi::Value to_js(Napi::Env env, std::span<const TokenId> tokens);  // Int32Array
Napi::Value to_js(Napi::Env env, const std::vector<Box>& boxes);    // { x, y, width, height }[]
Napi::Value to_js(Napi::Env env, std::span<const uint8_t> bytes);   // Uint8Array
Napi::Value to_js(Napi::Env env, const ModelDescription& model);
Napi::Value to_js(Napi::Env env, const VisionConfig& vision);
Napi::Value to_js(Napi::Env env, const MemoryPlan& memory);
Napi::Value to_js(Napi::Env env, const FileSummary& summary);
Napi::Value to_js(Napi::Env env, const EngineInfo& info);
Napi::Value to_js(Napi::Env env, const EngineStats& stats);
Napi::Value to_js(Napi::Env env, const AdapterInfo& adapter);
Napi::Value to_js(Napi::Env env, const std::vector<DeviceInfo>& devices);
Napi::Value to_js(Napi::Env env, const TokenLogprob& entry);
// { bytes, compileMs }, which to_generate_params knows again.
Napi::Value to_js(Napi::Env env, std::shared_ptr<const Grammar> grammar, bool cached);
Napi::Value to_js(Napi::Env env, const std::vector<TokenLogprob>& entries);
Napi::Object to_js(Napi::Env env,
                   const PositionScores& scores);  // { kind: 'position', position, row?, top?, nextLogprob? }
Napi::Value to_js(Napi::Env env, std::span<const float> values);   // Float32Array
Napi::Value to_js(Napi::Env env, std::span<const double> values);  // Float64Array
// Everything but the error of a kError event, whose class belongs to the environment.
Napi::Object to_js(Napi::Env env, const GenerateEvent& event);

}  // namespace gemma::binding
