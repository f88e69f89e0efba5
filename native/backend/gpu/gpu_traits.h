// Memory of the GPU backend: the sizes that it allocates by, so that what is planned is what is allocated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/backend.h"

namespace gemma::gpu {

// Partial results of attention take no more memory than this: long prompts go in parts.
inline constexpr size_t kMaxPartialBytes = size_t{64} << 20;
// So many copies of host data of a kind are kept on the device.
inline constexpr size_t kMirrorCopies = 3;

// Blocks of 32 quantised values: codes, a scale, two half sums and a sum.
inline constexpr size_t kQuantizedBlockBytes = 32 + 4 * sizeof(float);

// A row of attention's partial results of one segment.
inline size_t partial_row_bytes(int n_heads, int head_dim) {
  return static_cast<size_t>(n_heads) * static_cast<size_t>(head_dim + 2) * sizeof(float);
}

// How the largest of n rows of n_out products are found: slices of a row, and memory for capacity of them in a row.
struct TopLayout {
  size_t slice = 0;
  size_t n_slices = 0;
  size_t found_bytes = 0;  // headers, then entries; the slices' maxima follow
  size_t bytes = 0;
};
TopLayout top_layout(size_t n, size_t n_out, size_t capacity);
// So many may be wanted of a row, the best and those by name; more would leave next to nothing out.
size_t max_wanted(size_t n_out);
// Room for those and others that are as large.
inline size_t top_capacity(size_t n_wanted) {
  return 2 * n_wanted + 64;
}

// The workspaces in the order of workspace_bytes(); those from kTokens on are mirrors, with an entry for each copy.
enum WorkspaceKind { kQuantized, kPartials, kTop, kTokens, kPositions, kRows, kRowPages, kPages, kViews, kRequests };

class GpuTraits final : public BackendTraits {
 public:
  bool has_bulk() const override { return false; }  // integers are multiplied faster than floats
  bool maps_weights() const override { return false; }
  uint64_t weight_bytes(TensorType type, int n_out, int n_in) const override;
  uint64_t buffer_bytes(uint64_t bytes) const override { return bytes; }
  uint64_t output_bytes(int, int, int) const override { return 0; }  // the matrix itself is read
  std::vector<uint64_t> workspace_bytes(const WorkLimits& limits) const override;
};

// Of every GPU.
const BackendTraits& gpu_traits();

}  // namespace gemma::gpu
