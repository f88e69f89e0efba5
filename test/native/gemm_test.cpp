// Matrix products: every set of kernels against the scalar one bit for bit, the scalar one against double arithmetic
// and against golden products, the backend's division of labour.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>

#include "backend/backend.h"
#include "base/half.h"
#include "kernel_cases.h"
#include "quant/dequantize.h"
#include "safetensors.h"

using namespace gemma;
using namespace gemma::cpu;
using test::float_weights;
using test::Quantized;

namespace {

constexpr int kOuts[] = {1, 15, 16, 17, 31, 33, 47};
constexpr int kXRows[] = {1, 2, 5, 6, 7, 8, 9, 13, 17};
constexpr int kMaxOut = 47;
constexpr int kMaxRows = 17;
constexpr size_t kPoison = 128 * 1024;  // more than the panels of any set

// Rows of x: the first three reach the largest codes, in row 12 one block holds NaN and in row 13 one infinity.
std::vector<float> make_x(std::mt19937& rng, int n_cols) {
  std::vector<float> x = test::random_floats(rng, static_cast<size_t>(kMaxRows * n_cols));
  for (int j = 0; j < n_cols; ++j) {
    x[static_cast<size_t>(j)] = 1;
    x[static_cast<size_t>(n_cols + j)] = j % 2 == 0 ? 1.0f : -1.0f;
    x[static_cast<size_t>(2 * n_cols + j)] = -1;
  }
  x[static_cast<size_t>(12 * n_cols + 5)] = std::numeric_limits<float>::quiet_NaN();
  x[static_cast<size_t>(13 * n_cols + n_cols - 1)] = -std::numeric_limits<float>::infinity();
  return x;
}

struct Range {
  int begin;
  int end;
};
std::vector<Range> ranges(int n_out) {
  std::vector<Range> all = {{0, n_out}};
  if (n_out > 2) {
    all.push_back({n_out / 3, n_out});
    all.push_back({1, n_out - 1});
  }
  return all;
}

// Runs multiply(rows, n_x, out, stride) over all shapes and compares with the oracle's [kMaxRows][kMaxOut].
template <class F>
void check_shapes(TensorType type, int n_cols, const std::vector<std::byte>& weights, const std::vector<float>& want,
                  const std::string& what, const F& multiply) {
  const size_t bytes_per_row = row_bytes(type, n_cols);
  for (const int n_out : kOuts) {
    const test::TightBytes w(std::span<const std::byte>(weights).first(static_cast<size_t>(n_out) * bytes_per_row));
    for (const int n_x : kXRows) {
      for (const Range range : ranges(n_out)) {
        const size_t stride = static_cast<size_t>(n_out) + 3;
        std::vector<float> out(static_cast<size_t>(n_x) * stride, test::kUntouched);
        multiply(WeightRows{type, w.data(), bytes_per_row, range.begin, range.end}, n_x, out.data(), stride);
        for (int r = 0; r < n_x; ++r) {
          for (size_t n = 0; n < stride; ++n) {
            const float got = out[static_cast<size_t>(r) * stride + n];
            const bool inside = static_cast<int>(n) >= range.begin && static_cast<int>(n) < range.end;
            const float expected = inside ? want[static_cast<size_t>(r * kMaxOut) + n] : test::kUntouched;
            if (inside ? !test::same_bits(got, expected) || test::is_untouched(got) : !test::is_untouched(got)) {
              test::fail(__FILE__, __LINE__,
                         what + " columns " + std::to_string(n_cols) + " rows of x " + std::to_string(n_x) +
                             " weight rows " + std::to_string(range.begin) + ".." + std::to_string(range.end) +
                             " at [" + std::to_string(r) + "][" + std::to_string(n) + "]: got " + test::describe(got) +
                             ", want " + test::describe(expected));
            }
          }
        }
      }
    }
  }
}

std::vector<float> dequantized(TensorType type, const std::byte* row, int n_cols) {
  std::vector<float> w(static_cast<size_t>(n_cols));
  dequantize_row(type, row, w.data(), n_cols);
  return w;
}

}  // namespace

