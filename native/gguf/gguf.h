// GGUF files (v2 and v3, little endian, single or split): bytes -> checked metadata and tensor views.
// Every count, length, offset and product is checked against the bytes that are there before it is used; what fails
// throws Error{kGgufInvalid, detail}. Source: the GGUF specification; limits and details as in docs of error codes
// (README).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "quant/types.h"

namespace gemma {

enum class GgufType : uint32_t {
  kU8 = 0,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};

// One metadata value. Scalars, or an array of scalars or strings; strings are views into the file.
struct GgufValue {
  GgufType type = GgufType::kU8;  // element type for an array
  bool is_array = false;
  uint64_t count = 1;                     // items
  std::span<const std::byte> raw;         // scalar bytes of all items (not for strings); unaligned
  std::string_view string;                // scalar string
  std::vector<std::string_view> strings;  // string array
};

struct GgufTensor {
  std::string name;
  TensorType type = TensorType::kF32;
  std::vector<int64_t> shape;  // row-major, outermost first (the file's dimensions reversed); at least one
  const std::byte* data = nullptr;
  size_t bytes = 0;
};

struct GgufOpenOptions {
  bool mmap = true;  // false: read into memory (for files that may change underneath)
  bool headers_only =
      false;  // metadata and tensor infos; data pointers stay null (but sizes are checked against the file)
};

class GgufFile {
 public:
  // path: a file; for a split model the first part, its siblings are found by name. Throws Error (kFile, kGgufInvalid).
  static std::shared_ptr<const GgufFile> open(const std::string& path, const GgufOpenOptions& options = {});
  // Takes the bytes as a whole file (tests, fuzzing). They must outlive the object.
  static std::shared_ptr<const GgufFile> parse(std::span<const std::byte> bytes);

  virtual ~GgufFile() = default;

  const GgufValue* find(std::string_view key) const;  // nullptr when absent
  const GgufTensor* find_tensor(std::string_view name) const;
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const std::vector<std::pair<std::string, GgufValue>>& metadata() const { return metadata_; }
  uint32_t version() const { return version_; }
  uint64_t file_bytes() const { return file_bytes_; }  // all parts

  // Typed reads. Absent: nullopt. Present with another type (integers of any width convert when the value fits):
  // BAD_TYPE.
  std::optional<int64_t> find_int(std::string_view key) const;
  std::optional<double> find_float(std::string_view key) const;
  std::optional<bool> find_bool(std::string_view key) const;
  std::optional<std::string> find_string(std::string_view key) const;

  // Brings the mapped weights into memory, as FileMap::prefetch does. on_read gets the fraction that is there.
  virtual void prefetch(const std::function<void(double fraction)>& /*on_read*/) const {}

 protected:
  GgufFile() = default;
  std::vector<std::pair<std::string, GgufValue>> metadata_;
  std::unordered_map<std::string_view, size_t> metadata_index_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> tensor_index_;
  uint32_t version_ = 0;
  uint64_t file_bytes_ = 0;
};

}  // namespace gemma
