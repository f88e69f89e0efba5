// Speculative decoding (Leviathan et al. 2023): cheap guesses at the next tokens of a sequence, which the model then
// checks together in one step. Two ways to guess: prompt lookup (Saxena 2023), the continuation of the latest earlier
// occurrence of the last few tokens; and a smaller model of the same vocabulary.
//
// The engine samples every checked row with the request's own sampler, as if the row had come alone, and keeps a guess
// only where it is the token that was sampled. So the tokens are those of plain decoding whatever is guessed, and all
// that is decided here is speed. Used by the engine thread only.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "grammar/grammar.h"
#include "model/cache.h"
#include "model/forward.h"
#include "runtime/sampler.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

// Guesses per step and sequence at most.
constexpr int kMaxDraft = 15;

// What a step costs by its number of rows: a straight line through the steps that ran, recent ones counting most.
// Measured on two cores, 4 rows cost 1.1 to 1.2 times as much as one, 16 rows 1.8 to 2.4 times.
class StepCost {
 public:
  // weights_bytes: of the model, for a guess until the first step has run.
  explicit StepCost(uint64_t weights_bytes);
  void add(int n_rows, double ms);
  double ms(int n_rows) const;  // 0 for no rows

 private:
  double weight_ = 0;  // of the steps so far, each counting a little less than the next
  double mean_rows_ = 1;
  double mean_ms_;
  double rows_rows_ = 0;  // sums of products of deviations from the means
  double rows_ms_ = 0;
};

// Finds the latest earlier occurrence of the last 4 tokens, else of the last 3, else 2, in constant time per token.
class PromptLookup {
 public:
  // tokens: the whole sequence so far; what was given before must not have changed. Every new token also judges what
  // would have been guessed in its place, which costs nothing: that is how the chances are known.
  void extend(std::span<const TokenId> tokens);
  // Guesses n_max tokens after tokens, which extend() has seen; none without an earlier occurrence. chances[i]: that
  // guesses 0..i are all right.
  void propose(std::span<const TokenId> tokens, int n_max, std::vector<TokenId>* guesses,
               std::vector<double>* chances) const;

 private:
  static constexpr size_t kShortest = 2, kLongest = 4;
  static constexpr size_t kMaxMatch = 16;  // longer matches are not told apart
  uint32_t* slot(std::span<const TokenId> tokens, size_t end, size_t n);
  void index(std::span<const TokenId> tokens, size_t end);

  size_t n_seen_ = 0;
  // latest_[n - kShortest, hash of n tokens]: the position after their latest occurrence, 0 for none. Of two n-grams
  // with one hash the later one stays.
  std::vector<uint32_t> latest_;
  size_t n_slots_ = 0;  // per n; a power of two
  size_t source_ = 0;   // guesses are copied from here; 0 for none
  size_t n_match_ = 0;  // so many tokens before source_ and before the end are the same
  std::array<double, 6> chances_ = {0.2, 0.4, 0.5, 0.6, 0.75, 0.9};  // by length of the match
};

enum class DraftKind { kPromptLookup, kModel };

struct DraftSource;
class Drafter;

// What drafting knows of one request. Must go before the drafter.
class DraftState {
 public:
  // Of the step that is being made: at most as many tokens as were allowed.
  const std::vector<TokenId>& guesses() const { return guesses_; }

 private:
  friend class Drafter;
  explicit DraftState(DraftKind kind) : kind_(kind) {}
  std::span<const WantedRow> want(int index, const TopRows& top) {
    wanted_ = {index, top};
    return {&wanted_, 1};
  }

  DraftKind kind_;
  std::vector<TokenId> guesses_;
  std::vector<double> chances_;
  int n_chosen_ = 0;
  PromptLookup lookup_;

  // kModel
  std::unique_ptr<KvSequence> kv_;  // null once the model cannot guess for this request
  std::optional<Sampler> sampler_;  // as it will be after the guesses so far
  Matcher* matcher_ = nullptr;      // the request's, likewise; null: all tokens are allowed
  int n_matched_ = 0;               // guesses that it has accepted
  TokenMask mask_;                  // of the next guess
  std::vector<TokenId> always_;     // of wanted_
  int n_cached_ = 0;                // positions in kv_
  double acceptance_ = 0.75;        // how often a guess after right ones is right
  int n_idle_ = 0;                  // steps without a guess
  WantedRow wanted_;                // of the pass that is being made
};

// One sequence of the step that is being made.
struct DraftRequest {
  DraftState* state = nullptr;
  std::span<const TokenId> tokens;   // decoding: prompt and output; else the part of the prompt that is in the cache
  Matcher* matcher = nullptr;        // what a grammar allows behind tokens: the same again after draft(); null: all
  const Sampler* sampler = nullptr;  // null: the prompt is not complete yet, nothing is to be guessed
  int n_max = 0;                     // guesses at most
  int n_wanted = -1;                 // so many where there are as many, whether they pay or not; -1: those that pay
  bool stop_at_end_token = true;
};

class Drafter {
 public:
  // Of the model that checks: its tokenizer, which must outlive the drafter, its number of tokens, those that are never
  // sampled, and its size in bytes.
  Drafter(const Tokenizer& tokenizer, int n_vocab, std::span<const TokenId> banned, uint64_t weights_bytes);

  // Loads a model to guess with. vocabulary: of the model that checks. progress gets the fraction of the file that is
  // read; what it throws ends the loading.
  // Throws Error as loading does, and kUnsupportedModel, DRAFT_VOCABULARY when ids do not mean the same tokens.
  void load_model(Backend& backend, const DraftSource& source, const Vocabulary& vocabulary, const ModelLimits& limits,
                  const std::function<void(double)>& progress);
  bool has_model() const { return model_ != nullptr; }
  void close() { model_.reset(); }
  // Of the draft model's file, as TensorSource::check.
  void check_weights() const {
    if (model_) model_->tensors().check();
  }
  size_t pages_in_use() const { return model_ ? model_->kv_pool().pages_in_use() : 0; }
  size_t bytes_resident() const { return model_ ? model_->kv_pool().bytes_resident() : 0; }

  std::unique_ptr<DraftState> begin(DraftKind kind);
  // Fills the guesses of every request, at most n_max_rows together, so that the expected tokens per second of the step
  // are most. The draft model reads what it lacks of the sequences on the way. should_stop is asked between layers;
  // after true there are no guesses of the model. Where memory is short nothing is guessed; a draft model that fails
  // stops guessing. The requests are not touched.
  void draft(std::span<const DraftRequest> requests, int n_max_rows, const std::function<bool()>& should_stop) noexcept;
  // The first n_accepted guesses of the step were right.
  void judge(DraftState& state, int n_accepted);
  // A step of n_rows decoded rows took so long.
  void add_step(int n_rows, double ms) { check_cost_.add(n_rows, ms); }

 private:
  void guess(std::span<const DraftRequest> requests, int n_max_rows, const std::function<bool()>& should_stop);
  void choose_lengths(std::span<const DraftRequest> requests, int n_max_rows);
  void guess_by_model(std::span<const DraftRequest> requests, const std::function<bool()>& should_stop);
  TopRows wanted(DraftState& state) const;
  bool run_model(std::span<const SequenceInput> inputs, std::span<const DraftRequest* const> owners,
                 const std::function<bool()>& should_stop);

  const Tokenizer& tokenizer_;
  int n_vocab_;
  std::vector<TokenId> banned_;  // those that the draft model has too
  StepCost check_cost_;
  StepCost model_cost_{0};
  std::unique_ptr<Model> model_;
};

}  // namespace gemma