TEST("gemm_quantized: every set equals ref bit for bit, every type, all shapes of tiles and tails") {
  std::mt19937 rng(11);
  test::ScratchMemory memory;
  for (const TensorType type : kTensorTypes) {
    if (is_float_type(type)) continue;
    for (const int n_cols : {32, 96, 256, 512, 1280}) {
      if (n_cols % type_traits(type).block_elems != 0) continue;
      const std::vector<std::byte> weights = test::random_weights(rng, type, kMaxOut, n_cols);
      const Quantized x(make_x(rng, n_cols), kMaxRows, n_cols);
      std::vector<float> want(kMaxRows * kMaxOut, test::kUntouched);
      kernels_ref().gemm_quantized({type, weights.data(), row_bytes(type, n_cols), 0, kMaxOut}, x.first(kMaxRows),
                                   want.data(), kMaxOut, memory.scratch());
      // A block of NaN makes its row NaN and no other.
      for (int r = 0; r < kMaxRows; ++r) {
        for (int n = 0; n < kMaxOut; ++n)
          CHECK(std::isnan(want[static_cast<size_t>(r * kMaxOut + n)]) == (r == 12 || r == 13));
      }
      test::for_each_set([&](const Kernels& kernels) {
        check_shapes(type, n_cols, weights, want, std::string(kernels.isa) + " " + type_traits(type).name,
                     [&](const WeightRows& w, int n_x, float* out, size_t stride) {
                       memory.poison(kPoison);
                       kernels.gemm_quantized(w, x.first(n_x), out, stride, memory.scratch());
                     });
      });
    }
  }
}

TEST("gemm_quantized ref: equal to double arithmetic on dequantised weights up to rounding") {
  std::mt19937 rng(12);
  test::ScratchMemory memory;
  for (const TensorType type : kTensorTypes) {
    if (is_float_type(type)) continue;
    constexpr int kCols = 512;
    constexpr int kOut = 20;
    constexpr int kRows = 4;
    const std::vector<std::byte> weights = test::random_weights(rng, type, kOut, kCols);
    const Quantized x(test::random_floats(rng, kRows * kCols), kRows, kCols);
    std::vector<float> got(kRows * kOut, test::kUntouched);
    kernels_ref().gemm_quantized({type, weights.data(), row_bytes(type, kCols), 0, kOut}, x.first(kRows), got.data(),
                                 kOut, memory.scratch());
    const CanonicalTraits traits = canonical_traits(type);
    for (int n = 0; n < kOut; ++n) {
      const std::byte* row = weights.data() + static_cast<size_t>(n) * row_bytes(type, kCols);
      const std::vector<float> w = dequantized(type, row, kCols);
      for (int r = 0; r < kRows; ++r) {
        double sum = 0;
        double magnitude = 0;  // of what is added up: codes and minima apart
        for (int j = 0; j < kCols; ++j) {
          Block32 block;
          unpack_block32(type, row, j / 32, &block);
          const size_t i = static_cast<size_t>(r * kCols + j);
          const double xj = static_cast<double>(x.d[i / 32]) * x.q[i];
          const int half = j % 32 / 16;
          sum += xj * static_cast<double>(w[static_cast<size_t>(j)]);
          magnitude +=
              std::fabs(xj) * (std::fabs(static_cast<double>(block.d[half]) * (block.u[j % 32] - traits.offset)) +
                               std::fabs(block.m[half]));
        }
        // Per block or half block two fused additions, and a few roundings of scales and dequantised values.
        const double tolerance = (2.0 * kCols / 16 + 6) * 0x1p-24 * magnitude;
        const float y = got[static_cast<size_t>(r * kOut + n)];
        if (!(std::fabs(y - sum) <= tolerance)) {
          test::fail(
              __FILE__, __LINE__,
              std::string(type_traits(type).name) + ": got " + test::describe(y) + ", want " + std::to_string(sum));
        }
      }
    }
  }
}

