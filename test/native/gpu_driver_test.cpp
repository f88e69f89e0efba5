// The devices behind drivers, on fake drivers (gpu/fake_driver.cpp): what is called, and what becomes of every call
// that fails.
#include <dlfcn.h>

#include <cstring>
#include <numeric>

#include "backend/gpu/driver_device.h"
#include "check.h"
#include "gpu/fake_driver.h"

using namespace gemma;
using namespace gemma::gpu;

namespace {

const unsigned char kCode[] = {1, 2, 3};

std::vector<DeviceImage> images(std::initializer_list<const char*> chips) {
  std::vector<DeviceImage> all;
  for (const char* chip : chips) all.push_back({chip, false, kCode, kCode + sizeof kCode});
  return all;
}

struct Vendor {
  const char* library;
  const char* kind;
  const char* chip;
  std::shared_ptr<Driver> (*open)();
};
const Vendor kVendors[] = {{"libcuda.so.1", "cuda", "sm_86", open_cuda_driver},
                           {"libamdhip64.so.6", "rocm", "gfx90a:sramecc+:xnack-", open_hip_driver}};

FakeDriver& fake(const Vendor& vendor) {
  void* library = dlopen(vendor.library, RTLD_NOW | RTLD_LOCAL);
  CHECK(library != nullptr);
  auto* find = reinterpret_cast<FakeDriver* (*)()>(dlsym(library, kFakeDriverSymbol));
  CHECK(find != nullptr);  // a real driver would be found only if the library path were not the test's
  return *find();
}

FakeDriver& fresh(const Vendor& vendor) {
  FakeDriver& state = fake(vendor);
  CHECK(state.n_live == 0);
  state = {};
  state.chip = vendor.chip;
  return state;
}

// n launches whose kernels and grids are the same at every step, and whose arguments are not all.
void launch_run(Device& device, int n, int step) {
  for (int i = 0; i < n; ++i) {
    const unsigned blocks = static_cast<unsigned>(n * 100 + i);
    if (i % 3 == 0) {
      GatherArguments arguments{};
      arguments.out = reinterpret_cast<float*>(static_cast<uintptr_t>(i % 2 == 0 ? step + 1 : 1));
      device.launch(Kernel::gather_rows, {blocks, 2, 1}, kThreads, &arguments);
    } else {
      NormArguments arguments{};
      arguments.x = reinterpret_cast<const float*>(static_cast<uintptr_t>(8 * i));
      device.launch(Kernel::rms_norm, {blocks, 1, 1}, kThreads, &arguments);
    }
  }
}

// Everything a model does with a device, more than once round the staging memory.
void use(const Vendor& vendor, int index) {
  const auto all = images({"sm_86", "gfx90a"});
  std::unique_ptr<Device> device = open_driver_device(vendor.open(), index, all);
  std::vector<int> sent(600'000);
  std::iota(sent.begin(), sent.end(), 0);
  const size_t bytes = sent.size() * sizeof(int);
  struct Memory {
    Device& device;
    void* data;
    ~Memory() { device.free(data); }
  };
  const Memory a{*device, device->allocate(bytes)};
  const Memory b{*device, device->allocate(bytes)};
  device->upload(a.data, sent.data(), bytes);
  for (int i = 0; i < 3; ++i) device->upload(a.data, sent.data(), 100);
  device->copy(b.data, a.data, bytes);
  device->fill(a.data, 7, 10);
  const NormArguments arguments{};
  device->launch(Kernel::rms_norm, {3, 2, 1}, kThreads, &arguments);
  device->synchronize();
  // A run of launches that comes four times.
  for (int step = 0; step < 4; ++step) {
    launch_run(*device, 10, step);
    device->synchronize();
  }
  CHECK(device->free_bytes() > 0);
  std::vector<int> got(sent.size());
  device->download(got.data(), b.data, bytes);
  CHECK(got == sent);
  device->download(got.data(), a.data, 4);
  CHECK(got[0] == 0x07070707);
}

}  // namespace

TEST("a device is found, described and used, and gives everything back") {
  for (const Vendor& vendor : kVendors) {
    FakeDriver& state = fresh(vendor);
    const std::vector<gpu::DeviceInfo> devices = vendor.open()->devices();
    CHECK(devices.size() == 2);
    const std::string chip(vendor.chip);
    for (int i = 0; i < 2; ++i) {
      const gpu::DeviceInfo& info = devices[static_cast<size_t>(i)];
      CHECK(info.kind == vendor.kind && info.index == i && info.name == "Fake GPU " + std::to_string(i));
      CHECK(info.chip == chip.substr(0, chip.find(':')));
      CHECK(info.warp == (info.kind == "rocm" ? 64 : 32));
      CHECK(info.n_processors == (info.kind == "rocm" ? 96 : 82));
      CHECK(info.shared_bytes == (info.kind == "rocm" ? 65536u : 49152u));
      CHECK(info.memory_bytes == state.memory_bytes);
    }
    use(vendor, 1);
    CHECK(state.current_device == 1 && state.n_launches == 41);
    CHECK(std::string(state.last_kernel) == "gemma_gather_rows");
    CHECK(state.last_grid[0] == 1009 && state.last_grid[1] == 2 && state.last_grid[2] == 1);
    CHECK(state.n_live == 0 && state.used_bytes == 0);
  }
}

TEST("every call that fails is a typed error, and nothing is leaked") {
  const struct {
    int error;
    ErrorCode code;
    const char* detail;
  } errors[] = {{2, ErrorCode::kOutOfMemory, "DEVICE_MEMORY"},
                {1, ErrorCode::kBackendUnavailable, "DRIVER"},
                {209, ErrorCode::kBackendUnavailable, "NO_IMAGE"},
                {719, ErrorCode::kBackendUnavailable, "DEVICE_LOST"}};
  for (const Vendor& vendor : kVendors) {
    use(vendor, (fresh(vendor), 0));
    const int n_calls = fake(vendor).n_calls;
    CHECK(n_calls > 40);
    for (const bool fail_on : {false, true}) {
      for (const auto& [error, code, detail] : errors) {
        if (fail_on && error != 719) continue;
        int n_errors = 0;
        for (int i = 0; i < n_calls; ++i) {
          FakeDriver& state = fresh(vendor);
          state.fail_at = i;
          state.fail_on = fail_on;
          state.error = error;
          try {
            use(vendor, 0);  // calls that give something back may fail silently
          } catch (const Error& e) {
            ++n_errors;
            CHECK(e.code() == code && e.detail() == detail);
            CHECK(std::string(e.what()).find("(" + std::to_string(error) + ")") != std::string::npos);
          }
          CHECK(state.n_live == 0);
        }
        CHECK(n_errors > n_calls / 2);
      }
    }
  }
}

TEST("runs of launches that come again start as graphs, with the arguments of this time, in order with all else") {
  unsigned long long traces[2] = {0, 0};
  for (size_t v = 0; v < 2; ++v) {
    FakeDriver& state = fresh(kVendors[v]);
    const auto all = images({"sm_86", "gfx90a"});
    const std::unique_ptr<Device> device = open_driver_device(kVendors[v].open(), 0, all);
    int n_launches = 0;
    int n_graphs = 0;
    const auto step = [&](int n, int number, bool is_graph) {
      launch_run(*device, n, number);
      n_launches += n;
      n_graphs += is_graph ? 1 : 0;
    };
    const auto check = [&] {
      device->synchronize();
      CHECK(state.n_launches == n_launches && state.n_graph_launches == n_graphs);
    };
    step(10, 0, false);  // the first time as they are
    check();
    for (int i = 1; i < 5; ++i) {
      step(10, i, true);
      check();
    }
    step(7, 0, false);  // too short
    check();
    step(7, 1, false);
    check();
    // Cut by an upload: two runs of their own, and the same twice without waiting is no graph the second time.
    const std::vector<std::byte> bytes(16);
    void* memory = device->allocate(16);
    step(10, 5, true);
    device->upload(memory, bytes.data(), bytes.size());
    CHECK(state.n_launches == n_launches);
    step(10, 6, false);
    check();
    step(10, 7, true);
    check();
    // More runs than graphs are kept; the first ones are made anew.
    for (int round = 0; round < 3; ++round) {
      for (int n = 20; n < 40; ++n) {
        step(n, round, round > 0);
        check();
      }
    }
    step(10, 8, true);
    device->free(memory);
    CHECK(state.n_launches == n_launches);
    traces[v] = state.trace;
  }
  CHECK(traces[0] == traces[1] && traces[0] != 0);
  for (const Vendor& vendor : kVendors) CHECK(fake(vendor).n_live == 0);
}

TEST("a driver that refuses graphs gets the launches one by one") {
  for (const Vendor& vendor : kVendors) {
    const auto run = [&] {
      const auto all = images({"sm_86", "gfx90a"});
      const std::unique_ptr<Device> device = open_driver_device(vendor.open(), 0, all);
      const int first = fake(vendor).n_calls;
      for (int i = 0; i < 4; ++i) {
        launch_run(*device, 10, i);
        device->synchronize();
      }
      return first;
    };
    fresh(vendor);
    int call = run();
    const unsigned long long trace = fake(vendor).trace;
    const int n_calls = fake(vendor).n_calls;
    CHECK(fake(vendor).n_graph_launches == 3);
    int n_refused = 0;
    for (; call < n_calls; ++call) {
      FakeDriver& state = fresh(vendor);
      state.fail_at = call;
      state.error = 801;  // not supported
      try {
        run();
      } catch (const Error&) {
        continue;  // not one of a graph's calls
      }
      CHECK(state.trace == trace && state.n_launches == 40);
      if (state.n_graph_launches < 3) ++n_refused;
    }
    CHECK(n_refused > 12);  // making, adding ten nodes, instantiating, starting, changing
    if (std::string(vendor.kind) != "rocm") continue;
    fresh(vendor).runtime_version = 50731921;  // ROCm 5.7 is not asked for graphs
    run();
    CHECK(fake(vendor).n_graph_launches == 0 && fake(vendor).trace == trace);
  }
}

TEST("memory that is not there is an error that says how much is") {
  for (const Vendor& vendor : kVendors) {
    fresh(vendor).memory_bytes = size_t{10} << 20;
    const auto all = images({"sm_86", "gfx90a"});
    const std::unique_ptr<Device> device = open_driver_device(vendor.open(), 0, all);
    try {
      device->allocate(size_t{11} << 20);
      CHECK(false);
    } catch (const Error& e) {
      CHECK(e.code() == ErrorCode::kOutOfMemory);
      CHECK(std::string(e.what()).find(":0, allocating 11 MiB of which 10 MiB are free") != std::string::npos);
    }
    device->free(device->allocate(size_t{9} << 20));  // it goes on
  }
}

TEST("devices, chips and drivers that are not there are refused") {
  for (const Vendor& vendor : kVendors) {
    fresh(vendor);
    const auto others = images({"sm_80", "gfx1100", "sm_90", "gfx906"});
    const auto own = images({"sm_86", "gfx90a"});
    CHECK_THROWS(kBackendUnavailable, "NO_DEVICE", open_driver_device(vendor.open(), 2, own));
    CHECK_THROWS(kBackendUnavailable, "NO_DEVICE", open_driver_device(vendor.open(), -1, own));
    fake(vendor).n_devices = 0;
    CHECK(vendor.open()->devices().empty());
    fake(vendor).n_devices = 2;
    if (std::string(vendor.kind) == "rocm")
      CHECK_THROWS(kBackendUnavailable, "NO_IMAGE", open_driver_device(vendor.open(), 0, others));
    CHECK(fake(vendor).n_live == 0);
    // hipErrorNoDevice where there is a runtime and no GPU
    fake(vendor).fail_at = fake(vendor).n_calls + 2;
    fake(vendor).error = 100;
    CHECK(vendor.open()->devices().empty());
  }
  fresh(kVendors[0]).version = 12080;
  CHECK_THROWS(kBackendUnavailable, "OLD_DRIVER", open_cuda_driver());
  fresh(kVendors[0]).chip = "sm_61";
  const auto all = images({"sm_75", "sm_86"});
  CHECK_THROWS(kBackendUnavailable, "NO_IMAGE", open_driver_device(open_cuda_driver(), 0, all));
}

TEST("a chip gets its own image, else one of its family, else what the driver can compile") {
  std::vector<DeviceImage> all = images({"sm_75", "sm_80", "sm_86", "sm_120"});
  const auto chosen = [&](const char* chip) {
    const auto found = images_for(all, chip);
    return std::string(found.empty() ? "" : found.front()->chip);
  };
  CHECK(chosen("sm_75") == "sm_75");
  CHECK(chosen("sm_70").empty());
  CHECK(chosen("sm_87") == "sm_86");
  CHECK(chosen("sm_89") == "sm_86");
  CHECK(chosen("sm_90").empty());
  CHECK(chosen("sm_121") == "sm_120");
  CHECK(chosen("sm_130").empty());
  all[1].is_portable = true;
  CHECK(chosen("sm_90") == "sm_80");
  CHECK(chosen("sm_86") == "sm_86");
  CHECK(chosen("sm_75") == "sm_75");
  all = images({"gfx90a", "gfx1100", "gfx90a", "gfx1100"});
  CHECK(chosen("gfx90a:sramecc+:xnack-") == "gfx90a");
  CHECK(images_for(all, "gfx1100").size() == 2);
  CHECK(chosen("gfx1101").empty() && chosen("gfx90").empty() && chosen("").empty());
  CHECK(chip_list(all) == "gfx90a, gfx1100");
}

TEST_MAIN
