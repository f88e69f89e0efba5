// Norms, rotation, GELU, quantisation of activations and cache rows: every set against double arithmetic within bounds
// that follow from the number of roundings, and bit for bit where kernels.h promises it.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "base/half.h"
#include "kernel_cases.h"

using namespace gemma;
using namespace gemma::cpu;
using test::awkward_blocks;
using test::Quantized;

namespace {

constexpr double kHalfUlp = 0x1p-24;  // largest relative error of one rounding to float
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kSmallest = 0x1p-149;  // results below the normal range are rounded to multiples of it
constexpr size_t kPad = 20;             // more than a vector

std::vector<int> widths() {
  std::vector<int> all;
  for (int n = 1; n <= 33; ++n) all.push_back(n);
  all.push_back(640);
  all.push_back(1152);
  return all;
}

// n values followed by NaN that nobody may use or overwrite.
std::vector<float> padded(const std::vector<float>& values) {
  std::vector<float> all = values;
  all.resize(values.size() + kPad, test::kUntouched);
  return all;
}

void check_padding(const std::vector<float>& values, size_t n, const std::string& what) {
  for (size_t i = n; i < values.size(); ++i) {
    if (!test::is_untouched(values[i])) test::fail(__FILE__, __LINE__, what + ": written past the end");
  }
}

void check_near(float got, double want, double tolerance, const std::string& what) {
  if (!(std::fabs(static_cast<double>(got) - want) <= tolerance)) {
    test::fail(
        __FILE__, __LINE__,
        what + ": got " + test::describe(got) + ", want " + std::to_string(want) + " +- " + std::to_string(tolerance));
  }
}

double inverse_rms(const std::vector<float>& x, double eps) {
  double sum = 0;
  for (const float v : x) sum += static_cast<double>(v) * v;
  return 1.0 / std::sqrt(sum / static_cast<double>(x.size()) + eps);
}

// Roundings of inverse_rms: squares are added in at least 16 chains (half of the relative error of the sum, because of
// the square root), then mean, eps, root, reciprocal.
double norm_roundings(int dim) {
  return dim / 32.0 + 8;
}

struct NormCase {
  std::string name;
  std::vector<float> x;
  std::vector<float> weight;
};
std::vector<NormCase> norm_cases(std::mt19937& rng, int dim) {
  const size_t n = static_cast<size_t>(dim);
  std::vector<NormCase> cases;
  for (const float size : {1.0f, 1e4f, 1e-3f, 1e-20f}) {
    cases.push_back({"size " + std::to_string(size), test::random_floats(rng, n, size), test::random_floats(rng, n)});
  }
  cases.push_back({"zeros", std::vector<float>(n, 0.0f), test::random_floats(rng, n)});
  cases.push_back({"one large", test::random_floats(rng, n), std::vector<float>(n, -30.0f)});
  cases.back().x[n / 2] = -1e4f;
  return cases;
}

Quantized quantized(const Kernels& kernels, const std::vector<float>& x) {
  return {x, 1, static_cast<int>(x.size()), kernels};
}

}  // namespace

TEST("rms_norm and add_rms_norm: every set within rounding of double, out may be x") {
  std::mt19937 rng(21);
  for (const int dim : widths()) {
    const size_t n = static_cast<size_t>(dim);
    for (const NormCase& c : norm_cases(rng, dim)) {
      constexpr float kEps = 1e-6f;
      const double scale = inverse_rms(c.x, kEps);
      const std::vector<float> residual = test::random_floats(rng, n, 100.0f);
      test::for_each_set([&](const Kernels& kernels) {
        const std::string what = std::string(kernels.isa) + " dim " + std::to_string(dim) + " " + c.name;
        const std::vector<float> x = padded(c.x);
        const std::vector<float> weight = padded(c.weight);
        std::vector<float> out(n + kPad, test::kUntouched);
        kernels.rms_norm(out.data(), x.data(), weight.data(), dim, kEps);
        check_padding(out, n, what);
        std::vector<float> in_place = x;
        kernels.rms_norm(in_place.data(), in_place.data(), weight.data(), dim, kEps);
        test::check_same_bits(in_place, out, what + " in place");
        std::vector<float> sum = padded(residual);
        kernels.add_rms_norm(sum.data(), x.data(), weight.data(), dim, kEps);
        check_padding(sum, n, what);
        for (size_t j = 0; j < n; ++j) {
          const double want = static_cast<double>(c.x[j]) * scale * c.weight[j];
          const double tolerance = (norm_roundings(dim) + 2) * kHalfUlp * std::fabs(want) + kSmallest;
          check_near(out[j], want, tolerance, what);
          check_near(sum[j], residual[j] + want, tolerance + kHalfUlp * std::fabs(residual[j] + want), what + " added");
        }
      });
    }
  }
}

