// Arrays in working memory, one after the other. Internal to each file that includes it (small_math.h says why).
#pragma once

#include <cstddef>

#include "backend/cpu/small_math.h"

namespace gemma::cpu {
namespace {

// Each array begins on a cache line. memory may be null, to learn how many bytes are used.
class BumpAllocator {
 public:
  explicit BumpAllocator(std::byte* memory) : memory_(memory) {}
  template <class T>
  T* take(size_t n) {
    T* array = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += round_up(n * sizeof(T), 64);
    return array;
  }
  size_t used() const { return used_; }

 private:
  std::byte* memory_;
  size_t used_ = 0;
};

}  // namespace
}  // namespace gemma::cpu
