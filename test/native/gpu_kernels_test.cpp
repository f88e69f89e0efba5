// Every kernel of the GPU backend on every emulated chip: to the bit the CPU's scalar kernels where both promise the
// same arithmetic, else within bounds of double arithmetic that follow from the number of roundings. Sizes are prime or
// one off a tile, and unequal. Device memory is NaN round every buffer, the backend's own included, and nobody may
// write there. Lanes, warps and blocks run forward, backward and in random order.
//   GEMMA_TEST_CHIPS="sm_80 gfx942"   only those
//   GEMMA_EMULATOR_ORDER=0|1|2        only that order
#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <functional>
#include <map>
#include <sstream>
#include <utility>

#include "backend/gpu/emulator/emulated_device.h"
#include "backend/gpu/emulator/emulator.h"
#include "backend/gpu/repack.h"
#include "cache_cases.h"
#include "kernel_cases.h"
#include "quant/dequantize.h"

namespace gemma {
namespace {

using namespace gemma::test;
using gpu::Kernel;

constexpr double kHalfUlp = 0x1p-24;    // largest relative error of one rounding to float
constexpr double kSmallest = 0x1p-149;  // results below the normal range are rounded to multiples of it
constexpr float kEps = 1e-6f;
const float kNaN = std::numeric_limits<float>::quiet_NaN();
const float kInfinity = std::numeric_limits<float>::infinity();

std::array<int, gpu::kNumKernels> launches;  // of each kernel, by all tests

// A device whose allocations lie between words that are NaN as floats and as halves, and that no arithmetic leaves as
// they are: it makes a signalling NaN a quiet one.
class PaddedDevice final : public gpu::Device {
 public:
  explicit PaddedDevice(std::unique_ptr<gpu::Device> device) : device_(std::move(device)) {}

  const gpu::DeviceInfo& info() const override { return device_->info(); }
  uint64_t free_bytes() const override { return device_->free_bytes(); }
  void* allocate(size_t bytes) override {
    std::byte* memory = static_cast<std::byte*>(device_->allocate(bytes + 2 * kPadding));
    device_->fill(memory, 0xff, bytes + 2 * kPadding);
    device_->upload(memory, padding().data(), kPadding);
    device_->upload(memory + kPadding + bytes, padding().data(), kPadding);
    sizes_[memory + kPadding] = bytes;
    return memory + kPadding;
  }
  void free(void* memory) noexcept override {
    const auto found = sizes_.find(static_cast<std::byte*>(memory));
    is_whole_ = is_whole_ && padding_is_whole(found->first, found->second);
    device_->free(found->first - kPadding);
    sizes_.erase(found);
  }
  void upload(void* dst, const void* src, size_t bytes) override { device_->upload(dst, src, bytes); }
  void download(void* dst, const void* src, size_t bytes) override { device_->download(dst, src, bytes); }
  void copy(void* dst, const void* src, size_t bytes) override { device_->copy(dst, src, bytes); }
  void fill(void* dst, uint8_t value, size_t bytes) override { device_->fill(dst, value, bytes); }
  void launch(Kernel kernel, gpu::Grid grid, unsigned n_threads, const void* arguments) override {
    ++launches[static_cast<size_t>(kernel)];
    device_->launch(kernel, grid, n_threads, arguments);
  }
  void synchronize() override { device_->synchronize(); }

  // Whether nothing was written outside of a buffer so far.
  bool is_whole() {
    for (const auto& [memory, bytes] : sizes_) is_whole_ = is_whole_ && padding_is_whole(memory, bytes);
    return is_whole_;
  }

 private:
  static constexpr size_t kPadding = 1024;

  using Padding = std::array<uint32_t, kPadding / sizeof(uint32_t)>;

  // Trivial to destroy: devices that live as long as the program look at it at its end.
  static const Padding& padding() {
    static constexpr Padding kWords = [] {
      Padding words{};
      words.fill(0xffbfffffu);
      return words;
    }();
    return kWords;
  }

  bool padding_is_whole(std::byte* memory, size_t bytes) {
    Padding before{};
    Padding behind{};
    device_->download(before.data(), memory - kPadding, kPadding);
    device_->download(behind.data(), memory + bytes, kPadding);
    return before == padding() && behind == padding();
  }

  std::unique_ptr<gpu::Device> device_;
  std::map<std::byte*, size_t> sizes_;
  bool is_whole_ = true;
};

// A chip in one order of its threads.
struct Chip {
  std::string name;
  PaddedDevice* device = nullptr;  // the backend's
  std::unique_ptr<Backend> backend;
};

std::vector<std::string> chip_names() {
  std::vector<std::string> names;
  if (const char* wanted = std::getenv("GEMMA_TEST_CHIPS")) {
    std::istringstream words(wanted);
    for (std::string word; words >> word;) names.push_back(word);
    return names;
  }
  for (const gpu::EmulatedChip* chip : gpu::emulated_chips()) names.emplace_back(chip->name);
  return names;
}

// f(chip) on every chip in every order.
void for_each_chip(const std::function<void(Chip&)>& f) {
  static std::vector<Chip> chips = [] {
    std::vector<Chip> all;
    for (const std::string& name : chip_names()) {
      auto device = std::make_unique<PaddedDevice>(gpu::make_emulated_device(name, 2));
      PaddedDevice* padded = device.get();
      all.push_back({name, padded, gpu::make_gpu_backend(std::move(device), 2)});
    }
    return all;
  }();
  CHECK(!chips.empty());
  const char* only = std::getenv("GEMMA_EMULATOR_ORDER");
  for (Chip& chip : chips) {
    for (int order = 0; order < 3; ++order) {
      if (only != nullptr && order != std::strtol(only, nullptr, 10)) continue;
      emulator::set_schedule(order, 7);
      try {
        f(chip);
      } catch (const std::exception& e) {
        fail(__FILE__, __LINE__, chip.name + ", order " + std::to_string(order) + ": " + e.what());
      }
      if (!chip.device->is_whole())
        fail(__FILE__, __LINE__, chip.name + ", order " + std::to_string(order) + ": written outside of a buffer");
    }
  }
}

// Values on a device.
template <class T>
class Array {
 public:
  Array(Chip& chip, std::span<const T> values)
      : chip_(chip), n_(values.size()), buffer_(chip.backend->allocate(values.size_bytes())) {
    chip_.backend->upload(buffer_->data(), values.data(), values.size_bytes());
  }
  Array(Chip& chip, const std::vector<T>& values) : Array(chip, std::span<const T>(values)) {}
  // n values that nobody wrote yet.
  Array(Chip& chip, size_t n) : chip_(chip), n_(n), buffer_(chip.backend->allocate(n * sizeof(T))) {}

  T* data() const { return reinterpret_cast<T*>(buffer_->data()); }
  std::vector<T> get() const {
    std::vector<T> values(n_);
    chip_.backend->download(values.data(), buffer_->data(), n_ * sizeof(T));
    return values;
  }

