// What is planned is what is allocated: every allocation of the program is counted while models of the shapes of 270M,
// 1B and 4B take all the memory that their limits allow.
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>

#include "allocations.h"
#include "check.h"
#include "gguf_builder.h"
#include "grammar/grammar.h"
#include "model/forward.h"
#include "model/layer_tensors.h"
#include "model/memory_plan.h"
#include "model/tensor_source.h"
#include "model/vision.h"
#include "model/vision_tensors.h"
#include "reader/gguf_reader.h"
#include "runtime/quantize_load.h"

// ------------------------------------------------------------------------------------- models of published shapes

using namespace gemma;
using test::GgufBuilder;
using test::live_bytes;

namespace {

constexpr int kThreads = 2;

// A file that is mostly a hole: tensors are zeros that take no place. Of builder it has the metadata.
class SparseFile {
 public:
  SparseFile(GgufBuilder builder, const std::vector<ExpectedTensor>& tensors, TensorType matrices) {
    builder.tensors.clear();
    uint64_t offset = 0;
    for (const ExpectedTensor& tensor : tensors) {
      const TensorType type = tensor.is_vector() || tensor.is_float ? TensorType::kF32 : matrices;
      builder.add_tensor(tensor.name, type, tensor.shape, {});
      builder.tensors.back().offset = offset;
      uint64_t bytes = row_bytes(type, tensor.shape.back());
      for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) bytes *= static_cast<uint64_t>(tensor.shape[i]);
      offset += (bytes + builder.alignment - 1) / builder.alignment * builder.alignment;
    }
    path_ = std::filesystem::temp_directory_path() / ("gemma-memory-test-" + std::to_string(std::random_device()()));
    const std::vector<std::byte> head = builder.build();
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(head.data()), static_cast<std::streamsize>(head.size()));
    std::filesystem::resize_file(path_, head.size() + offset);
    file_ = GgufFile::open(path_.string());
  }
  ~SparseFile() {
    file_.reset();
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  SparseFile(const SparseFile&) = delete;
  SparseFile& operator=(const SparseFile&) = delete;

  const std::shared_ptr<const GgufFile>& file() const { return file_; }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
  std::shared_ptr<const GgufFile> file_;
};

// A model's tensors and what it is.
struct Shape {
  std::shared_ptr<const TensorSource> tensors;
  ModelConfig config;
};

struct Size {
  int n_layers, model_dim, ffn_dim, n_heads, n_kv_heads, n_window;
};
constexpr Size k270M{18, 640, 2048, 4, 1, 512};
constexpr Size k1B{26, 1152, 6912, 4, 1, 512};
constexpr Size k4B{34, 2560, 10240, 8, 4, 1024};
constexpr int kHeadDim = 256;
constexpr int kVocab = 262144;

GgufBuilder header(const Size& size) {
  GgufBuilder b = test::tiny_gemma3();
  const auto set = [&](const char* key, int value) { b.set<uint32_t>(key, static_cast<uint32_t>(value)); };
  set("gemma3.block_count", size.n_layers);
  set("gemma3.context_length", 32768);
  set("gemma3.embedding_length", size.model_dim);
  set("gemma3.feed_forward_length", size.ffn_dim);
  set("gemma3.attention.head_count", size.n_heads);
  set("gemma3.attention.head_count_kv", size.n_kv_heads);
  set("gemma3.attention.key_length", kHeadDim);
  set("gemma3.attention.value_length", kHeadDim);
  set("gemma3.attention.sliding_window", size.n_window);
  return b;
}

// What the tensors of a header are to be.
ModelConfig config_of(const Size& size) {
  ModelConfig config;
  config.model_dim = size.model_dim;
  config.n_vocab = kVocab;
  for (int i = 0; i < size.n_layers; ++i) {
    LayerConfig& layer = config.layers.emplace_back();
    layer.n_heads = size.n_heads;
    layer.n_kv_heads = size.n_kv_heads;
    layer.head_dim = kHeadDim;
    layer.ffn_dim = size.ffn_dim;
  }
  return config;
}

