// Loops that touch registers only, and the rates of threads that run them: what 8-bit dot products, bf16 dot products
// and f32 multiply-adds can reach at best on this machine. Internal to each program that includes it.
//
// A multiply-add counts as two operations. A loop measures a peak only while its accumulators stay in registers and are
// many enough to cover the latency (4 or 5 cycles at two instructions a cycle).
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <string_view>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;

// `run` goes n times round a loop of `ops` operations.
struct Loop {
  const char* isa;
  double ops;
  void (*run)(int64_t rounds);
};

#if defined(__x86_64__)

constexpr int kAccumulators = 12;

// Registers 0 and 1 hold the factors, 2 a temporary, 3 ones, 4 to 15 the accumulators. All in assembly: given
// intrinsics, gcc copies or spills the accumulators, and then the loop measures that.
#define ACCUMULATORS "4,5,6,7,8,9,10,11,12,13,14,15"
#define LOOP(width, instructions)                                                             \
  ".irp r," ACCUMULATORS                                                                      \
  "\n vpxor %%xmm\\r, %%xmm\\r, %%xmm\\r\n .endr\n"                                           \
  "vpbroadcastd %1, %%" width "0\n vpbroadcastd %1, %%" width "1\n vpbroadcastd %2, %%" width \
  "3\n"                                                                                       \
  "1:\n .irp r," ACCUMULATORS "\n" instructions "\n .endr\n dec %0\n jnz 1b\n vzeroupper\n"
#define CLOBBERED                                                                                                  \
  "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
      "xmm13", "xmm14", "xmm15"

constexpr uint32_t kInt8 = 0x01020304, kOnes16 = 0x00010001, kBf16 = 0x3f003f00 /* 0.5, 0.5 */,
                   kF32 = 0x3f000000 /* 0.5 */;

void int8_avx512_vnni(int64_t rounds) {
  __asm__ volatile(LOOP("zmm", "vpdpbusd %%zmm0, %%zmm1, %%zmm\\r")
                   : "+r"(rounds)
                   : "m"(kInt8), "m"(kOnes16)
                   : CLOBBERED);
}
void int8_avx_vnni(int64_t rounds) {
  __asm__ volatile(LOOP("ymm", "%{vex%} vpdpbusd %%ymm0, %%ymm1, %%ymm\\r")
                   : "+r"(rounds)
                   : "m"(kInt8), "m"(kOnes16)
                   : CLOBBERED);
}
// Without VNNI a dot product takes three instructions: pairs to 16 bits, pairs to 32 bits, add.
void int8_avx2(int64_t rounds) {
  __asm__ volatile(LOOP("ymm",
                        "vpmaddubsw %%ymm0, %%ymm1, %%ymm2\n vpmaddwd %%ymm3, %%ymm2, %%ymm2\n"
                        "vpaddd %%ymm2, %%ymm\\r, %%ymm\\r")
                   : "+r"(rounds)
                   : "m"(kInt8), "m"(kOnes16)
                   : CLOBBERED);
}
void bf16_avx512(int64_t rounds) {
  __asm__ volatile(LOOP("zmm", "vdpbf16ps %%zmm0, %%zmm1, %%zmm\\r")
                   : "+r"(rounds)
                   : "m"(kBf16), "m"(kOnes16)
                   : CLOBBERED);
}
void f32_avx512(int64_t rounds) {
  __asm__ volatile(LOOP("zmm", "vfmadd231ps %%zmm0, %%zmm1, %%zmm\\r")
                   : "+r"(rounds)
                   : "m"(kF32), "m"(kOnes16)
                   : CLOBBERED);
}
void f32_avx2(int64_t rounds) {
  __asm__ volatile(LOOP("ymm", "vfmadd231ps %%ymm0, %%ymm1, %%ymm\\r")
                   : "+r"(rounds)
                   : "m"(kF32), "m"(kOnes16)
                   : CLOBBERED);
}
#undef ACCUMULATORS
#undef LOOP
#undef CLOBBERED

// Four tiles of sums: a product takes 16 cycles and comes back after 52.
void bf16_amx(int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1;
    uint8_t rest[15] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  __asm__ volatile(
      "ldtilecfg %1\n tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3\n"
      "tilezero %%tmm4\n tilezero %%tmm5\n tilezero %%tmm6\n tilezero %%tmm7\n"
      "1:\n tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
      "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n tdpbf16ps %%tmm7, %%tmm5, %%tmm3\n"
      "dec %0\n jnz 1b\n tilerelease\n"
      : "+r"(rounds)
      : "m"(config)
      : "cc");
}

// gcc 12 knows no name for AVX-VNNI here, so the bit is read where it is defined: leaf 7, subleaf 1, EAX bit 4.
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

// Leaf 7, EDX bits 22 and 24; Linux grants the tiles' state to a process that asks for it.
bool has_amx_bf16() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Each loop: the best that the machine has, or that a set of our kernels has ("": any).
bool only_avx2(std::string_view isa) {
  return isa == "avx2" || isa == "avx_vnni";
}

