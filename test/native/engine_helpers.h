// Requests to an engine on the tiny models, for the tests of the engine and of drafting.
#pragma once

#include <atomic>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "runtime/engine.h"

namespace gemma::test {

inline std::string data(const std::string& name) {
  return std::string(GEMMA_TEST_DATA) + "/" + name;
}

inline LoadOptions options(const std::string& file) {
  LoadOptions o;
  o.path = data(file);
  o.n_threads = 2;
  return o;
}

inline std::vector<TokenId> some_tokens(int n, int seed = 1) {
  std::vector<TokenId> tokens = {2};
  for (uint32_t x = static_cast<uint32_t>(seed) * 7919u; static_cast<int>(tokens.size()) < n;) {
    x = x * 1664525u + 1013904223u;
    tokens.push_back(static_cast<TokenId>(10 + (x >> 16) % 400));
  }
  return tokens;
}

// All rows (or the last one) of logits, one after the other.
inline std::vector<float> logits_of(Engine& engine, const std::vector<TokenId>& tokens, bool all = true) {
  std::vector<float> out;
  std::promise<std::shared_ptr<const Error>> done;
  const auto request = engine.logits(
      {tokens, all}, [&](int, std::span<const float> row) { out.insert(out.end(), row.begin(), row.end()); },
      [&](std::shared_ptr<const Error> error) { done.set_value(std::move(error)); });
  if (const std::shared_ptr<const Error> error = done.get_future().get()) throw Error(*error);
  return out;
}

struct Generation {
  std::vector<TokenId> tokens;
  std::vector<SampledToken> scores;
  std::string text;
  std::atomic<int> n_events{0};
  int n_finish = 0;
  GenerateEvent finish;
  std::shared_ptr<Request> request;
  std::promise<void> done;
  std::shared_future<void> ended = done.get_future().share();

  std::function<void(GenerateEvent&&)> listener() {
    return [this](GenerateEvent&& event) {
      ++n_events;
      text += event.text;
      if (event.kind == GenerateEvent::kToken) {
        tokens.push_back(event.token.token);
        scores.push_back(std::move(event.token));
      }
      if (event.kind == GenerateEvent::kFinish) {
        finish = std::move(event);
        if (++n_finish == 1) done.set_value();
      }
    };
  }
};

inline std::shared_ptr<Generation> start(Engine& engine, GenerateParams params) {
  auto generation = std::make_shared<Generation>();
  generation->request = engine.generate(std::move(params), generation->listener());
  return generation;
}

inline GenerateParams greedy(std::vector<TokenId> tokens, int max_tokens) {
  GenerateParams p;
  p.tokens = std::move(tokens);
  p.max_tokens = max_tokens;
  p.sampling.temperature = 0;
  p.stop_at_end_token = false;
  p.max_unread = 0;
  return p;
}

inline GenerateParams sampled(std::vector<TokenId> tokens, int max_tokens, uint64_t seed) {
  GenerateParams p = greedy(std::move(tokens), max_tokens);
  p.sampling.temperature = 1;
  p.sampling.seed = seed;
  return p;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && !a.empty() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace gemma::test
