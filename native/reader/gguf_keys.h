// What the parts of the GGUF reader share: numbers of the metadata, checked, and the errors that say what is wrong.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "gguf/gguf.h"
#include "model/tensor_source.h"

namespace gemma {

// Throws Error{kGgufInvalid, BAD_HPARAM}.
[[noreturn]] void bad_hparam(const std::string& key, const std::string& message);

// Text of a file as it may stand in a message: quoted, short, printable.
std::string shown(std::string text);

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

// The source keeps the file's weights; the headers go with the file.
void keep_weights(const GgufFile& file, TensorSource& source);

}  // namespace gemma
