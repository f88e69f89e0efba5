// The vision encoder: what it reads of files and refuses, and its embeddings against transformers', against itself in
// other company, and in int8 against float32.
#include "model/vision.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>

#include "base/half.h"
#include "check.h"
#include "engine_helpers.h"
#include "gguf_builder.h"
#include "model/memory_plan.h"
#include "plain_traits.h"
#include "quant/dequantize.h"
#include "reader/gguf_reader.h"

namespace gemma {
namespace {

using namespace gemma::test;

constexpr const char* kMmproj = "mmproj-mm-a-f16.gguf";

// A file in memory, with the bytes it is parsed from.
struct Parsed {
  std::shared_ptr<const std::vector<std::byte>> bytes;
  std::shared_ptr<const GgufFile> file;
};
Parsed parse(const GgufBuilder& b) {
  Parsed parsed;
  parsed.bytes = std::make_shared<const std::vector<std::byte>>(b.build());
  parsed.file = GgufFile::parse(*parsed.bytes);
  return parsed;
}

GgufBuilder reference() {
  return GgufBuilder(*GgufFile::open(data(kMmproj)));
}

// One backend of each instruction set for all tests.
Backend& backend_of(const std::string& isa) {
  static std::map<std::string, std::unique_ptr<Backend>> all;
  std::unique_ptr<Backend>& backend = all[isa];
  if (backend == nullptr) backend = make_cpu_backend(isa, 2);
  return *backend;
}

std::vector<float> encode(Backend& backend, const std::shared_ptr<const GgufFile>& file, int text_dim,
                          std::span<const uint8_t> pixels, Arithmetic arithmetic) {
  const VisionConfig config = read_vision_config(*file, text_dim);
  VisionEncoder encoder(backend, vision_tensors(file, config), config, arithmetic);
  const size_t image = static_cast<size_t>(config.image_size) * static_cast<size_t>(config.image_size) * 3;
  encoder.start(pixels, static_cast<int>(pixels.size() / image));
  double before = 0;
  while (encoder.advance([] { return false; })) {
    CHECK(encoder.progress() > before && encoder.progress() < 1);
    before = encoder.progress();
  }
  CHECK(encoder.progress() == 1);
  std::vector<float> out = encoder.take();
  CHECK(out.size() ==
        pixels.size() / image * static_cast<size_t>(config.n_tokens) * static_cast<size_t>(config.text_dim));
  return out;
}

// Levels of a golden case, [n, 3, size, size], as the encoder takes them, [n, size, size, 3].
std::vector<uint8_t> golden_pixels(const GoldenFile& golden, const std::string& name) {
  const GoldenTensor& t = golden.at(name + ".pixel_levels");
  const std::vector<uint8_t> planes = t.as<uint8_t>();
  const size_t area = static_cast<size_t>(t.shape[2] * t.shape[3]);
  std::vector<uint8_t> pixels(planes.size());
  for (size_t i = 0; i < planes.size(); ++i) pixels[(i / (3 * area) * area + i % area) * 3 + i / area % 3] = planes[i];
  return pixels;
}

double relative_error(std::span<const float> got, std::span<const float> want) {
  CHECK(got.size() == want.size() && !want.empty());
  double error = 0;
  double size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - static_cast<double>(want[i]), 2);
    size += std::pow(static_cast<double>(want[i]), 2);
  }
  return std::sqrt(error / size);
}

// The least cosine of any row.
double least_cosine(std::span<const float> got, std::span<const float> want, size_t dim) {
  CHECK(got.size() == want.size() && !want.empty());
  double least = 1;
  for (size_t row = 0; row < want.size(); row += dim) {
    double ab = 0, aa = 0, bb = 0;
    for (size_t j = row; j < row + dim; ++j) {
      ab += static_cast<double>(got[j]) * static_cast<double>(want[j]);
      aa += static_cast<double>(got[j]) * static_cast<double>(got[j]);
      bb += static_cast<double>(want[j]) * static_cast<double>(want[j]);
    }
    const double cosine = ab / std::sqrt(aa * bb);
    if (!(cosine >= least)) least = cosine;  // NaN stays
  }
  return least;
}

void each_isa(const std::function<void(Backend&)>& f) {
  for (const std::string& isa : model_isas()) f(backend_of(isa));
}

const std::vector<std::string> kCases = {"img-square", "img-photo", "img-two", "img-wide-pas"};

