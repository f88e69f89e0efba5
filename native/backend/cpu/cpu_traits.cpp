#include "backend/cpu/cpu_traits.h"

#include <algorithm>
#include <memory>
#include <string>

#include "backend/cpu/bump_allocator.h"
#include "backend/cpu/cpu_attention.h"
#include "backend/cpu/screen.h"
#include "backend/cpu/small_math.h"

namespace gemma::cpu {

QuantizedMemory::QuantizedMemory(std::byte* memory, int n, int n_in) {
  const size_t cols = static_cast<size_t>(n) * static_cast<size_t>(n_in);
  const size_t blocks = cols / 32;
  BumpAllocator allocator(memory);
  rows.q = allocator.take<int8_t>(cols);
  rows.d = allocator.take<float>(blocks);
  rows.neg_sum = allocator.take<int32_t>(blocks);
  rows.neg_sum16 = allocator.take<int32_t>(2 * blocks);
  rows.dsum = allocator.take<float>(blocks);
  rows.dsum16 = allocator.take<float>(2 * blocks);
  bytes = allocator.used();
}

uint64_t CpuTraits::output_bytes(int n_out, int n_in, int max_rows) const {
  uint64_t bytes = 0;
  for (const size_t part : screen_parts(n_out, n_in, max_rows)) bytes += allocated_bytes(part);
  return bytes;
}

WorkspaceBytes CpuTraits::workspaces(const WorkLimits& limits) const {
  WorkspaceBytes bytes;
  if (limits.quantized_weights) bytes.quantized = QuantizedMemory(nullptr, limits.n_rows, limits.n_in).bytes;
  if (has_bulk() && (limits.quantized_weights || limits.bulk_floats))
    bytes.packed_x = kernels_.bulk->packed_bytes(limits.n_rows, limits.n_in);
  if (limits.n_ctx > 0) bytes.partials = CpuAttention::max_partial_bytes(kernels_, n_threads_, limits);
  if (limits.group_rows > 0) {
    const FullAttention& kernel =
        limits.arithmetic == Arithmetic::kExact ? kernels_.exact_attention : kernels_.fast_attention;
    bytes.packed_heads = round_up(kernel.packed_bytes(limits.group_rows, limits.full_head_dim), 64) *
                         static_cast<size_t>(std::min(limits.n_groups * limits.n_full_heads, n_threads_));
  }
  return bytes;
}

std::vector<uint64_t> CpuTraits::workspace_bytes(const WorkLimits& limits) const {
  const WorkspaceBytes bytes = workspaces(limits);
  return {scratch_bytes(), bytes.quantized, bytes.packed_x, bytes.partials, bytes.packed_heads};
}

}  // namespace gemma::cpu

namespace gemma {

std::unique_ptr<const BackendTraits> cpu_traits(const std::string& isa, int n_threads) {
  return std::make_unique<cpu::CpuTraits>(cpu::select_kernels(isa), std::max(1, n_threads));
}

}  // namespace gemma
