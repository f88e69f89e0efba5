// Working memory of a backend's operations.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace gemma {

// Grows, keeps its capacity, never shrinks.
class Workspace {
 public:
  explicit Workspace(Backend& backend) : backend_(backend) {}
  // Exactly so many bytes, unless there are as many. Throws Error{kOutOfMemory}.
  std::byte* take(size_t bytes) {
    if (buffer_ == nullptr || buffer_->bytes() < bytes) {
      buffer_.reset();
      buffer_ = backend_.allocate(bytes);
    }
    return buffer_->data();
  }
  // At least so many bytes, until the next call; what was in them may be lost. A quarter more where nobody has said how
  // many it will be. Throws Error{kOutOfMemory}.
  std::byte* reserve(size_t bytes) {
    return buffer_ != nullptr && buffer_->bytes() >= bytes ? buffer_->data() : take(bytes + bytes / 4);
  }

 private:
  Backend& backend_;
  std::unique_ptr<Buffer> buffer_;
};

}  // namespace gemma
