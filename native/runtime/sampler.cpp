// One step, in this order (each neutral value switches its step off):
//   1. logits with NaN or +infinity are refused. Log-probabilities that are reported are of the logits as they are
//   here.
//   2. logit_bias is added; -infinity bans.
//   3. Penalties, for every token of the window, c times in it. Repetition r: a positive logit is divided by r, a
//   negative
//      one multiplied (CTRL, Keskar et al. 2019; transformers RepetitionPenaltyLogitsProcessor). Then frequency f and
//      presence p: logit - c * f - p (OpenAI).
//   4. Banned ids get -infinity, and those that a grammar does not allow.
//   5. temperature 0: the best logit, the lowest id of equals. Else:
//   6. top-k: the k best, of equals the lower ids.
//   7. softmax(logit / temperature) of what is left.
//   8. top-p: the fewest best tokens whose probabilities sum to p or more, at least one.
//   9. min-p: tokens with at least min_p times the probability of the best.
//  10. A draw from the rest in proportion to probability: xoshiro256** seeded with splitmix64 (Blackman, Vigna 2018).
// transformers applies temperature before top-k, which keeps the same tokens.
#include "runtime/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>
#include <string>

#include "backend/backend.h"
#include "base/error.h"
#include "base/hash.h"

namespace gemma {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kMaxFloat = std::numeric_limits<float>::max();

bool has_nan_or_infinity(std::span<const float> logits) {
  unsigned bad = 0;  // no early exit: the compiler vectorises this
  for (const float x : logits) bad |= static_cast<unsigned>(!(x <= kMaxFloat));
  return bad != 0;
}

float max_of_block(std::span<const float> block) {
  constexpr size_t kLanes = 16;  // independent maxima: a single one would be a chain of dependent instructions
  float lanes[kLanes];
  std::fill(std::begin(lanes), std::end(lanes), -kInfinity);
  size_t i = 0;
  for (; i + kLanes <= block.size(); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) lanes[j] = block[i + j] > lanes[j] ? block[i + j] : lanes[j];
  }
  for (; i < block.size(); ++i) lanes[0] = std::max(lanes[0], block[i]);
  return *std::max_element(std::begin(lanes), std::end(lanes));
}

// The k best logits above -infinity, best first, of equals the lower id. make(logit, index) is appended to out.
// With n logits in blocks, the k-th best block maximum bounds the k-th best logit from below, so one vectorised pass
// and a look into few blocks is all that most of the n logits cost.
template <typename T, typename Make>
void best_of(std::span<const float> logits, size_t k, std::vector<T>* out, Make make) {
  constexpr size_t kBlock = 256;
  const size_t n = logits.size();
  const size_t n_blocks = (n + kBlock - 1) / kBlock;
  std::vector<float> maxima(n_blocks);
  for (size_t b = 0; b < n_blocks; ++b)
    maxima[b] = max_of_block(logits.subspan(b * kBlock, std::min(kBlock, n - b * kBlock)));
  float threshold = -kInfinity;
  if (k > 0 && k <= n_blocks) {
    std::vector<float> sorted = maxima;
    std::nth_element(sorted.begin(), sorted.begin() + static_cast<ptrdiff_t>(k - 1), sorted.end(), std::greater<>());
    threshold = sorted[k - 1];
  }
  for (size_t b = 0; b < n_blocks; ++b) {
    if (maxima[b] < threshold || maxima[b] == -kInfinity) continue;
    for (size_t i = b * kBlock; i < std::min(n, (b + 1) * kBlock); ++i) {
      if (logits[i] >= threshold && logits[i] > -kInfinity) out->push_back(make(logits[i], static_cast<TokenId>(i)));
    }
  }
  const auto is_better = [](const T& a, const T& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  if (out->size() > k) {
    std::nth_element(out->begin(), out->begin() + static_cast<ptrdiff_t>(k), out->end(), is_better);
    out->resize(k);
  }
  std::sort(out->begin(), out->end(), is_better);
}

std::vector<TokenLogprob> top_logprobs(std::span<const float> logits, int n, double normaliser) {
  std::vector<TokenLogprob> top;
  best_of(logits, static_cast<size_t>(n), &top, [&](float logit, TokenId token) {
    return TokenLogprob{token, logit, static_cast<float>(logit - normaliser)};
  });
  return top;
}

[[noreturn]] void bad_sampling(const char* name, const char* expected, double found) {
  throw Error(ErrorCode::kInvalidArgument, "BAD_SAMPLING",
              std::string(name) + ": expected " + expected + ", found " + std::to_string(found));
}

// Where the logit of a token is, null where there is none.
float* find(const Logits& logits, TokenId token) {
  if (logits.tokens.empty()) {
    const bool is_here = token >= 0 && static_cast<size_t>(token) < logits.values.size();
    return is_here ? &logits.values[static_cast<size_t>(token)] : nullptr;
  }
  const std::span<const int32_t> always = logits.tokens.first(logits.n_always);
  const auto at = std::lower_bound(always.begin(), always.end(), token);
  return at != always.end() && *at == token ? &logits.values[static_cast<size_t>(at - always.begin())] : nullptr;
}

// In a row of all logits.
void exclude_others(std::span<float> logits, const TokenMask& mask) {
  for (size_t begin = 0; begin < logits.size(); begin += 32) {
    const uint32_t word = begin / 32 < mask.words.size() ? mask.words[begin / 32] : 0u;
    if (word == ~0u) continue;
    for (size_t i = begin; i < std::min(begin + 32, logits.size()); ++i) {
      if ((word >> (i - begin) & 1u) == 0) logits[i] = -kInfinity;
    }
  }
}

}  // namespace

