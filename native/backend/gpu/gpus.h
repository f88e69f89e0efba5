// The GPUs that this build can use, by kind.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/gpu/device.h"

namespace gemma::gpu {

struct Gpu {
  DeviceInfo info;
  uint64_t free_bytes = 0;
  std::string reason;  // why it cannot be used; "" if it can
};

struct GpuList {
  std::vector<Gpu> gpus;
  std::string reason;  // why there are none; "" where there are some
};

struct GpuKind {
  const char* name;  // "cuda", "rocm", "emulated"
  bool is_emulated;  // for tests: taken when named only; a chip may stand in place of an index
  // Looks at the driver and its devices. What is wrong is in the reasons.
  GpuList (*list)();
  // The backend on a device. Throws Error{kBackendUnavailable}, kOutOfMemory.
  std::unique_ptr<Backend> (*open)(int index, int n_threads);
  // The backend's.
  const BackendTraits& (*traits)();
};

// None in a build for the CPU alone.
std::span<const GpuKind> gpu_kinds();

}  // namespace gemma::gpu
