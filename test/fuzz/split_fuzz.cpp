// libFuzzer entry: any bytes as the parts of a split file must end in a value or an Error. The first three bytes say
// how many parts there are (1 to 3) and where, in 256ths of the rest, one ends and the next begins.
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/error.h"
#include "gguf/gguf.h"

namespace {

// Every worker has its own folder, removed when it ends.
struct Folder {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("gemma-split-fuzz-" + std::to_string(getpid()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Folder folder;
  if (size < 3) return 0;
  const int n_parts = 1 + data[0] % 3;
  const size_t first = data[1];
  const size_t second = data[2];
  data += 3;
  size -= 3;
  size_t begin = 0;
  std::string paths[3];
  for (int i = 0; i < n_parts; ++i) {
    const size_t end = i == n_parts - 1 ? size : std::max(begin, size * (i == 0 ? first : second) / 256);
    char name[64];
    std::snprintf(name, sizeof(name), "m-%05d-of-%05d.gguf", i + 1, n_parts);
    paths[i] = (folder.path / name).string();
    std::ofstream out(paths[i], std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(data + begin), static_cast<std::streamsize>(end - begin));
    begin = end;
  }
  uint64_t sum = 0;
  try {
    gemma::FileOptions options;
    options.mmap = false;
    const auto file = gemma::GgufFile::open(paths[0], options);
    for (const gemma::Tensor& tensor : file->tensors()) {
      sum += static_cast<uint64_t>(tensor.data[0]) + static_cast<uint64_t>(tensor.data[tensor.bytes - 1]);
    }
  } catch (const gemma::Error&) {
  }
  volatile uint64_t keeps_the_reads = sum;
  static_cast<void>(keeps_the_reads);
  return 0;
}