TEST("gemm ref: golden products of gguf-py's values within the error of 8-bit activations") {
  test::ScratchMemory memory;
  int n_types = 0;
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a over the bits of the quantised products
  const test::GoldenFile golden = test::read_safetensors(std::string(GEMMA_TEST_DATA) + "/quants.safetensors");
  const std::vector<float> x = golden.at("x").as<float>();
  const int n_cols = static_cast<int>(x.size());
  const Quantized quantized(x, 1, n_cols);
  for (const TensorType type : kTensorTypes) {
    const std::string type_name = type_traits(type).name;
    const auto raw = golden.find(type_name + ".raw");
    if (raw == golden.end()) continue;
    const std::vector<double> want = golden.at(type_name + ".y").as<double>();
    const std::vector<float> w = golden.at(type_name + ".w").as<float>();
    CHECK(w.size() == want.size() * x.size());
    const int n_out = static_cast<int>(want.size());
    const WeightRows rows{type, reinterpret_cast<const std::byte*>(raw->second.bytes.data()), row_bytes(type, n_cols),
                          0, n_out};
    std::vector<float> got(want.size(), test::kUntouched);
    if (is_float_type(type)) {
      kernels_ref().gemm_float(rows, x.data(), 1, n_cols, got.data(), got.size(), memory.scratch());
    } else {
      kernels_ref().gemm_quantized(rows, quantized.first(1), got.data(), got.size(), memory.scratch());
    }
    for (size_t n = 0; n < want.size(); ++n) {
      if (!is_float_type(type)) hash = (hash ^ std::bit_cast<uint32_t>(got[n])) * 0x100000001b3u;
      double tolerance = 0;
      for (size_t j = 0; j < x.size(); ++j) {
        const double weight = std::fabs(w[n * x.size() + j]);
        // Rounding in float, and half a step of x where x is quantised. 32: additions in a row, and the minima that
        // cancel within a dequantised weight.
        tolerance += 32 * 0x1p-23 * (weight * std::fabs(x[j]) + (is_float_type(type) ? 0.0 : 1e-2));
        if (!is_float_type(type)) tolerance += weight * 0.5 * quantized.d[j / 32];
      }
      if (!(std::fabs(got[n] - want[n]) <= tolerance)) {
        test::fail(__FILE__, __LINE__,
                   type_name + " row " + std::to_string(n) + ": got " + std::to_string(got[n]) + ", want " +
                       std::to_string(want[n]) + " +- " + std::to_string(tolerance));
      }
    }
    ++n_types;
  }
  CHECK(n_types == 15);
  // The same bits on every processor.
  if (hash != 9670804276397779467u)
    test::fail(__FILE__, __LINE__, "the hash of all quantised products is " + std::to_string(hash));
}

TEST("gemm_float: every set equals ref bit for bit, odd widths too") {
  std::mt19937 rng(13);
  test::ScratchMemory memory;
  for (const TensorType type : {TensorType::kF32, TensorType::kF16, TensorType::kBF16}) {
    for (const int n_cols : {1, 15, 16, 17, 24, 31, 63, 640}) {
      const std::vector<std::byte> weights = float_weights(rng, type, kMaxOut, n_cols);
      std::vector<float> x = test::random_floats(rng, static_cast<size_t>(kMaxRows * n_cols));
      x[0] = -0.0f;
      x[static_cast<size_t>(12 * n_cols)] = std::numeric_limits<float>::quiet_NaN();
      // Products so small that they round to a zero with a sign.
      for (int j = 0; j < n_cols; ++j) x[static_cast<size_t>(5 * n_cols + j)] = -1e-44f;
      std::vector<float> want(kMaxRows * kMaxOut, test::kUntouched);
      kernels_ref().gemm_float({type, weights.data(), row_bytes(type, n_cols), 0, kMaxOut}, x.data(), kMaxRows, n_cols,
                               want.data(), kMaxOut, memory.scratch());
      test::for_each_set([&](const Kernels& kernels) {
        check_shapes(type, n_cols, weights, want, std::string(kernels.isa) + " " + type_traits(type).name,
                     [&](const WeightRows& w, int n_x, float* out, size_t stride) {
                       const std::vector<float> exact(x.begin(), x.begin() + n_x * n_cols);
                       kernels.gemm_float(w, exact.data(), n_x, n_cols, out, stride, memory.scratch());
                     });
      });
    }
  }
}

TEST("gemm_float ref: equal to double arithmetic up to rounding") {
  std::mt19937 rng(14);
  test::ScratchMemory memory;
  for (const TensorType type : {TensorType::kF32, TensorType::kF16, TensorType::kBF16}) {
    for (const int n_cols : {1, 15, 17, 63, 640}) {
      const std::vector<std::byte> weights = float_weights(rng, type, kMaxOut, n_cols);
      const std::vector<float> x = test::random_floats(rng, static_cast<size_t>(n_cols));
      std::vector<float> got(kMaxOut, test::kUntouched);
      kernels_ref().gemm_float({type, weights.data(), row_bytes(type, n_cols), 0, kMaxOut}, x.data(), 1, n_cols,
                               got.data(), kMaxOut, memory.scratch());
      for (int n = 0; n < kMaxOut; ++n) {
        const std::vector<float> w =
            dequantized(type, weights.data() + static_cast<size_t>(n) * row_bytes(type, n_cols), n_cols);
        double sum = 0;
        double magnitude = 0;
        for (size_t j = 0; j < w.size(); ++j) {
          sum += static_cast<double>(w[j]) * x[j];
          magnitude += std::fabs(static_cast<double>(w[j]) * x[j]);
        }
        const double tolerance = (n_cols / 16 + 5) * 0x1p-24 * magnitude + 1e-45;
        CHECK(std::fabs(got[static_cast<size_t>(n)] - sum) <= tolerance);
      }
    }
  }
}

