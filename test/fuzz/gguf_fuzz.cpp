// libFuzzer entry: any bytes through the GGUF parser and the configurations of a model and of a vision encoder must end
// in a value or an Error.
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Inative -o gguf_fuzz
//     test/fuzz/gguf_fuzz.cpp native/gguf/gguf.cpp native/model/config.cpp native/model/file_checks.cpp
//     native/model/vision_config.cpp native/quant/types.cpp native/base/error.cpp native/base/file_map.cpp
//   gguf_fuzz -max_len=65536 CORPUS
// test/native/gguf_test.cpp calls the same function on mutated files, without clang.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/error.h"
#include "gguf/gguf.h"
#include "model/config.h"
#include "model/vision_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  uint64_t sum = 0;
  std::shared_ptr<const gemma::GgufFile> file;
  int text_dim = 48;
  try {
    file = gemma::GgufFile::parse({reinterpret_cast<const std::byte*>(data), size});
    // Every byte that the parser vouches for must be readable.
    for (const gemma::GgufTensor& tensor : file->tensors()) {
      sum += static_cast<uint64_t>(tensor.data[0]) + static_cast<uint64_t>(tensor.data[tensor.bytes - 1]);
    }
    const gemma::ModelConfig config = gemma::read_model_config(*file);
    sum += gemma::plan_memory(*file, config, config.n_ctx_train, gemma::KvType::kQ8_0, 512, true).total_bytes;
    text_dim = config.model_dim;
  } catch (const gemma::Error&) {
    if (file == nullptr) return 0;
  }
  try {
    const gemma::VisionConfig vision = gemma::read_vision_config(*file, text_dim);
    sum += gemma::plan_vision_bytes(*file, vision, true);
  } catch (const gemma::Error&) {
  }
  volatile uint64_t keeps_the_reads = sum;
  static_cast<void>(keeps_the_reads);
  return 0;
}
