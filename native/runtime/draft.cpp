#include "runtime/draft.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <new>
#include <optional>
#include <utility>

#include "base/error.h"
#include "model/tokens.h"
#include "model/weights.h"
#include "runtime/draft_source.h"

namespace gemma {
namespace {

// Until measured: bytes of memory read in a millisecond, and the cost of one more row as a fraction of the first.
constexpr double kBytesPerMs = 2e7;
constexpr double kRowFraction = 0.08;
// A step counts half as much after so many others: costs follow a growing context and a busier machine.
constexpr double kForget = 0.98;  // 34 steps
// The straight line leans to kRowFraction as if by this many squared rows of evidence.
constexpr double kPriorRows = 4;
// A step that the system held up may not spoil the estimate.
constexpr double kMostSurprise = 3;
// Of a moving average of hits.
constexpr double kRate = 1.0 / 16;
// Guesses less likely than this are not worth a look.
constexpr double kLeastChance = 0.03;
// After so many steps without guesses the draft model tries one, to learn whether it has become better.
constexpr int kRetry = 32;

void move_average(double* average, bool hit) {
  *average += kRate * ((hit ? 1.0 : 0.0) - *average);
}

}  // namespace

// ------------------------------------------------------------------------------------------------------------ StepCost

StepCost::StepCost(uint64_t weights_bytes)
    : mean_ms_(std::max(0.01, static_cast<double>(weights_bytes) / kBytesPerMs)) {}

void StepCost::add(int n_rows, double ms_taken) {
  if (weight_ > 3) ms_taken = std::min(ms_taken, kMostSurprise * ms(n_rows));
  weight_ = kForget * weight_ + 1;
  if (weight_ == 1) mean_rows_ = n_rows, mean_ms_ = ms_taken;
  const double rows = n_rows - mean_rows_;
  const double taken = ms_taken - mean_ms_;
  mean_rows_ += rows / weight_;
  mean_ms_ += taken / weight_;
  rows_rows_ = kForget * rows_rows_ + rows * (n_rows - mean_rows_);
  rows_ms_ = kForget * rows_ms_ + rows * (ms_taken - mean_ms_);
}

double StepCost::ms(int n_rows) const {
  if (n_rows == 0) return 0;
  const double one = mean_ms_ / (1 + kRowFraction * (mean_rows_ - 1));
  const double slope = (rows_ms_ + kPriorRows * kRowFraction * one) / (rows_rows_ + kPriorRows);
  // More rows never cost less, and never more than as many steps.
  return mean_ms_ + std::clamp(slope, 0.0, mean_ms_ / mean_rows_) * (n_rows - mean_rows_);
}

// -------------------------------------------------------------------------------------------------------- PromptLookup

namespace {

size_t chance_of(size_t n_match) {
  return n_match < 5 ? n_match - 2 : n_match < 8 ? 3 : n_match < 16 ? 4 : 5;
}

}  // namespace

uint32_t* PromptLookup::slot(std::span<const TokenId> tokens, size_t end, size_t n) {
  uint64_t hash = 0;
  for (size_t i = end - n; i < end; ++i) hash = (hash ^ static_cast<uint32_t>(tokens[i])) * 0x9E3779B97F4A7C15u;
  return &latest_[(n - kShortest) * n_slots_ + (hash >> 32) % n_slots_];
}

void PromptLookup::index(std::span<const TokenId> tokens, size_t end) {
  bool found = false;
  for (size_t n = std::min(kLongest, end); n >= kShortest; --n) {
    const size_t candidate = std::exchange(*slot(tokens, end, n), static_cast<uint32_t>(end));
    if (found || candidate == 0) continue;
    size_t n_match = 0;
    while (n_match < kMaxMatch && n_match < candidate && tokens[candidate - 1 - n_match] == tokens[end - 1 - n_match])
      ++n_match;
    if (n_match < n) continue;  // another n-gram of the same hash
    found = true;
    // A source that has been right for as long stays: it has been right, the other only looks alike.
    if (n_match > n_match_) {
      source_ = candidate;
      n_match_ = n_match;
    }
  }
}

void PromptLookup::extend(std::span<const TokenId> tokens) {
  if (tokens.size() * 2 > n_slots_) {
    const size_t n_slots = std::bit_ceil(tokens.size() * 4);
    n_slots_ = 0;  // until there is memory for them
    latest_.assign((kLongest - kShortest + 1) * n_slots, 0);
    n_slots_ = n_slots;
    for (size_t end = kShortest; end <= n_seen_; ++end) {
      for (size_t n = kShortest; n <= std::min(kLongest, end); ++n) *slot(tokens, end, n) = static_cast<uint32_t>(end);
    }
  }
  while (n_seen_ < tokens.size()) {
    if (source_ > 0) {
      const bool hit = tokens[source_] == tokens[n_seen_];
      if (tokens[n_seen_] != kImageToken) move_average(&chances_[chance_of(n_match_)], hit);
      source_ = hit ? source_ + 1 : 0;
      n_match_ = hit ? std::min(n_match_ + 1, kMaxMatch) : 0;
    }
    index(tokens, ++n_seen_);
  }
}

void PromptLookup::propose(std::span<const TokenId> tokens, int n_max, std::vector<TokenId>* guesses,
                           std::vector<double>* chances) const {
  guesses->clear();
  chances->clear();
  if (source_ == 0) return;
  double chance = 1;
  for (size_t i = 0; i < static_cast<size_t>(n_max); ++i) {
    chance *= chances_[chance_of(std::min(n_match_ + i, kMaxMatch))];
    // Past the end the guesses themselves go on: text of a short period.
    const size_t from = source_ + i;
    const TokenId guess = from < tokens.size() ? tokens[from] : (*guesses)[from - tokens.size()];
    if (guess == kImageToken) return;
    guesses->push_back(guess);
    chances->push_back(chance);
  }
}

// ------------------------------------------------------------------------------------------------------------- Drafter

namespace {

// The larger models have a few tokens more, for images: those are never guessed.
void check_same_vocabulary(const Vocabulary& own, const Vocabulary& expected) {
  for (size_t id = 0; id < std::min(own.pieces.size(), expected.pieces.size()); ++id) {
    if (own.pieces[id] == expected.pieces[id]) continue;
    throw Error(
        ErrorCode::kUnsupportedModel, "DRAFT_VOCABULARY",
        "expected the vocabulary of the model it guesses for, found that token " + std::to_string(id) + " is another");
  }
}

}  // namespace

Drafter::Drafter(const Tokenizer& tokenizer, int n_vocab, std::span<const TokenId> banned, uint64_t weights_bytes)
    : tokenizer_(tokenizer), n_vocab_(n_vocab), banned_(banned.begin(), banned.end()), check_cost_(weights_bytes) {}

void Drafter::load_model(Backend& backend, const DraftSource& source, const Vocabulary& vocabulary,
                         const ModelLimits& limits, const std::function<void(double)>& progress) {
  try {
    const ModelConfig& config = source.config;
    const Vocabulary own = source.file.vocabulary(config.n_vocab);
    in_file(source.path, [&] { check_same_vocabulary(own, vocabulary); });
    source.tensors->prefetch(progress);
    const Stage all[] = {{&backend, 0, config.n_layers()}};
    in_file(source.path,
            [&] { model_ = std::make_unique<Model>(all, config, load_weights(all, source.tensors, config), limits); });
    source.tensors->check();
    std::erase_if(banned_, [&](TokenId token) { return token >= config.n_vocab; });
    model_cost_ = StepCost(source.tensors->bytes());
  } catch (const Error& error) {
    throw_of_draft(error);
  }
}

std::unique_ptr<DraftState> Drafter::begin(DraftKind kind) {
  std::unique_ptr<DraftState> state(new DraftState(kind));
  if (kind == DraftKind::kModel) {
    state->kv_ = std::make_unique<KvSequence>(model_->kv_pool());
  }
  return state;
}

void Drafter::draft(std::span<const DraftRequest> requests, int n_max_rows,
                    const std::function<bool()>& should_stop) noexcept {
  try {
    guess(requests, n_max_rows, should_stop);
  } catch (...) {  // no memory, or a device that fails
    for (const DraftRequest& request : requests) {
      request.state->guesses_.clear();
      if (request.state->kind_ == DraftKind::kModel) request.state->kv_.reset();
    }
  }
  for (const DraftRequest& request : requests) {
    DraftState& state = *request.state;
    if (state.n_matched_ > 0) state.matcher_->rollback(std::exchange(state.n_matched_, 0));
  }
}

void Drafter::guess(std::span<const DraftRequest> requests, int n_max_rows, const std::function<bool()>& should_stop) {
  for (const DraftRequest& request : requests) {
    DraftState& state = *request.state;
    state.guesses_.clear();
    state.chances_.clear();
    state.n_chosen_ = 0;
    if (request.sampler == nullptr) continue;
    const int n_max = std::min(request.n_max, kMaxDraft);
    if (state.kind_ == DraftKind::kPromptLookup) {
      state.lookup_.extend(request.tokens);
      state.lookup_.propose(request.tokens, n_max, &state.guesses_, &state.chances_);
    } else if (state.kv_ != nullptr) {
      double chance = 1;
      for (int i = 0; i < n_max; ++i) state.chances_.push_back(chance *= state.acceptance_);
    }
  }
  choose_lengths(requests, n_max_rows);
  for (const DraftRequest& request : requests) {
    DraftState& state = *request.state;
    if (state.kind_ != DraftKind::kPromptLookup) continue;
    state.guesses_.resize(static_cast<size_t>(state.n_chosen_));
    if (!request.stop_at_end_token) continue;
    const auto is_end = [&](TokenId token) { return tokenizer_.is_end(token); };
    state.guesses_.erase(std::find_if(state.guesses_.begin(), state.guesses_.end(), is_end), state.guesses_.end());
  }
  if (model_ != nullptr) guess_by_model(requests, should_stop);
}

// A guess is worth its chance in tokens, and costs a row of the step, and when the draft model makes it a row of one of
// that model's passes. Guesses are taken by worth, and as many of them as make tokens / cost the most.
void Drafter::choose_lengths(std::span<const DraftRequest> requests, int n_max_rows) {
  struct Guess {
    double chance;
    DraftState* state;
    size_t depth;
  };
  std::vector<Guess> guesses;
  int n_sequences = 0;
  for (const DraftRequest& request : requests) {
    if (request.sampler != nullptr) ++n_sequences;
    DraftState& state = *request.state;
    if (request.n_wanted >= 0) {
      state.n_chosen_ = std::min({request.n_wanted, static_cast<int>(state.chances_.size()), n_max_rows});
      n_max_rows -= state.n_chosen_;
      continue;
    }
    for (size_t i = 0; i < state.chances_.size() && state.chances_[i] >= kLeastChance; ++i)
      guesses.push_back({state.chances_[i], &state, i});
  }
  // Stable: of one sequence the earlier guess comes first.
  std::stable_sort(guesses.begin(), guesses.end(), [](const Guess& a, const Guess& b) { return a.chance > b.chance; });
  if (guesses.size() > static_cast<size_t>(n_max_rows)) guesses.resize(static_cast<size_t>(n_max_rows));

  std::array<int, kMaxDraft> pass_rows = {};
  double model_ms = 0;
  double tokens = n_sequences;
  double best = tokens / check_cost_.ms(std::max(1, n_sequences));
  size_t n_best = 0;
  for (size_t i = 0; i < guesses.size(); ++i) {
    tokens += guesses[i].chance;
    if (guesses[i].state->kind_ == DraftKind::kModel) {
      int& rows = pass_rows[guesses[i].depth];
      model_ms += model_cost_.ms(rows + 1) - model_cost_.ms(rows);
      ++rows;
    }
    const double rate = tokens / (check_cost_.ms(n_sequences + static_cast<int>(i) + 1) + model_ms);
    if (rate > best) best = rate, n_best = i + 1;
  }
  for (size_t i = 0; i < n_best; ++i) ++guesses[i].state->n_chosen_;

  for (const DraftRequest& request : requests) {
    DraftState& state = *request.state;
    if (state.kind_ != DraftKind::kModel || state.chances_.empty() || request.n_wanted >= 0) continue;
    state.n_idle_ = state.n_chosen_ > 0 ? 0 : state.n_idle_ + 1;
    if (state.n_idle_ >= kRetry && n_max_rows > static_cast<int>(n_best)) state.n_chosen_ = 1;
  }
}

// The first pass reads what the draft model lacks of each sequence and guesses one token, every further pass one more.
void Drafter::guess_by_model(std::span<const DraftRequest> requests, const std::function<bool()>& should_stop) {
  std::vector<SequenceInput> inputs;
  std::vector<const DraftRequest*> owners;
  int budget = model_->max_batch();
  for (const DraftRequest& request : requests) {
    DraftState& state = *request.state;
    if (state.kind_ != DraftKind::kModel || state.kv_ == nullptr) continue;
    const bool decoding = request.sampler != nullptr;
    if (decoding && state.n_chosen_ == 0) continue;  // what is lacking waits
    // Guesses that were read and then not taken.
    state.n_cached_ = std::min(state.n_cached_, static_cast<int>(request.tokens.size()) - (decoding ? 1 : 0));
    state.kv_->rollback(state.n_cached_);
    state.kv_->trim(state.n_cached_);
    std::span<const TokenId> lacking = request.tokens.subspan(static_cast<size_t>(state.n_cached_));
    if (std::any_of(lacking.begin(), lacking.end(), [&](TokenId t) { return t >= model_->config().n_vocab; })) {
      state.kv_.reset();  // a token this model has not
      continue;
    }
    const bool all = lacking.size() <= static_cast<size_t>(budget);
    if (!all) lacking = lacking.first(static_cast<size_t>(budget));
    if (lacking.empty()) continue;
    budget -= static_cast<int>(lacking.size());
    if (decoding) {
      state.sampler_ = *request.sampler;
      state.matcher_ = request.matcher;
    }
    SequenceInput& input = inputs.emplace_back();
    input.kv = state.kv_.get();
    input.first_position = state.n_cached_;
    input.tokens = lacking;
    input.is_prompt = !decoding;
    if (decoding && all) input.wanted = state.want(static_cast<int>(lacking.size()) - 1, wanted(state));
    owners.push_back(&request);
  }
  while (!inputs.empty()) {
    if (!run_model(inputs, owners, should_stop)) {
      for (const DraftRequest* owner : owners) owner->state->guesses_.clear();
      return;
    }
    inputs.clear();
    std::erase_if(owners, [&](const DraftRequest* owner) {
      DraftState& state = *owner->state;
      if (state.kv_ == nullptr || state.guesses_.empty()) return true;
      if (owner->stop_at_end_token && tokenizer_.is_end(state.guesses_.back())) {
        state.guesses_.pop_back();  // nothing comes after it that a row could tell
        return true;
      }
      return static_cast<int>(state.guesses_.size()) >= state.n_chosen_;
    });
    for (const DraftRequest* owner : owners) {
      DraftState& state = *owner->state;
      inputs.push_back(
          {state.kv_.get(), state.n_cached_, {&state.guesses_.back(), 1}, state.want(0, wanted(state)), {}});
    }
  }
}

// Which logits of the draft model a sampler needs. Its own vocabulary may be smaller, or larger.
TopRows Drafter::wanted(DraftState& state) const {
  TopRows top;
  if (state.matcher_ != nullptr) {
    state.matcher_->allowed(&state.mask_);
    top = state.sampler_->wanted({}, state.mask_, &state.always_);
  } else {
    top = state.sampler_->wanted();
  }
  if (model_->config().n_vocab > n_vocab_) return {};
  top.never = banned_;
  top.always = top.always.first(static_cast<size_t>(  // ascending
      std::lower_bound(top.always.begin(), top.always.end(), model_->config().n_vocab) - top.always.begin()));
  return top;
}

// One pass. False when it was given up.
bool Drafter::run_model(std::span<const SequenceInput> inputs, std::span<const DraftRequest* const> owners,
                        const std::function<bool()>& should_stop) {
  const auto start = std::chrono::steady_clock::now();
  // Guesses are drawn by a copy of the request's sampler: the same penalties, and the same random numbers, so where the
  // two models agree about the probabilities they mostly draw the same token.
  std::vector<std::optional<TokenId>> drawn(inputs.size());
  const bool done = model_->forward(inputs, should_stop, [&](size_t i, int, const Logits& logits) {
    try {
      DraftState& state = *owners[i]->state;
      Sampler& sampler = *state.sampler_;
      Logits known = logits;  // in the vocabulary of the large model, when all are here
      if (logits.tokens.empty())
        known.values = logits.values.first(std::min(logits.values.size(), static_cast<size_t>(n_vocab_)));
      const TokenId token = sampler.sample(known, state.matcher_ != nullptr ? &state.mask_ : nullptr).token;
      sampler.accept(token);
      if (state.matcher_ != nullptr && state.matcher_->accept(token)) ++state.n_matched_;
      drawn[i] = token;
    } catch (const std::exception&) {
      drawn[i].reset();  // damaged weights, or nothing this model may say
    }
  });
  if (!done) return false;
  int n_rows = 0;
  size_t n_longest = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    DraftState& state = *owners[i]->state;
    n_rows += static_cast<int>(inputs[i].tokens.size());
    n_longest = std::max(n_longest, inputs[i].tokens.size());
    state.n_cached_ += static_cast<int>(inputs[i].tokens.size());
    if (drawn[i]) {
      state.guesses_.push_back(*drawn[i]);
    } else if (!inputs[i].wanted.empty()) {
      state.kv_.reset();
    }
  }
  // Passes that read prompts say nothing about the cost of a guess.
  if (n_longest <= 2) {
    model_cost_.add(n_rows,
                    std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  return true;
}

void Drafter::judge(DraftState& state, int n_accepted) {
  if (state.kind_ != DraftKind::kModel) return;
  const int n_judged = std::min(n_accepted + 1, static_cast<int>(state.guesses_.size()));
  for (int i = 0; i < n_judged; ++i) move_average(&state.acceptance_, i < n_accepted);
}

}  // namespace gemma
