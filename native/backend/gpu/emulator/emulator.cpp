#include "backend/gpu/emulator/emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "backend/gpu/emulator/context_switch.h"
#include "base/error.h"

#ifdef EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
extern "C" void __sanitizer_start_switch_fiber(void**, const void*, size_t);
extern "C" void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
#endif
#ifdef EMULATOR_TSAN
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#endif

namespace gemma::emulator {

constinit thread_local Thread* current = nullptr;
TrafficCounter* traffic_counter = nullptr;

namespace {

constexpr unsigned kMaxThreads = 256;
constexpr size_t kArenaBytes = size_t{128} << 10;
constexpr size_t kRedZone = 32;
#ifdef EMULATOR_ASAN
constexpr size_t kStackBytes = size_t{256} << 10;
#else
constexpr size_t kStackBytes = size_t{64} << 10;
#endif
// Under ThreadSanitizer blocks that follow each other run on different fibers: nothing orders them, so races between
// blocks show.
#ifdef EMULATOR_TSAN
constexpr size_t kSets = 3;
#else
constexpr size_t kSets = 1;
#endif

EMULATOR_UNCHECKED void happens_after([[maybe_unused]] void* what) {
#ifdef EMULATOR_TSAN
  __tsan_acquire(what);
#endif
}
EMULATOR_UNCHECKED void happens_before([[maybe_unused]] void* what) {
#ifdef EMULATOR_TSAN
  __tsan_release(what);
#endif
}

struct Config {
  int order = 0;
  unsigned seed = 1;
};
Config& config() {
  static Config config = [] {
    Config c;
    if (const char* order = std::getenv("GEMMA_EMULATOR_ORDER"))
      c.order = static_cast<int>(std::strtol(order, nullptr, 10));
    if (const char* seed = std::getenv("GEMMA_EMULATOR_SEED"))
      c.seed = static_cast<unsigned>(std::strtoul(seed, nullptr, 10));
    return c;
  }();
  return config;
}

enum class State : uint8_t { kReady, kInWarp, kAtBarrier, kDone };

struct PendingCopy {
  void* dst;
  const void* src;
  int group;
};

std::byte* map_memory(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED)
    throw Error(ErrorCode::kOutOfMemory, "EMULATOR", "emulated device: no memory for a thread's stack");
  return static_cast<std::byte*>(memory);
}

}  // namespace

struct Fiber : Thread {
  void* stack_pointer = nullptr;
  Block* owner = nullptr;
  Warp* warp = nullptr;
  State state = State::kReady;
  Site site{};
  std::byte* stack = nullptr;
  int n_copies = 0;
  int copy_group = 0;
  std::array<PendingCopy, 32> copies;
  void* fake_stack = nullptr;
  void* tsan = nullptr;
};

struct Warp {
  Fiber* first = nullptr;
  int n_lanes = 0;
  int n_arrived = 0;
  unsigned phase = 0;
  Site site{};
  char sync[2] = {};
  alignas(16) std::byte slots[2][kMaxWarp][kMaxPayload];
};

struct SharedVariable {
  const void* key;
  size_t offset;
};

// One operating system thread's executor of blocks; its fibers are kept between blocks.
struct Block {
  ~Block();
  Index index;
  Index grid;
  void (*body)(const void*) = nullptr;
  const void* arguments = nullptr;
  char* sync_begin = nullptr;
  char* sync_end = nullptr;
  unsigned n = 0;
  unsigned n_done = 0;
  unsigned n_at_barrier = 0;
  unsigned barrier_phase = 0;
  char barrier_sync[2] = {};
  Site barrier_site{};
  Fiber* fibers[kMaxThreads] = {};
  Fiber* sets[kSets][kMaxThreads] = {};
  size_t set = 0;
  Warp warps[kMaxThreads / 32];
  Fiber* ring[kMaxThreads] = {};
  unsigned head = 0;
  unsigned tail = 0;
  void* main_stack_pointer = nullptr;
  std::byte* arena = nullptr;
  size_t arena_used = 0;
  SharedVariable variables[16] = {};
  int n_variables = 0;
  uint32_t random = 1;
  std::optional<std::string> failure;
  void* main_fake_stack = nullptr;
  const void* main_bottom = nullptr;
  size_t main_size = 0;
  void* main_tsan = nullptr;

