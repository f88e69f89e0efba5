// The only place that chooses between instruction sets.
#include <span>
#include <string>

#include "backend/cpu/cpu_features.h"
#include "backend/cpu/kernels.h"
#include "base/error.h"

namespace gemma::cpu {
namespace {

const KernelRow kTable[] = {// best first
#if defined(__x86_64__) || defined(_M_X64)
                            {"amx_bf16", has_amx_bf16, kernels_amx_bf16},
                            {"avx512_vnni", has_avx512_vnni, kernels_avx512_vnni},
                            {"avx_vnni", has_avx_vnni, kernels_avx_vnni},
                            {"avx2", has_avx2, kernels_avx2},
#elif defined(__aarch64__) || defined(_M_ARM64)
                            {"neon_i8mm", has_neon_i8mm, kernels_neon_i8mm},
                            {"neon_dotprod", has_neon_dotprod, kernels_neon_dotprod},
#endif
                            {"ref", always, kernels_ref}};

}  // namespace

std::span<const KernelRow> kernel_table() {
  return kTable;
}

const Kernels& select_kernels(const std::string& isa) {
  std::string known;
  for (const KernelRow& row : kTable) {
    if (isa.empty() ? row.available() : isa == row.isa) {
      if (row.available()) return row.kernels();
      throw Error(ErrorCode::kBackendUnavailable, "ISA",
                  "instruction set " + isa + ": this processor does not have it");
    }
    known += known.empty() ? row.isa : std::string(", ") + row.isa;
  }
  throw Error(ErrorCode::kBackendUnavailable, "ISA", "instruction set " + isa + ": unknown, expected one of " + known);
}

}  // namespace gemma::cpu
