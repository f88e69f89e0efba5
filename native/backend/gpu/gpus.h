// The GPUs that this build can use. Which file defines these functions is the build's choice: driver_gpus.cpp for CUDA
// and ROCm, no_gpu.cpp for builds without.
#pragma once

#include <memory>
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

// "cuda", "rocm", or "" for a build without GPUs: what device names begin with.
const char* gpu_kind();
// Looks at the driver and its devices. Never throws Error: what is wrong is in the reasons.
GpuList list_gpus();
// Throws Error{kBackendUnavailable}, kOutOfMemory.
std::unique_ptr<Device> open_gpu(int index);

}  // namespace gemma::gpu
