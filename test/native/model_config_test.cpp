// read_model_config: both layouts, all sizes, defaults, and what it refuses; the memory plan against the
// published arithmetic.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <random>

#include "check.h"
#include "gguf_builder.h"
#include "model/cache.h"
#include "model/memory_plan.h"
#include "plain_traits.h"
#include "reader/gguf_reader.h"

using namespace gemma;
using test::GgufBuilder;
using test::tiny_gemma3;
using test::TinyGemma;

namespace {

ModelConfig read(const GgufBuilder& b) {
  const std::vector<std::byte> bytes = b.build();
  return read_model_config(*GgufFile::parse(bytes));
}

ModelConfig read_data(const char* name) {
  return read_model_config(*GgufFile::open(std::string(GEMMA_TEST_DATA) + "/" + name));
}

MemoryPlan plan(const std::shared_ptr<const GgufFile>& file, const ModelConfig& config, const ModelLimits& limits) {
  const test::PlainTraits traits;
  MemoryPlanner planner({{&traits, 0, config.n_layers()}});
  planner.add_model(*decoder_tensors(file), config, limits);
  return planner.plan();
}

void check_invalid(int line, const char* detail, const GgufBuilder& b) {
  test::check_throws(__FILE__, line, ErrorCode::kGgufInvalid, detail, [&] { read(b); });
}
#define CHECK_INVALID(detail, builder) check_invalid(__LINE__, detail, builder)
#define CHECK_UNSUPPORTED(builder) CHECK_THROWS(kUnsupportedModel, "", read(builder))

std::string global_layers(const ModelConfig& c) {
  std::string text;
  for (int i = 0; i < c.n_layers(); ++i) {
    if (!c.layers[static_cast<size_t>(i)].is_local()) text += (text.empty() ? "" : " ") + std::to_string(i);
  }
  return text;
}

// The first layer of a kind, which must be there.
const LayerConfig& first_layer(const ModelConfig& c, bool is_local) {
  return *std::find_if(c.layers.begin(), c.layers.end(),
                       [&](const LayerConfig& l) { return l.is_local() == is_local; });
}
const LayerConfig& local_layer(const ModelConfig& c) {
  return first_layer(c, true);
}
const LayerConfig& global_layer(const ModelConfig& c) {
  return first_layer(c, false);
}

bool close(float a, double b) {
  return std::fabs(a - b) <= 1e-6 * std::fabs(b);
}

// The published shapes with empty tensors would be gigabytes, so their arithmetic is tested on the config alone.
ModelConfig published(int n_layers, int model_dim, int n_heads, int n_kv_heads, int head_dim, int n_window) {
  ModelConfig c;
  c.model_dim = model_dim;
  LayerConfig layer;
  layer.n_heads = n_heads;
  layer.n_kv_heads = n_kv_heads;
  layer.head_dim = head_dim;
  for (int i = 0; i < n_layers; ++i) {
    layer.n_window = (i + 1) % 6 != 0 ? n_window : 0;
    c.layers.push_back(layer);
  }
  return c;
}

}  // namespace

TEST("tiny file: everything read, defaults where keys are absent") {
  TinyGemma size;
  size.n_layers = 7;
  const ModelConfig c = read(tiny_gemma3(size));
  CHECK(c.name == "tiny" && c.n_layers() == 7 && c.model_dim == 48 && c.n_vocab == 291 && c.n_ctx_train == 512);
  CHECK(global_layers(c) == "5" && c.rms_eps == 1e-6f && c.final_softcap == 0 && !c.has_output);
  for (const LayerConfig& layer : c.layers) {
    CHECK(layer.ffn_dim == 80 && layer.n_heads == 4 && layer.n_kv_heads == 2 && layer.head_dim == 16);
    CHECK(layer.q_dim() == 64 && layer.kv_dim() == 32 && layer.query_scale == 0.25f && layer.rope_factor == 1);
    CHECK(layer.rope_base == (layer.is_local() ? 1e4f : 1e6f) && layer.n_window == (layer.is_local() ? 8 : 0));
  }
  CHECK(window_groups(c).of_layer == std::vector<size_t>({0, 0, 0, 0, 0, 1, 0}));
  CHECK(rope_groups(c).first_layer == std::vector<size_t>({0, 5}));
  CHECK(c.widest(&LayerConfig::q_dim) == 64 && c.widest(&LayerConfig::ffn_dim) == 80);
  CHECK(c.size_label == "161K");
  CHECK(read(tiny_gemma3(size).set_string("general.size_label", "9B")).size_label == "9B");
}

