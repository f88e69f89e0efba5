#include "runtime/generate_request.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <optional>
#include <utility>

#include "model/tokens.h"
#include "runtime/sequence_request.h"
#include "tokenizer/text_stream.h"

namespace gemma {
namespace {

using Clock = std::chrono::steady_clock;

double ms_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double, std::milli>(b - a).count();
}

class GenerateRequest final : public SequenceRequest {
 public:
  GenerateRequest(std::shared_ptr<Signal> signal, LoadedModel& loaded, std::shared_ptr<const AdapterMix> adapters,
                  GenerateParams params, OnGenerateEvent on_event)
      : SequenceRequest(std::move(signal), loaded, std::move(adapters), std::move(params.tokens),
                        std::move(params.images)),
        params_(std::move(params)),
        on_event_(std::move(on_event)),
        sampler_(params_.sampling, loaded.banned),
        matcher_(params_.grammar ? std::make_unique<Matcher>(params_.grammar) : nullptr),
        text_(params_.stop_sequences) {
    const int room = std::max(0, loaded.info.n_ctx - n_prompt_);
    max_output_ = params_.max_tokens < 0 ? room : std::min(params_.max_tokens, room);
  }

  // A reader who stopped goes on behind half of what was ready: with a place for every event it reads, it would give up
  // its part of the cache and have it computed again for each.
  bool paused() const override {
    if (params_.max_unread <= 0) return false;
    return has_place() ? n_unread() >= params_.max_unread : n_unread() > params_.max_unread / 2;
  }

  bool can_rest() const override { return true; }

  std::optional<DraftRequest> draft_request() override {
    if (!draft_) return std::nullopt;
    if (!decoding()) return DraftRequest{draft_.get(), std::span(tokens_).first(static_cast<size_t>(n_done_))};
    return DraftRequest{draft_.get(),  tokens_,         matcher_.get(), &sampler_,
                        n_max_ahead(), params_.n_draft, stops_at_end()};
  }

  int n_guesses() const override { return draft_ ? static_cast<int>(draft_->guesses().size()) : 0; }

  // The last word to the caller. Pages go back first, so that a caller who asks sees them gone.
  void finish(FinishReason reason) noexcept override {
    leave_prefix(reason);
    draft_.reset();
    const Clock::time_point now = Clock::now();
    GenerateEvent event;
    event.kind = GenerateEvent::kFinish;
    try {
      // A model that ends its answer within a character wrote no character; one that is cut off may have been about to.
      event.text = text_.finish(reason == FinishReason::kStop);
      event.matched_stop = text_.matched();
    } catch (...) {  // an answer without its end is none
      fail_with_current();
      reason = FinishReason::kError;
      event.text.clear();
    }
    event.reason = reason;
    if (reason == FinishReason::kError) event.error = error_of(reason);
    event.n_input = n_prompt_;
    event.n_output = n_output_;
    event.n_cached = n_cached_;
    event.n_drafted = n_drafted_;
    event.n_accepted = n_accepted_;
    event.has_grammar = matcher_ != nullptr;
    event.grammar_complete = matcher_ && matcher_->complete();
    if (started_ == Clock::time_point()) started_ = now;
    if (prefilled_ == Clock::time_point()) prefilled_ = now;
    event.timings = {ms_between(queued_, started_), ms_between(started_, prefilled_), ms_between(prefilled_, now)};
    on_event_(std::move(event));
  }

 private:
  void prepare() override {
    if (started_ == Clock::time_point()) started_ = Clock::now();
    if (max_output_ < 2 || params_.draft == DraftMode::kOff) return;
    const bool by_model = loaded_.drafter->has_model() && params_.draft != DraftMode::kPromptLookup && images_->empty();
    draft_ = loaded_.drafter->begin(by_model ? DraftKind::kModel : DraftKind::kPromptLookup);
  }

  void on_release() override { draft_.reset(); }

  // Tokens of a step besides the one that is sampled without guessing.
  int n_max_ahead() const {
    int n_max = max_output_ - n_output_ - 1;
    if (params_.max_unread > 0) n_max = std::min(n_max, params_.max_unread - n_unread() - 1);
    return std::max(0, n_max);
  }
  bool stops_at_end() const { return params_.stop_at_end_token || matcher_ != nullptr; }

