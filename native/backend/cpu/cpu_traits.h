// Memory of the CPU backend: the sizes that it allocates by, so that what is planned is what is allocated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "base/large_memory.h"

namespace gemma::cpu {

// The working memory of threads: a cache line apart.
inline constexpr size_t kScratchStride = kScratchBytes + 64;

// The parts of QuantizedRows in memory, which may be null.
struct QuantizedMemory {
  QuantizedRowOut rows;
  size_t bytes;
  QuantizedMemory(std::byte* memory, int n, int n_in);
};

struct WorkspaceBytes {
  size_t quantized = 0;     // x
  size_t packed_x = 0;      // for products in bulk
  size_t partials = 0;      // of attention
  size_t packed_heads = 0;  // keys and values of the heads that full_attention works on
};

class CpuTraits final : public BackendTraits {
 public:
  CpuTraits(const Kernels& kernels, int n_threads) : kernels_(kernels), n_threads_(n_threads) {}

  bool has_bulk() const override { return kernels_.bulk != nullptr; }
  bool maps_weights() const override { return true; }
  uint64_t weight_bytes(TensorType type, int n_out, int n_in) const override {
    return static_cast<uint64_t>(n_out) * row_bytes(type, n_in);
  }
  uint64_t buffer_bytes(uint64_t bytes) const override { return allocated_bytes(bytes); }
  uint64_t output_bytes(int n_out, int n_in, int max_rows) const override;
  std::vector<uint64_t> workspace_bytes(const WorkLimits& limits) const override;

  WorkspaceBytes workspaces(const WorkLimits& limits) const;
  // Of all threads.
  size_t scratch_bytes() const { return kScratchStride * static_cast<size_t>(n_threads_); }

 private:
  const Kernels& kernels_;
  int n_threads_;
};

}  // namespace gemma::cpu
