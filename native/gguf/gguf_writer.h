// What stands before the tensors of a GGUF file (v3), and where each tensor's bytes go.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gguf/gguf.h"

namespace gemma {

// Keys with their values, in order. Values are copied.
class GgufMetadata {
 public:
  // The value of a key that is there is replaced.
  void set(std::string_view key, const GgufValue& value);
  void set_u32(std::string_view key, uint32_t value);
  void set_i32(std::string_view key, int32_t value);
  void set_f32(std::string_view key, float value);
  void set_bool(std::string_view key, bool value);
  void set_string(std::string_view key, std::string_view value);
  void set_strings(std::string_view key, std::span<const std::string> values);
  void set_i32s(std::string_view key, std::span<const int32_t> values);
  void set_f32s(std::string_view key, std::span<const float> values);
  void set_bools(std::string_view key, const std::vector<bool>& values);
  void remove(std::string_view key);

 private:
  friend struct GgufLayout;
  void put(std::string_view key, std::string encoded);

  std::vector<std::pair<std::string, std::string>> entries_;  // the value as the file stores it, its type before it
};

// A tensor without its values.
struct GgufTensorShape {
  std::string name;
  TensorType type = TensorType::kF32;
  std::vector<int64_t> shape;  // outermost first

  uint64_t bytes() const;
};

struct GgufLayout {
  // alignment: of tensors, a power of two; metadata should say it (general.alignment) where it is not 32.
  GgufLayout(const GgufMetadata& metadata, std::span<const GgufTensorShape> tensors, uint64_t alignment);

  std::string headers;            // up to the first tensor
  std::vector<uint64_t> offsets;  // of each tensor, from the beginning of the file
  uint64_t file_bytes = 0;        // what lies between tensors and after the last one is zero
};

}  // namespace gemma
