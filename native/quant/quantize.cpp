// Values -> blocks of the types whose arithmetic is fixed: a scale from the largest value of a block, then rounding.
// Types with a search are in quantize_k.cpp. Source of the arithmetic: ggml's quantize_row_*_ref, whose bytes these are;
// the block structures as in dequantize.cpp.
#include "quant/quantize.h"

#include <cmath>
#include <cstring>

#include "base/half.h"
#include "quant/quantize_k.h"

namespace gemma {
namespace {

constexpr int kBlock = 32;

// Of values that are all finite; NaN otherwise. Eight sums in parallel, as vector lanes.
bool all_finite(const float* x, int64_t n) {
  float sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int lane = 0; lane < 8; ++lane) sums[lane] += x[i + lane] * 0.0f;
  }
  for (; i < n; ++i) sums[0] += x[i] * 0.0f;
  for (const float sum : sums) {
    if (sum != 0) return false;
  }
  return true;
}

// Stores a scale; false when half floats do not hold it.
bool store_half(float value, uint8_t* out) {
  const uint16_t half = f32_to_f16(value);
  std::memcpy(out, &half, sizeof half);
  return (half & 0x7c00u) != 0x7c00u;
}

// The code that a scaled value, already moved by half a step, is cut to. A block of values so small that the inverse of
// its step is infinite has scale zero; its codes are what x86 makes of such a conversion, zero.
int cut(float value) {
  return value > -1 && value < 256 ? static_cast<int>(value) : 0;
}

// Codes of 4 bits: element j and element j + 16 share a byte.
void store_nibbles(const int* codes, uint8_t* out) {
  for (int j = 0; j < kBlock / 2; ++j)
    out[j] = static_cast<uint8_t>((codes[j] & 15) | (codes[j + kBlock / 2] & 15) << 4);
}

void store_fifth_bits(const int* codes, uint8_t* out) {
  uint32_t bits = 0;
  for (int j = 0; j < kBlock; ++j) bits |= static_cast<uint32_t>(codes[j] >> 4 & 1) << j;
  std::memcpy(out, &bits, sizeof bits);
}

// Codes 0..2 kZero - 1 stand for -kZero..kZero - 1 steps. The value that is largest in size gets the code 0.
template <int kZero>
bool fit_symmetric(const float* x, uint8_t* out, int* codes) {
  float largest = 0;
  float signed_largest = 0;
  for (int j = 0; j < kBlock; ++j) {
    if (largest < std::fabs(x[j])) {
      largest = std::fabs(x[j]);
      signed_largest = x[j];
    }
  }
  const float d = signed_largest / -static_cast<float>(kZero);
  const float inverse = d != 0 ? 1.0f / d : 0.0f;
  for (int j = 0; j < kBlock; ++j) {
    const int code = cut(x[j] * inverse + (static_cast<float>(kZero) + 0.5f));
    codes[j] = code < 2 * kZero ? code : 2 * kZero - 1;
  }
  return store_half(d, out);
}

// Codes 0..kMax from the smallest to the largest value.
template <int kMax>
bool fit_affine(const float* x, uint8_t* out, int* codes) {
  float smallest = x[0];
  float largest = x[0];
  for (int j = 1; j < kBlock; ++j) {
    if (x[j] < smallest) smallest = x[j];
    if (x[j] > largest) largest = x[j];
  }
  const float d = (largest - smallest) / static_cast<float>(kMax);
  const float inverse = d != 0 ? 1.0f / d : 0.0f;
  for (int j = 0; j < kBlock; ++j) {
    const int code = cut((x[j] - smallest) * inverse + 0.5f);
    codes[j] = code < kMax ? code : kMax;
  }
  const bool ok = store_half(d, out);
  return store_half(smallest, out + 2) && ok;
}

