// Quantisation by search: of blocks whose scales are quantised themselves, and of all blocks where errors have weights.
// What quantize.cpp leaves to it; nobody else includes it.
#pragma once

#include <cstdint>

#include "quant/types.h"

namespace gemma {

bool can_search(TensorType type);

// As quantize_row(), of finite values and a type that can_search() names.
bool quantize_row_by_search(TensorType type, const float* src, uint8_t* dst, int64_t n, const float* importance);

}  // namespace gemma
