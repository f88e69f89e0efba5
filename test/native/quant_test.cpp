// dequantize_row against gguf-py's values (bit for bit), unpack_block32 against dequantize_row.
#include <bit>
#include <cmath>
#include <random>

#include "base/half.h"
#include "check.h"
#include "kernel_cases.h"
#include "quant/dequantize.h"
#include "quant/types.h"
#include "safetensors.h"

using namespace gemma;

namespace {

std::string data(const char* name) {
  return std::string(GEMMA_TEST_DATA) + "/" + name;
}

// Types whose golden values exist in the file are compared; returns how many.
int compare_with_golden(const char* file_name) {
  const test::GoldenFile golden = test::read_safetensors(data(file_name));
  int n_compared = 0;
  for (const TensorType type : kTensorTypes) {
    const std::string name = type_traits(type).name;
    const auto raw = golden.find(name + ".raw");
    if (raw == golden.end()) continue;
    const test::GoldenTensor& want_tensor = golden.at(name + ".w");
    const std::vector<float> want = want_tensor.as<float>();
    const int64_t n = want_tensor.shape[1];
    std::vector<float> got(want.size());
    CHECK(raw->second.bytes.size() == row_bytes(type, n) * static_cast<size_t>(want_tensor.shape[0]));
    for (int64_t r = 0; r < want_tensor.shape[0]; ++r) {
      // an odd address: blocks in a file are not aligned
      std::vector<char> row(row_bytes(type, n) + 1);
      std::memcpy(row.data() + 1, raw->second.bytes.data() + static_cast<size_t>(r) * row_bytes(type, n),
                  row_bytes(type, n));
      dequantize_row(type, row.data() + 1, got.data() + r * n, n);
    }
    for (size_t i = 0; i < want.size(); ++i) {
      if (std::bit_cast<uint32_t>(got[i]) != std::bit_cast<uint32_t>(want[i]) && !(got[i] == 0 && want[i] == 0)) {
        test::fail(__FILE__, __LINE__,
                   name + " at " + std::to_string(i) + ": got " + std::to_string(got[i]) + ", want " +
                       std::to_string(want[i]));
      }
    }
    ++n_compared;
  }
  return n_compared;
}

// The integer form must give the same value as the formula: exactly for a type without minimum, else up to the rounding
// of the two products and the sum.
void compare_forms(TensorType type, const std::vector<uint8_t>& row, int64_t n) {
  std::vector<float> want(static_cast<size_t>(n));
  dequantize_row(type, row.data(), want.data(), n);
  const CanonicalTraits traits = canonical_traits(type);
  for (int64_t b = 0; b < n / 32; ++b) {
    Block32 block;
    std::memset(&block, 0xff, sizeof block);  // NaN where nothing is written
    unpack_block32(type, row.data(), b, &block);
    if (!traits.has_min) CHECK(block.m[0] == 0 && block.m[1] == 0);
    if (!traits.halves) CHECK(block.d[0] == block.d[1] && block.m[0] == block.m[1]);
    for (int j = 0; j < 32; ++j) {
      const float product = block.d[j / 16] * static_cast<float>(block.u[j] - traits.offset);
      const float got = product + block.m[j / 16];
      const float expected = want[static_cast<size_t>(b * 32 + j)];
      const double tolerance = traits.has_min ? 0x1p-23 * (std::fabs(product) + std::fabs(block.m[j / 16])) : 0;
      if (!(std::fabs(static_cast<double>(got) - expected) <= tolerance)) {
        test::fail(__FILE__, __LINE__,
                   std::string(type_traits(type).name) + " element " + std::to_string(b * 32 + j) + ": integer form " +
                       std::to_string(got) + ", formula " + std::to_string(expected));
      }
    }
  }
}

}  // namespace