 private:
  Chip& chip_;
  size_t n_;
  std::unique_ptr<Buffer> buffer_;
};
using Floats = Array<float>;

void check_near(std::span<const float> got, std::span<const double> want, std::span<const double> tolerance,
                const std::string& what) {
  if (got.size() != want.size() || got.size() != tolerance.size()) fail(__FILE__, __LINE__, what + ": sizes differ");
  for (size_t i = 0; i < got.size(); ++i) {
    if (!(std::fabs(static_cast<double>(got[i]) - want[i]) <= tolerance[i])) {
      fail(__FILE__, __LINE__,
           what + " at " + std::to_string(i) + ": got " + describe(got[i]) + ", want " + std::to_string(want[i]) +
               " +- " + std::to_string(tolerance[i]));
    }
  }
}

template <class T>
void check_same(const std::vector<T>& got, const std::vector<T>& want, const std::string& what) {
  if (got != want) fail(__FILE__, __LINE__, what + ": bytes differ");
}

std::vector<float> ones(size_t n) {
  return std::vector<float>(n, 1.0f);
}

// A sum of dim values by a block: a thread's chain, five additions of its warp, four of the warps; through a square
// root it counts half. Then mean, eps, root, reciprocal, two products and the last addition.
double norm_roundings(int dim) {
  return (dim / 128.0 + 1 + 9) / 2 + 7;
}

}  // namespace

TEST("rms_norm, add_rms_norm: within rounding of double, out may be x, NaN stays in its row") {
  std::mt19937 rng(1);
  constexpr size_t kRows = 3;
  for (const int dim : {1, 31, 127, 129, 257, 1153}) {
    const size_t n = static_cast<size_t>(dim);
    for (const float size : {1.0f, 1e4f, 1e-20f}) {
      const std::vector<float> x = random_floats(rng, kRows * n, size);
      const std::vector<float> weight = random_floats(rng, n);
      const std::vector<float> residual = random_floats(rng, kRows * n, 100.0f);
      std::vector<double> want;
      std::vector<double> sum;
      std::vector<double> tolerance;
      std::vector<double> sum_tolerance;
      for (size_t r = 0; r < kRows; ++r) {
        double squares = 0;
        for (size_t j = 0; j < n; ++j) squares += static_cast<double>(x[r * n + j]) * x[r * n + j];
        const double scale = 1.0 / std::sqrt(squares / dim + kEps);
        for (size_t j = 0; j < n; ++j) {
          want.push_back(x[r * n + j] * scale * weight[j]);
          tolerance.push_back(norm_roundings(dim) * kHalfUlp * std::fabs(want.back()) + kSmallest);
          sum.push_back(residual[r * n + j] + want.back());
          sum_tolerance.push_back(tolerance.back() + kHalfUlp * std::fabs(sum.back()));
        }
      }
      const std::string what = "dim " + std::to_string(dim) + " size " + std::to_string(size);
      for_each_chip([&](Chip& chip) {
        const Floats in(chip, x);
        const Floats w(chip, weight);
        const Floats out(chip, x.size());
        chip.backend->rms_norm(out.data(), in.data(), w.data(), kRows, dim, kEps);
        check_near(out.get(), want, tolerance, what);
        const Floats stream(chip, residual);
        chip.backend->add_rms_norm(stream.data(), in.data(), w.data(), kRows, dim, kEps);
        check_near(stream.get(), sum, sum_tolerance, what + " added");
        chip.backend->rms_norm(in.data(), in.data(), w.data(), kRows, dim, kEps);
        check_same_bits(in.get(), out.get(), what + " in place");
      });
    }
  }
  for_each_chip([&](Chip& chip) {
    std::vector<float> x = ones(3 * 300);
    x[300 + 299] = kNaN;
    const Floats in(chip, x);
    const Floats w(chip, ones(300));
    chip.backend->rms_norm(in.data(), in.data(), w.data(), 3, 300, kEps);
    const std::vector<float> got = in.get();
    for (size_t i = 0; i < got.size(); ++i) CHECK(std::isnan(got[i]) == (i / 300 == 1));
  });
}

TEST("layer_norm: within rounding of double, a large mean included, out may be x") {
  std::mt19937 rng(2);
  constexpr size_t kRows = 3;
  for (const int dim : {1, 31, 127, 129, 257, 1153}) {
    const size_t n = static_cast<size_t>(dim);
    for (const float offset : {0.0f, -100.0f}) {
      std::vector<float> x = random_floats(rng, kRows * n);
      for (float& v : x) v += offset;
      const std::vector<float> weight = random_floats(rng, n);
      const std::vector<float> bias = random_floats(rng, n);
      std::vector<double> want;
      std::vector<double> tolerance;
      for (size_t r = 0; r < kRows; ++r) {
        double mean = 0;
        double largest = 0;
        for (size_t j = 0; j < n; ++j) {
          mean += x[r * n + j] / static_cast<double>(dim);
          largest = std::max(largest, std::fabs(static_cast<double>(x[r * n + j])));
        }
        double squares = 0;
        for (size_t j = 0; j < n; ++j) squares += (x[r * n + j] - mean) * (x[r * n + j] - mean);
        const double scale = 1.0 / std::sqrt(squares / dim + kEps);
        // The mean is off by the additions' roundings, and so is every difference to it; the shift moves the value
        // itself and, through the sum of squares, the scale.
        const double shift = (dim / 128.0 + 12) * kHalfUlp * largest;
        const double relative = (norm_roundings(dim) + 2) * kHalfUlp + shift * scale * (1 + shift * scale);
        for (size_t j = 0; j < n; ++j) {
          const double normed = (x[r * n + j] - mean) * scale;
          want.push_back(normed * weight[j] + bias[j]);
          tolerance.push_back(std::fabs(weight[j]) * (std::fabs(normed) * relative + shift * scale) +
                              2 * kHalfUlp * (std::fabs(want.back()) + std::fabs(bias[j])) + kSmallest);
        }
      }
      const std::string what = "dim " + std::to_string(dim) + " offset " + std::to_string(offset);
      for_each_chip([&](Chip& chip) {
        const Floats in(chip, x);
        const Floats w(chip, weight);
        const Floats b(chip, bias);
        const Floats out(chip, x.size());
        chip.backend->layer_norm(out.data(), in.data(), w.data(), b.data(), kRows, dim, kEps);
        check_near(out.get(), want, tolerance, what);
        chip.backend->layer_norm(in.data(), in.data(), w.data(), b.data(), kRows, dim, kEps);
        check_same_bits(in.get(), out.get(), what + " in place");
      });
    }
  }
}

TEST("rope_table, norm_rope: positions far out, halves of any width, heads that fill no block") {
  std::mt19937 rng(3);
  constexpr int kRows = 5;
  constexpr int kHeads = 3;
  constexpr float kScale = 0.0625f;
  const std::vector<int32_t> positions = {0, 1, 131071, 31, 4093};
  for (const int head_dim : {2, 6, 64, 70, 258}) {
    const size_t n = static_cast<size_t>(head_dim);
    const size_t half = n / 2;
    std::vector<float> inv_freq(half);
    for (size_t j = 0; j < half; ++j)
      inv_freq[j] = std::pow(10000.0f, -2.0f * static_cast<float>(j) / static_cast<float>(head_dim));
    std::vector<double> want_table(kRows * n);
    std::vector<float> table(kRows * n);
    for (size_t r = 0; r < kRows; ++r) {
      for (size_t j = 0; j < half; ++j) {
        const float angle = static_cast<float>(positions[r]) * inv_freq[j];  // rounded, as the reference's
        want_table[r * n + j] = std::cos(static_cast<double>(angle));
        want_table[r * n + half + j] = std::sin(static_cast<double>(angle));
      }
    }
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<float>(want_table[i]);
    const std::vector<float> x = random_floats(rng, kRows * kHeads * n, 3.0f);
    const std::vector<float> weight = random_floats(rng, n);
    std::vector<double> want(x.size());
    std::vector<double> tolerance(x.size());
    // A lane's chain and five additions, half of them through the root; the rest as norms have it, and the rotation.
    const double roundings = (head_dim / 32.0 + 2 + 5) / 2 + 11;
    for (size_t row = 0; row < kRows * kHeads; ++row) {
      const float* head = &x[row * n];
      const float* angles = &table[row / kHeads * n];
      double squares = 0;
      for (size_t j = 0; j < n; ++j) squares += static_cast<double>(head[j]) * head[j];
      const double norm = 1.0 / std::sqrt(squares / head_dim + kEps);
      for (size_t j = 0; j < half; ++j) {
        const double a = head[j] * norm * weight[j];
        const double b = head[j + half] * norm * weight[j + half];
        const double c = angles[j];
        const double s = angles[j + half];
        want[row * n + j] = (a * c - b * s) * kScale;
        want[row * n + half + j] = (b * c + a * s) * kScale;
        tolerance[row * n + j] = roundings * kHalfUlp * kScale * (std::fabs(a * c) + std::fabs(b * s)) + kSmallest;
        tolerance[row * n + half + j] =
            roundings * kHalfUlp * kScale * (std::fabs(b * c) + std::fabs(a * s)) + kSmallest;
      }
    }
    const std::string what = "head_dim " + std::to_string(head_dim);
    for_each_chip([&](Chip& chip) {
      const Floats frequencies(chip, inv_freq);
      const Floats made(chip, table.size());
      chip.backend->rope_table(made.data(), positions.data(), frequencies.data(), kRows, head_dim);
      // Two units in the last place of 1, what vendors promise of cosf and sinf.
      check_near(made.get(), want_table, std::vector<double>(table.size(), 4 * kHalfUlp), what + " table");
      const Floats angles(chip, table);
      const Floats w(chip, weight);
      const Floats heads(chip, x);
      chip.backend->norm_rope(heads.data(), w.data(), angles.data(), kRows, kHeads, head_dim, kEps, kScale);
      check_near(heads.get(), want, tolerance, what);
    });
  }
}

TEST("elementwise: sums to the bit, GELU and softcap within rounding, in place, sizes off the block's") {
  std::mt19937 rng(4);
  struct Shape {
    int n;
    int dim;
  };
  for (const Shape shape : {Shape{1, 1}, {3, 341}, {7, 293}, {2, 1031}}) {
    const size_t n = static_cast<size_t>(shape.n) * static_cast<size_t>(shape.dim);
    for (const float size : {0.01f, 1.0f, 5.0f, 1e4f}) {
      const std::vector<float> x = random_floats(rng, n, size);
      const std::vector<float> branch = random_floats(rng, n, size);
      const std::vector<float> bias = random_floats(rng, static_cast<size_t>(shape.dim), size);
      const auto gelu = [](double v) {
        return 0.5 * v * (1.0 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
      };
      constexpr float kCap = 30.0f;
      std::vector<float> biased(n);
      std::vector<float> summed(n);
      // 1 + tanh is off by a few roundings of 1; an argument y with relative error e moves it by y e / cosh(y)^2 <=
      // e/2.
      std::vector<double> geglu(n);
      std::vector<double> geglu_tolerance(n);
      std::vector<double> activated(n);
      std::vector<double> activated_tolerance(n);
      std::vector<double> capped(n);
      std::vector<double> capped_tolerance(n);
      for (size_t i = 0; i < n; ++i) {
        const float b = bias[i % static_cast<size_t>(shape.dim)];
        biased[i] = x[i] + b;
        summed[i] = x[i] + (branch[i] + b);
        geglu[i] = gelu(x[i]) * branch[i];
        geglu_tolerance[i] = 8 * kHalfUlp * std::fabs(static_cast<double>(x[i]) * branch[i]) + kSmallest;
        activated[i] = gelu(biased[i]);
        activated_tolerance[i] = 8 * kHalfUlp * std::fabs(biased[i]) + kSmallest;
        capped[i] = kCap * std::tanh(x[i] / static_cast<double>(kCap));
        capped_tolerance[i] = 6 * kHalfUlp * std::fabs(capped[i]) + kSmallest;
      }
      const std::string what = std::to_string(shape.n) + " x " + std::to_string(shape.dim);
      for_each_chip([&](Chip& chip) {
        Backend& backend = *chip.backend;
        const Floats b(chip, bias);
        const Floats other(chip, branch);
        const Floats gate(chip, x);
        const Floats out(chip, n);
        backend.geglu(out.data(), gate.data(), other.data(), shape.n, shape.dim);
        check_near(out.get(), geglu, geglu_tolerance, what + " geglu");
        backend.geglu(gate.data(), gate.data(), other.data(), shape.n, shape.dim);
        check_same_bits(gate.get(), out.get(), what + " geglu in place");
        const Floats sum(chip, x);
        backend.add_bias(sum.data(), b.data(), shape.n, shape.dim);
        check_same_bits(sum.get(), biased, what + " add_bias");
        const Floats residual(chip, x);
        backend.add_residual_bias(residual.data(), other.data(), b.data(), shape.n, shape.dim);
        check_same_bits(residual.get(), summed, what + " add_residual_bias");
        const Floats inner(chip, x);
        backend.bias_gelu(inner.data(), b.data(), shape.n, shape.dim);
        check_near(inner.get(), activated, activated_tolerance, what + " bias_gelu");
        const Floats logits(chip, x);
        backend.softcap(logits.data(), n, kCap);
        check_near(logits.get(), capped, capped_tolerance, what + " softcap");
      });
    }
  }
}

TEST("what adapters add to rows: the CPU's results, and nothing beside them") {
  std::mt19937 rng(29);
  const LowRankCase c(rng);
  const std::unique_ptr<Backend> cpu = make_cpu_backend("ref", 1);
  for (size_t i = 0; i < c.parts.size(); ++i) {
    const LowRankCase::Part& p = c.parts[i];
    const int n_out = c.kOut[p.job];
    const int columns = (n_out + kOutputLanes - 1) / kOutputLanes * kOutputLanes;
    const int stride = columns + 3;  // rows of out may be wider
    const std::vector<float> before = random_floats(rng, static_cast<size_t>(c.kRows * stride));
    std::vector<float> t = random_floats(rng, static_cast<size_t>(c.kRows * p.rank));
    std::vector<float> want = before;
    LowRank added{p.first_row,
                  p.n_rows,
                  {},
                  {p.type, p.rank, columns, p.b.data()},
                  p.has_bias ? p.bias.data() : nullptr,
                  p.has_norms ? p.norms.data() : nullptr,
                  p.scale,
                  t.data(),
                  want.data(),
                  n_out,
                  stride};
    cpu->add_low_rank({&added, 1});
    std::vector<double> near(want.begin(), want.end());
    std::vector<double> tolerance;
    for (const float v : want) tolerance.push_back(1e-6 * (std::fabs(v) + 1));
    for_each_chip([&](Chip& chip) {
      const Floats out(chip, before);
      const Floats given(chip, t);
      const Floats bias(chip, p.bias);
      const Floats norms(chip, p.norms);
      const Array<std::byte> b(chip, p.b);
      LowRank on_chip = added;
      on_chip.b.data = b.data();
      on_chip.bias = p.has_bias ? bias.data() : nullptr;
      on_chip.norms = p.has_norms ? norms.data() : nullptr;
      on_chip.t = given.data();
      on_chip.out = out.data();
      chip.backend->add_low_rank({&on_chip, 1});
      check_near(out.get(), near, tolerance, "adapter " + std::to_string(i));
    });
  }
}

TEST("gather_rows: bits move as they are, rows twice and in any order") {
  std::mt19937 rng(5);
  const std::vector<int32_t> rows = {6, 0, 3, 3, 5};
  for (const int dim : {1, 1023, 1025, 2053}) {
    const size_t n = static_cast<size_t>(dim);
    std::vector<uint32_t> x(7 * n);
    for (uint32_t& v : x) v = static_cast<uint32_t>(rng());
    std::vector<uint32_t> want;
    for (const int32_t row : rows) {
      const auto first = x.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(row) * n);
      want.insert(want.end(), first, first + dim);
    }
    for_each_chip([&](Chip& chip) {
      const Array<uint32_t> in(chip, x);
      const Array<uint32_t> out(chip, want.size());
      chip.backend->gather_rows(reinterpret_cast<float*>(out.data()), reinterpret_cast<const float*>(in.data()),
                                rows.data(), 5, dim);
      check_same(out.get(), want, "dim " + std::to_string(dim));
    });
  }
}

namespace {

// Weights of any type.
std::vector<std::byte> weights_of(std::mt19937& rng, TensorType type, int n_rows, int n_cols) {
  return is_float_type(type) ? float_weights(rng, type, n_rows, n_cols) : random_weights(rng, type, n_rows, n_cols);
}

// n, or the next multiple of the type's block.
int whole_blocks(TensorType type, int n) {
  const int elems = type_traits(type).block_elems;
  return (n + elems - 1) / elems * elems;
}

}  // namespace

TEST("embed: every type, the CPU's bits, rows wider than a block of threads") {
  std::mt19937 rng(6);
  const std::vector<int32_t> tokens = {12, 0, 7, 7, 3};
  for (const TensorType type : kTensorTypes) {
    for (const int wanted : {1, 353, 4421}) {
      const int n_in = is_float_type(type) ? wanted : whole_blocks(type, wanted);
      const std::vector<std::byte> weights = weights_of(rng, type, 13, n_in);
      std::vector<float> want(tokens.size() * static_cast<size_t>(n_in));
      const std::unique_ptr<Backend> cpu = make_cpu_backend("ref", 1);
      cpu->embed(want.data(), {type, 13, n_in, weights.data()}, tokens.data(), 5, 25.3f);
      for_each_chip([&](Chip& chip) {
        const Weight table = chip.backend->load_weight(type, 13, n_in, weights.data());
        const Floats out(chip, want.size());
        chip.backend->embed(out.data(), table, tokens.data(), 5, 25.3f);
        check_same_bits(out.get(), want, std::string(type_traits(type).name) + " " + std::to_string(n_in));
      });
    }
  }
}

TEST("requantize: every type, the CPU's blocks, zeros where the weight is smaller") {
  std::mt19937 rng(7);
  constexpr int kStored = 11;
  constexpr int kRows = 13;
  for (const TensorType type : kTensorTypes) {
    const int n_stored = is_float_type(type) ? 331 : whole_blocks(type, 331);
    const int n_in = is_float_type(type) ? 352 : n_stored + 64;
    std::vector<std::byte> weights = weights_of(rng, type, kStored, n_stored);
    if (type == TensorType::kF32) {
      std::memcpy(&weights[4 * 40], &kNaN, 4);
      std::memcpy(&weights[4 * 331], &kInfinity, 4);
    }
    const size_t bytes = row_bytes(TensorType::kQ8_0, n_in);
    std::vector<std::byte> blocks(kRows * bytes);
    const std::unique_ptr<Backend> cpu = make_cpu_backend("ref", 1);
    cpu->requantize(blocks.data(), {type, kStored, n_stored, weights.data()}, kRows, n_in);
    const gpu::PlaneOffsets offsets = gpu::plane_offsets(TensorType::kQ8_0, kRows, n_in);
    std::vector<uint8_t> want(offsets.bytes);
    for (size_t r = 0; r < kRows; ++r) {
      gpu::repack_row(TensorType::kQ8_0, blocks.data() + r * bytes, n_in, &want[r * static_cast<size_t>(n_in)], nullptr,
                      &want[offsets.tail + r * static_cast<size_t>(n_in / 32) * 2]);
    }
    for_each_chip([&](Chip& chip) {
      const Weight weight = chip.backend->load_weight(type, kStored, n_stored, weights.data());
      const Array<uint8_t> out(chip, want.size());
      chip.backend->requantize(reinterpret_cast<std::byte*>(out.data()), weight, kRows, n_in);
      std::vector<uint8_t> got = out.get();
      // A NaN is a NaN, whatever its sign.
      const auto blur = [&](std::vector<uint8_t>& planes) {
        for (size_t at = offsets.tail; at < planes.size(); at += 2) {
          if ((planes[at + 1] & 0x7c) == 0x7c && ((planes[at + 1] & 3) | planes[at]) != 0)
            planes[at] = planes[at + 1] = 0x7f;
        }
      };
      blur(got);
      std::vector<uint8_t> expected = want;
      blur(expected);
      check_same(got, expected, type_traits(type).name);
    });
  }
}

TEST("quantize_rows: the CPU's codes, steps and sums to the bit") {
  std::mt19937 rng(8);
  const std::vector<float> x = awkward_blocks(rng);
  const size_t n_blocks = x.size() / 32;
  CHECK(n_blocks > 2 * gpu::kThreads && n_blocks % gpu::kThreads != 0);
  const Quantized want(x, 1, static_cast<int>(x.size()));
  for_each_chip([&](Chip& chip) {
    const Floats in(chip, x);
    const Array<int8_t> q(chip, x.size());
    const Floats d(chip, n_blocks);
    const Floats half_sums(chip, 2 * n_blocks);
    const Floats sums(chip, n_blocks);
    const gpu::QuantizeArguments a{
        in.data(), {q.data(), d.data(), half_sums.data(), sums.data()}, static_cast<int>(n_blocks)};
    chip.device->launch(Kernel::quantize_rows, {static_cast<unsigned>((n_blocks + gpu::kThreads - 1) / gpu::kThreads)},
                        gpu::kThreads, &a);
    check_same(q.get(), want.q, "codes");
    check_same_bits(d.get(), want.d, "steps");
    check_same_bits(sums.get(), want.dsum, "sums");
    check_same_bits(half_sums.get(), want.dsum16, "sums of half blocks");
  });
}

namespace {

// Products in the order that kernel_list.h says: runs of blocks, then the runs. out[n_x][n_out].
std::vector<float> linear_in_order(TensorType type, const std::vector<std::byte>& weights, int n_out, int n_in,
                                   const Quantized& x, int n_x) {
  const CanonicalTraits traits = canonical_traits(type);
  const int n_blocks = n_in / 32;
  std::vector<float> out(static_cast<size_t>(n_x) * static_cast<size_t>(n_out));
  std::vector<Block32> row(static_cast<size_t>(n_blocks));
  for (int n = 0; n < n_out; ++n) {
    for (int b = 0; b < n_blocks; ++b) {
      unpack_block32(type, weights.data() + static_cast<size_t>(n) * row_bytes(type, n_in), b,
                     &row[static_cast<size_t>(b)]);
    }
    for (int r = 0; r < n_x; ++r) {
      float total = 0;
      int b = 0;
      for (int s = 0; s < gpu::kSegments; ++s) {
        const int end = b + n_blocks / gpu::kSegments + (s < n_blocks % gpu::kSegments ? 1 : 0);
        float sum = 0;
        for (; b < end; ++b) {
          const Block32& block = row[static_cast<size_t>(b)];
          const size_t at = static_cast<size_t>(r * n_blocks + b);
          int dots[2] = {0, 0};
          for (size_t j = 0; j < 32; ++j) dots[j / 16] += (block.u[j] - traits.offset) * x.q[32 * at + j];
          if (traits.halves) {
            for (size_t h = 0; h < 2; ++h) {
              sum = std::fma(static_cast<float>(dots[h]), block.d[h] * x.d[at], sum);
              if (traits.has_min) sum = std::fma(block.m[h], x.dsum16[2 * at + h], sum);
            }
          } else {
            sum = std::fma(static_cast<float>(dots[0] + dots[1]), block.d[0] * x.d[at], sum);
            if (traits.has_min) sum = std::fma(block.m[0], x.dsum[at], sum);
          }
        }
        total += sum;
      }
      out[static_cast<size_t>(r) * static_cast<size_t>(n_out) + static_cast<size_t>(n)] = total;
    }
  }
  return out;
}

// What the terms of a product add up to without their signs.
std::vector<double> linear_magnitudes(TensorType type, const std::vector<std::byte>& weights, int n_out, int n_in,
                                      const Quantized& x, int n_x) {
  const CanonicalTraits traits = canonical_traits(type);
  std::vector<double> out(static_cast<size_t>(n_x) * static_cast<size_t>(n_out));
  for (int n = 0; n < n_out; ++n) {
    for (int b = 0; b < n_in / 32; ++b) {
      Block32 block;
      unpack_block32(type, weights.data() + static_cast<size_t>(n) * row_bytes(type, n_in), b, &block);
      for (int r = 0; r < n_x; ++r) {
        const size_t at = static_cast<size_t>(r * (n_in / 32) + b);
        double sum = 0;
        for (size_t j = 0; j < 32; ++j) {
          sum += std::fabs(static_cast<double>(x.d[at]) * x.q[32 * at + j]) *
                 (std::fabs(static_cast<double>(block.d[j / 16]) * (block.u[j] - traits.offset)) +
                  std::fabs(static_cast<double>(block.m[j / 16])));
        }
        out[static_cast<size_t>(r) * static_cast<size_t>(n_out) + static_cast<size_t>(n)] += sum;
      }
    }
  }
  return out;
}

// Numbers of rows of x that take each of the kernels, full and not.
constexpr int kRowsOfX[] = {1, 2, 5, 8, 9, 37};
constexpr int kMostRows = 37;

// Every chip's products of the first rows of x, for each of these numbers of rows.
void check_linear(TensorType type, const std::vector<std::byte>& weights, int n_out, int n_in,
                  const std::vector<float>& x, const std::vector<float>& want) {
  for_each_chip([&](Chip& chip) {
    const Weight weight = chip.backend->load_weight(type, n_out, n_in, weights.data());
    for (const int n : kRowsOfX) {
      const size_t rows = static_cast<size_t>(n);
      const Floats in(chip, std::span<const float>(x).first(rows * static_cast<size_t>(n_in)));
      const Floats out(chip, rows * static_cast<size_t>(n_out));
      const LinearJob job{&weight, out.data()};
      chip.backend->linear({&job, 1}, in.data(), n, {});
      check_same_bits(out.get(), std::span<const float>(want).first(rows * static_cast<size_t>(n_out)),
                      std::string(type_traits(type).name) + " [" + std::to_string(n_out) + ", " + std::to_string(n_in) +
                          "] x " + std::to_string(n));
    }
  });
}

}  // namespace

TEST("linear, quantised: every type, all kernels of a product, the same bits in the order promised") {
  std::mt19937 rng(9);
  ScratchMemory memory;
  for (const TensorType type : kTensorTypes) {
    if (is_float_type(type)) continue;
    for (const auto& [n_out, wanted] : {std::pair{67, 416}, {1, 32}, {17, 97}, {3, 768}}) {
      const int n_in = whole_blocks(type, wanted);
      const size_t n_cols = static_cast<size_t>(n_in);
      const std::vector<std::byte> weights = random_weights(rng, type, n_out, n_in);
      // The largest codes of both signs, rows that are alike nowhere, one with a NaN.
      std::vector<float> x = random_floats(rng, kMostRows * n_cols);
      for (size_t j = 0; j < n_cols; ++j) {
        x[j] = 1;
        x[n_cols + j] = -1;
      }
      x[3 * n_cols + n_cols / 2] = kNaN;
      const Quantized quantized(x, kMostRows, n_in);
      const std::vector<float> want = linear_in_order(type, weights, n_out, n_in, quantized, kMostRows);
      // In another order the CPU's, which adds up all blocks in one chain.
      std::vector<float> cpu(want.size());
      cpu::kernels_ref().gemm_quantized({type, weights.data(), row_bytes(type, n_in), 0, n_out},
                                        quantized.first(kMostRows), cpu.data(), static_cast<size_t>(n_out),
                                        memory.scratch());
      const std::vector<double> magnitudes = linear_magnitudes(type, weights, n_out, n_in, quantized, kMostRows);
      for (size_t i = 0; i < want.size(); ++i) {
        const bool is_nan = i / static_cast<size_t>(n_out) == 3;
        CHECK(std::isnan(want[i]) == is_nan && std::isnan(cpu[i]) == is_nan);
        // Both with at most two fused additions for 16 values, the roundings of scales, and the runs.
        const double tolerance = 2 * (2.0 * n_in / 16 + 6 + gpu::kSegments) * kHalfUlp * magnitudes[i];
        CHECK(is_nan || std::fabs(static_cast<double>(want[i]) - static_cast<double>(cpu[i])) <= tolerance);
      }
      check_linear(type, weights, n_out, n_in, x, want);
    }
  }
}

TEST("linear, float: every type, the CPU's bits, odd widths") {
  std::mt19937 rng(10);
  ScratchMemory memory;
  for (const TensorType type : {TensorType::kF32, TensorType::kF16, TensorType::kBF16}) {
    for (const auto& [n_out, n_in] : {std::pair{1, 1}, {7, 15}, {13, 129}, {67, 641}}) {
      const size_t n_cols = static_cast<size_t>(n_in);
      const std::vector<std::byte> weights = float_weights(rng, type, n_out, n_in);
      std::vector<float> x = random_floats(rng, kMostRows * n_cols);
      x[3 * n_cols] = kNaN;
      std::vector<float> want(static_cast<size_t>(kMostRows) * static_cast<size_t>(n_out));
      cpu::kernels_ref().gemm_float({type, weights.data(), row_bytes(type, n_in), 0, n_out}, x.data(), kMostRows, n_in,
                                    want.data(), static_cast<size_t>(n_out), memory.scratch());
      check_linear(type, weights, n_out, n_in, x, want);
    }
  }
}

TEST(
    "linear, float, bulk rows: two bfloat16 for a value or float32, the same bits in any company; F32 weights as "
    "ever") {
  std::mt19937 rng(22);
  ScratchMemory memory;
  constexpr size_t kInfinite = 4;
  for (const TensorType type : {TensorType::kF32, TensorType::kF16, TensorType::kBF16}) {
    for (const auto& [n_out, n_in] : {std::pair{1, 1}, {7, 15}, {65, 64}, {67, 641}, {130, 104}}) {
      const size_t n_cols = static_cast<size_t>(n_in);
      const size_t n_rows = static_cast<size_t>(n_out);
      const std::vector<std::byte> weights = float_weights(rng, type, n_out, n_in);
      std::vector<float> x = random_floats(rng, kMostRows * n_cols);
      for (size_t j = 0; j < n_cols; ++j) {
        x[j] *= 1e20f;
        x[n_cols + j] *= 1e-20f;
      }
      x[3 * n_cols] = std::bit_cast<float>(0x7fffffffu);  // would round to a number
      x[kInfinite * n_cols + n_cols / 2] = kInfinity;
      std::vector<float> exact(kMostRows * n_rows);
      cpu::kernels_ref().gemm_float({type, weights.data(), row_bytes(type, n_in), 0, n_out}, x.data(), kMostRows, n_in,
                                    exact.data(), n_rows, memory.scratch());
      // In double, and what the terms add up to without their signs.
      std::vector<float> row(n_cols);
      std::vector<double> want(exact.size());
      std::vector<double> magnitudes(exact.size());
      for (size_t o = 0; o < n_rows; ++o) {
        dequantize_row(type, weights.data() + o * row_bytes(type, n_in), row.data(), n_in);
        for (size_t r = 0; r < kMostRows; ++r) {
          for (size_t j = 0; j < n_cols; ++j) {
            const double product = static_cast<double>(row[j]) * x[r * n_cols + j];
            want[r * n_rows + o] += product;
            magnitudes[r * n_rows + o] += std::fabs(product);
          }
        }
      }
      const std::string what =
          std::string(type_traits(type).name) + " [" + std::to_string(n_out) + ", " + std::to_string(n_in) + "]";
      for_each_chip([&](Chip& chip) {
        const Weight weight = chip.backend->load_weight(type, n_out, n_in, weights.data());
        const auto products = [&](size_t first, int n, int n_bulk) {
          const Floats in(chip, std::span<const float>(x).subspan(first * n_cols, static_cast<size_t>(n) * n_cols));
          const Floats out(chip, static_cast<size_t>(n) * n_rows);
          const LinearJob job{&weight, out.data()};
          chip.backend->linear({&job, 1}, in.data(), n, {n_bulk, false});
          return out.get();
        };
        CHECK(chip.backend->computes_bulk_apart(type) == (type != TensorType::kF32));
        const std::vector<float> all = products(0, kMostRows, kMostRows);
        if (type == TensorType::kF32) return check_same_bits(all, exact, what);
        const bool has_bf16 = chip.name != "sm_75" && chip.name != "gfx906" && chip.name != "gfx1030";
        // Chains of 32 terms, or of three products each; the sum of the chains.
        const double roundings = (has_bf16 ? 3.0 * 33 : 32.0) + n_in / 32.0 + 1;
        // The lower part keeps x to 2^-17; the product of lower parts, 2^-8 of their values each, is left out.
        const double lost = 0x1p-17 + (type == TensorType::kF16 ? 0x1p-16 : 0.0);
        const double relative = roundings * kHalfUlp + (has_bf16 ? lost : 0.0);
        for (size_t i = 0; i < all.size(); ++i) {
          const bool is_finite = i / n_rows != 3 && i / n_rows != kInfinite;
          if (is_finite != std::isfinite(all[i]) ||
              (is_finite && !(std::fabs(all[i] - want[i]) <= relative * magnitudes[i] + kSmallest))) {
            fail(__FILE__, __LINE__,
                 what + " at " + std::to_string(i) + ": got " + describe(all[i]) + ", want " + std::to_string(want[i]) +
                     " +- " + std::to_string(relative * magnitudes[i]));
          }
        }
        // Rows of bulk and others side by side, alone, at other places of a tile.
        const auto is_row = [&](std::span<const float> got, size_t first, int n, int n_bulk) {
          const size_t n_others = static_cast<size_t>(n - n_bulk);
          check_same_bits(got.first(n_others * n_rows), std::span(exact).subspan(first * n_rows, n_others * n_rows),
                          what + " others");
          check_same_bits(got.subspan(n_others * n_rows),
                          std::span(all).subspan((first + n_others) * n_rows, static_cast<size_t>(n_bulk) * n_rows),
                          what + " bulk");
        };
        for (const auto& [first, n, n_bulk] :
             {std::tuple<size_t, int, int>{0, 37, 36}, {0, 37, 1}, {36, 1, 1}, {5, 32, 17}, {19, 9, 9}, {2, 3, 0}})
          is_row(products(first, n, n_bulk), first, n, n_bulk);
      });
    }
  }
}

TEST("linear: jobs of mixed types share x; fewer rows than are stored; top_linear where all are wanted") {
  std::mt19937 rng(11);
  constexpr int kIn = 256;
  constexpr int kOut = 41;
  const std::vector<TensorType> types = {TensorType::kQ4_K, TensorType::kF16, TensorType::kQ8_0};
  std::vector<std::vector<std::byte>> weights;
  for (const TensorType type : types) weights.push_back(weights_of(rng, type, kOut, kIn));
  const std::vector<float> x = random_floats(rng, 3 * kIn);
  for_each_chip([&](Chip& chip) {
    const Floats in(chip, x);
    std::vector<Weight> loaded;
    for (size_t i = 0; i < types.size(); ++i)
      loaded.push_back(chip.backend->load_weight(types[i], kOut, kIn, weights[i].data()));
    std::vector<std::vector<float>> alone;
    for (const Weight& weight : loaded) {
      const Floats out(chip, 3 * kOut);
      const LinearJob job{&weight, out.data()};
      chip.backend->linear({&job, 1}, in.data(), 3, {});
      alone.push_back(out.get());
      for (const float v : alone.back()) CHECK(std::isfinite(v));
    }
    std::vector<Floats> outs;
    std::vector<LinearJob> jobs;
    for (const Weight& weight : loaded) {
      outs.emplace_back(chip, size_t{3} * kOut);
      jobs.push_back({&weight, outs.back().data()});
    }
    chip.backend->linear(jobs, in.data(), 3, {});
    for (size_t i = 0; i < outs.size(); ++i) check_same_bits(outs[i].get(), alone[i], "job " + std::to_string(i));

    // Not to be screened, or all wanted: every product is there.
    for (const bool screened : {false, true}) {
      const auto output = chip.backend->make_output(loaded[0], screened, 3);
      const Floats out(chip, 3 * kOut);
      std::vector<TopRows> wanted(3);
      if (!screened) wanted.assign(3, TopRows{1, {}, {}, {}});
      std::vector<TopProducts> found(3);
      for (TopProducts& row : found) row = {false, {1}, {2.0f}};
      chip.backend->top_linear(*output, out.data(), in.data(), 3, wanted, found);
      check_same_bits(out.get(), alone[0], "top_linear");
      for (const TopProducts& row : found) CHECK(row.all && row.rows.empty() && row.values.empty());
    }

    Weight fewer = loaded[0];
    fewer.n_out = 19;
    const Floats part(chip, 3 * 19);
    const LinearJob job{&fewer, part.data()};
    chip.backend->linear({&job, 1}, in.data(), 3, {});
    const std::vector<float> got = part.get();
    for (size_t r = 0; r < 3; ++r)
      check_same_bits(std::span(got).subspan(19 * r, 19), std::span(alone[0]).subspan(kOut * r, 19), "fewer rows");
  });
}

TEST("linear: jobs go together, as many as one launch takes; of any type and height; the bits of each alone") {
  std::mt19937 rng(23);
  constexpr int kIn = 256;
  constexpr int kMostX = 9;
  struct Shape {
    TensorType type;
    int n_out;
  };
  const std::vector<Shape> shapes = {{TensorType::kQ4_K, 41},  {TensorType::kQ6_K, 17}, {TensorType::kF16, 20},
                                     {TensorType::kQ8_0, 130}, {TensorType::kQ4_K, 1},  {TensorType::kQ2_K, 64}};
  std::vector<std::vector<std::byte>> weights;
  for (const Shape& shape : shapes) weights.push_back(weights_of(rng, shape.type, shape.n_out, kIn));
  const std::vector<float> x = random_floats(rng, kMostX * kIn);
  const auto n_launched = [] {
    int sum = 0;
    for (const Kernel kernel : {Kernel::linear_one, Kernel::linear_few, Kernel::linear_tiled})
      sum += launches[static_cast<size_t>(kernel)];
    return sum;
  };
  for_each_chip([&](Chip& chip) {
    const Floats in(chip, x);
    std::vector<Weight> loaded;
    for (size_t i = 0; i < shapes.size(); ++i)
      loaded.push_back(chip.backend->load_weight(shapes[i].type, shapes[i].n_out, kIn, weights[i].data()));
    for (const int n : {1, 5, kMostX}) {
      std::vector<Floats> alone;
      std::vector<Floats> together;
      std::vector<LinearJob> jobs;
      for (const Weight& weight : loaded) {
        for (auto* outs : {&alone, &together})
          outs->emplace_back(chip, static_cast<size_t>(n) * static_cast<size_t>(weight.n_out));
        const LinearJob job{&weight, alone.back().data()};
        chip.backend->linear({&job, 1}, in.data(), n, {});
        jobs.push_back({&weight, together.back().data()});
      }
      for (const size_t n_jobs : {jobs.size(), size_t{2}}) {
        const int before = n_launched();
        chip.backend->linear(std::span(jobs).first(n_jobs), in.data(), n, {});
        const int n_together = n == kMostX ? 1 : 3;
        const int n_quantized = static_cast<int>(n_jobs == 2 ? 2 : n_jobs - 1);  // one is of floats
        CHECK(n_launched() == before + (n_quantized + n_together - 1) / n_together);
        for (size_t i = 0; i < n_jobs; ++i)
          check_same_bits(together[i].get(), alone[i].get(), "job " + std::to_string(i) + " of " + std::to_string(n));
      }
    }
  });
}

namespace {

// Whether found has what was asked for of these products, and nothing that was not to be there.
void check_top(const TopProducts& found, const TopRows& wanted, std::span<const float> products,
               const std::string& what) {
  const size_t n_always = wanted.always.size();
  CHECK(!found.all && found.rows.size() == found.values.size() && found.rows.size() >= n_always);
  std::vector<bool> is_out(products.size());
  for (size_t i = 0; i < found.rows.size(); ++i) {
    const size_t row = static_cast<size_t>(found.rows[i]);
    CHECK(row < products.size() && !is_out[row]);
    CHECK(i < n_always ? found.rows[i] == wanted.always[i] : true);
    if (!same_bits(found.values[i], products[row])) fail(__FILE__, __LINE__, what + ": another value");
    is_out[row] = true;
  }
  const auto is_allowed = [&](size_t row) {
    return wanted.allowed.empty() || (wanted.allowed[row / 32] >> row % 32 & 1u) != 0;
  };
  for (const int32_t row : found.rows) CHECK(is_allowed(static_cast<size_t>(row)));
  for (size_t row = 0; row < products.size(); ++row) {
    if (!is_allowed(row)) is_out[row] = true;
  }
  if (wanted.only_always) {
    CHECK(found.rows.size() == n_always);
    return;
  }
  for (const int32_t row : wanted.never) {
    CHECK(!is_out[static_cast<size_t>(row)] || !is_allowed(static_cast<size_t>(row)));
    is_out[static_cast<size_t>(row)] = true;
  }
  // Nothing that was left out is larger than the n_best-th of what is there.
  std::vector<float> best(found.values.begin() + static_cast<std::ptrdiff_t>(n_always), found.values.end());
  CHECK(best.size() >= static_cast<size_t>(wanted.n_best));
  std::nth_element(best.begin(), best.begin() + wanted.n_best - 1, best.end(), std::greater<>());
  const float least = best[static_cast<size_t>(wanted.n_best - 1)];
  for (size_t row = 0; row < products.size(); ++row) {
    if (!is_out[row] && !(products[row] <= least)) fail(__FILE__, __LINE__, what + ": a larger one was left out");
  }
}

}  // namespace

TEST("top_linear: the best, those wanted by name, none of the unwanted; all where too many are equal") {
  std::mt19937 rng(17);
  constexpr int kIn = 32;
  constexpr int kOut = 5003;
  std::vector<std::byte> weights = random_weights(rng, TensorType::kQ8_0, kOut, kIn);
  const std::vector<float> x = random_floats(rng, 3 * kIn);
  const Quantized quantized(x, 3, kIn);
  const std::vector<float> products = linear_in_order(TensorType::kQ8_0, weights, kOut, kIn, quantized, 3);
  const auto order_of = [&](size_t r) {
    std::vector<int32_t> order(kOut);
    for (int32_t i = 0; i < kOut; ++i) order[static_cast<size_t>(i)] = i;
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return products[r * kOut + static_cast<size_t>(a)] > products[r * kOut + static_cast<size_t>(b)];
    });
    return order;
  };
  // The best of all is wanted by name in one row and unwanted in another, and so is the worst.
  const std::vector<int32_t> order1 = order_of(1);
  const std::vector<int32_t> order2 = order_of(2);
  const std::vector<int32_t> always = {order1[0], order1[7], order1[kOut - 1]};
  const std::vector<int32_t> never = {order2[0], order2[1], order2[3], order2[kOut - 1], kOut - 1};
  const std::vector<TopRows> wanted = {{1, {}, {}, {}}, {40, always, {}, {}}, {7, {}, never, {}}};
  for_each_chip([&](Chip& chip) {
    const Weight weight = chip.backend->load_weight(TensorType::kQ8_0, kOut, kIn, weights.data());
    const Floats in(chip, x);
    const Floats out(chip, products.size());
    const auto output = chip.backend->make_output(weight, true, 3);
    std::vector<TopProducts> found(3);
    found[1] = {true, {5}, {1.0f}};
    chip.backend->top_linear(*output, out.data(), in.data(), 3, wanted, found);
    for (size_t r = 0; r < 3; ++r) {
      check_top(found[r], wanted[r], std::span(products).subspan(r * kOut, kOut), "row " + std::to_string(r));
      // Few more than were wanted: not everything from the best slices.
      CHECK(found[r].rows.size() <= static_cast<size_t>(2 * wanted[r].n_best) + wanted[r].always.size());
    }
    // Each row alone, in memory that has held others.
    for (size_t r = 0; r < 3; ++r) {
      chip.backend->top_linear(*output, out.data(), in.data() + r * kIn, 1, std::span(wanted).subspan(r, 1),
                               std::span(found).subspan(r, 1));
      check_top(found[r], wanted[r], std::span(products).subspan(r * kOut, kOut), "row " + std::to_string(r));
    }
  });
  // All rows of the matrix are the first, so all products are equal.
  const size_t bytes = row_bytes(TensorType::kQ8_0, kIn);
  for (size_t i = bytes; i < weights.size(); ++i) weights[i] = weights[i - bytes];
  const std::vector<float> equal = linear_in_order(TensorType::kQ8_0, weights, kOut, kIn, quantized, 3);
  for_each_chip([&](Chip& chip) {
    const Weight weight = chip.backend->load_weight(TensorType::kQ8_0, kOut, kIn, weights.data());
    const Floats in(chip, x);
    const Floats out(chip, products.size());
    const auto output = chip.backend->make_output(weight, true, 3);
    std::vector<TopProducts> found(3);
    chip.backend->top_linear(*output, out.data(), in.data(), 3, wanted, found);
    for (const TopProducts& row : found) CHECK(row.all && row.rows.empty() && row.values.empty());
    check_same_bits(out.get(), equal, "equal products");
  });
}

