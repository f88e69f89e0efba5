// Controls of the fake drivers: libraries named as NVIDIA's and AMD's, in which memory of the device is memory of the
// host, no kernel runs, and any call can be made to fail.
#pragma once

#include <cstddef>

struct FakeDriver {
  int n_calls = 0;       // of functions that can fail
  int fail_at = -1;      // the call of this number fails with error
  bool fail_on = false;  // and all after it: the device is lost
  int error = 0;
  long n_live = 0;                 // memory, streams, events, modules, contexts that were made and not given back
  int version = 13000;             // of the driver (CUDA)
  int runtime_version = 60443484;  // ROCm's, of 6.4
  int n_devices = 2;
  const char* chip = "";  // "sm_86", "gfx1100:sramecc+"
  size_t memory_bytes = size_t{64} << 20;
  size_t used_bytes = 0;
  int n_launches = 0;  // those of graphs too
  int n_graph_launches = 0;
  unsigned long long trace =
      0;  // of what was launched: kernels, grids, the first 16 bytes of their arguments, in order
  const char* last_kernel = "";
  unsigned last_grid[3] = {0, 0, 0};
  int current_device = -1;
};

// The symbol through which a test finds the controls.
inline constexpr const char* kFakeDriverSymbol = "fake_driver";
