// From the name of a device to the backends that a model's layers are computed on.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/placement.h"
#include "model/stage.h"

namespace gemma {

// Backends, the stages on them, and how to call the whole.
struct Placement {
  std::vector<std::unique_ptr<Backend>> backends;
  std::vector<Stage> stages;
  std::string device;    // "cpu", "cuda:0", "cpu + cuda:0 + cuda:1"
  int n_gpu_layers = 0;  // layers on GPUs
};

struct PlacementRequest {
  std::string device = "auto";     // "auto", "cpu", "cuda", "cuda:1", "cuda:0,cuda:1"
  int n_gpu_layers = kAutoLayers;  // layers on GPUs; kAutoLayers: as memory allows
  std::string isa;                 // of the CPU
  int n_threads = 1;
  std::string emulated_chip;  // device "emulated": which of its chips; "": the first
  // Bytes beside the model on the last GPU, whose traits these are.
  std::function<uint64_t(const BackendTraits&)> other_bytes = [](const BackendTraits&) { return uint64_t{0}; };
};

// Opens what the request names and lays the layers on it. "auto" is the GPUs of this build that can be used, as few as
// hold the model, or the CPU. Throws Error: kBackendUnavailable for a device that this build or machine does not have;
// kOutOfMemory where a device was named that has no room for a single layer.
//
// costs: on a backend with these traits.
Placement open_devices(const PlacementRequest& request, int n_layers,
                       const std::function<LayerCosts(const BackendTraits&)>& costs);

}  // namespace gemma
