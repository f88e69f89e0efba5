#include "backend/cpu/cpu_features.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <thread>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(_M_X64)
#include <intrin.h>
#endif
#if defined(_WIN32)
#define NOMINMAX
#include <windows.h>
#else
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace gemma::cpu {
namespace {

#if defined(__x86_64__) || defined(_M_X64)
struct Cpuid {
  uint32_t a = 0, b = 0, c = 0, d = 0;
  Cpuid(uint32_t leaf, uint32_t sub) {
#if defined(_M_X64) && !defined(__GNUC__)
    int r[4];
    __cpuidex(r, static_cast<int>(leaf), static_cast<int>(sub));
    a = static_cast<uint32_t>(r[0]);
    b = static_cast<uint32_t>(r[1]);
    c = static_cast<uint32_t>(r[2]);
    d = static_cast<uint32_t>(r[3]);
#else
    __cpuid_count(leaf, sub, a, b, c, d);
#endif
  }
};

uint64_t read_xcr0() {
#if defined(_M_X64) && !defined(__GNUC__)
  return _xgetbv(0);
#else
  uint32_t low = 0;
  uint32_t high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

bool bit(uint32_t word, int n) {
  return ((word >> n) & 1u) != 0;
}

struct X86Features {
  bool avx2 = false;
  bool avx_vnni = false;
  bool avx512_vnni = false;
  bool amx_bf16 = false;
  X86Features() {
    if (Cpuid(0, 0).a < 7) return;
    const Cpuid one(1, 0);
    const Cpuid seven(7, 0);
    if (!bit(one.c, 27)) return;  // OSXSAVE
    const uint64_t xcr0 = read_xcr0();
    const bool ymm = (xcr0 & 0x6) == 0x6;
    const bool zmm = (xcr0 & 0xe6) == 0xe6;
    avx2 = ymm && bit(one.c, 12) && bit(one.c, 29) && bit(seven.b, 5);  // FMA, F16C, AVX2
    avx_vnni = avx2 && seven.a >= 1 && bit(Cpuid(7, 1).a, 4);
    avx512_vnni =
        avx2 && zmm && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31) && bit(seven.c, 11);
#if defined(__linux__) && defined(__x86_64__)
    // Tiles are 8 KiB of state of every thread that uses them: Linux wants to be asked once by each process. It refuses
    // where a thread has a signal stack that is too small for them.
    constexpr uint64_t kTileState = 0x60000;
    constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
    constexpr long kTileData = 18;
    amx_bf16 = avx512_vnni && bit(seven.c, 1) && bit(seven.d, 22) && bit(seven.d, 24) && bit(Cpuid(7, 1).a, 5) &&
               (xcr0 & kTileState) == kTileState && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#endif
  }
};
const X86Features& x86() {
  static const X86Features features;
  return features;
}
#endif

#if defined(__aarch64__) || defined(_M_ARM64)
struct Arm64Features {
  bool dotprod = false;
  bool i8mm = false;
  Arm64Features() {
    // Bits and numbers as the systems document them; older headers do not name them all.
#if defined(__linux__)
    dotprod = ((getauxval(AT_HWCAP) >> 20) & 1) != 0;           // HWCAP_ASIMDDP
    i8mm = dotprod && ((getauxval(AT_HWCAP2) >> 13) & 1) != 0;  // HWCAP2_I8MM
#elif defined(__APPLE__)
    const auto has = [](const char* name) {
      int value = 0;
      size_t size = sizeof value;
      return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
    };
    dotprod = has("hw.optional.arm.FEAT_DotProd");
    i8mm = dotprod && has("hw.optional.arm.FEAT_I8MM");
#elif defined(_WIN32)
    dotprod = IsProcessorFeaturePresent(43) != 0;          // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
    i8mm = dotprod && IsProcessorFeaturePresent(66) != 0;  // PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE
#endif
  }
};
const Arm64Features& arm64() {
  static const Arm64Features features;
  return features;
}
#endif

#if defined(__linux__) && defined(__aarch64__)
// /proc/cpuinfo gives arm64 cores as numbers: the names of the usual ones, else the numbers.
std::string linux_arm64_name() {
  struct Part {
    unsigned implementer;
    unsigned part;
    const char* name;
  };
  constexpr Part kParts[] = {
      {0x41, 0xd03, "Cortex-A53"},  {0x41, 0xd05, "Cortex-A55"},  {0x41, 0xd08, "Cortex-A72"},
      {0x41, 0xd0b, "Cortex-A76"},  {0x41, 0xd0d, "Cortex-A77"},  {0x41, 0xd41, "Cortex-A78"},
      {0x41, 0xd44, "Cortex-X1"},   {0x41, 0xd47, "Cortex-A710"}, {0x41, 0xd48, "Cortex-X2"},
      {0x41, 0xd4d, "Cortex-A715"}, {0x41, 0xd4e, "Cortex-X3"},   {0x41, 0xd80, "Cortex-A520"},
      {0x41, 0xd81, "Cortex-A720"}, {0x41, 0xd82, "Cortex-X4"},   {0x41, 0xd0c, "Neoverse-N1"},
      {0x41, 0xd49, "Neoverse-N2"}, {0x41, 0xd8e, "Neoverse-N3"}, {0x41, 0xd40, "Neoverse-V1"},
      {0x41, 0xd4f, "Neoverse-V2"}, {0x41, 0xd84, "Neoverse-V3"}, {0xc0, 0xac3, "Ampere-1"},
      {0xc0, 0xac4, "Ampere-1a"},   {0x61, 0x022, "Apple M1"},    {0x61, 0x023, "Apple M1"},
      {0x61, 0x032, "Apple M2"},    {0x61, 0x033, "Apple M2"},    {0x51, 0x001, "Qualcomm Oryon"}};
  std::ifstream file("/proc/cpuinfo");
  std::set<std::string> names;
  unsigned long implementer = 0;
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const unsigned long value = std::strtoul(line.c_str() + colon + 1, nullptr, 0);
    if (line.starts_with("CPU implementer")) implementer = value;
    if (!line.starts_with("CPU part")) continue;
    char numbers[64];
    std::snprintf(numbers, sizeof numbers, "arm64 (implementer 0x%02lx, part 0x%03lx)", implementer, value);
    std::string name = numbers;
    for (const Part& known : kParts) {
      if (known.implementer == implementer && known.part == value) name = known.name;
    }
    names.insert(name);
  }
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : " + ") + name;
  return all.empty() ? "arm64" : all;
}
#endif

}  // namespace

