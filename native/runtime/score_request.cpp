// The rows of a request are those of the prompt, then for each candidate those of its tokens but the last, because a row
// tells what follows it. n_done_ counts through all of them. The prompt's last row tells the first token of every
// candidate: candidates of one token need no row of their own.
#include "runtime/score_request.h"

#include <algorithm>
#include <utility>

#include "runtime/request_checks.h"
#include "runtime/sequence_request.h"

namespace gemma {
namespace {

// Logits of every row are wanted: steps stay short, so that cancelling does.
constexpr int kScoreRows = 32;
// Each branch has a copy of the page in which the prompt ends.
constexpr size_t kMaxOpenBranches = 16;

class ScoreRequest final : public SequenceRequest {
 public:
  ScoreRequest(std::shared_ptr<Signal> signal, LoadedModel& loaded, ScoreParams params, OnScores on_scores,
               OnDone on_done)
      : SequenceRequest(std::move(signal), loaded, std::move(params.tokens), std::move(params.images)),
        n_prefix_(n_prompt_),
        candidates_(std::move(params.candidates)),
        logprobs_(candidates_.size()),
        likeliest_(candidates_.size()),
        on_scores_(std::move(on_scores)),
        on_done_(std::move(on_done)) {
    size_t token = 0;
    for (const int length : params.lengths) {
      first_tokens_.push_back(token);
      if (length > 1) {
        branches_.push_back({static_cast<int>(tokens_.size()), length - 1});
        for (int i = 0; i < length - 1; ++i) {
          tokens_.push_back(candidates_[token + static_cast<size_t>(i)]);
          predicted_.push_back(token + static_cast<size_t>(i) + 1);
        }
      }
      token += static_cast<size_t>(length);
      end_rows_.push_back(static_cast<int>(tokens_.size()));
    }
    n_prompt_ = static_cast<int>(tokens_.size());
  }

  void finish(FinishReason reason) noexcept override {
    // First, so that a caller who asks sees the pages gone.
    open_.clear();
    if (reason == FinishReason::kStop && !image_rows_.empty()) keep_prefix();
    kv_.reset();
    on_done_(error_of(reason));
  }

 private:
  struct Branch {
    int first_row = 0;  // among all rows
    int n = 0;
  };

  bool in_prefix() const { return n_done_ < n_prefix_; }
  const Branch& branch(size_t i) const { return branches_[next_branch_ + i]; }
  // A branch's rows that are done.
  int n_done_of(const Branch& b) const { return std::clamp(n_done_ - b.first_row, 0, b.n); }

  std::unique_ptr<KvSequence> find_prefix() override {
    try {
      PrefixCache::Match match = loaded_.prefixes->find(std::span(tokens_).first(static_cast<size_t>(n_prefix_)), images_);
      n_done_ = match.n;
      return std::move(match.kv);
    } catch (const std::exception&) {
      n_done_ = 0;  // no memory for a copy of a page: all is read anew
    }
    return nullptr;
  }

  // Only the prompt is in kv_.
  int n_kept() const override { return std::min(n_done_, n_prefix_); }

  int max_prompt_rows() const override {
    if (in_prefix()) return n_prefix_ - n_done_;
    const size_t last = std::min(branches_.size(), next_branch_ + kMaxOpenBranches) - 1;
    return std::min(kScoreRows, branches_[last].first_row + branches_[last].n - n_done_);
  }

  void want_prompt_rows(int n) override {
    if (!in_prefix()) return want_all(n);
    if (n_done_ + n == n_prefix_) wanted_.push_back({n - 1, {}});
  }

  void want_all(int n) {
    for (int i = 0; i < n; ++i) wanted_.push_back({i, {}});
  }