Sampler::Sampler(const SamplingParams& params, std::span<const TokenId> banned)
    : params_(params),
      banned_(banned),
      has_penalties_(
          params.penalty_window != 0 &&
          (params.repetition_penalty != 1.0f || params.frequency_penalty != 0.0f || params.presence_penalty != 0.0f)) {
  const SamplingParams& p = params_;
  if (!(p.temperature >= 0 && p.temperature <= kMaxFloat)) bad_sampling("temperature", "0 or more", p.temperature);
  if (p.top_k < 0) bad_sampling("topK", "0 (off) or more", p.top_k);
  if (!(p.top_p >= 0 && p.top_p <= 1)) bad_sampling("topP", "0 to 1", p.top_p);
  if (!(p.min_p >= 0 && p.min_p <= 1)) bad_sampling("minP", "0 to 1", p.min_p);
  if (!(p.repetition_penalty > 0 && p.repetition_penalty <= kMaxFloat)) {
    bad_sampling("repetitionPenalty", "more than 0", p.repetition_penalty);
  }
  if (!(std::fabs(p.frequency_penalty) <= 1e6f)) bad_sampling("frequencyPenalty", "-1e6 to 1e6", p.frequency_penalty);
  if (!(std::fabs(p.presence_penalty) <= 1e6f)) bad_sampling("presencePenalty", "-1e6 to 1e6", p.presence_penalty);
  if (p.penalty_window < -1) bad_sampling("penaltyWindow", "-1 (all), 0 (off) or more", p.penalty_window);
  if (p.n_logprobs < 0) bad_sampling("logprobs", "0 or more", p.n_logprobs);
  for (const auto& [token, bias] : p.logit_bias) {
    if (!(bias <= kMaxFloat)) bad_sampling("logitBias", "a number or -infinity", bias);
  }
  uint64_t state = p.seed;
  for (uint64_t& word : rng_state_) word = mix_bits(state += kGoldenRatio);
}

double Sampler::next_uniform() {
  uint64_t* s = rng_state_;
  const uint64_t result = std::rotl(s[1] * 5, 7) * 9;
  const uint64_t t = s[1] << 17;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = std::rotl(s[3], 45);
  return static_cast<double>(result >> 11) * 0x1p-53;
}

