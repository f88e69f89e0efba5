// Reading a mapped file past its end, because somebody has cut it, or off a disk that fails, raises SIGBUS, which ends
// the process. A guarded mapping survives it: its bytes become zeros and lost() says so, for whoever has computed with
// them to look before it hands out results.
//
// The handler belongs to the process. It is installed with the first guard and stays; signals that come from elsewhere
// go on to the handler that was there before. One that is installed later (a crash reporter's) sees the signal first
// and has to pass it on. On Windows there is nothing to guard: the system lets nobody cut a file that is mapped.
#pragma once

#include <cstddef>
#include <utility>

namespace gemma {

struct GuardedRange;

class MappingGuard {
 public:
  MappingGuard() = default;
  // The mapping must outlive the guard; its last page counts as a whole. Throws std::bad_alloc.
  MappingGuard(const void* begin, size_t bytes);
  MappingGuard(MappingGuard&& other) noexcept : range_(std::exchange(other.range_, nullptr)) {}
  MappingGuard& operator=(MappingGuard&& other) noexcept {
    std::swap(range_, other.range_);
    return *this;
  }
  ~MappingGuard();

  // Whether bytes have become zeros. Any thread; what a thread has read before it asks is covered.
  bool lost() const;

 private:
  GuardedRange* range_ = nullptr;
};

}  // namespace gemma
