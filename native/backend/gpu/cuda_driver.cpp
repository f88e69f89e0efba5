// NVIDIA's driver. Source of names, signatures and numbers: CUDA Driver API, cuda.h of CUDA 13.0; functions that
// changed over time are taken by the symbol of the signature used here (_v2).
#include <cstddef>
#include <map>
#include <mutex>

#include "backend/gpu/driver_device.h"
#include "backend/gpu/shared_library.h"

namespace gemma::gpu {
namespace {

// The images are made by CUDA 13.0, whose code needs a driver of that generation.
constexpr int kDriverVersion = 13000;
constexpr int kMultiprocessorCount = 16;  // CU_DEVICE_ATTRIBUTE_...
constexpr int kMaxSharedMemoryPerBlock = 8;
constexpr int kWarpSize = 10;
constexpr int kCapabilityMajor = 75;
constexpr int kCapabilityMinor = 76;
constexpr int kNoDevice = 100;  // CUDA_ERROR_NO_DEVICE

// CUDA_KERNEL_NODE_PARAMS_v2
struct KernelNodeParameters {
  void* function;
  unsigned grid[3];
  unsigned block[3];
  unsigned shared_bytes;
  void** arguments;
  void** extra;
  void* kernel;   // instead of function
  void* context;  // for kernel
};
static_assert(sizeof(KernelNodeParameters) == 72 && offsetof(KernelNodeParameters, arguments) == 40);

class CudaDriver final : public Driver {
 public:
  CudaDriver() : library_({"libcuda.so.1"}, "NVIDIA's driver") {
    library_.find(init_, "cuInit");
    library_.find(version_, "cuDriverGetVersion");
    library_.find(error_name_, "cuGetErrorName");
    library_.find(device_count_, "cuDeviceGetCount");
    library_.find(device_get_, "cuDeviceGet");
    library_.find(device_name_, "cuDeviceGetName");
    library_.find(device_attribute_, "cuDeviceGetAttribute");
    library_.find(device_memory_, "cuDeviceTotalMem_v2");
    library_.find(retain_, "cuDevicePrimaryCtxRetain");
    library_.find(release_, "cuDevicePrimaryCtxRelease_v2");
    library_.find(set_current_, "cuCtxSetCurrent");
    library_.find(calls_.malloc, "cuMemAlloc_v2");
    library_.find(calls_.free, "cuMemFree_v2");
    library_.find(calls_.malloc_host, "cuMemHostAlloc");
    library_.find(calls_.free_host, "cuMemFreeHost");
    library_.find(calls_.memory_info, "cuMemGetInfo_v2");
    library_.find(calls_.upload, "cuMemcpyHtoDAsync_v2");
    library_.find(calls_.download, "cuMemcpyDtoHAsync_v2");
    library_.find(calls_.copy, "cuMemcpyDtoDAsync_v2");
    library_.find(calls_.fill, "cuMemsetD8Async");
    library_.find(calls_.stream_create, "cuStreamCreate");
    library_.find(calls_.stream_destroy, "cuStreamDestroy_v2");
    library_.find(calls_.stream_synchronize, "cuStreamSynchronize");
    library_.find(calls_.event_create, "cuEventCreate");
    library_.find(calls_.event_destroy, "cuEventDestroy_v2");
    library_.find(calls_.event_record, "cuEventRecord");
    library_.find(calls_.event_synchronize, "cuEventSynchronize");
    library_.find(calls_.module_load, "cuModuleLoadData");
    library_.find(calls_.module_unload, "cuModuleUnload");
    library_.find(calls_.module_function, "cuModuleGetFunction");
    library_.find(calls_.launch, "cuLaunchKernel");
    library_.find(calls_.graph_create, "cuGraphCreate");
    library_.find(calls_.graph_destroy, "cuGraphDestroy");
    library_.find(calls_.graph_instantiate, "cuGraphInstantiateWithFlags");
    library_.find(calls_.graph_executable_destroy, "cuGraphExecDestroy");
    library_.find(calls_.graph_launch, "cuGraphLaunch");
    library_.find(add_kernel_node_, "cuGraphAddKernelNode_v2");
    library_.find(set_kernel_node_, "cuGraphExecKernelNodeSetParams_v2");
    check(init_(0), "cuInit");
    int version = 0;
    check(version_(&version), "cuDriverGetVersion");
    if (version < kDriverVersion) {
      throw Error(ErrorCode::kBackendUnavailable, "OLD_DRIVER",
                  "NVIDIA's driver is for CUDA " + std::to_string(version / 1000) + "." +
                      std::to_string(version % 1000 / 10) +
                      ", this build needs one for CUDA 13.0: install driver 580 or newer");
    }
  }

