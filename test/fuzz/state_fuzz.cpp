// libFuzzer entry: any bytes as the file of a saved state must end in a state or an Error, and take memory only for what
// is there. The first byte says whether the checksums are made right before, so that what is behind them is reached.
// Built with GEMMA_FUZZ and run by scripts/fuzz.mjs.
// test/native/state_test.cpp calls the same function on mutated files, without clang.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "runtime/state_file.h"

// What the seeds of scripts/fuzz.mjs and the tests are made for.
gemma::StateShape state_fuzz_shape() {
  gemma::StateShape shape;
  shape.model = 1;
  shape.arithmetic = 2;
  shape.n_ctx = 100;
  shape.model_dim = 3;
  shape.groups = {{40, 7}, {0, 5}};
  return shape;
}

int state_fuzz_read = 0;  // inputs that were states

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::vector<std::byte> file(size - 1);
  if (!file.empty()) std::memcpy(file.data(), data + 1, file.size());
  if (data[0] % 2 != 0) gemma::seal_state(file);
  const gemma::StateShape shape = state_fuzz_shape();
  try {
    const gemma::State state = gemma::read_state(file.size(), shape, [&](uint64_t offset, std::span<std::byte> out) {
      if (offset > file.size() || out.size() > file.size() - offset) std::abort();
      if (!out.empty()) std::memcpy(out.data(), &file[offset], out.size());
    });
    ++state_fuzz_read;
    if (state.n < 0 || state.tokens.size() > 100 || state.pages.size() != shape.bytes_of_pages(state.n)) std::abort();
    // What was read is written as it was.
    std::vector<std::byte> again;
    gemma::write_state(
        state, shape, [&](std::span<const std::byte> bytes) { again.insert(again.end(), bytes.begin(), bytes.end()); });
    if (state.same_arithmetic && again != file) std::abort();
  } catch (const gemma::Error&) {
  }
  return 0;
}