class SparseModel {
 public:
  explicit SparseModel(const Size& size, TensorType matrices = TensorType::kQ4_0)
      : sparse_(header(size), expected_tensors(config_of(size)), matrices) {}
  Shape shape() const { return {decoder_tensors(sparse_.file()), read_model_config(*sparse_.file())}; }
  std::string path() const { return sparse_.path(); }

 private:
  SparseFile sparse_;
};

// ------------------------------------------------------------------------------------- work

Model make_model(Backend& backend, const Shape& shape, const ModelLimits& limits) {
  const Stage all[] = {{&backend, 0, shape.config.n_layers()}};
  return Model(all, shape.config, load_weights(all, shape.tensors, shape.config), limits);
}

// As much work as there may be: a sequence that fills the context with a prompt as long as a step takes, alone and as
// tokens that come one by one. The layers are left after the first, which works as all do; to the end goes a single row,
// as often as it takes to build a screen.
class Work {
 public:
  Work(Backend& backend, const Shape& shape, const ModelLimits& limits)
      : model_(make_model(backend, shape, limits)), kv_(model_.kv_pool()) {
    const int n = limits.max_batch;
    const int begin = limits.n_ctx - n;
    const int across = begin / kPagePositions * kPagePositions - 2;  // a step that touches as many pages as any
    kv_.reserve(across, across + n);
    kv_.trim(begin);
    for (const bool is_prompt : {true, false}) step(begin, n, is_prompt, 1);
    kv_.trim(begin);
    kv_.rollback(limits.n_ctx - 1);
    for (int i = 0; i < kBuildSteps; ++i) step(limits.n_ctx - 1, 1, false, -1);
  }

 private:
  static constexpr int kBuildSteps = 16;  // cpu::Screen::kSlices

  // n_layers: that are computed; -1: all, and the logits.
  void step(int begin, int n, bool is_prompt, int n_layers) {
    const std::vector<int32_t> tokens(static_cast<size_t>(n), 5);
    const WantedRow last{n - 1, {1, {}, {}, {}}};
    const SequenceInput input{&kv_, begin, tokens, {&last, 1}, {}, is_prompt};
    const auto should_stop = [&] { return n_layers >= 0 && n_layers-- == 0; };
    model_.forward({&input, 1}, should_stop, [](size_t, int, const Logits&) {});
  }

  Model model_;
  KvSequence kv_;
};

double mib(uint64_t bytes) {
  return static_cast<double>(bytes) / (1 << 20);
}

// Two in a hundred.
void check_planned(const char* what, const ModelLimits& limits, const MemoryPlan& plan, int64_t allocated) {
  const uint64_t planned = plan.total_bytes - plan.mapped_bytes;
  std::printf("  %s, batch %d: planned %.2f MiB, allocated %.2f MiB\n", what, limits.max_batch, mib(planned),
              mib(static_cast<uint64_t>(allocated)));
  const double ratio = static_cast<double>(planned) / static_cast<double>(allocated);
  if (!(ratio > 0.98 && ratio < 1.02)) test::fail(__FILE__, __LINE__, "planned / allocated: " + std::to_string(ratio));
}

// beside: a model to guess with.
void check_shape(const char* what, const Shape& shape, const Shape* beside = nullptr) {
  const auto traits = cpu_traits("", kThreads);
  for (const int max_batch : {1, 32, 512}) {
    // Building a screen takes long.
    const ModelLimits limits{4096, KvType::kF16, max_batch, max_batch == 32 || shape.config.n_layers() == 18};
    MemoryPlanner planner({{traits.get(), 0, shape.config.n_layers()}});
    planner.add_model(*shape.tensors, shape.config, limits);
    if (beside != nullptr) planner.add_draft_model(*beside->tensors, beside->config, limits);
    const int64_t before = live_bytes;
    {
      const std::unique_ptr<Backend> backend = make_cpu_backend("", kThreads);
      const Work work(*backend, shape, limits);
      std::unique_ptr<Work> draft;
      if (beside != nullptr) draft = std::make_unique<Work>(*backend, *beside, limits);
      check_planned(what, limits, planner.plan(), live_bytes - before);
    }
    CHECK(live_bytes == before);
  }
}