  std::vector<DeviceInfo> devices() override {
    int n = 0;
    const int error = device_count_(&n);
    if (error == kNoDevice) {
      n = 0;
    } else {
      check(error, "cuDeviceGetCount");
    }
    std::vector<DeviceInfo> devices;
    for (int i = 0; i < n; ++i) {
      DeviceInfo info;
      info.kind = "cuda";
      info.index = i;
      const std::string where = "cuda:" + std::to_string(i);
      int device = 0;
      check(device_get_(&device, i), where + ", cuDeviceGet");
      char name[256] = "";
      check(device_name_(name, sizeof name - 1, device), where + ", cuDeviceGetName");
      info.name = name;
      const auto attribute = [&](int which) {
        int value = 0;
        check(device_attribute_(&value, which, device), where + ", cuDeviceGetAttribute");
        return value;
      };
      info.chip = "sm_" + std::to_string(attribute(kCapabilityMajor) * 10 + attribute(kCapabilityMinor));
      info.warp = attribute(kWarpSize);
      info.n_processors = attribute(kMultiprocessorCount);
      info.shared_bytes = static_cast<size_t>(attribute(kMaxSharedMemoryPerBlock));
      size_t bytes = 0;
      check(device_memory_(&bytes, device), where + ", cuDeviceTotalMem");
      info.memory_bytes = bytes;
      devices.push_back(std::move(info));
    }
    return devices;
  }

  // The primary context, which other users of the device in this process share.
  void retain(int index) override {
    const std::string where = "cuda:" + std::to_string(index);
    int device = 0;
    check(device_get_(&device, index), where + ", cuDeviceGet");
    void* context = nullptr;
    check(retain_(&context, device), where + ", cuDevicePrimaryCtxRetain");
    const std::lock_guard lock(mutex_);
    contexts_[index] = {device, context};
  }
  void make_current(int index) override {
    void* context = nullptr;
    {
      const std::lock_guard lock(mutex_);
      context = contexts_[index].context;
    }
    check(set_current_(context), "cuda:" + std::to_string(index) + ", cuCtxSetCurrent");
  }
  void release(int index) noexcept override {
    const std::lock_guard lock(mutex_);
    release_(contexts_[index].device);
  }
  std::string error_name(int error) override {
    const char* name = nullptr;
    return error_name_(error, &name) == 0 && name != nullptr ? name : "CUDA error";
  }

  bool has_graphs() const override { return true; }
  int add_kernel_node(void** node, void* graph, void* after, const KernelNode& launch) override {
    const KernelNodeParameters parameters = parameters_of(launch);
    return add_kernel_node_(node, graph, &after, after != nullptr ? 1 : 0, &parameters);
  }
  int set_kernel_node(void* executable, void* node, const KernelNode& launch) override {
    const KernelNodeParameters parameters = parameters_of(launch);
    return set_kernel_node_(executable, node, &parameters);
  }

 private:
  static KernelNodeParameters parameters_of(const KernelNode& launch) {
    return {launch.function,
            {launch.grid.x, launch.grid.y, launch.grid.z},
            {launch.n_threads, 1, 1},
            0,
            launch.arguments,
            nullptr,
            nullptr,
            nullptr};
  }

  SharedLibrary library_;
  int (*init_)(unsigned flags) = nullptr;
  int (*version_)(int* version) = nullptr;
  int (*error_name_)(int error, const char** name) = nullptr;
  int (*device_count_)(int* n) = nullptr;
  int (*device_get_)(int* device, int index) = nullptr;
  int (*device_name_)(char* name, int size, int device) = nullptr;
  int (*device_attribute_)(int* value, int attribute, int device) = nullptr;
  int (*device_memory_)(size_t* bytes, int device) = nullptr;
  int (*retain_)(void** context, int device) = nullptr;
  int (*release_)(int device) = nullptr;
  int (*set_current_)(void* context) = nullptr;
  int (*add_kernel_node_)(void** node, void* graph, void* const* dependencies, size_t n_dependencies,
                          const KernelNodeParameters* parameters) = nullptr;
  int (*set_kernel_node_)(void* executable, void* node, const KernelNodeParameters* parameters) = nullptr;
  std::mutex mutex_;
  struct Context {
    int device = 0;
    void* context = nullptr;
  };
  std::map<int, Context> contexts_;  // guarded by mutex_
};

}  // namespace

std::shared_ptr<Driver> open_cuda_driver() {
  return std::make_shared<CudaDriver>();
}

}  // namespace gemma::gpu
