// What the tests of the kernels share: the sets this machine can run, random weights of every type, memory whose
// padding shows a stray write, comparison bit for bit.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/kernels.h"
#include "base/half.h"
#include "check.h"
#include "quant/types.h"

namespace gemma::test {

// f(kernels) for every set that is available here, the scalar one included.
template <class F>
void for_each_set(const F& f) {
  int n_sets = 0;
  for (const cpu::KernelRow& row : cpu::kernel_table()) {
    if (!row.available()) continue;
    const cpu::Kernels& kernels = cpu::select_kernels(row.isa);
    if (std::string(kernels.isa) != row.isa)
      fail(__FILE__, __LINE__, std::string("asked for ") + row.isa + ", got " + kernels.isa);
    f(kernels);
    ++n_sets;
  }
  if (n_sets == 0) fail(__FILE__, __LINE__, "no kernels");
}

// f(kernels) for one set of each different function of this name: sets share some of them.
template <class Function, class F>
void for_each_distinct(Function cpu::Kernels::* function, const F& f) {
  std::vector<Function> seen;
  for_each_set([&](const cpu::Kernels& kernels) {
    if (std::find(seen.begin(), seen.end(), kernels.*function) != seen.end()) return;
    seen.push_back(kernels.*function);
    f(kernels);
  });
}

// A NaN that no arithmetic makes: what nobody wrote still has these bits.
inline const float kUntouched = std::bit_cast<float>(0x7fabcdefu);
inline bool is_untouched(float value) {
  return std::bit_cast<uint32_t>(value) == 0x7fabcdefu;
}

inline bool same_bits(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}

inline std::string describe(float value) {
  char text[64];
  std::snprintf(text, sizeof text, "%.9g (%08x)", static_cast<double>(value), std::bit_cast<uint32_t>(value));
  return text;
}

// Every NaN equals every NaN, else bit for bit.
inline void check_same_bits(std::span<const float> got, std::span<const float> want, const std::string& what) {
  if (got.size() != want.size()) fail(__FILE__, __LINE__, what + ": sizes differ");
  for (size_t i = 0; i < got.size(); ++i) {
    if (!same_bits(got[i], want[i])) {
      fail(__FILE__, __LINE__,
           what + " at " + std::to_string(i) + ": got " + describe(got[i]) + ", want " + describe(want[i]));
    }
  }
}

// The kernels' working memory, full of NaN.
class ScratchMemory {
 public:
  ScratchMemory() : data_(static_cast<std::byte*>(::operator new(cpu::kScratchBytes, std::align_val_t{64}))) {
    poison(cpu::kScratchBytes);
  }
  ~ScratchMemory() { ::operator delete(data_, std::align_val_t{64}); }
  ScratchMemory(const ScratchMemory&) = delete;
  ScratchMemory& operator=(const ScratchMemory&) = delete;
  // The first bytes, where kernels keep their panels.
  void poison(size_t bytes) { std::memset(data_, 0xff, bytes); }
  cpu::Scratch scratch() const { return {data_, cpu::kScratchBytes}; }

 private:
  std::byte* data_;
};

// Bytes at an odd address that end where the allocation ends, so that the address sanitizer sees a read past the end.
class TightBytes {
 public:
  explicit TightBytes(std::span<const std::byte> bytes) : data_(new std::byte[bytes.size() + 1]) {
    if (!bytes.empty()) std::memcpy(data_.get() + 1, bytes.data(), bytes.size());
  }
  const std::byte* data() const { return data_.get() + 1; }