TEST("reference file: what it says") {
  const auto file = GgufFile::open(data(kMmproj));
  const VisionConfig c = read_vision_config(*file, 64);
  CHECK(c.image_size == 112 && c.patch_size == 14 && c.n_side == 8 && c.n_patches == 64 && c.n_pool == 2);
  CHECK(c.n_tokens == 16 && c.n_layers == 2 && c.model_dim == 144 && c.ffn_dim == 200 && c.n_heads == 2);
  CHECK(c.head_dim == 72 && c.text_dim == 64 && c.layer_norm_eps == 1e-6f && c.image_mean[2] == 0.5f);
  CHECK(!has_vision(*file) && !has_vision(*GgufFile::open(data("mm-a-f16.gguf"))));
  CHECK_THROWS(kUnsupportedModel, "", read_vision_config(*GgufFile::open(data("mm-a-f16.gguf")), 64));
}

TEST("embeddings of every instruction set agree with transformers'") {
  const auto file = GgufFile::open(data(kMmproj));
  const GoldenFile golden = read_safetensors(data("mm-a.safetensors"));
  each_isa([&](Backend& backend) {
    for (const std::string& name : kCases) {
      const std::vector<float> want = golden.at(name + ".image_embeds").as<float>();
      const std::vector<uint8_t> pixels = golden_pixels(golden, name);
      const std::vector<float> exact = encode(backend, file, 64, pixels, Arithmetic::kExact);
      CHECK(relative_error(exact, want) < 1e-5);
      // 144 wide: no whole blocks, so only attention may be of 8 bits.
      CHECK(least_cosine(encode(backend, file, 64, pixels, Arithmetic::kFast), want, 64) > 0.999);
    }
  });
}

// The file with its matrices in another type.
GgufBuilder with_type(GgufBuilder b, TensorType type, const std::function<bool(const std::string&)>& wanted) {
  for (GgufBuilder::Tensor& t : b.tensors) {
    const TypeTraits& to = type_traits(type);
    if (t.dims.size() < 2 || !wanted(t.name) || t.dims[0] % to.block_elems != 0) continue;
    int64_t n = 1;
    for (const int64_t dim : t.dims) n *= dim;
    std::vector<float> values(static_cast<size_t>(n));
    dequantize_row(static_cast<TensorType>(t.type), t.data.data(), values.data(), n);
    ByteWriter w;
    std::vector<std::byte> blocks(row_bytes(TensorType::kQ8_0, n / 32 * 32));
    if (type == TensorType::kQ8_0) quantize_row_q8_0(values.data(), blocks.data(), n);
    for (const float value : values) {
      if (type == TensorType::kF32) w.put(value);
      if (type == TensorType::kF16) w.put(f32_to_f16(value));
      if (type == TensorType::kBF16) w.put(static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16));
    }
    t.type = static_cast<uint32_t>(type);
    t.data = type == TensorType::kQ8_0 ? blocks : w.bytes();
  }
  return b;
}

bool any_name(const std::string&) {
  return true;
}

GgufBuilder with_swapped_names(GgufBuilder b) {
  for (GgufBuilder::Tensor& t : b.tensors) {
    const size_t up = t.name.find("ffn_up");
    const size_t down = t.name.find("ffn_down");
    if (up != std::string::npos) t.name.replace(up, 6, "ffn_down");
    if (down != std::string::npos) t.name.replace(down, 8, "ffn_up");
  }
  return b;
}

