// What this machine can do at best, as the measure of the benchmarks: read bandwidth from memory, and the rates of
// 8-bit dot products, bf16 dot products and f32 multiply-adds in loops that touch registers only. Prints one JSON
// object.
//
//   peaks [--threads N] [--ms MILLISECONDS of each of ten measurements]
//
// A multiply-add counts as two operations. A loop measures a peak only while its accumulators stay in registers and are
// many enough to cover the latency (4 or 5 cycles at two instructions a cycle).
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
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

// gcc 12 knows no name for AVX-VNNI here, so the bit is read where it is defined: leaf 7, subleaf 1, EAX bit 4.
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

Loop int8_loop() {
  if (__builtin_cpu_supports("avx512vnni")) return {"avx512_vnni", 2.0 * 64 * kAccumulators, int8_avx512_vnni};
  if (has_avx_vnni()) return {"avx_vnni", 2.0 * 32 * kAccumulators, int8_avx_vnni};
  if (__builtin_cpu_supports("avx2")) return {"avx2", 2.0 * 32 * kAccumulators, int8_avx2};
  return {nullptr, 0, nullptr};
}

Loop bf16_loop() {
  if (__builtin_cpu_supports("avx512bf16")) return {"avx512_bf16", 2.0 * 32 * kAccumulators, bf16_avx512};
  return {nullptr, 0, nullptr};
}

Loop f32_loop() {
  if (__builtin_cpu_supports("avx512f")) return {"avx512f", 2.0 * 16 * kAccumulators, f32_avx512};
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

Loop int8_loop() {
  if (!has_dotprod()) return {nullptr, 0, nullptr};
  return {"neon_dotprod", 2.0 * 16 * kAccumulators, int8_dotprod};
}
Loop bf16_loop() {
  return {nullptr, 0, nullptr};
}
Loop f32_loop() {
  return {"neon", 2.0 * 4 * kAccumulators, f32_neon};
}

#else

Loop int8_loop() {
  return {nullptr, 0, nullptr};
}
Loop bf16_loop() {
  return {nullptr, 0, nullptr};
}
Loop f32_loop() {
  return {nullptr, 0, nullptr};
}

#endif

std::atomic<uint64_t> g_sink{0};  // keeps what was read in use

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

// Reads n bytes, a multiple of 256.
void read_bytes(const char* p, size_t n) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) {
    const char* end = p + n;
    __asm__ volatile(
        "1:\n .irp r,0,64,128,192\n prefetcht0 4096+\\r(%0)\n .endr\n"
        ".irp r,0,32,64,96,128,160,192,224\n vpor \\r(%0), %%ymm0, %%ymm0\n .endr\n"
        "add $256, %0\n cmp %1, %0\n jb 1b\n vzeroupper\n"
        : "+r"(p)
        : "r"(end)
        : "cc", "memory", "xmm0");
    return;
  }
#endif
  uint64_t sum[8] = {};
  for (size_t i = 0; i < n; i += sizeof sum) {
    uint64_t word[8];
    std::memcpy(word, p + i, sizeof word);
    for (int k = 0; k < 8; k++) sum[k] |= word[k];
  }
  for (uint64_t x : sum) g_sink.fetch_or(x, std::memory_order_relaxed);
}

// Each thread reads its own part of a buffer far larger than the caches.
double read_rate(const std::vector<char>& data, int n_threads, int ms) {
  const size_t part = data.size() / static_cast<size_t>(n_threads) & ~size_t{255};
  const size_t step = std::min(part, size_t{2} << 20);
  std::vector<size_t> at(static_cast<size_t>(n_threads), 0);
  return rate(n_threads, ms, [&](int t) {
    const size_t index = static_cast<size_t>(t);
    if (at[index] + step > part) at[index] = 0;
    read_bytes(data.data() + index * part + at[index], step);
    at[index] += step;
    return static_cast<double>(step);
  });
}

}  // namespace

int main(int argc, char** argv) {
  int n_threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  int ms = 60;
  for (int i = 1; i < argc; i += 2) {
    const int value = i + 1 < argc ? std::atoi(argv[i + 1]) : 0;
    if (value < 1 || (std::strcmp(argv[i], "--threads") != 0 && std::strcmp(argv[i], "--ms") != 0)) {
      std::fprintf(stderr, "usage: peaks [--threads N] [--ms MILLISECONDS]\n");
      return 2;
    }
    (std::strcmp(argv[i], "--threads") == 0 ? n_threads : ms) = value;
  }
  std::string out = "{\"threads\":" + std::to_string(n_threads);
  char text[96];
  // No two pages alike: a host that merges equal pages of its guests would serve them from its caches.
  std::vector<char> data(size_t{1} << 30);
  uint64_t state = 1;
  for (size_t i = 0; i < data.size(); i += sizeof state) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::memcpy(data.data() + i, &state, sizeof state);
  }
  // The best of many short measurements: what another process takes of a core is not part of a peak.
  const auto best = [](auto measure) {
    double most = 0;
    for (int i = 0; i < 10; i++) most = std::max(most, measure());
    return most;
  };
  std::snprintf(text, sizeof text, ",\"readGBps\":%.2f", best([&] { return read_rate(data, n_threads, ms); }) * 1e-9);
  out += text;
  const struct {
    const char* name;
    Loop loop;
  } loops[] = {{"int8", int8_loop()}, {"bf16", bf16_loop()}, {"f32", f32_loop()}};
  for (const auto& [name, loop] : loops) {
    if (!loop.run) continue;
    const double ops = best([&loop = loop, n_threads, ms] { return loop_rate(loop, n_threads, ms); });
    std::snprintf(text, sizeof text, ",\"%sGops\":%.1f,\"%sIsa\":\"%s\"", name, ops * 1e-9, name, loop.isa);
    out += text;
  }
  std::puts((out + "}").c_str());
  return 0;
}
