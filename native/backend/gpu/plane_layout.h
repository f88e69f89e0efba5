// How the blocks of each quantised type lie in the planes of a Matrix (kernel_list.h), for host and device.
#pragma once

#include <cstddef>

#include "quant/types.h"

namespace gemma::gpu {

constexpr int kTypeF32 = static_cast<int>(TensorType::kF32);
constexpr int kTypeF16 = static_cast<int>(TensorType::kF16);
constexpr int kTypeQ4_0 = static_cast<int>(TensorType::kQ4_0);
constexpr int kTypeQ4_1 = static_cast<int>(TensorType::kQ4_1);
constexpr int kTypeQ5_0 = static_cast<int>(TensorType::kQ5_0);
constexpr int kTypeQ5_1 = static_cast<int>(TensorType::kQ5_1);
constexpr int kTypeQ8_0 = static_cast<int>(TensorType::kQ8_0);
constexpr int kTypeQ2_K = static_cast<int>(TensorType::kQ2_K);
constexpr int kTypeQ3_K = static_cast<int>(TensorType::kQ3_K);
constexpr int kTypeQ4_K = static_cast<int>(TensorType::kQ4_K);
constexpr int kTypeQ5_K = static_cast<int>(TensorType::kQ5_K);
constexpr int kTypeQ6_K = static_cast<int>(TensorType::kQ6_K);
constexpr int kTypeIQ4_NL = static_cast<int>(TensorType::kIQ4_NL);
constexpr int kTypeIQ4_XS = static_cast<int>(TensorType::kIQ4_XS);
constexpr int kTypeBF16 = static_cast<int>(TensorType::kBF16);
constexpr int kTypeTQ2_0 = static_cast<int>(TensorType::kTQ2_0);
constexpr int kTypeMXFP4 = static_cast<int>(TensorType::kMXFP4);

// Codes of 32 values:
//   low, 16 bytes: byte i holds value i in its low and value i + 16 in its high four bits;
//   low or high, 8 bytes: byte i holds values i, i + 8, i + 16, i + 24, two bits each;
//   low, 32 bytes: signed bytes;   high, 4 bytes: value j is bit j / 4 + 8 * (j % 4).
// tail: what the file's block holds besides, in its order, for tail_blocks times 32 values.
struct PlaneLayout {
  size_t low_bytes;
  size_t high_bytes;
  size_t tail_bytes;
  int tail_blocks;
  unsigned offset;  // the code of 0
  bool has_min;
  bool halves;  // scales of 16 values
};

constexpr PlaneLayout plane_layout(int type) {
  switch (type) {
    case kTypeQ4_0: return {16, 0, 2, 1, 8, false, false};
    case kTypeQ4_1: return {16, 0, 4, 1, 0, true, false};
    case kTypeQ5_0: return {16, 4, 2, 1, 16, false, false};
    case kTypeQ5_1: return {16, 4, 4, 1, 0, true, false};
    case kTypeQ8_0: return {32, 0, 2, 1, 0, false, false};
    case kTypeQ2_K: return {8, 0, 20, 8, 0, true, true};
    case kTypeQ3_K: return {8, 4, 14, 8, 4, false, true};
    case kTypeQ4_K: return {16, 0, 16, 8, 0, true, false};
    case kTypeQ5_K: return {16, 4, 16, 8, 0, true, false};
    case kTypeQ6_K: return {16, 8, 18, 8, 32, false, true};
    case kTypeIQ4_NL: return {16, 0, 2, 1, 0, false, false};
    case kTypeIQ4_XS: return {16, 0, 8, 8, 0, false, false};
    case kTypeMXFP4: return {16, 0, 1, 1, 0, false, false};
    case kTypeTQ2_0: return {8, 0, 2, 8, 1, false, false};
    default: return {0, 0, 0, 1, 0, false, false};
  }
}

}  // namespace gemma::gpu
