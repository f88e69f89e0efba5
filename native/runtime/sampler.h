// Logits -> one token: logit bias, penalties, bans, then greedy or top-k, temperature, top-p, min-p and a draw. The
// exact rule of each step is at the head of sampler.cpp.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "grammar/grammar.h"
#include "model/logits.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

struct TopRows;  // backend.h

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  int top_k = 64;            // 0: off
  float top_p = 0.95f;       // 1: off
  float min_p = 0.0f;        // 0: off
  float repetition_penalty = 1.0f;
  float frequency_penalty = 0.0f;
  float presence_penalty = 0.0f;
  int penalty_window = 64;  // last tokens (prompt included) that penalties look at; 0: off, -1: all
  uint64_t seed = 0;
  std::vector<std::pair<TokenId, float>> logit_bias;  // added to the logit; -infinity bans
  int n_logprobs = 0;                                 // best alternatives reported per token (0: none)
};

struct TokenLogprob {
  TokenId token = -1;
  float logit = 0;
  float logprob = 0;  // natural log, of the model's own distribution (before bias, penalties and temperature)
};

struct SampledToken {
  TokenId token = -1;
  TokenLogprob chosen;            // filled when n_logprobs > 0
  std::vector<TokenLogprob> top;  // n_logprobs entries, best first
};

// A copy goes on as the original would: the same window, the same random numbers.
class Sampler {
 public:
  // banned: ids that are never sampled (image markers, ids without text). Must outlive the sampler.
  // Throws Error{kInvalidArgument, BAD_SAMPLING} for parameters outside of their range.
  Sampler(const SamplingParams& params, std::span<const TokenId> banned);

  // Adds a token of the prompt or the output to the penalty window.
  void accept(TokenId token);

  // Which logits sample() needs next; the others may be left out. next: tokens that may be accepted before it. The
  // spans are valid until the sampler is used again.
  TopRows wanted(std::span<const TokenId> next = {});
  // The same where only some tokens are allowed. *always: memory that the spans are of too, as mask is.
  TopRows wanted(std::span<const TokenId> next, const TokenMask& mask, std::vector<TokenId>* always);
  // Whether a bias keeps a token from being sampled whatever its logit is.
  bool bans(TokenId token) const;

  // mask: the tokens to choose from; where there is one only, no random number is drawn. null: all tokens.
  // logits are changed in place. Throws Error: kNonFinite, NONFINITE when they hold NaN or +infinity;
  // kInvalidArgument, ALL_BANNED when no token is left; kInvalidArgument, BAD_TOKEN for a biased id past the end.
  SampledToken sample(const Logits& logits, const TokenMask* mask = nullptr);
  SampledToken sample(std::span<float> logits) { return sample(Logits{logits, {}, 0}); }

 private:
  struct Candidate {
    float logit;
    TokenId token;
    double weight;  // probability up to a factor, the best has 1
  };
  SamplingParams params_;
  std::span<const TokenId> banned_;
  bool has_penalties_;
  std::vector<TokenId> window_;  // ring of the last penalty_window tokens; unused for -1
  size_t window_next_ = 0;
  std::unordered_map<TokenId, int> window_counts_;
  std::vector<Candidate> candidates_;
  std::vector<TokenId> always_;                     // of wanted()
  std::vector<std::pair<TokenId, float>> changed_;  // of this step: logits as the model gave them
  uint64_t rng_state_[4];

  void change(const Logits& logits, TokenId token, float value);
  TokenId draw(const Logits& logits, bool is_forced);
  double next_uniform();  // in [0, 1)
};

// The n best of logits (no NaN, no +infinity) with log-probabilities, best first, ties by id; fewer when fewer are
// above -infinity.
std::vector<TokenLogprob> top_logprobs(std::span<const float> logits, int n);
// log(sum(exp(logits))) in double.
double log_sum_exp(std::span<const float> logits);

}  // namespace gemma