// Text and vision in one file, as Ollama writes it.
GgufBuilder ollama_file(const GgufBuilder& text, const GgufBuilder& mmproj, int n_tokens) {
  GgufBuilder b = text;
  for (const GgufBuilder::Metadata& m : mmproj.metadata) {
    const std::string prefix = "clip.vision.";
    if (!m.key.starts_with(prefix)) continue;
    const std::string key = m.key.substr(prefix.size());
    if (key == "image_mean" || key == "image_std" || key.starts_with("projec")) continue;
    b.metadata.push_back({"gemma3.vision." + key, m.type, m.value});
  }
  b.set<uint32_t>("gemma3.vision.num_channels", 3);
  b.set<uint32_t>("gemma3.mm.tokens_per_image", static_cast<uint32_t>(n_tokens));
  const std::pair<const char*, const char*> names[] = {
      {"v.patch_embd.", "v.patch_embedding."},
      {"v.position_embd.", "v.position_embedding."},
      {"v.post_ln.", "v.post_layernorm."},
      {"mm.soft_emb_norm.", "mm.mm_soft_emb_norm."},
      {"mm.input_projection.", "mm.mm_input_projection."},
      {".ln1.", ".layer_norm1."},
      {".ln2.", ".layer_norm2."},
      {".attn_out.", ".attn_output."},
      {".ffn_up.", ".mlp.fc1."},
      {".ffn_down.", ".mlp.fc2."},
  };
  for (GgufBuilder::Tensor t : mmproj.tensors) {
    for (const auto& [from, to] : names) {
      const size_t at = t.name.find(from);
      if (at != std::string::npos) t.name.replace(at, std::strlen(from), to);
    }
    b.tensors.push_back(std::move(t));
  }
  return b;
}

TEST("the same weights in other types, under swapped names and in Ollama's layout: the same embeddings") {
  Backend& backend = backend_of("");
  const GoldenFile golden = read_safetensors(data("mm-a.safetensors"));
  const std::vector<uint8_t> pixels = golden_pixels(golden, "img-two");
  const GgufBuilder b = reference();
  const std::vector<float> want = encode(backend, parse(b).file, 64, pixels, Arithmetic::kExact);
  for (const TensorType type : {TensorType::kF32, TensorType::kF16, TensorType::kBF16}) {
    const Parsed other = parse(with_type(b, type, any_name));
    CHECK(same_bits(encode(backend, other.file, 64, pixels, Arithmetic::kExact), want));
  }
  CHECK(same_bits(encode(backend, parse(with_swapped_names(b)).file, 64, pixels, Arithmetic::kExact), want));
  CHECK(same_bits(
      encode(
          backend,
          parse(GgufBuilder(b).remove("clip.projector_type").set_string("clip.vision.projector_type", "gemma3")).file,
          64, pixels, Arithmetic::kExact),
      want));
  const Parsed single = parse(ollama_file(GgufBuilder(*GgufFile::open(data("mm-a-f16.gguf"))), b, 16));
  CHECK(has_vision(*single.file) && read_model_config(*single.file).n_vocab == 448);
  CHECK(same_bits(encode(backend, single.file, 64, pixels, Arithmetic::kExact), want));
}

TEST("tensor sources: one set of names whatever the file's, each half of a file its own") {
  const GgufBuilder mmproj = tiny_mmproj();
  const auto source = [](const Parsed& parsed) {
    return vision_tensors(parsed.file, read_vision_config(*parsed.file, 48));
  };
  const Parsed plain = parse(mmproj);
  const Parsed old = parse(with_swapped_names(mmproj));
  const auto today = source(plain);
  const auto swapped = source(old);
  const Parsed both = parse(ollama_file(tiny_gemma3(), mmproj, 16));
  const auto ollama = source(both);
  const auto decoder = decoder_tensors(both.file);
  CHECK(today->tensors().size() == mmproj.tensors.size() && ollama->tensors().size() == mmproj.tensors.size());
  CHECK(decoder->tensors().size() == tiny_gemma3().tensors.size());
  for (const GgufBuilder::Tensor& t : mmproj.tensors) {
    // Names of files differ, what is found does not.
    CHECK(today->find(t.name)->name == t.name && decoder->find(t.name) == nullptr);
    for (const auto& other : {swapped, ollama}) {
      const Tensor* found = other->find(t.name);
      CHECK(found != nullptr && found->bytes == t.data.size() &&
            std::memcmp(found->data, t.data.data(), found->bytes) == 0);
    }
  }
  CHECK(swapped->find("v.blk.0.ffn_up.weight")->name == "v.blk.0.ffn_down.weight");
  CHECK(ollama->find("v.blk.0.ffn_up.weight")->name == "v.blk.0.mlp.fc1.weight");
  CHECK(ollama->find("v.blk.0.mlp.fc1.weight") == nullptr && ollama->find("token_embd.weight") == nullptr);
}