  void drop_fibers();
};

namespace {

EMULATOR_UNCHECKED bool same(const Site& a, const Site& b) {
  return a.line == b.line && a.file == b.file && a.what == b.what;
}

EMULATOR_UNCHECKED Fiber* self() {
  return static_cast<Fiber*>(current);
}

// from or to may be null: the operating system thread.
EMULATOR_UNCHECKED void jump(Fiber* from, Fiber* to) {
  Block* b = (from != nullptr ? from : to)->owner;
  current = to;
#ifdef EMULATOR_ASAN
  void** fake = from != nullptr ? &from->fake_stack : &b->main_fake_stack;
  if (to != nullptr) {
    __sanitizer_start_switch_fiber(fake, to->stack, kStackBytes);
  } else {
    __sanitizer_start_switch_fiber(fake, b->main_bottom, b->main_size);
  }
#endif
#ifdef EMULATOR_TSAN
  __tsan_switch_to_fiber(to != nullptr ? to->tsan : b->main_tsan, 1 /* no order of memory */);
#endif
  gemma_emulator_switch(from != nullptr ? &from->stack_pointer : &b->main_stack_pointer,
                        to != nullptr ? to->stack_pointer : b->main_stack_pointer);
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(from != nullptr ? from->fake_stack : b->main_fake_stack, nullptr, nullptr);
#endif
}

const char* state_name(State state) {
  switch (state) {
    case State::kReady: return "ready";
    case State::kInWarp: return "in a collective of its warp";
    case State::kAtBarrier: return "at a barrier";
    case State::kDone: return "at its end";
  }
  return "";
}

std::string describe(const Site& site) {
  return std::string(site.what) + " " + site.file + ":" + std::to_string(site.line);
}

// Leaves the block for good: its threads are not continued.
[[noreturn]] void fail(Block* b, const std::string& what) {
  std::string message = "emulated device: " + what + ", block (" + std::to_string(b->index.x) + ", " +
                        std::to_string(b->index.y) + ", " + std::to_string(b->index.z) + ")";
  int n_shown = 0;
  for (unsigned i = 0; i < b->n && n_shown < 6; ++i) {
    const Fiber* f = b->fibers[i];
    const Fiber* before = i > 0 ? b->fibers[i - 1] : nullptr;
    if (before != nullptr && before->state == f->state && (f->site.what == nullptr || same(before->site, f->site)))
      continue;
    message += "; from thread " + std::to_string(i) + " " + state_name(f->state);
    if (f->state == State::kInWarp || f->state == State::kAtBarrier) message += " (" + describe(f->site) + ")";
    ++n_shown;
  }
  b->failure = std::move(message);
  jump(self(), nullptr);
  std::abort();  // nobody comes back here
}

EMULATOR_UNCHECKED void push(Block* b, Fiber* f) {
  f->state = State::kReady;
  b->ring[b->tail++ % kMaxThreads] = f;
}

EMULATOR_UNCHECKED Fiber* pop(Block* b) {
  const int order = config().order;
  if (order == 1) return b->ring[--b->tail % kMaxThreads];
  if (order == 2) {
    b->random = b->random * 1664525u + 1013904223u;
    const unsigned other = (b->head + (b->random >> 10) % (b->tail - b->head)) % kMaxThreads;
    // By hand: a library's function would be instrumented.
    Fiber* const first = b->ring[b->head % kMaxThreads];
    b->ring[b->head % kMaxThreads] = b->ring[other];
    b->ring[other] = first;
  }
  return b->ring[b->head++ % kMaxThreads];
}

// from waits or is done.
EMULATOR_UNCHECKED void yield(Fiber* from) {
  Block* b = from->owner;
  if (b->head == b->tail) {
    if (b->n_done == b->n) return jump(from, nullptr);
    fail(b, "deadlock: some threads ended or wait elsewhere");
  }
  Fiber* to = pop(b);
  if (to != from) jump(from, to);
}

EMULATOR_UNCHECKED void fiber_main(void* argument) {
  Fiber* f = static_cast<Fiber*>(argument);
#ifdef EMULATOR_ASAN
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (f->owner->main_bottom == nullptr) {
    f->owner->main_bottom = bottom;
    f->owner->main_size = size;
  }
#endif
  for (;;) {
    Block* b = f->owner;
    happens_after(b->sync_begin);
    b->body(b->arguments);
    if (f->n_copies > 0) fail(b, "a thread ended with copies it never waited for");
    happens_before(b->sync_end);
    f->state = State::kDone;
    ++b->n_done;
    yield(f);
  }
}

Fiber* make_fiber(Block* b) {
  auto f = std::make_unique<Fiber>();
  f->stack = map_memory(kStackBytes);
  mprotect(f->stack, 4096, PROT_NONE);  // an overflow ends the process here, not in a neighbour's stack
  f->stack_pointer = new_stack(f->stack + kStackBytes, fiber_main, f.get());
  f->owner = b;
#ifdef EMULATOR_TSAN
  f->tsan = __tsan_create_fiber(0);
#endif
  return f.release();
}

#ifdef EMULATOR_ASAN
void poison(void* memory, size_t bytes) {
  ASAN_POISON_MEMORY_REGION(memory, bytes);
}
void unpoison(void* memory, size_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
}
#else
void poison(void* /*memory*/, size_t /*bytes*/) {}
void unpoison(void* /*memory*/, size_t /*bytes*/) {}
#endif

}  // namespace