bool always() {
  return true;
}

bool has_avx2() {
#if defined(__x86_64__) || defined(_M_X64)
  return x86().avx2;
#else
  return false;
#endif
}

bool has_avx_vnni() {
#if defined(__x86_64__) || defined(_M_X64)
  return x86().avx_vnni;
#else
  return false;
#endif
}

bool has_avx512_vnni() {
#if defined(__x86_64__) || defined(_M_X64)
  return x86().avx512_vnni;
#else
  return false;
#endif
}

bool has_amx_bf16() {
#if defined(__x86_64__) && defined(__linux__)
  return x86().amx_bf16;
#else
  return false;
#endif
}

bool has_neon_dotprod() {
#if defined(__aarch64__) || defined(_M_ARM64)
  return arm64().dotprod;
#else
  return false;
#endif
}

bool has_neon_i8mm() {
#if defined(__aarch64__) || defined(_M_ARM64)
  return arm64().i8mm;
#else
  return false;
#endif
}

std::string cpu_name() {
#if defined(__x86_64__) || defined(_M_X64)
  if (Cpuid(0x80000000u, 0).a >= 0x80000004u) {
    char name[49] = {};
    for (uint32_t i = 0; i < 3; ++i) {
      const Cpuid part(0x80000002u + i, 0);
      std::memcpy(name + 16 * i, &part.a, 4);
      std::memcpy(name + 16 * i + 4, &part.b, 4);
      std::memcpy(name + 16 * i + 8, &part.c, 4);
      std::memcpy(name + 16 * i + 12, &part.d, 4);
    }
    std::string s(name);
    s.erase(0, s.find_first_not_of(' ') == std::string::npos ? s.size() : s.find_first_not_of(' '));
    while (!s.empty() && s.back() == ' ') s.pop_back();
    if (!s.empty()) return s;
  }
  return "x86-64";
#elif defined(__APPLE__)
  char name[128] = {};
  size_t size = sizeof name - 1;
  return sysctlbyname("machdep.cpu.brand_string", name, &size, nullptr, 0) == 0 ? name : "arm64";
#elif defined(__linux__) && defined(__aarch64__)
  return linux_arm64_name();
#elif defined(_M_ARM64) || defined(__aarch64__)
  const char* name = std::getenv("PROCESSOR_IDENTIFIER");  // set by Windows
  return name != nullptr ? name : "arm64";
#else
  return "unknown";
#endif
}