// Random, but with large flat parts and edges, as pictures have them.
std::vector<uint8_t> some_pixels(int n_images, int size, uint32_t seed) {
  Uniform uniform(seed);
  std::vector<uint8_t> pixels(static_cast<size_t>(n_images * size * size * 3));
  for (size_t i = 0; i < pixels.size(); ++i) {
    const size_t pixel = i / 3;
    const size_t x = pixel % static_cast<size_t>(size);
    const size_t y = pixel / static_cast<size_t>(size) % static_cast<size_t>(size);
    const float wave = 90.0f * std::sin(static_cast<float>(x * (i % 3 + 1) + y * seed) * 0.05f);
    pixels[i] = static_cast<uint8_t>(128.0f + wave + 37.0f * uniform());
  }
  return pixels;
}

TEST("int8: close to float32 for all types, whether widths are whole blocks or not") {
  const std::vector<uint8_t> pixels = some_pixels(2, 112, 5);
  const GgufBuilder b = tiny_mmproj();  // ffn 100: padded to 128
  each_isa([&](Backend& backend) {
    const std::vector<float> want = encode(backend, parse(b).file, 48, pixels, Arithmetic::kExact);
    const auto check = [&](const GgufBuilder& other, Arithmetic arithmetic) {
      const std::vector<float> got = encode(backend, parse(other).file, 48, pixels, arithmetic);
      CHECK(!same_bits(got, want));
      CHECK(least_cosine(got, want, 48) > 0.999);
    };
    check(b, Arithmetic::kFast);
    check(with_type(b, TensorType::kF16, any_name), Arithmetic::kFast);
    check(with_type(b, TensorType::kBF16, any_name), Arithmetic::kFast);
    // As converters write Q8_0: rows of 100 are no blocks and stay as they are.
    const GgufBuilder q8 = with_type(with_type(b, TensorType::kF16, any_name), TensorType::kQ8_0,
                                     [](const std::string& name) { return name.starts_with("v.blk."); });
    check(q8, Arithmetic::kFast);
    check(q8, Arithmetic::kExact);
    if (backend.traits().has_bulk()) return;  // takes weights as they are stored
    // Quantised here or in the file: the same blocks.
    const GgufBuilder f16 = with_type(b, TensorType::kF16, any_name);
    CHECK(same_bits(encode(backend, parse(q8).file, 48, pixels, Arithmetic::kFast),
                    encode(backend, parse(f16).file, 48, pixels, Arithmetic::kFast)));
  });
}

TEST("an image's embedding does not depend on company, threads or passes") {
  for (const Arithmetic arithmetic : {Arithmetic::kExact, Arithmetic::kFast}) {
    const Parsed file = parse(tiny_mmproj());
    const std::vector<uint8_t> pixels = some_pixels(131, 112, 3);  // 64 go through together
    const std::vector<float> all = encode(backend_of(""), file.file, 48, pixels, arithmetic);
    const std::unique_ptr<Backend> one_thread = make_cpu_backend("", 1);
    const size_t image_bytes = 112 * 112 * 3;
    const size_t image_values = all.size() / 131;
    for (const size_t i : {0u, 1u, 63u, 64u, 130u}) {
      const std::vector<float> alone =
          encode(*one_thread, file.file, 48, std::span(pixels).subspan(i * image_bytes, image_bytes), arithmetic);
      CHECK(same_bits(alone, {all.begin() + static_cast<std::ptrdiff_t>(i * image_values),
                              all.begin() + static_cast<std::ptrdiff_t>((i + 1) * image_values)}));
    }
  }
}

TEST("other shapes: no width is built in") {
  struct Shape {
    int image_size, patch_size, n_pool;
  };
  for (const Shape shape : {Shape{28, 14, 1}, Shape{6, 2, 3}, Shape{7, 7, 1}, Shape{300, 20, 5}, Shape{96, 16, 2}}) {
    TinyVision size;
    size.image_size = shape.image_size;
    size.patch_size = shape.patch_size;
    size.n_pool = shape.n_pool;
    size.text_dim = 200;  // wider than the encoder
    const Parsed file = parse(tiny_mmproj(size));
    const std::vector<uint8_t> pixels = some_pixels(3, shape.image_size, 2);
    const std::vector<float> exact = encode(backend_of(""), file.file, 200, pixels, Arithmetic::kExact);
    CHECK(relative_error(exact, encode(backend_of("ref"), file.file, 200, pixels, Arithmetic::kExact)) < 1e-5);
    CHECK(least_cosine(encode(backend_of(""), file.file, 200, pixels, Arithmetic::kFast), exact, 200) > 0.998);
  }
}

