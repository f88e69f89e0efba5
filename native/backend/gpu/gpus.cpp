#include "backend/gpu/gpus.h"

#if defined GEMMA_GPU_DRIVER || defined GEMMA_EMULATED_DEVICE
#include "backend/gpu/gpu_traits.h"
#endif
#ifdef GEMMA_GPU_DRIVER
#include "backend/gpu/driver_device.h"
#include "base/error.h"
#endif
#ifdef GEMMA_EMULATED_DEVICE
#include <cstdlib>

#include "backend/gpu/emulator/emulated_device.h"
#endif

namespace gemma::gpu {
namespace {

#ifdef GEMMA_GPU_DRIVER
std::shared_ptr<Driver> open_driver() {
  return std::string(GEMMA_BACKEND_NAME) == "rocm" ? open_hip_driver() : open_cuda_driver();
}

GpuList list_devices() {
  GpuList list;
  try {
    const std::shared_ptr<Driver> driver = open_driver();
    for (const DeviceInfo& info : driver->devices()) {
      Gpu& gpu = list.gpus.emplace_back();
      gpu.info = info;
      try {
        // All the way: a device that is busy elsewhere, or damaged, shows here.
        gpu.free_bytes = open_driver_device(driver, info.index, device_images())->free_bytes();
      } catch (const Error& error) {
        gpu.reason = error.what();
      }
    }
    if (list.gpus.empty()) list.reason = "the driver shows no GPU";
  } catch (const Error& error) {
    list.gpus.clear();
    list.reason = error.what();
  }
  return list;
}

std::unique_ptr<Backend> open_device(int index, int n_threads) {
  return make_gpu_backend(open_driver_device(open_driver(), index, device_images()), n_threads);
}
#endif

#ifdef GEMMA_EMULATED_DEVICE
// Of each emulated device: what tests set, or more than anything needs.
uint64_t emulated_bytes() {
  const char* bytes = std::getenv("GEMMA_EMULATED_BYTES");
  return bytes != nullptr ? std::strtoull(bytes, nullptr, 10) : uint64_t{1} << 40;
}

GpuList list_emulated() {
  GpuList list;
  for (const EmulatedChip* chip : emulated_chips()) {
    Gpu& gpu = list.gpus.emplace_back();
    gpu.info.kind = "emulated";
    gpu.info.index = static_cast<int>(list.gpus.size()) - 1;
    gpu.info.name = std::string("emulated ") + chip->name;
    gpu.info.chip = chip->name;
    gpu.info.warp = chip->warp;
    gpu.info.memory_bytes = gpu.free_bytes = emulated_bytes();
  }
  return list;
}

std::unique_ptr<Backend> open_emulated(int index, int n_threads) {
  const EmulatedChip& chip = *emulated_chips()[static_cast<size_t>(index)];
  return make_gpu_backend(make_emulated_device(chip.name, n_threads, emulated_bytes()), n_threads);
}
#endif

}  // namespace

std::span<const GpuKind> gpu_kinds() {
#if defined GEMMA_GPU_DRIVER || defined GEMMA_EMULATED_DEVICE
  static const GpuKind kKinds[] = {
#ifdef GEMMA_GPU_DRIVER
      {GEMMA_BACKEND_NAME, false, list_devices, open_device, gpu_traits},
#endif
#ifdef GEMMA_EMULATED_DEVICE
      {"emulated", true, list_emulated, open_emulated, gpu_traits},
#endif
  };
  return kKinds;
#else
  return {};
#endif
}

}  // namespace gemma::gpu
