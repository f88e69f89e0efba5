// Layers need not be alike: a model made by hand, whose layers differ in every number of their configuration, computes
// what the plain forward pass computes, on one backend and on several.
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "engine_helpers.h"
#include "model/forward.h"
#include "model/layer_tensors.h"
#include "reference_forward.h"

using namespace gemma;

namespace {

constexpr int kTokens = 65;

LayerConfig layer(int n_heads, int n_kv_heads, int head_dim, int ffn_dim, int n_window, float base, float factor) {
  LayerConfig c;
  c.n_heads = n_heads;
  c.n_kv_heads = n_kv_heads;
  c.head_dim = head_dim;
  c.ffn_dim = ffn_dim;
  c.n_window = n_window;
  c.query_scale = 1.0f / std::sqrt(static_cast<float>(head_dim + n_heads));
  c.rope_base = base;
  c.rope_factor = factor;
  return c;
}

ModelConfig unlike_layers() {
  ModelConfig c;
  c.model_dim = 48;
  c.n_vocab = 70;
  c.n_ctx_train = 512;
  c.has_output = true;
  c.layers = {layer(2, 1, 16, 80, 12, 1e4f, 1.0f), layer(6, 2, 32, 16, 0, 1e6f, 8.0f),
              layer(4, 4, 8, 144, 33, 1e4f, 2.0f), layer(3, 1, 64, 48, 12, 1e4f, 1.0f),
              layer(8, 2, 32, 64, 0, 1e6f, 8.0f)};
  return c;
}

// Random float tensors for a model, in memory of their own.
class RandomTensors {
 public:
  explicit RandomTensors(const ModelConfig& config) : source_(std::make_shared<TensorSource>()) {
    std::mt19937 random(7);
    for (const ExpectedTensor& expected : expected_tensors(config)) {
      size_t n = 1;
      for (const int64_t length : expected.shape) n *= static_cast<size_t>(length);
      Stored& stored = *all_.emplace_back(std::make_unique<Stored>());
      std::normal_distribution<float> normal(expected.is_vector() ? 1.0f : 0.0f, 0.3f);
      for (size_t i = 0; i < n; ++i) stored.values.push_back(normal(random));
      stored.tensor = {expected.name, TensorType::kF32, expected.shape,
                       reinterpret_cast<const std::byte*>(stored.values.data()), n * sizeof(float)};
      source_->add(expected.name, stored.tensor);
    }
    check_tensors(*source_, expected_tensors(config), "this model");
  }
  std::shared_ptr<const TensorSource> source() const { return source_; }

 private:
  struct Stored {
    Tensor tensor;
    std::vector<float> values;
  };
  std::vector<std::unique_ptr<Stored>> all_;
  std::shared_ptr<TensorSource> source_;
};

// Logits of all positions: of a prompt in two steps, and of tokens that come one by one. ends: of the stages.
std::vector<float> run(const ModelConfig& config, const std::shared_ptr<const TensorSource>& tensors,
                       const std::vector<int>& ends, const std::vector<int32_t>& tokens) {
  std::vector<std::unique_ptr<Backend>> backends;
  std::vector<Stage> stages;
  for (const int end : ends) {
    backends.push_back(make_cpu_backend("", 2));
    stages.push_back({backends.back().get(), stages.empty() ? 0 : stages.back().end_layer, end});
  }
  Model model(stages, config, load_weights(stages, tensors, config), ModelLimits{kTokens, KvType::kF32, 64, false});
  KvSequence kv(model.kv_pool());
  std::vector<float> all;
  const auto step = [&](int begin, int n) {
    std::vector<WantedRow> wanted;
    for (int i = 0; i < n; ++i) wanted.push_back({i, {}});
    const SequenceInput input{
        &kv, begin, std::span(tokens).subspan(static_cast<size_t>(begin), wanted.size()), wanted, {}};
    CHECK(model.forward(
        std::span(&input, 1), [] { return false; },
        [&](size_t, int, const Logits& logits) { all.insert(all.end(), logits.values.begin(), logits.values.end()); }));
    kv.trim(begin + n);
  };
  step(0, 37);
  step(37, 23);
  for (int i = 60; i < kTokens; ++i) step(i, 1);
  return all;
}

}  // namespace

TEST("layers of unlike heads, widths, windows, scales and rotations") {
  const ModelConfig config = unlike_layers();
  CHECK(window_groups(config).of_layer == std::vector<size_t>({0, 1, 2, 0, 1}));
  CHECK(rope_groups(config).of_layer == std::vector<size_t>({0, 1, 2, 3, 1}));
  const RandomTensors tensors(config);
  std::vector<int32_t> tokens;
  for (int i = 0; i < kTokens; ++i) tokens.push_back(i * 29 % config.n_vocab);
  const std::vector<float> want = test::reference_logits(config, *tensors.source(), tokens);
  const std::vector<float> got = run(config, tensors.source(), {5}, tokens);
  CHECK(got.size() == want.size() && test::normalised_error(got, want) < 1e-4);
  for (const std::vector<int>& ends : {std::vector<int>{1, 5}, {2, 3, 5}})
    CHECK(run(config, tensors.source(), ends, tokens) == got);

  // What one layer's entry says changes the result, in the engine as in the plain forward pass.
  for (size_t i = 0; i < config.layers.size(); ++i) {
    std::vector<ModelConfig> changed(4, config);
    changed[0].layers[i].n_window = 5;
    changed[1].layers[i].query_scale *= 3;
    changed[2].layers[i].rope_base = 50;
    changed[3].layers[i].rope_factor = 4;
    for (const ModelConfig& other : changed) {
      const std::vector<float> other_want = test::reference_logits(other, *tensors.source(), tokens);
      CHECK(test::normalised_error(want, other_want) > 1e-3);
      CHECK(test::normalised_error(run(other, tensors.source(), {5}, tokens), other_want) < 1e-4);
    }
  }
}

TEST_MAIN
