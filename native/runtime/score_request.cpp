// The prompt's last row tells the first token of every candidate. The others are told by rows of their own, because a row
// tells what follows it: a candidate's tokens but the last, its tail, are read on a fork of the prompt's sequence.
// Candidates of one token have none.
#include "runtime/score_request.h"

#include <algorithm>
#include <utility>

#include "runtime/request_checks.h"
#include "runtime/sequence_request.h"

namespace gemma {
namespace {

// Logits of every row are wanted: steps stay short, so that cancelling does.
constexpr int kScoreRows = 32;
// Each fork has a copy of the page in which the prompt ends.
constexpr size_t kMaxForks = 16;

class ScoreRequest final : public SequenceRequest {
 public:
  ScoreRequest(std::shared_ptr<Signal> signal, LoadedModel& loaded, std::shared_ptr<const AdapterMix> adapters,
               ScoreParams params, OnScores on_scores, OnDone on_done)
      : SequenceRequest(std::move(signal), loaded, std::move(adapters), std::move(params.tokens),
                        std::move(params.images)),
        candidates_(std::move(params.candidates)),
        logprobs_(candidates_.size()),
        likeliest_(candidates_.size()),
        on_scores_(std::move(on_scores)),
        on_done_(std::move(on_done)) {
    size_t token = 0;
    for (const int length : params.lengths) {
      first_tokens_.push_back(token);
      if (length > 1) tails_.push_back({n_rows_, length - 1, token});
      n_rows_ += length - 1;
      end_rows_.push_back(n_rows_);
      token += static_cast<size_t>(length);
    }
  }

  void finish(FinishReason reason) noexcept override {
    // First, so that a caller who asks sees the pages gone.
    forks_.clear();
    leave_prefix(reason);
    on_done_(error_of(reason));
  }

 private:
  struct Tail {
    int first_row = 0;  // among those of all tails
    int n = 0;
    size_t first_token = 0;  // in candidates_
  };

  const Tail& tail(size_t i) const { return tails_[next_tail_ + i]; }
  // A tail's rows that are done.
  int n_done_of(const Tail& t) const { return std::clamp(n_rows_done_ - t.first_row, 0, t.n); }

  int branch_rows() const override {
    const Tail& last = tails_[std::min(tails_.size(), next_tail_ + kMaxForks) - 1];
    return std::min(kScoreRows, last.first_row + last.n - n_rows_done_);
  }

  void add_inputs(int n_rows, std::vector<SequenceInput>* inputs) override {
    if (!branching_) return SequenceRequest::add_inputs(n_rows, inputs);
    begin_step();
    for (int i = 0; i < n_rows; ++i) wanted_.push_back({i, {}});
    for (size_t i = 0; n_rows > 0; ++i) {
      const Tail& t = tail(i);
      if (i == forks_.size()) forks_.push_back(fork());
      const int from = n_done_of(t);
      const int n = std::min(n_rows, t.n - from);
      inputs->push_back(
          {forks_[i].get(),
           n_prompt_ + from,
           std::span(candidates_).subspan(t.first_token + static_cast<size_t>(from), static_cast<size_t>(n)),
           std::span(wanted_).first(static_cast<size_t>(n)),
           {},
           true});
      n_rows -= n;
    }
  }

  std::unique_ptr<KvSequence> fork() {
    try {
      return kv_->fork(n_prompt_);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kOutOfMemory || loaded_.prefixes->empty()) throw;
    }
    loaded_.prefixes->clear();  // what is kept gives way
    return kv_->fork(n_prompt_);
  }

  void take(int, const Logits& logits) override {
    if (!is_finite_row(logits.values)) {
      throw Error(ErrorCode::kNonFinite, "NONFINITE",
                  "logits of a candidate hold NaN or infinity: the weights are damaged");
    }
    const double sum = log_sum_exp(logits.values);
    const auto best = std::max_element(logits.values.begin(), logits.values.end()) - logits.values.begin();
    const auto score = [&](size_t token) {
      logprobs_[token] = static_cast<double>(logits.values[static_cast<size_t>(candidates_[token])]) - sum;
      likeliest_[token] = candidates_[token] == best;
    };
    if (!branching_) {
      for (const size_t token : first_tokens_) score(token);
    } else {
      const int row = n_rows_done_ + n_taken_;
      const auto t = std::find_if(tails_.begin() + static_cast<std::ptrdiff_t>(next_tail_), tails_.end(),
                                  [row](const Tail& tail) { return row < tail.first_row + tail.n; });
      score(t->first_token + static_cast<size_t>(row - t->first_row) + 1);
    }
    ++n_taken_;
  }

  // Forks whose tails are done go, and those that were not begun. One that is cut goes on in the next step.
  std::optional<FinishReason> commit_branches(int n) override {
    n_rows_done_ += n;
    size_t n_ended = 0;
    while (n_ended < forks_.size() && n_done_of(tail(n_ended)) == tail(n_ended).n) ++n_ended;
    forks_.erase(forks_.begin(), forks_.begin() + static_cast<std::ptrdiff_t>(n_ended));
    next_tail_ += n_ended;
    const int n_begun = forks_.empty() ? 0 : n_done_of(tail(0));
    forks_.resize(n_begun > 0 ? 1 : 0);
    if (n_begun > 0) {
      forks_[0]->rollback(n_prompt_ + n_begun);
      forks_[0]->trim(n_prompt_ + n_begun);
    }
    return report(true);
  }

  std::optional<FinishReason> report(bool) override {
    if (in_prompt()) return std::nullopt;
    branching_ = n_rows_done_ < n_rows_;
    const size_t first = n_reported_;
    while (n_reported_ < end_rows_.size() && end_rows_[n_reported_] <= n_rows_done_) ++n_reported_;
    if (n_reported_ > first) {
      const size_t begin = first_tokens_[first];
      const size_t end = n_reported_ < first_tokens_.size() ? first_tokens_[n_reported_] : candidates_.size();
      on_scores_(
          {first, std::span(logprobs_).subspan(begin, end - begin), std::span(likeliest_).subspan(begin, end - begin)});
    }
    return branching_ ? std::nullopt : std::optional(FinishReason::kStop);
  }

  std::vector<TokenId> candidates_;                 // tokens of all candidates
  std::vector<size_t> first_tokens_;                // of each candidate, among these
  std::vector<int> end_rows_;                       // of each candidate: it is known when so many rows are done
  std::vector<Tail> tails_;                         // of candidates with more than one token
  int n_rows_ = 0;                                  // of all tails
  int n_rows_done_ = 0;                             // of these
  std::vector<double> logprobs_;                    // of candidates_
  std::vector<uint8_t> likeliest_;                  // likewise
  size_t next_tail_ = 0;                            // the first that is not done
  std::vector<std::unique_ptr<KvSequence>> forks_;  // of tails from next_tail_ on
  size_t n_reported_ = 0;                           // candidates
  OnScores on_scores_;
  OnDone on_done_;
};

}  // namespace

std::shared_ptr<SequenceRequest> make_score_request(std::shared_ptr<Signal> signal, LoadedModel& loaded,
                                                    std::shared_ptr<const AdapterMix> adapters, ScoreParams params,
                                                    OnScores on_scores, OnDone on_done) {
  return std::make_shared<ScoreRequest>(std::move(signal), loaded, std::move(adapters), std::move(params),
                                        std::move(on_scores), std::move(on_done));
}

}  // namespace gemma