TEST("reference files") {
  const ModelConfig a = read_data("text-a-f16.gguf");
  CHECK(a.n_layers() == 7 && a.model_dim == 64 && local_layer(a).head_dim == 32 && local_layer(a).n_window == 8);
  CHECK(global_layer(a).rope_factor == 8 && local_layer(a).rope_factor == 1);
  CHECK(a.n_vocab == 448 && global_layers(a) == "5" && close(local_layer(a).query_scale, 1 / std::sqrt(32.0)));
  CHECK(global_layer(read_data("text-a-q4_0.gguf")).q_dim() == 128);
  CHECK(global_layer(read_data("text-k-mix.gguf")).rope_factor == 1);
  const ModelConfig b = read_data("text-27b-f16.gguf");
  CHECK(b.n_layers() == 62 && global_layers(b) == "5 11 17 23 29 35 41 47 53 59");
  for (const LayerConfig& layer : b.layers) CHECK(close(layer.query_scale, 1 / std::sqrt(32.0 / 4)));
  CHECK(local_layer(read_data("mm-a-f16.gguf")).n_window == 10);
  CHECK_THROWS(kUnsupportedModel, "", read_data("mmproj-mm-a-f16.gguf"));
}

TEST("optional keys") {
  const auto with = [](const std::function<void(GgufBuilder&)>& change) {
    TinyGemma size;
    size.n_layers = 4;
    GgufBuilder b = tiny_gemma3(size);
    change(b);
    return read(b);
  };
  const std::string pattern = "gemma3.attention.sliding_window_pattern";
  CHECK(global_layers(with([&](GgufBuilder& b) { b.set<uint32_t>(pattern, 2); })) == "1 3");
  CHECK(global_layers(with([&](GgufBuilder& b) { b.set<uint32_t>(pattern, 1); })) == "0 1 2 3");
  CHECK(global_layers(with([&](GgufBuilder& b) { b.set_array<bool>(pattern, {true, false, true, true}); })) == "1");
  const ModelConfig c = with([](GgufBuilder& b) {
    b.set("gemma3.rope.freq_base_swa", 5000.0f)
        .set("gemma3.rope.freq_base", 2e6f)
        .set_string("gemma3.rope.scaling.type", "linear");
    b.set("gemma3.rope.scaling.factor", 8.0f).set("gemma3.final_logit_softcapping", 30.0f);
    b.set("gemma3.attention.layer_norm_rms_epsilon", 1e-5f);
  });
  CHECK(local_layer(c).rope_base == 5000 && c.final_softcap == 30 && c.rms_eps == 1e-5f);
  const auto global_with = [&](const std::function<void(GgufBuilder&)>& change) {
    // one global layer
    return global_layer(with([&](GgufBuilder& b) {
      b.set<uint32_t>(pattern, 4);
      change(b);
    }));
  };
  const LayerConfig scaled = global_with([](GgufBuilder& b) {
    b.set("gemma3.rope.freq_base_swa", 5000.0f).set("gemma3.rope.freq_base", 2e6f);
    b.set_string("gemma3.rope.scaling.type", "linear").set("gemma3.rope.scaling.factor", 8.0f);
  });
  CHECK(scaled.rope_base == 2e6f && scaled.rope_factor == 8);
  CHECK(global_with([](GgufBuilder& b) { b.set("gemma3.rope.scaling.factor", 4.0f); }).rope_factor == 4);
  CHECK(global_with([](GgufBuilder& b) {
          b.set_string("gemma3.rope.scaling.type", "none").set("gemma3.rope.scaling.factor", 4.0f);
        }).rope_factor == 1);
  // long context, but no sign of Ollama: the file means what it says
  CHECK(global_with([](GgufBuilder& b) { b.set<uint32_t>("gemma3.context_length", 131072); }).rope_factor == 1);
  // head size from the q norm, epsilon and bases by default
  const ModelConfig d = with([&](GgufBuilder& b) {
    b.set<uint32_t>(pattern, 4)
        .remove("gemma3.attention.key_length")
        .remove("gemma3.attention.value_length")
        .remove("gemma3.rope.freq_base");
    b.remove("gemma3.attention.layer_norm_rms_epsilon");
  });
  CHECK(local_layer(d).head_dim == 16 && d.rms_eps == 1e-6f && global_layer(d).rope_base == 1e6f);
}

