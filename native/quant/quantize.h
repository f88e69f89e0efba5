// Values -> stored blocks: what writes files and what quantises weights at load. The bytes of a row depend on its values
// alone, on any machine.
#pragma once

#include <cstdint>

#include "quant/types.h"

namespace gemma {

// F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS.
bool can_quantize(TensorType type);

// Stores the n values of a row (a multiple of the type's block) at dst as blocks of a type that can_quantize() names.
// Without importance the blocks of Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 are those of llama.cpp, byte for byte. importance:
// null, or what the square of an error in each of the n columns costs, >= 0 and finite; floats and Q8_0 do not use it.
// Returns false when a value, or a scale of its block, is not finite in the type: then dst is of no use.
[[nodiscard]] bool quantize_row(TensorType type, const float* src, void* dst, int64_t n,
                                const float* importance = nullptr);

}  // namespace gemma
