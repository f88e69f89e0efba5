#include "model/forward.h"

#include <algorithm>
#include <cmath>

namespace gemma {
namespace {

// Logits are 1 MiB a row: computed for this many rows at a time.
constexpr int kLogitRows = 32;

// Looked up where an image's rows are to come: every table has it, the soft token's id may lie past the end.
constexpr int32_t kPadding = 0;

}  // namespace

Model::Model(Backend& backend, ModelConfig config, Weights weights, KvType kv_type, int max_batch, bool screened)
    : backend_(backend),
      config_(std::move(config)),
      weights_(std::move(weights)),
      kv_pool_(backend, config_, kv_type),
      max_batch_(max_batch) {
  const auto rows = [&](int n, int width) {
    return backend_.allocate(static_cast<size_t>(n) * static_cast<size_t>(width) * sizeof(float));
  };
  x_ = rows(max_batch, config_.model_dim);
  h_ = rows(max_batch, config_.model_dim);
  q_ = rows(max_batch, config_.q_dim);
  k_ = rows(max_batch, config_.kv_dim);
  v_ = rows(max_batch, config_.kv_dim);
  attn_ = rows(max_batch, config_.q_dim);
  gate_ = rows(max_batch, config_.ffn_dim);
  up_ = rows(max_batch, config_.ffn_dim);
  for (std::unique_ptr<Buffer>& table : rope_) table = rows(max_batch, config_.head_dim);
  head_x_ = rows(std::min(max_batch, kLogitRows), config_.model_dim);
  logits_ = rows(std::min(max_batch, kLogitRows), config_.n_vocab);
  found_.resize(kLogitRows);
  output_ = backend_.make_output(weights_.output, screened && config_.final_softcap == 0);
}

size_t Model::scratch_bytes() const {
  size_t bytes = static_cast<size_t>(config_.n_vocab) * sizeof(float);  // host_logits_
  for (const Buffer* b : {x_.get(), h_.get(), q_.get(), k_.get(), v_.get(), attn_.get(), gate_.get(), up_.get(),
                          rope_[0].get(), rope_[1].get(), head_x_.get(), logits_.get()}) {
    bytes += b->bytes();
  }
  return bytes;
}

bool Model::computes_prompts_apart() const {
  const auto is_quantized = [](const Weight& weight) { return !is_float_type(weight.type); };
  return backend_.has_bulk() && std::any_of(weights_.layers.begin(), weights_.layers.end(), [&](const LayerWeights& w) {
           return is_quantized(w.attn_q) || is_quantized(w.attn_k) || is_quantized(w.attn_v) ||
                  is_quantized(w.attn_output) || is_quantized(w.ffn_gate) || is_quantized(w.ffn_up) ||
                  is_quantized(w.ffn_down);
         });
}

void Model::plan(std::span<const SequenceInput> inputs) {
  batch_.n = 0;
  batch_.tokens.clear();
  batch_.positions.clear();
  batch_.images.clear();
  batch_.bulk = {};
  for (auto& spans : batch_.spans) spans.clear();
  for (auto& sequences : batch_.sequences) sequences.clear();
  for (const SequenceInput& input : inputs) {
    const int n = static_cast<int>(input.tokens.size());
    input.kv->reserve(input.first_position, input.first_position + n);
    for (const KvGroup group : {KvGroup::kLocal, KvGroup::kGlobal}) {
      batch_.sequences[static_cast<size_t>(group)].push_back({batch_.n, n, input.kv->pages(group)});
    }
    const auto past = [](const ImageRows& image, int position) { return image.first_position + image.n <= position; };
    auto image = std::lower_bound(input.images.begin(), input.images.end(), input.first_position, past);
    for (int i = 0; i < n; ++i) {
      const int position = input.first_position + i;
      if (image != input.images.end() && past(*image, position)) ++image;
      const bool in_image = image != input.images.end() && position >= image->first_position;
      if (in_image && position == image->first_position)
        batch_.images.push_back({batch_.n + i, image->n, image->embedding});
      batch_.tokens.push_back(in_image ? kPadding : input.tokens[static_cast<size_t>(i)]);
      batch_.positions.push_back(position);
      // An image's rows see all of their image, a token what came before it and itself.
      const int end = in_image ? image->first_position + image->n : position + 1;
      // The window counts the token itself: position - n_window + 1 is the first that is seen. Nothing limits an
      // image's rows forward.
      batch_.spans[static_cast<size_t>(KvGroup::kLocal)].push_back({std::max(0, position - config_.n_window + 1), end});
      batch_.spans[static_cast<size_t>(KvGroup::kGlobal)].push_back({0, end});
    }
    batch_.n += n;
    if (input.is_prompt) batch_.bulk.n_rows += n;
  }
}

bool Model::forward(std::span<const SequenceInput> inputs, const std::function<bool()>& should_stop,
                    const std::function<void(size_t sequence, int index, const Logits& logits)>& on_logits) {
  plan(inputs);
  const ModelConfig& c = config_;
  // sqrt(model_dim) in float32; the reference in bfloat16 rounds it, which float32 weights do not ask for.
  backend_.embed(x_->floats(), weights_.token_embd, batch_.tokens.data(), batch_.n,
                 std::sqrt(static_cast<float>(c.model_dim)));
  for (const Batch::Image& image : batch_.images) {
    const size_t dim = static_cast<size_t>(c.model_dim);
    backend_.upload(x_->floats() + static_cast<size_t>(image.row) * dim, image.embedding,
                    static_cast<size_t>(image.n) * dim * sizeof(float));
  }
  backend_.rope_table(rope_[static_cast<size_t>(KvGroup::kLocal)]->floats(), batch_.positions.data(),
                      weights_.inv_freq_local, batch_.n, c.head_dim);
  backend_.rope_table(rope_[static_cast<size_t>(KvGroup::kGlobal)]->floats(), batch_.positions.data(),
                      weights_.inv_freq_global, batch_.n, c.head_dim);

  for (int layer = 0; layer < c.n_layers; ++layer) {
    if (should_stop()) return false;
    attention_block(layer);
    ffn_block(layer);
  }
  if (should_stop()) return false;

  // Logits of the wanted rows, a few at a time.
  std::vector<Batch::Wanted>& wanted = batch_.wanted;
  wanted.clear();
  int32_t first_row = 0;
  for (size_t s = 0; s < inputs.size(); ++s) {
    const int n = static_cast<int>(inputs[s].tokens.size());
    for (int i = n - inputs[s].n_logits; i < n; ++i) wanted.push_back({s, i, first_row + i});
    first_row += n;
  }
  for (size_t begin = 0; begin < wanted.size(); begin += kLogitRows) {
    if (begin > 0 && should_stop()) return false;
    const size_t n = std::min<size_t>(kLogitRows, wanted.size() - begin);
    int32_t rows[kLogitRows];
    for (size_t i = 0; i < n; ++i) rows[i] = wanted[begin + i].row;
    backend_.gather_rows(head_x_->floats(), x_->floats(), rows, static_cast<int>(n), c.model_dim);
    backend_.rms_norm(head_x_->floats(), head_x_->floats(), weights_.output_norm, static_cast<int>(n), c.model_dim,
                      c.rms_eps);
    TopRows tops[kLogitRows];
    for (size_t i = 0; i < n; ++i) tops[i] = inputs[wanted[begin + i].sequence].top;
    backend_.top_linear(*output_, logits_->floats(), head_x_->floats(), static_cast<int>(n), std::span(tops).first(n),
                        std::span(found_).first(n));
    if (c.final_softcap > 0) backend_.softcap(logits_->floats(), n * static_cast<size_t>(c.n_vocab), c.final_softcap);
    for (size_t i = 0; i < n; ++i) {
      Logits logits{found_[i].values, found_[i].rows, tops[i].always.size()};
      if (found_[i].all) {
        host_logits_.resize(static_cast<size_t>(c.n_vocab));
        backend_.download(host_logits_.data(), logits_->floats() + i * host_logits_.size(),
                          host_logits_.size() * sizeof(float));
        logits = {host_logits_, {}, 0};
      }
      on_logits(wanted[begin + i].sequence, wanted[begin + i].index, logits);
    }
  }
  return true;
}

}  // namespace gemma
