// SIMT emulator: runs GPU kernels on the CPU as ordinary C++, so that their numbers are tested where there is no GPU.
// One fiber for each GPU thread, which runs until a collective of its warp, a barrier of its block or its end; blocks
// are shared out over a thread pool.
//   GEMMA_EMULATOR_ORDER=0|1|2   order of lanes, warps and blocks: forward, reverse, random (GEMMA_EMULATOR_SEED)
// Rules for kernels: collectives only with the whole warp; no early return before a barrier; shared memory is static.
// Found and thrown as Error{kInternal, "EMULATOR"}: divergent collectives and barriers, deadlock, copies nobody waited
// for, misaligned asynchronous copies. Fresh shared and device memory is all ones (NaN, -1). Under AddressSanitizer
// there are red zones round every buffer and shared variable; under ThreadSanitizer every GPU thread is a fiber of its
// own whose only order is that of barriers, so races show, also between blocks. Not modelled: time, bank conflicts,
// occupancy, memory weaker than acquire/release.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/thread_pool.h"

#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_ASAN 1
#elif defined(__SANITIZE_THREAD__)
#define EMULATOR_TSAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATOR_ASAN 1
#elif __has_feature(thread_sanitizer)
#define EMULATOR_TSAN 1
#endif
#endif

// The emulator's own bookkeeping is no part of what ThreadSanitizer is to judge.
#ifdef EMULATOR_TSAN
#define EMULATOR_UNCHECKED __attribute__((no_sanitize_thread, noinline))
#else
#define EMULATOR_UNCHECKED
#endif

namespace gemma::emulator {

struct Index {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

// Where in a kernel's source something happens; two of one place are equal.
struct Site {
  const char* what;
  const char* file;
  int line;
};

struct Block;
struct Warp;

// What a running GPU thread may look at.
struct Thread {
  unsigned index = 0;  // within its block
  int lane = 0;        // within its warp
  int n_lanes = 0;     // of its warp
  Index block;
  Index grid;
};
extern constinit thread_local Thread* current;

inline constexpr size_t kMaxPayload = 128;
inline constexpr int kMaxWarp = 64;

// What every lane of a warp hands to a collective, kMaxPayload bytes apart.
using Slots = std::byte (*)[kMaxPayload];

// Where the running thread puts what it passes to the next exchange.
std::byte* payload();
// Waits for all lanes; on_full, if any, sees all payloads once the last has come; each lane then reads the slots.
Slots exchange(Site site, void (*on_full)(Slots slots, int n_lanes));
void barrier(Site site);
// exchange with the ordering of memory that a barrier of the warp has.
void warp_barrier(Site site);
// The block's variable of this key, made when its first thread asks.
void* shared_variable(const void* key, size_t bytes);
// Sixteen bytes to shared memory; they arrive when the thread waits.
void copy_async(void* dst, const void* src, Site site);
void commit_copies();
void wait_copies(int groups_left);

// Runs body(arguments) as grid * n_threads GPU threads in warps of that width.
void launch(ThreadPool& pool, void (*body)(const void*), const void* arguments, Index grid, unsigned n_threads,
            int warp);

// The order of lanes, warps and blocks from the next launch on, instead of the environment's; not during a launch.
void set_schedule(int order, unsigned seed);

// Bytes that kernels read from device memory with load() (gpu.h), in sectors of 32 bytes. A sector counts once for each
// block that reads it, and in a buffer small enough to stay in the second-level cache once for each launch.
class TrafficCounter {
 public:
  virtual ~TrafficCounter() = default;
  virtual void read(const void* address, size_t bytes) = 0;
  virtual void next_block() = 0;
  virtual void next_launch() = 0;
};
// While one is set, launches run on one thread. nullptr: none.
void set_traffic_counter(TrafficCounter* counter);
extern TrafficCounter* traffic_counter;

}  // namespace gemma::emulator