 private:
  std::unique_ptr<std::byte[]> data_;
};

inline std::vector<float> random_floats(std::mt19937& rng, size_t n, float deviation = 1.0f) {
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(n);
  for (float& v : values) v = normal(rng);
  return values;
}

// Byte offsets of the f16 scales in a block (MXFP4 has an exponent byte instead).
inline std::vector<size_t> scale_offsets(TensorType type) {
  switch (type) {
    case TensorType::kQ4_1:
    case TensorType::kQ5_1:
    case TensorType::kQ4_K:
    case TensorType::kQ5_K: return {0, 2};
    case TensorType::kQ2_K: return {80, 82};
    case TensorType::kQ3_K: return {108};
    case TensorType::kQ6_K: return {208};
    case TensorType::kTQ2_0: return {64};
    case TensorType::kMXFP4: return {};
    default: return {0};
  }
}

// Rows of a quantised type: random codes; those of the first three rows are all 0, all ones and all 0x80, where sums of
// products are largest. Scales are f16 of both signs between 2^-8 and 2^-4.
inline std::vector<std::byte> random_weights(std::mt19937& rng, TensorType type, int n_rows, int n_cols) {
  const size_t bytes_per_row = row_bytes(type, n_cols);
  const size_t block_bytes = static_cast<size_t>(type_traits(type).block_bytes);
  std::vector<std::byte> bytes(static_cast<size_t>(n_rows) * bytes_per_row);
  constexpr uint8_t kExtremes[] = {0x00, 0xff, 0x80};
  for (size_t i = 0; i < bytes.size(); ++i) {
    const size_t row = i / bytes_per_row;
    bytes[i] = static_cast<std::byte>(row < 3 ? kExtremes[row] : static_cast<uint8_t>(rng()));
  }
  for (size_t block = 0; block < bytes.size(); block += block_bytes) {
    for (const size_t offset : scale_offsets(type)) {
      const uint16_t scale = static_cast<uint16_t>((rng() & 0x83ffu) | ((7 + rng() % 4) << 10));
      std::memcpy(&bytes[block + offset], &scale, 2);
    }
    if (type == TensorType::kMXFP4) bytes[block] = static_cast<std::byte>(120 + rng() % 8);
  }
  return bytes;
}

// Random weights of a float type with the values that are hard to convert.
inline std::vector<std::byte> float_weights(std::mt19937& rng, TensorType type, int n_rows, int n_cols) {
  std::vector<float> values = random_floats(rng, static_cast<size_t>(n_rows * n_cols));
  const float special[] = {0.0f, -0.0f, 6e-8f, -6.1e-5f, 65504.0f, 1e-30f, -1e-42f};
  for (size_t i = 0; i < values.size(); ++i) {
    if (rng() % 8 == 0) values[i] = special[rng() % std::size(special)];
    if (i / static_cast<size_t>(n_cols) == 4) values[i] = 6e-8f;  // with tiny x all products round to -0
  }
  std::vector<std::byte> bytes(values.size() * static_cast<size_t>(type_traits(type).block_bytes));
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == TensorType::kF32) {
      std::memcpy(&bytes[i * 4], &values[i], 4);
    } else {
      const uint16_t half = type == TensorType::kF16 ? f32_to_f16(values[i])
                                                     : static_cast<uint16_t>(std::bit_cast<uint32_t>(values[i]) >> 16);
      std::memcpy(&bytes[i * 2], &half, 2);
    }
  }
  return bytes;
}

// Rows of x in the form of the kernels, made by the scalar quantize_row or that of a set.
struct Quantized {
  int n_cols;
  std::vector<int8_t> q;
  std::vector<float> d, dsum, dsum16;
  std::vector<int32_t> neg_sum, neg_sum16;

  Quantized(const std::vector<float>& x, int n_rows, int cols, const cpu::Kernels& kernels = cpu::kernels_ref())
      : n_cols(cols) {
    const size_t blocks = static_cast<size_t>(n_rows * cols / 32);
    q.resize(x.size());
    d.resize(blocks);
    dsum.resize(blocks);
    neg_sum.resize(blocks);
    dsum16.resize(2 * blocks);
    neg_sum16.resize(2 * blocks);
    kernels.quantize_row(x.data(), n_rows * cols,
                         {q.data(), d.data(), neg_sum.data(), neg_sum16.data(), dsum.data(), dsum16.data()});
  }
  cpu::QuantizedRows first(int n_rows) const {
    return {n_rows, n_cols, q.data(), d.data(), neg_sum.data(), neg_sum16.data(), dsum.data(), dsum16.data()};
  }
};

