#include "backend/backends.h"

#include <cstdlib>

#include "base/error.h"

#ifdef GEMMA_EMULATED_DEVICE
#include "backend/gpu/emulator/emulated_device.h"
#endif

namespace gemma {
namespace {

#ifdef GEMMA_EMULATED_DEVICE
// Of "emulated" and "emulated:CHIP".
std::string chip_of(const std::string& device) {
  const size_t colon = device.find(':');
  if (colon != std::string::npos) return device.substr(colon + 1);
  const char* chip = std::getenv("GEMMA_EMULATED_CHIP");
  return chip != nullptr ? chip : "";
}
#endif

}  // namespace

std::unique_ptr<Backend> make_backend(const std::string& device, const std::string& isa, int n_threads) {
  if (device == "cpu") return make_cpu_backend(isa, n_threads);
#ifdef GEMMA_EMULATED_DEVICE
  if (device.substr(0, device.find(':')) == "emulated")
    return gpu::make_gpu_backend(gpu::make_emulated_device(chip_of(device), n_threads), n_threads);
#endif
  throw Error(ErrorCode::kBackendUnavailable, "DEVICE",
              "device " + device + ": this build has the backend " GEMMA_BACKEND_NAME " only");
}

}  // namespace gemma
