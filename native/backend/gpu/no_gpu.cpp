// A build without GPUs.
#include "backend/gpu/gpus.h"
#include "base/error.h"

namespace gemma::gpu {

const char* gpu_kind() {
  return "";
}

GpuList list_gpus() {
  return {{}, "this build computes on the CPU only"};
}

std::unique_ptr<Device> open_gpu(int) {
  throw Error(ErrorCode::kBackendUnavailable, "DEVICE", "this build computes on the CPU only");
}

std::unique_ptr<Backend> make_gpu_backend(std::unique_ptr<Device>, int) {
  throw Error(ErrorCode::kBackendUnavailable, "DEVICE", "this build computes on the CPU only");
}

}  // namespace gemma::gpu
