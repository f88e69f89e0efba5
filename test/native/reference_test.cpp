// The plain forward pass in float32 gives transformers' logits, and the engine gives those of the plain forward pass on
// every tiny model and every instruction set: prompts of any length and pictures anywhere, for which no golden data is
// needed.
#include <algorithm>
#include <filesystem>

#include "check.h"
#include "engine_helpers.h"
#include "reader/gguf_reader.h"
#include "reference_forward.h"

namespace gemma {
namespace {

using namespace gemma::test;

// The bounds that the engine keeps to transformers' logits (test/api/exactness.test.ts): activations are 8-bit integers
// where weights are quantised.
constexpr double kFloatBound = 3e-4;
constexpr double kQuantisedBound = 0.08;

struct TinyModel {
  std::string path;
  std::shared_ptr<const GgufFile> file;
  ModelConfig config;
  std::shared_ptr<const TensorSource> tensors;
  bool is_float = true;  // every matrix

  explicit TinyModel(const std::string& name) : path(data(name)), file(GgufFile::open(path)) {
    config = read_model_config(*file);
    tensors = decoder_tensors(file);
    for (const Tensor* tensor : tensors->tensors()) is_float = is_float && is_float_type(tensor->type);
  }
};

// Those that give logits: embeddings have golden data of their own (embed_test.cpp).
std::vector<std::string> tiny_models() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(GEMMA_TEST_DATA)) {
    const std::string name = entry.path().filename().string();
    const bool is_model = name.ends_with(".gguf") && !name.starts_with("mmproj");
    if (is_model && !TinyModel(name).config.is_encoder) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<float> random_rows(int n, int dim, int seed) {
  std::vector<float> rows;
  for (uint32_t x = static_cast<uint32_t>(seed); rows.size() < static_cast<size_t>(n * dim);) {
    x = x * 1664525u + 1013904223u;
    rows.push_back(static_cast<float>(x >> 8) / 8388608.0f - 1.0f);
  }
  return rows;
}

TEST("the reference gives transformers' logits") {
  struct {
    const char* golden;
    const char* file;
    std::vector<const char*> names;
  } cases[] = {{"text-a", "text-a-f16.gguf", {"bos", "text", "unicode", "window-1", "window+1", "window+2", "long"}},
               {"text-a-q4_0", "text-a-q4_0.gguf", {"text", "long"}},
               {"text-k-mix", "text-k-mix.gguf", {"text", "long"}},
               {"text-27b", "text-27b-f16.gguf", {"text", "window+1", "long"}},
               {"mm-a", "mm-a-f16.gguf", {"text"}}};
  for (const auto& c : cases) {
    const TinyModel model(c.file);
    for (const char* name : c.names) {
      const Golden golden(c.golden, name);
      const std::vector<float> got = reference_logits(model.config, *model.tensors, golden.tokens);
      CHECK(worst_row(got, golden.logits, model.config.n_vocab) < 1e-5);
    }
  }
}

TEST("the engine gives the reference's logits on every tiny model and instruction set") {
  CHECK(tiny_models().size() >= 5);
  for (const std::string& name : tiny_models()) {
    const TinyModel model(name);
    const std::vector<TokenId> tokens = some_tokens(71, 3);
    const std::vector<float> want = reference_logits(model.config, *model.tensors, tokens);
    for (const std::string& isa : model_isas()) {
      LoadOptions o = options(name);
      o.isa = isa;
      o.n_batch = 29;  // chunks of a prime length
      if (model.is_float) o.kv_type = KvType::kF32;
      const std::vector<float> got = logits_of(*Engine::load(o), tokens);
      CHECK(worst_row(got, want, model.config.n_vocab) < (model.is_float ? kFloatBound : kQuantisedBound));
    }
  }
}

// Next to each other, at the end, and longer than the window of local layers.
TEST("rows of pictures among tokens: the engine gives the reference's logits") {
  const TinyModel model("mm-a-f16.gguf");
  const int dim = model.config.model_dim;
  const std::vector<TokenId> tokens = some_tokens(67, 5);
  const std::vector<PromptImage> images = {
      {5, random_rows(13, dim, 1)}, {18, random_rows(3, dim, 2)}, {51, random_rows(16, dim, 3)}};
  std::vector<ReferenceImage> reference_images;
  for (const PromptImage& image : images) reference_images.push_back({image.first, image.embedding});
  const std::vector<float> want = reference_logits(model.config, *model.tensors, tokens, reference_images);
  LoadOptions o = options("mm-a-f16.gguf");
  o.mmproj_path = data("mmproj-mm-a-f16.gguf");
  o.kv_type = KvType::kF32;
  for (const int n_batch : {17, 64}) {
    o.n_batch = n_batch;
    const std::vector<float> got = logits_of(*Engine::load(o), tokens, true, images);
    CHECK(worst_row(got, want, model.config.n_vocab) < kFloatBound);
  }
}

// The bounds would let nothing through that is wrong in one place.
TEST("one position too many, another scale or another frequency in one layer shows") {
  const TinyModel model("text-a-f16.gguf");
  const std::vector<TokenId> tokens = some_tokens(23, 7);
  const std::vector<float> right = reference_logits(model.config, *model.tensors, tokens);
  const auto error_of = [&](const std::function<void(LayerConfig&)>& change) {
    ModelConfig config = model.config;
    change(config.layers[1]);
    return worst_row(reference_logits(config, *model.tensors, tokens), right, config.n_vocab);
  };
  CHECK(model.config.layers[1].is_local());
  CHECK(error_of([](LayerConfig&) {}) == 0);
  CHECK(error_of([](LayerConfig& layer) { ++layer.n_window; }) > kFloatBound);
  CHECK(error_of([](LayerConfig& layer) { layer.query_scale *= 1.1f; }) > kFloatBound);
  CHECK(error_of([](LayerConfig& layer) { layer.rope_base *= 2; }) > kFloatBound);
  CHECK(!(worst_row(std::vector<float>{1, 2, NAN, 4}, std::vector<float>{1, 2, 3, 4}, 2) < 1));
}

}  // namespace
}  // namespace gemma

TEST_MAIN