void Sampler::accept(TokenId token) {
  if (!has_penalties_) return;
  ++window_counts_[token];
  if (params_.penalty_window < 0) return;
  if (window_.size() < static_cast<size_t>(params_.penalty_window)) {
    window_.push_back(token);
    return;
  }
  const auto oldest = window_counts_.find(window_[window_next_]);
  if (--oldest->second == 0) window_counts_.erase(oldest);
  window_[window_next_] = token;
  window_next_ = (window_next_ + 1) % window_.size();
}

TopRows Sampler::wanted(std::span<const TokenId> next) {
  TopRows top;
  if (params_.n_logprobs > 0) return top;  // they need the sum over all
  // The best after bias and penalties are among the tokens that these change and the best of the others.
  always_.clear();
  for (const auto& [token, bias] : params_.logit_bias) always_.push_back(token);
  if (has_penalties_) {
    for (const auto& [token, count] : window_counts_) always_.push_back(token);
    always_.insert(always_.end(), next.begin(), next.end());
  }
  std::sort(always_.begin(), always_.end());
  always_.erase(std::unique(always_.begin(), always_.end()), always_.end());
  top.n_best = params_.temperature == 0.0f ? 1 : params_.top_k;
  top.always = always_;
  top.never = banned_;
  return top;
}

TopRows Sampler::wanted(std::span<const TokenId> next, const TokenMask& mask, std::vector<TokenId>* always) {
  TopRows top = wanted(next);
  if (params_.n_logprobs > 0) return top;
  always->clear();
  if (mask.n_allowed <= TokenMask::kMostCounted) {
    // One by one: a screen of all costs as much as 50,000 of them.
    for (size_t i = 0; i < mask.words.size(); ++i) {
      for (uint32_t word = mask.words[i]; word != 0; word &= word - 1)
        always->push_back(static_cast<TokenId>(i * 32) + std::countr_zero(word));
    }
    top.n_best = std::max(top.n_best, 1);
    top.only_always = true;
  } else {
    std::copy_if(top.always.begin(), top.always.end(), std::back_inserter(*always),
                 [&](TokenId token) { return mask.allows(token); });
  }
  top.always = *always;
  top.allowed = mask.words;
  return top;
}

bool Sampler::bans(TokenId token) const {
  if (std::find(banned_.begin(), banned_.end(), token) != banned_.end()) return true;
  return std::any_of(params_.logit_bias.begin(), params_.logit_bias.end(),
                     [&](const auto& entry) { return entry.first == token && entry.second == -kInfinity; });
}

void Sampler::change(const Logits& logits, TokenId token, float value) {
  float* logit = find(logits, token);
  if (logit == nullptr) {
    throw Error(ErrorCode::kInvalidArgument, "BAD_TOKEN",
                "there is no logit for token id " + std::to_string(token) + ": expected an id of the vocabulary");
  }
  changed_.emplace_back(token, *logit);
  *logit = std::min(value, kMaxFloat);
}

SampledToken Sampler::sample(const Logits& logits, const TokenMask* mask) {
  if (has_nan_or_infinity(logits.values)) {
    throw Error(ErrorCode::kNonFinite, "NONFINITE", "the model's logits hold NaN or infinity");
  }
  SampledToken sampled;
  double normaliser = 0;
  if (params_.n_logprobs > 0) {
    normaliser = log_sum_exp(logits.values);
    sampled.top = top_logprobs(logits.values, params_.n_logprobs, normaliser);
  }

  changed_.clear();
  const auto at = [&](TokenId token) {
    const float* logit = find(logits, token);
    return logit != nullptr ? *logit : 0.0f;
  };
  const auto is_out = [&](TokenId token) { return mask != nullptr && !mask->allows(token); };
  if (mask != nullptr && logits.tokens.empty()) exclude_others(logits.values, *mask);
  for (const auto& [token, bias] : params_.logit_bias) {
    if (!is_out(token)) change(logits, token, at(token) + bias);
  }
  if (has_penalties_) {
    for (const auto& [token, count] : window_counts_) {
      if (is_out(token)) continue;
      float logit = at(token);
      logit = logit > 0 ? logit / params_.repetition_penalty : logit * params_.repetition_penalty;
      logit -= static_cast<float>(count) * params_.frequency_penalty + params_.presence_penalty;
      change(logits, token, logit);
    }
  }
  if (logits.tokens.empty() || logits.n_always > 0) {  // else none of them is here
    for (const TokenId token : banned_) {
      if (find(logits, token) != nullptr) change(logits, token, -kInfinity);
    }
  }

  sampled.token = draw(logits, mask != nullptr && mask->n_allowed == 1);
  if (params_.n_logprobs > 0) {
    float logit = at(sampled.token);
    const auto first =
        std::find_if(changed_.begin(), changed_.end(), [&](const auto& c) { return c.first == sampled.token; });
    if (first != changed_.end()) logit = first->second;
    sampled.chosen = {sampled.token, logit, static_cast<float>(logit - normaliser)};
  }
  return sampled;
}

