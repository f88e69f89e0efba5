// Models whose layers lie on several emulated devices, or on these and the CPU, and how they are laid there.
#include <cstdlib>
#include <filesystem>
#include <map>
#include <numeric>
#include <random>

#include "backend/gpu/emulator/emulated_device.h"
#include "backend/gpu/gpu_traits.h"
#include "check.h"
#include "engine_helpers.h"
#include "model/forward.h"
#include "model/layer_tensors.h"
#include "model/memory_plan.h"
#include "model/placement.h"
#include "model/vision.h"
#include "reader/gguf_reader.h"
#include "runtime/quantize_file.h"

namespace gemma {
namespace {

using namespace gemma::test;

constexpr const char* kTwo = "emulated:sm_80,emulated:gfx1100";

// Memory of every emulated device while it lives.
struct EmulatedBytes {
  explicit EmulatedBytes(uint64_t bytes) { setenv("GEMMA_EMULATED_BYTES", std::to_string(bytes).c_str(), 1); }
  ~EmulatedBytes() { unsetenv("GEMMA_EMULATED_BYTES"); }
  EmulatedBytes(const EmulatedBytes&) = delete;
  EmulatedBytes& operator=(const EmulatedBytes&) = delete;
};

LoadOptions on(const std::string& device, int n_gpu_layers, const std::string& file) {
  LoadOptions o = options(file);
  o.device = device;
  o.n_gpu_layers = n_gpu_layers;
  return o;
}

// A device whose memory is counted.
class CountedDevice final : public gpu::Device {
 public:
  CountedDevice(std::unique_ptr<gpu::Device> device, uint64_t* live_bytes)
      : device_(std::move(device)), live_bytes_(live_bytes) {}

  const gpu::DeviceInfo& info() const override { return device_->info(); }
  uint64_t free_bytes() const override { return device_->free_bytes(); }
  void* allocate(size_t bytes) override {
    void* memory = device_->allocate(bytes);
    *live_bytes_ += sizes_[memory] = bytes;
    return memory;
  }
  void free(void* memory) noexcept override {
    const auto size = sizes_.find(memory);
    *live_bytes_ -= size->second;
    sizes_.erase(size);
    device_->free(memory);
  }
  void upload(void* dst, const void* src, size_t bytes) override { device_->upload(dst, src, bytes); }
  void download(void* dst, const void* src, size_t bytes) override { device_->download(dst, src, bytes); }
  void copy(void* dst, const void* src, size_t bytes) override { device_->copy(dst, src, bytes); }
  void fill(void* dst, uint8_t value, size_t bytes) override { device_->fill(dst, value, bytes); }
  void launch(gpu::Kernel kernel, gpu::Grid grid, unsigned n_threads, const void* arguments) override {
    device_->launch(kernel, grid, n_threads, arguments);
  }
  void synchronize() override { device_->synchronize(); }

