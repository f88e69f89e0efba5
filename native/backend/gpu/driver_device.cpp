#include "backend/gpu/driver_device.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "backend/gpu/launch_graphs.h"
#include "base/error.h"

namespace gemma::gpu {
namespace {

// Pinned memory that copies go through: while one half travels, the other is filled. Small copies, of which every step
// has several, then need no waiting at all.
constexpr size_t kHalfBytes = size_t{1} << 20;
// Kernels read vectors of 16 bytes; drivers align to 256.
constexpr size_t kAlignment = 64;
constexpr unsigned kNonBlockingStream = 1;   // CU_STREAM_NON_BLOCKING, hipStreamNonBlocking
constexpr unsigned kEventWithoutTiming = 2;  // CU_EVENT_DISABLE_TIMING, hipEventDisableTiming

std::string megabytes(uint64_t bytes) {
  return std::to_string((bytes + (1 << 19)) >> 20) + " MiB";
}

class DriverDevice final : public Device {
 public:
  DriverDevice(std::shared_ptr<Driver> driver, DeviceInfo info, std::span<const DeviceImage* const> images)
      : driver_(std::move(driver)), calls_(driver_->calls()), info_(std::move(info)) {
    where_ = info_.kind + ":" + std::to_string(info_.index);
    driver_->retain(info_.index);
    try {
      driver_->make_current(info_.index);
      check(calls_.stream_create(&stream_, kNonBlockingStream), "creating a stream");
      check(calls_.malloc_host(&staging_, 2 * kHalfBytes, 0), "allocating pinned memory");
      for (void*& event : events_) check(calls_.event_create(&event, kEventWithoutTiming), "creating an event");
      for (const DeviceImage* image : images) {
        void* module = nullptr;
        check(calls_.module_load(&module, image->begin), "loading the kernels for " + std::string(image->chip));
        modules_.push_back(module);
      }
      for (size_t i = 0; i < functions_.size(); ++i) functions_[i] = find_kernel(kKernelSymbols[i]);
      graphs_.emplace(*driver_, functions_, stream_);
    } catch (...) {
      close();
      throw;
    }
  }
  ~DriverDevice() override { close(); }
  DriverDevice(const DriverDevice&) = delete;
  DriverDevice& operator=(const DriverDevice&) = delete;

  const DeviceInfo& info() const override { return info_; }

  uint64_t free_bytes() const override {
    driver_->make_current(info_.index);
    size_t free = 0;
    size_t total = 0;
    check(calls_.memory_info(&free, &total), "asking for free memory");
    return free;
  }

  void* allocate(size_t bytes) override {
    driver_->make_current(info_.index);
    void* memory = nullptr;
    const int error = calls_.malloc(&memory, std::max<size_t>(bytes, 1));
    if (error != 0) {
      size_t free = 0;
      size_t total = 0;
      const bool known = calls_.memory_info(&free, &total) == 0;
      check(error, "allocating " + megabytes(bytes) + (known ? " of which " + megabytes(free) + " are free" : ""));
    }
    return memory;
  }

  void free(void* memory) noexcept override {
    if (memory == nullptr) return;
    // Errors do not matter: of a lost device everything is gone.
    try_flush();
    calls_.stream_synchronize(stream_);
    calls_.free(memory);
  }

  void upload(void* dst, const void* src, size_t bytes) override {
    flush();
    auto* to = static_cast<std::byte*>(dst);
    const auto* from = static_cast<const std::byte*>(src);
    while (bytes > 0) {
      if (used_ == kHalfBytes) turn();
      const size_t n = std::min(bytes, kHalfBytes - used_);
      std::byte* staged = static_cast<std::byte*>(staging_) + half_ * kHalfBytes + used_;
      std::memcpy(staged, from, n);
      check(calls_.upload(to, staged, n, stream_), "copying to the device");
      used_ = std::min(kHalfBytes, (used_ + n + kAlignment - 1) / kAlignment * kAlignment);
      to += n;
      from += n;
      bytes -= n;
    }
  }