TEST("top_linear: none but those that are allowed, few or many") {
  std::mt19937 rng(19);
  constexpr int kIn = 32;
  constexpr int kOut = 5003;
  const std::vector<std::byte> weights = random_weights(rng, TensorType::kQ8_0, kOut, kIn);
  const std::vector<float> x = random_floats(rng, 4 * kIn);
  const Quantized quantized(x, 4, kIn);
  const std::vector<float> products = linear_in_order(TensorType::kQ8_0, weights, kOut, kIn, quantized, 4);
  const auto best_of = [&](size_t r) {
    const auto begin = products.begin() + static_cast<std::ptrdiff_t>(r * kOut);
    return static_cast<size_t>(std::max_element(begin, begin + kOut) - begin);
  };
  std::vector<uint32_t> all((kOut + 31) / 32, 0xffffffffu);
  std::vector<uint32_t> half = all;
  half[best_of(1) / 32] &= ~(1u << best_of(1) % 32);
  for (size_t i = 0; i < half.size(); i += 2) half[i] &= 0x5a5a0f01u;
  half.back() &= 0x100u;
  std::vector<uint32_t> few(all.size());
  const std::vector<int32_t> named = {0, 31, 32, 4999, kOut - 1};
  for (const int32_t row : named) few[static_cast<size_t>(row) / 32] |= 1u << row % 32;
  const std::vector<int32_t> never = {static_cast<int32_t>(best_of(3)), 7};
  const std::vector<TopRows> wanted = {
      {3, {}, {}, all}, {17, {}, {}, half}, {1, named, {}, few, true}, {5, {}, never, {}}};
  for_each_chip([&](Chip& chip) {
    const Weight weight = chip.backend->load_weight(TensorType::kQ8_0, kOut, kIn, weights.data());
    const Floats in(chip, x);
    const Floats out(chip, products.size());
    const auto output = chip.backend->make_output(weight, true, 4);
    std::vector<TopProducts> found(4);
    chip.backend->top_linear(*output, out.data(), in.data(), 4, wanted, found);
    for (size_t r = 0; r < 4; ++r)
      check_top(found[r], wanted[r], std::span(products).subspan(r * kOut, kOut), "row " + std::to_string(r));
  });
}

