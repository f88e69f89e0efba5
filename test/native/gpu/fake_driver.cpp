// Built twice, with FAKE_CUDA as libcuda.so.1 and without as libamdhip64.so.6.
#include "gpu/fake_driver.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace {

// FAKE_CUDA_name or FAKE_ROCM_name, else FAKE_GPU_name, which both drivers read.
const char* setting(const char* name) {
#ifdef FAKE_CUDA
  const char* own = std::getenv((std::string("FAKE_CUDA_") + name).c_str());
#else
  const char* own = std::getenv((std::string("FAKE_ROCM_") + name).c_str());
#endif
  return own != nullptr ? own : std::getenv((std::string("FAKE_GPU_") + name).c_str());
}

// Of a process that no test program controls: from the environment.
FakeDriver initial() {
  FakeDriver driver;
  if (const char* chip = setting("CHIP")) driver.chip = chip;
  if (const char* bytes = setting("BYTES")) driver.memory_bytes = std::strtoull(bytes, nullptr, 10);
  if (const char* call = std::getenv("FAKE_GPU_LOST_AT")) {
    driver.fail_at = std::atoi(call);
    driver.fail_on = true;
    driver.error = 719;
  }
  return driver;
}

FakeDriver state = initial();
std::map<void*, size_t> allocations;
std::map<std::string, std::string> functions;

// 0, or the error of this call.
int call() {
  const int number = state.n_calls++;
  return state.fail_at >= 0 && (number == state.fail_at || (state.fail_on && number > state.fail_at)) ? state.error : 0;
}

int make(void** handle) {
  *handle = nullptr;
  if (const int error = call()) return error;
  *handle = std::malloc(1);
  ++state.n_live;
  return 0;
}

// What cannot be given back is gone all the same.
int unmake(void* handle) {
  if (handle == nullptr) return 1;
  std::free(handle);
  --state.n_live;
  return call();
}

int take_memory(void** memory, size_t bytes) {
  *memory = nullptr;
  if (const int error = call()) return error;
  if (bytes > state.memory_bytes - state.used_bytes) return 2;
  if (posix_memalign(memory, 256, bytes) != 0) return 2;
  std::memset(*memory, 0xff, bytes);
  allocations[*memory] = bytes;
  state.used_bytes += bytes;
  ++state.n_live;
  return 0;
}

int give_memory(void* memory) {
  const auto found = allocations.find(memory);
  if (found == allocations.end()) return 1;
  state.used_bytes -= found->second;
  allocations.erase(found);
  std::free(memory);
  --state.n_live;
  return call();
}

int move(void* dst, const void* src, size_t bytes) {
  if (const int error = call()) return error;
  std::memcpy(dst, src, bytes);
  return 0;
}

int name_of(char* out, size_t size, int device) {
  if (const int error = call()) return error;
  std::snprintf(out, size, "Fake GPU %d", device);
  return 0;
}

// What is left of a launch: no kernel runs.
struct Launch {
  const char* kernel;
  unsigned grid[3];
  unsigned char arguments[16];
};

// False for one that no driver takes.
bool read_launch(void* function, const unsigned* grid, void** arguments, Launch* out) {
  if (function == nullptr || arguments == nullptr || arguments[0] == nullptr) return false;
  out->kernel = static_cast<const char*>(function);
  for (int i = 0; i < 3; ++i) out->grid[i] = grid[i];
  std::memcpy(out->arguments, arguments[0], sizeof out->arguments);
  return true;
}

void run(const Launch& launch) {
  ++state.n_launches;
  state.last_kernel = launch.kernel;
  const auto add = [](unsigned long long word) { state.trace = (state.trace ^ word) * 1099511628211u; };
  for (const char* c = launch.kernel; *c != '\0'; ++c) add(static_cast<unsigned char>(*c));
  for (int i = 0; i < 3; ++i) add(state.last_grid[i] = launch.grid[i]);
  for (const unsigned char byte : launch.arguments) add(byte);
}

int launch(void* function, const unsigned* grid, void** arguments) {
  if (const int error = call()) return error;
  Launch launch{};
  if (!read_launch(function, grid, arguments, &launch)) return 1;
  run(launch);
  return 0;
}

int function_of(void** function, const char* name) {
  if (const int error = call()) return error;
  *function = functions.try_emplace(name, name).first->second.data();
  return 0;
}

}  // namespace

#define FAKE extern "C" __attribute__((visibility("default")))

FAKE FakeDriver* fake_driver() {
  return &state;
}