// Blocks of 32 that are easy to get wrong.
inline std::vector<float> awkward_blocks(std::mt19937& rng) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> x;
  const auto block = [&](const auto& f) {
    for (int j = 0; j < 32; ++j) x.push_back(f(j));
  };
  block([](int) { return 0.0f; });
  block([](int) { return -0.0f; });
  block([](int j) { return static_cast<float>(j) * 1e-45f; });  // subnormal
  block([](int j) { return j == 3 ? 9.9e-31f : 1e-33f; });      // below what has a reciprocal
  block([](int j) { return j == 3 ? -1.1e-30f : 1e-32f; });
  block([](int j) { return j == 31 ? 127.0f : static_cast<float>(j) + 0.5f; });  // ties go to even
  block([](int j) { return j == 0 ? -127.0f : -static_cast<float>(j) - 0.5f; });
  block([](int j) { return j == 0 ? 126.0f : static_cast<float>(j); });  // exact with 126 steps
  block([](int) { return 1.0f; });
  block([](int j) { return j % 2 == 0 ? 3.4e38f : -3.4e38f; });
  block([](int j) { return j == 17 ? kNaN : 1.0f; });
  block([](int j) { return j == 0 ? kInfinity : 1.0f; });
  block([](int j) { return j == 31 ? -kInfinity : 1e-40f; });
  block([](int j) { return j < 16 ? 2.0f : kNaN; });
  for (const float size : {1e-38f, 1e-29f, 1e-3f, 1.0f, 1e4f, 1e30f}) {
    for (int i = 0; i < 50; ++i) {
      for (const float v : random_floats(rng, 32, size)) x.push_back(v);
    }
  }
  return x;
}

// What adapters add to rows of two products: one adapter for rows 1 .. 5, two after another for the last row.
struct LowRankCase {
  static constexpr int kRows = 9;
  static constexpr int kCols = 96;
  static constexpr int kOut[2] = {277, 33};  // columns of b: 288 and 48
  std::vector<float> x;
  std::vector<std::vector<std::byte>> w;  // F32
  struct Part {
    int job, first_row, n_rows, rank;
    TensorType type;
    bool has_bias, has_norms;
    float scale;
    std::vector<std::byte> a, b;
    std::vector<float> bias, norms;
  };
  std::vector<Part> parts;

  explicit LowRankCase(std::mt19937& rng) : x(random_floats(rng, kRows * kCols)) {
    for (const int n_out : kOut) w.push_back(float_weights(rng, TensorType::kF32, n_out, kCols));
    const Part shapes[] = {{0, 1, 5, 16, TensorType::kF16, false, false, 0.5f, {}, {}, {}, {}},
                           {1, 1, 5, 3, TensorType::kF32, true, false, -2.0f, {}, {}, {}, {}},
                           {0, 8, 1, 1, TensorType::kBF16, false, true, 1.5f, {}, {}, {}, {}},
                           {0, 8, 1, 7, TensorType::kF32, false, false, 0.25f, {}, {}, {}, {}}};
    for (Part part : shapes) {
      const int columns = (kOut[part.job] + kOutputLanes - 1) / kOutputLanes * kOutputLanes;
      part.a = float_weights(rng, part.type, part.rank, kCols);
      part.b = float_weights(rng, part.type, part.rank, columns);
      part.bias = random_floats(rng, static_cast<size_t>(columns));
      part.norms = random_floats(rng, static_cast<size_t>(4 * columns));
      for (float& v : part.norms) v = 1.0f + v * v;
      parts.push_back(std::move(part));
    }
  }
};

}  // namespace gemma::test
