// Rows of a tensor in another type: what is written to a file, and what a model is loaded with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "quant/tensor.h"

namespace gemma {

// Values of a row, and rows.
inline int64_t row_length(const Tensor& tensor) {
  return tensor.shape.back();
}
inline int64_t row_count(const Tensor& tensor) {
  return static_cast<int64_t>(tensor.bytes / row_bytes(tensor.type, tensor.shape.back()));
}

// Makes rows first .. first + n_rows - 1 of tensor at out, as blocks of type, or as they are where it is of that type.
// importance: as of quantize_row(). row: working memory. Throws Error{kNonFinite}.
void quantize_rows(const Tensor& tensor, int64_t first, int64_t n_rows, TensorType type, const float* importance,
                   std::vector<float>& row, std::byte* out);

}  // namespace gemma
