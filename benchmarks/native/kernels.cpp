// How fast the products and the attention of each instruction set are, through the backend as the model calls them
// (activations quantised, work divided among the threads). Prints one JSON object a line:
//
//   {"op":"linear","isa":"avx2","type":"Q4_0","rows":1,"GBps":20.1}     up to 16 rows: bytes of weights read per second
//   {"op":"bulk_linear","isa":"amx_bf16", ...                          the same for 16 rows of a prompt, where they
//   differ
//   {"op":"linear","isa":"avx2","type":"Q4_0","rows":512,"Gops":300.2}  many rows: a multiply-add counts as two
//   {"op":"attention","isa":"avx2","type":"f16","rows":1,"GBps":15.2}   one token after 16,384: bytes of keys and
//   values
//   {"op":"attention","isa":"avx2","type":"f16","rows":512,"Gops":90.1} 512 tokens after 3,584
//
//   {"op":"full_attention","isa":"avx2","type":"fast","rows":4096,"ms":120.1,"Gops":640.2,"ofPeak":0.61}
//                                                                       one image: 16 heads of 72; of the product peak
//   {"op":"peak","isa":"avx2","of":"avx2","productGops":268.1,"f32Gops":133.9}
//                                                                       what bounds this set: products of 8 bits (or of
//                                                                       bf16, where tiles compute), f32 multiply-adds
//
//   kernels [--threads N] [--ms MILLISECONDS of each of three measurements] [--isa NAME] [--type NAME] [--ref 1]
//
// The best of three measurements counts. The scalar set is measured only when asked for.
#include "backend/cpu/kernels.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "peak_loops.h"
#include "quant/types.h"

using namespace gemma;