  SequenceInput make_input(int n_rows) override {
    sampled_.clear();
    diverged_ = false;
    known_.clear();
    SequenceInput input;
    if (!decoding()) {
      input = SequenceRequest::make_input(n_rows);
      if (matcher_ && !wanted_.empty()) matcher_->allowed(&guide(0).mask);
    } else {
      input = decode_input(n_rows);
    }
    if (wanted_.empty()) return input;
    if (!prompt_accepted_) {
      for (const TokenId token : tokens_) {
        if (token != kImageToken) sampler_.accept(token);
      }
      prompt_accepted_ = true;
    }
    // The first token of several is in the window already.
    const std::span<const TokenId> next = decoding() ? input.tokens.subspan(1) : std::span<const TokenId>();
    if (!matcher_) {
      const TopRows top = sampler_.wanted(next);
      for (WantedRow& row : wanted_) row.top = top;
    }
    for (size_t i = 0; matcher_ && i < wanted_.size(); ++i)
      wanted_[i].top = sampler_.wanted(next, guides_[i]->mask, &guides_[i]->always);
    return input;
  }

  // The last token, and what is known or guessed to follow: of all others the next one is sampled. n_more: rows besides
  // the guesses.
  SequenceInput decode_input(int n_more) {
    step_tokens_.assign(1, tokens_.back());
    const std::span<const TokenId> guesses =
        draft_ ? std::span<const TokenId>(draft_->guesses()) : std::span<const TokenId>();
    if (matcher_) {
      plan_guided(guesses, std::min(static_cast<int>(guesses.size()) + n_more, n_max_ahead()));
    } else {
      step_tokens_.insert(step_tokens_.end(), guesses.begin(), guesses.end());
      for (int i = 0; i < static_cast<int>(step_tokens_.size()); ++i) wanted_.push_back({i, {}});
    }
    return {kv_.get(), n_done_, step_tokens_, wanted_, image_rows_, false};
  }

  // The step's rows where a grammar allows some tokens only. What is the only one allowed follows without being sampled:
  // its row needs no logits, and of several a step has all. A guess that is not allowed has no row. n_max: rows besides
  // the first.
  void plan_guided(std::span<const TokenId> guesses, int n_max) {
    int n_accepted = 0;
    for (bool guessing = true;;) {
      const size_t row = step_tokens_.size() - 1;
      TokenMask& mask = guide(wanted_.size()).mask;
      matcher_->allowed(&mask);
      TokenId follows = only_token(mask);
      known_.push_back(follows);
      guessing = guessing && row < guesses.size();
      if (follows < 0) {
        wanted_.push_back({static_cast<int>(row), {}});
        if (guessing && mask.allows(guesses[row])) follows = guesses[row];
      }
      if (follows < 0 || n_accepted == n_max || loaded_.tokenizer->is_end(follows)) break;
      guessing = guessing && guesses[row] == follows;
      if (!matcher_->accept(follows)) break;
      ++n_accepted;
      step_tokens_.push_back(follows);
    }
    matcher_->rollback(n_accepted);
  }

  // The token that is to follow whatever the model says, -1 where there is none. Scores of it are wanted as of any other.
  TokenId only_token(const TokenMask& mask) const {
    if (mask.n_allowed != 1 || params_.sampling.n_logprobs > 0) return -1;
    const TokenId token = mask.first();
    return sampler_.bans(token) ? -1 : token;
  }

  struct Guide {
    TokenMask mask;
    std::vector<TokenId> always;
  };
  Guide& guide(size_t i) {
    while (guides_.size() <= i) guides_.push_back(std::make_unique<Guide>());
    return *guides_[i];
  }

  void accept(SampledToken&& sampled) {
    const TokenId token = sampled.token;
    sampled_.push_back(std::move(sampled));
    sampler_.accept(token);
    if (matcher_ && !matcher_->accept(token))
      throw Error(ErrorCode::kInternal, "GRAMMAR", "the grammar refuses a token that it allowed");
  }
  // Up to the row of the step, what follows is known.
  void accept_known(size_t row) {
    while (sampled_.size() < row) {
      SampledToken known;
      known.token = known_[sampled_.size()];
      accept(std::move(known));
    }
  }

