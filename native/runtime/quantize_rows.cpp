#include "runtime/quantize_rows.h"

#include <cstring>
#include <string>

#include "base/error.h"
#include "quant/dequantize.h"
#include "quant/quantize.h"

namespace gemma {

void quantize_rows(const Tensor& tensor, int64_t first, int64_t n_rows, TensorType type, const float* importance,
                   std::vector<float>& row, std::byte* out) {
  const int64_t n = row_length(tensor);
  const size_t source_bytes = row_bytes(tensor.type, n);
  const size_t bytes = row_bytes(type, n);
  const std::byte* from = tensor.data + static_cast<size_t>(first) * source_bytes;
  if (tensor.type == type) {
    std::memcpy(out, from, static_cast<size_t>(n_rows) * bytes);
    return;
  }
  row.resize(static_cast<size_t>(n));
  for (int64_t i = 0; i < n_rows; ++i) {
    dequantize_row(tensor.type, from + static_cast<size_t>(i) * source_bytes, row.data(), n);
    if (quantize_row(type, row.data(), out + static_cast<size_t>(i) * bytes, n, importance)) continue;
    throw Error(ErrorCode::kNonFinite, "",
                "tensor " + tensor.name + ", row " + std::to_string(first + i) + ": a value is not finite as " +
                    type_traits(type).name);
  }
}

}  // namespace gemma