namespace {

constexpr size_t kStreamBytes = size_t{192} << 20;  // far more than the caches
constexpr int kInner = 2560;                        // columns, as in the 4B
constexpr int kManyRows = 512;
constexpr int kManyOut = 2048;

struct Settings {
  int n_threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  int ms = 60;
  std::string isa;
  std::string type;
  bool ref = false;
};

// Calls of f per second, the best of three.
template <class F>
double calls_per_second(int ms, const F& f) {
  f();
  double best = 0;
  for (int i = 0; i < 3; ++i) {
    const auto start = Clock::now();
    const auto end = start + std::chrono::milliseconds(ms);
    int n = 0;
    do {
      f();
      ++n;
    } while (Clock::now() < end);
    best = std::max(best, n / std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

void print(const char* op, const char* isa, const char* type, int rows, const char* unit, double per_second) {
  std::printf("{\"op\":\"%s\",\"isa\":\"%s\",\"type\":\"%s\",\"rows\":%d,\"%s\":%.2f}\n", op, isa, type, rows, unit,
              per_second * 1e-9);
  std::fflush(stdout);
}

// Random codes under scales that are ordinary numbers: every 16-bit word gets an exponent between 2^-8 and 2^-1, which
// costs the codes a little of their randomness and needs no knowledge of where a type keeps its scales. (An exponent
// byte of MXFP4 becomes anything; powers of two are all alike to the kernels.) An odd number of blocks is made and
// repeated, so that no two pages are alike: a host that merges equal pages would serve them from its caches.
std::vector<std::byte> random_blocks(TensorType type, size_t bytes) {
  const size_t block = static_cast<size_t>(type_traits(type).block_bytes);
  const size_t pattern = std::min(bytes, ((size_t{4} << 20) / block | 1) * block);
  std::mt19937 rng(1);
  std::vector<std::byte> data(bytes);
  for (size_t i = 0; i + 1 < pattern; i += 2) {
    uint32_t word = rng();
    if (type == TensorType::kF32 && i % 4 == 2) {
      word = (word & 0x807fu) | (120u << 7);
    } else if (type == TensorType::kBF16) {
      word = (word & 0x807fu) | (120u << 7);
    } else {
      word = (word & 0x9fffu) | 0x2000u;
    }
    const uint16_t half = static_cast<uint16_t>(word);
    std::memcpy(&data[i], &half, 2);
  }
  for (size_t at = pattern; at < bytes; at += pattern)
    std::memcpy(&data[at], data.data(), std::min(pattern, bytes - at));
  return data;
}

std::vector<float> random_floats(size_t n) {
  std::mt19937 rng(2);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& value : x) value = normal(rng);
  return x;
}

void linear(Backend& backend, TensorType type, const Settings& settings) {
  const size_t per_row = row_bytes(type, kInner);
  const int n_out = std::max(kManyOut, static_cast<int>(kStreamBytes / per_row));
  const std::vector<std::byte> data = random_blocks(type, static_cast<size_t>(n_out) * per_row);
  const std::vector<float> x = random_floats(static_cast<size_t>(kManyRows) * kInner);
  const char* name = type_traits(type).name;

  const Weight stream = backend.load_weight(type, n_out, kInner, data.data());
  const auto out = backend.allocate(
      std::max(size_t{16} * static_cast<size_t>(n_out), size_t{kManyRows} * static_cast<size_t>(kManyOut)) *
      sizeof(float));
  for (const int rows : {1, 4, 8, 16}) {
    const LinearJob job{&stream, out->floats()};
    const double rate = calls_per_second(settings.ms, [&] { backend.linear({&job, 1}, x.data(), rows, {}); });
    print("linear", backend.isa(), name, rows, "GBps", rate * static_cast<double>(data.size()));
  }
  if (backend.traits().has_bulk()) {
    const LinearJob job{&stream, out->floats()};
    const double rate = calls_per_second(settings.ms, [&] { backend.linear({&job, 1}, x.data(), 16, {16, true}); });
    print("bulk_linear", backend.isa(), name, 16, "GBps", rate * static_cast<double>(data.size()));
  }
  const Weight matrix = backend.load_weight(type, kManyOut, kInner, data.data());
  const LinearJob job{&matrix, out->floats()};
  const double rate =
      calls_per_second(settings.ms, [&] { backend.linear({&job, 1}, x.data(), kManyRows, {kManyRows, true}); });
  print("linear", backend.isa(), name, kManyRows, "Gops", rate * 2.0 * kManyRows * kManyOut * kInner);
}

struct KvKind {
  KvType type;
  const char* name;
  size_t row_bytes;  // of a head of 256
};
constexpr KvKind kKvKinds[] = {
    {KvType::kF32, "f32", 1024}, {KvType::kF16, "f16", 512}, {KvType::kQ8_0, "q8_0", 8 * 34}};

// Heads of the 1B: four query heads read one key head of 256.
void attention(Backend& backend, const KvKind& kind, const Settings& settings) {
  constexpr int kHeads = 4;
  constexpr int kHeadDim = 256;
  constexpr int kLong = 16384;
  constexpr int kPrompt = 4096;
  KvLayout layout;
  layout.type = kind.type;
  layout.n_kv_heads = 1;
  layout.head_dim = kHeadDim;
  layout.row_bytes = kind.row_bytes;
  const size_t page_bytes = 2 * kPagePositions * kind.row_bytes;
  const auto memory = backend.allocate(page_bytes * (kLong / kPagePositions));
  std::vector<const std::byte*> pages;
  for (int p = 0; p < kLong / kPagePositions; ++p)
    pages.push_back(memory->data() + static_cast<size_t>(p) * page_bytes);
  const std::vector<float> rows = random_floats(size_t{kManyRows} * kHeads * kHeadDim);
  std::vector<int32_t> positions(kManyRows);
  std::vector<RowSpan> spans(kManyRows);
  const auto out = backend.allocate(rows.size() * sizeof(float));
  for (int first = 0; first < kLong; first += kManyRows) {
    const BatchSequence sequence{0, kManyRows, pages.data()};
    for (int i = 0; i < kManyRows; ++i) positions[static_cast<size_t>(i)] = first + i;
    backend.store_kv(layout, {&sequence, 1}, positions.data(), rows.data(), rows.data() + kManyRows * kHeadDim);
  }

  const BatchSequence one{0, 1, pages.data()};
  spans[0] = {0, kLong};
  const double decode = calls_per_second(
      settings.ms, [&] { backend.attention(out->floats(), rows.data(), layout, {&one, 1}, spans.data(), kHeads, {}); });
  print("attention", backend.isa(), kind.name, 1, "GBps", decode * 2.0 * kLong * static_cast<double>(kind.row_bytes));

  const BatchSequence many{0, kManyRows, pages.data()};
  double seen = 0;
  for (int i = 0; i < kManyRows; ++i) {
    spans[static_cast<size_t>(i)] = {0, kPrompt - kManyRows + i + 1};
    seen += spans[static_cast<size_t>(i)].end;
  }
  const double prefill = calls_per_second(settings.ms, [&] {
    backend.attention(out->floats(), rows.data(), layout, {&many, 1}, spans.data(), kHeads, {kManyRows});
  });
  print("attention", backend.isa(), kind.name, kManyRows, "Gops", prefill * 4.0 * seen * kHeads * kHeadDim);
}

// An image of the encoder of Gemma 3: 4096 patches, 16 heads of 72.
void full_attention(Backend& backend, Arithmetic arithmetic, const char* name, double peak, const Settings& settings) {
  constexpr int kRows = 4096;
  constexpr int kHeads = 16;
  constexpr int kHeadDim = 72;
  constexpr size_t kSize = size_t{kRows} * kHeads * kHeadDim;
  const std::vector<float> qkv = random_floats(3 * kSize);
  const auto out = backend.allocate(kSize * sizeof(float));
  const double rate = calls_per_second(settings.ms, [&] {
    backend.full_attention(out->floats(), qkv.data(), qkv.data() + kSize, qkv.data() + 2 * kSize, 1, kRows, kHeads,
                           kHeadDim, 0.11785f, arithmetic);
  });
  const double ops = rate * 4.0 * kRows * kRows * kHeads * kHeadDim;
  std::printf(
      "{\"op\":\"full_attention\",\"isa\":\"%s\",\"type\":\"%s\",\"rows\":%d,\"ms\":%.1f,\"Gops\":%.1f,"
      "\"ofPeak\":%.3f}\n",
      backend.isa(), name, kRows, 1000 / rate, ops * 1e-9, ops / peak);
  std::fflush(stdout);
}

bool parse(int argc, char** argv, Settings& settings) {
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) return false;
    const std::string name = argv[i];
    const std::string value = argv[i + 1];
    if (name == "--isa") {
      settings.isa = value;
    } else if (name == "--type") {
      settings.type = value;
    } else {
      const int number = std::atoi(value.c_str());
      if (number < 1) return false;
      if (name == "--threads") {
        settings.n_threads = number;
      } else if (name == "--ms") {
        settings.ms = number;
      } else if (name == "--ref") {
        settings.ref = true;
      } else {
        return false;
      }
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  if (!parse(argc, argv, settings)) {
    std::fprintf(stderr, "usage: kernels [--threads N] [--ms MILLISECONDS] [--isa NAME] [--type NAME] [--ref 1]\n");
    return 2;
  }
  try {
    for (const cpu::KernelRow& row : cpu::kernel_table()) {
      const bool wanted =
          settings.isa.empty() ? settings.ref || std::string(row.isa) != "ref" : settings.isa == row.isa;
      if (!wanted || !row.available()) continue;
      const auto peak_of = [&](const Loop& loop) {
        return best_of_ten([&] { return loop_rate(loop, settings.n_threads, settings.ms); });
      };
      const auto backend = make_cpu_backend(row.isa, settings.n_threads);
      const bool tiles = backend->traits().has_bulk();
      const Loop product_loop = tiles ? bf16_loop(row.isa) : int8_loop(row.isa);
      const double peak = peak_of(product_loop);
      std::printf("{\"op\":\"peak\",\"isa\":\"%s\",\"of\":\"%s\",\"productGops\":%.1f,\"f32Gops\":%.1f}\n", row.isa,
                  product_loop.isa == nullptr ? "" : product_loop.isa, peak * 1e-9, peak_of(f32_loop(row.isa)) * 1e-9);
      for (const TensorType type : kTensorTypes) {
        if (settings.type.empty() || settings.type == type_traits(type).name) linear(*backend, type, settings);
      }
      for (const KvKind& kind : kKvKinds) {
        if (settings.type.empty() || settings.type == kind.name) attention(*backend, kind, settings);
      }
      for (const auto& [arithmetic, name] : {std::pair{Arithmetic::kExact, "exact"}, {Arithmetic::kFast, "fast"}}) {
        if (settings.type.empty() || settings.type == name) full_attention(*backend, arithmetic, name, peak, settings);
      }
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