  void take(int index, const Logits& logits) override {
    if (diverged_) return;
    const size_t row = decoding() ? static_cast<size_t>(index) : 0;
    accept_known(row);
    accept(sampler_.sample(logits, matcher_ ? &guides_[static_cast<size_t>(n_taken_)]->mask : nullptr));
    ++n_taken_;
    diverged_ = decoding() && row + 1 < step_tokens_.size() && step_tokens_[row + 1] != sampled_.back().token;
  }

  int n_counted(std::span<const SequenceInput> inputs, bool done) override {
    if (!decoding()) return SequenceRequest::n_counted(inputs, done);
    if (matcher_ && done && !diverged_ && static_cast<size_t>(n_taken_) == wanted_.size())
      accept_known(step_tokens_.size());
    return static_cast<int>(sampled_.size());  // of each row one
  }

  std::optional<FinishReason> report(bool was_prompt) override {
    if (was_prompt) {
      GenerateEvent event;
      event.kind = GenerateEvent::kPrefillProgress;
      event.n_prefilled = n_done_;
      on_event_(std::move(event));
      if (decoding()) prefilled_ = Clock::now();
    }
    if (draft_ && !was_prompt) {
      const std::vector<TokenId>& guesses = draft_->guesses();
      int n_accepted = 0;
      for (size_t i = 0; i < std::min(guesses.size(), sampled_.size()) && sampled_[i].token == guesses[i]; ++i)
        ++n_accepted;
      loaded_.drafter->judge(*draft_, n_accepted);
      n_drafted_ += static_cast<int>(guesses.size());
      n_accepted_ += n_accepted;
    }
    for (size_t i = 0; i < sampled_.size(); ++i) {
      const int n_before = n_output_;
      const std::optional<FinishReason> reason = emit_token(std::move(sampled_[i]));
      if (!reason) continue;
      // What was sampled behind the last token of the answer is not of it.
      if (matcher_) matcher_->rollback(static_cast<int>(sampled_.size() - i) - (n_output_ - n_before));
      return reason;
    }
    return std::nullopt;
  }

  std::optional<FinishReason> emit_token(SampledToken sampled) {
    if (max_output_ == 0) return FinishReason::kLength;
    const TokenId token = sampled.token;
    tokens_.push_back(token);
    ++n_output_;
    const bool is_end =
        (stops_at_end() && loaded_.tokenizer->is_end(token)) ||
        std::find(params_.stop_tokens.begin(), params_.stop_tokens.end(), token) != params_.stop_tokens.end();

    GenerateEvent event;
    event.kind = GenerateEvent::kToken;
    event.token = std::move(sampled);
    if (!is_end) event.text = text_.push(loaded_.tokenizer->token_bytes(token));
    event.in_text = !is_end && !text_.stopped();
    add_unread();
    on_event_(std::move(event));
    if (is_end || text_.stopped()) return FinishReason::kStop;
    if (n_output_ >= max_output_) return FinishReason::kLength;
    return std::nullopt;
  }

  GenerateParams params_;
  OnGenerateEvent on_event_;
  Sampler sampler_;
  std::unique_ptr<Matcher> matcher_;            // behind the tokens that were sampled; null: the answer is free
  std::vector<std::unique_ptr<Guide>> guides_;  // of the step's wanted rows, one more perhaps
  bool prompt_accepted_ = false;                // by the sampler
  TextStream text_;
  int max_output_ = 0;
  int n_output_ = 0;
  int n_drafted_ = 0, n_accepted_ = 0;
  std::unique_ptr<DraftState> draft_;
  std::vector<TokenId> step_tokens_;   // decoding: the last token, and what is guessed to follow
  std::vector<TokenId> known_;         // with a grammar: what follows each of them whatever the model says, or -1
  std::vector<SampledToken> sampled_;  // of the step that is running, n_taken_, and what was known
  bool diverged_ = false;              // the rows after these were computed for other tokens
  Clock::time_point queued_ = Clock::now();
  Clock::time_point started_;
  Clock::time_point prefilled_;
};

}  // namespace

std::shared_ptr<SequenceRequest> make_generate_request(std::shared_ptr<Signal> signal, LoadedModel& loaded,
                                                       std::shared_ptr<const AdapterMix> adapters,
                                                       GenerateParams params, OnGenerateEvent on_event) {
  return std::make_shared<GenerateRequest>(std::move(signal), loaded, std::move(adapters), std::move(params),
                                           std::move(on_event));
}

}  // namespace gemma
