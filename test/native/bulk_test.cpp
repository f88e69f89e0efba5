// Products of many rows in bfloat16: every set that has them, and their code on emulated tiles, against double
// arithmetic over the rounded numbers; the backend's division of a batch between them and the exact products.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "backend/backend.h"
#include "base/half.h"
#include "emulated_tiles.h"
#include "kernel_cases.h"
#include "quant/dequantize.h"

using namespace gemma;
using namespace gemma::cpu;

namespace {

struct Named {
  std::string name;
  const BulkGemm* bulk;
};

std::vector<Named> all_kernels() {
  std::vector<Named> all;
  test::for_each_set([&](const Kernels& kernels) {
    if (kernels.bulk != nullptr) all.push_back({kernels.isa, kernels.bulk});
  });
  if (test::emulated_bulk() != nullptr) all.push_back({"emulated tiles", test::emulated_bulk()});
  return all;
}

float rounded(float v) {
  if (std::isnan(v)) return v;
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  return std::bit_cast<float>((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

std::vector<std::byte> weights_of(std::mt19937& rng, TensorType type, int n_rows, int n_cols) {
  if (!is_float_type(type)) return test::random_weights(rng, type, n_rows, n_cols);
  const std::vector<float> values = test::random_floats(rng, static_cast<size_t>(n_rows * n_cols));
  std::vector<std::byte> bytes(static_cast<size_t>(n_rows) * row_bytes(type, n_cols));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = type == TensorType::kF16 ? f32_to_f16(values[i])
                                                   : static_cast<uint16_t>(std::bit_cast<uint32_t>(values[i]) >> 16);
    if (type == TensorType::kF32) {
      std::memcpy(&bytes[i * 4], &values[i], 4);
    } else {
      std::memcpy(&bytes[i * 2], &half, 2);
    }
  }
  return bytes;
}

// The products of n_out weight rows with one row of x, and how far from them a result may be: the order of a sum, and a
// few weights that another order of rounding takes to their other neighbour. Leaving out one product is far more.
struct Expected {
  std::vector<double> values;
  std::vector<double> tolerance;
};
Expected expected(TensorType type, const std::byte* w, int n_out, const float* x, int n_cols) {
  Expected e;
  std::vector<float> row(static_cast<size_t>(n_cols));
  for (int n = 0; n < n_out; ++n) {
    dequantize_row(type, w + static_cast<size_t>(n) * row_bytes(type, n_cols), row.data(), n_cols);
    double sum = 0;
    double magnitude = 0;
    double largest = 0;
    for (int j = 0; j < n_cols; ++j) {
      const double product =
          static_cast<double>(rounded(row[static_cast<size_t>(j)])) * static_cast<double>(rounded(x[j]));
      sum += product;
      magnitude += std::abs(product);
      largest = std::max(largest, std::abs(product));
    }
    e.values.push_back(sum);
    e.tolerance.push_back(magnitude * 0x1p-18 + largest * 0x1p-6 + 1e-30);
  }
  return e;
}

std::vector<float> run(const BulkGemm& bulk, const WeightRows& w, const std::vector<float>& x, int n_rows, int n_cols,
                       size_t stride, const Scratch& scratch) {
  const size_t bytes = bulk.packed_bytes(n_rows, n_cols);
  std::unique_ptr<std::byte[], void (*)(std::byte*)> packed(
      static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64})),
      [](std::byte* p) { ::operator delete(p, std::align_val_t{64}); });
  std::memset(packed.get(), 0xff, bytes);
  for (int r = 0; r < n_rows; r += kBulkRows) bulk.pack(x.data(), n_rows, n_cols, r, packed.get());
  std::vector<float> out(static_cast<size_t>(n_rows) * stride, test::kUntouched);
  bulk.multiply(w, packed.get(), n_rows, n_cols, out.data(), stride, scratch);
  return out;
}

}  // namespace

TEST("bulk products: every type, all shapes of tiles and tails, against double arithmetic") {
  std::mt19937 rng(31);
  test::ScratchMemory memory;
  constexpr int kOut = 307;  // more panels than fit into a step
  constexpr int kRows = 551;
  int n_compared = 0;
  for (const Named& set : all_kernels()) {
    for (const TensorType type : kTensorTypes) {
      for (const int n_cols : {32, 96, 256, 588, 1280}) {
        if (n_cols % type_traits(type).block_elems != 0) continue;
        const std::vector<std::byte> weights = weights_of(rng, type, kOut, n_cols);
        const std::vector<float> x = test::random_floats(rng, static_cast<size_t>(kRows * n_cols));
        struct Shape {
          int n_out, begin, end, n_rows;
        };
        std::vector<Shape> shapes = {{1, 0, 1, 1}, {16, 0, 16, 16}, {17, 1, 16, 17}, {47, 15, 47, 33}, {48, 0, 48, 5}};
        // Of the large shape one width is enough for each type.
        if (n_cols == 256 || (n_cols == 96 && !is_float_type(type))) shapes.push_back({kOut, 3, kOut, kRows});
        for (const Shape& s : shapes) {
          const test::TightBytes w(
              std::span<const std::byte>(weights).first(static_cast<size_t>(s.n_out) * row_bytes(type, n_cols)));
          const size_t stride = static_cast<size_t>(s.n_out) + 3;
          memory.poison(kScratchBytes);
          const std::vector<float> out = run(*set.bulk, {type, w.data(), row_bytes(type, n_cols), s.begin, s.end}, x,
                                             s.n_rows, n_cols, stride, memory.scratch());
          for (int r = 0; r < s.n_rows; ++r) {
            const bool looked_at = s.n_rows < 100 || r % 37 == 0 || r > s.n_rows - 3;
            const Expected e =
                looked_at ? expected(type, w.data(), s.n_out, &x[static_cast<size_t>(r * n_cols)], n_cols) : Expected();
            for (size_t n = 0; n < stride; ++n) {
              const float got = out[static_cast<size_t>(r) * stride + n];
              const bool inside = static_cast<int>(n) >= s.begin && static_cast<int>(n) < s.end;
              const bool good = !inside     ? test::is_untouched(got)
                                : looked_at ? std::abs(static_cast<double>(got) - e.values[n]) <= e.tolerance[n]
                                            : std::isfinite(got);
              ++n_compared;
              if (!good) {
                test::fail(__FILE__, __LINE__,
                           set.name + " " + type_traits(type).name + " columns " + std::to_string(n_cols) + " [" +
                               std::to_string(r) + "][" + std::to_string(n) + "]: got " + test::describe(got) +
                               (inside && looked_at ? ", want " + std::to_string(e.values[n]) + " within " +
                                                          std::to_string(e.tolerance[n])
                                                    : ""));
              }
            }
          }
        }
      }
    }
  }
  if (!all_kernels().empty()) CHECK(n_compared > 1000000);
}

