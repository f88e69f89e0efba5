// What the processor and the operating system offer (x86: CPUID and XGETBV read directly; arm64: asked of the system),
// and how many cores are ours.
#pragma once

#include <cstdint>
#include <string>

namespace gemma::cpu {

bool always();
bool has_avx2();          // AVX2, FMA, F16C
bool has_avx_vnni();      // the above and the 256-bit VNNI instructions
bool has_avx512_vnni();   // AVX-512 F BW DQ VL VNNI
bool has_amx_bf16();      // these, VBMI, BF16 and matrix tiles of bfloat16, which the system must grant
bool has_neon_dotprod();  // ARMv8.2 dot products
bool has_neon_i8mm();     // these and ARMv8.6 int8 matrix products
std::string cpu_name();
// Physical cores this process may use: affinity mask and cgroup quota considered, the small cores of arm64 not counted.
// At least 1.
int usable_cores();
#if defined(__linux__)
// Cores that the cgroups of a process (version 1 or 2, its own and all above it) grant together; 0 without a limit.
// proc_self is "/proc/self", or what a test puts in its place.
double cgroup_cores(const std::string& proc_self);
#endif
uint64_t memory_bytes();

}  // namespace gemma::cpu