// The published encoder, or its first layers.
VisionConfig vision_config(int n_layers) {
  VisionConfig config;
  config.image_size = 896;
  config.patch_size = 14;
  config.n_side = 64;
  config.n_patches = 4096;
  config.n_pool = 4;
  config.n_tokens = 256;
  config.n_layers = n_layers;
  config.model_dim = 1152;
  config.ffn_dim = 4304;
  config.n_heads = 16;
  config.head_dim = 72;
  config.text_dim = k4B.model_dim;
  return config;
}

// EmbeddingGemma's shape.
ModelConfig encoder_config() {
  ModelConfig config = config_of({6, 768, 1152, 3, 1, 512});
  config.is_encoder = true;
  config.dense = {{.out_dim = 3072}, {.out_dim = 768}};
  for (int i = 0; i < config.n_layers(); ++i) {
    LayerConfig& layer = config.layers[static_cast<size_t>(i)];
    layer.n_window = i == 5 ? 0 : 512;
    layer.query_scale = 1;
  }
  return config;
}

class SparseEncoder {
 public:
  SparseEncoder() : sparse_(test::tiny_gemma3(), expected_tensors(encoder_config()), TensorType::kQ8_0) {
    for (const ExpectedTensor& tensor : expected_tensors(encoder_config()))
      tensors_->add(tensor.name, *sparse_.file()->find_tensor(tensor.name));
  }
  Shape shape() const { return {tensors_, encoder_config()}; }

 private:
  SparseFile sparse_;
  std::shared_ptr<TensorSource> tensors_ = std::make_shared<TensorSource>();
};

class SparseVision {
 public:
  explicit SparseVision(const VisionConfig& config)
      : sparse_(test::tiny_mmproj(), expected_tensors(config), TensorType::kF16) {
    for (const ExpectedTensor& tensor : expected_tensors(config)) {
      tensors_->add(tensor.name, *sparse_.file()->find_tensor(tensor.name));
    }
  }
  std::shared_ptr<const TensorSource> tensors() const { return tensors_; }

 private:
  SparseFile sparse_;
  std::shared_ptr<TensorSource> tensors_ = std::make_shared<TensorSource>();
};

}  // namespace

TEST("270M, with the model's own file where there is one") {
  const SparseModel sparse(k270M);
  check_shape("270M", sparse.shape());
  const char* path = std::getenv("GEMMA_TEST_MODEL");
  if (path == nullptr) return;
  const std::shared_ptr<const GgufFile> file = GgufFile::open(path);
  check_shape("its file", {decoder_tensors(file), read_model_config(*file)});
}

// Bytes of a mapped file that are this process's memory now. 0 where the system does not tell.
uint64_t resident_bytes(const std::string& path) {
  std::ifstream maps("/proc/self/smaps");
  uint64_t sum = 0;
  bool is_file = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.find('-') < line.find(' ')) is_file = line.ends_with(path);
    if (is_file && line.starts_with("Rss:")) sum += std::stoull(line.substr(4)) << 10;
  }
  return sum;
}

