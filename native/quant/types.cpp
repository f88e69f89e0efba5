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

constexpr TypeTraits known(uint32_t type, const char* name, int block_elems, int block_bytes) {
  return {static_cast<TensorType>(type), name, block_elems, block_bytes};
}

// Types of sound files that nothing here computes with.
constexpr TypeTraits kOnlyKnown[] = {
    known(16, "IQ2_XXS", 256, 66), known(17, "IQ2_XS", 256, 74),  known(18, "IQ3_XXS", 256, 98),
    known(19, "IQ1_S", 256, 50),   known(21, "IQ3_S", 256, 110),  known(22, "IQ2_S", 256, 82),
    known(24, "I8", 1, 1),         known(25, "I16", 1, 2),        known(26, "I32", 1, 4),
    known(27, "I64", 1, 8),        known(28, "F64", 1, 8),        known(29, "IQ1_M", 256, 56),
    known(31, "Q4_0_4_4", 32, 18), known(32, "Q4_0_4_8", 32, 18), known(33, "Q4_0_8_8", 32, 18),
    known(34, "TQ1_0", 256, 54),   known(40, "NVFP4", 64, 36),    known(41, "Q1_0", 128, 18),
};

}  // namespace

const TypeTraits* find_type_traits(uint32_t type) {
  for (const TypeTraits& t : kTraits) {
    if (static_cast<uint32_t>(t.type) == type) return &t;
  }
  for (const TypeTraits& t : kOnlyKnown) {
    if (static_cast<uint32_t>(t.type) == type) return &t;
  }
  return nullptr;
}

bool is_computed_type(TensorType type) {
  for (const TensorType t : kTensorTypes) {
    if (t == type) return true;
  }
  return false;
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