TEST("the largest of a vocabulary in slices of 64, of one value, with NaN, infinity and zeros of both signs") {
  std::mt19937 rng(18);
  for (const int n_out : {1, 33, 131101}) {
    std::vector<float> values = random_floats(rng, static_cast<size_t>(n_out), 3.0f);
    if (n_out == 33) {
      std::fill(values.begin(), values.end(), -0.0f);
      values[7] = 0.0f;
      values[32] = -1.0f;
    } else if (n_out > 33) {
      values[131100] = kInfinity;
      values[4096] = kNaN;
    }
    const int slice = n_out > 131072 ? 64 : 32;
    const int n_slices = (n_out + slice - 1) / slice;
    const int n_best = std::min(n_slices, 50);
    constexpr int kCapacity = 300;
    for_each_chip([&](Chip& chip) {
      const Floats products(chip, values);
      const Array<gpu::TopRequest> requests(chip, {{n_best, 0, 0, 0, -1}});
      const Floats maxima(chip, static_cast<size_t>(n_slices));
      const Array<gpu::TopHeader> headers(chip, size_t{1});
      const Array<gpu::TopEntry> entries(chip, size_t{kCapacity});
      const gpu::TopArguments a{products.data(), requests.data(), nullptr,        nullptr,
                                maxima.data(),   headers.data(),  entries.data(), 1,
                                n_out,           n_slices,        slice,          kCapacity};
      const auto blocks = [](int n, int per_block) { return static_cast<unsigned>((n + per_block - 1) / per_block); };
      chip.device->launch(Kernel::top_maxima, {blocks(n_slices, 4)}, gpu::kThreads, &a);
      chip.device->launch(Kernel::top_threshold, {1}, gpu::kThreads, &a);
      chip.device->launch(Kernel::top_collect, {blocks(n_out, 1024)}, gpu::kThreads, &a);
      const int n_found = headers.get()[0].n;
      CHECK(n_found >= n_best && n_found <= kCapacity);
      std::vector<bool> is_found(values.size());
      float least = kInfinity;
      const std::vector<gpu::TopEntry> all = entries.get();
      for (size_t i = 0; i < static_cast<size_t>(n_found); ++i) {
        const size_t row = static_cast<size_t>(all[i].row);
        CHECK(row < values.size() && !is_found[row] && same_bits(all[i].value, values[row]));
        is_found[row] = true;
        if (all[i].value < least) least = all[i].value;
      }
      for (size_t row = 0; row < values.size(); ++row) CHECK(is_found[row] || values[row] <= least);
      CHECK(n_out < 131101 || (is_found[131100] && is_found[4096]));
    });
  }
}