TEST("270M, quantised while it is loaded: copies are planned, and pages of the file go back") {
  const SparseModel sparse(k270M, TensorType::kF16);
  const std::shared_ptr<const TensorSource> stored = sparse.shape().tensors;
  const ModelConfig config = sparse.shape().config;
  const int64_t before = live_bytes;
  {
    const Shape shape{quantized_tensors(stored, config, "q4_0", "file", kThreads), config};
    uint64_t most_resident = 0;
    double done = 0;
    shape.tensors->prefetch([&](double fraction) {
      CHECK(fraction >= done);
      done = fraction;
      most_resident = std::max(most_resident, resident_bytes(sparse.path()));
    });
    CHECK(done == 1);
    std::printf("  of the file at most %.2f MiB of %.0f\n", mib(most_resident), mib(stored->bytes()));
    CHECK(most_resident < 8 << 20);
    const ModelLimits limits{4096, KvType::kF16, 32, false};
    const auto traits = cpu_traits("", kThreads);
    MemoryPlanner planner({{traits.get(), 0, config.n_layers()}});
    planner.add_model(*shape.tensors, config, limits);
    CHECK(planner.plan().mapped_bytes == 0);
    const std::unique_ptr<Backend> backend = make_cpu_backend("", kThreads);
    const Work work(*backend, shape, limits);
    check_planned("q4_0", limits, planner.plan(), live_bytes - before);
  }
  CHECK(live_bytes == before);
}

// A step of short texts, as many as their pages allow, and one of a text as long as a step.
TEST("an embedding model") {
  const SparseEncoder sparse;
  const Shape shape = sparse.shape();
  const auto traits = cpu_traits("", kThreads);
  for (const int max_batch : {64, 2048}) {
    const ModelLimits limits{max_batch, KvType::kF16, max_batch, true};
    MemoryPlanner planner({{traits.get(), 0, shape.config.n_layers()}});
    planner.add_model(*shape.tensors, shape.config, limits);
    CHECK(planner.plan().screen_bytes == 0);
    const int64_t before = live_bytes;
    const std::unique_ptr<Backend> backend = make_cpu_backend("", kThreads);
    Model model = make_model(*backend, shape, limits);
    const std::vector<int32_t> tokens(static_cast<size_t>(max_batch), 5);
    std::vector<double> sum(static_cast<size_t>(shape.config.model_dim));
    for (const size_t n_texts : {max_text_pages(max_batch), size_t{1}}) {
      const size_t length = static_cast<size_t>(max_batch) / n_texts;
      const std::vector<double*> sums(n_texts, sum.data());
      std::vector<std::unique_ptr<KvSequence>> kvs;
      std::vector<SequenceInput> inputs;
      for (size_t i = 0; i < n_texts; ++i) {
        kvs.push_back(std::make_unique<KvSequence>(model.kv_pool()));
        inputs.push_back({kvs[i].get(), 0, std::span(tokens).first(length), {}, {}, true});
      }
      int n_layers = 1;
      const auto should_stop = [&] { return n_layers-- == 0; };
      model.pool(inputs, should_stop, sums);
      if (n_texts > 1) check_planned("embedding", limits, planner.plan(), live_bytes - before);
      std::vector<float> row(static_cast<size_t>(shape.config.model_dim));
      model.embedding_head().project(row.data(), row.data(), 1);
    }
  }
}

// Instrumented kernels would take minutes.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST("1B, with a draft model") {
  const SparseModel sparse(k1B);
  const SparseModel draft(k270M);
  const Shape beside = draft.shape();
  check_shape("1B and 270M", sparse.shape(), &beside);
}

TEST("4B") {
  const SparseModel sparse(k4B);
  check_shape("4B", sparse.shape());
}

TEST("4B with a vision encoder, of which a layer stands for all, and a draft model") {
  const SparseModel sparse(k4B);
  const Shape shape = sparse.shape();
  const SparseModel draft(k270M);
  const Shape beside = draft.shape();
  const VisionConfig config = vision_config(1);
  const SparseVision vision(config);
  const std::vector<uint8_t> pixels(size_t{3} * 896 * 896);
  const auto traits = cpu_traits("", kThreads);
  for (const Arithmetic arithmetic : {Arithmetic::kFast, Arithmetic::kExact}) {
    const ModelLimits limits{4096, KvType::kQ8_0, 512, false};
    MemoryPlanner planner({{traits.get(), 0, shape.config.n_layers()}});
    planner.add_model(*shape.tensors, shape.config, limits);
    planner.add_draft_model(*beside.tensors, beside.config, limits);
    planner.add_vision(*vision.tensors(), config, arithmetic);
    const int64_t before = live_bytes;
    const std::unique_ptr<Backend> backend = make_cpu_backend("", kThreads);
    const Work work(*backend, shape, limits);
    const Work draft_work(*backend, beside, limits);
    VisionEncoder encoder(*backend, vision.tensors(), config, arithmetic);
    encoder.start(pixels, 1);
    while (encoder.advance([] { return false; })) {
    }
    encoder.take();
    check_planned("4B with vision", limits, planner.plan(), live_bytes - before);
  }
}

