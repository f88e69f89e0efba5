#include <cstring>

#include "backend/cpu/kernels.h"
#include "quant/dequantize.h"

namespace gemma::cpu {

void unpack_panel_common(TensorType type, const std::byte* const* rows, int n_lanes, int64_t b32, uint8_t* u, float* d,
                         float* m) {
  const size_t lanes = static_cast<size_t>(n_lanes);
  for (size_t r = 0; r < lanes; ++r) {
    Block32 block;
    unpack_block32(type, rows[r], b32, &block);
    for (size_t j = 0; j < 8; ++j) std::memcpy(u + (j * lanes + r) * 4, block.u + j * 4, 4);
    d[r] = block.d[0];
    d[lanes + r] = block.d[1];
    m[r] = block.m[0];
    m[lanes + r] = block.m[1];
  }
}

}  // namespace gemma::cpu
