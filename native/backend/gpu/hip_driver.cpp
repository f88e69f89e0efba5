// AMD's HIP runtime. Source of names, signatures and numbers: HIP API, hip_runtime_api.h of ROCm 5.2 to 7.2.
#include <algorithm>
#include <cstddef>
#include <cstring>

#include "backend/gpu/driver_device.h"
#include "backend/gpu/shared_library.h"

namespace gemma::gpu {
namespace {

// The releases whose source was read for what graphs do here: a node takes a function of a module, and the instance of
// a graph takes other arguments between two starts. 6.0 as hipRuntimeGetVersion has it.
constexpr int kVersionWithGraphs = 60'000'000;

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

// hipKernelNodeParams
struct KernelNodeParameters {
  unsigned block[3];
  void** extra;
  void* function;
  unsigned grid[3];
  void** arguments;
  unsigned shared_bytes;
};
static_assert(sizeof(KernelNodeParameters) == 64 && offsetof(KernelNodeParameters, arguments) == 48);

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
    int (*runtime_version)(int* version) = nullptr;
    int version = 0;
    has_graphs_ = library_.find_optional(runtime_version, "hipRuntimeGetVersion") && runtime_version(&version) == 0 &&
                  version >= kVersionWithGraphs && library_.find_optional(calls_.graph_create, "hipGraphCreate") &&
                  library_.find_optional(calls_.graph_destroy, "hipGraphDestroy") &&
                  library_.find_optional(calls_.graph_instantiate, "hipGraphInstantiateWithFlags") &&
                  library_.find_optional(calls_.graph_executable_destroy, "hipGraphExecDestroy") &&
                  library_.find_optional(calls_.graph_launch, "hipGraphLaunch") &&
                  library_.find_optional(add_kernel_node_, "hipGraphAddKernelNode") &&
                  library_.find_optional(set_kernel_node_, "hipGraphExecKernelNodeSetParams");
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

  bool has_graphs() const override { return has_graphs_; }
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
    return {{launch.n_threads, 1, 1}, nullptr, launch.function, {launch.grid.x, launch.grid.y, launch.grid.z},
            launch.arguments,         0};
  }

  SharedLibrary library_;
  int (*init_)(unsigned flags) = nullptr;
  const char* (*error_name_)(int error) = nullptr;
  int (*device_count_)(int* n) = nullptr;
  int (*properties_)(PropertiesR0000* properties, int device) = nullptr;
  int (*set_device_)(int device) = nullptr;
  int (*add_kernel_node_)(void** node, void* graph, void* const* dependencies, size_t n_dependencies,
                          const KernelNodeParameters* parameters) = nullptr;
  int (*set_kernel_node_)(void* executable, void* node, const KernelNodeParameters* parameters) = nullptr;
  bool has_graphs_ = false;
};

}  // namespace

std::shared_ptr<Driver> open_hip_driver() {
  return std::make_shared<HipDriver>();
}

}  // namespace gemma::gpu
