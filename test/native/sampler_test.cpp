// Each step of the sampler against a plain reimplementation in double: sort everything, then cut.
#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <map>
#include <random>

#include "backend/backend.h"
#include "check.h"

using namespace gemma;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Plain {
  TokenId token;
  double logit;
  double probability;
};

// What is left to draw from, best first, with probabilities that sum to 1.
std::vector<Plain> distribution(const std::vector<float>& logits, const SamplingParams& p,
                                const std::vector<TokenId>& banned, const std::vector<TokenId>& history) {
  std::vector<double> l(logits.begin(), logits.end());
  for (const auto& [token, bias] : p.logit_bias) l[static_cast<size_t>(token)] += static_cast<double>(bias);
  std::map<TokenId, int> counts;
  size_t from = 0;
  if (p.penalty_window >= 0 && history.size() > static_cast<size_t>(p.penalty_window)) {
    from = history.size() - static_cast<size_t>(p.penalty_window);
  }
  for (size_t i = from; i < history.size(); ++i) ++counts[history[i]];
  for (const auto& [token, count] : counts) {
    double& x = l[static_cast<size_t>(token)];
    x = x > 0 ? x / static_cast<double>(p.repetition_penalty) : x * static_cast<double>(p.repetition_penalty);
    x -= count * static_cast<double>(p.frequency_penalty) + static_cast<double>(p.presence_penalty);
  }
  for (const TokenId token : banned) l[static_cast<size_t>(token)] = -std::numeric_limits<double>::infinity();

  std::vector<Plain> all;
  for (size_t i = 0; i < l.size(); ++i) {
    if (!std::isinf(l[i])) all.push_back({static_cast<TokenId>(i), l[i], 0});
  }
  std::stable_sort(all.begin(), all.end(), [](const Plain& a, const Plain& b) { return a.logit > b.logit; });
  if (p.temperature == 0.0f) {
    all.resize(1);
    all[0].probability = 1;
    return all;
  }
  if (p.top_k > 0 && all.size() > static_cast<size_t>(p.top_k)) all.resize(static_cast<size_t>(p.top_k));
  const auto normalise = [&] {
    double sum = 0;
    for (const Plain& x : all) sum += x.probability;
    for (Plain& x : all) x.probability /= sum;
  };
  for (Plain& x : all) x.probability = std::exp((x.logit - all[0].logit) / static_cast<double>(p.temperature));
  normalise();
  if (p.top_p < 1) {
    double sum = 0;
    size_t n = 0;
    while (n < all.size() && (n == 0 || sum < static_cast<double>(p.top_p))) sum += all[n++].probability;
    all.resize(n);
    normalise();
  }
  const double best = all[0].probability;
  std::erase_if(all, [&](const Plain& x) { return x.probability < static_cast<double>(p.min_p) * best; });
  normalise();
  return all;
}

// Counts of n draws from logits.
std::map<TokenId, int> draw(const std::vector<float>& logits, const SamplingParams& p,
                            const std::vector<TokenId>& banned, const std::vector<TokenId>& history, int n) {
  Sampler sampler(p, banned);
  for (const TokenId token : history) sampler.accept(token);
  std::map<TokenId, int> counts;
  for (int i = 0; i < n; ++i) {
    std::vector<float> copy = logits;
    ++counts[sampler.sample(copy).token];
  }
  return counts;
}

