#include "runtime/sequence_request.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "model/tokens.h"

namespace gemma {
namespace {

// Waiting for another request to compute what both begin with puts what follows into later steps: for no less.
constexpr int kWorthWaiting = 128;
// Questions behind a long text are seldom longer.
constexpr int kQuestion = 256;

}  // namespace

SequenceRequest::SequenceRequest(std::shared_ptr<Signal> signal, LoadedModel& loaded,
                                 std::shared_ptr<const AdapterMix> adapters, std::vector<TokenId>&& tokens,
                                 std::vector<PromptImage>&& images)
    : Request(std::move(signal)),
      loaded_(loaded),
      adapters_(std::move(adapters)),
      tokens_(std::move(tokens)),
      n_prompt_(static_cast<int>(tokens_.size())),
      images_(std::make_shared<const std::vector<PromptImage>>(std::move(images))) {
  for (const PromptImage& image : *images_) {
    const int n = static_cast<int>(image.embedding.size()) / loaded.config.model_dim;
    image_rows_.push_back({image.first, n, image.embedding.data()});
    std::fill_n(tokens_.begin() + image.first, n, kImageToken);
  }
}

void SequenceRequest::begin(const std::list<std::shared_ptr<SequenceRequest>>& running) {
  if (ahead_ != nullptr && ahead_->will_compute(n_ahead_)) return;
  ahead_.reset();
  if (shares_prefix()) {
    find_prefix();
    if (waits_for_prefix(running)) return;
  }
  if (kv_ == nullptr) kv_ = std::make_unique<KvSequence>(loaded_.model->kv_pool());
  prepare();
  has_begun_ = true;
}

void SequenceRequest::hash_tokens() {
  hash_blocks(tokens_, *images_, &hashes_, adapters_ != nullptr ? adapters_->seed : 0);
}

// Without memory for a copy of a page all is read anew.
void SequenceRequest::find_prefix() noexcept {
  try {
    hash_tokens();
    if (branches_.empty()) find_branches();
    // Not all of them: of the last one logits are wanted.
    const std::span<const TokenId> tokens = std::span(tokens_).first(static_cast<size_t>(n_prompt_) - 1);
    PrefixCache::Match match = loaded_.prefixes->find(tokens, images_, hashes_, key_of(adapters_.get()));
    if (match.n_known >= match.n + PrefixCache::kLeast) add_branch(match.n_known);
    kv_ = std::move(match.kv);
    n_done_ = n_cached_ = match.n;
  } catch (const std::exception&) {
    kv_.reset();
    n_done_ = n_cached_ = 0;
  }
}

// Where other prompts part from this one: at turns, behind the last image, and near the end, where a question stands
// behind a text without turns. Where they have parted already is found with the prefix.
void SequenceRequest::find_branches() {
  const TokenId turn = loaded_.tokenizer->special().start_of_turn;
  for (int i = 0; i < n_prompt_; ++i) {
    if (tokens_[static_cast<size_t>(i)] == turn) branches_.push_back(i);
  }
  if (!image_rows_.empty()) add_branch(image_rows_.back().first_position + image_rows_.back().n);
  if (n_prompt_ > kQuestion) add_branch(n_prompt_ - kQuestion);
}

void SequenceRequest::add_branch(int position) {
  branches_.insert(std::lower_bound(branches_.begin(), branches_.end(), position), position);
}

int SequenceRequest::common_prompt(const SequenceRequest& other) const {
  if (!same_mix(adapters_.get(), other.adapters_.get())) return 0;
  const int n = common_by_hashes(hashes_, std::span(tokens_).first(static_cast<size_t>(n_prompt_) - 1), other.hashes_,
                                 std::span(other.tokens_).first(static_cast<size_t>(other.n_prompt_)));
  for (const ImageRows& image : image_rows_) {
    if (image.first_position < n && n < image.first_position + image.n) return image.first_position;
  }
  return n;
}

bool SequenceRequest::waits_for_prefix(const std::list<std::shared_ptr<SequenceRequest>>& running) {
  std::shared_ptr<SequenceRequest> best;
  int n_best = n_done_ + kWorthWaiting - 1;
  for (const std::shared_ptr<SequenceRequest>& other : running) {
    if (other.get() == this) break;
    if (!other->shares_prefix() || !other->in_prompt() || !other->has_place_ || other->ended()) continue;
    if (other->background() && !background()) continue;  // that one waits itself, for this one
    const int n = common_prompt(*other);
    if (n > n_best && n >= other->n_done_) best = other, n_best = n;
  }
  if (best == nullptr) return false;
  best->add_branch(n_best);
  ahead_ = std::move(best);
  n_ahead_ = n_best;
  kv_.reset();
  n_done_ = n_cached_ = 0;
  return true;
}

void SequenceRequest::release_pages() {
  kv_->rollback(0);
  n_restored_ = std::max(n_restored_, std::exchange(n_done_, 0));
  on_release();
}

int SequenceRequest::image_rows_next() const {
  for (const ImageRows& image : image_rows_) {
    if (image.first_position == n_done_) return image.n;
  }
  return 0;
}

int SequenceRequest::prompt_rows(int n_max, int n_room) const {
  if (branching_) return std::min(n_max, branch_rows());
  if (!in_prompt()) return std::min(n_max, n_restored_ - n_done_);
  int n = std::min({n_max, n_prompt_ - n_done_, max_prompt_rows()});
  // Steps end where pages do: a page that is full is kept for others without a copy.
  if (const int odd = (n_done_ + n) % kPagePositions; shares_prefix() && n_done_ + n < n_prompt_ && odd < n) n -= odd;
  // Fewer where an image lies across the end, or more where one lies across the beginning.
  const int end = n_done_ + n;
  for (const ImageRows& image : image_rows_) {
    if (image.first_position >= end || image.first_position + image.n <= end) continue;
    if (image.first_position > n_done_) return image.first_position - n_done_;
    return image.n <= n_room ? image.n : 0;
  }
  return n;
}

void SequenceRequest::add_inputs(int n_rows, std::vector<SequenceInput>* inputs) {
  begin_step();
  if (!restoring()) return inputs->push_back(make_input(n_rows));
  const std::span<const TokenId> tokens =
      std::span(tokens_).subspan(static_cast<size_t>(n_done_), static_cast<size_t>(n_rows));
  inputs->push_back({kv_.get(), n_done_, tokens, {}, image_rows_, in_prompt()});
}

SequenceInput SequenceRequest::make_input(int n_rows) {
  const std::span<const TokenId> tokens =
      std::span(tokens_).subspan(static_cast<size_t>(n_done_), static_cast<size_t>(n_rows));
  want_prompt_rows(n_rows);
  return {kv_.get(), n_done_, tokens, wanted_, image_rows_, true};
}

void SequenceRequest::take_logits(int index, const Logits& logits) {
  if (failed()) return;
  try {
    take(index, logits);
  } catch (...) {
    fail_with_current();
  }
}

int SequenceRequest::n_counted(std::span<const SequenceInput> inputs, bool /*done*/) {
  // All positions before the first wanted row that does not count.
  size_t n_taken = static_cast<size_t>(n_taken_);
  int n = 0;
  for (const SequenceInput& input : inputs) {
    const bool all = n_taken >= input.wanted.size();
    n += all ? static_cast<int>(input.tokens.size()) : input.wanted[n_taken].index;
    if (!all) break;
    n_taken -= input.wanted.size();
  }
  return n;
}

std::optional<FinishReason> SequenceRequest::commit(int n) {
  if (branching_) return commit_branches(n);
  const bool was_prompt = !decoding();
  const bool was_restoring = restoring();
  n_done_ += n;
  kv_->rollback(n_done_);
  if (was_restoring) {  // all that these rows had to say was said
    kv_->trim(n_done_);
    if (decoding()) prepare();
    return std::nullopt;
  }
  if (was_prompt && shares_prefix()) keep_branches(n_done_ - n);
  kv_->trim(n_done_);
  return report(was_prompt);
}

// What others may go on from, of positions begin .. n_done_ that are new and still have the window before them. Failing
// for want of memory costs nothing but time later.
void SequenceRequest::keep_branches(int begin) noexcept {
  try {
    int n_kept = n_prompt_;  // from there on all is kept
    const auto keep = [&](int first, int n) {
      if (text_ == nullptr) {
        hash_tokens();  // if there was no memory for them before
        text_ = std::make_shared<const PrefixText>(
            PrefixText{{tokens_.begin(), tokens_.begin() + n_prompt_}, images_, hashes_, key_of(adapters_.get())});
      }
      std::unique_ptr<KvSequence> kv = kv_->fork(n, first);
      n_kept = kv->first_fork();
      loaded_.prefixes->keep(std::move(kv), n, text_);
    };
    // The same prompt again: of the last token logits are wanted.
    if (!in_prompt()) keep(std::max({0, begin, n_prompt_ - kQuestion}), n_prompt_);
    for (auto branch = branches_.rbegin(); branch != branches_.rend() && *branch >= begin; ++branch) {
      // The page in which they part, so that they share what they can of it.
      if (*branch <= n_done_ && *branch < n_kept)
        keep(*branch, std::min(n_done_, (*branch / kPagePositions + 1) * kPagePositions));
    }
  } catch (const std::exception&) {
    loaded_.prefixes->clear();
  }
  if (!in_prompt()) text_.reset();
}

void SequenceRequest::leave_prefix(FinishReason reason) noexcept {
  // An answer that is asked about has become part of a prompt. Where those are computed apart, what was kept of it as an
  // answer would make the result depend on what the cache holds: the prompt is all that is kept.
  const bool may_keep = in_prompt() || !loaded_.model->computes_prompts_apart();
  if (reason != FinishReason::kError && kv_ != nullptr && shares_prefix() && may_keep) {
    try {
      // Guesses behind the last token may have come true as well.
      const size_t n = std::min(static_cast<size_t>(n_done_), tokens_.size());
      tokens_.resize(n);
      hash_tokens();
      hashes_.resize(n / kPagePositions);
      auto text = std::make_shared<const PrefixText>(
          PrefixText{std::move(tokens_), images_, std::move(hashes_), key_of(adapters_.get())});
      loaded_.prefixes->keep(std::move(kv_), static_cast<int>(n), std::move(text));
    } catch (const std::exception&) {
      loaded_.prefixes->clear();
    }
  }
  kv_.reset();
  adapters_.reset();  // what it holds belongs to this thread
}

}  // namespace gemma
