// From the name of a device to the backends that a model's layers are computed on.
#pragma once

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
  uint64_t other_bytes = 0;  // beside the model, on the last GPU
};

// Opens what the request names and lays the layers on it. "auto" is the GPUs of this build that can be used, as few as
// hold the model, or the CPU. Throws Error: kBackendUnavailable for a device that this build or machine does not have;
// kOutOfMemory where a device was named that has no room for a single layer.
Placement open_devices(const PlacementRequest& request, const LayerCosts& costs);

}  // namespace gemma
