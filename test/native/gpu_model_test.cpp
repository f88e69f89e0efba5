// The real Gemma 3 270M (GEMMA_TEST_MODEL) says a sentence on the emulated device: the CPU's tokens, which are those of
// transformers; and samples the same from the best 64 of its 262,144 logits, picked out on the device, as from all. A
// quarter of a billion weights through an emulator take a while, so one chip, unless GEMMA_TEST_CHIPS="sm_80 gfx942"
// wants others; GEMMA_TEST_TOKENS=24 goes on after the sentence.
#include <cstdlib>
#include <sstream>

#include "check.h"
#include "engine_helpers.h"

namespace gemma {
namespace {

using namespace gemma::test;

const std::vector<TokenId> kPrompt = {2, 818, 5279, 529, 7001, 563};  // "The capital of France is"

std::shared_ptr<Engine> load(const char* path, const std::string& device) {
  LoadOptions o;
  o.path = path;
  o.device = device;
  o.n_threads = 2;
  o.n_ctx = 64;
  std::shared_ptr<Engine> engine = Engine::load(o);
  CHECK(engine->info().device == device);
  return engine;
}

std::vector<TokenId> generate(Engine& engine, GenerateParams params) {
  const auto generation = start(engine, std::move(params));
  generation->ended.wait();
  CHECK(generation->finish.reason == FinishReason::kLength);
  return generation->tokens;
}

}  // namespace

TEST("the real 270M generates a sentence with the CPU's tokens") {
  const char* path = std::getenv("GEMMA_TEST_MODEL");
  if (path == nullptr) fail(__FILE__, __LINE__, "GEMMA_TEST_MODEL: expected the path of gemma-3-270m-q4_k_m.gguf");
  const char* wanted = std::getenv("GEMMA_TEST_CHIPS");
  const char* more = std::getenv("GEMMA_TEST_TOKENS");
  // " the capital of the country of France.", the case "capital" of test/reference/data/gemma-3-270m-q4_k_m.json.
  const std::vector<TokenId> sentence = {506, 5279, 529, 506, 2891, 529, 7001, 236761};
  const int n_tokens = std::max(more != nullptr ? static_cast<int>(std::strtol(more, nullptr, 10)) : 0,
                                static_cast<int>(sentence.size()));
  const std::vector<TokenId> cpu = generate(*load(path, "cpu"), greedy(kPrompt, n_tokens));
  CHECK(std::vector<TokenId>(cpu.begin(), cpu.begin() + 8) == sentence);
  std::istringstream chips(wanted != nullptr ? wanted : "sm_80");
  int n_chips = 0;
  for (std::string chip; chips >> chip; ++n_chips) {
    const std::shared_ptr<Engine> engine = load(path, "emulated:" + chip);
    const std::vector<TokenId> tokens = generate(*engine, greedy(kPrompt, n_tokens));
    const auto [here, there] = std::mismatch(tokens.begin(), tokens.end(), cpu.begin(), cpu.end());
    if (here != tokens.end() || there != cpu.end()) {
      fail(__FILE__, __LINE__,
           chip + ": " + std::to_string(here - tokens.begin()) + " of " + std::to_string(n_tokens) +
               " tokens are the CPU's");
    }
    GenerateParams params = sampled(kPrompt, 4, 11);
    params.sampling.top_k = 64;
    const std::vector<TokenId> of_best = generate(*engine, params);
    params.sampling.n_logprobs = 1;  // they need all logits
    CHECK(generate(*engine, params) == of_best);
  }
  CHECK(n_chips > 0);
}

}  // namespace gemma

TEST_MAIN