#ifdef FAKE_CUDA
#define NAME(cuda, hip) cuda
FAKE int cuInit(unsigned) {
  return call();
}
FAKE int cuDriverGetVersion(int* version) {
  *version = state.version;
  return call();
}
FAKE int cuGetErrorName(int, const char** name) {
  *name = "CUDA_ERROR_FAKE";
  return 0;
}
FAKE int cuDeviceGetCount(int* n) {
  *n = state.n_devices;
  return call();
}
FAKE int cuDeviceGet(int* device, int index) {
  *device = index;
  return call();
}
FAKE int cuDeviceGetName(char* name, int size, int device) {
  return name_of(name, static_cast<size_t>(size), device);
}
FAKE int cuDeviceGetAttribute(int* value, int attribute, int) {
  const int capability = std::atoi(state.chip + 3);
  switch (attribute) {
    case 8: *value = 49152; break;
    case 10: *value = 32; break;
    case 16: *value = 82; break;
    case 75: *value = capability / 10; break;
    case 76: *value = capability % 10; break;
    default: return 1;
  }
  return call();
}
FAKE int cuDeviceTotalMem_v2(size_t* bytes, int) {
  *bytes = state.memory_bytes;
  return call();
}
FAKE int cuDevicePrimaryCtxRetain(void** context, int device) {
  static int contexts[16];
  if (const int error = call()) return error;
  ++state.n_live;
  contexts[device] = device;
  *context = &contexts[device];
  return 0;
}
FAKE int cuDevicePrimaryCtxRelease_v2(int) {
  --state.n_live;
  return call();
}
FAKE int cuCtxSetCurrent(void* context) {
  state.current_device = context != nullptr ? *static_cast<int*>(context) : -1;
  return call();
}
#else
#define NAME(cuda, hip) hip
FAKE int hipInit(unsigned) {
  return call();
}
FAKE const char* hipGetErrorName(int) {
  return "hipErrorFake";
}
FAKE int hipGetDeviceCount(int* n) {
  *n = state.n_devices;
  return call();
}
FAKE int hipGetDeviceProperties(void* properties, int device) {
  // hipDeviceProp_t of ROCm 5
  auto* bytes = static_cast<char*>(properties);
  std::memset(bytes, 0, 792);
  std::memcpy(bytes + 256, &state.memory_bytes, 8);
  const size_t shared = 65536;
  std::memcpy(bytes + 264, &shared, 8);
  const int warp = std::strncmp(state.chip, "gfx9", 4) == 0 ? 64 : 32;
  std::memcpy(bytes + 276, &warp, 4);
  const int n_processors = 96;
  std::memcpy(bytes + 336, &n_processors, 4);
  std::strcpy(bytes + 396, state.chip);
  return name_of(bytes, 256, device);
}
FAKE int hipRuntimeGetVersion(int* version) {
  *version = state.runtime_version;
  return call();
}
FAKE int hipSetDevice(int device) {
  state.current_device = device;
  return call();
}
#endif

// A node is its number, from 1; each comes after the one before.
struct Graph {
  std::vector<Launch> nodes;
};
#ifdef FAKE_CUDA
struct KernelNodeParameters {  // CUDA_KERNEL_NODE_PARAMS_v2
  void* function;
  unsigned grid[3];
  unsigned block[3];
  unsigned shared_bytes;
  void** arguments;
  void** extra;
  void* kernel;
  void* context;
};
#else
struct KernelNodeParameters {  // hipKernelNodeParams
  unsigned block[3];
  void** extra;
  void* function;
  unsigned grid[3];
  void** arguments;
  unsigned shared_bytes;
};
#endif
template <class T>
int make_object(void** handle, T object) {
  *handle = nullptr;
  if (const int error = call()) return error;
  *handle = new T(std::move(object));
  ++state.n_live;
  return 0;
}
template <class T>
int unmake_object(void* handle) {
  if (handle == nullptr) return 1;
  delete static_cast<T*>(handle);
  --state.n_live;
  return call();
}
FAKE int NAME(cuGraphCreate, hipGraphCreate)(void** graph, unsigned) {
  return make_object(graph, Graph());
}
FAKE int NAME(cuGraphDestroy, hipGraphDestroy)(void* graph) {
  return unmake_object<Graph>(graph);
}
FAKE int NAME(cuGraphAddKernelNode_v2, hipGraphAddKernelNode)(void** node, void* graph, void* const* dependencies,
                                                              size_t n_dependencies,
                                                              const KernelNodeParameters* parameters) {
  if (const int error = call()) return error;
  std::vector<Launch>& nodes = static_cast<Graph*>(graph)->nodes;
  if (n_dependencies != (nodes.empty() ? 0 : 1)) return 1;
  if (n_dependencies == 1 && dependencies[0] != reinterpret_cast<void*>(nodes.size())) return 1;
  Launch launch{};
  if (!read_launch(parameters->function, parameters->grid, parameters->arguments, &launch)) return 1;
  nodes.push_back(launch);
  *node = reinterpret_cast<void*>(nodes.size());
  return 0;
}
FAKE int NAME(cuGraphInstantiateWithFlags, hipGraphInstantiateWithFlags)(void** executable, void* graph,
                                                                         unsigned long long) {
  return make_object(executable, *static_cast<Graph*>(graph));
}
FAKE int NAME(cuGraphExecDestroy, hipGraphExecDestroy)(void* executable) {
  return unmake_object<Graph>(executable);
}
FAKE int NAME(cuGraphExecKernelNodeSetParams_v2,
              hipGraphExecKernelNodeSetParams)(void* executable, void* node, const KernelNodeParameters* parameters) {
  if (const int error = call()) return error;
  std::vector<Launch>& nodes = static_cast<Graph*>(executable)->nodes;
  const size_t number = reinterpret_cast<size_t>(node);
  if (number == 0 || number > nodes.size()) return 1;
  return read_launch(parameters->function, parameters->grid, parameters->arguments, &nodes[number - 1]) ? 0 : 1;
}
FAKE int NAME(cuGraphLaunch, hipGraphLaunch)(void* executable, void*) {
  if (const int error = call()) return error;
  ++state.n_graph_launches;
  for (const Launch& launch : static_cast<Graph*>(executable)->nodes) run(launch);
  return 0;
}

