// Block geometry of the tensor types. Source: gguf-py's GGML_QUANT_SIZES.
#include "quant/types.h"

#include <string>

#include "base/error.h"

namespace gemma {
namespace {

constexpr TypeTraits kTraits[] = {
    {TensorType::kF32, "F32", 1, 4},           {TensorType::kF16, "F16", 1, 2},
    {TensorType::kBF16, "BF16", 1, 2},         {TensorType::kQ4_0, "Q4_0", 32, 18},
    {TensorType::kQ4_1, "Q4_1", 32, 20},       {TensorType::kQ5_0, "Q5_0", 32, 22},
    {TensorType::kQ5_1, "Q5_1", 32, 24},       {TensorType::kQ8_0, "Q8_0", 32, 34},
    {TensorType::kQ2_K, "Q2_K", 256, 84},      {TensorType::kQ3_K, "Q3_K", 256, 110},
    {TensorType::kQ4_K, "Q4_K", 256, 144},     {TensorType::kQ5_K, "Q5_K", 256, 176},
    {TensorType::kQ6_K, "Q6_K", 256, 210},     {TensorType::kIQ4_NL, "IQ4_NL", 32, 18},
    {TensorType::kIQ4_XS, "IQ4_XS", 256, 136}, {TensorType::kMXFP4, "MXFP4", 32, 17},
    {TensorType::kTQ2_0, "TQ2_0", 256, 66},
};
static_assert(sizeof(kTraits) / sizeof(kTraits[0]) == sizeof(kTensorTypes) / sizeof(kTensorTypes[0]));

}  // namespace

const TypeTraits* find_type_traits(uint32_t type) {
  for (const TypeTraits& t : kTraits) {
    if (static_cast<uint32_t>(t.type) == type) return &t;
  }
  return nullptr;
}

const TypeTraits& type_traits(TensorType type) {
  const TypeTraits* t = find_type_traits(static_cast<uint32_t>(type));
  if (t == nullptr) {
    throw Error(ErrorCode::kInternal, "",
                "tensor type " + std::to_string(static_cast<uint32_t>(type)) + " has no traits");
  }
  return *t;
}

}  // namespace gemma