Loop int8_loop(std::string_view isa) {
  if (!only_avx2(isa) && __builtin_cpu_supports("avx512vnni"))
    return {"avx512_vnni", 2.0 * 64 * kAccumulators, int8_avx512_vnni};
  if (isa != "avx2" && has_avx_vnni()) return {"avx_vnni", 2.0 * 32 * kAccumulators, int8_avx_vnni};
  if (__builtin_cpu_supports("avx2")) return {"avx2", 2.0 * 32 * kAccumulators, int8_avx2};
  return {nullptr, 0, nullptr};
}

[[maybe_unused]] Loop bf16_loop(std::string_view isa) {
  if (only_avx2(isa)) return {nullptr, 0, nullptr};
  if (isa != "avx512_vnni" && has_amx_bf16()) return {"amx_bf16", 4 * 2.0 * 16 * 16 * 32, bf16_amx};
  if (__builtin_cpu_supports("avx512bf16")) return {"avx512_bf16", 2.0 * 32 * kAccumulators, bf16_avx512};
  return {nullptr, 0, nullptr};
}

[[maybe_unused]] Loop f32_loop(std::string_view isa) {
  if (!only_avx2(isa) && __builtin_cpu_supports("avx512f")) return {"avx512f", 2.0 * 16 * kAccumulators, f32_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return {"avx2", 2.0 * 8 * kAccumulators, f32_avx2};
  return {nullptr, 0, nullptr};
}

#elif defined(__aarch64__)

constexpr int kAccumulators = 16;

#define LOOP(instruction)                                                                                           \
  ".irp r,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19\n movi v\\r\\().16b, #0\n .endr\n dup v0.4s, %w1\n dup v1.4s, " \
  "%w1\n"                                                                                                           \
  "1:\n .irp r,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19\n" instruction "\n .endr\n subs %0, %0, #1\n b.ne 1b\n"
#define CLOBBERED                                                                                                      \
  "cc", "v0", "v1", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", \
      "v19"

void f32_neon(int64_t rounds) {
  __asm__ volatile(LOOP("fmla v\\r\\().4s, v0.4s, v1.4s") : "+r"(rounds) : "r"(0x3f000000) : CLOBBERED);
}
void int8_dotprod(int64_t rounds) {
  __asm__ volatile(".arch_extension dotprod\n" LOOP("sdot v\\r\\().4s, v0.16b, v1.16b")
                   : "+r"(rounds)
                   : "r"(0x01020304)
                   : CLOBBERED);
}
#undef LOOP
#undef CLOBBERED

bool has_dotprod() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return true;  // every 64-bit Apple computer has it
#endif
}

Loop int8_loop(std::string_view /*isa*/) {
  if (!has_dotprod()) return {nullptr, 0, nullptr};
  return {"neon_dotprod", 2.0 * 16 * kAccumulators, int8_dotprod};
}
[[maybe_unused]] Loop bf16_loop(std::string_view /*isa*/) {
  return {nullptr, 0, nullptr};
}
[[maybe_unused]] Loop f32_loop(std::string_view /*isa*/) {
  return {"neon", 2.0 * 4 * kAccumulators, f32_neon};
}

#else

Loop int8_loop(std::string_view /*isa*/) {
  return {nullptr, 0, nullptr};
}
[[maybe_unused]] Loop bf16_loop(std::string_view /*isa*/) {
  return {nullptr, 0, nullptr};
}
[[maybe_unused]] Loop f32_loop(std::string_view /*isa*/) {
  return {nullptr, 0, nullptr};
}

#endif

// Work done per second by n_threads threads that each call `step(thread)`, which returns the amount of work it did,
// until the time is over. From the common start to the end of the slowest: rates of threads that ran one after the
// other do not add up.
template <class Step>
double rate(int n_threads, int ms, const Step& step) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<double> work(static_cast<size_t>(n_threads), 0.0);
  std::vector<std::thread> threads;
  for (int t = 0; t < n_threads; t++) {
    threads.emplace_back([&, t] {
      step(t);
      ready++;
      while (!go) std::this_thread::yield();
      const auto end = Clock::now() + std::chrono::milliseconds(ms);
      while (Clock::now() < end) work[static_cast<size_t>(t)] += step(t);
    });
  }
  while (ready < n_threads) std::this_thread::yield();
  const auto start = Clock::now();
  go = true;
  for (std::thread& t : threads) t.join();
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  double sum = 0;
  for (double w : work) sum += w;
  return sum / seconds;
}

double loop_rate(const Loop& loop, int n_threads, int ms) {
  if (!loop.run) return 0;
  constexpr int64_t kRounds = 100'000;
  return rate(n_threads, ms, [&](int) {
    loop.run(kRounds);
    return loop.ops * static_cast<double>(kRounds);
  });
}

// The best of many short measurements: what another process takes of a core is not part of a peak.
template <class Measure>
double best_of_ten(const Measure& measure) {
  double most = 0;
  for (int i = 0; i < 10; i++) most = std::max(most, measure());
  return most;
}

}  // namespace