TEST("rms_norm: NaN stays NaN") {
  test::for_each_set([&](const Kernels& kernels) {
    std::vector<float> x(40, 1.0f);
    x[37] = kNaN;
    const std::vector<float> weight(40, 1.0f);
    kernels.rms_norm(x.data(), x.data(), weight.data(), 40, 1e-6f);
    for (const float v : x) CHECK(std::isnan(v));
  });
}

TEST("layer_norm: every set within rounding of double, a large mean included, out may be x") {
  std::mt19937 rng(27);
  for (const int dim : widths()) {
    const size_t n = static_cast<size_t>(dim);
    for (const float offset : {0.0f, 1.0f, -1000.0f}) {
      for (const NormCase& c : norm_cases(rng, dim)) {
        constexpr float kEps = 1e-6f;
        std::vector<float> values = c.x;
        for (float& v : values) v += offset;
        double mean = 0;
        double largest = 0;
        for (const float v : values) {
          mean += v / static_cast<double>(dim);
          largest = std::max(largest, std::fabs(static_cast<double>(v)));
        }
        double squares = 0;
        for (const float v : values) squares += (v - mean) * (v - mean);
        const double scale = 1.0 / std::sqrt(squares / dim + kEps);
        const std::vector<float> bias = test::random_floats(rng, n);
        // The mean is off by the additions' roundings, and so is every difference to it.
        const double shift = (dim / 8.0 + 4) * kHalfUlp * largest;
        test::for_each_set([&](const Kernels& kernels) {
          const std::string what = std::string(kernels.isa) + " dim " + std::to_string(dim) + " " + c.name +
                                   " offset " + std::to_string(offset);
          const std::vector<float> x = padded(values);
          std::vector<float> out(n + kPad, test::kUntouched);
          kernels.layer_norm(out.data(), x.data(), padded(c.weight).data(), padded(bias).data(), dim, kEps);
          check_padding(out, n, what);
          std::vector<float> in_place = x;
          kernels.layer_norm(in_place.data(), in_place.data(), padded(c.weight).data(), padded(bias).data(), dim, kEps);
          test::check_same_bits(in_place, out, what + " in place");
          for (size_t j = 0; j < n; ++j) {
            const double normed = (values[j] - mean) * scale;
            const double want = normed * c.weight[j] + bias[j];
            // The shift moves the value itself and, through the sum of squares, the scale.
            const double relative = (norm_roundings(dim) + 4) * kHalfUlp + shift * scale * (1 + shift * scale);
            check_near(out[j], want,
                       std::fabs(c.weight[j]) * (std::fabs(normed) * relative + shift * scale) +
                           2 * kHalfUlp * (std::fabs(want) + std::fabs(bias[j])) + kSmallest,
                       what);
          }
        });
      }
    }
  }
  test::for_each_set([&](const Kernels& kernels) {
    std::vector<float> x(40, 1.0f);
    x[37] = kNaN;
    const std::vector<float> weight(40, 1.0f);
    kernels.layer_norm(x.data(), x.data(), weight.data(), weight.data(), 40, 1e-6f);
    for (const float v : x) CHECK(std::isnan(v));
  });
}

TEST("add_bias, add_residual_bias: every set to the bit of plain additions") {
  std::mt19937 rng(28);
  for (const int dim : widths()) {
    const size_t n = static_cast<size_t>(dim);
    const std::vector<float> x = test::random_floats(rng, n);
    const std::vector<float> branch = test::random_floats(rng, n, 10.0f);
    const std::vector<float> bias = test::random_floats(rng, n);
    std::vector<float> want = x;
    std::vector<float> want_residual = x;
    for (size_t j = 0; j < n; ++j) {
      want[j] += bias[j];
      want_residual[j] += branch[j] + bias[j];
    }
    test::for_each_set([&](const Kernels& kernels) {
      const std::string what = std::string(kernels.isa) + " dim " + std::to_string(dim);
      std::vector<float> got = padded(x);
      kernels.add_bias(got.data(), padded(bias).data(), dim);
      check_padding(got, n, what);
      got.resize(n);
      test::check_same_bits(got, want, what + " add_bias");
      got = padded(x);
      kernels.add_residual_bias(got.data(), padded(branch).data(), padded(bias).data(), dim);
      check_padding(got, n, what);
      got.resize(n);
      test::check_same_bits(got, want_residual, what + " add_residual_bias");
    });
  }
}