TEST("Ollama's layout") {
  TinyGemma size;
  size.n_layers = 6;
  GgufBuilder b = tiny_gemma3(size);
  for (const char* key : {"gemma3.rope.freq_base", "gemma3.attention.layer_norm_rms_epsilon",
                          "gemma3.attention.key_length", "gemma3.attention.value_length"}) {
    b.remove(key);
  }
  b.set<uint32_t>("gemma3.context_length", 131072).set<uint32_t>("gemma3.mm.tokens_per_image", 256);
  b.set<uint32_t>("gemma3.vision.block_count", 27).set("gemma3.final_logit_softcapping", 30.0f);
  b.add_floats("v.patch_embedding.weight", {4, 3}, std::vector<float>(12));
  b.add_floats("mm.mm_soft_emb_norm.weight", {4}, std::vector<float>(4));
  const ModelConfig c = read(b);
  CHECK(global_layer(c).rope_factor == 8 && global_layer(c).rope_base == 1e6f && c.rms_eps == 1e-6f);
  CHECK(local_layer(c).head_dim == 16 && local_layer(c).rope_factor == 1 && c.final_softcap == 0);
  const auto factor = [](const GgufBuilder& changed) { return global_layer(read(changed)).rope_factor; };
  CHECK(factor(GgufBuilder(b).set<uint32_t>("gemma3.context_length", 32768)) == 1);
  CHECK(factor(GgufBuilder(b).set("gemma3.rope.scaling.factor", 2.0f)) == 2);
  const ModelConfig bases =
      read(GgufBuilder(b).set("gemma3.rope.local.freq_base", 7000.0f).set("gemma3.rope.global.freq_base", 3e6f));
  CHECK(local_layer(bases).rope_base == 7000 && global_layer(bases).rope_base == 3e6f);
  const std::vector<float> head(291 * 48);
  CHECK(!c.has_output && read(GgufBuilder(b).add_floats("output.weight", {291, 48}, head)).has_output);
  // an output matrix alone is no sign of it
  GgufBuilder untied = tiny_gemma3().add_floats("output.weight", {291, 48}, head);
  CHECK(read(untied.set("gemma3.final_logit_softcapping", 30.0f)).final_softcap == 30);
  // weights of the vision half are not counted
  const std::vector<std::byte> bytes = b.build();
  const std::vector<std::byte> text_bytes = tiny_gemma3(size).build();
  CHECK(plan(GgufFile::parse(bytes), c, {64, KvType::kF16, 32, false}).weights_bytes ==
        plan(GgufFile::parse(text_bytes), read(tiny_gemma3(size)), {64, KvType::kF16, 32, false}).weights_bytes);
}

