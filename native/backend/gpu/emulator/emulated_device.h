// A GPU that is not there: the kernels run on the CPU, in the emulator. For tests.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "backend/gpu/device.h"
#include "base/thread_pool.h"

namespace gemma::gpu {

// The kernels as one chip has them.
struct EmulatedChip {
  const char* name;  // "sm_80"
  int warp;
  struct {
    void (*run)(const void* arguments);
    size_t argument_bytes;
  } kernels[kNumKernels];
};

// All that were compiled in.
std::span<const EmulatedChip* const> emulated_chips();

// chip "" is the first. Throws Error{kBackendUnavailable} for one that was not compiled in. memory_bytes limits what
// can be allocated.
std::unique_ptr<Device> make_emulated_device(const std::string& chip, int n_threads,
                                             uint64_t memory_bytes = uint64_t{1} << 40);

}  // namespace gemma::gpu
