// The largest of a row of many products (the logits of a vocabulary), so that only these leave the device:
//   top_take       puts those wanted by name into the list, and these and the unwanted out of the running
//   top_mask       puts those that are not allowed out of the running
//   top_maxima     the largest of every slice
//   top_threshold  the n_best-th largest of these, at most the n_best-th largest of all
//   top_collect    everything that reaches it, in no order
#pragma once

#include "backend/gpu/vector.h"

namespace gemma::gpu::GPU_CHIP_NAMESPACE {

// Sorts as the number does; not a number is the largest.
GPU_FUNCTION unsigned sort_key(float v) {
  if (v != v) return 0xffffffffu;
  const unsigned bits = float_to_bits(v);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
constexpr unsigned kKeyOfMinusInfinity = 0x007fffffu;

// A block for each row.
GPU_KERNEL(top_take)(const TopArguments a) {
  const int row = block_x();
  const TopRequest request = a.requests[row];
  const int n_always = static_cast<int>(request.n_always);
  const int n_ids = n_always + static_cast<int>(request.n_never);
  float* products = a.products + static_cast<size_t>(row) * static_cast<size_t>(a.n_out);
  TopEntry* entries = a.entries + static_cast<size_t>(row) * static_cast<size_t>(a.capacity);
  for (int i = thread_index(); i < n_ids; i += kThreads) {
    const int32_t id = a.ids[request.first_id + static_cast<uint32_t>(i)];
    if (id < 0 || id >= a.n_out) continue;
    if (i < n_always) entries[i] = {id, products[id]};
    products[id] = -INFINITY;
  }
}

// A thread for each word of a row's mask, before which top_take() has read what it takes.
GPU_KERNEL(top_mask)(const TopArguments a) {
  const int row = block_y();
  const int mask = a.requests[row].mask;
  const int n_words = (a.n_out + 31) / 32;
  const int at = block_x() * kThreads + thread_index();
  if (mask < 0 || at >= n_words) return;
  const uint32_t word = a.masks[static_cast<size_t>(mask) * static_cast<size_t>(n_words) + static_cast<size_t>(at)];
  if (word == 0xffffffffu) return;
  float* products = a.products + static_cast<size_t>(row) * static_cast<size_t>(a.n_out) + at * 32;
  const int n = a.n_out - at * 32 < 32 ? a.n_out - at * 32 : 32;
  for (int i = 0; i < n; ++i) {
    if ((word >> i & 1u) == 0) products[i] = -INFINITY;
  }
}

// A warp for each slice of each row.
GPU_KERNEL(top_maxima)(const TopArguments a) {
  const int lane = thread_index() % kLanes;
  const int slice = block_x() * kWarps + thread_index() / kLanes;
  const int row = block_y();
  const float* products = a.products + static_cast<size_t>(row) * static_cast<size_t>(a.n_out);
  const int begin = slice * a.slice;
  const int end = begin + a.slice < a.n_out ? begin + a.slice : a.n_out;
  float largest = -INFINITY;
  for (int i = begin + lane; i < end; i += kLanes) largest = larger(largest, products[i]);
  largest = warp_max(largest);
  if (lane == 0 && slice < a.n_slices)
    a.maxima[static_cast<size_t>(row) * static_cast<size_t>(a.n_slices) + static_cast<size_t>(slice)] = largest;
}

// A block for each row: the key bit by bit from above, as long as n_best maxima have no smaller one.
GPU_KERNEL(top_threshold)(const TopArguments a) {
  constexpr int kKeys = kMaxSlices / kThreads;
  GPU_SHARED(int, part, [2][kWarps]);
  const int row = block_x();
  const TopRequest request = a.requests[row];
  const float* maxima = a.maxima + static_cast<size_t>(row) * static_cast<size_t>(a.n_slices);
  unsigned keys[kKeys];
  GPU_UNROLL
  for (int i = 0; i < kKeys; ++i) {
    const int slice = i * kThreads + thread_index();
    keys[i] = slice < a.n_slices ? sort_key(maxima[slice]) : 0u;
  }
  unsigned threshold = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const unsigned tried = threshold | 1u << bit;
    int n = 0;
    GPU_UNROLL
    for (int i = 0; i < kKeys; ++i) n += keys[i] >= tried ? 1 : 0;
    n = block_sum(n, part[bit % 2]);
    if (n >= request.n_best) threshold = tried;
    if (n == request.n_best) break;
  }
  if (thread_index() == 0) a.headers[row] = {static_cast<int32_t>(request.n_always), threshold};
}

GPU_KERNEL(top_collect)(const TopArguments a) {
  const int row = block_y();
  const float* products = a.products + static_cast<size_t>(row) * static_cast<size_t>(a.n_out);
  TopEntry* entries = a.entries + static_cast<size_t>(row) * static_cast<size_t>(a.capacity);
  const unsigned threshold = a.headers[row].threshold;
  for (int i = 0; i < kValuesPerThread; ++i) {
    const int at = (block_x() * kValuesPerThread + i) * kThreads + thread_index();
    if (at >= a.n_out) return;
    const float value = products[at];
    const unsigned key = sort_key(value);
    if (key < threshold || key <= kKeyOfMinusInfinity) continue;
    const int place = atomic_add(&a.headers[row].n, 1);
    if (place < a.capacity) entries[place] = {at, value};
  }
}

}  // namespace gemma::gpu::GPU_CHIP_NAMESPACE