namespace {

// A cache on a device. Pages that are not needed are null.
struct DeviceCache {
  std::vector<std::unique_ptr<Array<std::byte>>> memory;
  std::vector<const std::byte*> pages;

  DeviceCache(Chip& chip, const Cache& cache, int first_page = 0) {
    for (size_t p = 0; p < cache.memory.size(); ++p) {
      memory.push_back(std::make_unique<Array<std::byte>>(chip, cache.memory[p]));
      pages.push_back(static_cast<int>(p) < first_page ? nullptr : memory.back()->data());
    }
  }
};

// All bytes that are no position's are NaN.
Cache unwritten(KvType type, int n_kv_heads, int head_dim, int n_positions) {
  Cache cache(type, n_kv_heads, head_dim, n_positions);
  for (auto& page : cache.memory) std::fill(page.begin(), page.end(), std::byte{0xff});
  return cache;
}

}  // namespace

TEST("store_kv: the CPU's bytes at each row's position, sequences and rows of none between them") {
  std::mt19937 rng(12);
  constexpr int kHeads = 3;
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    const int head_dim = type == KvType::kQ8_0 ? 96 : 37;
    const size_t width = static_cast<size_t>(head_dim);
    // Rows 0..10 at 27 and after, two rows of nobody, then 5 rows of another sequence.
    std::vector<int32_t> positions(18, 0);
    for (size_t r = 0; r < 11; ++r) positions[r] = 27 + static_cast<int32_t>(r);
    for (size_t r = 13; r < 18; ++r) positions[r] = static_cast<int32_t>(r - 13);
    std::vector<float> k = random_floats(rng, 18 * kHeads * width);
    std::vector<float> v = random_floats(rng, 18 * kHeads * width, 1e-3f);
    if (type == KvType::kQ8_0) {
      k[5] = kNaN;
      v[70] = kInfinity;
      std::fill_n(k.begin() + 2 * head_dim, 32, 0.0f);
      for (size_t j = 0; j < 32; ++j) k[width + j] = j == 31 ? 127.0f : static_cast<float>(j) + 0.5f;  // ties
    } else if (type == KvType::kF16) {
      const float hard[] = {65519.0f, 65520.0f, 6e-8f, 2.9e-8f, -0.0f, 1.0f + 0x1p-11f, 1.0f + 0x3p-11f, kInfinity};
      std::copy(std::begin(hard), std::end(hard), k.begin());
    }
    std::vector<Cache> want = {unwritten(type, kHeads, head_dim, 96), unwritten(type, kHeads, head_dim, 32)};
    const std::vector<Cache> before = want;
    for (size_t r = 0; r < 18; ++r) {
      if (r == 11 || r == 12) continue;
      Cache& cache = want[r < 11 ? 0 : 1];
      for (int h = 0; h < kHeads; ++h) {
        const size_t source = (r * kHeads + static_cast<size_t>(h)) * width;
        cpu::kernels_ref().store_kv_row(type, &k[source], cache.row(false, h, positions[r]), head_dim);
        cpu::kernels_ref().store_kv_row(type, &v[source], cache.row(true, h, positions[r]), head_dim);
      }
    }
    for_each_chip([&](Chip& chip) {
      const DeviceCache first(chip, before[0]);
      const DeviceCache second(chip, before[1]);
      const Floats keys(chip, k);
      const Floats values(chip, v);
      const std::vector<BatchSequence> sequences = {{0, 11, first.pages.data()}, {13, 5, second.pages.data()}};
      chip.backend->store_kv(before[0].layout, sequences, positions.data(), keys.data(), values.data());
      for (size_t p = 0; p < 3; ++p) check_same(first.memory[p]->get(), want[0].memory[p], type_name(type));
      check_same(second.memory[0]->get(), want[1].memory[0], type_name(type) + " second");
    });
  }
}

