#include "backend/gpu/gpu_traits.h"

#include <algorithm>

#include "backend/gpu/kernel_list.h"
#include "backend/gpu/repack.h"

namespace gemma::gpu {
namespace {

size_t ceil_div(size_t n, size_t divisor) {
  return (n + divisor - 1) / divisor;
}

}  // namespace

TopLayout top_layout(size_t n, size_t n_out, size_t capacity) {
  TopLayout layout;
  layout.slice = ceil_div(ceil_div(n_out, kMaxSlices), 32) * 32;
  layout.n_slices = ceil_div(n_out, layout.slice);
  layout.found_bytes = n * (sizeof(TopHeader) + capacity * sizeof(TopEntry));
  layout.bytes = layout.found_bytes + n * layout.n_slices * sizeof(float);
  return layout;
}

size_t max_wanted(size_t n_out) {
  return std::min<size_t>(n_out / 32, kMaxSlices);
}

uint64_t GpuTraits::weight_bytes(TensorType type, int n_out, int n_in) const {
  return is_float_type(type) ? static_cast<uint64_t>(n_out) * row_bytes(type, n_in)
                             : plane_offsets(type, n_out, n_in).bytes;
}

std::vector<uint64_t> GpuTraits::workspace_bytes(const WorkLimits& limits) const {
  const size_t n_rows = static_cast<size_t>(limits.n_rows);
  const size_t n_top_rows = static_cast<size_t>(limits.n_top_rows);
  const size_t n_out = static_cast<size_t>(limits.n_out);
  std::vector<uint64_t> bytes(kTokens);
  if (limits.quantized_weights)
    bytes[kQuantized] = n_rows * ceil_div(static_cast<size_t>(limits.n_in), 32) * kQuantizedBlockBytes;
  const size_t n_segments = ceil_div(static_cast<size_t>(limits.n_ctx), kAttentionSegment);
  const size_t row = n_segments * partial_row_bytes(limits.n_heads, limits.head_dim);
  bytes[kPartials] = std::max(std::min(n_rows * row, kMaxPartialBytes), row);
  if (limits.screened && n_out > 0) bytes[kTop] = top_layout(n_top_rows, n_out, top_capacity(max_wanted(n_out))).bytes;
  const bool has_cache = limits.n_ctx > 0;
  const size_t n_pages = ceil_div(static_cast<size_t>(limits.n_ctx), kPagePositions);
  const size_t mirrors[] = {has_cache ? n_rows * sizeof(int32_t) : 0,
                            has_cache ? n_rows * sizeof(int32_t) : 0,
                            n_top_rows * sizeof(int32_t),
                            has_cache ? n_rows * sizeof(void*) : 0,
                            n_pages * sizeof(void*),
                            has_cache ? n_rows * sizeof(RowView) : 0,
                            limits.screened ? n_top_rows * sizeof(TopRequest) : 0};
  for (const size_t mirror : mirrors) bytes.insert(bytes.end(), kMirrorCopies, mirror);
  return bytes;
}

const BackendTraits& gpu_traits() {
  static const GpuTraits traits;
  return traits;
}

}  // namespace gemma::gpu
