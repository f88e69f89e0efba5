#include "backend/gpu/repack.h"

#include <algorithm>
#include <cstring>

#include "quant/dequantize.h"

namespace gemma::gpu {
namespace {

// A part of a file's block that holds no codes.
struct Range {
  size_t begin;
  size_t end;
};

// Those of a block, in order.
void tail_ranges(TensorType type, Range* ranges, int* n) {
  const auto set = [&](std::initializer_list<Range> list) {
    std::copy(list.begin(), list.end(), ranges);
    *n = static_cast<int>(list.size());
  };
  switch (type) {
    case TensorType::kQ4_1:
    case TensorType::kQ5_1: return set({{0, 4}});
    case TensorType::kQ2_K: return set({{0, 16}, {80, 84}});
    case TensorType::kQ3_K: return set({{96, 110}});
    case TensorType::kQ4_K:
    case TensorType::kQ5_K: return set({{0, 16}});
    case TensorType::kQ6_K: return set({{192, 210}});
    case TensorType::kIQ4_XS: return set({{0, 8}});
    case TensorType::kMXFP4: return set({{0, 1}});
    case TensorType::kTQ2_0: return set({{64, 66}});
    default: return set({{0, 2}});
  }
}

constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kMxfp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// The canonical form has the values of a table, the planes have the places in it.
unsigned place_in(const int8_t (&table)[16], int value) {
  return static_cast<unsigned>(std::find(table, table + 16, value) - table);
}

unsigned code_of(TensorType type, unsigned u) {
  switch (type) {
    case TensorType::kIQ4_NL:
    case TensorType::kIQ4_XS: return place_in(kIq4Values, static_cast<int>(u) - 128);
    case TensorType::kMXFP4: return place_in(kMxfp4Values, static_cast<int>(u) - 16);
    default: return u;
  }
}

void pack_two_bits(const unsigned* codes, int shift, uint8_t* out) {
  for (int i = 0; i < 8; ++i) {
    unsigned byte = 0;
    for (int k = 0; k < 4; ++k) byte |= (codes[i + 8 * k] >> shift & 3) << (2 * k);
    out[i] = static_cast<uint8_t>(byte);
  }
}

}  // namespace

PlaneOffsets plane_offsets(TensorType type, int n_out, int n_in) {
  const PlaneLayout layout = plane_layout(static_cast<int>(type));
  const size_t n_blocks = static_cast<size_t>(n_out) * static_cast<size_t>(n_in / 32);
  // Not rounded up: a Q8_0 matrix takes what it takes in a file, and codes are a multiple of 4 bytes.
  PlaneOffsets offsets;
  offsets.high = n_blocks * layout.low_bytes;
  offsets.tail = offsets.high + n_blocks * layout.high_bytes;
  offsets.bytes = offsets.tail + n_blocks / static_cast<size_t>(layout.tail_blocks) * layout.tail_bytes;
  return offsets;
}

void repack_row(TensorType type, const std::byte* row, int n_in, uint8_t* low, uint8_t* high, uint8_t* tail) {
  const PlaneLayout layout = plane_layout(static_cast<int>(type));
  for (int b = 0; b < n_in / 32; ++b, low += layout.low_bytes, high += layout.high_bytes) {
    Block32 block;
    unpack_block32(type, row, b, &block);
    unsigned codes[32];
    for (int j = 0; j < 32; ++j) codes[j] = code_of(type, block.u[j]);
    if (layout.low_bytes == 32) {
      for (int j = 0; j < 32; ++j) low[j] = static_cast<uint8_t>(codes[j] ^ 0x80);
    } else if (layout.low_bytes == 16) {
      for (int i = 0; i < 16; ++i) low[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
    } else {
      pack_two_bits(codes, 0, low);
    }
    if (layout.high_bytes == 4) {
      const int shift = layout.low_bytes == 16 ? 4 : 2;
      uint32_t bits = 0;
      for (int j = 0; j < 32; ++j) bits |= (codes[j] >> shift & 1) << (j / 4 + 8 * (j % 4));
      std::memcpy(high, &bits, sizeof bits);
    } else if (layout.high_bytes == 8) {
      pack_two_bits(codes, 4, high);
    }
  }
  Range ranges[2];
  int n_ranges = 0;
  tail_ranges(type, ranges, &n_ranges);
  const TypeTraits& traits = type_traits(type);
  for (int first = 0; first < n_in; first += traits.block_elems, row += traits.block_bytes) {
    for (int i = 0; i < n_ranges; ++i) {
      const size_t n = ranges[i].end - ranges[i].begin;
      std::memcpy(tail, row + ranges[i].begin, n);
      tail += n;
    }
  }
}

}  // namespace gemma::gpu