#endif

TEST("what grammars know of a vocabulary is planned") {
  // Tokens as long as Gemma's, seven bytes and a half on the average, one in twenty longer than fits into a string itself.
  constexpr int kTokens = 60000;
  std::mt19937 rng(3);
  std::vector<std::string> texts;
  for (int i = 0; i < kTokens; ++i) {
    std::string text = std::to_string(i) + "x";
    const size_t length = i % 20 == 0 ? 20 : 4 + rng() % 6;
    while (text.size() < length) text.push_back(static_cast<char>('a' + rng() % 26));
    texts.push_back(text);
  }
  Vocabulary vocabulary;
  for (const char* name : {"<pad>", "<eos>", "<bos>", "<unk>"}) {
    vocabulary.pieces.emplace_back(name);
    vocabulary.kinds.push_back(TokenKind::kControl);
  }
  for (int i = 0; i < 256; ++i) {
    constexpr char kHex[] = "0123456789ABCDEF";
    texts.push_back(std::string("<0x") + kHex[i / 16] + kHex[i % 16] + ">");
  }
  for (size_t i = 0; i < texts.size(); ++i) {
    vocabulary.pieces.emplace_back(texts[i]);
    vocabulary.kinds.push_back(i < kTokens ? TokenKind::kNormal : TokenKind::kByte);
  }
  vocabulary.scores.assign(vocabulary.pieces.size(), 0.0f);
  vocabulary.eos = 1;
  vocabulary.bos = 2;
  vocabulary.unk = 3;
  const Tokenizer tokenizer(vocabulary);
  const int64_t before = live_bytes;
  {
    GrammarCompiler compiler(tokenizer);
    bool cached = false;
    compiler.compile({GrammarKind::kEbnf, "root ::= \"1\""}, &cached);
    const double planned = static_cast<double>(grammar_vocabulary_bytes(tokenizer.n_vocab()));
    const double ratio = planned / static_cast<double>(live_bytes - before);
    std::printf("  %d tokens: planned %.2f MiB, planned / allocated %.2f\n", tokenizer.n_vocab(), planned / (1 << 20),
                ratio);
    CHECK(ratio > 0.95 && ratio < 1.05);
  }
}

TEST("a plan grows with layers by what a layer takes") {
  const auto traits = cpu_traits("ref", kThreads);
  const auto vision_bytes = [&](int n_layers) {
    const VisionConfig config = vision_config(n_layers);
    const SparseVision vision(config);
    MemoryPlanner planner({{traits.get(), 0, 0}});
    planner.add_vision(*vision.tensors(), config, Arithmetic::kFast);
    return planner.plan().vision_bytes;
  };
  // Six matrices in Q8_0, the large ones on pages of 2 MiB; four norms, six biases.
  constexpr uint64_t kPage = 2 << 20;
  const uint64_t large = (1152 * 4320 / 32 * 34 + kPage - 1) / kPage * kPage;
  const uint64_t layer = 4 * (1152 * 1152 / 32 * 34) + 2 * large;
  const uint64_t floats = 4 * (9 * 1152 + 4320);
  const uint64_t more = vision_bytes(27) - vision_bytes(1);
  CHECK(more + kPage > 26 * (layer + floats) && more < 26 * (layer + floats) + kPage);
}

TEST_MAIN
