// Requests to an engine on the tiny models, for the tests of the engine and of drafting.
#pragma once

#include <atomic>
#include <cmath>
#include <cstring>
#include <fstream>
#include <future>
#include <iterator>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/engine.h"
#include "safetensors.h"

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

// A case of a golden: its list of numbers of a name, from the JSON.
inline std::vector<double> golden_numbers(const std::string& golden, const std::string& name, const std::string& list) {
  std::ifstream in(data(golden + ".json"));
  const std::string json((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const std::string key = "\"" + list + "\": [";
  const size_t at = json.find(key, json.find("\"name\": \"" + name + "\""));
  if (at == std::string::npos) throw std::runtime_error("no " + list + " of " + name + " in " + golden);
  const std::string text = json.substr(at + key.size(), json.find(']', at) - at - key.size());
  std::vector<double> numbers;
  for (const char* p = text.c_str(); *p != '\0';) {
    char* end = nullptr;
    numbers.push_back(std::strtod(p, &end));
    p = *end == ',' ? end + 1 : end + std::strspn(end, " \n");
  }
  return numbers;
}

// Token ids of a case of a golden, and its logits.
struct Golden {
  std::vector<TokenId> tokens;
  std::vector<float> logits;

  Golden(const std::string& golden, const std::string& name) {
    for (const double id : golden_numbers(golden, name, "ids")) tokens.push_back(static_cast<TokenId>(id));
    logits = read_safetensors(data(golden + ".safetensors")).at(name + ".logits").as<float>();
  }
};

// RMS of the difference over RMS of the reference about its mean. NaN when a logit is.
inline double normalised_error(std::span<const float> got, std::span<const float> want) {
  double mean = 0;
  for (const float v : want) mean += static_cast<double>(v) / static_cast<double>(want.size());
  double error = 0;
  double spread = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - static_cast<double>(want[i]), 2);
    spread += std::pow(static_cast<double>(want[i]) - mean, 2);
  }
  return std::sqrt(error / spread);
}

// All rows (or the last one) of logits, one after the other.
inline std::vector<float> logits_of(Engine& engine, const std::vector<TokenId>& tokens, bool all = true,
                                    std::vector<PromptImage> images = {}) {
  std::vector<float> out;
  std::promise<std::shared_ptr<const Error>> done;
  const auto request = engine.logits(
      {tokens, all, std::move(images)},
      [&](int, std::span<const float> row) { out.insert(out.end(), row.begin(), row.end()); },
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
