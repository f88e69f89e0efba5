// A tensor as a file stores it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "quant/types.h"

namespace gemma {

struct Tensor {
  std::string name;  // in the file
  TensorType type = TensorType::kF32;
  std::vector<int64_t> shape;       // row-major, outermost first; at least one
  const std::byte* data = nullptr;  // null where headers alone were read
  size_t bytes = 0;
  bool is_copy = false;  // memory of its own, no pages of a file
};

}  // namespace gemma
