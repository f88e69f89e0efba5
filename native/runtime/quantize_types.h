// Which tensor of a model is stored in which type. The rules are llama.cpp's (llama-quant.cpp) for the architectures that
// are read here, so that files of the same name hold the same types.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quant/types.h"

namespace gemma {

// What a whole file is asked to be.
struct FileQuantization {
  const char* name;    // "q4_k_m"
  TensorType type;     // of most tensors
  bool mixed;          // some tensors get more bits
  uint32_t file_type;  // general.file_type
};
std::span<const FileQuantization> file_quantizations();
// Any case. Null for another name.
const FileQuantization* find_file_quantization(std::string_view name);
// Throws Error{kInvalidArgument, UNKNOWN_TYPE} for another name, which stands in what option is called.
const FileQuantization& need_file_quantization(const std::string& name, const char* option);
// A type that quantize_row() makes: "q6_k", any case.
std::optional<TensorType> find_quantizable_type(std::string_view name);

// `pattern`, with * for any text and ? for any character, names a tensor with or without ".weight" at its end.
bool pattern_names(std::string_view pattern, std::string_view tensor);
struct TypeOverride {
  std::string pattern;
  TensorType type = TensorType::kF16;
};

// What the rules ask of a model.
struct QuantizedModel {
  int heads_per_kv_head = 1;
  bool has_importance = false;
};

struct TensorToPlan {
  std::string name;
  TensorType type = TensorType::kF32;
  std::vector<int64_t> shape;  // outermost first
};

struct PlannedType {
  TensorType type = TensorType::kF32;
  TensorType wanted = TensorType::kF32;  // other than type where rows of the tensor do not fit its blocks
};

// The type of each tensor. Vectors, norms and what the vision encoder adds to pictures keep theirs. The first override
// that names a tensor counts. Throws Error{kInvalidArgument, NO_SUCH_TENSOR} for an override that names no tensor whose
// type can be chosen.
std::vector<PlannedType> plan_types(std::span<const TensorToPlan> tensors, const QuantizedModel& model,
                                    const FileQuantization& quantization, std::span<const TypeOverride> overrides);

}  // namespace gemma