TEST("types: table is complete, unknown numbers are refused") {
  for (const TensorType type : kTensorTypes) {
    const TypeTraits* traits = find_type_traits(static_cast<uint32_t>(type));
    CHECK(traits != nullptr && traits->type == type && is_computed_type(type));
    CHECK(&type_traits(type) == traits);
    CHECK(traits->block_elems == 1 || traits->block_elems == 32 || traits->block_elems == 256);
  }
  for (const uint32_t unknown : {4u, 5u, 9u, 15u, 42u, 200u, 0xffffffffu}) CHECK(find_type_traits(unknown) == nullptr);
  for (const uint32_t known : {16u, 29u, 34u, 40u, 41u}) {
    const TypeTraits* traits = find_type_traits(known);
    CHECK(traits != nullptr && !is_computed_type(traits->type));
  }
  CHECK(row_bytes(TensorType::kQ4_0, 64) == 36);
  CHECK(row_bytes(TensorType::kQ6_K, 512) == 420);
  CHECK(row_bytes(TensorType::kF32, 3) == 12);
}

TEST("dequantize_row: equal to gguf-py") {
  CHECK(compare_with_golden("quants.safetensors") == 15);
  CHECK(compare_with_golden("quants-extra.safetensors") == 2);
}

TEST("unpack_block32: equal to dequantize_row, random and extreme codes, every kind of scale") {
  std::mt19937 rng(7);
  constexpr int64_t kElems = 1024;
  // f16 patterns: zeros, smallest and largest subnormal, smallest normal, one, largest; both signs
  const uint16_t scales[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x83ff, 0x0400,
                             0x3c00, 0xbc00, 0x7bff, 0xfbff, 0x2345, 0xa345};
  for (const TensorType type : kTensorTypes) {
    if (is_float_type(type)) continue;
    const TypeTraits& traits = type_traits(type);
    const size_t block_bytes = static_cast<size_t>(traits.block_bytes);
    for (int round = 0; round < 40; ++round) {
      std::vector<uint8_t> row(row_bytes(type, kElems));
      for (uint8_t& byte : row) byte = round == 0 ? 0 : round == 1 ? 255 : static_cast<uint8_t>(rng());
      for (size_t block = 0; block < row.size(); block += block_bytes) {
        for (const size_t offset : test::scale_offsets(type)) {
          const uint16_t scale = scales[rng() % std::size(scales)];
          std::memcpy(&row[block + offset], &scale, 2);
        }
        // 12 * 2^(e-128) is finite up to e = 252
        if (type == TensorType::kMXFP4) row[block] = static_cast<uint8_t>(rng() % 253);
      }
      compare_forms(type, row, kElems);
    }
  }
}

TEST("dequantize_row: hand-made blocks") {
  // Q4_0: d = -0.5, codes 0 and 15 in the first byte
  uint8_t q4[18] = {0x00, 0xb8, 0xf0};
  float out[256];
  dequantize_row(TensorType::kQ4_0, q4, out, 32);
  CHECK(out[0] == 4.0f && out[16] == -3.5f && out[1] == 4.0f);
  // MXFP4: e = 128 is a factor of 1 on twice the FP4 values; e = 0 and 1 are subnormal
  uint8_t mx[17] = {128, 0x7f};
  dequantize_row(TensorType::kMXFP4, mx, out, 32);
  CHECK(out[0] == -12.0f && out[16] == 12.0f && out[1] == 0.0f);
  mx[0] = 0;
  dequantize_row(TensorType::kMXFP4, mx, out, 32);
  CHECK(out[16] == 12 * 0x1p-128f);
  mx[0] = 1;
  dequantize_row(TensorType::kMXFP4, mx, out, 32);
  CHECK(out[16] == 12 * 0x1p-127f);
  // TQ2_0: d = 2; byte 0 holds elements 0, 32, 64, 96
  uint8_t tq[66] = {0x24};  // 00 01 10 00 from the low end
  tq[65] = 0x40;
  dequantize_row(TensorType::kTQ2_0, tq, out, 256);
  CHECK(out[0] == -2.0f && out[32] == 0.0f && out[64] == 2.0f && out[96] == -2.0f && out[128] == -2.0f);
}

TEST("canonical form: float types have none") {
  Block32 block;
  const uint8_t row[128] = {};
  for (const TensorType type : {TensorType::kF32, TensorType::kF16, TensorType::kBF16}) {
    CHECK_THROWS(kInternal, "", canonical_traits(type));
    CHECK_THROWS(kInternal, "", unpack_block32(type, row, 0, &block));
  }
}

TEST_MAIN
