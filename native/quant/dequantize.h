// Reference values of stored blocks: the plain formulas of the format, kept as the oracle of every kernel.
#pragma once

#include <cstdint>

#include "quant/types.h"

namespace gemma {

// dst[n] = the values of n stored elements at src (n a multiple of the type's block).
void dequantize_row(TensorType type, const void* src, float* dst, int64_t n);

// Quantises n values (a multiple of 32) to Q8_0 blocks at dst. The step of a block is its largest absolute value / 127.
void quantize_row_q8_0(const float* src, void* dst, int64_t n);

// The canonical integer form that every quantised matrix product is defined over. 32 consecutive elements
// (block index b32 within a row) as
//   value[j] = d[j / 16] * (u[j] - offset) + m[j / 16],   u in 0..255
// d and m are float products rounded once (Q4_K: d * scale; m = -(dmin * min)), the offset is a property of the type.
struct Block32 {
  uint8_t u[32];
  float d[2];
  float m[2];
};

struct CanonicalTraits {
  int offset;    // 0, or a power of two: Q3_K 4, Q4_0 8, Q5_0 16, Q6_K 32, Q8_0 and IQ4 128, MXFP4 16, TQ2_0 1
  bool has_min;  // m is used (Q4_1 Q5_1 Q2_K Q4_K Q5_K)
  bool halves;   // d (and m) differ between the two halves of 16 (Q2_K Q3_K Q6_K)
};

// Quantised types only (not F32, F16, BF16).
CanonicalTraits canonical_traits(TensorType type);
void unpack_block32(TensorType type, const void* row, int64_t b32, Block32* out);

}  // namespace gemma