TokenId Sampler::draw(const Logits& row, bool is_forced) {
  const std::span<const float> logits = row.values;
  const auto make = [&](float logit, TokenId i) {
    return Candidate{logit, row.tokens.empty() ? i : row.tokens[static_cast<size_t>(i)], 0};
  };
  const bool is_greedy = params_.temperature == 0.0f;
  const auto take_best = [&](size_t k) {
    candidates_.clear();
    best_of(logits, k, &candidates_, make);
  };
  take_best(is_greedy || params_.top_k == 0 ? 1 : static_cast<size_t>(params_.top_k));
  if (candidates_.empty()) {
    throw Error(ErrorCode::kInvalidArgument, "ALL_BANNED",
                "no token is left: every one is banned, not allowed by the grammar, or has a logit of -infinity");
  }
  if (is_greedy || is_forced) return candidates_[0].token;

  const double best = candidates_[0].logit;
  const double temperature = params_.temperature;
  const auto weight = [&](float logit) { return std::exp((logit - best) / temperature); };
  const auto weigh = [&] {
    double sum = 0;
    for (Candidate& c : candidates_) sum += c.weight = weight(c.logit);
    return sum;
  };
  double total = 0;
  if (params_.top_k > 0) {
    total = weigh();
  } else if (params_.top_p < 1.0f) {
    // Top-p of the whole vocabulary needs the order of its best tokens only: sort more until they suffice.
    for (const float logit : logits) total += weight(logit);
    for (size_t k = 256;; k *= 16) {
      take_best(k);
      if (weigh() >= params_.top_p * total || k >= logits.size()) break;
    }
  } else {
    candidates_.clear();
    for (size_t i = 0; i < logits.size(); ++i) {
      if (logits[i] > -kInfinity) candidates_.push_back(make(logits[i], static_cast<TokenId>(i)));
    }
    total = weigh();
  }

  if (params_.top_p < 1.0f) {
    double sum = 0;
    size_t n_kept = 0;
    while (n_kept < candidates_.size() && (n_kept == 0 || sum < params_.top_p * total))
      sum += candidates_[n_kept++].weight;
    candidates_.resize(n_kept);
  }
  std::erase_if(candidates_, [&](const Candidate& c) { return c.weight < params_.min_p; });

  double left = 0;
  for (const Candidate& c : candidates_) left += c.weight;
  left *= next_uniform();
  for (const Candidate& c : candidates_) {
    left -= c.weight;
    if (left < 0) return c.token;
  }
  return candidates_.back().token;  // rounding
}

double log_sum_exp(std::span<const float> logits) {
  const double best = max_of_block(logits);
  if (best == -std::numeric_limits<double>::infinity()) return best;
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - best);
  return best + std::log(sum);
}

std::vector<TokenLogprob> top_logprobs(std::span<const float> logits, int n) {
  return n > 0 ? top_logprobs(logits, n, log_sum_exp(logits)) : std::vector<TokenLogprob>();
}

}  // namespace gemma
