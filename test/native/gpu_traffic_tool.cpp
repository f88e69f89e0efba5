// Bytes that the kernels of the GPU backend read from device memory for one decoded token, counted by the emulator,
// beside the bytes that there are to read: every weight matrix once and the keys and values of all positions seen.
// Prints a table, and how many kernels that took.
//
//   gpu_traffic_tool MODEL.gguf POSITIONS CHIP...
//   gpu_traffic_tool --check     the model of GEMMA_TEST_MODEL on a few chips: fails when more than 3 % off
#include <bitset>
#include <cstdio>
#include <cstdlib>
#include <unordered_map>

#include "backend/gpu/emulator/emulator.h"
#include "backend/gpu/gpus.h"
#include "base/error.h"
#include "model/forward.h"
#include "reader/gguf_reader.h"

namespace gemma {
namespace {

// Sectors of 32 bytes, each once for a launch: what other blocks have read is in the second-level cache.
class Sectors final : public emulator::TrafficCounter {
 public:
  void read(const void* address, size_t bytes) override {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(address) / kSector;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(address) + bytes - 1) / kSector;
    for (uintptr_t sector = begin; sector <= end; ++sector) {
      auto& region = regions_[sector / kRegion];
      if (!region[sector % kRegion]) {
        region[sector % kRegion] = true;
        total_ += kSector;
      }
    }
  }
  void next_block() override {}
  void next_launch() override {
    regions_.clear();
    ++n_launches_;
  }
  uint64_t total() const { return total_; }
  int n_launches() const { return n_launches_; }

 private:
  static constexpr uintptr_t kSector = 32;
  static constexpr uintptr_t kRegion = 8192;
  std::unordered_map<uintptr_t, std::bitset<kRegion>> regions_;
  uint64_t total_ = 0;
  int n_launches_ = 0;
};

uint64_t weight_bytes(const GgufFile& file) {
  uint64_t bytes = 0;  // the embedding is the output matrix, or one row of it is read
  const bool is_tied = file.find_tensor("output.weight") == nullptr;
  for (const Tensor& tensor : file.tensors()) {
    if (is_tied || tensor.name != "token_embd.weight") bytes += tensor.bytes;
  }
  return bytes;
}

// Returns by what fraction more is read than there is.
double measure(const std::shared_ptr<const GgufFile>& file, int n_positions, const std::string& chip) {
  const ModelConfig config = read_model_config(*file);
  std::unique_ptr<Backend> backend;
  for (const gpu::GpuKind& kind : gpu::gpu_kinds()) {
    for (const gpu::Gpu& gpu : kind.list().gpus) {
      if (kind.is_emulated && gpu.info.chip == chip) backend = kind.open(gpu.info.index, 2);
    }
  }
  if (backend == nullptr) throw Error(ErrorCode::kBackendUnavailable, "DEVICE", "no emulated chip " + chip);
  const Stage all[] = {{backend.get(), 0, config.n_layers()}};
  Model model(all, config, load_weights(all, decoder_tensors(file), config),
              ModelLimits{n_positions + 1, KvType::kF16, n_positions, false});
  KvSequence kv(model.kv_pool());
  const auto step = [&](int begin, int n) {
    std::vector<int32_t> tokens(static_cast<size_t>(n), 1000);
    const WantedRow last{n - 1, {}};
    const SequenceInput input{&kv, begin, tokens, {&last, 1}, {}};
    model.forward(std::span(&input, 1), [] { return false; }, [](size_t, int, const Logits&) {});
  };
  step(0, n_positions);
  Sectors sectors;
  emulator::set_traffic_counter(&sectors);
  step(n_positions, 1);
  emulator::set_traffic_counter(nullptr);
  uint64_t cache = 0;
  for (const LayerConfig& layer : config.layers) {
    const int seen = layer.is_local() ? std::min(layer.n_window, n_positions + 1) : n_positions + 1;
    cache += uint64_t{4} * static_cast<uint64_t>(layer.kv_dim()) * static_cast<uint64_t>(seen);
  }
  const uint64_t weights = weight_bytes(*file);
  const double more = static_cast<double>(sectors.total()) / static_cast<double>(weights + cache) - 1;
  std::printf("| %s | %d | %.2f | %.2f | %.2f | %+.1f %% | %d |\n", chip.c_str(), n_positions,
              static_cast<double>(weights) / 1e6, static_cast<double>(cache) / 1e6,
              static_cast<double>(sectors.total()) / 1e6, 100.0 * more, sectors.n_launches());
  std::fflush(stdout);
  return more;
}

}  // namespace
}  // namespace gemma

int main(int argc, char** argv) {
  const bool is_check = argc == 2 && std::string(argv[1]) == "--check";
  if (!is_check && argc < 4) {
    std::fprintf(stderr, "usage: gpu_traffic_tool --check | MODEL.gguf POSITIONS CHIP...\n");
    return 2;
  }
  try {
    const char* path = is_check ? std::getenv("GEMMA_TEST_MODEL") : argv[1];
    if (path == nullptr) {
      std::fprintf(stderr, "GEMMA_TEST_MODEL: expected the path of a model\n");
      return 2;
    }
    const int n_positions = is_check ? 40 : std::atoi(argv[2]);
    std::vector<std::string> chips = {"sm_80", "gfx90a"};
    if (!is_check) chips.assign(argv + 3, argv + argc);
    const auto file = gemma::GgufFile::open(path, {});
    std::printf("| chip | positions | weights, MB | cache, MB | read, MB | more than these | launches |\n");
    std::printf("| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    int n_passed = 0;
    for (const std::string& chip : chips) {
      const double more = gemma::measure(file, n_positions, chip);
      if (more >= -0.03 && more <= 0.03) ++n_passed;
    }
    const int n_failed = static_cast<int>(chips.size()) - n_passed;
    if (is_check) std::printf("%d passed, %d failed\n", n_passed, n_failed);
    return is_check && n_failed > 0 ? 1 : 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