TEST("stopped in the middle and started again: as if nothing had been") {
  const Parsed file = parse(tiny_mmproj());
  const VisionConfig config = read_vision_config(*file.file, 48);
  const std::vector<uint8_t> pixels = some_pixels(70, 112, 4);
  const std::vector<float> want = encode(backend_of(""), file.file, 48, pixels, Arithmetic::kFast);
  VisionEncoder encoder(backend_of(""), vision_tensors(file.file, config), config, Arithmetic::kFast);
  for (int n_asked = 0; n_asked < 200; n_asked += 7) {
    encoder.start(pixels, 70);
    int asked = 0;
    while (asked <= n_asked && encoder.advance([&] { return ++asked > n_asked; })) {
    }
    if (n_asked % 2 == 0) encoder.rest();
  }
  encoder.start(pixels, 70);
  while (encoder.advance([] { return false; })) {
  }
  CHECK(same_bits(encoder.take(), want));
}

TEST("Q8_0 of rows: nearest codes of the stored step, zeros and damage stay what they are") {
  std::vector<float> x(96);
  Uniform uniform(9);
  for (float& value : x) value = uniform();
  std::fill(x.begin() + 32, x.begin() + 64, 0.0f);
  std::vector<std::byte> blocks(3 * 34);
  std::vector<float> back(96);
  quantize_row_q8_0(x.data(), blocks.data(), 96);
  dequantize_row(TensorType::kQ8_0, blocks.data(), back.data(), 96);
  for (size_t i = 0; i < 96; ++i) CHECK(std::fabs(back[i] - x[i]) <= 1.0f / 127 * 0.51f);
  CHECK(std::all_of(back.begin() + 32, back.begin() + 64, [](float v) { return v == 0; }));
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
    x[40] = bad;
    quantize_row_q8_0(x.data(), blocks.data(), 96);
    dequantize_row(TensorType::kQ8_0, blocks.data(), back.data(), 96);
    CHECK(!std::isfinite(back[33]) && std::isfinite(back[31]) && std::isfinite(back[64]));
  }
  // A larger matrix around a smaller one.
  const Weight small{TensorType::kF32, 2, 40, reinterpret_cast<const std::byte*>(x.data())};
  std::fill(x.begin(), x.end(), 1.0f);
  std::vector<std::byte> padded(3 * 2 * 34);
  backend_of("").requantize(padded.data(), small, 3, 64);
  std::vector<float> values(3 * 64);
  dequantize_row(TensorType::kQ8_0, padded.data(), values.data(), 3 * 64);
  for (size_t i = 0; i < values.size(); ++i) {
    const bool inside = i / 64 < 2 && i % 64 < 40;
    CHECK(inside ? std::fabs(values[i] - 1) < 1e-3f : values[i] == 0);
  }
}

TEST("class 19: damaged weights are an error, not an embedding") {
  const std::vector<uint8_t> pixels = some_pixels(1, 112, 1);
  for (const char* name : {"v.patch_embd.weight", "v.blk.1.attn_k.weight", "v.blk.0.ffn_down.weight", "v.post_ln.bias",
                           "mm.input_projection.weight", "v.position_embd.weight"}) {
    GgufBuilder b = tiny_mmproj();
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(b.tensor(name).data.data() + 16, &nan, 4);
    for (const Arithmetic arithmetic : {Arithmetic::kExact, Arithmetic::kFast})
      CHECK_THROWS(kNonFinite, "NONFINITE", encode(backend_of(""), parse(b).file, 48, pixels, arithmetic));
  }
}

MemoryPlan plan(const std::shared_ptr<const GgufFile>& file, const VisionConfig& config, Arithmetic arithmetic) {
  const PlainTraits traits;
  MemoryPlanner planner({{&traits, 0, 0}});
  planner.add_vision(*vision_tensors(file, config), config, arithmetic);
  return planner.plan();
}

void read(const GgufBuilder& b, int text_dim = 48) {
  const Parsed parsed = parse(b);
  const VisionConfig config = read_vision_config(*parsed.file, text_dim);
  plan(parsed.file, config, Arithmetic::kFast);
}
#define CHECK_INVALID(detail, ...) CHECK_THROWS(kGgufInvalid, detail, read(__VA_ARGS__))