void Block::drop_fibers() {
  for (auto& one : sets) {
    for (Fiber*& f : one) {
      if (f == nullptr) continue;
#ifdef EMULATOR_TSAN
      __tsan_destroy_fiber(f->tsan);
#endif
      unpoison(f->stack + 4096, kStackBytes - 4096);
      munmap(f->stack, kStackBytes);
      delete f;
      f = nullptr;
    }
  }
}

Block::~Block() {
  drop_fibers();
  if (arena != nullptr) {
    unpoison(arena, kArenaBytes);
    munmap(arena, kArenaBytes);
  }
}

EMULATOR_UNCHECKED std::byte* payload() {
  const Fiber* f = self();
  return f->warp->slots[f->warp->phase][f->lane];
}

EMULATOR_UNCHECKED Slots exchange(Site site, void (*on_full)(Slots, int)) {
  Fiber* f = self();
  Warp& w = *f->warp;
  if (w.n_arrived == 0) {
    w.site = site;
  } else if (!same(w.site, site)) {
    f->site = site;
    fail(f->owner, "divergent collective: other lanes arrived first at " + describe(w.site));
  }
  Slots slots = w.slots[w.phase];
  if (++w.n_arrived == w.n_lanes) {
    w.n_arrived = 0;
    w.phase ^= 1;
    if (on_full != nullptr) on_full(slots, w.n_lanes);
    for (int i = 0; i < w.n_lanes; ++i) {
      if (i != f->lane) push(f->owner, f->owner->fibers[w.first->index + static_cast<unsigned>(i)]);
    }
  } else {
    f->state = State::kInWarp;
    f->site = site;
    yield(f);
  }
  return slots;
}

EMULATOR_UNCHECKED void warp_barrier(Site site) {
  Warp* w = self()->warp;
  const unsigned phase = w->phase;
  happens_before(&w->sync[phase]);
  exchange(site, nullptr);
  happens_after(&w->sync[phase]);
}

