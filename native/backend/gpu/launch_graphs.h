// Runs of launches that come again and again, as every token of a decode makes them, handed to the driver as a graph in
// one call instead of hundreds. A graph is told by its kernels and grids; what differs in the arguments is changed in
// it before it starts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/gpu/driver_device.h"

namespace gemma::gpu {

// A launch that waits, its arguments at an offset into memory that holds those of all.
struct Launch {
  Kernel kernel;
  Grid grid;
  unsigned n_threads;
  size_t arguments;
};

// What each kernel takes.
inline constexpr size_t kArgumentBytes[] = {
#define GEMMA_GPU_KERNEL(name, arguments) sizeof(arguments),
    GEMMA_GPU_KERNELS(GEMMA_GPU_KERNEL)
#undef GEMMA_GPU_KERNEL
};

class LaunchGraphs {
 public:
  // functions: those of kernel_list.h, which live as long as this.
  LaunchGraphs(Driver& driver, std::span<void* const> functions, void* stream)
      : driver_(driver), functions_(functions), stream_(stream), is_on_(driver.has_graphs()) {}
  ~LaunchGraphs() { drop_all(); }
  LaunchGraphs(const LaunchGraphs&) = delete;
  LaunchGraphs& operator=(const LaunchGraphs&) = delete;

  // False once the driver has refused anything to do with graphs, or has none.
  bool is_on() const { return is_on_; }
  // Starts the launches as one graph, from the second time on that a run like this comes. False: nothing was started.
  bool start(std::span<const Launch> launches, const std::vector<std::byte>& arguments);
  // Nothing runs on the stream any more.
  void all_ended();
  // Gives everything back to the driver; of a lost device that may fail.
  void drop_all() noexcept;

 private:
  struct Graph {
    std::vector<Launch> launches;
    std::vector<std::byte> arguments;
    std::vector<void*> nodes;
    void* graph = nullptr;
    void* executable = nullptr;
    bool is_running = false;
    uint64_t last_used = 0;
  };

  bool has_come_before(std::span<const Launch> launches);
  bool build(std::span<const Launch> launches, const std::vector<std::byte>& arguments, Graph* graph);
  bool change(std::span<const Launch> launches, const std::vector<std::byte>& arguments, Graph& graph);
  void drop(Graph& graph) noexcept;

  Driver& driver_;
  std::span<void* const> functions_;
  void* stream_;
  bool is_on_;
  std::vector<Graph> graphs_;
  std::vector<uint64_t> seen_;  // hashes of runs that have come once
  size_t next_seen_ = 0;
  uint64_t n_starts_ = 0;
};

}  // namespace gemma::gpu
