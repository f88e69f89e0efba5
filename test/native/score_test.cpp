// Log-probabilities of candidates: those of the logits of prompt and candidate read as one text, to the bit, and those of
// transformers; in company, cut short, and asked for wrongly.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <future>
#include <limits>
#include <thread>

#include "check.h"
#include "engine_helpers.h"
#include "runtime/score_request.h"

namespace gemma {
namespace {

using namespace gemma::test;

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && !a.empty() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

// More than are branches of one step; of one token, of more than a step has rows, alike in part, alike as a whole.
std::vector<std::vector<TokenId>> some_candidates() {
  std::vector<std::vector<TokenId>> candidates;
  for (const int n : {2, 1, 3, 71, 1, 7, 5, 2, 37, 1}) {
    candidates.push_back(some_tokens(n, n));
    candidates.push_back(some_tokens(n + 2, n));
    candidates.back()[0] = 20 + n;
  }
  candidates.push_back(candidates[3]);
  candidates.push_back(candidates[1]);
  candidates.back().push_back(31);
  candidates.push_back({40});
  return candidates;
}

TEST("candidates have the log-probabilities of their logits behind the prompt, to the bit") {
  const std::vector<std::vector<TokenId>> candidates = {some_tokens(3, 2), {9}, some_tokens(37, 2), some_tokens(5, 3)};
  for (const std::string& isa : model_isas()) {
    LoadOptions o = options("text-k-mix.gguf");
    o.isa = isa;
    const std::vector<TokenId> prompt = some_tokens(47, 4);
    const std::shared_ptr<Engine> engine = Engine::load(o);
    CHECK(same_bits(scores_of(*engine, prompt, candidates), scores_by_logits(*engine, prompt, candidates)));
    wait_until([&] { return engine->stats().kv_pages_in_use == 0; });
  }
}

TEST("scores do not depend on threads, on chunks or on where pages end") {
  const std::vector<std::vector<TokenId>> candidates = some_candidates();
  for (const int n_prompt : {1, 32, 47}) {  // 32: a page
    LoadOptions o = options("text-a-f16.gguf");
    o.kv_type = n_prompt == 32 ? KvType::kQ8_0 : KvType::kF16;
    const std::vector<TokenId> prompt = some_tokens(n_prompt, 4);
    const std::vector<double> want = scores_by_logits(*Engine::load(o), prompt, candidates);
    for (const int n_batch : {1, 13, 512}) {
      o.n_batch = n_batch;
      o.n_threads = n_batch == 1 ? 3 : 1;
      CHECK(same_bits(scores_of(*Engine::load(o), prompt, candidates), want));
    }
  }
}

TEST("a prompt far longer than the window of local layers") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-q4_0.gguf"));
  const std::vector<TokenId> prompt = some_tokens(701);
  const std::vector<std::vector<TokenId>> candidates = {some_tokens(3, 2), some_tokens(83, 3), {17}, some_tokens(2, 5)};
  CHECK(same_bits(scores_of(*engine, prompt, candidates), scores_by_logits(*engine, prompt, candidates)));
}

TEST("a prompt that others have read is not read again") {
  LoadOptions o = options("text-a-q4_0.gguf");
  o.prefix_cache_bytes = 8 << 20;
  const std::shared_ptr<Engine> engine = Engine::load(o);
  const std::vector<TokenId> prompt = some_tokens(401);
  const std::vector<std::vector<TokenId>> candidates = {some_tokens(3, 2), {17}, some_tokens(2, 5)};
  const std::vector<double> want = scores_of(*engine, prompt, candidates);
  CHECK(engine->stats().cached_prompt_tokens == 0);
  CHECK(same_bits(scores_of(*engine, prompt, candidates), want));
  const uint64_t n_cached = engine->stats().cached_prompt_tokens;
  CHECK(n_cached >= 368 && n_cached < prompt.size());
  const auto g = start(*engine, greedy(prompt, 3));
  g->ended.wait();
  CHECK(g->finish.n_cached >= 368);
}

// Against the log-softmax of golden logits. The engine's logits of this model are within 3e-4 of their spread, which is
// below 3, in the root mean square (engine_test.cpp); a single one may be a few times that off.
TEST("log-probabilities of transformers") {
  const Golden golden("text-a", "long");
  LoadOptions o = options("text-a-f16.gguf");
  o.kv_type = KvType::kF32;
  const std::shared_ptr<Engine> engine = Engine::load(o);
  const size_t n_vocab = static_cast<size_t>(engine->config().n_vocab);
  CHECK(golden.logits.size() == golden.tokens.size() * n_vocab);
  const auto want = [&](size_t position, TokenId token) {
    double sum = 0;
    const std::span<const float> row = std::span(golden.logits).subspan(position * n_vocab, n_vocab);
    for (const float logit : row) sum += std::exp(static_cast<double>(logit));
    return static_cast<double>(row[static_cast<size_t>(token)]) - std::log(sum);
  };
  for (const size_t n_prompt : {size_t{1}, size_t{11}, golden.tokens.size() - 5}) {
    const auto cut = golden.tokens.begin() + static_cast<std::ptrdiff_t>(n_prompt);
    const std::vector<TokenId> prompt(golden.tokens.begin(), cut);
    const std::vector<TokenId> rest(cut, golden.tokens.end());
    const std::vector<double> got = scores_of(*engine, prompt, {{7}, rest, {rest[0], 9}});
    CHECK(got.size() == 1 + rest.size() + 2);
    CHECK(std::abs(got[0] - want(n_prompt - 1, 7)) < 5e-3);
    for (size_t i = 0; i < rest.size(); ++i) CHECK(std::abs(got[1 + i] - want(n_prompt - 1 + i, rest[i])) < 5e-3);
    CHECK(got[1 + rest.size()] == got[1]);
    CHECK(std::abs(got.back() - want(n_prompt, 9)) < 5e-3);
  }
}

// All that can follow: the probabilities of one token add up to one.
TEST("every token of the vocabulary as a candidate") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-q4_0.gguf"));
  std::vector<std::vector<TokenId>> candidates;
  for (TokenId id = 0; id < engine->config().n_vocab; ++id) candidates.push_back({id});
  const uint64_t n_before = engine->stats().steps;
  double sum = 0;
  for (const double logprob : scores_of(*engine, some_tokens(40), candidates)) sum += std::exp(logprob);
  CHECK(std::abs(sum - 1) < 1e-9);
  CHECK(engine->stats().steps == n_before + 1);  // the prompt says it all
}

