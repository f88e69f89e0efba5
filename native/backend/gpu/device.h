// What a GPU is to the backend: memory, copies, and kernels launched in order. The backend (gpu_backend.cpp) knows no
// vendor and a device knows no operation: CUDA and ROCm devices open their driver at run time and launch the symbols of
// kernel_list.h from an embedded blob of kernels.cu; the emulated device runs the same file compiled as C++.
//
// One thread at a time uses a device. All work is in order: what a call starts sees the results of all calls before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "backend/backend.h"
#include "backend/gpu/kernel_list.h"

namespace gemma::gpu {

struct DeviceInfo {
  std::string kind;         // "cuda", "rocm", "emulated"
  int index = 0;            // as in "cuda:0"
  std::string name;         // "NVIDIA H100 80GB HBM3"
  std::string chip;         // "sm_90", "gfx1100"
  int warp = 32;            // lanes of a hardware warp: 32 or 64
  int n_processors = 1;     // streaming multiprocessors or compute units
  size_t shared_bytes = 0;  // of a block, without asking for more: 48 KiB at least
  uint64_t memory_bytes = 0;
};

struct Grid {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

class Device {
 public:
  virtual ~Device() = default;

  virtual const DeviceInfo& info() const = 0;
  virtual uint64_t free_bytes() const = 0;  // of the device's memory, now

  // Uninitialised device memory aligned to 256 bytes, never null. Throws Error{kOutOfMemory}.
  virtual void* allocate(size_t bytes) = 0;
  // Work that still uses the memory ends first. Never throws.
  virtual void free(void* memory) noexcept = 0;

  // Host to device. The source may be changed when the call returns; the copy itself may end later.
  virtual void upload(void* dst, const void* src, size_t bytes) = 0;
  // Device to host; the bytes are there when the call returns.
  virtual void download(void* dst, const void* src, size_t bytes) = 0;
  virtual void copy(void* dst, const void* src, size_t bytes) = 0;  // within the device, no overlap
  virtual void fill(void* dst, uint8_t value, size_t bytes) = 0;

  // Starts kernel with grid blocks of n_threads threads. Every kernel takes one argument, a struct of kernel_list.h, by
  // value: arguments points to it and is copied before the call returns (cuLaunchKernel's kernelParams is
  // {const_cast<void*>(arguments)}). Shared memory is static.
  virtual void launch(Kernel kernel, Grid grid, unsigned n_threads, const void* arguments) = 0;

  // Returns when all work has ended. Throws Error{kBackendUnavailable} for a lost device; so may every other call.
  virtual void synchronize() = 0;
};

// The backend over a device; n_threads repack weights on the host while a model is loaded.
std::unique_ptr<Backend> make_gpu_backend(std::unique_ptr<Device> device, int n_threads);

}  // namespace gemma::gpu
