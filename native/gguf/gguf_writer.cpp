// Source: the GGUF specification.
#include "gguf/gguf_writer.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace gemma {
namespace {

static_assert(std::endian::native == std::endian::little);

template <class T>
void append(std::string& out, const T& value) {
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out.append(bytes, sizeof value);
}

void append_string(std::string& out, std::string_view text) {
  append(out, static_cast<uint64_t>(text.size()));
  out.append(text);
}

void append_type(std::string& out, GgufType type) {
  append(out, static_cast<uint32_t>(type));
}

template <class T>
std::string encoded(GgufType type, const T& value) {
  std::string out;
  append_type(out, type);
  append(out, value);
  return out;
}

std::string encoded_array(GgufType type, uint64_t count) {
  std::string out;
  append_type(out, GgufType::kArray);
  append_type(out, type);
  append(out, count);
  return out;
}

uint64_t aligned(uint64_t n, uint64_t alignment) {
  return (n + alignment - 1) / alignment * alignment;
}

}  // namespace

void GgufMetadata::put(std::string_view key, std::string encoded) {
  const auto found = std::ranges::find(entries_, key, [](const auto& entry) { return std::string_view(entry.first); });
  if (found != entries_.end()) {
    found->second = std::move(encoded);
  } else {
    entries_.emplace_back(key, std::move(encoded));
  }
}

void GgufMetadata::set(std::string_view key, const GgufValue& value) {
  std::string out;
  if (value.is_array) {
    out = encoded_array(value.type, value.count);
  } else {
    append_type(out, value.type);
  }
  if (value.type != GgufType::kString) {
    out.append(reinterpret_cast<const char*>(value.raw.data()), value.raw.size());
  } else if (value.is_array) {
    for (const std::string_view text : value.strings) append_string(out, text);
  } else {
    append_string(out, value.string);
  }
  put(key, std::move(out));
}

void GgufMetadata::set_u32(std::string_view key, uint32_t value) {
  put(key, encoded(GgufType::kU32, value));
}

void GgufMetadata::set_i32(std::string_view key, int32_t value) {
  put(key, encoded(GgufType::kI32, value));
}

void GgufMetadata::set_f32(std::string_view key, float value) {
  put(key, encoded(GgufType::kF32, value));
}

void GgufMetadata::set_bool(std::string_view key, bool value) {
  put(key, encoded(GgufType::kBool, static_cast<uint8_t>(value)));
}

void GgufMetadata::set_string(std::string_view key, std::string_view value) {
  std::string out;
  append_type(out, GgufType::kString);
  append_string(out, value);
  put(key, std::move(out));
}

void GgufMetadata::set_strings(std::string_view key, std::span<const std::string> values) {
  std::string out = encoded_array(GgufType::kString, values.size());
  for (const std::string& text : values) append_string(out, text);
  put(key, std::move(out));
}

void GgufMetadata::set_i32s(std::string_view key, std::span<const int32_t> values) {
  std::string out = encoded_array(GgufType::kI32, values.size());
  for (const int32_t value : values) append(out, value);
  put(key, std::move(out));
}

void GgufMetadata::set_f32s(std::string_view key, std::span<const float> values) {
  std::string out = encoded_array(GgufType::kF32, values.size());
  for (const float value : values) append(out, value);
  put(key, std::move(out));
}

void GgufMetadata::set_bools(std::string_view key, const std::vector<bool>& values) {
  std::string out = encoded_array(GgufType::kBool, values.size());
  for (const bool value : values) append(out, static_cast<uint8_t>(value));
  put(key, std::move(out));
}

void GgufMetadata::remove(std::string_view key) {
  std::erase_if(entries_, [&](const auto& entry) { return entry.first == key; });
}

uint64_t GgufTensorShape::bytes() const {
  uint64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= static_cast<uint64_t>(shape[i]);
  return rows * row_bytes(type, shape.back());
}

GgufLayout::GgufLayout(const GgufMetadata& metadata, std::span<const GgufTensorShape> tensors, uint64_t alignment) {
  headers = "GGUF";
  append(headers, uint32_t{3});
  append(headers, static_cast<uint64_t>(tensors.size()));
  append(headers, static_cast<uint64_t>(metadata.entries_.size()));
  for (const auto& [key, encoded] : metadata.entries_) {
    append_string(headers, key);
    headers += encoded;
  }
  uint64_t at = 0;  // from the first tensor
  for (const GgufTensorShape& tensor : tensors) {
    append_string(headers, tensor.name);
    append(headers, static_cast<uint32_t>(tensor.shape.size()));
    for (size_t i = tensor.shape.size(); i-- > 0;) append(headers, static_cast<uint64_t>(tensor.shape[i]));
    append(headers, static_cast<uint32_t>(tensor.type));
    append(headers, at);
    offsets.push_back(at);
    at = aligned(at + tensor.bytes(), alignment);
  }
  headers.resize(aligned(headers.size(), alignment), '\0');
  for (uint64_t& offset : offsets) offset += headers.size();
  file_bytes = headers.size() + at;
}

}  // namespace gemma