TEST("attention: a softmax in double; windows, image blocks, segments, groups of heads, pages of several sequences") {
  std::mt19937 rng(13);
  struct Shape {
    KvType type;
    int n_kv_heads;
    int group;
    int head_dim;
  };
  constexpr int kPositions[2] = {601, 75};
  for (const Shape shape : {Shape{KvType::kF16, 2, 3, 64},
                            {KvType::kF16, 1, 1, 36},
                            {KvType::kF32, 3, 1, 31},
                            {KvType::kQ8_0, 1, 5, 96},
                            {KvType::kF16, 1, 1, 512}}) {
    const int n_heads = shape.n_kv_heads * shape.group;
    const size_t width = static_cast<size_t>(n_heads * shape.head_dim);
    std::vector<Cache> caches;
    for (const int n : kPositions) {
      caches.push_back(unwritten(shape.type, shape.n_kv_heads, shape.head_dim, n));
      caches.back().fill(rng, n, 0.5f);
    }
    // The first sequence from position 40 on: its first page has gone. Within a page, over its borders, in one, two and
    // three segments, an image block, one position. The second: a whole page, a row of everything.
    const std::vector<RowSpan> spans = {{40, 41},   {41, 64},  {255, 257}, {256, 512}, {63, 601}, {300, 511},
                                        {512, 513}, {40, 601}, {224, 256}, {0, 32},    {0, 75},   {31, 33}};
    constexpr int kFirst = 9;
    const size_t n_rows = spans.size();
    for (const float size : {0.2f, 2.0f}) {  // weights spread out, and nearly all on a few positions
      const std::vector<float> q = random_floats(rng, n_rows * width, size);
      std::vector<double> want;
      std::vector<double> tolerance;
      for (size_t r = 0; r < n_rows; ++r) {
        for (int h = 0; h < n_heads; ++h) {
          const auto head = q.begin() + static_cast<std::ptrdiff_t>(r * width) + h * shape.head_dim;
          const Exact exact = exact_attention(caches[r < kFirst ? 0 : 1], h / shape.group,
                                              std::vector<float>(head, head + shape.head_dim), spans[r], 1);
          want.insert(want.end(), exact.out.begin(), exact.out.end());
          tolerance.insert(tolerance.end(), exact.tolerance.begin(), exact.tolerance.end());
        }
      }
      const std::string what = type_name(shape.type) + " head_dim " + std::to_string(shape.head_dim);
      for_each_chip([&](Chip& chip) {
        const DeviceCache first(chip, caches[0], 1);
        const DeviceCache second(chip, caches[1]);
        const Floats queries(chip, q);
        const Floats out(chip, q.size());
        const std::vector<BatchSequence> sequences = {{0, kFirst, first.pages.data()},
                                                      {kFirst, static_cast<int>(n_rows) - kFirst, second.pages.data()}};
        chip.backend->attention(out.data(), queries.data(), caches[0].layout, sequences, spans.data(), n_heads, {});
        const std::vector<float> got = out.get();
        check_near(got, want, tolerance, what);
        // A row alone has the same bits.
        for (const size_t r : {size_t{2}, size_t{7}, size_t{10}}) {
          const BatchSequence alone{static_cast<int>(r), 1, (r < kFirst ? first : second).pages.data()};
          const Floats one(chip, q.size());
          chip.backend->attention(one.data(), queries.data(), caches[0].layout, {&alone, 1}, spans.data(), n_heads, {});
          check_same_bits(std::span<const float>(one.get()).subspan(r * width, width),
                          std::span<const float>(got).subspan(r * width, width), what + " alone");
        }
      });
    }
  }
}

