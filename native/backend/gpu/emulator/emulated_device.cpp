#include "backend/gpu/emulator/emulated_device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "backend/gpu/emulator/emulator.h"
#include "base/error.h"

namespace gemma::gpu {

// GEMMA_EMULATED_CHIPS is GEMMA_CHIP(sm_75)GEMMA_CHIP(sm_80)... for those that CMakeLists.txt has in this build.
#define GEMMA_CHIP(name)      \
  namespace name {            \
  const EmulatedChip& chip(); \
  }
GEMMA_EMULATED_CHIPS
#undef GEMMA_CHIP

std::span<const EmulatedChip* const> emulated_chips() {
  static const EmulatedChip* const chips[] = {
#define GEMMA_CHIP(name) &name::chip(),
      GEMMA_EMULATED_CHIPS
#undef GEMMA_CHIP
  };
  return chips;
}

namespace {

class EmulatedDevice final : public Device {
 public:
  EmulatedDevice(const EmulatedChip& chip, int n_threads, uint64_t memory_bytes) : chip_(chip), pool_(n_threads) {
    info_ = {"emulated",       0,           std::string("emulated ") + chip.name, chip.name, chip.warp, n_threads,
             size_t{48} << 10, memory_bytes};
  }

  const DeviceInfo& info() const override { return info_; }
  uint64_t free_bytes() const override { return info_.memory_bytes - used_; }

  void* allocate(size_t bytes) override {
    // The exact size: AddressSanitizer's red zone begins right behind it.
    void* memory = nullptr;
    if (bytes > free_bytes() || posix_memalign(&memory, 256, std::max<size_t>(bytes, 1)) != 0) {
      throw Error(ErrorCode::kOutOfMemory, "DEVICE_MEMORY",
                  "device emulated: " + std::to_string(bytes) + " bytes wanted, " + std::to_string(free_bytes()) +
                      " of " + std::to_string(info_.memory_bytes) + " are free");
    }
    std::memset(memory, 0xff, bytes);
    used_ += bytes;
    sizes_[memory] = bytes;
    return memory;
  }
  void free(void* memory) noexcept override {
    const auto found = sizes_.find(memory);
    if (found == sizes_.end()) return;
    used_ -= found->second;
    sizes_.erase(found);
    std::free(memory);
  }

  void upload(void* dst, const void* src, size_t bytes) override { std::memcpy(dst, src, bytes); }
  void download(void* dst, const void* src, size_t bytes) override { std::memcpy(dst, src, bytes); }
  void copy(void* dst, const void* src, size_t bytes) override { std::memcpy(dst, src, bytes); }
  void fill(void* dst, uint8_t value, size_t bytes) override { std::memset(dst, value, bytes); }

  void launch(Kernel kernel, Grid grid, unsigned n_threads, const void* arguments) override {
    const auto& entry = chip_.kernels[static_cast<size_t>(kernel)];
    emulator::launch(pool_, entry.run, arguments, {grid.x, grid.y, grid.z}, n_threads, chip_.warp);
  }
  void synchronize() override {}

 private:
  const EmulatedChip& chip_;
  ThreadPool pool_;
  DeviceInfo info_;
  uint64_t used_ = 0;
  std::unordered_map<void*, size_t> sizes_;
};

}  // namespace

std::unique_ptr<Device> make_emulated_device(const std::string& chip, int n_threads, uint64_t memory_bytes) {
  std::string names;
  for (const EmulatedChip* known : emulated_chips()) {
    if (chip.empty() || chip == known->name) return std::make_unique<EmulatedDevice>(*known, n_threads, memory_bytes);
    names += std::string(names.empty() ? "" : ", ") + known->name;
  }
  throw Error(ErrorCode::kBackendUnavailable, "CHIP", "emulated chip " + chip + ": this build has " + names);
}

}  // namespace gemma::gpu
