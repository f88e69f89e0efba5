// Memory for large arrays: aligned for every kernel, on large pages where the system has them to give.
#pragma once

#include <cstddef>
#include <new>

namespace gemma {

// Arrays of this size and more lie on pages of this size.
inline constexpr size_t kHugePage = size_t{2} << 20;

// What so many bytes take.
constexpr size_t allocated_bytes(size_t bytes) {
  return bytes >= kHugePage ? (bytes + kHugePage - 1) / kHugePage * kHugePage : bytes;
}

// Not initialised. Starts on a multiple of 64.
class LargeMemory {
 public:
  // Throws Error{kOutOfMemory}.
  explicit LargeMemory(size_t bytes);
  ~LargeMemory();
  LargeMemory(const LargeMemory&) = delete;
  LargeMemory& operator=(const LargeMemory&) = delete;

  std::byte* data() const { return data_; }

 private:
  std::align_val_t alignment_;
  std::byte* data_;
};

}  // namespace gemma
