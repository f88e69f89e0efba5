// AMD's HIP runtime. Source of names, signatures and numbers: HIP API, hip_runtime_api.h of ROCm 5.2 to 7.2.
#include <algorithm>
#include <cstring>

#include "backend/gpu/driver_device.h"
#include "backend/gpu/shared_library.h"

namespace gemma::gpu {
namespace {

constexpr int kNotSupported = 801;  // hipErrorNotSupported

// Where there is no GPU: hipErrorNoDevice, and from hipInit hipErrorInvalidDevice.
bool is_no_device(int error) {
  return error == 100 || error == 101;
}

// hipDeviceProp_t as ROCm 5 has it; later releases fill it as well, under the symbol hipGetDevicePropertiesR0000.
struct PropertiesR0000 {
  char name[256];
  size_t memory_bytes;
  size_t shared_bytes;  // of a block
  int registers;
  int warp;
  char unused_1[56];
  int n_processors;
  char unused_2[56];
  char chip[256];  // gcnArchName: "gfx90a:sramecc+:xnack-"
  char unused_3[140];
};
static_assert(offsetof(PropertiesR0000, warp) == 276 && offsetof(PropertiesR0000, n_processors) == 336 &&
              offsetof(PropertiesR0000, chip) == 396 && sizeof(PropertiesR0000) == 792);

class HipDriver final : public Driver {
 public:
  HipDriver() : library_({"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5"}, "AMD's ROCm runtime") {
    library_.find(init_, "hipInit");
    library_.find(error_name_, "hipGetErrorName");
    library_.find(device_count_, "hipGetDeviceCount");
    if (!library_.find_optional(properties_, "hipGetDevicePropertiesR0000"))
      library_.find(properties_, "hipGetDeviceProperties");
    library_.find(set_device_, "hipSetDevice");
    library_.find(calls_.malloc, "hipMalloc");
    library_.find(calls_.free, "hipFree");
    library_.find(calls_.malloc_host, "hipHostMalloc");
    library_.find(calls_.free_host, "hipHostFree");
    library_.find(calls_.memory_info, "hipMemGetInfo");
    library_.find(calls_.upload, "hipMemcpyHtoDAsync");
    library_.find(calls_.download, "hipMemcpyDtoHAsync");
    library_.find(calls_.copy, "hipMemcpyDtoDAsync");
    library_.find(calls_.fill, "hipMemsetD8Async");
    library_.find(calls_.stream_create, "hipStreamCreateWithFlags");
    library_.find(calls_.stream_destroy, "hipStreamDestroy");
    library_.find(calls_.stream_synchronize, "hipStreamSynchronize");
    library_.find(calls_.event_create, "hipEventCreateWithFlags");
    library_.find(calls_.event_destroy, "hipEventDestroy");
    library_.find(calls_.event_record, "hipEventRecord");
    library_.find(calls_.event_synchronize, "hipEventSynchronize");
    library_.find(calls_.module_load, "hipModuleLoadData");
    library_.find(calls_.module_unload, "hipModuleUnload");
    library_.find(calls_.module_function, "hipModuleGetFunction");
    library_.find(calls_.launch, "hipModuleLaunchKernel");
    if (const int error = init_(0); !is_no_device(error)) check(error, "hipInit");
  }

  std::vector<DeviceInfo> devices() override {
    int n = 0;
    const int error = device_count_(&n);
    if (is_no_device(error)) {
      n = 0;
    } else {
      check(error, "hipGetDeviceCount");
    }
    std::vector<DeviceInfo> devices;
    for (int i = 0; i < n; ++i) {
      PropertiesR0000 properties{};
      check(properties_(&properties, i), "rocm:" + std::to_string(i) + ", hipGetDeviceProperties");
      const auto text = [](const char (&field)[256]) { return std::string(field, strnlen(field, sizeof field)); };
      DeviceInfo info;
      info.kind = "rocm";
      info.index = i;
      info.name = text(properties.name);
      info.chip = text(properties.chip);
      info.chip = info.chip.substr(0, info.chip.find(':'));
      info.warp = properties.warp;
      info.n_processors = properties.n_processors;
      info.shared_bytes = properties.shared_bytes;
      info.memory_bytes = properties.memory_bytes;
      devices.push_back(std::move(info));
    }
    return devices;
  }

  void retain(int index) override { make_current(index); }
  void make_current(int index) override {
    check(set_device_(index), "rocm:" + std::to_string(index) + ", hipSetDevice");
  }
  void release(int) noexcept override {}  // the runtime keeps its contexts
  std::string error_name(int error) override {
    const char* name = error_name_(error);
    return name != nullptr ? name : "HIP error";
  }

  // Not used: whether launches of a module's functions may be nodes, and may be changed in an instance that has run,
  // depends on the release, and no device was at hand to try.
  int add_kernel_node(void**, void*, void*, const KernelNode&) override { return kNotSupported; }
  int set_kernel_node(void*, void*, const KernelNode&) override { return kNotSupported; }

 private:
  SharedLibrary library_;
  int (*init_)(unsigned flags) = nullptr;
  const char* (*error_name_)(int error) = nullptr;
  int (*device_count_)(int* n) = nullptr;
  int (*properties_)(PropertiesR0000* properties, int device) = nullptr;
  int (*set_device_)(int device) = nullptr;
};

}  // namespace

std::shared_ptr<Driver> open_hip_driver() {
  return std::make_shared<HipDriver>();
}

}  // namespace gemma::gpu
