// What callers ask of a text's logits: the logits themselves, the best tokens, the probability of what follows.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/engine.h"
#include "runtime/sampler.h"

namespace gemma {

struct EvaluateParams {
  LogitsParams logits;
  bool rows = false;  // hand over the logits themselves
  int n_top = 0;      // and so many of the best tokens
  bool next = false;  // and the log-probability of the token that follows in the input
};

// Of one position, what was asked for.
struct PositionScores {
  int position = 0;
  std::vector<float> row;              // [n_vocab]
  std::vector<TokenLogprob> top;       // best first
  std::optional<double> next_logprob;  // natural log; none after the last token
};

// Engine::logits() with on_scores for every wanted position in order, on the engine thread. Throws Error as it does.
std::shared_ptr<Request> evaluate(Engine& engine, EvaluateParams params,
                                  std::function<void(PositionScores&& scores)> on_scores, OnDone on_done);

}  // namespace gemma