TEST("class 14: hyper-parameters") {
  const auto with_u32 = [](const char* key, uint32_t value) {
    return tiny_gemma3().set<uint32_t>(std::string("gemma3.") + key, value);
  };
  const auto with_float = [](const char* key, float value) {
    return tiny_gemma3().set(std::string("gemma3.") + key, value);
  };
  for (const uint32_t n : {0u, 513u, 1u << 31, 0xffffffffu}) CHECK_INVALID("BAD_HPARAM", with_u32("block_count", n));
  for (const char* key :
       {"block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
        "context_length", "attention.sliding_window", "attention.key_length", "attention.value_length"}) {
    for (const uint32_t n : {0u, 1u << 31, 0xffffffffu}) CHECK_INVALID("BAD_HPARAM", with_u32(key, n));
    CHECK_INVALID("BAD_HPARAM", tiny_gemma3().set<int32_t>(std::string("gemma3.") + key, -1));
    CHECK_INVALID("BAD_TYPE", tiny_gemma3().set_string(std::string("gemma3.") + key, "7"));
    CHECK_INVALID("BAD_TYPE", tiny_gemma3().set_array<uint32_t>(std::string("gemma3.") + key, {}));
    CHECK_INVALID("BAD_TYPE", with_float(key, 2.0f));
    if (std::string(key).find("_length") == std::string::npos ||
        std::string(key).find("attention") == std::string::npos) {
      CHECK_INVALID("BAD_HPARAM", tiny_gemma3().remove(std::string("gemma3.") + key));
    }
  }
  CHECK_INVALID("BAD_HPARAM", with_u32("attention.head_count_kv", 3));
  CHECK_INVALID("BAD_HPARAM", with_u32("attention.head_count_kv", 8));
  CHECK_INVALID("BAD_HPARAM", with_u32("attention.key_length", 15));
  CHECK_INVALID("BAD_HPARAM", with_u32("attention.value_length", 32));
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const char* key :
       {"attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.freq_base_swa", "rope.scaling.factor",
        "rope.local.freq_base", "rope.global.freq_base", "final_logit_softcapping"}) {
    for (const float value : {kNan, kInf, -kInf, -1.0f}) CHECK_INVALID("BAD_HPARAM", with_float(key, value));
    CHECK_INVALID("BAD_TYPE", tiny_gemma3().set_string(std::string("gemma3.") + key, "1"));
    if (std::string(key) != "final_logit_softcapping") CHECK_INVALID("BAD_HPARAM", with_float(key, 0.0f));
  }
  CHECK_INVALID("BAD_HPARAM", with_u32("attention.sliding_window_pattern", 0));
  CHECK_INVALID("BAD_HPARAM", tiny_gemma3().set_array<bool>("gemma3.attention.sliding_window_pattern", {true}));
  CHECK_INVALID("BAD_HPARAM", tiny_gemma3().set_array<bool>("gemma3.attention.sliding_window_pattern", {}));
  CHECK_INVALID("BAD_TYPE", tiny_gemma3().set_array<int32_t>("gemma3.attention.sliding_window_pattern", {1, 0}));
}

TEST("an embedding model: what its architecture says, and its keys") {
  const ModelConfig c = read_data("embedding-f16.gguf");
  CHECK(c.is_encoder && c.embeds_eos && !c.has_output && c.n_layers() == 6 && global_layers(c) == "5");
  CHECK(local_layer(c).n_window == 8 && c.n_ctx_train == 2048);
  CHECK(c.has_dense() && c.dense[0].out_dim == 96 && c.embedding_dim() == 64);
  CHECK(!read_data("text-a-f16.gguf").is_encoder && !read_data("text-a-f16.gguf").embeds_eos);
}

TEST("class 16: other models") {
  for (const char* architecture : {"llama", "gemma2", "gemma3n", "clip", "", "gemma3\n"}) {
    CHECK_UNSUPPORTED(tiny_gemma3().set_string("general.architecture", architecture));
  }
  CHECK_UNSUPPORTED(tiny_gemma3().remove("general.architecture"));
  CHECK_UNSUPPORTED(tiny_gemma3().set_string("general.type", "adapter"));
  CHECK_UNSUPPORTED(tiny_gemma3().set_string("tokenizer.ggml.model", "gpt2"));
  CHECK_UNSUPPORTED(tiny_gemma3().set_string("gemma3.rope.scaling.type", "yarn"));
  CHECK_UNSUPPORTED(tiny_gemma3().add_floats("dense.0.weight", {2, 2}, {1, 2, 3, 4}));
  CHECK_INVALID("BAD_TYPE", tiny_gemma3().set<uint32_t>("general.architecture", 3));
  try {
    read(tiny_gemma3().set_string("general.architecture", "llama"));
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find("\"llama\"") != std::string::npos &&
          std::string(e.what()).find("gemma3") != std::string::npos);
  }
}

