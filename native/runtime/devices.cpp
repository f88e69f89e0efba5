#include "runtime/devices.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "backend/cpu/cpu_features.h"
#include "backend/cpu/kernels.h"
#include "backend/gpu/gpus.h"
#include "base/error.h"
#include "runtime/engine.h"

namespace gemma {
namespace {

[[noreturn]] void unavailable(const std::string& device, const std::string& reason) {
  throw Error(ErrorCode::kBackendUnavailable, "DEVICE", "device " + device + ": " + reason);
}

// The indices that "cuda", "cuda:1" or "cuda:0,cuda:1" names, in this order.
std::vector<int> gpu_indices(const std::string& device, const gpu::GpuList& list) {
  const std::string kind = gpu::gpu_kind();
  if (kind.empty() || !device.starts_with(kind)) {
    const std::string offered = kind.empty() ? "auto or cpu" : "auto, cpu, " + kind + " or " + kind + ":0";
    unavailable(device, std::string("this build has the backend ") + compiled_backend() + "; expected " + offered);
  }
  std::vector<int> indices;
  if (device == kind) {
    for (const gpu::Gpu& gpu : list.gpus) {
      if (gpu.reason.empty()) indices.push_back(gpu.info.index);
    }
    if (indices.empty()) unavailable(device, list.gpus.empty() ? list.reason : list.gpus.front().reason);
    return indices;
  }
  for (std::string_view rest = device; !rest.empty();) {
    const std::string_view part = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), part.size() + 1));
    int index = -1;
    const char* end = part.data() + part.size();
    if (part.starts_with(kind + ":")) {
      const auto [stop, error] = std::from_chars(part.data() + kind.size() + 1, end, index);
      if (error != std::errc() || stop != end) index = -1;
    }
    if (index < 0 || std::find(indices.begin(), indices.end(), index) != indices.end())
      unavailable(device, "expected " + kind + ":0 and the like, each once, with commas between");
    indices.push_back(index);
  }
  for (const int index : indices) {
    const auto gpu = std::find_if(list.gpus.begin(), list.gpus.end(),
                                  [&](const gpu::Gpu& candidate) { return candidate.info.index == index; });
    if (gpu == list.gpus.end()) {
      unavailable(device, list.gpus.empty() ? list.reason
                                            : "this machine has " + std::to_string(list.gpus.size()) +
                                                  " such devices, numbered from 0");
    }
    if (!gpu->reason.empty()) unavailable(device, gpu->reason);
  }
  return indices;
}

}  // namespace

Placement open_devices(const PlacementRequest& request, const LayerCosts& costs) {
  const int n_layers = static_cast<int>(costs.layers.size());
  std::vector<int> indices;
  std::vector<uint64_t> free_bytes;
  if (request.device != "cpu" && request.n_gpu_layers != 0) {
    const gpu::GpuList list = gpu::list_gpus();
    if (request.device != "auto") {
      indices = gpu_indices(request.device, list);
    } else {
      for (const gpu::Gpu& gpu : list.gpus) {
        if (gpu.reason.empty()) indices.push_back(gpu.info.index);
      }
    }
    for (const int index : indices) {
      for (const gpu::Gpu& gpu : list.gpus) {
        if (gpu.info.index == index) free_bytes.push_back(gpu.free_bytes);
      }
    }
  }
  std::vector<LayerRange> ranges = {{-1, 0, n_layers}};
  if (!indices.empty()) ranges = place_layers(costs, free_bytes, request.n_gpu_layers, request.other_bytes);

  Placement placement;
  for (const LayerRange& range : ranges) {
    const int n = range.end_layer - range.first_layer;
    std::string name = "cpu";
    if (range.gpu < 0) {
      if (n == n_layers && request.device != "auto" && request.device != "cpu" && request.n_gpu_layers != 0) {
        throw Error(ErrorCode::kOutOfMemory, "DEVICE_MEMORY",
                    "device " + request.device + ": " + std::to_string(free_bytes.back() >> 20) +
                        " MiB are free, which is too little for the output matrix and one layer; load with device cpu");
      }
      placement.backends.push_back(make_cpu_backend(request.isa, request.n_threads));
    } else {
      const int index = indices[static_cast<size_t>(range.gpu)];
      placement.backends.push_back(gpu::make_gpu_backend(gpu::open_gpu(index), request.n_threads));
      placement.n_gpu_layers += n;
      name = std::string(gpu::gpu_kind()) + ":" + std::to_string(index);
    }
    placement.stages.push_back({placement.backends.back().get(), range.first_layer, range.end_layer});
    placement.device += (placement.device.empty() ? "" : " + ") + name;
  }
  return placement;
}

std::vector<DeviceInfo> list_devices() {
  std::vector<DeviceInfo> devices;
  DeviceInfo& cpu = devices.emplace_back();
  cpu.name = "cpu";
  cpu.description = cpu::cpu_name();
  for (const cpu::KernelRow& row : cpu::kernel_table()) {
    if (row.available()) cpu.isas.emplace_back(row.isa);
  }
  cpu.isa_default = cpu.isas.front();
  cpu.n_cores = cpu::usable_cores();
  cpu.memory_bytes = cpu::memory_bytes();

  const std::string kind = gpu::gpu_kind();
  if (kind.empty()) return devices;
  const gpu::GpuList list = gpu::list_gpus();
  for (const gpu::Gpu& gpu : list.gpus) {
    DeviceInfo device;
    device.name = kind + ":" + std::to_string(gpu.info.index);
    device.description = gpu.info.name;
    device.isas = {gpu.info.chip};
    device.isa_default = gpu.info.chip;
    device.n_cores = gpu.info.n_processors;
    device.memory_bytes = gpu.info.memory_bytes;
    device.available = gpu.reason.empty();
    device.reason = gpu.reason;
    devices.push_back(std::move(device));
  }
  if (list.gpus.empty()) {
    DeviceInfo none;
    none.name = kind;
    none.description = "no device";
    none.available = false;
    none.reason = list.reason;
    devices.push_back(std::move(none));
  }
  return devices;
}

const char* compiled_backend() {
  return GEMMA_BACKEND_NAME;
}

}  // namespace gemma