FAKE int NAME(cuMemAlloc_v2, hipMalloc)(void** memory, size_t bytes) {
  return take_memory(memory, bytes);
}
FAKE int NAME(cuMemFree_v2, hipFree)(void* memory) {
  return give_memory(memory);
}
FAKE int NAME(cuMemHostAlloc, hipHostMalloc)(void** memory, size_t bytes, unsigned) {
  *memory = nullptr;
  if (const int error = call()) return error;
  *memory = std::malloc(bytes);
  ++state.n_live;
  return 0;
}
FAKE int NAME(cuMemFreeHost, hipHostFree)(void* memory) {
  return unmake(memory);
}
FAKE int NAME(cuMemGetInfo_v2, hipMemGetInfo)(size_t* free, size_t* total) {
  *free = state.memory_bytes - state.used_bytes;
  *total = state.memory_bytes;
  return call();
}
FAKE int NAME(cuMemcpyHtoDAsync_v2, hipMemcpyHtoDAsync)(void* dst, const void* src, size_t bytes, void*) {
  return move(dst, src, bytes);
}
FAKE int NAME(cuMemcpyDtoHAsync_v2, hipMemcpyDtoHAsync)(void* dst, const void* src, size_t bytes, void*) {
  return move(dst, src, bytes);
}
FAKE int NAME(cuMemcpyDtoDAsync_v2, hipMemcpyDtoDAsync)(void* dst, const void* src, size_t bytes, void*) {
  return move(dst, src, bytes);
}
FAKE int NAME(cuMemsetD8Async, hipMemsetD8Async)(void* dst, unsigned char value, size_t n, void*) {
  if (const int error = call()) return error;
  std::memset(dst, value, n);
  return 0;
}
FAKE int NAME(cuStreamCreate, hipStreamCreateWithFlags)(void** stream, unsigned) {
  return make(stream);
}
FAKE int NAME(cuStreamDestroy_v2, hipStreamDestroy)(void* stream) {
  return unmake(stream);
}
FAKE int NAME(cuStreamSynchronize, hipStreamSynchronize)(void*) {
  return call();
}
FAKE int NAME(cuEventCreate, hipEventCreateWithFlags)(void** event, unsigned) {
  return make(event);
}
FAKE int NAME(cuEventDestroy_v2, hipEventDestroy)(void* event) {
  return unmake(event);
}
FAKE int NAME(cuEventRecord, hipEventRecord)(void*, void*) {
  return call();
}
FAKE int NAME(cuEventSynchronize, hipEventSynchronize)(void*) {
  return call();
}
FAKE int NAME(cuModuleLoadData, hipModuleLoadData)(void** module, const void*) {
  return make(module);
}
FAKE int NAME(cuModuleUnload, hipModuleUnload)(void* module) {
  return unmake(module);
}
FAKE int NAME(cuModuleGetFunction, hipModuleGetFunction)(void** function, void*, const char* name) {
  return function_of(function, name);
}
FAKE int NAME(cuLaunchKernel, hipModuleLaunchKernel)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                                     unsigned, unsigned, unsigned, unsigned, void*, void** arguments,
                                                     void**) {
  const unsigned grid[] = {grid_x, grid_y, grid_z};
  return launch(function, grid, arguments);
}