#if defined(__linux__)
namespace {

// Cores that one cgroup grants; 0 without a limit.
double quota_of(const std::string& folder, bool version2) {
  std::string quota;
  double period = 0;
  if (version2) {
    std::ifstream(folder + "/cpu.max") >> quota >> period;
  } else {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  const double microseconds = std::strtod(quota.c_str(), nullptr);  // "max" is 0, -1 is none too
  return microseconds > 0 && period > 0 ? microseconds / period : 0;
}

// Is name one of the words of "a,b,c"?
bool has_word(const std::string& list, const std::string& name) {
  return ("," + list + ",").find("," + name + ",") != std::string::npos;
}

}  // namespace

double cgroup_cores(const std::string& proc_self) {
  // Lines "hierarchy:controllers:path"; no controllers: version 2.
  std::string path[2];  // by version - 1
  std::ifstream cgroups(proc_self + "/cgroup");
  for (std::string line; std::getline(cgroups, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (controllers.empty()) path[1] = line.substr(second + 1);
    if (has_word(controllers, "cpu")) path[0] = line.substr(second + 1);
  }
  // Lines "id parent device root mount-point options ... - type source super-options".
  double least = 0;
  std::ifstream mounts(proc_self + "/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream left(line.substr(0, dash));
    std::istringstream right(line.substr(dash + 3));
    std::string skipped, root, mount_point, type, options;
    left >> skipped >> skipped >> skipped >> root >> mount_point;
    right >> type >> skipped >> options;
    const bool version2 = type == "cgroup2";
    if (!version2 && !(type == "cgroup" && has_word(options, "cpu"))) continue;
    // Inside a container the mount shows a part of the tree only: the path is relative to it, where it lies within.
    std::string rest = path[version2 ? 1 : 0];
    if (root != "/") rest = rest.compare(0, root.size(), root) == 0 ? rest.substr(root.size()) : "";
    if (rest.find("..") != std::string::npos) rest.clear();
    // A limit of any group above is a limit.
    for (;;) {
      while (!rest.empty() && rest.back() == '/') rest.pop_back();
      const double quota = quota_of(mount_point + rest, version2);
      if (quota > 0 && (least == 0 || quota < least)) least = quota;
      if (rest.empty()) break;
      rest.erase(std::min(rest.size() - 1, rest.rfind('/')));
    }
  }
  return least;
}
#endif

int usable_cores() {
  int n = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) {
    n = CPU_COUNT(&mask);
    const auto read = [](int cpu, const char* name) {
      std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/" + name);
      std::string line;
      std::getline(file, line);
      return line;
    };
    // Where there are large and small cores (arm64 has their relative speed here), small ones would be waited for.
    const auto capacity = [&](int cpu) {
      return static_cast<int>(std::strtol(read(cpu, "cpu_capacity").c_str(), nullptr, 10));
    };
    int largest = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &mask)) largest = std::max(largest, capacity(cpu));
    }
    // Two hardware threads of one core share its vector units: count each core once.
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &mask) || 2 * capacity(cpu) < largest) continue;
      const std::string siblings = read(cpu, "topology/thread_siblings_list");
      cores.insert(siblings.empty() ? "cpu" + std::to_string(cpu) : siblings);
    }
    if (!cores.empty()) n = static_cast<int>(cores.size());
  }
  const double quota = cgroup_cores("/proc/self");
  if (quota > 0) n = std::min(n, std::max(1, static_cast<int>(std::ceil(quota))));
#elif defined(__APPLE__)
  int physical = 0;
  size_t size = sizeof physical;
  // Performance cores only where there are two kinds: dynamic chunks help, but efficiency cores cost energy for little.
  if (sysctlbyname("hw.perflevel0.physicalcpu", &physical, &size, nullptr, 0) == 0 && physical > 0) {
    n = physical;
  } else if (sysctlbyname("hw.physicalcpu", &physical, &size, nullptr, 0) == 0 && physical > 0) {
    n = physical;
  }
#elif defined(_WIN32)
  DWORD_PTR process_mask = 0;
  DWORD_PTR system_mask = 0;
  if (GetProcessAffinityMask(GetCurrentProcess(), &process_mask, &system_mask) && process_mask != 0) {
    DWORD bytes = 0;
    GetLogicalProcessorInformation(nullptr, &bytes);
    std::string storage(bytes, '\0');
    auto* info = reinterpret_cast<SYSTEM_LOGICAL_PROCESSOR_INFORMATION*>(storage.data());
    int cores = 0;
    if (bytes != 0 && GetLogicalProcessorInformation(info, &bytes)) {
      for (DWORD i = 0; i < bytes / sizeof *info; ++i) {
        if (info[i].Relationship == RelationProcessorCore && (info[i].ProcessorMask & process_mask) != 0) ++cores;
      }
    }
    if (cores > 0) n = cores;
  }
#endif
  return std::max(1, n);
}

uint64_t memory_bytes() {
#if defined(_WIN32)
  MEMORYSTATUSEX status;
  status.dwLength = sizeof status;
  return GlobalMemoryStatusEx(&status) ? status.ullTotalPhys : 0;
#else
  const long pages = sysconf(_SC_PHYS_PAGES);
  const long size = sysconf(_SC_PAGE_SIZE);
  return pages > 0 && size > 0 ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(size) : 0;
#endif
}

}  // namespace gemma::cpu
