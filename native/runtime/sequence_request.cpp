#include "runtime/sequence_request.h"

#include <algorithm>
#include <utility>

#include "model/tokens.h"

namespace gemma {

SequenceRequest::SequenceRequest(std::shared_ptr<Signal> signal, LoadedModel& loaded, std::vector<TokenId>&& tokens,
                                 std::vector<PromptImage>&& images)
    : Request(std::move(signal)),
      loaded_(loaded),
      tokens_(std::move(tokens)),
      n_prompt_(static_cast<int>(tokens_.size())),
      images_(std::make_shared<const std::vector<PromptImage>>(std::move(images))) {
  for (const PromptImage& image : *images_) {
    const int n = static_cast<int>(image.embedding.size()) / loaded.config.model_dim;
    image_rows_.push_back({image.first, n, image.embedding.data()});
    std::fill_n(tokens_.begin() + image.first, n, kImageToken);
  }
}

void SequenceRequest::begin() {
  kv_ = find_prefix();
  if (kv_ == nullptr) kv_ = std::make_unique<KvSequence>(loaded_.model->kv_pool());
  prepare();
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
  if (!in_prompt()) return std::min(n_max, n_restored_ - n_done_);
  const int n = std::min({n_max, n_prompt_ - n_done_, max_prompt_rows()});
  // Fewer where an image lies across the end, or more where one lies across the beginning.
  const int end = n_done_ + n;
  for (const ImageRows& image : image_rows_) {
    if (image.first_position >= end || image.first_position + image.n <= end) continue;
    if (image.first_position > n_done_) return image.first_position - n_done_;
    return image.n <= n_room ? image.n : 0;
  }
  return n;
}

SequenceInput SequenceRequest::next_input(int n_rows) {
  n_taken_ = 0;
  wanted_.clear();
  if (!restoring()) return make_input(n_rows);
  const std::span<const TokenId> tokens =
      std::span(tokens_).subspan(static_cast<size_t>(n_done_), static_cast<size_t>(n_rows));
  return {kv_.get(), n_done_, tokens, {}, image_rows_, in_prompt()};
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

int SequenceRequest::n_counted(const SequenceInput& input, bool /*done*/) {
  // All positions before the first wanted row that does not count.
  const size_t n_taken = static_cast<size_t>(n_taken_);
  return n_taken == input.wanted.size() ? static_cast<int>(input.tokens.size()) : input.wanted[n_taken].index;
}

std::optional<FinishReason> SequenceRequest::commit(int n) {
  const bool was_prompt = !decoding();
  const bool was_restoring = restoring();
  n_done_ += n;
  kv_->rollback(n_done_);
  if (was_restoring) {  // all that these rows had to say was said
    kv_->trim(n_done_);
    if (decoding()) prepare();
    return std::nullopt;
  }
  before_trim(n, was_prompt);
  kv_->trim(n_done_);
  return report(was_prompt);
}

}  // namespace gemma
