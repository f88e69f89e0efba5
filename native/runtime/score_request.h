// Log-probabilities of candidates that may follow a prompt. The prompt is read once; each candidate is a branch of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "runtime/logits_request.h"
#include "runtime/prompt.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

struct AdapterMix;
struct LoadedModel;
class SequenceRequest;
struct Signal;

// Bounds of a request, so that the tables it keeps stay small beside the model.
inline constexpr size_t kMaxCandidates = 16384;
inline constexpr size_t kMaxCandidateTokens = 262144;

struct ScoreParams {
  std::vector<TokenId> tokens;  // the prompt
  std::vector<PromptImage> images;
  std::vector<AdapterUse> adapters;
  std::vector<TokenId> candidates;  // of all candidates, one after the other
  std::vector<int> lengths;         // tokens of each, at least one
  bool background = false;          // Request::background()
};

// Of the tokens of candidates, one after the other. Valid during the call.
struct CandidateScores {
  size_t first = 0;                    // candidate; as many follow as are whole
  std::span<const double> logprobs;    // natural logarithms, each of a token given all that stands before it
  std::span<const uint8_t> likeliest;  // 1 where no token had a larger logit, nor one with a smaller id the same
};
// Every candidate comes once, in order, those that a step finished together. What it throws ends the request.
using OnScores = std::function<void(const CandidateScores& scores)>;

// params must have passed check_score(); loaded must live until the request is finished. on_done as of
// make_logits_request().
std::shared_ptr<SequenceRequest> make_score_request(std::shared_ptr<Signal> signal, LoadedModel& loaded,
                                                    std::shared_ptr<const AdapterMix> adapters, ScoreParams params,
                                                    OnScores on_scores, OnDone on_done);

}  // namespace gemma
