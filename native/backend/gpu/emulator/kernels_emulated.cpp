// kernels.cu as the emulated device runs it; compiled once for each chip (gpu.h tells the definitions).
#include "backend/gpu/emulator/emulated_device.h"
#include "backend/gpu/kernels.cu"  // NOLINT(bugprone-suspicious-include): one source for all

namespace gemma::gpu {
namespace GPU_CHIP_NAMESPACE {
namespace {

template <class Arguments, void (*kKernel)(Arguments)>
void run(const void* arguments) {
  kKernel(*static_cast<const Arguments*>(arguments));
}

const EmulatedChip kChip = {GEMMA_EMULATED_NAME,
                            GPU_WARP,
                            {
#define GEMMA_GPU_KERNEL(name, arguments) {run<const arguments, name>, sizeof(arguments)},
                                GEMMA_GPU_KERNELS(GEMMA_GPU_KERNEL)
#undef GEMMA_GPU_KERNEL
                            }};

}  // namespace

const EmulatedChip& chip() {
  return kChip;
}

}  // namespace GPU_CHIP_NAMESPACE
}  // namespace gemma::gpu