TEST("attention: scores that rise and fall from page to page, NaN in a visible key or value shows in its head only") {
  std::mt19937 rng(14);
  constexpr int kPositions = 331;
  constexpr int kDim = 32;
  for (const bool rising : {true, false}) {
    Cache cache = unwritten(KvType::kF32, 2, kDim, kPositions);
    cache.fill(rng, kPositions);
    for (int p = 0; p < kPositions; ++p) {
      const float key = static_cast<float>(rising ? p : kPositions - p) * 0.5f;  // scores 0 .. 165
      for (int h = 0; h < 2; ++h) std::memcpy(cache.row(false, h, p), &key, 4);
    }
    std::vector<float> q(2 * kDim, 0.0f);
    q[0] = q[kDim] = 1.0f;
    std::vector<double> want;
    std::vector<double> tolerance;
    for (int h = 0; h < 2; ++h) {
      const Exact exact =
          exact_attention(cache, h, std::vector<float>(q.begin(), q.begin() + kDim), {0, kPositions}, 1);
      want.insert(want.end(), exact.out.begin(), exact.out.end());
      tolerance.insert(tolerance.end(), exact.tolerance.begin(), exact.tolerance.end());
    }
    Cache broken = cache;
    std::memcpy(broken.row(rising, 1, 100), &kNaN, 4);  // a value, then a key
    for_each_chip([&](Chip& chip) {
      const Floats queries(chip, q);
      const RowSpan span{0, kPositions};
      for (const Cache* each : {&cache, &broken}) {
        const DeviceCache pages(chip, *each);
        const Floats out(chip, q.size());
        const BatchSequence sequence{0, 1, pages.pages.data()};
        chip.backend->attention(out.data(), queries.data(), cache.layout, {&sequence, 1}, &span, 2, {});
        const std::vector<float> got = out.get();
        const size_t n = each == &cache ? got.size() : kDim;
        check_near(std::span(got).first(n), std::span(want).first(n), std::span(tolerance).first(n), "scores");
        if (each == &broken) CHECK(std::isnan(got[kDim]));
      }
    });
  }
}

namespace {

int n_quantized() {
  return launches[static_cast<size_t>(Kernel::quantize_rows)];
}

// Products of rows as they are in memory: quantised by a launch of their own.
std::vector<float> product_of(Chip& chip, const Weight& weight, const std::vector<float>& rows) {
  const Floats in(chip, rows);
  const int n = static_cast<int>(rows.size()) / weight.n_in;
  const Floats out(chip, static_cast<size_t>(n) * static_cast<size_t>(weight.n_out));
  const LinearJob job{&weight, out.data()};
  const int before = n_quantized();
  chip.backend->linear({&job, 1}, in.data(), n, {});
  CHECK(n_quantized() == before + 1);
  return out.get();
}

// A product that follows what has just been launched; n_launches: whether rows are quantised by a launch of their own.
void check_product(Chip& chip, const Weight& weight, const float* x, int n, const std::vector<float>& rows,
                   int n_launches, const std::string& what) {
  const Floats out(chip, static_cast<size_t>(n) * static_cast<size_t>(weight.n_out));
  const LinearJob job{&weight, out.data()};
  const int before = n_quantized();
  chip.backend->linear({&job, 1}, x, n, {});
  if (n_quantized() != before + n_launches)
    fail(__FILE__, __LINE__, what + ": expected " + std::to_string(n_launches) + " launches of quantize_rows");
  check_same_bits(out.get(), product_of(chip, weight, rows), what);
}

}  // namespace

TEST("attention: rows in parts where their partial results are too many for the memory set aside") {
  // Two segments for each row of 14 heads of 512: 57 KB a row, 64 MiB after 1167 rows.
  constexpr int kHeads = 14;
  constexpr int kDim = 512;
  constexpr int kRows = 1200;
  std::mt19937 rng(15);
  Cache cache = unwritten(KvType::kF16, 1, kDim, 258);
  cache.fill(rng, 258);
  std::vector<float> q(static_cast<size_t>(kRows) * kHeads * kDim);
  const std::vector<float> some = random_floats(rng, 1009, 0.1f);
  for (size_t i = 0; i < q.size(); ++i) q[i] = some[i % some.size()];
  std::vector<RowSpan> spans(kRows, RowSpan{255, 257});
  spans[1180] = {256, 258};
  const std::vector<std::byte> weights = random_weights(rng, TensorType::kQ8_0, 1, kHeads * kDim);
  const auto run = [&](Chip& chip, int first, int n) {
    const Weight weight = chip.backend->load_weight(TensorType::kQ8_0, 1, kHeads * kDim, weights.data());
    const DeviceCache pages(chip, cache);
    const std::span<const float> rows = std::span<const float>(q).subspan(static_cast<size_t>(first) * kHeads * kDim,
                                                                          static_cast<size_t>(n) * kHeads * kDim);
    const Floats queries(chip, rows);
    const Floats out(chip, rows.size());
    const BatchSequence sequence{0, n, pages.pages.data()};
    chip.backend->attention(out.data(), queries.data(), cache.layout, {&sequence, 1},
                            &spans[static_cast<size_t>(first)], kHeads, {});
    std::vector<float> all = out.get();
    check_product(chip, weight, out.data(), n, all, n == kRows ? 1 : 0, "rows in parts, multiplied");
    return all;
  };
  bool done = false;  // what the host does is the same for all chips, and this takes a while
  for_each_chip([&](Chip& chip) {
    if (std::exchange(done, true)) return;
    const std::vector<float> all = run(chip, 0, kRows);
    const std::vector<float> last = run(chip, 1160, 40);
    check_same_bits(std::span(all).last(last.size()), last, "the last rows");
  });
}

