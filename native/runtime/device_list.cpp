#include "runtime/device_list.h"

#include <utility>

#include "backend/cpu/cpu_features.h"
#include "backend/cpu/kernels.h"
#include "backend/gpu/gpus.h"

namespace gemma {

std::vector<DeviceInfo> list_devices() {
  std::vector<DeviceInfo> devices;
  DeviceInfo cpu;
  cpu.name = "cpu";
  cpu.description = cpu::cpu_name();
  for (const cpu::KernelRow& row : cpu::kernel_table()) {
    if (row.available()) cpu.isas.emplace_back(row.isa);
  }
  cpu.isa_default = cpu.isas.front();
  cpu.n_cores = cpu::usable_cores();
  cpu.memory_bytes = cpu::memory_bytes();
  devices.push_back(std::move(cpu));

  for (const gpu::GpuKind& kind : gpu::gpu_kinds()) {
    const gpu::GpuList list = kind.list();
    const std::string name = kind.name;
    for (const gpu::Gpu& gpu : list.gpus) {
      DeviceInfo& device = devices.emplace_back();
      device.name = name + ":" + std::to_string(gpu.info.index);
      device.description = gpu.info.name;
      device.isas = {gpu.info.chip};
      device.isa_default = gpu.info.chip;
      device.n_cores = gpu.info.n_processors;
      device.memory_bytes = gpu.info.memory_bytes;
      device.available = gpu.reason.empty();
      device.reason = gpu.reason;
    }
    if (list.gpus.empty()) {
      DeviceInfo& none = devices.emplace_back();
      none.name = name;
      none.description = "no device";
      none.available = false;
      none.reason = list.reason;
    }
  }
  return devices;
}

const char* compiled_backend() {
  return GEMMA_BACKEND_NAME;
}

}  // namespace gemma