TEST("scores do not depend on company, and hold nobody up") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-q4_0.gguf"));
  const std::vector<std::vector<TokenId>> candidates = some_candidates();
  const std::vector<double> alone = scores_of(*engine, some_tokens(50), candidates);
  const auto lonely = start(*engine, sampled(some_tokens(40, 5), 60, 17));
  lonely->ended.wait();

  std::vector<std::shared_ptr<Generation>> company;
  for (int i = 0; i < 3; ++i) company.push_back(start(*engine, sampled(some_tokens(30 + 17 * i, i), 150, 3)));
  std::vector<std::vector<TokenId>> many;
  for (int i = 0; i < 3000; ++i) many.push_back(some_tokens(3, i));
  std::promise<void> done;
  ScoreParams params{some_tokens(20), {}, {}, {}, {}};
  for (const std::vector<TokenId>& candidate : many) {
    params.candidates.insert(params.candidates.end(), candidate.begin(), candidate.end());
    params.lengths.push_back(3);
  }
  const auto long_one =
      engine->score(std::move(params), [](const CandidateScores&) {}, [&](auto) { done.set_value(); });
  const auto again = start(*engine, sampled(some_tokens(40, 5), 60, 17));
  CHECK(same_bits(scores_of(*engine, some_tokens(50), candidates), alone));
  again->ended.wait();
  CHECK(same(*again, *lonely));
  for (const auto& g : company) g->ended.wait();
  long_one->cancel();
  done.get_future().wait();
}

TEST("cancelled at any moment") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  const auto survivor = start(*engine, greedy(some_tokens(300), 200));
  const auto want = start(*engine, greedy(some_tokens(300), 200));
  for (int round = 0; round < 40; ++round) {
    std::promise<std::shared_ptr<const Error>> done;
    ScoreParams params{some_tokens(100, round), {}, {}, some_tokens(4000, round), std::vector<int>(1000, 4)};
    const auto request = engine->score(
        std::move(params), [](const CandidateScores&) {},
        [&](std::shared_ptr<const Error> error) { done.set_value(std::move(error)); });
    std::this_thread::sleep_for(std::chrono::microseconds(211 * round));
    request->cancel();
    request->cancel();
    const std::shared_ptr<const Error> error = done.get_future().get();
    CHECK(error == nullptr || error->detail() == "CANCELLED");
  }
  survivor->ended.wait();
  want->ended.wait();
  CHECK(survivor->tokens == want->tokens && survivor->tokens.size() == 200);
  wait_until([&] { return engine->stats().kv_pages_in_use == 0; });
}