// The drawn tokens are those of the plain distribution, as often as it says: chi-square below its mean plus 5 standard
// deviations, cells of fewer than 5 expected draws taken together.
void check_draws(const std::vector<float>& logits, const SamplingParams& p, const std::vector<TokenId>& banned = {},
                 const std::vector<TokenId>& history = {}, int n_draws = 4000) {
  const std::vector<Plain> want = distribution(logits, p, banned, history);
  std::map<TokenId, int> got = draw(logits, p, banned, history, n_draws);
  double chi_square = 0;
  double rare_want = 0;
  double rare_got = 0;
  int cells = 0;
  for (const Plain& x : want) {
    const double expected = x.probability * n_draws;
    const double seen = got[x.token];
    got.erase(x.token);
    if (expected < 5) {
      rare_want += expected;
      rare_got += seen;
      continue;
    }
    chi_square += (seen - expected) * (seen - expected) / expected;
    ++cells;
  }
  if (rare_want >= 5) {
    chi_square += (rare_got - rare_want) * (rare_got - rare_want) / rare_want;
    ++cells;
  } else {
    CHECK(rare_got <= 30);  // fewer than 5 expected
  }
  CHECK(got.empty());  // nothing from outside
  const double limit = (cells - 1) + 5 * std::sqrt(2.0 * cells);
  if (!(chi_square <= limit)) {
    test::fail(__FILE__, __LINE__, "chi-square " + std::to_string(chi_square) + " above " + std::to_string(limit));
  }
}

std::vector<float> random_logits(size_t n, float spread, uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<float> logits(n);
  for (float& x : logits) x = spread * (static_cast<float>(rng() >> 8) * 0x1p-23f - 1.0f);
  return logits;
}

SamplingParams only_temperature(float temperature = 1.0f) {
  SamplingParams p;
  p.temperature = temperature;
  p.top_k = 0;
  p.top_p = 1;
  p.seed = 12345;
  return p;
}

}  // namespace

TEST("greedy: the best, of equals the lowest id") {
  SamplingParams p;
  p.temperature = 0;
  for (const size_t n : std::initializer_list<size_t>{1, 2, 255, 256, 257, 5000, 262144}) {
    std::vector<float> logits = random_logits(n, 3, 1);
    const auto best = static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    CHECK(Sampler(p, {}).sample(logits).token == best);
    std::vector<float> equal(n, -2.0f);
    CHECK(Sampler(p, {}).sample(equal).token == 0);
    equal.assign(n, -1.0f);
    equal[n / 2] = equal[n - 1] = 1.0f;
    CHECK(Sampler(p, {}).sample(equal).token == static_cast<TokenId>(n / 2));
  }
}

TEST("draws follow the distribution, each step alone") {
  const std::vector<float> logits = random_logits(40, 3, 2);
  check_draws(logits, only_temperature());
  check_draws(logits, only_temperature(0.3f));
  check_draws(logits, only_temperature(5.0f));
  SamplingParams p = only_temperature();
  for (const int k : {1, 2, 7, 39, 40, 41, 1000}) {
    p.top_k = k;
    check_draws(logits, p);
  }
  p = only_temperature();
  for (const float top_p : {0.0f, 0.1f, 0.5f, 0.9f, 0.999f}) {
    p.top_p = top_p;
    check_draws(logits, p);
  }
  p = only_temperature();
  for (const float min_p : {0.001f, 0.05f, 0.5f, 1.0f}) {
    p.min_p = min_p;
    check_draws(logits, p);
  }
  p = only_temperature();
  p.logit_bias = {{3, 2.5f}, {4, -kInf}, {5, -1.0f}, {3, 0.5f}};
  check_draws(logits, p);
  check_draws(logits, only_temperature(), {0, 1, 2, 39});
}

TEST("draws follow the distribution, steps together") {
  std::mt19937 rng(3);
  const auto pick = [&](std::vector<float> of) { return of[rng() % of.size()]; };
  for (int i = 0; i < 60; ++i) {
    const size_t n = 1 + rng() % 700;
    SamplingParams p;
    p.seed = rng();
    p.temperature = pick({0.0f, 0.2f, 0.7f, 1.0f, 2.0f});
    p.top_k = static_cast<int>(pick({0, 1, 5, 64, 600}));
    p.top_p = pick({0.3f, 0.95f, 1.0f});
    p.min_p = pick({0.0f, 0.02f, 0.2f});
    p.repetition_penalty = pick({1.0f, 1.3f, 0.8f});
    p.frequency_penalty = pick({0.0f, 0.4f, -0.5f});
    p.presence_penalty = pick({0.0f, 0.6f});
    p.penalty_window = static_cast<int>(pick({-1, 0, 3, 64}));
    std::vector<TokenId> history;
    for (size_t j = rng() % 100; j > 0; --j) history.push_back(static_cast<TokenId>(rng() % std::min<size_t>(n, 20)));
    std::vector<TokenId> banned;
    if (n > 10 && i % 2 == 0) banned = {1, static_cast<TokenId>(n - 1)};
    check_draws(random_logits(n, 4, static_cast<uint32_t>(rng())), p, banned, history);
  }
}

