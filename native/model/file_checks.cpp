#include "model/file_checks.h"

#include <algorithm>
#include <cstdio>

#include "base/error.h"

namespace gemma {
namespace {

std::string number_text(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", x);
  return text;
}

}  // namespace

void bad_hparam(const std::string& key, const std::string& message) {
  throw Error(ErrorCode::kGgufInvalid, "BAD_HPARAM", "metadata \"" + key + "\": " + message);
}

void bad_tensor(const std::string& name, const std::string& message) {
  throw Error(ErrorCode::kGgufInvalid, "BAD_TENSOR", "tensor " + name + ": " + message);
}

std::string shown(std::string text) {
  text.resize(std::min<size_t>(text.size(), 64));
  for (char& c : text) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  return "\"" + text + "\"";
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

std::optional<int> Keys::find_int(const std::string& name, int min, int max) const {
  const std::optional<int64_t> value = file_.find_int(full(name));
  if (!value) return std::nullopt;
  if (*value < min || *value > max) {
    bad_hparam(full(name),
               "expected " + std::to_string(min) + " to " + std::to_string(max) + ", found " + std::to_string(*value));
  }
  return static_cast<int>(*value);
}

std::optional<float> Keys::find_float(const std::string& name, double min, double max) const {
  const std::optional<double> value = file_.find_float(full(name));
  if (!value) return std::nullopt;
  if (!(*value >= min && *value <= max)) {  // NaN fails too
    bad_hparam(full(name),
               "expected " + number_text(min) + " to " + number_text(max) + ", found " + number_text(*value));
  }
  return static_cast<float>(*value);
}

int Keys::need_int(const std::string& name, int min, int max) const {
  const std::optional<int> value = find_int(name, min, max);
  if (!value) bad_hparam(full(name), "missing, expected " + std::to_string(min) + " to " + std::to_string(max));
  return *value;
}

bool is_vision_tensor(std::string_view name) {
  return name.starts_with("v.") || name.starts_with("mm.");
}

const GgufTensor* check_tensor(const GgufFile& file, const ExpectedTensor& expected) {
  const GgufTensor* tensor = file.find_tensor(expected.name);
  if (tensor == nullptr) {
    if (expected.optional) return nullptr;
    bad_tensor(expected.name, "missing, expected " + shape_text(expected.shape));
  }
  if (tensor->shape != expected.shape) {
    const std::string difference = "expected " + shape_text(expected.shape) + ", file has " + shape_text(tensor->shape);
    if (file.find_int("split.count").value_or(0) > 1) {
      throw Error(ErrorCode::kGgufInvalid, "MISSING_SPLIT",
                  "tensor " + expected.name + ": " + difference + "; are all parts of the same model?");
    }
    bad_tensor(expected.name, difference);
  }
  if (expected.is_vector() && !is_float_type(tensor->type)) {
    bad_tensor(expected.name, std::string("expected F32, F16 or BF16, file has ") + type_traits(tensor->type).name);
  }
  return tensor;
}

}  // namespace gemma