EMULATOR_UNCHECKED void barrier(Site site) {
  Fiber* f = self();
  Block* b = f->owner;
  if (b->n_at_barrier == 0) {
    b->barrier_site = site;
  } else if (!same(b->barrier_site, site)) {
    f->site = site;
    fail(b, "divergent barrier: other threads wait at " + describe(b->barrier_site));
  }
  const unsigned phase = b->barrier_phase;
  happens_before(&b->barrier_sync[phase]);
  if (++b->n_at_barrier == b->n) {
    b->n_at_barrier = 0;
    b->barrier_phase ^= 1;
    for (unsigned i = 0; i < b->n; ++i) {
      if (b->fibers[i] != f) push(b, b->fibers[i]);
    }
    if (config().order != 0) {  // the last to arrive is not to be the first to go on
      push(b, f);
      yield(f);
    }
  } else {
    f->state = State::kAtBarrier;
    f->site = site;
    yield(f);
  }
  happens_after(&b->barrier_sync[phase]);
}

EMULATOR_UNCHECKED void* shared_variable(const void* key, size_t bytes) {
  Block* b = self()->owner;
  for (int i = 0; i < b->n_variables; ++i) {
    if (b->variables[i].key == key) return b->arena + b->variables[i].offset;
  }
  const size_t offset = (b->arena_used + 31) & ~size_t{31};
  if (offset + bytes + kRedZone > size_t{48} << 10 || b->n_variables == 16)
    fail(b, "more than 48 KiB of shared memory");
  b->arena_used = offset + bytes + kRedZone;
  b->variables[b->n_variables++] = {key, offset};
  unpoison(b->arena + offset, bytes);
  return b->arena + offset;
}

EMULATOR_UNCHECKED void copy_async(void* dst, const void* src, Site site) {
  Fiber* f = self();
  if (((reinterpret_cast<uintptr_t>(dst) | reinterpret_cast<uintptr_t>(src)) & 15) != 0)
    fail(f->owner, "asynchronous copy: address not aligned to 16 bytes at " + describe(site));
  if (f->n_copies == static_cast<int>(f->copies.size())) fail(f->owner, "too many asynchronous copies of one thread");
  f->copies[static_cast<size_t>(f->n_copies++)] = {dst, src, f->copy_group};
}

void commit_copies() {
  ++self()->copy_group;
}

void wait_copies(int groups_left) {
  Fiber* f = self();
  int n_kept = 0;
  for (int i = 0; i < f->n_copies; ++i) {
    const PendingCopy copy = f->copies[static_cast<size_t>(i)];
    if (copy.group < f->copy_group - groups_left) {
      std::memcpy(copy.dst, copy.src, 16);
    } else {
      f->copies[static_cast<size_t>(n_kept++)] = copy;
    }
  }
  f->n_copies = n_kept;
  if (n_kept == 0) f->copy_group = 0;
}

namespace {

EMULATOR_UNCHECKED void run_block(Block* b, uint64_t number, int warp) {
  const unsigned n = b->n;
  b->index = {static_cast<unsigned>(number % b->grid.x), static_cast<unsigned>(number / b->grid.x % b->grid.y),
              static_cast<unsigned>(number / (uint64_t{b->grid.x} * b->grid.y))};
  b->set = (b->set + 1) % kSets;
#ifdef EMULATOR_TSAN
  b->main_tsan = __tsan_get_current_fiber();
  if (b->arena != nullptr) {  // mapped afresh: no false races through shared memory
    munmap(b->arena, kArenaBytes);
    b->arena = nullptr;
  }
#endif
  if (b->arena == nullptr) b->arena = map_memory(kArenaBytes);
  unpoison(b->arena, kArenaBytes);
  const size_t n_words = std::max<size_t>(b->arena_used, 4096) / 8;
  for (size_t i = 0; i < n_words; ++i) reinterpret_cast<volatile uint64_t*>(b->arena)[i] = ~uint64_t{0};
  poison(b->arena, kArenaBytes);
  b->n_variables = 0;
  b->arena_used = 0;
  b->head = b->tail = 0;
  b->n_done = b->n_at_barrier = 0;
  for (unsigned i = 0; i < n; ++i) {
    if (b->sets[b->set][i] == nullptr) b->sets[b->set][i] = make_fiber(b);
    b->fibers[i] = b->sets[b->set][i];
  }
  for (unsigned i = 0; i < n; ++i) {
    Fiber* f = b->fibers[i];
    const unsigned lanes = static_cast<unsigned>(warp);
    f->index = i;
    f->lane = static_cast<int>(i % lanes);
    f->n_lanes = static_cast<int>(std::min(lanes, n - i / lanes * lanes));
    f->block = b->index;
    f->grid = b->grid;
    f->n_copies = f->copy_group = 0;
    f->warp = &b->warps[i / lanes];
    if (f->lane == 0) {
      f->warp->first = f;
      f->warp->n_arrived = 0;
      f->warp->n_lanes = f->n_lanes;
    }
    push(b, f);
  }
  happens_before(b->sync_begin);  // what the operating system's thread wrote is seen, not what other blocks wrote
  jump(nullptr, pop(b));
  current = nullptr;
}

Block& this_block() {
  static thread_local const std::unique_ptr<Block> block = std::make_unique<Block>();
  return *block;
}

}  // namespace