 private:
  std::unique_ptr<gpu::Device> device_;
  uint64_t* live_bytes_;
  std::map<void*, size_t> sizes_;
};

// Ranges as text: "cpu 0-2, 0 2-4, 1 4-6".
std::string text(const std::vector<LayerRange>& ranges) {
  std::string all;
  for (const LayerRange& r : ranges) {
    all += (all.empty() ? "" : ", ") + (r.gpu < 0 ? std::string("cpu") : std::to_string(r.gpu)) + " " +
           std::to_string(r.first_layer) + "-" + std::to_string(r.end_layer);
  }
  return all;
}

TEST("layers on two devices, and on a device and the CPU, agree with transformers'") {
  const struct {
    std::string device;
    int n_gpu_layers;
    std::string shown;
  } placements[] = {{"emulated:sm_80", 2, "cpu + emulated:sm_80"},
                    {"emulated:gfx90a", 1, "cpu + emulated:gfx90a"},
                    {kTwo, 1000, "emulated:sm_80 + emulated:gfx1100"},
                    {kTwo, 4, "cpu + emulated:sm_80 + emulated:gfx1100"},
                    {kTwo, 0, "cpu"}};
  for (const auto& [device, n_gpu_layers, shown] : placements) {
    LoadOptions o = on(device, n_gpu_layers, "text-a-f16.gguf");
    o.kv_type = KvType::kF32;
    const std::shared_ptr<Engine> engine = Engine::load(o);
    CHECK(engine->info().device == shown);
    CHECK(engine->info().n_gpu_layers == std::min(n_gpu_layers, engine->config().n_layers()));
    for (const char* c : {"text", "window+1", "long"}) {
      const Golden golden("text-a", c);
      const std::vector<float> got = logits_of(*engine, golden.tokens);
      CHECK(normalised_error(got, golden.logits) < 3e-4);
    }
  }
}

TEST("weights that are quantised while they are loaded: a split model of the quantised file's, to the bit") {
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("gemma-split-" + std::to_string(std::random_device()()) + ".gguf");
  QuantizeOptions quantize;
  quantize.path = data("text-a-f16.gguf");
  quantize.output = file.string();
  quantize.type = "q8_0";
  quantize_file(quantize);
  const std::vector<TokenId> tokens = some_tokens(40);
  for (const auto& [device, n_gpu_layers] : {std::pair(kTwo, 1000), std::pair("emulated:sm_80", 3)}) {
    LoadOptions o = on(device, n_gpu_layers, "text-a-f16.gguf");
    o.quantize = quantize.type;
    const std::shared_ptr<Engine> engine = Engine::load(o);
    o.quantize.clear();
    o.path = quantize.output;
    const std::shared_ptr<Engine> of_file = Engine::load(o);
    CHECK(same_bits(logits_of(*engine, tokens), logits_of(*of_file, tokens)));
    // What lies on the GPU is kept in memory beside. What the CPU multiplies with is there once.
    const std::shared_ptr<const GgufFile> gguf = GgufFile::open(quantize.output, {.headers_only = true});
    uint64_t beside = 0;
    for (const Tensor& tensor : gguf->tensors()) {
      const bool is_on_cpu = n_gpu_layers == 3 && (tensor.name == kTokenEmbd || tensor.name < "blk.4");
      if (tensor.shape.size() == 1 || !is_on_cpu) beside += tensor.bytes;
    }
    CHECK(engine->info().memory.weights_bytes == of_file->info().memory.weights_bytes + beside);
  }
  std::filesystem::remove(file);
}

TEST("tokens of a split model do not depend on company or on how the prompt is cut") {
  LoadOptions o = on(kTwo, 3, "text-a-q4_0.gguf");
  const std::vector<TokenId> tokens = some_tokens(83);
  const std::shared_ptr<Engine> engine = Engine::load(o);
  const std::vector<float> want = logits_of(*engine, tokens);
  o.n_batch = 7;
  CHECK(same_bits(logits_of(*Engine::load(o), tokens), want));
  const auto lonely = start(*engine, sampled(some_tokens(40, 5), 20, 17));
  lonely->ended.wait();
  const auto other = start(*engine, sampled(some_tokens(50, 3), 30, 2));
  const auto again = start(*engine, sampled(some_tokens(40, 5), 20, 17));
  again->ended.wait();
  other->ended.wait();
  CHECK(again->tokens == lonely->tokens && lonely->tokens.size() == 20);
}

TEST("what is kept, saved and restored of a split model: the same bits, prompts computed as prompts") {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("gemma-split-" + std::to_string(std::random_device()()))).string();
  // Where prompts are computed apart, nothing is kept of an answer.
  for (const char* file : {"text-a-f16.gguf", "text-a-q4_0.gguf"}) {
    LoadOptions o = on(kTwo, 4, file);
    o.kv_type = KvType::kQ8_0;
    const std::shared_ptr<Engine> plain = Engine::load(o);
    CHECK(plain->info().n_gpu_layers == 4);
    o.prefix_cache_bytes = 16 << 20;
    const std::shared_ptr<Engine> engine = Engine::load(o);
    std::vector<TokenId> tokens = some_tokens(75);
    const auto answer = start(*engine, greedy(tokens, 6));
    answer->ended.wait();
    tokens.insert(tokens.end(), answer->tokens.begin(), answer->tokens.end());
    tokens.push_back(20);
    const std::vector<float> want = logits_of(*plain, tokens, false);
    CHECK(same_bits(logits_of(*engine, tokens, false), want));
    CHECK(engine->stats().cached_prompt_tokens >= 75);
    const SavedState saved = engine->save_state({path, tokens, {}, "split", {}});
    CHECK(saved.n_positions >= 75);
    const std::shared_ptr<Engine> second = Engine::load(o);
    CHECK(second->restore_state(path).n_positions == saved.n_positions);
    CHECK(same_bits(logits_of(*second, tokens, false), want));
    CHECK(second->stats().cached_prompt_tokens >= 75);
    o.n_gpu_layers = 3;  // other layers in the CPU's arithmetic
    CHECK(Engine::load(o)->restore_state(path).n_positions == 0);
  }
  std::filesystem::remove(path);
}

TEST("auto: as few devices as hold the model, then the CPU") {
  const std::string file = "text-a-f16.gguf";
  const auto device_with = [&](uint64_t bytes, const std::string& device) {
    const EmulatedBytes memory(bytes);
    LoadOptions o = on(device, kAutoLayers, file);
    o.n_ctx = 64;
    o.n_batch = 64;
    const std::shared_ptr<Engine> engine = Engine::load(o);
    CHECK(!logits_of(*engine, some_tokens(20)).empty());
    return engine->info().device;
  };
  CHECK(device_with(uint64_t{1} << 32, kTwo) == "emulated:sm_80");
  CHECK_THROWS(kOutOfMemory, "DEVICE_MEMORY", device_with(1000, kTwo));
}

TEST("layers are placed by the memory they need") {
  LayerCosts costs;
  costs.layers.assign(6, 100);
  costs.embedding = 1000;
  costs.output = 1000;
  costs.is_tied = true;
  costs.scratch = 50;
  const auto place = [&](std::vector<uint64_t> free_bytes, int n = kAutoLayers, uint64_t other = 0) {
    for (uint64_t& bytes : free_bytes) {  // an eighth is kept free
      uint64_t all = bytes;
      while (all - all / 8 < bytes) ++all;
      bytes = all;
    }
    const std::vector<LayerRange> ranges = place_layers(costs, free_bytes, n, other);
    int end = 0;
    for (const LayerRange& range : ranges) {
      CHECK(range.first_layer == end && range.end_layer > end);
      end = range.end_layer;
    }
    CHECK(end == 6);
    return text(ranges);
  };
  CHECK(place({}) == "cpu 0-6");
  CHECK(place({1650}) == "0 0-6");
  CHECK(place({1649}) == "cpu 0-1, 0 1-6");
  CHECK(place({1150}) == "cpu 0-5, 0 5-6");
  CHECK(place({1149}) == "cpu 0-6");
  CHECK(place({1650}, kAutoLayers, 1) == "cpu 0-1, 0 1-6");
  CHECK(place({1650, 1650}) == "0 0-6");
  CHECK(place({1400, 1400}) == "0 0-3, 1 3-6");
  CHECK(place({1500, 1250}) == "0 0-4, 1 4-6");
  CHECK(place({400, 1250}) == "cpu 0-1, 0 1-4, 1 4-6");  // no room for the embedding
  CHECK(place({1250, 400}) == "cpu 0-4, 0 4-6");         // the second holds no output matrix
  costs.is_tied = false;
  CHECK(place({1650}) == "cpu 0-1, 0 1-6");
  CHECK(place({2650}) == "0 0-6");
  CHECK(place({10, 10}, 6) == "0 0-3, 1 3-6");
  CHECK(place({30, 10}, 4) == "cpu 0-2, 0 2-5, 1 5-6");
  CHECK(place({10}, 100) == "0 0-6");
}

TEST("what a GPU is planned to hold is what it holds, with a vision encoder and without") {
  const auto file = GgufFile::open(data("mm-a-f16.gguf"));
  const auto mmproj = GgufFile::open(data("mmproj-mm-a-f16.gguf"));
  const ModelConfig config = read_model_config(*file);
  const VisionConfig vision = read_vision_config(*mmproj, config.model_dim);
  const auto tensors = decoder_tensors(file);
  for (const bool sees : {false, true}) {
    const ModelLimits limits{512, KvType::kF16, 64, true};
    MemoryPlanner planner({{&gpu::gpu_traits(), 0, config.n_layers()}});
    planner.add_model(*tensors, config, limits);
    if (sees) planner.add_vision(*vision_tensors(mmproj, vision), vision, Arithmetic::kFast);
    uint64_t live_bytes = 0;
    const std::unique_ptr<Backend> backend =
        gpu::make_gpu_backend(std::make_unique<CountedDevice>(gpu::make_emulated_device("", 2), &live_bytes), 2);
    const Stage all[] = {{backend.get(), 0, config.n_layers()}};
    Model model(all, config, load_weights(all, tensors, config), limits);
    VisionEncoder encoder(*backend, vision_tensors(mmproj, vision), vision, Arithmetic::kFast);
    if (sees) {
      const size_t n_images = static_cast<size_t>(vision_images_per_pass(vision));
      const size_t side = static_cast<size_t>(vision.image_size);
      const std::vector<uint8_t> pixels(n_images * side * side * 3);
      encoder.start(pixels, static_cast<int>(n_images));
      for (int i = 0; i <= vision.n_layers; ++i) encoder.advance([] { return false; });
    }
    KvSequence kv(model.kv_pool());
    const std::vector<TokenId> tokens = some_tokens(64);
    std::vector<WantedRow> wanted;
    for (int i = 0; i < 64; ++i) wanted.push_back({i, {1, {}, {}, {}}});
    const SequenceInput input{&kv, 512 - 64, tokens, wanted, {}, true};
    model.forward({&input, 1}, [] { return false; }, [](size_t, int, const Logits&) {});
    const uint64_t on_host = sizeof(float) * (host_logits_floats(config) + host_pooled_floats(config));
    const double planned = static_cast<double>(planner.plan().total_bytes - on_host);
    const double ratio = planned / static_cast<double>(live_bytes);
    if (!(ratio > 0.98 && ratio < 1.02)) fail(__FILE__, __LINE__, "planned / allocated: " + std::to_string(ratio));
  }
}

}  // namespace
}  // namespace gemma

TEST_MAIN