TEST("relatives of another architecture are named") {
  const auto message = [](const std::string& architecture) -> std::string {
    try {
      read(tiny_gemma3().set_string("general.architecture", architecture));
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  const std::pair<const char*, const char*> relatives[] = {{"gemma", "this is Gemma 1 or CodeGemma,"},
                                                           {"gemma2", "this is Gemma 2,"},
                                                           {"gemma3n", "this is Gemma 3n,"},
                                                           {"gemma4", "this is Gemma 4,"},
                                                           {"gemma4-assistant", "this is Gemma 4,"},
                                                           {"paligemma", "this is PaliGemma,"},
                                                           {"t5gemma", "this is T5Gemma,"},
                                                           {"t5gemma2", "this is T5Gemma 2,"},
                                                           {"recurrent_gemma", "this is RecurrentGemma,"}};
  for (const auto& [architecture, expected] : relatives) {
    CHECK(message(architecture).find(std::string(expected) + " another architecture than Gemma 3") !=
          std::string::npos);
  }
  for (const char* other : {"llama", "gemmaX", "gemma22", ""}) {
    CHECK(message(other).find("this is") == std::string::npos);
  }
}

TEST("class 18: tensors missing, extra, of another shape or type") {
  const GgufBuilder sound = tiny_gemma3();
  for (const GgufBuilder::Tensor& t : sound.tensors) {
    CHECK_INVALID("BAD_TENSOR", GgufBuilder(sound).remove_tensor(t.name));
    if (t.dims.size() != 2) continue;
    GgufBuilder transposed = sound;
    std::swap(transposed.tensor(t.name).dims[0], transposed.tensor(t.name).dims[1]);
    CHECK_INVALID("BAD_TENSOR", transposed);
    GgufBuilder flat = sound;
    flat.tensor(t.name).dims = {t.dims[0] * t.dims[1]};
    CHECK_INVALID("BAD_TENSOR", flat);
  }
  for (const char* extra :
       {"blk.2.attn_norm.weight", "blk.0.attn_q.bias", "foo", "token_embd", "blk.00.attn_norm.weight"}) {
    CHECK_INVALID("BAD_TENSOR", GgufBuilder(sound).add_floats(extra, {2}, {1, 2}));
  }
  CHECK(read(GgufBuilder(sound).add_floats("rope_freqs.weight", {2}, {1, 2})).n_layers() == 2);
  CHECK_INVALID("BAD_TENSOR", GgufBuilder(sound).add_floats("output.weight", {48}, std::vector<float>(48)));
  CHECK_INVALID("BAD_TENSOR", GgufBuilder(sound).set<uint32_t>("gemma3.block_count", 3));
  CHECK_INVALID("BAD_TENSOR", GgufBuilder(sound).set<uint32_t>("gemma3.block_count", 1));

  TinyGemma wide;  // 64: a multiple of 32
  wide.model_dim = 64;
  GgufBuilder b = tiny_gemma3(wide);
  b.tensor("blk.1.attn_norm.weight").type = static_cast<uint32_t>(TensorType::kQ8_0);
  b.tensor("blk.1.attn_norm.weight").data.resize(68);
  CHECK_INVALID("BAD_TENSOR", b);
  for (const TensorType type : {TensorType::kF16, TensorType::kBF16}) {
    b.tensor("blk.1.attn_norm.weight").type = static_cast<uint32_t>(type);
    b.tensor("blk.1.attn_norm.weight").data.resize(128);
    CHECK(read(b).model_dim == 64);
  }
  GgufBuilder::Tensor& q = b.tensor("blk.0.attn_q.weight");
  q.type = static_cast<uint32_t>(TensorType::kMXFP4);
  q.data.resize(64 * 34);
  CHECK(read(b).model_dim == 64);
}

TEST("class 17: a part of a model of another shape") {
  GgufBuilder first = tiny_gemma3();
  TinyGemma size;
  size.ffn_dim = 96;
  GgufBuilder second = tiny_gemma3(size);
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("gemma-config-test-" + std::to_string(std::random_device()()));
  std::filesystem::create_directory(folder);
  const auto write = [&](int index, GgufBuilder b, size_t from, size_t to) {
    b.tensors = {b.tensors.begin() + static_cast<std::ptrdiff_t>(from),
                 b.tensors.begin() + static_cast<std::ptrdiff_t>(to)};
    if (index > 0) b.metadata.clear();
    b.set<uint16_t>("split.no", static_cast<uint16_t>(index)).set<uint16_t>("split.count", 2);
    const std::filesystem::path path = folder / ("m-0000" + std::to_string(index + 1) + "-of-00002.gguf");
    const std::vector<std::byte> bytes = b.build();
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return path.string();
  };
  const size_t n = first.tensors.size();
  const std::string path = write(0, first, 0, 20);
  write(1, first, 20, n);
  CHECK(read_model_config(*GgufFile::open(path)).n_layers() == 2);
  write(1, second, 20, n);
  CHECK_THROWS(kGgufInvalid, "MISSING_SPLIT", read_model_config(*GgufFile::open(path)));
  std::filesystem::remove_all(folder);
}

TEST("memory plan: the cache of the published sizes") {
  const auto pages_of = [](const ModelConfig& c, const ModelLimits& limits) {
    std::vector<KvLayout> layouts;
    return kv_pages(c, limits, 0, c.n_layers(), &layouts);
  };
  // Local layers with their window alone, as it is counted elsewhere.
  const auto mib = [&](const ModelConfig& c, int n_ctx, KvType type = KvType::kF16) {
    const std::vector<KvGroupPages> groups = pages_of(c, {n_ctx, type, 1, false});
    const LayerGroups by_window = window_groups(c);
    double bytes = 0;
    for (size_t g = 0; g < groups.size(); ++g) {
      const int n_window = c.layers[by_window.first_layer[g]].n_window;
      bytes += static_cast<double>(groups[g].page_bytes) * (n_window > 0 ? n_window : n_ctx) / kPagePositions;
    }
    return bytes / (1 << 20);
  };
  const auto kv_bytes = [&](const ModelConfig& c, const ModelLimits& limits) {
    size_t bytes = 0;
    for (const KvGroupPages& pages : pages_of(c, limits)) bytes += pages.max_pages * pages.page_bytes;
    return bytes;
  };
  const ModelConfig c270m = published(18, 640, 4, 1, 256, 512);
  CHECK(mib(c270m, 32768) == 103.5);
  CHECK(mib(published(26, 1152, 4, 1, 256, 512), 32768) == 139);
  CHECK(mib(published(34, 2560, 8, 4, 256, 1024), 32768) == 756);
  CHECK(mib(published(34, 2560, 8, 4, 256, 1024), 131072) == 2676);
  CHECK(mib(published(48, 3840, 16, 8, 256, 1024), 131072) == 8512);
  CHECK(mib(published(62, 5376, 32, 16, 128, 1024), 131072) == 10656);
  CHECK(mib(c270m, 32768, KvType::kF32) == 207);
  CHECK(mib(c270m, 32768, KvType::kQ8_0) == 103.5 * 34 / 64);
  // a context inside the window: every layer holds it, in whole pages
  CHECK(kv_bytes(c270m, {33, KvType::kF16, 512, false}) == 18 * 64 * 1024);
  // the batch stays beside the window until it is through all layers: 1011 positions, which touch up to 33 pages
  CHECK(kv_bytes(c270m, {32768, KvType::kF16, 500, false}) == (15 * 33 * 32 + 3 * 32768) * size_t{1024});
}

TEST("memory plan: weights, scratch, total, wrong arguments") {
  const std::vector<std::byte> bytes = tiny_gemma3().build();
  const auto file = GgufFile::parse(bytes);
  const ModelConfig c = read_model_config(*file);
  const MemoryPlan memory = plan(file, c, {100, KvType::kF32, 32, false});
  uint64_t weights = 0;
  uint64_t matrices = 0;
  for (const Tensor& t : file->tensors()) {
    weights += t.bytes;
    if (t.shape.size() == 2) matrices += t.bytes;
  }
  // Beside the tensors eight frequencies, and as much again up to where the next vector begins.
  CHECK(memory.weights_bytes == weights + 2 * 8 * sizeof(float) && memory.mapped_bytes == matrices);
  CHECK(memory.kv_bytes == 2 * 96 * 2 * 2 * 16 * 4);  // two local layers of 39 positions, which touch three pages
  // Of 32 rows the activations (x, h, q, k, v, attention, gate, up, a rotation), the head's normed rows and its logits
  // (291 of them, with room for 304); on the host a row of logits, and 32 rows of the embedding head.
  CHECK(memory.scratch_bytes == 4 * (32 * (2 * 48 + 64 + 2 * 32 + 64 + 2 * 80 + 16 + 48 + 304) + 291 + 32 * 48));
  CHECK(memory.total_bytes == memory.weights_bytes + memory.kv_bytes + memory.scratch_bytes);
  CHECK_THROWS(kInvalidArgument, "", plan(file, c, {0, KvType::kF16, 32, false}));
  CHECK_THROWS(kInvalidArgument, "", plan(file, c, {32, KvType::kF16, -1, false}));
}

TEST_MAIN