TEST("bulk products: a row alone has the bits it has in company; NaN stays in its row") {
  std::mt19937 rng(32);
  test::ScratchMemory memory;
  constexpr int kOut = 53;
  constexpr int kCols = 512;
  constexpr int kRows = 37;
  for (const Named& set : all_kernels()) {
    for (const TensorType type : {TensorType::kQ4_0, TensorType::kQ6_K, TensorType::kF16}) {
      const std::vector<std::byte> weights = weights_of(rng, type, kOut, kCols);
      std::vector<float> x = test::random_floats(rng, static_cast<size_t>(kRows * kCols));
      x[5 * kCols + 7] = std::bit_cast<float>(0x7fffffffu);
      x[6 * kCols] = std::numeric_limits<float>::infinity();
      const WeightRows w{type, weights.data(), row_bytes(type, kCols), 0, kOut};
      const std::vector<float> all = run(*set.bulk, w, x, kRows, kCols, kOut, memory.scratch());
      for (int r = 0; r < kRows; ++r) {
        const std::vector<float> row(x.begin() + r * kCols, x.begin() + (r + 1) * kCols);
        const std::vector<float> alone = run(*set.bulk, w, row, 1, kCols, kOut, memory.scratch());
        test::check_same_bits(alone, std::span(all).subspan(static_cast<size_t>(r * kOut), kOut),
                              set.name + " row " + std::to_string(r));
        for (const float v : alone) CHECK(r == 5 ? std::isnan(v) : r == 6 || std::isfinite(v));
      }
    }
  }
}

TEST("backend: the last rows of a batch are bulk, the others equal single rows, float weights only where allowed") {
  std::mt19937 rng(33);
  constexpr int kOut = 200;
  constexpr int kCols = 256;
  constexpr int kRows = 41;
  for (const KernelRow& set : kernel_table()) {
    if (!set.available()) continue;
    const auto backend = make_cpu_backend(set.isa, 2);
    const bool has_bulk = select_kernels(set.isa).bulk != nullptr;
    CHECK(backend->traits().has_bulk() == has_bulk && cpu_traits(set.isa, 2)->has_bulk() == has_bulk);
    const std::vector<float> x = test::random_floats(rng, static_cast<size_t>(kRows * kCols));
    const std::vector<std::byte> q = weights_of(rng, TensorType::kQ4_0, kOut, kCols);
    const std::vector<std::byte> f = weights_of(rng, TensorType::kF16, kOut, kCols);
    const Weight wq = backend->load_weight(TensorType::kQ4_0, kOut, kCols, q.data());
    const Weight wf = backend->load_weight(TensorType::kF16, kOut, kCols, f.data());
    const auto products = [&](int first, int n, Bulk bulk) {
      std::vector<std::vector<float>> out(2, std::vector<float>(static_cast<size_t>(n * kOut), test::kUntouched));
      const LinearJob jobs[] = {{&wq, out[0].data()}, {&wf, out[1].data()}};
      backend->linear(jobs, x.data() + first * kCols, n, bulk);
      return out;
    };
    const auto exact = products(0, kRows, {});
    const auto bulk = products(0, kRows, {kRows, true});
    for (const int n_bulk : {1, 16, 40}) {
      for (const bool float_weights : {false, true}) {
        const auto mixed = products(0, kRows, {n_bulk, float_weights});
        const size_t split = static_cast<size_t>((kRows - n_bulk) * kOut);
        for (size_t j = 0; j < 2; ++j) {
          const auto& last = j == 0 || float_weights ? bulk[j] : exact[j];
          test::check_same_bits(std::span(mixed[j]).first(split), std::span(exact[j]).first(split), "first rows");
          test::check_same_bits(std::span(mixed[j]).subspan(split), std::span(last).subspan(split), "last rows");
        }
      }
    }
    if (!has_bulk) {
      for (size_t j = 0; j < 2; ++j) test::check_same_bits(bulk[j], exact[j], "no bulk");
    }
  }
}

TEST_MAIN