TEST("class 20: hyper-parameters") {
  const auto with_u32 = [](const std::string& key, uint32_t value) {
    return tiny_mmproj().set<uint32_t>("clip.vision." + key, value);
  };
  for (const char* key :
       {"image_size", "patch_size", "embedding_length", "feed_forward_length", "block_count", "attention.head_count"}) {
    for (const uint32_t n : {0u, 1u << 20, 1u << 31, 0xffffffffu}) CHECK_INVALID("BAD_HPARAM", with_u32(key, n));
    CHECK_INVALID("BAD_HPARAM", tiny_mmproj().set<int32_t>(std::string("clip.vision.") + key, -1));
    CHECK_INVALID("BAD_HPARAM", tiny_mmproj().remove(std::string("clip.vision.") + key));
    CHECK_INVALID("BAD_TYPE", tiny_mmproj().set_string(std::string("clip.vision.") + key, "7"));
    CHECK_INVALID("BAD_TYPE", tiny_mmproj().set_array<uint32_t>(std::string("clip.vision.") + key, {7}));
  }
  CHECK_INVALID("BAD_HPARAM", with_u32("patch_size", 1));
  CHECK_INVALID("BAD_HPARAM", with_u32("patch_size", 13));
  CHECK_INVALID("BAD_HPARAM", with_u32("image_size", 113));
  CHECK_INVALID("BAD_HPARAM", GgufBuilder(with_u32("image_size", 4096)).set<uint32_t>("clip.vision.patch_size", 2));
  CHECK_INVALID("BAD_HPARAM", with_u32("attention.head_count", 5));
  for (const uint32_t n : {0u, 3u, 9u, 1u << 31}) CHECK_INVALID("BAD_HPARAM", with_u32("projector.scale_factor", n));
  CHECK_INVALID("BAD_HPARAM", with_u32("projection_dim", 0));
  CHECK_INVALID("BAD_HPARAM", with_u32("projection_dim", 64));
  CHECK_INVALID("BAD_HPARAM", tiny_mmproj(), 64);
  CHECK_INVALID("BAD_HPARAM", with_u32("num_channels", 4));
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const float value : {0.0f, -1.0f, kNan, kInf})
    CHECK_INVALID("BAD_HPARAM", tiny_mmproj().set("clip.vision.attention.layer_norm_epsilon", value));
  for (const char* key : {"clip.vision.image_mean", "clip.vision.image_std"}) {
    CHECK_INVALID("BAD_HPARAM", tiny_mmproj().set_array<float>(key, {0.5f}));
    CHECK_INVALID("BAD_HPARAM", tiny_mmproj().set_array<float>(key, {}));
    CHECK_INVALID("BAD_HPARAM", tiny_mmproj().set_array<float>(key, {0.5f, 0.5f, 0.5f, 0.5f}));
    CHECK_INVALID("BAD_TYPE", tiny_mmproj().set_array<int32_t>(key, {1, 1, 1}));
    CHECK_INVALID("BAD_TYPE", tiny_mmproj().set(key, 0.5f));
    for (const float value : {kNan, kInf, -kInf, 1e30f})
      CHECK_INVALID("BAD_HPARAM", tiny_mmproj().set_array<float>(key, {0.5f, value, 0.5f}));
    read(tiny_mmproj().remove(key));
  }
  CHECK_INVALID("BAD_HPARAM", tiny_mmproj().set_array<float>("clip.vision.image_std", {0.5f, 0.0f, 0.5f}));
}

