// libFuzzer entry: any bytes as an adapter, which must become one that fits a small model, or end in an Error. The first
// byte says which form the rest has: 0, llama.cpp's GGUF; else the safetensors of a folder of PEFT's, behind bytes that stand
// for its configuration: flags, rank, and how many modules get another rank. Built with GEMMA_FUZZ and run by
// scripts/fuzz.mjs. test/native/hostile_test.cpp calls the same function on mutated files, without clang.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "../native/plain_traits.h"
#include "base/error.h"
#include "gguf/gguf.h"
#include "model/adapter.h"
#include "model/layer_tensors.h"
#include "reader/gguf_adapter.h"
#include "reader/peft_adapter.h"
#include "safetensors/safetensors.h"

namespace {

// Two layers, one local; weights of float32, which DoRA reads.
struct SmallModel {
  SmallModel() {
    gemma::LayerConfig layer;
    layer.ffn_dim = 24;
    layer.n_heads = 2;
    layer.n_kv_heads = 1;
    layer.head_dim = 8;
    layer.query_scale = 1;
    layer.rope_base = 10000;
    layer.rope_factor = 1;
    config.model_dim = 16;
    config.n_vocab = 20;
    config.n_ctx_train = 64;
    config.layers = {layer, layer};
    config.layers[0].n_window = 8;
    for (const gemma::ExpectedTensor& expected : gemma::expected_tensors(config)) {
      size_t n = 1;
      for (const int64_t dim : expected.shape) n *= static_cast<size_t>(dim);
      std::vector<float>& own = values.emplace_back(n);
      for (size_t i = 0; i < n; ++i) own[i] = static_cast<float>(i % 5) - 2;
      gemma::Tensor& tensor = stored.emplace_back();
      tensor.name = expected.name;
      tensor.type = gemma::TensorType::kF32;
      tensor.shape = expected.shape;
      tensor.data = reinterpret_cast<const std::byte*>(own.data());
      tensor.bytes = n * sizeof(float);
      tensors.add(expected.name, tensor);
    }
  }

  gemma::AdapterTarget target() const { return {{{&traits, 0, 2}}, config, 4, tensors, nullptr, nullptr, false}; }

  gemma::test::PlainTraits traits;
  gemma::ModelConfig config;
  std::list<std::vector<float>> values;
  std::list<gemma::Tensor> stored;
  gemma::TensorSource tensors;
};

gemma::PeftSettings settings_of(std::span<const uint8_t> bytes, const gemma::SafetensorsFile& file) {
  const auto byte = [&](size_t i) { return i < bytes.size() ? bytes[i] : uint8_t{0}; };
  gemma::PeftSettings settings;
  settings.dora = (byte(0) & 1) != 0;
  settings.bias = (byte(0) & 2) != 0;
  if ((byte(0) & 4) != 0) settings.saved = {"norm", "lm_head", "embed_tokens", "input_layernorm"};
  if ((byte(0) & 8) != 0) settings.token_ids = {1, 3};
  for (std::string& name : gemma::peft_modules(file)) {
    const bool is_other = settings.modules.size() < byte(2);
    settings.modules.push_back({std::move(name), byte(1) + (is_other ? 1 : 0), is_other ? 1e30f : 0.5f});
  }
  return settings;
}

gemma::AdapterTensors read(std::span<const uint8_t> bytes) {
  constexpr size_t kSettings = 3;
  if (bytes[0] == 0) return gemma::gguf_adapter(gemma::GgufFile::parse(std::as_bytes(bytes.subspan(1))));
  const auto settings = bytes.subspan(1, std::min(kSettings, bytes.size() - 1));
  const auto file = gemma::SafetensorsFile::parse(std::as_bytes(bytes.subspan(1 + settings.size())));
  return gemma::peft_adapter(file, settings_of(settings, *file));
}

}  // namespace

int adapter_fuzz_read = 0;  // inputs that were adapters

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  static const SmallModel model;
  try {
    const gemma::AdapterTensors tensors = read({data, size});
    const uint64_t planned = gemma::Adapter::planned_bytes(tensors, model.target());
    const gemma::Adapter adapter(tensors, model.target(), [] { return false; });
    // What is planned of the shapes is what it takes, and no more than the largest rank of this model's matrices takes.
    if (adapter.info().bytes != planned || planned > (uint64_t{64} << 20)) __builtin_trap();
    for (int layer = 0; layer < model.config.n_layers(); ++layer) {
      const gemma::LowRankWeights* q = adapter.find(layer, &gemma::LayerWeights::attn_q);
      if (q != nullptr && !std::isfinite(q->scale)) __builtin_trap();
    }
    ++adapter_fuzz_read;
  } catch (const gemma::Error&) {
  }
  return 0;
}
