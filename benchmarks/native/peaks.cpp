// What this machine can do at best, as the measure of the benchmarks: read bandwidth from memory, and the rates of
// 8-bit dot products, bf16 dot products and f32 multiply-adds in loops that touch registers only. Prints one JSON
// object.
//
//   peaks [--threads N] [--ms MILLISECONDS of each of ten measurements] [--isa NAME: what this set of kernels has]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "peak_loops.h"

namespace {

std::atomic<uint64_t> g_sink{0};  // keeps what was read in use

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
  std::string isa;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    const int value = i + 1 < argc ? std::atoi(argv[i + 1]) : 0;
    if (name == "--isa" && i + 1 < argc) {
      isa = argv[i + 1];
    } else if (value >= 1 && (name == "--threads" || name == "--ms")) {
      (name == "--threads" ? n_threads : ms) = value;
    } else {
      std::fprintf(stderr, "usage: peaks [--threads N] [--ms MILLISECONDS] [--isa NAME]\n");
      return 2;
    }
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
  std::snprintf(text, sizeof text, ",\"readGBps\":%.2f",
                best_of_ten([&] { return read_rate(data, n_threads, ms); }) * 1e-9);
  out += text;
  const struct {
    const char* name;
    Loop loop;
  } loops[] = {{"int8", int8_loop(isa)}, {"bf16", bf16_loop(isa)}, {"f32", f32_loop(isa)}};
  for (const auto& [name, loop] : loops) {
    if (!loop.run) continue;
    const double ops = best_of_ten([&loop = loop, n_threads, ms] { return loop_rate(loop, n_threads, ms); });
    std::snprintf(text, sizeof text, ",\"%sGops\":%.1f,\"%sIsa\":\"%s\"", name, ops * 1e-9, name, loop.isa);
    out += text;
  }
  std::puts((out + "}").c_str());
  return 0;
}
