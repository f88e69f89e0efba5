// The GPUs of a build for CUDA or for ROCm.
#include <string_view>

#include "backend/gpu/driver_device.h"
#include "backend/gpu/gpus.h"
#include "base/error.h"

namespace gemma::gpu {
namespace {

std::shared_ptr<Driver> open_driver() {
  return std::string_view(gpu_kind()) == "rocm" ? open_hip_driver() : open_cuda_driver();
}

}  // namespace

const char* gpu_kind() {
  return GEMMA_BACKEND_NAME;
}

GpuList list_gpus() {
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

std::unique_ptr<Device> open_gpu(int index) {
  return open_driver_device(open_driver(), index, device_images());
}

}  // namespace gemma::gpu