TEST("bias_gelu: every set within rounding of double, and to the bit geglu of the sum with ones") {
  std::mt19937 rng(29);
  for (const int dim : widths()) {
    const size_t n = static_cast<size_t>(dim);
    for (const float size : {0.01f, 1.0f, 5.0f, 1e4f}) {
      const std::vector<float> x = test::random_floats(rng, n, size);
      const std::vector<float> bias = test::random_floats(rng, n, size);
      std::vector<float> sum = x;
      for (size_t j = 0; j < n; ++j) sum[j] += bias[j];
      test::for_each_set([&](const Kernels& kernels) {
        const std::string what =
            std::string(kernels.isa) + " dim " + std::to_string(dim) + " size " + std::to_string(size);
        std::vector<float> got = padded(x);
        kernels.bias_gelu(got.data(), padded(bias).data(), dim);
        check_padding(got, n, what);
        got.resize(n);
        std::vector<float> same(n);
        kernels.geglu(same.data(), sum.data(), std::vector<float>(n, 1.0f).data(), dim);
        test::check_same_bits(got, same, what);
        for (size_t j = 0; j < n; ++j) {
          const double v = sum[j];
          const double gelu = 0.5 * v * (1.0 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
          check_near(got[j], gelu, 8 * kHalfUlp * std::fabs(v) + kSmallest, what + " of " + test::describe(sum[j]));
        }
      });
    }
  }
}

TEST("norm_rope: every set within rounding of double, halves of any width") {
  std::mt19937 rng(22);
  for (int head_dim = 2; head_dim <= 256; head_dim += head_dim < 68 ? 2 : 4) {
    const size_t n = static_cast<size_t>(head_dim);
    const size_t half = n / 2;
    for (const NormCase& c : norm_cases(rng, head_dim)) {
      constexpr float kEps = 1e-6f;
      constexpr float kScale = 0.0625f;
      const double norm = inverse_rms(c.x, kEps);
      std::vector<float> table(n);
      for (size_t j = 0; j < half; ++j) {
        const float angle = static_cast<float>(rng() % 100000) * 1e-3f;
        table[j] = std::cos(angle);
        table[j + half] = std::sin(angle);
      }
      test::for_each_set([&](const Kernels& kernels) {
        const std::string what = std::string(kernels.isa) + " head_dim " + std::to_string(head_dim) + " " + c.name;
        std::vector<float> x = padded(c.x);
        kernels.norm_rope(x.data(), padded(c.weight).data(), padded(table).data(), head_dim, kEps, kScale);
        check_padding(x, n, what);
        for (size_t j = 0; j < half; ++j) {
          const double a = c.x[j] * norm * c.weight[j];
          const double b = c.x[j + half] * norm * c.weight[j + half];
          const double cosine = table[j];
          const double sine = table[j + half];
          const double roundings = (norm_roundings(head_dim) + 5) * kHalfUlp * kScale;
          check_near(x[j], (a * cosine - b * sine) * kScale,
                     roundings * (std::fabs(a * cosine) + std::fabs(b * sine)) + 4 * kSmallest, what);
          check_near(x[j + half], (b * cosine + a * sine) * kScale,
                     roundings * (std::fabs(b * cosine) + std::fabs(a * sine)) + 4 * kSmallest, what);
        }
      });
    }
  }
}

TEST("geglu: every set within rounding of double, far arguments included, out may be gate") {
  std::mt19937 rng(23);
  for (const int dim : widths()) {
    const size_t n = static_cast<size_t>(dim);
    for (const float size : {0.01f, 1.0f, 5.0f, 1e4f, 1e13f}) {
      const std::vector<float> gate = test::random_floats(rng, n, size);
      const std::vector<float> up = test::random_floats(rng, n, size == 1e13f ? 1.0f : size);
      test::for_each_set([&](const Kernels& kernels) {
        const std::string what =
            std::string(kernels.isa) + " dim " + std::to_string(dim) + " size " + std::to_string(size);
        std::vector<float> out(n + kPad, test::kUntouched);
        kernels.geglu(out.data(), padded(gate).data(), padded(up).data(), dim);
        check_padding(out, n, what);
        std::vector<float> in_place = padded(gate);
        kernels.geglu(in_place.data(), in_place.data(), padded(up).data(), dim);
        test::check_same_bits(in_place, out, what + " in place");
        for (size_t j = 0; j < n; ++j) {
          const double v = gate[j];
          const double gelu = 0.5 * v * (1.0 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
          // 1 + tanh is off by a few roundings of 1; an argument y with relative error e moves it by y e / cosh(y)^2 <=
          // e / 2.
          check_near(out[j], gelu * up[j], 8 * kHalfUlp * std::fabs(v * up[j]) + kSmallest,
                     what + " of " + test::describe(gate[j]));
        }
      });
    }
  }
  test::for_each_set([&](const Kernels& kernels) {
    const std::vector<float> gate = {kNaN, kInfinity, 1.0f, -1e30f, 0.0f};
    const std::vector<float> up = {1.0f, 2.0f, kNaN, 1.0f, 5.0f};
    float out[5];
    kernels.geglu(out, gate.data(), up.data(), 5);
    CHECK(std::isnan(out[0]) && out[1] == kInfinity && std::isnan(out[2]));
    CHECK(!(out[3] > 0) && !(out[3] < -1e-30f) && out[4] == 0);
  });
}

TEST("quantize_row: every set equals ref bit for bit") {
  std::mt19937 rng(24);
  const auto check = [](const std::vector<float>& x) {
    const Quantized want = quantized(kernels_ref(), x);
    test::for_each_set([&](const Kernels& kernels) {
      const Quantized got = quantized(kernels, x);
      CHECK(got.q == want.q && got.neg_sum == want.neg_sum && got.neg_sum16 == want.neg_sum16);
      test::check_same_bits(got.d, want.d, std::string(kernels.isa) + " d");
      test::check_same_bits(got.dsum, want.dsum, std::string(kernels.isa) + " dsum");
      test::check_same_bits(got.dsum16, want.dsum16, std::string(kernels.isa) + " dsum16");
    });
  };
  const std::vector<float> awkward = awkward_blocks(rng);
  check(awkward);
  // Kernels take several blocks at a time: each awkward one at every place among plain ones, and rows that end
  // anywhere.
  for (size_t block = 0; block < awkward.size(); block += 32) {
    for (size_t place = 0; place < 4; ++place) {
      std::vector<float> x = test::random_floats(rng, 128);
      std::copy_n(awkward.begin() + static_cast<std::ptrdiff_t>(block), 32,
                  x.begin() + static_cast<std::ptrdiff_t>(32 * place));
      check(x);
    }
  }
  for (size_t n = 32; n <= 32 * 13; n += 32) check(test::random_floats(rng, n));
}

TEST("quantize_row ref: half a step at most, sums right, a block that is not finite has no scale") {
  std::mt19937 rng(25);
  const std::vector<float> x = awkward_blocks(rng);
  const Quantized got = quantized(kernels_ref(), x);
  int n_not_finite = 0;
  for (size_t b = 0; b < x.size() / 32; ++b) {
    double largest = 0;
    bool finite = true;
    int sums[2] = {0, 0};
    double error = 0;
    double plain_error = 0;  // with the step largest / 127
    for (size_t j = 0; j < 32; ++j) {
      largest = std::max(largest, std::fabs(static_cast<double>(x[b * 32 + j])));
      finite = finite && std::isfinite(x[b * 32 + j]);
      sums[j / 16] += got.q[b * 32 + j];
      CHECK(got.q[b * 32 + j] >= -127);
    }
    CHECK(got.neg_sum[b] == -(sums[0] + sums[1]) && got.neg_sum16[2 * b] == -sums[0] &&
          got.neg_sum16[2 * b + 1] == -sums[1]);
    if (!finite) {
      ++n_not_finite;
      CHECK(std::isnan(got.d[b]) && std::isnan(got.dsum[b]) && std::isnan(got.dsum16[2 * b]) &&
            std::isnan(got.dsum16[2 * b + 1]));
      continue;
    }
    const double d = got.d[b];
    CHECK(d >= 0 && std::isfinite(got.dsum[b]));
    CHECK(test::same_bits(got.dsum[b], got.d[b] * static_cast<float>(sums[0] + sums[1])));
    CHECK(test::same_bits(got.dsum16[2 * b], got.d[b] * static_cast<float>(sums[0])));
    CHECK(test::same_bits(got.dsum16[2 * b + 1], got.d[b] * static_cast<float>(sums[1])));
    if (largest <= 1e-30) {
      CHECK(d == 0 && sums[0] == 0 && sums[1] == 0);
      continue;
    }
    CHECK(d >= largest / 127 * (1 - 1e-6) && d <= largest / 124 * (1 + 1e-6));
    for (size_t j = 0; j < 32; ++j) {
      const double v = x[b * 32 + j];
      const double off = std::fabs(v - d * got.q[b * 32 + j]);
      CHECK(off <= 0.5 * d * (1 + 1e-4));
      error += off * off;
      const double plain = v / (largest / 127);
      plain_error +=
          (plain - std::nearbyint(plain)) * (plain - std::nearbyint(plain)) * (largest / 127) * (largest / 127);
    }
    CHECK(error <= plain_error * 1.001 + 1e-9 * largest * largest);
  }
  CHECK(n_not_finite == 4);
}

TEST("store_kv_row: every set equals ref bit for bit; f16 rounds to the nearest, q8_0 to half a step") {
  std::mt19937 rng(26);
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    for (const int head_dim : {1, 7, 8, 15, 16, 17, 32, 72, 80, 96, 128, 256}) {
      if (type == KvType::kQ8_0 && head_dim % 32 != 0) continue;
      const size_t n = static_cast<size_t>(head_dim);
      const size_t bytes = type == KvType::kF32 ? 4 * n : type == KvType::kF16 ? 2 * n : n / 32 * 34;
      for (int round = 0; round < 8; ++round) {
        std::vector<float> x = test::random_floats(rng, n, round == 0 ? 1e-6f : round == 1 ? 3e4f : 1.0f);
        if (round == 2) x[n - 1] = kNaN;
        if (round == 3) x[n / 2] = -kInfinity;
        if (round == 4) x.assign(n, 0.0f);
        if (round == 5) x[0] = 65520.0f;         // the first that rounds to infinity in f16
        if (round == 6) x[0] = 1.0f + 0x1p-11f;  // a tie
        const std::vector<float> exact = padded(x);
        std::vector<std::byte> want(bytes);
        kernels_ref().store_kv_row(type, x.data(), want.data(), head_dim);
        test::for_each_set([&](const Kernels& kernels) {
          std::vector<std::byte> got(bytes + 64, std::byte{0xab});
          kernels.store_kv_row(type, exact.data(), got.data(), head_dim);
          CHECK(std::all_of(got.begin() + static_cast<std::ptrdiff_t>(bytes), got.end(),
                            [](std::byte b) { return b == std::byte{0xab}; }));
          if (type == KvType::kF16) {
            for (size_t j = 0; j < n; ++j) {
              uint16_t a = 0;
              uint16_t b = 0;
              std::memcpy(&a, &got[2 * j], 2);
              std::memcpy(&b, &want[2 * j], 2);
              CHECK(a == b || (std::isnan(f16_to_f32(a)) && std::isnan(f16_to_f32(b))));
              if (std::isfinite(x[j])) CHECK(a == f32_to_f16(x[j]));
            }
          } else {
            CHECK(std::memcmp(got.data(), want.data(), bytes) == 0);
          }
        });
        if (type != KvType::kQ8_0) continue;
        for (size_t b = 0; b < n / 32; ++b) {
          uint16_t half = 0;
          std::memcpy(&half, &want[b * 34], 2);
          const double d = f16_to_f32(half);
          const bool finite = std::all_of(&x[b * 32], &x[b * 32] + 32, [](float v) { return std::isfinite(v); });
          CHECK(std::isnan(d) != finite);
          if (!finite || round == 0) continue;  // f16 scales of tiny blocks are subnormal, the values are clamped
          for (size_t j = 0; j < 32; ++j) {
            const double code = static_cast<int8_t>(want[b * 34 + 2 + j]);
            CHECK(std::fabs(x[b * 32 + j] - d * code) <= 0.5 * d * (1 + 1e-5));
          }
        }
      }
    }
  }
}

TEST_MAIN
