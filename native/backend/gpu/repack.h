// Stored blocks of a file into the planes of the device (plane_layout.h), on the host.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/gpu/plane_layout.h"

namespace gemma::gpu {

// Where the planes of [n_out, n_in] lie within one piece of memory.
struct PlaneOffsets {
  size_t high = 0;
  size_t tail = 0;
  size_t bytes = 0;
};
PlaneOffsets plane_offsets(TensorType type, int n_out, int n_in);

// One row: each pointer at the row's part of its plane.
void repack_row(TensorType type, const std::byte* row, int n_in, uint8_t* low, uint8_t* high, uint8_t* tail);

}  // namespace gemma::gpu
