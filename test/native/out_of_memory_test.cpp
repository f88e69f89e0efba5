// Every allocation fails once, and from every allocation on all fail: each call ends once, with the error of that name
// or with its result, and what comes after it is what it would have been.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "allocations.h"
#include "check.h"
#include "engine_helpers.h"
#include "runtime/device_list.h"
#include "runtime/evaluate.h"
#include "runtime/inspect.h"
#include "runtime/prompt_tokens.h"

namespace gemma {
namespace {

using namespace gemma::test;

constexpr int kSide = 112;
constexpr int kDim = 64;
constexpr int kRows = 16;  // of an image
// Nothing here takes seconds.
constexpr std::chrono::seconds kHang{120};

LoadOptions all_kinds() {
  LoadOptions o = options("mm-a-f16.gguf");
  o.mmproj_path = data("mmproj-mm-a-f16.gguf");
  o.n_ctx = 1024;
  o.prefix_cache_bytes = 8 << 20;
  return o;
}

std::vector<PromptImage> an_image() {
  return {{3, std::vector<float>(size_t{kRows} * kDim, 0.25f)}};
}

// What a call ended with.
struct Ending {
  std::promise<std::optional<Error>> promise;
  std::atomic<int> n{0};

  void set(const Error* error) {
    const Excused excused;
    if (++n == 1) promise.set_value(error != nullptr ? std::optional(*error) : std::nullopt);
  }
};

// Waits for the ending of a call that start(ending) begins. Throws its error.
void wait(const std::function<std::shared_ptr<Request>(std::shared_ptr<Ending>)>& start) {
  std::shared_ptr<Ending> ending;
  std::future<std::optional<Error>> ended;
  {
    const Excused excused;
    ending = std::make_shared<Ending>();
    ended = ending->promise.get_future();
  }
  const std::shared_ptr<Request> request = start(ending);
  const Excused excused;
  if (ended.wait_for(kHang) != std::future_status::ready) {
    std::printf("FAILED a call that never ends, allocation %lld\n", static_cast<long long>(refusals.first));
    std::_Exit(1);
  }
  const std::optional<Error> error = ended.get();
  CHECK(ending->n == 1);
  if (error) throw Error(*error);
}

std::shared_ptr<Request> begin(Engine& engine, GenerateParams params, std::shared_ptr<Ending> ending) {
  return engine.generate(std::move(params), [ending = std::move(ending)](GenerateEvent&& event) {
    if (event.kind == GenerateEvent::kFinish) ending->set(event.error.get());
  });
}

void generate(Engine& engine, const GenerateParams& params) {
  wait([&](std::shared_ptr<Ending> ending) { return begin(engine, params, std::move(ending)); });
}

GenerateParams with_everything() {
  GenerateParams p = sampled(some_tokens(40), 12, 7);
  p.sampling.n_logprobs = 2;
  p.sampling.repetition_penalty = 1.1f;
  p.sampling.penalty_window = 16;
  p.sampling.logit_bias = {{5, 1.0f}, {6, -2.0f}};
  p.stop_sequences = {"a stop sequence longer than a short string", "zzz"};
  return p;
}

// The tokens of a generation without a refusal.
std::vector<TokenId> reference(Engine& engine) {
  const auto g = start(engine, greedy(some_tokens(30), 12));
  CHECK(g->ended.wait_for(kHang) == std::future_status::ready);
  CHECK(g->finish.reason == FinishReason::kLength);
  return g->tokens;
}

struct Counts {
  int n_done = 0;
  int n_refused = 0;
};

// Runs a call and says whether it ended for want of memory. Anything else that is thrown is a failure.
bool is_refused(const std::function<void()>& call) {
  try {
    call();
    return false;
  } catch (const Error& error) {
    const Excused excused;
    if (error.code() != ErrorCode::kOutOfMemory)
      fail(__FILE__, __LINE__, std::string(error_code_name(error.code())) + ": " + error.what());
  } catch (const std::bad_alloc&) {
  }
  return true;
}

// Under sanitizers a prime number of allocations lies between two that are refused: all of them would take minutes.
int64_t step() {
  const char* wanted = std::getenv("GEMMA_TEST_REFUSE_EVERY");
  return wanted == nullptr ? 1 : std::max(1, std::atoi(wanted));
}

// call with its nth allocation refused, for every n that it comes to, or every stride-th; then with all from the nth on.
// after: called without refusals each time.
void sweep(const char* what, const std::function<void()>& call, const std::function<void()>& after,
           int64_t stride = 1) {
  for (const bool persistent : {false, true}) {
    Counts counts;
    int64_t n = 1;
    for (bool reached = true; reached; n += step() * stride) {
      refusals.n_seen = 0;
      refusals.first = n;
      refusals.last = persistent ? INT64_MAX : n;
      refusals.on = true;
      bool refused = false;
      try {
        refused = is_refused(call);
      } catch (...) {
        refusals.on = false;
        std::printf("  %s, allocation %lld%s\n", what, static_cast<long long>(n), persistent ? " and later" : "");
        throw;
      }
      refusals.on = false;
      reached = refusals.n_seen >= n;
      ++(refused ? counts.n_refused : counts.n_done);
      after();
    }
    std::printf("  %s, %s: %lld allocations, %d refused, %d done without\n", what, persistent ? "all later" : "one",
                static_cast<long long>(refusals.n_seen), counts.n_refused, counts.n_done);
    CHECK(counts.n_refused > 0);
  }
}

// For calls of an engine: afterwards it answers as before and its cache is empty but for what it keeps.
void sweep_engine(const char* what, Engine& engine, const std::function<void()>& call) {
  const std::vector<TokenId> want = reference(engine);
  sweep(what, call, [&] { CHECK(reference(engine) == want); });
}

TEST("loading") {
  std::shared_ptr<Engine> engine;
  sweep(
      "load", [&] { engine = Engine::load(all_kinds()); },
      [&] {
        if (engine) CHECK(!reference(*engine).empty());
        engine.reset();
      });
}

TEST("loading with a draft model") {
  LoadOptions o = options("text-a-f16.gguf");
  o.n_threads = 1;
  o.n_ctx = 256;
  o.draft_path = data("text-a-q4_0.gguf");
  std::shared_ptr<Engine> engine = Engine::load(o);
  sweep_engine("generate with a draft model", *engine, [&] { generate(*engine, with_everything()); });
  sweep("load", [&] { engine = Engine::load(o); }, [] {});
}

TEST("loading with weights that are quantised on the way") {
  LoadOptions o = options("text-a-f16.gguf");
  o.n_ctx = 256;
  o.quantize = "q8_0";
  std::shared_ptr<Engine> engine = Engine::load(o);
  const std::vector<TokenId> want = reference(*engine);
  engine.reset();
  sweep(
      "load", [&] { engine = Engine::load(o); },
      [&] {
        if (engine) CHECK(reference(*engine) == want);
        engine.reset();
      });
}

TEST("what a file says") {
  sweep("summary", [] { summarize_file(all_kinds(), {512, 1024}); }, [] {});
  sweep("devices", [] { list_devices(); }, [] {});
}

TEST("requests") {
  const std::shared_ptr<Engine> engine = Engine::load(all_kinds());
  sweep_engine("generate", *engine, [&] { generate(*engine, with_everything()); });
  GenerateParams repeated = greedy(some_tokens(8), 20);  // prompt lookup guesses
  for (int i = 0; i < 4; ++i)
    repeated.tokens.insert(repeated.tokens.end(), repeated.tokens.begin(), repeated.tokens.begin() + 8);
  sweep_engine("generate with guesses", *engine, [&] { generate(*engine, repeated); });
  GenerateParams pictured = greedy(some_tokens(90), 4);
  pictured.images = an_image();
  sweep_engine("generate with an image", *engine, [&] {
    generate(*engine, pictured);
    generate(*engine, pictured);  // from what the first has left
  });
  const std::vector<TokenId> tokens = some_tokens(70);
  sweep_engine("scores", *engine, [&] {
    wait([&](std::shared_ptr<Ending> ending) {
      EvaluateParams params;
      params.logits.tokens = tokens;
      params.logits.all = true;
      params.n_top = 3;
      params.next = true;
      return evaluate(
          *engine, std::move(params), [](PositionScores&&) {},
          [ending](std::shared_ptr<const Error> error) { ending->set(error.get()); });
    });
  });
  sweep_engine("scores of candidates", *engine, [&] {
    wait([&](std::shared_ptr<Ending> ending) {
      return engine->score(
          {tokens, {}, {}, some_tokens(9), {3, 1, 5}}, [](const CandidateScores&) {},
          [ending](std::shared_ptr<const Error> error) { ending->set(error.get()); });
    });
  });
  sweep_engine("embeddings", *engine, [&] {
    wait([&](std::shared_ptr<Ending> ending) {
      EncodeParams params{std::vector<uint8_t>(size_t{2} * kSide * kSide * 3, 99), 2, {}};
      return engine->encode_images(
          std::move(params), [](double) {},
          [ending](std::vector<float>&&, std::shared_ptr<const Error> error) { ending->set(error.get()); });
    });
  });
}

TEST("adapters") {
  LoadOptions o = options("adapters/text-f16.gguf");
  o.n_ctx = 256;
  const std::vector<std::string> names = {"plain-f16.gguf", "dora", "head", "token-rows"};
  std::vector<NamedAdapter> adapters;
  for (const std::string& name : names) adapters.push_back(golden_adapter(name));
  const std::shared_ptr<Engine> engine = Engine::load(o);
  const std::vector<TokenId> want = reference(*engine);
  for (const NamedAdapter& adapter : adapters) {
    sweep(("load and unload " + adapter.name).c_str(),
          [&] {
            engine->load_adapter(adapter, [] { return false; });
            engine->unload_adapter(adapter.name);
          },
          [&] {
            if (!engine->adapters().empty()) engine->unload_adapter(adapter.name);
            CHECK(reference(*engine) == want);
          });
  }
  for (const NamedAdapter& adapter : adapters) engine->load_adapter(adapter, [] { return false; });
  GenerateParams p = with_everything();
  p.adapters = {{"dora", 1}, {"plain-f16.gguf", 0.5f}, {"head", -1}};
  sweep_engine("generate with adapters", *engine, [&] { generate(*engine, p); });
  sweep_engine("generate while an adapter goes", *engine, [&] {
    std::shared_ptr<Ending> ending;
    {
      const Excused excused;
      ending = std::make_shared<Ending>();
      if (engine->adapters().size() < adapters.size()) engine->load_adapter(adapters[0], [] { return false; });
    }
    const std::shared_ptr<Request> first = begin(*engine, p, ending);
    engine->unload_adapter(names[0]);
    GenerateParams other = p;
    other.adapters = {{"token-rows", 1}, {"dora", 1}};
    generate(*engine, other);
  });
  sweep_engine("scores with adapters", *engine, [&] {
    wait([&](std::shared_ptr<Ending> ending) {
      return engine->score(
          {some_tokens(30), {}, {{"head", 1}}, some_tokens(4), {3, 1}}, [](const CandidateScores&) {},
          [ending](std::shared_ptr<const Error> error) { ending->set(error.get()); });
    });
  });
  o.adapters = adapters;
  std::shared_ptr<Engine> other;
  // Most of these allocations are those of loading and of load_adapter().
  sweep("load a model with adapters", [&] { other = Engine::load(o); }, [&] { other.reset(); }, 29);
}

TEST("embeddings of texts") {
  LoadOptions o = options("embedding-f16.gguf");
  o.n_batch = 32;
  for (const bool is_encoder : {true, false}) {
    if (!is_encoder) o.path = data("text-a-f16.gguf");
    const std::shared_ptr<Engine> engine = Engine::load(o);
    const EmbedParams texts{some_tokens(90), {3, 50, 20, 17}, 0, true, {}};
    std::vector<float> rows;
    const auto embed = [&] {
      rows.clear();
      wait([&](std::shared_ptr<Ending> ending) {
        return engine->embed(
            texts, [&](size_t, std::vector<float>&& some) { rows.insert(rows.end(), some.begin(), some.end()); },
            [ending](std::shared_ptr<const Error> error) { ending->set(error.get()); });
      });
    };
    embed();
    const std::vector<float> want = rows;
    sweep("embed", embed, [&] {
      embed();
      CHECK(rows == want);
    });
  }
}

TEST("saving and restoring a state, and users who share a beginning") {
  const std::shared_ptr<Engine> engine = Engine::load(all_kinds());
  const std::string folder =
      (std::filesystem::temp_directory_path() / ("gemma-memory-" + std::to_string(std::random_device()()))).string();
  std::filesystem::create_directory(folder);
  const SaveParams saved{folder + "/state", some_tokens(40), {}, "a text that is longer than a short string", {}};
  sweep_engine("save", *engine, [&] { engine->save_state(saved); });
  engine->save_state(saved);
  sweep_engine("restore", *engine, [&] { engine->restore_state(saved.path); });
  for (const auto& entry : std::filesystem::directory_iterator(folder)) CHECK(entry.path().filename() == "state");
  std::filesystem::remove_all(folder);
  GenerateParams user = greedy(some_tokens(300), 2);
  sweep_engine("two users", *engine, [&] {
    user.tokens[0] = user.tokens[0] == 2 ? 3 : 2;  // what the last ones have left is of no use
    std::shared_ptr<Ending> ending;
    {
      const Excused excused;
      ending = std::make_shared<Ending>();
    }
    const std::shared_ptr<Request> first = begin(*engine, user, ending);
    generate(*engine, user);
  });
}

TEST("a callback for whose event there is no memory ends its own request alone") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  const auto other = start(*engine, greedy(some_tokens(30), 40));
  for (int n_told = 0; n_told < 12; ++n_told) {
    auto ending = std::make_shared<Ending>();
    auto ended = ending->promise.get_future();
    const auto request =
        engine->generate(sampled(some_tokens(20), 10, 1), [ending, n = n_told](GenerateEvent&& event) mutable {
          if (event.kind == GenerateEvent::kFinish) return ending->set(event.error.get());
          if (n-- == 0) throw std::bad_alloc();
        });
    CHECK(ended.wait_for(kHang) == std::future_status::ready);
    const std::optional<Error> error = ended.get();
    CHECK(ending->n == 1);
    CHECK(error.has_value() == (n_told < 11));  // progress of the prompt, ten tokens
    if (error) CHECK(error->code() == ErrorCode::kOutOfMemory);
  }
  other->ended.wait();
  CHECK(other->finish.reason == FinishReason::kLength && other->tokens.size() == 40);
}

TEST("several requests at once: each ends once") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  const std::vector<TokenId> want = reference(*engine);
  constexpr size_t kCalls = 4;
  for (const bool persistent : {false, true}) {
    for (int64_t n = 1; n <= 400; n += 3) {
      std::vector<std::shared_ptr<Ending>> endings;
      std::vector<std::future<std::optional<Error>>> ended;
      std::vector<std::shared_ptr<Request>> requests(kCalls);
      for (size_t i = 0; i < kCalls; ++i) {
        endings.push_back(std::make_shared<Ending>());
        ended.push_back(endings.back()->promise.get_future());
      }
      refusals.n_seen = 0;
      refusals.first = n;
      refusals.last = persistent ? INT64_MAX : n;
      refusals.on = true;
      for (size_t i = 0; i < kCalls; ++i) {
        try {
          requests[i] = begin(*engine, sampled(some_tokens(20, static_cast<int>(i)), 10, i), endings[i]);
        } catch (const std::bad_alloc&) {
          endings[i]->set(&out_of_memory());
        }
      }
      {
        const Excused excused;
        for (size_t i = 0; i < kCalls; ++i) {
          CHECK(ended[i].wait_for(kHang) == std::future_status::ready);
          const std::optional<Error> error = ended[i].get();
          CHECK(!error || error->code() == ErrorCode::kOutOfMemory);
        }
      }
      refusals.on = false;
      CHECK(reference(*engine) == want);
      for (const auto& ending : endings) CHECK(ending->n == 1);
    }
  }
}

