// The kernels of kernels.cu and their arguments, for host and device alike: plain C++, no vendor's header. The symbol of
// a kernel is extern "C" and named "gemma_" + its name below. Pointers are device memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gemma::gpu {

// Name and argument of every kernel. Order is that of the enumeration below and of kKernelSymbols.
#define GEMMA_GPU_KERNELS(X)          \
  X(rms_norm, NormArguments)

enum class Kernel {
#define GEMMA_GPU_KERNEL(name, arguments) name,
  GEMMA_GPU_KERNELS(GEMMA_GPU_KERNEL)
#undef GEMMA_GPU_KERNEL
};

inline constexpr const char* kKernelSymbols[] = {
#define GEMMA_GPU_KERNEL(name, arguments) "gemma_" #name,
    GEMMA_GPU_KERNELS(GEMMA_GPU_KERNEL)
#undef GEMMA_GPU_KERNEL
};
inline constexpr int kNumKernels = sizeof kKernelSymbols / sizeof *kKernelSymbols;

// Threads of a block, the same for all kernels: whole warps of 32 and of 64.
inline constexpr int kThreads = 128;

// out[n, dim] = x / rms(x) * weight; with add: out += that.
struct NormArguments {
  float* out;
  const float* x;
  const float* weight;
  int n;
  int dim;
  float eps;
  int add;
};

}  // namespace gemma::gpu
