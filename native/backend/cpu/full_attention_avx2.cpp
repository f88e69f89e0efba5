// Attention without mask or cache with AVX2, in float32 alone: without VNNI a product of 8 bits takes as many
// instructions (sign, multiply, widen, add for 32 of them) as one of floats.
#include "backend/cpu/full_attention.h"
#include "backend/cpu/kernels_avx2.h"
#include "backend/cpu/vector_avx2.h"

namespace gemma::cpu {

const FullAttention kExactAttentionAvx2 = ExactAttention<Vector256>::kKernel;

}  // namespace gemma::cpu
