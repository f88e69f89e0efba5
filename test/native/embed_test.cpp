// Embeddings of texts: every stage against sentence-transformers; equal to the bit alone and in company, whatever the
// threads and the steps; of decoders, too; cut short, and asked for wrongly.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "engine_helpers.h"
#include "model/forward.h"
#include "reader/gguf_reader.h"

namespace gemma {
namespace {

using namespace gemma::test;

constexpr const char* kEncoder = "embedding-f16.gguf";
constexpr size_t kDim = 64;

using Texts = std::vector<std::vector<TokenId>>;

EmbedParams params_of(const Texts& texts, int n_dims = 0, bool normalize = true) {
  EmbedParams params;
  for (const std::vector<TokenId>& text : texts) {
    params.tokens.insert(params.tokens.end(), text.begin(), text.end());
    params.lengths.push_back(static_cast<int>(text.size()));
  }
  params.n_dims = n_dims;
  params.normalize = normalize;
  return params;
}

// A request and what came of it.
struct Embedding {
  std::vector<float> rows;
  int n_events = 0;
  int n_done = 0;
  std::promise<std::shared_ptr<const Error>> done;
  std::future<std::shared_ptr<const Error>> ended = done.get_future();
  std::shared_ptr<Request> request;
};

std::shared_ptr<Embedding> begin(Engine& engine, EmbedParams params) {
  auto embedding = std::make_shared<Embedding>();
  const size_t dim = static_cast<size_t>(params.n_dims > 0 ? params.n_dims : engine.config().embedding_dim());
  embedding->request = engine.embed(
      std::move(params),
      [embedding, dim](size_t first, std::vector<float>&& rows) {
        CHECK(embedding->rows.size() == first * dim && !rows.empty() && rows.size() % dim == 0);
        embedding->rows.insert(embedding->rows.end(), rows.begin(), rows.end());
        ++embedding->n_events;
      },
      [embedding](std::shared_ptr<const Error> error) {
        if (++embedding->n_done == 1) embedding->done.set_value(std::move(error));
      });
  return embedding;
}

std::vector<float> rows_of(const std::shared_ptr<Embedding>& embedding) {
  if (const std::shared_ptr<const Error> error = embedding->ended.get()) throw Error(*error);
  return embedding->rows;
}

std::vector<float> embed(Engine& engine, const Texts& texts, int n_dims = 0, bool normalize = true) {
  return rows_of(begin(engine, params_of(texts, n_dims, normalize)));
}

// Of all lengths up to n_longest, short ones above all.
Texts some_texts(int n, int n_longest) {
  Texts texts;
  uint32_t x = 17;
  for (int i = 0; i < n; ++i) {
    x = x * 1664525u + 1013904223u;
    const int most = i % 5 == 0 ? n_longest : std::min(n_longest, 40);
    texts.push_back(some_tokens(1 + static_cast<int>((x >> 16) % static_cast<uint32_t>(most)), i + 1));
  }
  return texts;
}

// The ids of a mode's texts.
Texts golden_texts(const std::string& mode) {
  std::ifstream in(data("embedding.json"));
  const std::string json((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const size_t ids = json.find("\"ids\":{");
  const size_t at = json.find("\"" + mode + "\":[[", ids);
  if (ids == std::string::npos || at == std::string::npos) throw std::runtime_error("no ids of " + mode);
  const char* p = json.c_str() + json.find("[[", at) + 1;
  Texts texts;
  while (*p == '[' || *p == ',') {
    if (*p == ',') ++p;
    std::vector<TokenId>& text = texts.emplace_back();
    for (++p; p[-1] != ']'; ++p) {
      char* end = nullptr;
      text.push_back(static_cast<TokenId>(std::strtol(p, &end, 10)));
      p = end;
    }
  }
  return texts;
}

std::vector<float> golden(const std::string& name) {
  return read_safetensors(data("embedding.safetensors")).at(name).as<float>();
}

double largest_difference(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size() || a.empty()) return std::nan("");
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(difference <= most)) most = difference;
  }
  return most;
}

// The bounds are those of the oracle for an engine in float32; a 16-bit rounding anywhere is a thousand times off.
TEST("each stage is that of sentence-transformers") {
  const Texts texts = golden_texts("plain");
  for (const std::string& isa : model_isas()) {
    LoadOptions o = options(kEncoder);
    o.isa = isa;
    const std::shared_ptr<Engine> engine = Engine::load(o);
    CHECK(engine->info().kv_type == KvType::kF32);
    CHECK(largest_difference(embed(*engine, texts, 0, false), golden("plain.dense_3")) < 1e-5);
    CHECK(largest_difference(embed(*engine, texts), golden("plain.embedding")) < 5e-6);
    for (const char* mode : {"query", "document"}) {
      CHECK(largest_difference(embed(*engine, golden_texts(mode)), golden(std::string(mode) + ".embedding")) < 5e-6);
    }
    // Half floats are what a file of quantised weights takes.
    o.kv_type = KvType::kF16;
    CHECK(largest_difference(embed(*Engine::load(o), texts), golden("plain.embedding")) < 1e-3);
  }
}

TEST("rows of the layers, and their mean") {
  const Texts texts = golden_texts("plain");
  const std::shared_ptr<const GgufFile> file = GgufFile::open(data(kEncoder));
  const ModelConfig config = read_model_config(*file);
  CHECK(config.is_encoder && config.embeds_eos && config.dense[0].out_dim == 96 && config.embedding_dim() == 64);
  const std::unique_ptr<Backend> backend = make_cpu_backend("", 2);
  const Stage all[] = {{backend.get(), 0, config.n_layers()}};
  Model model(all, config, load_weights(all, decoder_tensors(file), config), {128, KvType::kF32, 128, true});
  const auto never = [] { return false; };
  std::vector<float> means;
  for (size_t i = 0; i < texts.size(); ++i) {
    KvSequence kv(model.kv_pool());
    const SequenceInput input{&kv, 0, texts[i], {}, {}, true};
    std::vector<double> sum(kDim);
    double* const sums[] = {sum.data()};
    CHECK(model.pool({&input, 1}, never, sums));
    for (const double x : sum) means.push_back(static_cast<float>(x / static_cast<double>(texts[i].size())));
    const std::string name = "plain." + std::to_string(i) + ".rows";
    if (i != 0 && i != 8 && i != 10) continue;
    const std::unique_ptr<Buffer> normed = backend->allocate(texts[i].size() * kDim * sizeof(float));
    model.embedding_head().norm(normed->floats(), model.hidden(), static_cast<int>(texts[i].size()));
    const std::span<const float> rows(normed->floats(), texts[i].size() * kDim);
    CHECK(normalised_error(rows, golden(name)) < 1e-5);
  }
  CHECK(largest_difference(means, golden("plain.pooled")) < 1e-5);
}

TEST("a step that another caller gives up is computed anew, with the same bits") {
  const std::vector<float> want = embed(*Engine::load(options(kEncoder)), golden_texts("query"));
  const std::shared_ptr<Engine> engine = Engine::load(options(kEncoder));
  const auto other = begin(*engine, params_of(some_texts(40, 300)));
  const auto mine = begin(*engine, params_of(golden_texts("query")));
  other->request->cancel();
  CHECK(same_bits(rows_of(mine), want));
  const std::shared_ptr<const Error> error = other->ended.get();
  CHECK(error == nullptr || error->detail() == "CANCELLED");
}

TEST("a thousand texts together are each alone, to the bit") {
  const Texts texts = some_texts(1000, 400);
  const std::shared_ptr<Engine> engine = Engine::load(options(kEncoder));
  const uint64_t n_before = engine->stats().steps;
  const std::vector<float> together = embed(*engine, texts);
  CHECK(together.size() == texts.size() * kDim);
  CHECK(engine->stats().steps - n_before < texts.size() / 4);  // without steps of their own
  for (size_t i = 0; i < texts.size(); i += 7) {
    const std::vector<float> alone = embed(*engine, {texts[i]});
    CHECK(std::memcmp(alone.data(), together.data() + i * kDim, kDim * sizeof(float)) == 0);
  }
  wait_until([&] { return engine->stats().kv_pages_in_use == 0 && engine->stats().running == 0; });
  CHECK(engine->stats().kv_bytes_resident == 0);
  for (const int n_batch : {1, 37, 2048}) {
    LoadOptions o = options(kEncoder);
    o.n_batch = n_batch;
    o.n_threads = n_batch == 1 ? 3 : 1;
    const Texts some(texts.begin(), texts.begin() + 60);
    const std::vector<float> rows = embed(*Engine::load(o), some);
    CHECK(std::memcmp(rows.data(), together.data(), rows.size() * sizeof(float)) == 0);
  }
}

TEST("callers share steps, and a short call does not wait for a long one") {
  const std::shared_ptr<Engine> engine = Engine::load(options(kEncoder));
  const Texts many = some_texts(600, 400);
  const Texts few = some_texts(3, 20);
  const std::vector<float> alone = embed(*engine, few);
  const auto first = begin(*engine, params_of(many));
  const auto second = begin(*engine, params_of(few));
  CHECK(same_bits(rows_of(second), alone));
  CHECK(first->ended.wait_for(std::chrono::seconds(0)) != std::future_status::ready);
  CHECK(rows_of(first).size() == many.size() * kDim);
}

TEST("a text as long as the context, in a step of its own") {
  LoadOptions o = options(kEncoder);
  o.n_ctx = 700;
  o.n_batch = 64;
  const std::shared_ptr<Engine> engine = Engine::load(o);
  const std::vector<float> rows = embed(*engine, {some_tokens(3), some_tokens(700), some_tokens(5)});
  o.n_batch = 2048;
  CHECK(same_bits(rows, embed(*Engine::load(o), {some_tokens(3), some_tokens(700), some_tokens(5)})));
  CHECK_THROWS(kContextFull, "CONTEXT_OVERFLOW", embed(*engine, {some_tokens(701)}));
}

TEST("the first numbers of an embedding, normalised or not") {
  const std::shared_ptr<Engine> engine = Engine::load(options(kEncoder));
  const Texts texts = some_texts(5, 40);
  const std::vector<float> raw = embed(*engine, texts, 0, false);
  for (const int n : {1, 16, 64}) {
    const std::vector<float> cut = embed(*engine, texts, n, false);
    const std::vector<float> normed = embed(*engine, texts, n);
    const size_t dims = static_cast<size_t>(n);
    for (size_t i = 0; i < texts.size(); ++i) {
      CHECK(std::memcmp(&cut[i * dims], &raw[i * kDim], dims * sizeof(float)) == 0);
      double square = 0;
      for (size_t j = 0; j < dims; ++j) square += std::pow(static_cast<double>(normed[i * dims + j]), 2);
      CHECK(std::abs(square - 1) < 1e-6);
    }
  }
}

// What a decoder's embedding is by its definition.
std::vector<float> mean_of_rows(const std::string& file, const std::vector<TokenId>& text, KvType kv_type) {
  const std::shared_ptr<const GgufFile> gguf = GgufFile::open(data(file));
  const ModelConfig config = read_model_config(*gguf);
  const std::unique_ptr<Backend> backend = make_cpu_backend("", 2);
  const Stage all[] = {{backend.get(), 0, config.n_layers()}};
  const int n = static_cast<int>(text.size());
  Model model(all, config, load_weights(all, decoder_tensors(gguf), config), {n, kv_type, n, false});
  KvSequence kv(model.kv_pool());
  const SequenceInput input{&kv, 0, text, {}, {}, true};
  CHECK(model.run_layers({&input, 1}, [] { return false; }));
  const size_t dim = static_cast<size_t>(config.model_dim);
  const std::unique_ptr<Buffer> normed = backend->allocate(text.size() * dim * sizeof(float));
  model.embedding_head().norm(normed->floats(), model.hidden(), n);
  std::vector<float> means;
  for (size_t j = 0; j < dim; ++j) {
    double sum = 0;
    for (size_t i = 0; i < text.size(); ++i) sum += static_cast<double>(normed->floats()[i * dim + j]);
    means.push_back(static_cast<float>(sum / n));
  }
  return means;
}

TEST("of a decoder: the mean of its normed rows, whatever the steps, beside generations") {
  const std::string file = "text-a-q4_0.gguf";
  const Texts texts = {some_tokens(1), some_tokens(33, 2), some_tokens(300, 3), some_tokens(7, 4), some_tokens(150, 5)};
  std::vector<float> want;
  for (const std::vector<TokenId>& text : texts) {
    const std::vector<float> mean = mean_of_rows(file, text, KvType::kF16);
    want.insert(want.end(), mean.begin(), mean.end());
  }
  for (const int n_batch : {5, 32, 512}) {
    LoadOptions o = options(file);
    o.n_batch = n_batch;
    o.n_ctx = 512;
    CHECK(same_bits(embed(*Engine::load(o), texts, 0, false), want));
  }
  const std::shared_ptr<Engine> engine = Engine::load(options(file));
  const auto lonely = start(*engine, sampled(some_tokens(40, 5), 60, 17));
  lonely->ended.wait();
  const auto busy = start(*engine, sampled(some_tokens(40, 5), 60, 17));
  const auto embedded = begin(*engine, params_of(texts, 0, false));
  CHECK(same_bits(rows_of(embedded), want));
  busy->ended.wait();
  CHECK(same(*busy, *lonely));
  wait_until([&] { return engine->stats().kv_pages_in_use == 0; });
}

TEST("cancelled, and closed") {
  const std::shared_ptr<Engine> engine = Engine::load(options(kEncoder));
  for (const bool closes : {false, true}) {
    const auto first = begin(*engine, params_of(some_texts(2000, 400)));
    const auto second = begin(*engine, params_of(some_texts(2000, 400)));
    if (closes) {
      engine->close();
    } else {
      first->request->cancel();
      second->request->cancel();
    }
    for (const auto& embedding : {first, second}) {
      const std::shared_ptr<const Error> error = embedding->ended.get();
      CHECK(error != nullptr && error->code() == ErrorCode::kDisposed);
    }
    if (!closes) wait_until([&] { return engine->stats().kv_pages_in_use == 0; });
  }
  CHECK_THROWS(kDisposed, "", embed(*engine, {{5}}));
}

TEST("what a callback throws ends its own request alone") {
  const std::shared_ptr<Engine> engine = Engine::load(options(kEncoder));
  std::promise<std::shared_ptr<const Error>> done;
  const auto request = engine->embed(
      params_of(some_texts(9, 20)), [](size_t, std::vector<float>&&) { throw std::bad_alloc(); },
      [&](std::shared_ptr<const Error> error) { done.set_value(std::move(error)); });
  const auto other = begin(*engine, params_of(some_texts(300, 20)));
  CHECK(done.get_future().get()->code() == ErrorCode::kOutOfMemory);
  CHECK(rows_of(other).size() == 300 * kDim);
}

TEST("what is refused") {
  const std::shared_ptr<Engine> engine = Engine::load(options(kEncoder));
  const auto with = [&](const auto& change) {
    EmbedParams params = params_of({{2, 5, 1}, {2, 1}});
    change(params);
    return rows_of(begin(*engine, std::move(params)));
  };
  CHECK_THROWS(kInvalidArgument, "EMPTY", with([](EmbedParams& p) { p.lengths.clear(); }));
  CHECK_THROWS(kInvalidArgument, "EMPTY", with([](EmbedParams& p) { p.lengths = {0, 5}; }));
  CHECK_THROWS(kInvalidArgument, "TEXT_LIMIT", with([](EmbedParams& p) { p.lengths = {3, 3}; }));
  CHECK_THROWS(kInvalidArgument, "TEXT_LIMIT", with([](EmbedParams& p) { p.lengths = {3, 1}; }));
  CHECK_THROWS(kInvalidArgument, "TEXT_LIMIT", with([](EmbedParams& p) { p.lengths.assign(kMaxTexts + 1, 1); }));
  CHECK_THROWS(kInvalidArgument, "BAD_TOKEN", with([](EmbedParams& p) { p.tokens[1] = 448; }));
  CHECK_THROWS(kInvalidArgument, "BAD_TOKEN", with([](EmbedParams& p) { p.tokens[4] = -1; }));
  CHECK_THROWS(kInvalidArgument, "DIMENSIONS", with([](EmbedParams& p) { p.n_dims = 65; }));
  CHECK_THROWS(kInvalidArgument, "DIMENSIONS", with([](EmbedParams& p) { p.n_dims = -1; }));
  // It writes nothing, and neither guesses nor sees.
  CHECK_THROWS(kUnsupportedInput, "EMBEDDING_MODEL", start(*engine, greedy({2, 5}, 3)));
  CHECK_THROWS(kUnsupportedInput, "EMBEDDING_MODEL", logits_of(*engine, {2, 5}));
  CHECK_THROWS(kUnsupportedInput, "EMBEDDING_MODEL", scores_of(*engine, {2, 5}, {{7}}));
  CHECK_THROWS(kUnsupportedInput, "EMBEDDING_MODEL", engine->save_state({"state", {2, 5}, {}, "", {}}));
  LoadOptions o = options(kEncoder);
  o.draft_path = data("text-a-f16.gguf");
  CHECK_THROWS(kUnsupportedInput, "EMBEDDING_MODEL", Engine::load(o));
  o = options("text-a-f16.gguf");
  o.draft_path = data(kEncoder);
  CHECK_THROWS(kUnsupportedModel, "EMBEDDING_MODEL", Engine::load(o));
  o = options(kEncoder);
  o.mmproj_path = data("mmproj-mm-a-f16.gguf");
  CHECK_THROWS(kUnsupportedInput, "EMBEDDING_MODEL", Engine::load(o));
}

}  // namespace
}  // namespace gemma

TEST_MAIN