  void add_inputs(int n_rows, std::vector<SequenceInput>* inputs) override {
    if (in_prefix()) return SequenceRequest::add_inputs(n_rows, inputs);
    begin_step();
    want_prompt_rows(n_rows);
    for (size_t i = 0; n_rows > 0; ++i) {
      const Branch& b = branch(i);
      if (i == open_.size()) open_.push_back(fork());
      const int from = n_done_of(b);
      const int n = std::min(n_rows, b.n - from);
      inputs->push_back({open_[i].get(), n_prefix_ + from,
                         std::span(tokens_).subspan(static_cast<size_t>(b.first_row + from), static_cast<size_t>(n)),
                         std::span(wanted_).first(static_cast<size_t>(n)), {}, true});
      n_rows -= n;
    }
  }

  // For the next question about the same pictures. Failing for want of memory costs nothing but time later.
  void keep_prefix() noexcept {
    try {
      loaded_.prefixes->keep(std::move(kv_), std::span(tokens_).first(static_cast<size_t>(n_prefix_)), images_);
    } catch (const std::exception&) {
      loaded_.prefixes->clear();
    }
  }

  std::unique_ptr<KvSequence> fork() {
    try {
      return kv_->fork(n_prefix_);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kOutOfMemory || loaded_.prefixes->empty()) throw;
    }
    loaded_.prefixes->clear();  // what is kept gives way
    return kv_->fork(n_prefix_);
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
    if (in_prefix()) {
      for (const size_t token : first_tokens_) score(token);
    } else {
      score(predicted_[static_cast<size_t>(n_done_ - n_prefix_ + n_taken_)]);
    }
    ++n_taken_;
  }

  // Branches that are done go, and those that were not begun. One that is cut goes on in the next step.
  void before_trim(int, bool) override {
    size_t n_ended = 0;
    while (n_ended < open_.size() && n_done_of(branch(n_ended)) == branch(n_ended).n) ++n_ended;
    open_.erase(open_.begin(), open_.begin() + static_cast<std::ptrdiff_t>(n_ended));
    next_branch_ += n_ended;
    const int n = open_.empty() ? 0 : n_done_of(branch(0));
    open_.resize(n > 0 ? 1 : 0);
    if (n == 0) return;
    open_[0]->rollback(n_prefix_ + n);
    open_[0]->trim(n_prefix_ + n);
  }

  std::optional<FinishReason> report(bool) override {
    if (in_prefix()) return std::nullopt;
    const size_t first = n_reported_;
    while (n_reported_ < end_rows_.size() && end_rows_[n_reported_] <= n_done_) ++n_reported_;
    if (n_reported_ > first) {
      const size_t begin = first_tokens_[first];
      const size_t end = n_reported_ < first_tokens_.size() ? first_tokens_[n_reported_] : candidates_.size();
      on_scores_({first, std::span(logprobs_).subspan(begin, end - begin),
                  std::span(likeliest_).subspan(begin, end - begin)});
    }
    return decoding() ? std::optional(FinishReason::kStop) : std::nullopt;
  }

  int n_prefix_;                        // rows of the prompt
  std::vector<TokenId> candidates_;     // tokens of all candidates
  std::vector<size_t> first_tokens_;    // of each candidate, among these
  std::vector<int> end_rows_;           // of each candidate: it is known when so many rows are done
  std::vector<Branch> branches_;        // of candidates with more than one token
  std::vector<size_t> predicted_;       // of each row behind the prompt: the token that its logits are for
  std::vector<double> logprobs_;        // of candidates_
  std::vector<uint8_t> likeliest_;      // likewise
  size_t next_branch_ = 0;              // the first that is not done
  std::vector<std::unique_ptr<KvSequence>> open_;  // of branches from next_branch_ on
  size_t n_reported_ = 0;               // candidates
  OnScores on_scores_;
  OnDone on_done_;
};

}  // namespace

std::shared_ptr<SequenceRequest> make_score_request(std::shared_ptr<Signal> signal, LoadedModel& loaded,
                                                    ScoreParams params, OnScores on_scores, OnDone on_done) {
  return std::make_shared<ScoreRequest>(std::move(signal), loaded, std::move(params), std::move(on_scores),
                                        std::move(on_done));
}

}  // namespace gemma