TEST("closing needs no memory") {
  for (const bool busy : {false, true}) {
    std::shared_ptr<Engine> engine = Engine::load(all_kinds());
    const auto running = busy ? start(*engine, greedy(some_tokens(30), 500)) : nullptr;
    const int64_t before = live_bytes;
    refusals.n_seen = 0;
    refusals.first = 1;
    refusals.last = INT64_MAX;
    refusals.on = true;
    engine->close();
    refusals.on = false;
    CHECK(live_bytes < before);
    if (busy) CHECK(running->ended.wait_for(kHang) == std::future_status::ready);
  }
}

TEST("grammars") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  const Tokenizer& tokenizer = engine->tokenizer();
  bool cached = false;
  for (const GrammarSource& source : {GrammarSource{GrammarKind::kRegex, "a(bc?|d){2}"},
                                      GrammarSource{GrammarKind::kJsonSchema, R"({"enum": ["a", 1]})"}}) {
    GrammarCompiler compiler(tokenizer);
    compiler.compile({GrammarKind::kEbnf, "root ::= \"x\""}, &cached);  // the vocabulary is there
    size_t n_compiled = 0;
    sweep(
        "compiling",
        [&] {
          GrammarSource other = source;
          other.root = std::to_string(++n_compiled);  // which is another source, and means nothing to these kinds
          compiler.compile(other, &cached);
        },
        [] {});
  }
  sweep("a vocabulary", [&] { GrammarCompiler(tokenizer).compile({GrammarKind::kRegex, "a"}, &cached); }, [] {});
  const std::shared_ptr<const Grammar> grammar =
      engine->compile_grammar({GrammarKind::kRegex, "(ab[0-9]){2,5}x"}, &cached);
  GenerateParams p = greedy(some_tokens(8), 20);
  p.grammar = grammar;
  sweep_engine("generate in a grammar", *engine, [&] { generate(*engine, p); });
}

TEST("text to tokens and back") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  const Tokenizer& tokenizer = engine->tokenizer();
  std::string text;
  for (int i = 0; i < 20; ++i) text += "hello there \xc3\xa9 ";
  sweep(
      "tokens",
      [&] {
        // Made in place: a list would be copied, and the standard library of GCC may not survive that the copy of a
        // variant with a string throws.
        std::vector<PromptPart> parts;
        parts.emplace_back(Marker::kBos);
        parts.emplace_back(text);
        const std::vector<TokenId> tokens = encode_parts(tokenizer, parts, Trust::kUser);
        tokenizer.decode(tokens);
      },
      [] {});
}

}  // namespace
}  // namespace gemma

TEST_MAIN
