// A device behind a vendor's driver. CUDA's driver and HIP's runtime have the same functions for what a device needs,
// with the same signatures but for the type of a pointer, so there is one device over a table of them; cuda_driver.cpp
// and hip_driver.cpp open the libraries, fill the table and know the rest. Nothing of a vendor is needed to compile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/gpu/device.h"
#include "backend/gpu/device_image.h"

namespace gemma::gpu {

// The driver's functions; each returns 0 or an error's number. Streams, events, modules and functions are handles,
// memory of the device is a pointer (CUDA: an integer of the same size).
struct DriverCalls {
  int (*malloc)(void** memory, size_t bytes) = nullptr;
  int (*free)(void* memory) = nullptr;
  int (*malloc_host)(void** memory, size_t bytes, unsigned flags) = nullptr;  // pinned
  int (*free_host)(void* memory) = nullptr;
  int (*memory_info)(size_t* free, size_t* total) = nullptr;
  int (*upload)(void* dst, const void* src, size_t bytes, void* stream) = nullptr;
  int (*download)(void* dst, const void* src, size_t bytes, void* stream) = nullptr;
  int (*copy)(void* dst, const void* src, size_t bytes, void* stream) = nullptr;
  int (*fill)(void* dst, unsigned char value, size_t n, void* stream) = nullptr;
  int (*stream_create)(void** stream, unsigned flags) = nullptr;
  int (*stream_destroy)(void* stream) = nullptr;
  int (*stream_synchronize)(void* stream) = nullptr;
  int (*event_create)(void** event, unsigned flags) = nullptr;
  int (*event_destroy)(void* event) = nullptr;
  int (*event_record)(void* event, void* stream) = nullptr;
  int (*event_synchronize)(void* event) = nullptr;
  int (*module_load)(void** module, const void* image) = nullptr;
  int (*module_unload)(void* module) = nullptr;
  int (*module_function)(void** function, void* module, const char* name) = nullptr;
  int (*launch)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                unsigned block_z, unsigned shared_bytes, void* stream, void** arguments, void** extra) = nullptr;
  // Graphs of launches; null where a driver has none that is to be used.
  int (*graph_create)(void** graph, unsigned flags) = nullptr;
  int (*graph_destroy)(void* graph) = nullptr;
  int (*graph_instantiate)(void** executable, void* graph, unsigned long long flags) = nullptr;
  int (*graph_executable_destroy)(void* executable) = nullptr;
  int (*graph_launch)(void* executable, void* stream) = nullptr;
};

// A launch as a node of a graph; arguments as launch takes them, copied by whoever is called.
struct KernelNode {
  void* function;
  Grid grid;
  unsigned n_threads;
  void** arguments;
};

// An opened driver, alive as long as a device uses it.
class Driver {
 public:
  virtual ~Driver() = default;

  const DriverCalls& calls() const { return calls_; }
  virtual std::vector<DeviceInfo> devices() = 0;  // throws Error{kBackendUnavailable}
  // Prepares a device, makes it the calling thread's, and lets go of it.
  virtual void retain(int index) = 0;
  virtual void make_current(int index) = 0;
  virtual void release(int index) noexcept = 0;
  // "CUDA_ERROR_ILLEGAL_ADDRESS"
  virtual std::string error_name(int error) = 0;

  // Whether the calls of graphs and these two, which differ between vendors, are there. Returned are 0 or an error's
  // number.
  virtual bool has_graphs() const { return false; }
  // A node that runs after another one, if that is not null.
  virtual int add_kernel_node(void** node, void* graph, void* after, const KernelNode& launch) = 0;
  virtual int set_kernel_node(void* executable, void* node, const KernelNode& launch) = 0;

  // Throws Error for an error's number: kOutOfMemory; kBackendUnavailable with DEVICE_LOST where the device or its
  // context is gone, NO_IMAGE where the device cannot run the code, else DRIVER. doing: "cuda:0, cuLaunchKernel of
  // gemma_rms_norm".
  void check(int error, const std::string& doing);

 protected:
  DriverCalls calls_;
};

// Open the driver: libcuda.so.1; libamdhip64.so of ROCm 7, 6 or 5. Throw Error{kBackendUnavailable}: NO_DRIVER,
// OLD_DRIVER, DRIVER.
std::shared_ptr<Driver> open_cuda_driver();
std::shared_ptr<Driver> open_hip_driver();

// The device of that index with kernels of the images that fit it. Throws Error{kBackendUnavailable}: NO_DEVICE,
// NO_IMAGE, ...
std::unique_ptr<Device> open_driver_device(std::shared_ptr<Driver> driver, int index,
                                           std::span<const DeviceImage> images);

}  // namespace gemma::gpu
