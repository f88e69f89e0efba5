// Small vectors of a model (norms, biases, frequencies), gathered on the host and uploaded in one go.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "quant/dequantize.h"
#include "quant/tensor.h"

namespace gemma {

class SmallVectors {
 public:
  // Floats up to where the next vector begins: vectors are aligned to 64 bytes.
  static constexpr size_t aligned(size_t n_floats) { return (n_floats + 15) / 16 * 16; }

  // The address is set by upload().
  void add(const float** field, std::vector<float> values) {
    host_.resize(aligned(host_.size()));
    fields_.push_back({field, host_.size()});
    host_.insert(host_.end(), values.begin(), values.end());
  }
  // All values of the tensor, and zeros up to n_values.
  void add(const float** field, const Tensor& tensor, size_t n_values = 0) {
    size_t n = 1;
    for (const int64_t dim : tensor.shape) n *= static_cast<size_t>(dim);
    std::vector<float> values(n);
    dequantize_row(tensor.type, tensor.data, values.data(), static_cast<int64_t>(n));
    if (n < n_values) values.resize(n_values, 0.0f);
    add(field, std::move(values));
  }
  std::unique_ptr<Buffer> upload(Backend& backend) const {
    std::unique_ptr<Buffer> buffer = backend.allocate(host_.size() * sizeof(float));
    backend.upload(buffer->data(), host_.data(), host_.size() * sizeof(float));
    for (const Field& field : fields_) *field.address = buffer->floats() + field.offset;
    return buffer;
  }

 private:
  struct Field {
    const float** address;
    size_t offset;
  };
  std::vector<float> host_;
  std::vector<Field> fields_;
};

}  // namespace gemma