TEST("top-k keeps the lower ids of equal logits") {
  SamplingParams p = only_temperature();
  p.top_k = 3;
  std::vector<float> logits(1000, 1.0f);
  logits[700] = 2.0f;
  const std::map<TokenId, int> counts = draw(logits, p, {}, {}, 500);
  CHECK(counts.size() == 3);
  CHECK(counts.contains(0) && counts.contains(1) && counts.contains(700));
}

TEST("a full vocabulary: the kept tokens are the sorted ones") {
  const std::vector<float> logits = random_logits(262144, 12, 5);
  SamplingParams p;  // Gemma's defaults
  check_draws(logits, p, {255999, 256000}, {}, 200);
  p.top_k = 0;
  p.top_p = 0.5f;
  p.temperature = 0.7f;
  check_draws(logits, p, {}, {}, 50);
}

TEST("penalties see a window of the last tokens") {
  SamplingParams p = only_temperature(0);
  p.presence_penalty = 1;
  p.penalty_window = 2;
  const std::vector<float> logits = {0.5f, 0.4f, 0.3f};
  Sampler sampler(p, {});
  const auto next = [&](TokenId accepted) {
    sampler.accept(accepted);
    std::vector<float> copy = logits;
    return sampler.sample(copy).token;
  };
  CHECK(next(0) == 1);
  CHECK(next(1) == 2);
  CHECK(next(2) == 0);  // 0 has left the window
  CHECK(next(2) == 0);
  CHECK(next(0) == 1);
}

TEST("a seed gives the same tokens, another seed others") {
  const std::vector<float> logits = random_logits(5000, 5, 6);
  const auto tokens = [&](uint64_t seed) {
    SamplingParams p;
    p.seed = seed;
    Sampler sampler(p, {});
    std::vector<TokenId> all;
    for (int i = 0; i < 100; ++i) {
      std::vector<float> copy = logits;
      all.push_back(sampler.sample(copy).token);
    }
    return all;
  };
  CHECK(tokens(1) == tokens(1));
  CHECK(tokens(1) != tokens(2));
  CHECK(tokens(0) != tokens(uint64_t{1} << 63));
}

TEST("the generator is xoshiro256** seeded by splitmix64") {
  // 100 equal logits: the token is floor(100 u) of the generator, written a second time here.
  uint64_t state = 42;
  uint64_t s[4];
  for (uint64_t& word : s) {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    word = z ^ (z >> 31);
  }
  CHECK(s[0] == 0xBDD732262FEB6E95u);  // published first output of splitmix64 for seed 42
  const auto rotate = [](uint64_t x, int by) { return x << by | x >> (64 - by); };
  SamplingParams p = only_temperature();
  p.seed = 42;
  Sampler sampler(p, {});
  for (int i = 0; i < 1000; ++i) {
    const uint64_t result = rotate(s[1] * 5, 7) * 9;
    const uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    std::vector<float> logits(100, 0.0f);
    CHECK(sampler.sample(logits).token == static_cast<TokenId>(100 * (static_cast<double>(result >> 11) * 0x1p-53)));
  }
}

