// Requests to an engine on the tiny models, for the tests of the engine and of drafting.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <future>
#include <iterator>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "backend/cpu/kernels.h"
#include "runtime/engine.h"
#include "safetensors.h"

namespace gemma::test {

inline std::string data(const std::string& name) {
  return std::string(GEMMA_TEST_DATA) + "/" + name;
}

// The instruction sets that tests of whole models run on: all of this processor, or, with GEMMA_TEST_MODEL_ISAS="best", the
// best. Instrumented code takes that: the tests of kernels have every set, and a whole model calls them all alike.
inline std::vector<std::string> model_isas() {
  const char* wanted = std::getenv("GEMMA_TEST_MODEL_ISAS");
  if (wanted != nullptr && std::string(wanted) == "best") return {cpu::select_kernels("").isa};
  std::vector<std::string> isas;
  for (const cpu::KernelRow& row : cpu::kernel_table()) {
    if (row.available()) isas.emplace_back(row.isa);
  }
  return isas;
}

inline LoadOptions options(const std::string& file) {
  LoadOptions o;
  o.path = data(file);
  // Where programs run side by side on as many cores, two threads of each wait for those of the others.
  const char* wanted = std::getenv("GEMMA_TEST_THREADS");
  o.n_threads = wanted != nullptr ? std::atoi(wanted) : 2;
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

// A case of a golden: its list of numbers of a name, from the JSON; of no case, "", the first list of that name.
inline std::vector<double> golden_numbers(const std::string& golden, const std::string& name, const std::string& list) {
  std::ifstream in(data(golden + ".json"));
  const std::string json((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const std::string key = "\"" + list + "\": [";
  const size_t at = json.find(key, name.empty() ? 0 : json.find("\"name\": \"" + name + "\""));
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

// Largest error of a position's logits, of n_vocab each: all positions together would hide one that is wrong. NaN when
// an error is, and when there are not as many values.
inline double worst_row(std::span<const float> got, std::span<const float> want, int n_vocab) {
  if (got.empty() || got.size() != want.size()) return std::nan("");
  double worst = 0;
  const size_t n = static_cast<size_t>(n_vocab);
  for (size_t i = 0; i < got.size(); i += n) {
    const double error = normalised_error(got.subspan(i, n), want.subspan(i, n));
    if (!(error <= worst)) worst = error;
    if (std::isnan(worst)) break;
  }
  return worst;
}

// An adapter of data("adapters"), for adapters/text-f16.gguf, with what its configuration says.
inline NamedAdapter golden_adapter(const std::string& name) {
  NamedAdapter adapter{name, {data("adapters/" + name), std::nullopt}};
  if (name.ends_with(".gguf")) return adapter;
  adapter.source.path += "/adapter_model.safetensors";
  PeftSettings settings;
  for (const std::string& module : peft_modules(adapter.source.path)) {
    if (name == "bf16") {
      settings.modules.push_back({module, 4, 4.0f});
    } else {
      settings.modules.push_back({module, 2, 2.0f});
    }
  }
  settings.dora = name == "dora";
  settings.bias = name == "lora-bias";
  if (name == "saved-norm") settings.saved = {"input_layernorm"};
  if (name == "token-rows") settings.token_ids = {290, 300};
  adapter.source.peft = std::move(settings);
  return adapter;
}

// All rows (or the last one) of logits, one after the other.
inline std::vector<float> logits_of(Engine& engine, const std::vector<TokenId>& tokens, bool all = true,
                                    std::vector<PromptImage> images = {}, std::vector<AdapterUse> adapters = {}) {
  std::vector<float> out;
  std::promise<std::shared_ptr<const Error>> done;
  const auto request = engine.logits(
      {tokens, all, std::move(images), std::move(adapters)},
      [&](int, std::span<const float> row) { out.insert(out.end(), row.begin(), row.end()); },
      [&](std::shared_ptr<const Error> error) { done.set_value(std::move(error)); });
  if (const std::shared_ptr<const Error> error = done.get_future().get()) throw Error(*error);
  return out;
}

// Log-probabilities of the tokens of candidates after a prompt, one after the other.
inline std::vector<double> scores_of(Engine& engine, const std::vector<TokenId>& tokens,
                                     const std::vector<std::vector<TokenId>>& candidates,
                                     std::vector<PromptImage> images = {}) {
  ScoreParams params{tokens, std::move(images), {}, {}, {}};
  for (const std::vector<TokenId>& candidate : candidates) {
    params.candidates.insert(params.candidates.end(), candidate.begin(), candidate.end());
    params.lengths.push_back(static_cast<int>(candidate.size()));
  }
  std::vector<double> out;
  size_t n_scored = 0;  // tokens of the candidates that came
  size_t n_candidates = 0;
  std::promise<std::shared_ptr<const Error>> done;
  const auto request = engine.score(
      std::move(params),
      [&](const CandidateScores& scores) {
        if (scores.first != n_candidates || scores.logprobs.empty())
          throw std::runtime_error("candidates out of order");
        if (scores.likeliest.size() != scores.logprobs.size()) throw std::runtime_error("sizes differ");
        out.insert(out.end(), scores.logprobs.begin(), scores.logprobs.end());
        while (n_scored < out.size()) n_scored += candidates.at(n_candidates++).size();
        if (n_scored != out.size()) throw std::runtime_error("a part of a candidate");
      },
      [&](std::shared_ptr<const Error> error) { done.set_value(std::move(error)); });
  if (const std::shared_ptr<const Error> error = done.get_future().get()) throw Error(*error);
  if (n_candidates != candidates.size()) throw std::runtime_error("candidates are missing");
  return out;
}

// The same by the logits of each candidate behind the prompt, read as one text.
inline std::vector<double> scores_by_logits(Engine& engine, const std::vector<TokenId>& tokens,
                                            const std::vector<std::vector<TokenId>>& candidates,
                                            const std::vector<PromptImage>& images = {}) {
  const size_t n_vocab = static_cast<size_t>(engine.config().n_vocab);
  std::vector<double> out;
  for (const std::vector<TokenId>& candidate : candidates) {
    std::vector<TokenId> text = tokens;
    text.insert(text.end(), candidate.begin(), candidate.end());
    const std::vector<float> logits = logits_of(engine, text, true, images);
    for (size_t i = 0; i < candidate.size(); ++i) {
      const std::span<const float> row = std::span(logits).subspan((tokens.size() + i - 1) * n_vocab, n_vocab);
      out.push_back(static_cast<double>(row[static_cast<size_t>(candidate[i])]) - log_sum_exp(row));
    }
  }
  return out;
}

struct Generation {
  std::vector<TokenId> tokens;
  std::vector<SampledToken> scores;
  std::string text;
  std::atomic<int> n_events{0};
  std::atomic<int> n_tokens{0};
  int n_read = 0;  // of the tokens, those that were acknowledged
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
        ++n_tokens;
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

// Waits for a state that the engine comes to by itself.
inline void wait_until(const std::function<bool()>& holds) {
  while (!holds()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

// Reads generations to their ends, an event of each in turn.
inline void read_all(const std::vector<std::shared_ptr<Generation>>& generations) {
  const auto ended = [](const std::shared_ptr<Generation>& g) {
    return g->ended.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  };
  while (!std::all_of(generations.begin(), generations.end(), ended)) {
    for (const std::shared_ptr<Generation>& g : generations) {
      if (g->n_read < g->n_tokens && !ended(g)) ++g->n_read, g->request->acknowledge(1);
    }
    std::this_thread::yield();
  }
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

// So many requests have a place in a step, and so many sequences one in the cache.
constexpr int kPlaces = 64;

// Waits until a generation is paused, and lets others take its part of the cache.
inline void lose_pages(Engine& engine, const Generation& paused) {
  wait_until([&] { return engine.stats().paused == 1; });
  const uint64_t pages = engine.stats().kv_pages_in_use;
  std::vector<std::shared_ptr<Generation>> others;
  for (int i = 0; i < kPlaces; ++i) {
    GenerateParams other = greedy(some_tokens(3, i), 5);
    other.draft = DraftMode::kOff;
    other.max_unread = 1;
    others.push_back(start(engine, std::move(other)));
  }
  wait_until([&] { return engine.stats().paused == 1 + kPlaces; });
  for (const auto& other : others) other->request->cancel();
  for (const auto& other : others) other->ended.wait();
  wait_until([&] { return engine.stats().paused == 1; });
  if (pages == 0 || engine.stats().kv_pages_in_use != 0 || paused.n_finish != 0)
    throw std::runtime_error("a paused generation has kept its pages");
}

// Equal to the bit, scores included.
inline bool same(const Generation& a, const Generation& b) {
  const auto& x = a.scores;
  const auto& y = b.scores;
  return a.tokens == b.tokens && a.text == b.text && a.finish.reason == b.finish.reason &&
         a.finish.matched_stop == b.finish.matched_stop && a.finish.n_output == b.finish.n_output &&
         std::equal(x.begin(), x.end(), y.begin(), y.end(), [](const SampledToken& s, const SampledToken& t) {
           return s.token == t.token && s.chosen.logprob == t.chosen.logprob && s.top.size() == t.top.size() &&
                  std::equal(s.top.begin(), s.top.end(), t.top.begin(), [](const auto& u, const auto& v) {
                    return u.token == v.token && u.logit == v.logit && u.logprob == v.logprob;
                  });
         });
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && !a.empty() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace gemma::test
