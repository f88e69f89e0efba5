// Ids of tokens that stand for something else than text.
#pragma once

#include <cstdint>

namespace gemma {

// Stands among the tokens of a sequence for a row of an image. Never guessed.
inline constexpr int32_t kImageToken = -1;

}  // namespace gemma