TEST("norms, activations and attention quantise what is multiplied next, to the bits of quantize_rows") {
  std::mt19937 rng(20);
  constexpr int kRows = 3;
  for (const int dim : {32, 352, 4128}) {  // one block, some, more than threads
    const size_t n = static_cast<size_t>(dim);
    std::vector<float> x = random_floats(rng, kRows * n);
    x[n] = kNaN;
    std::fill_n(x.begin() + static_cast<std::ptrdiff_t>(2 * n), 32, 0.0f);
    const std::vector<float> other = random_floats(rng, kRows * n);
    const std::vector<float> scale = random_floats(rng, n);
    const std::vector<std::byte> weights = random_weights(rng, TensorType::kQ8_0, 5, dim);
    const std::string what = " dim " + std::to_string(dim);
    for_each_chip([&](Chip& chip) {
      Backend& backend = *chip.backend;
      const Weight weight = backend.load_weight(TensorType::kQ8_0, 5, dim, weights.data());
      const Floats in(chip, x);
      const Floats up(chip, other);
      const Floats w(chip, scale);
      const Floats out(chip, x.size());
      // get() only reads: what follows it is still the next launch.
      backend.rms_norm(out.data(), in.data(), w.data(), kRows, dim, kEps);
      check_product(chip, weight, out.data(), kRows, out.get(), 0, "rms_norm" + what);
      backend.layer_norm(out.data(), in.data(), w.data(), w.data(), kRows, dim, kEps);
      check_product(chip, weight, out.data(), kRows, out.get(), 0, "layer_norm" + what);
      backend.geglu(out.data(), in.data(), up.data(), kRows, dim);
      check_product(chip, weight, out.data(), kRows, out.get(), 0, "geglu" + what);
      backend.bias_gelu(in.data(), w.data(), kRows, dim);
      check_product(chip, weight, in.data(), kRows, in.get(), 0, "bias_gelu" + what);
    });
  }
  // Heads that fill no block of threads; rows that see one segment and two.
  Cache cache = unwritten(KvType::kF16, 1, 96, 300);
  cache.fill(rng, 300);
  constexpr int kWidth = 3 * 96;
  const std::vector<float> q = random_floats(rng, 3 * kWidth);
  const std::vector<std::byte> weights = random_weights(rng, TensorType::kQ8_0, 7, kWidth);
  const std::vector<RowSpan> spans = {{0, 300}, {3, 17}, {250, 258}};
  for_each_chip([&](Chip& chip) {
    const Weight weight = chip.backend->load_weight(TensorType::kQ8_0, 7, kWidth, weights.data());
    const DeviceCache pages(chip, cache);
    const Floats queries(chip, q);
    const Floats out(chip, q.size());
    const BatchSequence sequence{0, 3, pages.pages.data()};
    chip.backend->attention(out.data(), queries.data(), cache.layout, {&sequence, 1}, spans.data(), 3, {});
    check_product(chip, weight, out.data(), 3, out.get(), 0, "attention");
  });
}

TEST("rows are quantised anew after anything that may have written them, and where others are multiplied") {
  std::mt19937 rng(21);
  constexpr int kDim = 128;
  constexpr int kRows = 4;
  const std::vector<float> x = random_floats(rng, kRows * kDim);
  const std::vector<float> other = random_floats(rng, kRows * kDim);
  const std::vector<std::byte> weights = random_weights(rng, TensorType::kQ8_0, 5, kDim);
  const std::vector<std::byte> narrow_weights = random_weights(rng, TensorType::kQ8_0, 5, kDim / 2);
  for_each_chip([&](Chip& chip) {
    Backend& backend = *chip.backend;
    const Weight weight = backend.load_weight(TensorType::kQ8_0, 5, kDim, weights.data());
    const Weight narrow = backend.load_weight(TensorType::kQ8_0, 5, kDim / 2, narrow_weights.data());
    const Floats in(chip, x);
    const Floats w(chip, other);
    const Floats out(chip, x.size());
    const Floats elsewhere(chip, x.size());
    const auto norm = [&](const Floats& to) { backend.rms_norm(to.data(), in.data(), w.data(), kRows, kDim, kEps); };
    const auto check_anew = [&](const std::string& what) {
      check_product(chip, weight, out.data(), kRows, out.get(), 1, what);
    };
    const std::vector<std::pair<std::string, std::function<void()>>> writers = {
        {"upload", [&] { backend.upload(out.data(), other.data(), other.size() * sizeof(float)); }},
        {"fill_zero", [&] { backend.fill_zero(out.data(), kDim * sizeof(float)); }},
        {"add_rms_norm", [&] { backend.add_rms_norm(out.data(), in.data(), w.data(), kRows, kDim, kEps); }},
        {"add_bias", [&] { backend.add_bias(out.data(), w.data(), kRows, kDim); }},
        {"softcap", [&] { backend.softcap(out.data(), x.size(), 0.5f); }},
        {"gather_rows",
         [&] {
           const int32_t rows[] = {3, 2, 1, 0};
           backend.gather_rows(out.data(), w.data(), rows, kRows, kDim);
         }},
        {"another norm", [&] { norm(elsewhere); }},
        {"linear",
         [&] {
           const LinearJob job{&weight, out.data()};
           backend.linear({&job, 1}, in.data(), kRows, {});
         }},
    };
    for (const auto& [what, write] : writers) {
      norm(out);
      write();
      check_anew(what);
    }
    norm(out);
    check_product(chip, weight, in.data(), kRows, x, 1, "another buffer");
    norm(out);
    std::vector<float> rows = out.get();
    check_product(chip, narrow, out.data(), 2 * kRows, rows, 1, "another width");
    norm(out);
    rows.resize(3 * kDim);
    check_product(chip, weight, out.data(), 3, rows, 1, "fewer rows");
    norm(out);
    rows = out.get();
    rows.erase(rows.begin(), rows.begin() + kDim);
    check_product(chip, weight, out.data() + kDim, 3, rows, 1, "from the second row on");
    // A second product of the same rows: the first may have written over them.
    norm(out);
    check_product(chip, weight, out.data(), kRows, out.get(), 0, "the next product");
    check_product(chip, weight, out.data(), kRows, out.get(), 1, "the one after it");
  });
}

TEST("full_attention: a softmax in double, groups and heads of any size, out may be q") {
  std::mt19937 rng(16);
  struct Shape {
    int n_groups;
    int group_rows;
    int n_heads;
    int head_dim;
  };
  for (const Shape shape : {Shape{1, 1, 1, 1}, {2, 33, 3, 72}, {1, 67, 2, 31}, {3, 5, 1, 97}, {1, 32, 1, 256}}) {
    const size_t stride = static_cast<size_t>(shape.n_heads * shape.head_dim);
    const size_t dim = static_cast<size_t>(shape.head_dim);
    const size_t n_rows = static_cast<size_t>(shape.n_groups * shape.group_rows);
    const size_t group = static_cast<size_t>(shape.group_rows);
    const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    for (const float size : {0.3f, 4.0f}) {
      const std::vector<float> q = random_floats(rng, n_rows * stride, size);
      const std::vector<float> k = random_floats(rng, n_rows * stride, size);
      const std::vector<float> v = random_floats(rng, n_rows * stride);
      std::vector<double> want(q.size());
      std::vector<double> tolerance(q.size());
      for (size_t row = 0; row < n_rows; ++row) {
        for (size_t h = 0; h < stride; h += dim) {
          const size_t first = row / group * group;
          std::vector<double> scores(group);
          double magnitude = 0;
          double largest = -std::numeric_limits<double>::infinity();
          for (size_t p = 0; p < group; ++p) {
            double absolute = 0;
            for (size_t j = 0; j < dim; ++j) {
              const double product =
                  static_cast<double>(q[row * stride + h + j]) * k[(first + p) * stride + h + j] * scale;
              scores[p] += product;
              absolute += std::fabs(product);
            }
            magnitude = std::max(magnitude, absolute);
            largest = std::max(largest, scores[p]);
          }
          double sum = 0;
          for (size_t p = 0; p < group; ++p) {
            const double weight = std::exp(scores[p] - largest);
            sum += weight;
            for (size_t j = 0; j < dim; ++j) {
              want[row * stride + h + j] += weight * v[(first + p) * stride + h + j];
              tolerance[row * stride + h + j] += weight * std::fabs(v[(first + p) * stride + h + j]);
            }
          }
          // A score is one chain of head_dim additions, its weight off by two scores' errors and exp's; then additions
          // and rescalings.
          const double relative =
              (2 * (static_cast<double>(dim) + 4) * magnitude + 2 * static_cast<double>(group) + 16) * kHalfUlp;
          for (size_t j = 0; j < dim; ++j) {
            want[row * stride + h + j] /= sum;
            tolerance[row * stride + h + j] *= relative / sum;
          }
        }
      }
      const std::string what = std::to_string(shape.group_rows) + " rows, head_dim " + std::to_string(shape.head_dim);
      for_each_chip([&](Chip& chip) {
        const Floats queries(chip, q);
        const Floats keys(chip, k);
        const Floats values(chip, v);
        const Floats out(chip, q.size());
        const auto attend = [&](float* to) {
          chip.backend->full_attention(to, queries.data(), keys.data(), values.data(), shape.n_groups, shape.group_rows,
                                       shape.n_heads, shape.head_dim, scale, Arithmetic::kExact);
        };
        attend(out.data());
        check_near(out.get(), want, tolerance, what);
        attend(queries.data());
        check_same_bits(queries.get(), out.get(), what + " in place");
      });
    }
  }
}

TEST("every kernel ran") {
  for (int i = 0; i < gpu::kNumKernels; ++i) {
    if (launches[static_cast<size_t>(i)] == 0)
      fail(__FILE__, __LINE__, std::string(gpu::kKernelSymbols[i]) + " was never launched");
  }
}

}  // namespace gemma

TEST_MAIN
