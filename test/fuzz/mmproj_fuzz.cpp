// libFuzzer entry: any bytes as the file of a vision encoder, for the text models of all sizes, must end in a
// configuration or an Error.
#include <cstddef>
#include <cstdint>
#include <span>

#include "../native/plain_traits.h"
#include "base/error.h"
#include "gguf/gguf.h"
#include "model/memory_plan.h"
#include "reader/gguf_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const gemma::test::PlainTraits traits;
  uint64_t sum = 0;
  try {
    const auto file = gemma::GgufFile::parse({reinterpret_cast<const std::byte*>(data), size});
    // The encoders of the test data, of 4B, 12B and 27B.
    for (const int text_dim : {48, 64, 2560, 3840, 5376}) {
      try {
        const gemma::VisionConfig vision = gemma::read_vision_config(*file, text_dim);
        for (const gemma::Arithmetic arithmetic : {gemma::Arithmetic::kFast, gemma::Arithmetic::kExact}) {
          gemma::MemoryPlanner planner({{&traits, 0, 0}});
          planner.add_vision(*gemma::vision_tensors(file, vision), vision, arithmetic);
          sum += planner.plan().total_bytes;
        }
      } catch (const gemma::Error&) {
      }
    }
  } catch (const gemma::Error&) {
  }
  volatile uint64_t keeps_the_reads = sum;
  static_cast<void>(keeps_the_reads);
  return 0;
}