void launch(ThreadPool& pool, void (*body)(const void*), const void* arguments, Index grid, unsigned n_threads,
            int warp) {
  const uint64_t n_blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (n_blocks == 0) return;
  if (n_threads > kMaxThreads || n_threads % 64 != 0)
    throw Error(ErrorCode::kInternal, "EMULATOR", "blocks have 64, 128 or 256 threads");
  std::vector<uint32_t> order;
  if (config().order != 0) {
    order.resize(n_blocks);
    std::iota(order.begin(), order.end(), 0u);
    if (config().order == 1) std::reverse(order.begin(), order.end());
    if (config().order == 2) std::shuffle(order.begin(), order.end(), std::minstd_rand(config().seed));
  }
  char sync_begin = 0;
  char sync_end = 0;
  std::mutex mutex;
  std::optional<std::string> failure;
  if (traffic_counter != nullptr) traffic_counter->next_launch();
  happens_before(&sync_begin);
  const auto run = [&](uint64_t i) {
    Block& b = this_block();
    b.grid = grid;
    b.n = n_threads;
    b.random = config().seed * 2654435761u + static_cast<uint32_t>(i);
    b.body = body;
    b.arguments = arguments;
    b.sync_begin = &sync_begin;
    b.sync_end = &sync_end;
    if (traffic_counter != nullptr) traffic_counter->next_block();
    run_block(&b, order.empty() ? i : order[i], warp);
    if (!b.failure) return;
    const std::lock_guard lock(mutex);
    if (!failure) failure = std::move(b.failure);
    b.failure.reset();
    b.drop_fibers();
    b.barrier_phase = 0;
  };
  constexpr uint64_t kChunks = 64;
  const uint64_t n_chunks = std::min(n_blocks, kChunks);
#ifdef EMULATOR_TSAN
  const bool alone = true;  // races are found between fibers; more threads would add none
#else
  const bool alone = traffic_counter != nullptr || n_blocks == 1;
#endif
  if (alone) {
    for (uint64_t i = 0; i < n_blocks && !failure; ++i) run(i);
  } else {
    pool.parallel_for(static_cast<int>(n_chunks), [&](int chunk, int /*thread*/) {
      const uint64_t c = static_cast<uint64_t>(chunk);
      for (uint64_t i = n_blocks * c / n_chunks; i < n_blocks * (c + 1) / n_chunks; ++i) run(i);
    });
  }
  happens_after(&sync_end);
  if (failure) throw Error(ErrorCode::kInternal, "EMULATOR", *failure);
}

void set_schedule(int order, unsigned seed) {
  config() = {order, seed};
}

void set_traffic_counter(TrafficCounter* counter) {
  traffic_counter = counter;
}

}  // namespace gemma::emulator
