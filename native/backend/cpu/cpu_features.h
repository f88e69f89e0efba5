// What the processor and the operating system offer (CPUID and XGETBV read directly), and how many cores are ours.
#pragma once

#include <cstdint>
#include <string>

namespace gemma::cpu {

bool always();
bool has_avx2();         // AVX2, FMA, F16C
bool has_avx_vnni();     // the above and the 256-bit VNNI instructions
bool has_avx512_vnni();  // AVX-512 F BW DQ VL VNNI
std::string cpu_name();
// Physical cores this process may use: affinity mask and cgroup quota considered. At least 1.
int usable_cores();
uint64_t memory_bytes();

}  // namespace gemma::cpu
