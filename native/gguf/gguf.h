// GGUF files (v2 and v3, little endian, single or split): bytes -> checked metadata and tensor views.
// Every count, length, offset and product is checked against the size of the file before it is used. A failed check
// throws Error{kGgufInvalid, detail}. Source: the GGUF specification. Error codes: docs/guides/errors.md.
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

#include "base/file_map.h"
#include "quant/tensor.h"

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

struct GgufPart;

// The tensors of a model and the bytes that they lie in. They stay when the headers are given back.
struct GgufWeights {
  std::vector<Tensor> tensors;
  std::vector<FileMap> maps;  // a part each; none for headers alone
  uint64_t file_bytes = 0;    // all parts

  // Throws as FileMap::check does.
  void check() const;
  // Of all parts, as FileMap::version.
  uint64_t version() const;
  // Brings mapped weights into memory, as FileMap::prefetch does. on_read gets the fraction that is there.
  void prefetch(const std::function<void(double fraction)>& on_read) const;
  // As FileMap::release.
  void release(std::span<const std::byte> bytes) const;
};

class GgufFile {
 public:
  // path: a file; for a split model the first part, its siblings are found by name. Headers are read into memory, never
  // mapped. Throws Error: kFile, kGgufInvalid, kUnsupportedModel (TENSOR_TYPE), with a message that names the file.
  static std::shared_ptr<const GgufFile> open(const std::string& path, const FileOptions& options = {});
  // Takes the bytes as a whole file (tests, fuzzing). They must outlive the object.
  static std::shared_ptr<const GgufFile> parse(std::span<const std::byte> bytes);  // messages name no file

  const GgufValue* find(std::string_view key) const;  // nullptr when absent
  const Tensor* find_tensor(std::string_view name) const;
  const std::vector<Tensor>& tensors() const { return weights_->tensors; }
  std::shared_ptr<const GgufWeights> weights() const { return weights_; }
  const std::vector<std::pair<std::string, GgufValue>>& metadata() const { return metadata_; }
  uint32_t version() const { return version_; }
  uint64_t file_bytes() const { return weights_->file_bytes; }  // all parts

  // Typed reads. An absent key is nullopt, a value of another type BAD_TYPE. Integers of any width
  // convert if the value fits.
  std::optional<int64_t> find_int(std::string_view key) const;
  std::optional<double> find_float(std::string_view key) const;
  std::optional<bool> find_bool(std::string_view key) const;
  std::optional<std::string> find_string(std::string_view key) const;

 private:
  GgufFile() = default;
  void open_siblings(const std::string& path, int64_t n_parts, const FileOptions& options);
  GgufPart open_part(const std::string& path, const FileOptions& options, const std::byte** data);
  void check_sibling(const GgufPart& part, int64_t index) const;
  void add_metadata(GgufPart* part);
  // data: where the file's data start; null where headers alone are read.
  void add_tensors(const GgufPart& part, const std::byte* data);

  std::vector<std::vector<std::byte>> headers_;  // of each part; metadata and indices have views into them
  std::vector<std::pair<std::string, GgufValue>> metadata_;
  std::unordered_map<std::string_view, size_t> metadata_index_;
  std::unordered_map<std::string_view, size_t> tensor_index_;
  std::shared_ptr<GgufWeights> weights_ = std::make_shared<GgufWeights>();
  uint32_t version_ = 0;
};

}  // namespace gemma
