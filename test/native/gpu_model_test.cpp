// The real Gemma 3 270M (GEMMA_TEST_MODEL) says a sentence on the emulated device: the CPU's tokens, which are those of
// transformers. A quarter of a billion weights through an emulator take a while, so one chip, unless
// GEMMA_TEST_CHIPS="sm_80 gfx942" wants others; GEMMA_TEST_TOKENS=24 goes on after the sentence.
#include <cstdlib>
#include <sstream>

#include "check.h"
#include "engine_helpers.h"

namespace gemma {
namespace {

using namespace gemma::test;

std::vector<TokenId> generate(const char* path, const std::string& device, int n_tokens) {
  LoadOptions o;
  o.path = path;
  o.device = device;
  o.n_threads = 2;
  o.n_ctx = 64;
  const std::shared_ptr<Engine> engine = Engine::load(o);
  CHECK(engine->info().device == device);
  const std::vector<TokenId> prompt = {2, 818, 5279, 529, 7001, 563};  // "The capital of France is"
  const auto generation = start(*engine, greedy(prompt, n_tokens));
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
  const std::vector<TokenId> cpu = generate(path, "cpu", n_tokens);
  CHECK(std::vector<TokenId>(cpu.begin(), cpu.begin() + 8) == sentence);
  std::istringstream chips(wanted != nullptr ? wanted : "sm_80");
  int n_chips = 0;
  for (std::string chip; chips >> chip; ++n_chips) {
    const std::vector<TokenId> tokens = generate(path, "emulated:" + chip, n_tokens);
    const auto [here, there] = std::mismatch(tokens.begin(), tokens.end(), cpu.begin(), cpu.end());
    if (here != tokens.end() || there != cpu.end()) {
      fail(__FILE__, __LINE__,
           chip + ": " + std::to_string(here - tokens.begin()) + " of " + std::to_string(n_tokens) +
               " tokens are the CPU's");
    }
  }
  CHECK(n_chips > 0);
}

}  // namespace gemma

TEST_MAIN
