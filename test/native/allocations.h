// Every allocation of a program, counted, and refused where a test wants it. For the one source file of a program: it
// defines the operators new and delete.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace gemma::test {

inline std::atomic<int64_t> live_bytes{0};

// Which allocations fail, of those that come while it is on. Threads that are excused are not counted.
struct Refusals {
  std::atomic<bool> on{false};
  std::atomic<int64_t> n_seen{0};
  int64_t first = 0;  // the first allocation is 1
  int64_t last = -1;
};
inline Refusals refusals;
inline thread_local int n_excused = 0;

// Excuses this thread.
struct Excused {
  Excused() { ++n_excused; }
  ~Excused() { --n_excused; }
  Excused(const Excused&) = delete;
  Excused& operator=(const Excused&) = delete;
};

namespace allocations {

inline bool is_refused() noexcept {
  if (!refusals.on.load() || n_excused > 0) return false;
  const int64_t i = ++refusals.n_seen;
  return i >= refusals.first && i <= refusals.last;
}

// In front of what is handed out.
struct alignas(std::max_align_t) Header {
  void* memory;
  size_t bytes;
};

inline void* take(size_t bytes, size_t alignment) noexcept {
  if (is_refused()) return nullptr;
  alignment = std::max(alignment, alignof(Header));
  void* memory = std::malloc(bytes + sizeof(Header) + alignment);
  if (memory == nullptr) return nullptr;
  const uintptr_t first = reinterpret_cast<uintptr_t>(memory) + sizeof(Header);
  const uintptr_t address = (first + alignment - 1) / alignment * alignment;
  *reinterpret_cast<Header*>(address - sizeof(Header)) = {memory, bytes};
  live_bytes += static_cast<int64_t>(bytes);
  return reinterpret_cast<void*>(address);
}

inline void* take_or_throw(size_t bytes, size_t alignment) {
  void* memory = take(bytes, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

inline void give_back(void* memory) noexcept {
  if (memory == nullptr) return;
  const Header header = *reinterpret_cast<Header*>(reinterpret_cast<uintptr_t>(memory) - sizeof(Header));
  live_bytes -= static_cast<int64_t>(header.bytes);
  std::free(header.memory);
}

inline constexpr size_t kUsual = alignof(std::max_align_t);

}  // namespace allocations
}  // namespace gemma::test

// All of them: a sanitizer's own would not call these.
void* operator new(size_t n) {
  return gemma::test::allocations::take_or_throw(n, gemma::test::allocations::kUsual);
}
void* operator new[](size_t n) {
  return gemma::test::allocations::take_or_throw(n, gemma::test::allocations::kUsual);
}
void* operator new(size_t n, const std::nothrow_t&) noexcept {
  return gemma::test::allocations::take(n, gemma::test::allocations::kUsual);
}
void* operator new[](size_t n, const std::nothrow_t&) noexcept {
  return gemma::test::allocations::take(n, gemma::test::allocations::kUsual);
}
void* operator new(size_t n, std::align_val_t a) {
  return gemma::test::allocations::take_or_throw(n, static_cast<size_t>(a));
}
void* operator new[](size_t n, std::align_val_t a) {
  return gemma::test::allocations::take_or_throw(n, static_cast<size_t>(a));
}
void* operator new(size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return gemma::test::allocations::take(n, static_cast<size_t>(a));
}
void* operator new[](size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return gemma::test::allocations::take(n, static_cast<size_t>(a));
}
void operator delete(void* p) noexcept {
  gemma::test::allocations::give_back(p);
}
void operator delete[](void* p) noexcept {
  gemma::test::allocations::give_back(p);
}
void operator delete(void* p, size_t) noexcept {
  gemma::test::allocations::give_back(p);
}
void operator delete[](void* p, size_t) noexcept {
  gemma::test::allocations::give_back(p);
}
void operator delete(void* p, const std::nothrow_t&) noexcept {
  gemma::test::allocations::give_back(p);
}
void operator delete[](void* p, const std::nothrow_t&) noexcept {
  gemma::test::allocations::give_back(p);
}
void operator delete(void* p, std::align_val_t) noexcept {
  gemma::test::allocations::give_back(p);
}
void operator delete[](void* p, std::align_val_t) noexcept {
  gemma::test::allocations::give_back(p);
}
void operator delete(void* p, size_t, std::align_val_t) noexcept {
  gemma::test::allocations::give_back(p);
}
void operator delete[](void* p, size_t, std::align_val_t) noexcept {
  gemma::test::allocations::give_back(p);
}
void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept {
  gemma::test::allocations::give_back(p);
}
void operator delete[](void* p, std::align_val_t, const std::nothrow_t&) noexcept {
  gemma::test::allocations::give_back(p);
}
