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

Model::Model(std::span<const Stage> stages, ModelConfig config, Weights weights, KvType kv_type, int max_batch,
             bool screened)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      kv_pool_(stages, config_, kv_type),
      max_batch_(max_batch) {
  const auto allocate = [](Backend& backend, int n, int width) {
    return backend.allocate(static_cast<size_t>(n) * static_cast<size_t>(width) * sizeof(float));
  };
  for (const Stage& stage : stages) {
    StageState& s = stages_.emplace_back();
    s.backend = stage.backend;
    s.first_layer = stage.first_layer;
    s.end_layer = stage.end_layer;
    const auto rows = [&](int width) { return allocate(*s.backend, max_batch, width); };
    s.x = rows(config_.model_dim);
    s.h = rows(config_.model_dim);
    s.q = rows(config_.q_dim);
    s.k = rows(config_.kv_dim);
    s.v = rows(config_.kv_dim);
    s.attn = rows(config_.q_dim);
    s.gate = rows(config_.ffn_dim);
    s.up = rows(config_.ffn_dim);
    for (std::unique_ptr<Buffer>& table : s.rope) table = rows(config_.head_dim);
  }
  batch_.sequences.resize(stages_.size());
  if (stages_.size() > 1) carried_.resize(static_cast<size_t>(max_batch) * static_cast<size_t>(config_.model_dim));
  Backend& last = *stages_.back().backend;
  head_x_ = allocate(last, std::min(max_batch, kLogitRows), config_.model_dim);
  logits_ = allocate(last, std::min(max_batch, kLogitRows), config_.n_vocab);
  found_.resize(kLogitRows);
  output_ = last.make_output(weights_.output, screened && config_.final_softcap == 0);
}

size_t Model::scratch_bytes() const {
  size_t bytes = static_cast<size_t>(config_.n_vocab) * sizeof(float);  // host_logits_
  for (const StageState& s : stages_) {
    for (const Buffer* b : {s.x.get(), s.h.get(), s.q.get(), s.k.get(), s.v.get(), s.attn.get(), s.gate.get(),
                            s.up.get(), s.rope[0].get(), s.rope[1].get()}) {
      bytes += b->bytes();
    }
  }
  return bytes + carried_.size() * sizeof(float) + head_x_->bytes() + logits_->bytes();
}

bool Model::computes_prompts_apart() const {
  return std::any_of(stages_.begin(), stages_.end(), [&](const StageState& s) {
    const auto is_apart = [&](const Weight& weight) { return s.backend->computes_bulk_apart(weight.type); };
    return std::any_of(
        weights_.layers.begin() + s.first_layer, weights_.layers.begin() + s.end_layer, [&](const LayerWeights& w) {
          return is_apart(w.attn_q) || is_apart(w.attn_k) || is_apart(w.attn_v) || is_apart(w.attn_output) ||
                 is_apart(w.ffn_gate) || is_apart(w.ffn_up) || is_apart(w.ffn_down);
        });
  });
}

void Model::plan(std::span<const SequenceInput> inputs) {
  batch_.n = 0;
  batch_.tokens.clear();
  batch_.positions.clear();
  batch_.images.clear();
  batch_.bulk = {};
  for (auto& spans : batch_.spans) spans.clear();
  for (Batch::Sequences& sequences : batch_.sequences) {
    for (std::vector<BatchSequence>& of_group : sequences.of) of_group.clear();
  }
  for (const SequenceInput& input : inputs) {
    const int n = static_cast<int>(input.tokens.size());
    input.kv->reserve(input.first_position, input.first_position + n);
    for (size_t stage = 0; stage < stages_.size(); ++stage) {
      for (const KvGroup group : {KvGroup::kLocal, KvGroup::kGlobal}) {
        batch_.sequences[stage].of[static_cast<size_t>(group)].push_back({batch_.n, n, input.kv->pages(group, stage)});
      }
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

// The residual stream as the stage's layers take it, and what all of them use.
void Model::begin_stage(size_t stage) {
  const ModelConfig& c = config_;
  const StageState& s = stages_[stage];
  const size_t dim = static_cast<size_t>(c.model_dim);
  if (stage == 0) {
    // sqrt(model_dim) in float32; the reference in bfloat16 rounds it, which float32 weights do not ask for.
    s.backend->embed(s.x->floats(), weights_.token_embd, batch_.tokens.data(), batch_.n,
                     std::sqrt(static_cast<float>(c.model_dim)));
    for (const Batch::Image& image : batch_.images) {
      s.backend->upload(s.x->floats() + static_cast<size_t>(image.row) * dim, image.embedding,
                        static_cast<size_t>(image.n) * dim * sizeof(float));
    }
  } else {
    const StageState& before = stages_[stage - 1];
    const size_t bytes = static_cast<size_t>(batch_.n) * dim * sizeof(float);
    before.backend->download(carried_.data(), before.x->floats(), bytes);
    s.backend->upload(s.x->floats(), carried_.data(), bytes);
  }
  const Weights::Frequencies& inv_freq = weights_.inv_freq[stage];
  s.backend->rope_table(s.rope[static_cast<size_t>(KvGroup::kLocal)]->floats(), batch_.positions.data(), inv_freq.local,
                        batch_.n, c.head_dim);
  s.backend->rope_table(s.rope[static_cast<size_t>(KvGroup::kGlobal)]->floats(), batch_.positions.data(),
                        inv_freq.global, batch_.n, c.head_dim);
}

bool Model::forward(std::span<const SequenceInput> inputs, const std::function<bool()>& should_stop,
                    const std::function<void(size_t sequence, int index, const Logits& logits)>& on_logits) {
  plan(inputs);
  const ModelConfig& c = config_;
  for (size_t stage = 0; stage < stages_.size(); ++stage) {
    begin_stage(stage);
    for (int layer = stages_[stage].first_layer; layer < stages_[stage].end_layer; ++layer) {
      if (should_stop()) return false;
      attention_block(stage, layer);
      ffn_block(stages_[stage], layer);
    }
  }
  if (should_stop()) return false;
  const StageState& last = stages_.back();
  Backend& backend = *last.backend;

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
    backend.gather_rows(head_x_->floats(), last.x->floats(), rows, static_cast<int>(n), c.model_dim);
    backend.rms_norm(head_x_->floats(), head_x_->floats(), weights_.output_norm, static_cast<int>(n), c.model_dim,
                     c.rms_eps);
    TopRows tops[kLogitRows];
    for (size_t i = 0; i < n; ++i) tops[i] = inputs[wanted[begin + i].sequence].top;
    backend.top_linear(*output_, logits_->floats(), head_x_->floats(), static_cast<int>(n), std::span(tops).first(n),
                       std::span(found_).first(n));
    if (c.final_softcap > 0) backend.softcap(logits_->floats(), n * static_cast<size_t>(c.n_vocab), c.final_softcap);
    for (size_t i = 0; i < n; ++i) {
      Logits logits{found_[i].values, found_[i].rows, tops[i].always.size()};
      if (found_[i].all) {
        host_logits_.resize(static_cast<size_t>(c.n_vocab));
        backend.download(host_logits_.data(), logits_->floats() + i * host_logits_.size(),
                         host_logits_.size() * sizeof(float));
        logits = {host_logits_, {}, 0};
      }
      on_logits(wanted[begin + i].sequence, wanted[begin + i].index, logits);
    }
  }
  return true;
}

}  // namespace gemma