TEST("backend linear: several jobs of mixed types, any set, batch and number of threads give the same bits") {
  std::mt19937 rng(15);
  constexpr int kCols = 512;
  constexpr int kRows = 40;  // more than the few rows that are cut into other chunks
  struct Job {
    TensorType type;
    int n_out;
  };
  // The embedding-like job is cut into many chunks; the last is smaller than one.
  const Job jobs[] = {{TensorType::kQ4_0, 100},  {TensorType::kF16, 33},  {TensorType::kQ6_K, 1},
                      {TensorType::kQ8_0, 2100}, {TensorType::kQ5_K, 64}, {TensorType::kF32, 7}};
  const std::vector<float> x = test::random_floats(rng, kRows * kCols);
  std::vector<std::vector<std::byte>> data;
  for (const Job& job : jobs) {
    data.push_back(is_float_type(job.type) ? float_weights(rng, job.type, job.n_out, kCols)
                                           : test::random_weights(rng, job.type, job.n_out, kCols));
  }
  std::vector<std::vector<float>> want;
  test::for_each_set([&](const Kernels& kernels) {
    for (const int n_threads : {1, 2, 3}) {
      const std::unique_ptr<Backend> backend = make_cpu_backend(kernels.isa, n_threads);
      CHECK(std::string(backend->isa()) == kernels.isa && backend->n_threads() == n_threads);
      for (const int n : {1, 3, 17, kRows}) {
        std::vector<Weight> weights;
        std::vector<std::vector<float>> out;
        for (size_t i = 0; i < std::size(jobs); ++i) {
          weights.push_back(backend->load_weight(jobs[i].type, jobs[i].n_out, kCols, data[i].data()));
          out.emplace_back(static_cast<size_t>(n * jobs[i].n_out), test::kUntouched);
        }
        std::vector<LinearJob> list;
        for (size_t i = 0; i < std::size(jobs); ++i) list.push_back({&weights[i], out[i].data()});
        // The rows of a batch are the last of x, so that a row meets different neighbours in different batches.
        backend->linear(list, x.data() + static_cast<size_t>((kRows - n) * kCols), n, {});
        for (size_t i = 0; i < std::size(jobs); ++i) {
          if (want.size() < std::size(jobs)) {  // rows of one set, thread and batch; computed from all rows at once
            std::vector<float> all(static_cast<size_t>(kRows * jobs[i].n_out), test::kUntouched);
            const LinearJob one{&weights[i], all.data()};
            make_cpu_backend("ref", 1)->linear({&one, 1}, x.data(), kRows, {});
            want.push_back(all);
          }
          test::check_same_bits(out[i], std::span(want[i]).last(out[i].size()),
                                std::string(kernels.isa) + " " + type_traits(jobs[i].type).name + " threads " +
                                    std::to_string(n_threads) + " rows " + std::to_string(n));
        }
      }
    }
  });
}

