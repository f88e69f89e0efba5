// libFuzzer entry: any bytes through the GGUF parser, the configuration and vocabulary of a model and the configuration
// of a vision encoder must end in a value or an Error.
// Built with GEMMA_FUZZ and run by scripts/fuzz.mjs.
// test/native/gguf_test.cpp calls the same function on mutated files, without clang.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "../native/plain_traits.h"
#include "base/error.h"
#include "gguf/gguf.h"
#include "model/memory_plan.h"
#include "reader/gguf_reader.h"

// How far the bytes of one input got: the counts show that mutations reach more than the first check.
struct GgufFuzzCounts {
  int n_parsed = 0;   // files
  int n_models = 0;   // of these: configurations of a model
  int n_visions = 0;  // of these: configurations of a vision encoder
};
GgufFuzzCounts gguf_fuzz_counts;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const gemma::test::PlainTraits traits;
  uint64_t sum = 0;
  std::shared_ptr<const gemma::GgufFile> file;
  int text_dim = 48;
  try {
    file = gemma::GgufFile::parse({reinterpret_cast<const std::byte*>(data), size});
    ++gguf_fuzz_counts.n_parsed;
    // Every byte that the parser vouches for must be readable.
    for (const gemma::Tensor& tensor : file->tensors()) {
      sum += static_cast<uint64_t>(tensor.data[0]) + static_cast<uint64_t>(tensor.data[tensor.bytes - 1]);
    }
    const gemma::ModelConfig config = gemma::read_model_config(*file);
    ++gguf_fuzz_counts.n_models;
    text_dim = config.model_dim;
    gemma::MemoryPlanner planner({{&traits, 0, config.n_layers()}});
    planner.add_model(*gemma::decoder_tensors(file), config, {config.n_ctx_train, gemma::KvType::kQ8_0, 512, true});
    sum += planner.plan().total_bytes;
    for (const std::string_view piece : gemma::read_vocabulary(*file, config.n_vocab).pieces) sum += piece.size();
  } catch (const gemma::Error&) {
    if (file == nullptr) return 0;
  }
  try {
    const gemma::VisionConfig vision = gemma::read_vision_config(*file, text_dim);
    ++gguf_fuzz_counts.n_visions;
    gemma::MemoryPlanner planner({{&traits, 0, 0}});
    planner.add_vision(*gemma::vision_tensors(file, vision), vision, gemma::Arithmetic::kFast);
    sum += planner.plan().total_bytes;
  } catch (const gemma::Error&) {
  }
  volatile uint64_t keeps_the_reads = sum;
  static_cast<void>(keeps_the_reads);
  return 0;
}
