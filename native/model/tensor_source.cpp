#include "model/tensor_source.h"

#include <unordered_set>

#include "base/error.h"

namespace gemma {

void TensorSource::add(std::string name, const Tensor& tensor) {
  tensors_.push_back(&tensor);
  by_name_.emplace(std::move(name), &tensor);
}

const Tensor* TensorSource::find(std::string_view name) const {
  const auto it = by_name_.find(std::string(name));
  return it == by_name_.end() ? nullptr : it->second;
}

uint64_t TensorSource::bytes() const {
  uint64_t bytes = 0;
  for (const Tensor* tensor : tensors_) bytes += tensor->bytes;
  return bytes;
}

void TensorSource::prefetch(const OnRead& on_read) const {
  if (prefetch_) prefetch_(on_read);
}

void TensorSource::release(std::span<const std::byte> bytes) const {
  if (release_) release_(bytes);
}

void TensorSource::check() const {
  if (check_) check_();
}

void bad_tensor(const std::string& name, const std::string& message) {
  throw Error(ErrorCode::kGgufInvalid, "BAD_TENSOR", "tensor " + name + ": " + message);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

namespace {

[[noreturn]] void unsupported_type(const Tensor& tensor) {
  std::string computed;
  for (const TensorType type : kTensorTypes)
    computed += (computed.empty() ? "" : ", ") + std::string(type_traits(type).name);
  throw Error(ErrorCode::kUnsupportedModel, "TENSOR_TYPE",
              "tensor " + tensor.name + " has the type " + type_traits(tensor.type).name +
                  ", which this version does not compute with; it does with " + computed);
}

}  // namespace

void check_tensors(const TensorSource& source, const std::vector<ExpectedTensor>& expected, const std::string& model) {
  std::unordered_set<const Tensor*> known;
  for (const ExpectedTensor& e : expected) {
    const Tensor* tensor = source.find(e.name);
    if (tensor == nullptr) bad_tensor(e.name, "missing, expected " + shape_text(e.shape));
    known.insert(tensor);
    if (!is_computed_type(tensor->type)) unsupported_type(*tensor);
    if (tensor->shape != e.shape) {
      const std::string difference = "expected " + shape_text(e.shape) + ", file has " + shape_text(tensor->shape);
      if (source.is_split()) {
        throw Error(ErrorCode::kGgufInvalid, "MISSING_SPLIT",
                    "tensor " + tensor->name + ": " + difference + "; are all parts of the same model?");
      }
      bad_tensor(tensor->name, difference);
    }
    if ((e.is_float || e.is_vector()) && !is_float_type(tensor->type))
      bad_tensor(tensor->name, std::string("expected F32, F16 or BF16, file has ") + type_traits(tensor->type).name);
  }
  for (const Tensor* tensor : source.tensors()) {
    if (!known.contains(tensor)) bad_tensor(tensor->name, "no such tensor in " + model);
  }
}

}  // namespace gemma