TEST("log-probabilities are the model's own") {
  const std::vector<float> logits = random_logits(3000, 6, 8);
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  SamplingParams p;
  p.n_logprobs = 5;
  p.logit_bias = {{17, 100.0f}, {17, -50.0f}};
  p.repetition_penalty = 2;
  Sampler sampler(p, {});
  sampler.accept(17);
  std::vector<float> copy = logits;
  const SampledToken sampled = sampler.sample(copy);
  CHECK(sampled.token == 17 && sampled.chosen.token == 17);
  CHECK(sampled.chosen.logit == logits[17]);
  CHECK_CLOSE((std::vector<float>{sampled.chosen.logprob}),
              (std::vector<float>{static_cast<float>(static_cast<double>(logits[17]) - std::log(sum))}), 1e-6);
  std::vector<TokenId> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<TokenId>(i);
  std::stable_sort(order.begin(), order.end(), [&](TokenId a, TokenId b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  CHECK(sampled.top.size() == 5);
  for (size_t i = 0; i < 5; ++i) {
    CHECK(sampled.top[i].token == order[i]);
    CHECK(sampled.top[i].logit == logits[static_cast<size_t>(order[i])]);
    CHECK_CLOSE((std::vector<float>{sampled.top[i].logprob}),
                (std::vector<float>{static_cast<float>(static_cast<double>(sampled.top[i].logit) - std::log(sum))}),
                1e-6);
  }
  CHECK(top_logprobs(logits, 0).empty());
  CHECK(top_logprobs(std::vector<float>{-kInf, 1.0f}, 5).size() == 1);
  CHECK(top_logprobs(logits, 3000).size() == 3000);
  copy = logits;
  p.n_logprobs = 0;
  CHECK(Sampler(p, {}).sample(copy).top.empty());
}

TEST("log_sum_exp does not overflow") {
  CHECK_CLOSE((std::vector<float>{static_cast<float>(log_sum_exp(std::vector<float>(1000, 1e30f)) / 1e30)}),
              (std::vector<float>{1.0f}), 1e-6);
  CHECK_CLOSE((std::vector<float>{static_cast<float>(log_sum_exp(std::vector<float>{-1000.0f, -1000.0f}))}),
              (std::vector<float>{-999.306853f}), 1e-4);
}

TEST("NaN and infinity are errors wherever they are, even where the token is banned") {
  for (const float bad : {std::nanf(""), -std::nanf(""), kInf}) {
    for (const size_t at : std::initializer_list<size_t>{0, 1, 255, 256, 998, 999}) {
      std::vector<float> logits = random_logits(1000, 3, 9);
      logits[at] = bad;
      const std::vector<TokenId> banned = {static_cast<TokenId>(at)};
      CHECK_THROWS(kNonFinite, "NONFINITE", Sampler(SamplingParams{}, banned).sample(logits));
    }
  }
  std::vector<float> masked = {1.0f, -kInf, 2.0f};
  SamplingParams p;
  p.temperature = 0;
  CHECK(Sampler(p, {}).sample(masked).token == 2);
}

TEST("nothing left to sample is an error") {
  std::vector<float> logits = {1.0f, 2.0f};
  const std::vector<TokenId> banned = {0, 1};
  for (const float temperature : {0.0f, 1.0f}) {
    CHECK_THROWS(kInvalidArgument, "ALL_BANNED", Sampler(only_temperature(temperature), banned).sample(logits));
  }
  std::vector<float> none(300, -kInf);
  CHECK_THROWS(kInvalidArgument, "ALL_BANNED", Sampler(SamplingParams{}, {}).sample(none));
}

TEST("extreme finite values") {
  SamplingParams p;
  p.logit_bias = {{0, 3e38f}};
  p.repetition_penalty = 1e-30f;
  std::vector<float> logits = {3e38f, 3e38f, -3e38f};
  Sampler sampler(p, {});
  sampler.accept(1);
  const TokenId token = sampler.sample(logits).token;
  CHECK(token == 0 || token == 1);
  logits = {0.0f, 1.0f, 2.0f};
  CHECK(Sampler(only_temperature(1e-30f), {}).sample(logits).token == 2);
  // Banned ids past the vocabulary (a file with fewer rows) are nothing to ban.
  logits = {0.0f, 1.0f};
  const std::vector<TokenId> banned = {255999};
  CHECK(Sampler(only_temperature(0), banned).sample(logits).token == 1);
}

TEST("the logits that wanted() asks for give the token that all of them give") {
  constexpr int kVocab = 3001;
  const std::vector<TokenId> banned = {5, 77, 2999};
  std::mt19937 rng(31);
  for (int run = 0; run < 300; ++run) {
    SamplingParams p;
    p.temperature = run % 3 == 0 ? 0.0f : 0.7f;
    p.top_k = 1 + static_cast<int>(rng() % 40);
    p.seed = rng();
    if (run % 2 == 0) p.repetition_penalty = 1.3f, p.frequency_penalty = 0.2f;
    // A banned one among them, and the best.
    if (run % 5 < 3) p.logit_bias = {{77, 9.0f}, {12, 4.0f}, {2000, -kInf}};
    Sampler dense(p, banned);
    Sampler sparse(p, banned);
    for (int step = 0; step < 5; ++step) {
      // Few different values: equals are decided by their ids.
      std::vector<float> all(kVocab);
      for (float& x : all) x = static_cast<float>(rng() % 64) / 8;
      const TopRows top = sparse.wanted();
      std::vector<int32_t> tokens(top.always.begin(), top.always.end());
      std::vector<int32_t> others;
      for (int32_t id = 0; id < kVocab; ++id) {
        if (std::find(top.always.begin(), top.always.end(), id) == top.always.end() &&
            std::find(top.never.begin(), top.never.end(), id) == top.never.end())
          others.push_back(id);
      }
      const auto value = [&](int32_t id) { return all[static_cast<size_t>(id)]; };
      std::shuffle(others.begin(), others.end(), rng);
      std::stable_sort(others.begin(), others.end(), [&](int32_t a, int32_t b) { return value(a) > value(b); });
      const float least = value(others[static_cast<size_t>(top.n_best) - 1]);
      for (const int32_t id : others) {
        if (value(id) >= least || rng() % 100 == 0) tokens.push_back(id);
      }
      std::shuffle(tokens.begin() + static_cast<ptrdiff_t>(top.always.size()), tokens.end(), rng);
      std::vector<float> values;
      for (const int32_t id : tokens) values.push_back(value(id));
      const TokenId got = sparse.sample(Logits{values, tokens, top.always.size()}).token;
      CHECK(got == dense.sample(all).token);
      dense.accept(got);
      sparse.accept(got);
    }
  }
}

TEST(
    "of allowed tokens, those that wanted() asks for give the token that a full row gives; the only one needs no "
    "draw") {
  constexpr int kVocab = 5003;
  const std::vector<TokenId> banned = {5, 77, 2999};
  std::mt19937 rng(32);
  for (int run = 0; run < 200; ++run) {
    SamplingParams p;
    p.temperature = run % 3 == 0 ? 0.0f : 0.7f;
    p.top_k = run % 4 == 0 ? 0 : 1 + static_cast<int>(rng() % 40);
    p.seed = rng();
    if (run % 2 == 0) p.repetition_penalty = 1.3f, p.frequency_penalty = 0.2f;
    if (run % 5 < 3) p.logit_bias = {{77, 9.0f}, {12, 4.0f}, {2000, -kInf}};
    Sampler dense(p, banned);
    Sampler sparse(p, banned);
    for (int step = 0; step < 6; ++step) {
      // Few, one, many.
      TokenMask mask;
      mask.words.resize((kVocab + 31) / 32);
      const int n = step % 3 == 0 ? 20 : step % 3 == 1 ? 1 : kVocab / 2 + 500;
      for (int i = 0; i < n; ++i) {
        const size_t token = rng() % kVocab;
        mask.words[token / 32] |= 1u << token % 32;
      }
      mask.words[6 / 32] |= n > 1 ? 1u << 6 : 0;
      for (TokenId id = 0; id < kVocab; ++id) mask.n_allowed += mask.allows(id);
      std::vector<float> all(kVocab);
      for (float& x : all) x = static_cast<float>(rng() % 64) / 8;
      std::vector<float> row = all;
      if (n == 1 && dense.bans(mask.first())) {
        CHECK_THROWS(kInvalidArgument, "ALL_BANNED", dense.sample(Logits{row, {}, 0}, &mask));
        continue;
      }
      const TokenId want = dense.sample(Logits{row, {}, 0}, &mask).token;
      CHECK(mask.allows(want) && std::find(banned.begin(), banned.end(), want) == banned.end());
      std::vector<TokenId> always;
      const TopRows top = sparse.wanted({}, mask, &always);
      CHECK(std::all_of(top.always.begin(), top.always.end(), [&](TokenId id) { return mask.allows(id); }));
      CHECK(top.only_always == (mask.n_allowed <= TokenMask::kMostCounted));
      CHECK(!top.only_always || top.always.size() == mask.n_allowed);
      std::vector<int32_t> tokens(top.always.begin(), top.always.end());
      std::vector<float> values;
      if (!top.only_always && top.n_best == 0) {  // all of them
        CHECK(sparse.sample(Logits{all, {}, 0}, &mask).token == want);
      } else {
        for (TokenId id = 0; id < kVocab && !top.only_always; ++id) {
          if (mask.allows(id) && std::find(top.always.begin(), top.always.end(), id) == top.always.end() &&
              std::find(top.never.begin(), top.never.end(), id) == top.never.end())
            tokens.push_back(id);
        }
        for (const int32_t id : tokens) values.push_back(all[static_cast<size_t>(id)]);
        CHECK(sparse.sample(Logits{values, tokens, top.always.size()}, &mask).token == want);
      }
      dense.accept(want);
      sparse.accept(want);
    }
  }
  // As many draws with the only token in between as without.
  SamplingParams p;
  p.seed = 9;
  Sampler one(p, {});
  Sampler other(p, {});
  TokenMask only;
  only.words = {1u << 3};
  only.n_allowed = 1;
  for (int i = 0; i < 50; ++i) {
    std::vector<float> logits(40);
    for (float& x : logits) x = static_cast<float>(rng() % 64) / 8;
    std::vector<float> same = logits;
    std::vector<float> bound = logits;
    CHECK(one.sample(Logits{bound, {}, 0}, &only).token == 3);
    CHECK(one.sample(logits).token == other.sample(same).token);
  }
}

TEST("parameters outside of their range") {
  const auto refuse = [](auto change) {
    SamplingParams p;
    change(&p);
    CHECK_THROWS(kInvalidArgument, "BAD_SAMPLING", Sampler(p, {}));
  };
  const float nan = std::nanf("");
  for (const float x : {-0.1f, kInf, nan}) refuse([x](SamplingParams* p) { p->temperature = x; });
  for (const float x : {-0.1f, 1.1f, nan}) refuse([x](SamplingParams* p) { p->top_p = x; });
  for (const float x : {-0.1f, 1.1f, nan}) refuse([x](SamplingParams* p) { p->min_p = x; });
  for (const float x : {0.0f, -1.0f, kInf, nan}) refuse([x](SamplingParams* p) { p->repetition_penalty = x; });
  for (const float x : {kInf, -kInf, nan, 1e7f}) refuse([x](SamplingParams* p) { p->frequency_penalty = x; });
  for (const float x : {kInf, -kInf, nan, 1e7f}) refuse([x](SamplingParams* p) { p->presence_penalty = x; });
  for (const float x : {kInf, nan}) refuse([x](SamplingParams* p) { p->logit_bias = {{1, x}}; });
  refuse([](SamplingParams* p) { p->top_k = -1; });
  refuse([](SamplingParams* p) { p->penalty_window = -2; });
  refuse([](SamplingParams* p) { p->n_logprobs = -1; });
  for (const TokenId token : {-1, 3}) {
    SamplingParams p;
    p.logit_bias = {{token, 1.0f}};
    std::vector<float> logits(3, 0.0f);
    CHECK_THROWS(kInvalidArgument, "BAD_TOKEN", Sampler(p, {}).sample(logits));
  }
}

TEST_MAIN