TEST("backend linear with adapters: near double arithmetic; any set, batch and number of threads give the same bits") {
  std::mt19937 rng(23);
  const test::LowRankCase c(rng);
  std::vector<std::vector<float>> want;
  test::for_each_set([&](const Kernels& kernels) {
    for (const int n_threads : {1, 3}) {
      for (const bool alone : {false, true}) {  // rows one by one
        const std::unique_ptr<Backend> backend = make_cpu_backend(kernels.isa, n_threads);
        std::vector<std::vector<float>> out;
        std::vector<Weight> weights;
        for (size_t j = 0; j < 2; ++j) {
          out.emplace_back(static_cast<size_t>(c.kRows * c.kOut[j]), test::kUntouched);
          weights.push_back(backend->load_weight(TensorType::kF32, c.kOut[j], c.kCols, c.w[j].data()));
        }
        std::vector<float> t(static_cast<size_t>(4 * c.kRows * 16), test::kUntouched);
        const auto run = [&](int first, int n) {
          std::vector<LinearJob> jobs;
          for (size_t j = 0; j < 2; ++j) jobs.push_back({&weights[j], out[j].data() + first * c.kOut[j]});
          std::vector<LowRank> added;
          for (size_t i = 0; i < c.parts.size(); ++i) {
            const test::LowRankCase::Part& p = c.parts[i];
            const int begin = std::max(first, p.first_row);
            const int end = std::min(first + n, p.first_row + p.n_rows);
            if (begin >= end) continue;
            const int n_out = c.kOut[p.job];
            const int columns = (n_out + kOutputLanes - 1) / kOutputLanes * kOutputLanes;
            added.push_back({begin - first,
                             end - begin,
                             {p.type, p.rank, c.kCols, p.a.data()},
                             {p.type, p.rank, columns, p.b.data()},
                             p.has_bias ? p.bias.data() : nullptr,
                             p.has_norms ? p.norms.data() : nullptr,
                             p.scale,
                             t.data() + i * static_cast<size_t>(c.kRows * 16),
                             jobs[static_cast<size_t>(p.job)].out,
                             n_out,
                             n_out});
          }
          backend->linear(jobs, c.x.data() + first * c.kCols, n, {}, added);
        };
        if (alone) {
          for (int row = 0; row < c.kRows; ++row) run(row, 1);
        } else {
          run(0, c.kRows);
        }
        if (want.empty()) want = out;
        for (size_t j = 0; j < 2; ++j) test::check_same_bits(out[j], want[j], kernels.isa);
      }
    }
  });
  for (int j = 0; j < 2; ++j) {
    std::vector<float> w(static_cast<size_t>(c.kOut[j] * c.kCols));
    dequantize_row(TensorType::kF32, c.w[static_cast<size_t>(j)].data(), w.data(), static_cast<int64_t>(w.size()));
    for (int r = 0; r < c.kRows; ++r) {
      const float* x = c.x.data() + r * c.kCols;
      for (int o = 0; o < c.kOut[j]; ++o) {
        double sum = 0;
        double magnitude = 0;
        const auto add = [&](double term) { sum += term, magnitude += std::fabs(term); };
        for (int k = 0; k < c.kCols; ++k) add(static_cast<double>(w[static_cast<size_t>(o * c.kCols + k)]) * x[k]);
        for (const test::LowRankCase::Part& p : c.parts) {
          if (p.job != j || r < p.first_row || r >= p.first_row + p.n_rows) continue;
          const int columns = (c.kOut[j] + kOutputLanes - 1) / kOutputLanes * kOutputLanes;
          std::vector<float> a(static_cast<size_t>(p.rank * c.kCols));
          std::vector<float> b(static_cast<size_t>(p.rank * columns));
          dequantize_row(p.type, p.a.data(), a.data(), static_cast<int64_t>(a.size()));
          dequantize_row(p.type, p.b.data(), b.data(), static_cast<int64_t>(b.size()));
          if (p.has_bias) add(static_cast<double>(p.scale) * p.bias[static_cast<size_t>(o)]);
          for (int k = 0; k < p.rank; ++k) {
            for (int i = 0; i < c.kCols; ++i) {
              add(static_cast<double>(p.scale) * b[static_cast<size_t>(k * columns + o)] *
                  a[static_cast<size_t>(k * c.kCols + i)] * x[i]);
            }
          }
          if (!p.has_norms) continue;
          const auto norm = [&](int i) { return static_cast<double>(p.norms[static_cast<size_t>(i * columns + o)]); };
          const double factor = norm(0) / std::sqrt(norm(1) + p.scale * (norm(2) + p.scale * norm(3)));
          sum *= factor;
          magnitude *= factor;
        }
        const double got = want[static_cast<size_t>(j)][static_cast<size_t>(r * c.kOut[j] + o)];
        CHECK(std::fabs(got - sum) <= 24 * 0x1p-24 * magnitude);
      }
    }
  }
}

TEST("kernel table: names, best first, unknown names are refused") {
  CHECK(std::string(kernel_table().back().isa) == "ref" && kernel_table().back().available());
  for (const KernelRow& row : kernel_table()) {
    if (!row.available()) CHECK_THROWS(kBackendUnavailable, "ISA", select_kernels(row.isa));
  }
  const auto best =
      std::find_if(kernel_table().begin(), kernel_table().end(), [](const KernelRow& row) { return row.available(); });
  CHECK(std::string(select_kernels("").isa) == best->isa);
  // Where it is known which one must be the best here (scripts/test.mjs, emulated processors).
  if (const char* expected = std::getenv("GEMMA_TEST_BEST_ISA")) CHECK(std::string(best->isa) == expected);
  CHECK_THROWS(kBackendUnavailable, "ISA", select_kernels("AVX2"));
  CHECK_THROWS(kBackendUnavailable, "ISA", make_cpu_backend("sse9", 1));
}

TEST_MAIN
