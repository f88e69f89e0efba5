// Logits of one position as the forward pass hands them out: of every id, or only of those that can matter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace gemma {

struct Logits {
  std::span<float> values;          // [n_vocab], or one for each of tokens; may be changed in place
  std::span<const int32_t> tokens;  // empty: values[id] for every id
  size_t n_always = 0;              // so many of tokens, the first, are what TopRows::always asked for
};

}  // namespace gemma