bool quantize_q8_0(const float* x, uint8_t* out) {
  float largest[8] = {};
  for (int j = 0; j < kBlock; j += 8) {
    for (int lane = 0; lane < 8; ++lane) {
      const float size = std::fabs(x[j + lane]);
      largest[lane] = size > largest[lane] ? size : largest[lane];
    }
  }
  for (int lane = 1; lane < 8; ++lane) largest[0] = largest[lane] > largest[0] ? largest[lane] : largest[0];
  const float d = largest[0] / 127;
  const float inverse = d != 0 ? 1.0f / d : 0.0f;
  // Halves are rounded away from zero. Values that are tiny give infinity or NaN and the code 0, as above.
  for (int j = 0; j < kBlock; ++j) {
    const float scaled = x[j] * inverse;
    const float size = std::fabs(scaled);
    const float sized = size < 256 ? size : 0.0f;
    int code = static_cast<int>(sized);
    code += sized - static_cast<float>(code) >= 0.5f ? 1 : 0;
    out[2 + j] = static_cast<uint8_t>(scaled < 0 ? -code : code);
  }
  return store_half(d, out);
}

bool quantize_q4_0(const float* x, uint8_t* out) {
  int codes[kBlock];
  const bool ok = fit_symmetric<8>(x, out, codes);
  store_nibbles(codes, out + 2);
  return ok;
}

bool quantize_q4_1(const float* x, uint8_t* out) {
  int codes[kBlock];
  const bool ok = fit_affine<15>(x, out, codes);
  store_nibbles(codes, out + 4);
  return ok;
}

bool quantize_q5_0(const float* x, uint8_t* out) {
  int codes[kBlock];
  const bool ok = fit_symmetric<16>(x, out, codes);
  store_fifth_bits(codes, out + 2);
  store_nibbles(codes, out + 6);
  return ok;
}

bool quantize_q5_1(const float* x, uint8_t* out) {
  int codes[kBlock];
  const bool ok = fit_affine<31>(x, out, codes);
  store_fifth_bits(codes, out + 4);
  store_nibbles(codes, out + 8);
  return ok;
}

template <bool (*kQuantize)(const float*, uint8_t*)>
bool quantize_blocks(const TypeTraits& traits, const float* src, uint8_t* dst, int64_t n) {
  bool ok = true;
  for (int64_t i = 0; i < n; i += kBlock, dst += traits.block_bytes) ok &= kQuantize(src + i, dst);
  return ok;
}

bool store_f16(const float* src, uint8_t* dst, int64_t n) {
  uint32_t largest = 0;  // exponents of all ones are infinity
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t half = f32_to_f16(src[i]);
    std::memcpy(dst + 2 * i, &half, sizeof half);
    const uint32_t size = half & 0x7fffu;
    largest = size > largest ? size : largest;
  }
  return largest < 0x7c00u;
}

bool store_bf16(const float* src, uint8_t* dst, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t half = f32_to_bf16(src[i]);
    std::memcpy(dst + 2 * i, &half, sizeof half);
    const uint32_t size = half & 0x7fffu;
    largest = size > largest ? size : largest;
  }
  return largest < 0x7f80u;
}

}  // namespace

bool can_quantize(TensorType type) {
  switch (type) {
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16:
    case TensorType::kQ8_0:
    case TensorType::kQ4_0:
    case TensorType::kQ4_1:
    case TensorType::kQ5_0:
    case TensorType::kQ5_1: return true;
    default: return can_search(type);
  }
}

bool quantize_row(TensorType type, const float* src, void* dst, int64_t n, const float* importance) {
  if (!all_finite(src, n)) return false;
  const TypeTraits& traits = type_traits(type);
  auto* out = static_cast<uint8_t*>(dst);
  switch (type) {
    case TensorType::kF32: std::memcpy(dst, src, static_cast<size_t>(n) * sizeof *src); return true;
    case TensorType::kF16: return store_f16(src, out, n);
    case TensorType::kBF16: return store_bf16(src, out, n);
    case TensorType::kQ8_0: return quantize_blocks<quantize_q8_0>(traits, src, out, n);
    default: break;
  }
  if (importance == nullptr) {
    switch (type) {
      case TensorType::kQ4_0: return quantize_blocks<quantize_q4_0>(traits, src, out, n);
      case TensorType::kQ4_1: return quantize_blocks<quantize_q4_1>(traits, src, out, n);
      case TensorType::kQ5_0: return quantize_blocks<quantize_q5_0>(traits, src, out, n);
      case TensorType::kQ5_1: return quantize_blocks<quantize_q5_1>(traits, src, out, n);
      default: break;
    }
  }
  return quantize_row_by_search(type, src, out, n, importance);
}

}  // namespace gemma
