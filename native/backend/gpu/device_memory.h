// Device memory of the backend: buffers, and host data that is kept on the device.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "backend/gpu/device.h"
#include "backend/gpu/gpu_traits.h"
#include "backend/workspace.h"

namespace gemma::gpu {

class GpuBuffer final : public Buffer {
 public:
  GpuBuffer(Device& device, size_t bytes) : device_(device) {
    data_ = static_cast<std::byte*>(device.allocate(std::max<size_t>(bytes, 1)));
    bytes_ = bytes;
  }
  ~GpuBuffer() override { device_.free(data_); }
  GpuBuffer(const GpuBuffer&) = delete;
  GpuBuffer& operator=(const GpuBuffer&) = delete;

 private:
  Device& device_;
};

// Host data of a kind on the device. The layers of a model ask for the same again and again, local and global ones in
// turn for others, so the last few are kept.
class Mirror {
 public:
  Mirror(Backend& backend, Device& device)
      : device_(device), copies_{Copy(Workspace(backend)), Copy(Workspace(backend)), Copy(Workspace(backend))} {}
  // So many bytes for each copy.
  void take(size_t bytes) {
    for (Copy& copy : copies_) {
      copy.data = nullptr;
      copy.memory.take(bytes);
    }
  }
  template <class T>
  const T* get(std::span<const T> values) {
    const std::span<const std::byte> bytes = std::as_bytes(values);
    for (const Copy& copy : copies_) {
      if (copy.data != nullptr && std::ranges::equal(copy.host, bytes)) return reinterpret_cast<const T*>(copy.data);
    }
    Copy& copy = copies_[next_];
    next_ = (next_ + 1) % copies_.size();
    copy.data = nullptr;  // should the upload fail
    std::byte* data = copy.memory.reserve(bytes.size());
    copy.host.assign(bytes.begin(), bytes.end());
    device_.upload(data, copy.host.data(), bytes.size());
    copy.data = data;
    return reinterpret_cast<const T*>(data);
  }

 private:
  struct Copy {
    explicit Copy(Workspace workspace) : memory(std::move(workspace)) {}
    Workspace memory;
    std::vector<std::byte> host;
    std::byte* data = nullptr;
  };
  Device& device_;
  std::array<Copy, kMirrorCopies> copies_;
  size_t next_ = 0;
};

}  // namespace gemma::gpu
