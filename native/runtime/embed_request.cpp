#include "runtime/embed_request.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "runtime/load.h"
#include "runtime/request_checks.h"

namespace gemma {
namespace {

// As sentence-transformers does: a row of zeros stays one (torch.nn.functional.normalize).
void normalize_row(std::span<float> row) {
  constexpr double kLeast = 1e-12;
  double sum = 0;
  for (const float x : row) sum += static_cast<double>(x) * static_cast<double>(x);
  const double length = std::max(std::sqrt(sum), kLeast);
  for (float& x : row) x = static_cast<float>(static_cast<double>(x) / length);
}

}  // namespace

EmbedRequest::EmbedRequest(std::shared_ptr<Signal> signal, LoadedModel& loaded,
                           std::shared_ptr<const AdapterMix> adapters, EmbedParams params, OnTexts on_texts,
                           OnDone on_done)
    : Request(std::move(signal)),
      loaded_(loaded),
      adapters_(std::move(adapters)),
      params_(std::move(params)),
      on_texts_(std::move(on_texts)),
      on_done_(std::move(on_done)) {}

bool EmbedRequest::add_text(TextRoom* room, std::vector<SequenceInput>* inputs, std::vector<double*>* sums) {
  const size_t i = next_ + n_in_step_;
  if (i == params_.lengths.size()) return false;
  const bool is_begun = n_in_step_ == 0 && n_done_ > 0;
  const int first = is_begun ? n_done_ : 0;
  const int left = params_.lengths[i] - first;
  const bool is_whole = loaded_.config.is_encoder;  // whose rows see all of their text
  const int n = is_whole ? left : std::min(left, room->n_rows);
  const size_t n_pages = static_cast<size_t>((first + n - 1) / kPagePositions - first / kPagePositions + 1);
  if (n < 1 || (!inputs->empty() && (n > room->n_rows || n_pages > room->n_pages))) return false;

  const size_t dim = static_cast<size_t>(loaded_.config.model_dim);
  if (!is_begun) {
    // Behind what an earlier step that was given up has left.
    texts_.resize(n_in_step_);
    Text& text = texts_.emplace_back();
    text.kv = std::make_unique<KvSequence>(loaded_.model->kv_pool());
    text.sum.resize(dim);
  }
  Text& text = texts_[n_in_step_];
  text.n_rows = n;
  text.next_sum = text.sum;
  const size_t begin = (n_in_step_ == 0 ? first_token_ : next_token_) + static_cast<size_t>(first);
  const std::span<const TokenId> tokens = std::span(params_.tokens).subspan(begin, static_cast<size_t>(n));
  sums->push_back(text.next_sum.data());
  inputs->push_back({text.kv.get(), first, tokens, {}, {}, true, adapters_.get()});
  ++n_in_step_;
  next_token_ = begin + static_cast<size_t>(n);
  room->n_rows -= n;
  room->n_pages -= std::min(room->n_pages, n_pages);
  return true;
}

bool EmbedRequest::is_whole(size_t i) const {
  return (i == 0 ? n_done_ : 0) + texts_[i].n_rows == params_.lengths[next_ + i];
}

void EmbedRequest::end_step(bool done) {
  const size_t n_in_step = std::exchange(n_in_step_, 0);
  if (!done) {
    texts_.resize(n_done_ > 0 ? 1 : 0);
    return;
  }
  for (size_t i = 0; i < n_in_step; ++i) texts_[i].sum.swap(texts_[i].next_sum);
  // Only the last one can have been cut.
  const bool is_cut = n_in_step > 0 && !is_whole(n_in_step - 1);
  const size_t n_whole = n_in_step - (is_cut ? 1 : 0);
  int n_of_cut = 0;
  if (is_cut) n_of_cut = (n_in_step == 1 ? n_done_ : 0) + texts_[n_whole].n_rows;
  if (n_whole > 0) embed(n_whole);
  texts_.erase(texts_.begin(), texts_.begin() + static_cast<std::ptrdiff_t>(n_whole));
  n_done_ = n_of_cut;
  if (is_cut) texts_.front().kv->trim(n_done_);
}

// The first n texts of the step are whole.
void EmbedRequest::embed(size_t n) {
  const size_t model_dim = static_cast<size_t>(loaded_.config.model_dim);
  const size_t dim = static_cast<size_t>(loaded_.config.embedding_dim());
  const size_t n_dims = params_.n_dims > 0 ? static_cast<size_t>(params_.n_dims) : dim;
  EmbeddingHead& head = loaded_.model->embedding_head();
  std::vector<float> pooled;
  pooled.reserve(n * model_dim);
  size_t n_tokens = 0;
  for (size_t i = 0; i < n; ++i) {
    const int length = params_.lengths[next_ + i];
    const double divisor = head.divisor(length);
    for (const double sum : texts_[i].sum) pooled.push_back(static_cast<float>(sum / divisor));
    n_tokens += static_cast<size_t>(length);
  }
  std::vector<float> embeddings(n * dim);
  head.project(embeddings.data(), pooled.data(), static_cast<int>(n));
  for (size_t i = 0; i < n; ++i) {
    if (is_finite_row(std::span(embeddings).subspan(i * dim, dim))) continue;
    throw Error(
        ErrorCode::kNonFinite, "NONFINITE",
        "the embedding of text " + std::to_string(next_ + i) + " holds NaN or infinity: the weights are damaged");
  }
  std::vector<float> rows(n * n_dims);
  for (size_t i = 0; i < n; ++i) {
    const std::span<float> row = std::span(rows).subspan(i * n_dims, n_dims);
    std::copy_n(embeddings.begin() + static_cast<std::ptrdiff_t>(i * dim), n_dims, row.begin());
    if (params_.normalize) normalize_row(row);
  }
  on_texts_(next_, std::move(rows));
  next_ += n;
  first_token_ += n_tokens;
}

void EmbedRequest::finish(FinishReason reason) noexcept {
  texts_.clear();  // first, so that a caller who asks sees the pages gone
  params_ = {};    // handles may stay for long, texts may be many
  adapters_.reset();
  on_texts_ = nullptr;
  const OnDone on_done = std::move(on_done_);
  on_done(error_of(reason));
}

}  // namespace gemma