  void download(void* dst, const void* src, size_t bytes) override {
    flush();
    auto* to = static_cast<std::byte*>(dst);
    const auto* from = static_cast<const std::byte*>(src);
    while (bytes > 0) {
      const size_t n = std::min(bytes, kHalfBytes);
      if (kHalfBytes - used_ < n) turn();
      std::byte* staged = static_cast<std::byte*>(staging_) + half_ * kHalfBytes + used_;
      check(calls_.download(staged, from, n, stream_), "copying from the device");
      check(calls_.stream_synchronize(stream_), "computing");
      graphs_->all_ended();
      std::memcpy(to, staged, n);
      used_ = 0;  // nothing travels any more
      to += n;
      from += n;
      bytes -= n;
    }
  }

  void copy(void* dst, const void* src, size_t bytes) override {
    if (bytes == 0) return;
    flush();
    check(calls_.copy(dst, src, bytes, stream_), "copying on the device");
  }

  void fill(void* dst, uint8_t value, size_t bytes) override {
    if (bytes == 0) return;
    flush();
    check(calls_.fill(dst, value, bytes, stream_), "filling memory");
  }

  // Where the driver has graphs, launches wait until something else is asked for, and then start together.
  void launch(Kernel kernel, Grid grid, unsigned n_threads, const void* arguments) override {
    const Launch launch{kernel, grid, n_threads, waiting_arguments_.size()};
    if (!graphs_->is_on()) {
      flush();
      return start(launch, arguments);
    }
    const auto* bytes = static_cast<const std::byte*>(arguments);
    waiting_arguments_.insert(waiting_arguments_.end(), bytes, bytes + kArgumentBytes[static_cast<size_t>(kernel)]);
    waiting_arguments_.resize((waiting_arguments_.size() + 15) / 16 * 16);
    waiting_.push_back(launch);
  }

  void synchronize() override {
    flush();
    check(calls_.stream_synchronize(stream_), "computing");
    graphs_->all_ended();
  }

 private:
  void check(int error, const std::string& doing) const {
    if (error != 0) driver_->check(error, where_ + ", " + doing);
  }

  void start(const Launch& launch, const void* arguments) {
    void* pointers[] = {const_cast<void*>(arguments)};
    const size_t kernel = static_cast<size_t>(launch.kernel);
    const int error = calls_.launch(functions_[kernel], launch.grid.x, launch.grid.y, launch.grid.z, launch.n_threads,
                                    1, 1, 0, stream_, pointers, nullptr);
    if (error != 0) check(error, std::string("starting ") + kKernelSymbols[kernel]);
  }

  // Starts what waits, and makes the device the calling thread's.
  void flush() {
    driver_->make_current(info_.index);
    if (waiting_.empty()) return;
    // Taken out first: what fails is not tried again.
    const std::vector<Launch> launches = std::exchange(waiting_, {});
    const std::vector<std::byte> arguments = std::exchange(waiting_arguments_, {});
    if (graphs_->start(launches, arguments)) return;
    for (const Launch& launch : launches) start(launch, arguments.data() + launch.arguments);
  }

  // The other half of the staging memory, once what it held has arrived.
  void turn() {
    check(calls_.event_record(events_[half_], stream_), "recording an event");
    is_recorded_[half_] = true;
    half_ = 1 - half_;
    used_ = 0;
    if (is_recorded_[half_]) check(calls_.event_synchronize(events_[half_]), "copying to the device");
  }

  void* find_kernel(const char* symbol) {
    int error = 0;
    for (void* module : modules_) {
      void* function = nullptr;
      error = calls_.module_function(&function, module, symbol);
      if (error == 0) return function;
    }
    check(error, std::string("looking for the kernel ") + symbol);
    throw Error(ErrorCode::kInternal, "NO_KERNEL", where_ + ": the images hold no kernel " + symbol);
  }

