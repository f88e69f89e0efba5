// libFuzzer entry: a safetensors file, or a JSON text. The first byte of an input says what the rest is; it must end in
// a value or an Error. Built with GEMMA_FUZZ and run by scripts/fuzz.mjs.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/error.h"
#include "base/json.h"
#include "safetensors/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
  uint64_t sum = 0;
  try {
    if (data[0] % 2 == 0) {
      const auto file = gemma::SafetensorsFile::parse(bytes);
      // Every byte that the parser vouches for must be readable.
      for (const gemma::SafetensorsTensor& tensor : file->tensors()) {
        if (tensor.bytes > 0)
          sum += static_cast<uint64_t>(tensor.data[0]) + static_cast<uint64_t>(tensor.data[tensor.bytes - 1]);
      }
    } else {
      const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      gemma::JsonReader json(text, {.code = gemma::ErrorCode::kSafetensorsInvalid, .detail = "BAD_JSON"});
      json.skip();
      json.end();
    }
  } catch (const gemma::Error&) {
  }
  volatile uint64_t keeps_the_reads = sum;
  static_cast<void>(keeps_the_reads);
  return 0;
}
