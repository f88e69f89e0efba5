#include "runtime/devices.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "backend/gpu/gpus.h"
#include "base/error.h"
#include "runtime/device_list.h"

namespace gemma {
namespace {

[[noreturn]] void unavailable(const std::string& device, const std::string& reason) {
  throw Error(ErrorCode::kBackendUnavailable, "DEVICE", "device " + device + ": " + reason);
}

// The GPUs that were named, in this order.
struct Chosen {
  const gpu::GpuKind* kind = nullptr;
  std::vector<gpu::Gpu> gpus;
};

// Of "cuda:1": the one of that index, or emulated the one of that chip.
const gpu::Gpu* find_gpu(const gpu::GpuKind& kind, const gpu::GpuList& list, std::string_view part) {
  const std::string prefix = std::string(kind.name) + ":";
  if (!part.starts_with(prefix)) return nullptr;
  part.remove_prefix(prefix.size());
  int index = -1;
  const auto [stop, error] = std::from_chars(part.data(), part.data() + part.size(), index);
  if (error != std::errc() || stop != part.data() + part.size()) index = -1;
  const auto found = std::find_if(list.gpus.begin(), list.gpus.end(), [&](const gpu::Gpu& gpu) {
    return gpu.info.index == index || (kind.is_emulated && gpu.info.chip == part);
  });
  return found != list.gpus.end() ? &*found : nullptr;
}

// device: "auto", "cuda", "cuda:1" or "cuda:0,cuda:1". emulated_chip: PlacementRequest's.
Chosen choose_gpus(const std::string& device, const std::string& emulated_chip) {
  const bool is_auto = device == "auto";
  std::string offered = "auto, cpu";
  for (const gpu::GpuKind& kind : gpu::gpu_kinds()) {
    offered += std::string(", ") + kind.name + ", " + kind.name + ":0";
    const std::string name = kind.name;
    if (is_auto ? kind.is_emulated : device.substr(0, device.find(':')) != name) continue;
    const gpu::GpuList list = kind.list();
    Chosen chosen{&kind, {}};
    if (is_auto || device == name) {
      for (const gpu::Gpu& gpu : list.gpus) {
        if (gpu.reason.empty()) chosen.gpus.push_back(gpu);
      }
      if (!is_auto && chosen.gpus.empty()) unavailable(device, list.gpus.empty() ? list.reason : list.gpus[0].reason);
      if (kind.is_emulated) {  // one of the chips
        std::string chip = name;
        chip.append(":").append(emulated_chip);
        const gpu::Gpu* gpu = emulated_chip.empty() ? list.gpus.data() : find_gpu(kind, list, chip);
        if (gpu == nullptr) unavailable(device, "GEMMA_EMULATED_CHIP: no chip " + emulated_chip);
        chosen.gpus = {*gpu};
      }
      return chosen;
    }
    for (std::string_view rest = device; !rest.empty();) {
      const std::string_view part = rest.substr(0, rest.find(','));
      rest.remove_prefix(std::min(rest.size(), part.size() + 1));
      const gpu::Gpu* gpu = find_gpu(kind, list, part);
      if (gpu == nullptr) {
        std::string reason = "expected ";
        reason.append(name).append(":0 to ").append(name).append(":").append(std::to_string(list.gpus.size() - 1));
        reason.append(", several with commas between, found ").append(part);
        unavailable(device, list.gpus.empty() ? list.reason : reason);
      }
      if (!gpu->reason.empty()) unavailable(device, gpu->reason);
      for (const gpu::Gpu& other : chosen.gpus) {
        if (other.info.index == gpu->info.index) unavailable(device, "each device once");
      }
      chosen.gpus.push_back(*gpu);
    }
    return chosen;
  }
  if (!is_auto)
    unavailable(device, std::string("this build has the backend ") + compiled_backend() + "; expected " + offered);
  return {};
}

}  // namespace

Placement open_devices(const PlacementRequest& request, int n_layers,
                       const std::function<LayerCosts(const BackendTraits&)>& costs) {
  Chosen chosen;
  if (request.device != "cpu") chosen = choose_gpus(request.device, request.emulated_chip);
  if (request.n_gpu_layers == 0) chosen.gpus.clear();
  std::vector<uint64_t> free_bytes;
  for (const gpu::Gpu& gpu : chosen.gpus) free_bytes.push_back(gpu.free_bytes);
  std::vector<LayerRange> ranges = {{-1, 0, n_layers}};
  if (!chosen.gpus.empty()) {
    const BackendTraits& traits = chosen.kind->traits();
    ranges = place_layers(costs(traits), free_bytes, request.n_gpu_layers, request.other_bytes(traits));
  }

  Placement placement;
  for (const LayerRange& range : ranges) {
    const int n = range.end_layer - range.first_layer;
    std::string name = "cpu";
    if (range.gpu < 0) {
      if (n == n_layers && request.device != "auto" && !chosen.gpus.empty()) {
        throw Error(ErrorCode::kOutOfMemory, "DEVICE_MEMORY",
                    "device " + request.device + ": " + std::to_string(free_bytes.back() >> 20) +
                        " MiB are free, which is too little for the output matrix and one layer; load with device cpu");
      }
      placement.backends.push_back(make_cpu_backend(request.isa, request.n_threads));
    } else {
      const gpu::DeviceInfo& info = chosen.gpus[static_cast<size_t>(range.gpu)].info;
      placement.backends.push_back(chosen.kind->open(info.index, request.n_threads));
      placement.n_gpu_layers += n;
      name = std::string(chosen.kind->name) + ":" + (chosen.kind->is_emulated ? info.chip : std::to_string(info.index));
    }
    placement.stages.push_back({placement.backends.back().get(), range.first_layer, range.end_layer});
    placement.device += (placement.device.empty() ? "" : " + ") + name;
  }
  return placement;
}

}  // namespace gemma
