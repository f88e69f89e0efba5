// What the readers of model files share: limits on hyper-parameters, expected tensors, and the errors that say what is
// wrong with a file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/gguf.h"

namespace gemma {

// Throw Error{kGgufInvalid} with detail BAD_HPARAM or BAD_TENSOR.
[[noreturn]] void bad_hparam(const std::string& key, const std::string& message);
[[noreturn]] void bad_tensor(const std::string& name, const std::string& message);

// Text of a file as it may stand in a message: quoted, short, printable.
std::string shown(std::string text);
std::string shape_text(const std::vector<int64_t>& shape);  // "[1024, 640]"

// Numbers of one section of the metadata, checked.
class Keys {
 public:
  // prefix: "gemma3."
  Keys(const GgufFile& file, std::string prefix) : file_(file), prefix_(std::move(prefix)) {}

  std::string full(const std::string& name) const { return prefix_ + name; }
  // Absent: nullopt. Outside min..max (or NaN): BAD_HPARAM. Of another type: BAD_TYPE.
  std::optional<int> find_int(const std::string& name, int min, int max) const;
  std::optional<float> find_float(const std::string& name, double min, double max) const;
  // Absent: BAD_HPARAM.
  int need_int(const std::string& name, int min, int max) const;

 private:
  const GgufFile& file_;
  std::string prefix_;
};

struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;  // outermost first
  bool optional = false;

  bool is_vector() const { return shape.size() == 1; }
};

// A tensor of the vision half of a file that holds both.
bool is_vision_tensor(std::string_view name);

// The tensor, null when it is optional and absent. Missing, of another shape, or a vector of a type that is no float:
// BAD_TENSOR; in a split model another shape is MISSING_SPLIT, because later parts repeat no metadata, so that a part
// of another model first shows here.
const GgufTensor* check_tensor(const GgufFile& file, const ExpectedTensor& expected);

}  // namespace gemma