TEST("a callback that throws ends its own request alone") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  const auto other = start(*engine, greedy(some_tokens(30), 40));
  std::promise<std::shared_ptr<const Error>> done;
  const auto request = engine->score(
      {some_tokens(9), {}, {}, some_tokens(40), std::vector<int>(20, 2)},
      [](const CandidateScores&) { throw std::bad_alloc(); },
      [&](std::shared_ptr<const Error> error) { done.set_value(std::move(error)); });
  const std::shared_ptr<const Error> error = done.get_future().get();
  CHECK(error != nullptr && error->code() == ErrorCode::kOutOfMemory);
  other->ended.wait();
  CHECK(other->tokens.size() == 40);
}

TEST("what cannot be scored") {
  LoadOptions o = options("text-a-f16.gguf");
  o.n_ctx = 64;
  const std::shared_ptr<Engine> engine = Engine::load(o);
  const auto score = [&](int n_prompt, std::vector<TokenId> candidates, std::vector<int> lengths) {
    std::vector<TokenId> prompt = n_prompt > 0 ? some_tokens(n_prompt) : std::vector<TokenId>();
    engine->score(
        {std::move(prompt), {}, {}, std::move(candidates), std::move(lengths)}, [](const CandidateScores&) {},
        [](auto) {});
  };
  constexpr int kMost = std::numeric_limits<int>::max();
  CHECK_THROWS(kInvalidArgument, "EMPTY", score(0, {5}, {1}));
  CHECK_THROWS(kInvalidArgument, "EMPTY", score(9, {}, {}));
  CHECK_THROWS(kInvalidArgument, "EMPTY", score(9, {5, 6}, {1, 0, 1}));
  CHECK_THROWS(kInvalidArgument, "EMPTY", score(9, {5, 6}, {1, -1}));
  CHECK_THROWS(kInvalidArgument, "EMPTY", score(9, {5, 6}, {std::numeric_limits<int>::min()}));
  CHECK_THROWS(kInvalidArgument, "CANDIDATE_LIMIT", score(9, {5, 6}, {3}));
  CHECK_THROWS(kInvalidArgument, "CANDIDATE_LIMIT", score(9, {5, 6}, {1, kMost}));
  CHECK_THROWS(kInvalidArgument, "CANDIDATE_LIMIT", score(9, {5, 6}, {1}));
  CHECK_THROWS(kInvalidArgument, "CANDIDATE_LIMIT", score(9, {}, {1}));
  CHECK_THROWS(kInvalidArgument, "BAD_TOKEN", score(9, {5, -1}, {2}));
  CHECK_THROWS(kInvalidArgument, "BAD_TOKEN", score(9, {5, engine->config().n_vocab}, {1, 1}));
  CHECK_THROWS(kContextFull, "CONTEXT_OVERFLOW", score(60, std::vector<TokenId>(6, 7), {1, 5}));
  CHECK_THROWS(kContextFull, "CONTEXT_OVERFLOW", score(65, {7}, {1}));
  CHECK_THROWS(kInvalidArgument, "CANDIDATE_LIMIT",
               score(9, std::vector<TokenId>(kMaxCandidates + 1, 7), std::vector<int>(kMaxCandidates + 1, 1)));
  CHECK_THROWS(kInvalidArgument, "CANDIDATE_LIMIT", score(9, std::vector<TokenId>(kMaxCandidateTokens + 1, 7), {1}));
  CHECK(scores_of(*engine, some_tokens(60), {some_tokens(4, 3), {8}}).size() == 5);  // to the end of the context
  wait_until([&] { return engine->stats().kv_pages_in_use == 0; });
  engine->close();
  CHECK_THROWS(kDisposed, "", score(9, {5}, {1}));
}

}  // namespace
}  // namespace gemma

TEST_MAIN
