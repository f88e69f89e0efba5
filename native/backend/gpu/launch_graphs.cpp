#include "backend/gpu/launch_graphs.h"

#include <algorithm>
#include <cstring>

namespace gemma::gpu {
namespace {

// Shorter runs gain nothing.
constexpr size_t kLeastLaunches = 8;
// A step of a decode is a few runs, cut where the host uploads; another grid of attention every 256 positions makes
// others.
constexpr size_t kMostGraphs = 16;
constexpr size_t kMostSeen = 64;

bool is_alike(const Launch& a, const Launch& b) {
  return a.kernel == b.kernel && a.grid.x == b.grid.x && a.grid.y == b.grid.y && a.grid.z == b.grid.z &&
         a.n_threads == b.n_threads;
}

KernelNode node_of(const Launch& launch, void* function, void** pointer) {
  return {function, launch.grid, launch.n_threads, pointer};
}

}  // namespace

bool LaunchGraphs::start(std::span<const Launch> launches, const std::vector<std::byte>& arguments) {
  if (!is_on_ || launches.size() < kLeastLaunches) return false;
  auto found = std::find_if(graphs_.begin(), graphs_.end(), [&](const Graph& graph) {
    return std::equal(launches.begin(), launches.end(), graph.launches.begin(), graph.launches.end(), is_alike);
  });
  if (found == graphs_.end()) {
    // The steps of a prompt come once: no graph is worth its making there.
    if (!has_come_before(launches)) return false;
    if (graphs_.size() == kMostGraphs) {
      const auto oldest = std::min_element(graphs_.begin(), graphs_.end(),
                                           [](const Graph& a, const Graph& b) { return a.last_used < b.last_used; });
      if (oldest->is_running) return false;
      drop(*oldest);
      graphs_.erase(oldest);
    }
    Graph graph;
    const bool is_built = build(launches, arguments, &graph);
    if (!is_built) drop(graph);
    is_on_ = is_built;
    if (!is_built) return false;
    graphs_.push_back(std::move(graph));
    found = graphs_.end() - 1;
  } else if (found->is_running) {
    return false;
  } else if (!change(launches, arguments, *found)) {
    is_on_ = false;
    return false;
  }
  // What a call refuses has not begun; if the device is lost, the launches that follow say so.
  if (driver_.calls().graph_launch(found->executable, stream_) != 0) {
    is_on_ = false;
    return false;
  }
  found->is_running = true;
  found->last_used = ++n_starts_;
  return true;
}

void LaunchGraphs::all_ended() {
  for (Graph& graph : graphs_) graph.is_running = false;
}

void LaunchGraphs::drop_all() noexcept {
  for (Graph& graph : graphs_) drop(graph);
  graphs_.clear();
}

bool LaunchGraphs::has_come_before(std::span<const Launch> launches) {
  uint64_t hash = 14695981039346656037u;  // FNV-1a, by words
  for (const Launch& launch : launches) {
    for (const unsigned word : {static_cast<unsigned>(launch.kernel), launch.grid.x, launch.grid.y, launch.grid.z})
      hash = (hash ^ word) * 1099511628211u;
  }
  if (std::find(seen_.begin(), seen_.end(), hash) != seen_.end()) return true;
  if (seen_.size() < kMostSeen) {
    seen_.push_back(hash);
  } else {
    seen_[next_seen_++ % kMostSeen] = hash;
  }
  return false;
}

bool LaunchGraphs::build(std::span<const Launch> launches, const std::vector<std::byte>& arguments, Graph* graph) {
  graph->launches.assign(launches.begin(), launches.end());
  graph->arguments = arguments;
  if (driver_.calls().graph_create(&graph->graph, 0) != 0) return false;
  for (const Launch& launch : launches) {
    void* node = nullptr;
    void* pointer = graph->arguments.data() + launch.arguments;
    void* const before = graph->nodes.empty() ? nullptr : graph->nodes.back();
    const KernelNode parameters = node_of(launch, functions_[static_cast<size_t>(launch.kernel)], &pointer);
    if (driver_.add_kernel_node(&node, graph->graph, before, parameters) != 0) return false;
    graph->nodes.push_back(node);
  }
  return driver_.calls().graph_instantiate(&graph->executable, graph->graph, 0) == 0;
}

bool LaunchGraphs::change(std::span<const Launch> launches, const std::vector<std::byte>& arguments, Graph& graph) {
  for (size_t i = 0; i < launches.size(); ++i) {
    const size_t offset = launches[i].arguments;  // the same in both: kernels are
    const size_t bytes = kArgumentBytes[static_cast<size_t>(launches[i].kernel)];
    if (std::memcmp(graph.arguments.data() + offset, arguments.data() + offset, bytes) == 0) continue;
    std::memcpy(graph.arguments.data() + offset, arguments.data() + offset, bytes);
    void* pointer = graph.arguments.data() + offset;
    const KernelNode parameters = node_of(launches[i], functions_[static_cast<size_t>(launches[i].kernel)], &pointer);
    if (driver_.set_kernel_node(graph.executable, graph.nodes[i], parameters) != 0) return false;
  }
  return true;
}

void LaunchGraphs::drop(Graph& graph) noexcept {
  if (graph.executable != nullptr) driver_.calls().graph_executable_destroy(graph.executable);
  if (graph.graph != nullptr) driver_.calls().graph_destroy(graph.graph);
  graph.executable = graph.graph = nullptr;
}

}  // namespace gemma::gpu
