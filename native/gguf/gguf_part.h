// One file of a model: its headers, read and checked. What gguf.cpp puts together into a model; nobody else includes it.
#pragma once

#include <cstring>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "gguf/gguf.h"

namespace gemma {

// Throws Error{kGgufInvalid}.
[[noreturn]] void gguf_invalid(const char* detail, const std::string& message);
// Throws BAD_TYPE.
[[noreturn]] void gguf_wrong_type(std::string_view key, const char* expected, const GgufValue& value);
// The value as an integer; BAD_TYPE when it is none or too large.
int64_t gguf_int(std::string_view key, const GgufValue& value);

template <class T>
T gguf_load(const std::byte* p) {  // p is unaligned in general
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// A tensor as its file describes it.
struct GgufTensorInfo {
  std::string_view name;
  TensorType type = TensorType::kF32;
  std::vector<int64_t> shape;  // outermost first
  uint64_t offset = 0;         // from the start of the data
  uint64_t bytes = 0;
};

// The headers of the whole model, or of one part of a split model. Views point into the bytes that they were read from.
struct GgufPart {
  uint64_t file_bytes = 0;
  uint32_t version = 0;
  std::vector<std::pair<std::string_view, GgufValue>> metadata;
  std::unordered_map<std::string_view, size_t> metadata_index;
  std::vector<GgufTensorInfo> tensors;
  uint64_t data_start = 0;  // may lie past the end of a file without tensors

  const GgufValue* find(std::string_view key) const {
    const auto it = metadata_index.find(key);
    return it == metadata_index.end() ? nullptr : &metadata[it->second].second;
  }
  std::optional<int64_t> find_int(std::string_view key) const {
    const GgufValue* value = find(key);
    return value == nullptr ? std::nullopt : std::optional<int64_t>(gguf_int(key, *value));
  }
};

// bytes: the beginning of a file of file_bytes bytes. Messages do not name the file. Throws MoreBytesNeeded when the
// headers go on past the bytes.
GgufPart read_gguf_part(std::span<const std::byte> bytes, uint64_t file_bytes);
struct MoreBytesNeeded : std::exception {
  explicit MoreBytesNeeded(uint64_t bytes) : n(bytes) {}
  uint64_t n;  // at least so many bytes of the file, at most its size
};

}  // namespace gemma