  void try_make_current() noexcept {
    try {
      driver_->make_current(info_.index);
    } catch (const std::exception&) {
      return;
    }
  }
  void try_flush() noexcept {
    try {
      flush();
    } catch (const std::exception&) {
      return;
    }
  }

  // As far as it was set up. Errors do not matter: a lost device refuses all of this.
  void close() noexcept {
    try_make_current();
    if (stream_ != nullptr) calls_.stream_synchronize(stream_);
    graphs_.reset();
    for (void* module : modules_) calls_.module_unload(module);
    for (void* event : events_) {
      if (event != nullptr) calls_.event_destroy(event);
    }
    if (staging_ != nullptr) calls_.free_host(staging_);
    if (stream_ != nullptr) calls_.stream_destroy(stream_);
    driver_->release(info_.index);
  }

  std::shared_ptr<Driver> driver_;
  const DriverCalls& calls_;
  DeviceInfo info_;
  std::string where_;
  void* stream_ = nullptr;
  void* staging_ = nullptr;
  std::array<void*, 2> events_{};  // recorded when a half is left
  std::array<bool, 2> is_recorded_{};
  size_t half_ = 0;
  size_t used_ = 0;  // of the half
  std::vector<void*> modules_;
  std::array<void*, kNumKernels> functions_{};
  std::optional<LaunchGraphs> graphs_;
  std::vector<Launch> waiting_;
  std::vector<std::byte> waiting_arguments_;  // of all that waits, each at a multiple of 16
};

}  // namespace

void Driver::check(int error, const std::string& doing) {
  if (error == 0) return;
  const std::string message = doing + ": " + error_name(error) + " (" + std::to_string(error) + ")";
  // The numbers are the same in CUDA and HIP.
  switch (error) {
    case 2: throw Error(ErrorCode::kOutOfMemory, "DEVICE_MEMORY", message);
    case 200:  // invalid image
    case 209:  // no binary for this GPU
    case 218:  // invalid PTX
    case 222:  // PTX of a newer version
      throw Error(ErrorCode::kBackendUnavailable, "NO_IMAGE", message);
    case 4:    // the driver shuts down
    case 46:   // device unavailable
    case 101:  // invalid device
    case 201:  // invalid context
    case 214:  // uncorrectable memory error
    case 220:  // the same of NVLink
    case 226:  // contained error
    case 700:  // illegal address
    case 702:  // launch timeout
    case 709:  // context destroyed
    case 710:  // assertion
    case 714:  // hardware stack error
    case 715:  // illegal instruction
    case 716:  // misaligned address
    case 717:  // invalid address space
    case 718:  // invalid program counter
    case 719:  // launch failure
    case 999:  // unknown
      throw Error(ErrorCode::kBackendUnavailable, "DEVICE_LOST",
                  message + ": the device can no longer be used; load the model anew");
    default: throw Error(ErrorCode::kBackendUnavailable, "DRIVER", message);
  }
}

std::unique_ptr<Device> open_driver_device(std::shared_ptr<Driver> driver, int index,
                                           std::span<const DeviceImage> images) {
  const std::vector<DeviceInfo> devices = driver->devices();
  const auto found =
      std::find_if(devices.begin(), devices.end(), [&](const DeviceInfo& d) { return d.index == index; });
  if (found == devices.end()) {
    throw Error(
        ErrorCode::kBackendUnavailable, "NO_DEVICE",
        "device " + std::to_string(index) + ": the driver shows " + std::to_string(devices.size()) + " devices");
  }
  const std::vector<const DeviceImage*> fitting = images_for(images, found->chip);
  if (fitting.empty()) {
    throw Error(ErrorCode::kBackendUnavailable, "NO_IMAGE",
                found->kind + ":" + std::to_string(index) + " is a " + found->name + " (" + found->chip +
                    "), for which this build has no kernels: it has those for " + chip_list(images));
  }
  return std::make_unique<DriverDevice>(std::move(driver), *found, fitting);
}

}  // namespace gemma::gpu
