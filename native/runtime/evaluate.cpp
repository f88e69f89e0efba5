#include "runtime/evaluate.h"

#include <cstddef>
#include <span>
#include <utility>

namespace gemma {

std::shared_ptr<Request> evaluate(Engine& engine, EvaluateParams params,
                                  std::function<void(PositionScores&& scores)> on_scores, OnDone on_done) {
  std::vector<TokenId> tokens;
  if (params.next) tokens = params.logits.tokens;
  auto on_row = [on_scores = std::move(on_scores), tokens = std::move(tokens), rows = params.rows,
                 n_top = params.n_top](int position, std::span<const float> logits) {
    PositionScores scores;
    scores.position = position;
    if (rows) scores.row.assign(logits.begin(), logits.end());
    if (n_top > 0) scores.top = top_logprobs(logits, n_top);
    const size_t next = static_cast<size_t>(position) + 1;
    if (next < tokens.size()) {
      const auto token = static_cast<size_t>(tokens[next]);
      scores.next_logprob = static_cast<double>(logits[token]) - log_sum_exp(logits);
    }
    on_scores(std::move(scores));
  };
  return engine.logits(std::move(params.logits), std::move(on_row), std::move(on_done));
}

}  // namespace gemma
