// Golden tensors for tests: reads a trusted .safetensors file (8 bytes of header length, a flat JSON header without
// escapes, little-endian data). Not a parser for files of others.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace gemma::test {

struct GoldenTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<char> bytes;

  template <class T>
  std::vector<T> as() const {
    std::vector<T> values(bytes.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
    return values;
  }
};

using GoldenFile = std::map<std::string, GoldenTensor>;

inline GoldenFile read_safetensors(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  uint64_t header_bytes = 0;
  in.read(reinterpret_cast<char*>(&header_bytes), 8);
  if (!in || header_bytes > (64u << 20)) throw std::runtime_error("cannot read golden data " + path);
  std::string header(header_bytes, '\0');
  in.read(header.data(), static_cast<std::streamsize>(header_bytes));

  const auto text_after = [&](const char* key, size_t from) {  // position behind "key":
    const size_t at = header.find(std::string("\"") + key + "\":", from);
    if (at == std::string::npos) throw std::runtime_error(std::string("no ") + key + " in the header of " + path);
    return at + std::strlen(key) + 3;
  };
  const auto numbers = [&](size_t at) {  // [1, 2, 3]
    std::vector<int64_t> all;
    for (at = header.find('[', at) + 1; header[at] != ']';) {
      if (header[at] == ',' || header[at] == ' ') {
        ++at;
        continue;
      }
      char* end = nullptr;
      all.push_back(std::strtoll(header.c_str() + at, &end, 10));
      at = static_cast<size_t>(end - header.c_str());
    }
    return all;
  };

  GoldenFile file;
  size_t at = header.find('{') + 1;
  while ((at = header.find('"', at)) != std::string::npos) {
    const size_t name_end = header.find('"', at + 1);
    const std::string name = header.substr(at + 1, name_end - at - 1);
    const size_t close = header.find('}', name_end);
    if (name != "__metadata__") {
      GoldenTensor t;
      const size_t dtype = header.find('"', text_after("dtype", name_end)) + 1;
      t.dtype = header.substr(dtype, header.find('"', dtype) - dtype);
      t.shape = numbers(text_after("shape", name_end));
      const std::vector<int64_t> range = numbers(text_after("data_offsets", name_end));
      t.bytes.resize(static_cast<size_t>(range.at(1) - range.at(0)));
      in.seekg(static_cast<std::streamoff>(8 + header_bytes) + range[0]);
      in.read(t.bytes.data(), static_cast<std::streamsize>(t.bytes.size()));
      if (!in) throw std::runtime_error("tensor " + name + " is cut in " + path);
      file.emplace(name, std::move(t));
    }
    at = close + 1;
  }
  return file;
}

}  // namespace gemma::test
