// What the tests of the kernels share: the sets this machine can run, random weights of every type, memory whose
// padding shows a stray write, comparison bit for bit.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/kernels.h"
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

}  // namespace gemma::test
