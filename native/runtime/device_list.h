// What this build and machine offer, for `gemma-native devices`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gemma {

struct DeviceInfo {
  std::string name;               // "cpu", "cuda:0"; "cuda" for a backend that finds no device
  std::string description;        // CPU or GPU model
  std::vector<std::string> isas;  // usable here, best first; the chip of a GPU
  std::string isa_default;
  int n_cores = 0;  // physical cores this process may use; a GPU's multiprocessors
  uint64_t memory_bytes = 0;
  bool available = true;
  std::string reason;  // why not available
};
std::vector<DeviceInfo> list_devices();
const char* compiled_backend();  // "cpu", "cuda", "rocm"

}  // namespace gemma
