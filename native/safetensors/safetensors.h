// safetensors files: bytes -> checked tensor views. Refused and accepted is what the reference (safetensors 0.8) refuses
// and accepts, but for one thing: a key that comes twice is an error always. Every count, offset and product is checked
// against the size of the file before it is used. A failed check throws Error{kSafetensorsInvalid, detail}. Source: the
// format's README and tests with the reference. Error codes: docs/guides/errors.md.
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
#include <utility>
#include <vector>

#include "base/file_map.h"
#include "quant/types.h"

namespace gemma {

// What the elements are: "BF16", and their width. Types of 4 and 6 bits exist.
struct SafetensorsType {
  const char* name;
  int bits;
  std::optional<TensorType> type;  // for what is computed with: F32, F16, BF16
};

// A tensor as its file describes it.
struct SafetensorsTensor {
  std::string name;
  const SafetensorsType* type = nullptr;
  std::vector<int64_t> shape;       // row-major, outermost first; empty for a scalar, may hold 0
  const std::byte* data = nullptr;  // aligned to nothing; null where headers alone were read
  size_t bytes = 0;
  uint64_t offset = 0;          // in the file
  uint64_t offset_in_data = 0;  // from the end of the header
};

class SafetensorsFile {
 public:
  // The header is read into memory, never mapped. Throws Error: kFile, kSafetensorsInvalid, kOutOfMemory, with a message
  // that names the file.
  static std::shared_ptr<const SafetensorsFile> open(const std::string& path, const FileOptions& options = {});
  // Takes the bytes as a whole file (tests, fuzzing). They must outlive the object.
  static std::shared_ptr<const SafetensorsFile> parse(std::span<const std::byte> bytes);  // messages name no file

  // In the order of the header.
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }
  const SafetensorsTensor* find(std::string_view name) const;  // nullptr when absent
  // The header's "__metadata__".
  const std::vector<std::pair<std::string, std::string>>& metadata() const { return metadata_; }
  uint64_t file_bytes() const { return file_bytes_; }

  // Throws as FileMap::check does.
  void check() const;
  // As FileMap::version.
  uint64_t version() const;
  // As FileMap::prefetch.
  void prefetch(const std::function<void(size_t bytes)>& on_read) const;
  // As FileMap::release.
  void release(std::span<const std::byte> bytes) const;

 private:
  SafetensorsFile() = default;
  void read_header(std::string_view header, uint64_t file_bytes);
  void set_data(const std::byte* data);  // of the first tensor

  std::vector<std::pair<std::string, std::string>> metadata_;
  std::vector<SafetensorsTensor> tensors_;
  std::unordered_map<std::string_view, size_t> index_;  // views into tensors_
  uint64_t file_bytes_ = 0;
  uint64_t data_start_ = 0;
  std::optional<FileMap> map_;  // none for headers alone
};

}  // namespace gemma
