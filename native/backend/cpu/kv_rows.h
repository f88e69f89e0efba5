// Rows of the cache as floats. Internal to each file that includes it.
#pragma once

#include <cstddef>
#include <cstring>

namespace gemma::cpu {
namespace {

// Values j.. of a row of head_dim values, as many as V has lanes; zero past its end. j is a multiple of V::kLanes. Load:
// one of V's for rows of the cache (attention_vectors.h).
template <class V, class Load>
inline typename V::Float load_part(const std::byte* row, int j, int head_dim) {
  if (j + V::kLanes <= head_dim) return Load::at(row, static_cast<size_t>(j));
  alignas(64) std::byte rest[V::kLanes * sizeof(float)] = {};
  if (j < head_dim)
    std::memcpy(rest, row + static_cast<size_t>(j) * Load::kValueBytes,
                static_cast<size_t>(head_dim - j) * Load::kValueBytes);
  return Load::at(rest, 0);
}

}  // namespace
}  // namespace gemma::cpu