TEST("class 20: tensors missing, extra, of another shape or type") {
  const GgufBuilder sound = tiny_mmproj();
  read(sound);
  for (const GgufBuilder::Tensor& t : sound.tensors) {
    CHECK_INVALID("BAD_TENSOR", GgufBuilder(sound).remove_tensor(t.name));
    GgufBuilder flat = sound;
    int64_t n = 1;
    for (const int64_t dim : t.dims) n *= dim;
    flat.tensor(t.name).dims = {n, 1};
    CHECK_INVALID("BAD_TENSOR", flat);
    if (t.dims.size() != 2 || t.dims[0] == t.dims[1]) continue;
    GgufBuilder transposed = sound;
    std::swap(transposed.tensor(t.name).dims[0], transposed.tensor(t.name).dims[1]);
    // Of the first layer the ffn_down of swapped names: then its ffn_up is wrong.
    CHECK_INVALID("BAD_TENSOR", transposed);
  }
  for (const char* extra : {"v.blk.3.ln1.weight", "v.class_embd", "foo", "mm.0.weight", "blk.0.attn_q.weight"})
    CHECK_INVALID("BAD_TENSOR", GgufBuilder(sound).add_floats(extra, {2}, {1, 2}));
  CHECK_INVALID("BAD_TENSOR", GgufBuilder(sound).set<uint32_t>("clip.vision.block_count", 2));
  CHECK_INVALID("BAD_TENSOR", GgufBuilder(sound).set<uint32_t>("clip.vision.block_count", 4));
  CHECK_INVALID("BAD_TENSOR", with_type(sound, TensorType::kQ8_0,
                                        [](const std::string& name) { return name == "v.position_embd.weight"; }));
  // The projector of another model, without a word about it
  TinyVision size;
  size.text_dim = 80;
  CHECK_INVALID("BAD_TENSOR", tiny_mmproj(size).remove("clip.vision.projection_dim"), 48);
}

TEST("class 20: files of something else") {
  const auto unsupported = [](const GgufBuilder& b) { CHECK_THROWS(kUnsupportedModel, "", read(b)); };
  unsupported(tiny_mmproj().set_string("general.architecture", "llama"));
  unsupported(tiny_mmproj().remove("general.architecture"));
  unsupported(tiny_mmproj().set_string("clip.projector_type", "mlp"));
  try {
    read(tiny_mmproj().set_string("clip.projector_type", "gemma4v"));
    CHECK(false);
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find("this is Gemma 4's vision encoder, another architecture") != std::string::npos);
  }
  unsupported(tiny_mmproj().set_string("clip.projector_type", "gemma3n\n"));
  unsupported(tiny_mmproj().remove("clip.projector_type"));
  unsupported(tiny_mmproj().set("clip.has_vision_encoder", false));
  unsupported(tiny_gemma3());
  CHECK_INVALID("BAD_TYPE", tiny_mmproj().set<uint32_t>("clip.projector_type", 1));
  // A model file that holds half of an encoder
  GgufBuilder b = ollama_file(tiny_gemma3(), tiny_mmproj(), 16);
  read(b);
  CHECK_INVALID("BAD_HPARAM", GgufBuilder(b).set<uint32_t>("gemma3.mm.tokens_per_image", 15));
  CHECK_INVALID("BAD_HPARAM", GgufBuilder(b).set<uint32_t>("gemma3.mm.tokens_per_image", 9));
  CHECK_INVALID("BAD_HPARAM", GgufBuilder(b).remove("gemma3.mm.tokens_per_image"));  // 256: more than patches
  CHECK_INVALID("BAD_TENSOR", GgufBuilder(b).remove_tensor("v.blk.0.mlp.fc1.weight"));
  CHECK_INVALID("BAD_TENSOR", GgufBuilder(b).add_floats("v.foo", {2}, {1, 2}));
}

TEST("the memory plan: activations of a pass, and weights as they are kept") {
  const Parsed parsed = parse(with_type(tiny_mmproj(), TensorType::kF16, any_name));
  const VisionConfig config = read_vision_config(*parsed.file, 48);
  const uint64_t exact = plan(parsed.file, config, Arithmetic::kExact).vision_bytes;
  const uint64_t int8 = plan(parsed.file, config, Arithmetic::kFast).vision_bytes;
  const uint64_t n_images = static_cast<uint64_t>(vision_images_per_pass(config));
  // The rows of a chunk are as wide as a patch, which is wider than the feed-forward part.
  const uint64_t activations = 4 * (4096 * 4 * 96 + 512 * (96 + 3 * 14 * 14) + n_images * 16 * 48);
  uint64_t stored = 0;
  for (const Tensor& t : parsed.file->tensors()) stored += t.bytes;
  CHECK(exact > activations + stored && exact < activations + 2 * stored);
  // Of 2 bytes a value remain 34 / 32, with padding to a feed-forward width of 128; a layer's bias of 100
  // values, which takes 112, grows by 16.
  const uint64_t layers = 3 * (4 * 96 * 96 + 2 * 96 * 100);
  CHECK(exact - int8 == layers * 2 - 3 * (4 * 96 * 96 + 2 * 96 * 128) / 32 * 34 - 3 * 4 * 16);
}

}  // namespace
}  // namespace gemma

TEST_MAIN
