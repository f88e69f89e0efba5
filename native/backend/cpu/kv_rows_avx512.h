// Rows of the cache as floats for AVX-512, internal to each file that includes it (all are compiled with the same flags
// for what is used here).
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "backend/backend.h"
#include "backend/cpu/kv_rows.h"

namespace gemma::cpu {
namespace {

// Values j..j+15 of a row of the cache; j is a multiple of 16.
struct LoadF32 {
  static constexpr size_t kValueBytes = 4;
  static __m512 at(const std::byte* row, size_t j) { return _mm512_loadu_ps(row + j * 4); }
};
struct LoadF16 {
  static constexpr size_t kValueBytes = 2;
  static __m512 at(const std::byte* row, size_t j) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + j * 2)));
  }
};
struct LoadQ8 {
  static constexpr size_t kValueBytes = 0;  // whole blocks: no row ends inside 16 values
  static __m512 at(const std::byte* row, size_t j) {
    const std::byte* block = row + j / 32 * kKvBlockBytes;
    uint16_t half = 0;
    std::memcpy(&half, block, 2);
    const __m512 d = _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
    const __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 2 + j % 32));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)), d);
  }
};

}  // namespace
}  // namespace gemma::cpu
