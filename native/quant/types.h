// Tensor element types of GGUF and their block geometry. Source: the GGUF specification and gguf-py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gemma {

enum class TensorType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ4_NL = 20,
  kIQ4_XS = 23,
  kBF16 = 30,
  kTQ2_0 = 35,
  kMXFP4 = 39,
};

inline constexpr TensorType kTensorTypes[] = {
    TensorType::kF32,   TensorType::kF16,  TensorType::kQ4_0,   TensorType::kQ4_1,   TensorType::kQ5_0,
    TensorType::kQ5_1,  TensorType::kQ8_0, TensorType::kQ2_K,   TensorType::kQ3_K,   TensorType::kQ4_K,
    TensorType::kQ5_K,  TensorType::kQ6_K, TensorType::kIQ4_NL, TensorType::kIQ4_XS, TensorType::kBF16,
    TensorType::kTQ2_0, TensorType::kMXFP4};

struct TypeTraits {
  TensorType type;
  const char* name;  // "Q4_0"
  int block_elems;   // elements in a block
  int block_bytes;   // bytes of a block
};

// Of the types that are computed with, and of those that are only known: a file that holds these is sound, but nothing
// can be done with it. Returns nullptr for a number that is neither.
const TypeTraits* find_type_traits(uint32_t type);
// Whether the type is one of kTensorTypes.
bool is_computed_type(TensorType type);
const TypeTraits& type_traits(TensorType type);

inline bool is_float_type(TensorType type) {
  return type == TensorType::kF32 || type == TensorType::kF16 || type == TensorType::kBF16;
}

// Bytes of a row of n elements; n must be a multiple of the block.
inline size_t row_bytes(TensorType type, int64_t n) {
  const TypeTraits& t = type_traits(type);
  return static_cast<size_t>(n / t.block_elems) * static_cast<size_t>(t.block_bytes);
}

}  // namespace gemma
