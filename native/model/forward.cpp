#include "model/forward.h"

#include <algorithm>
#include <cmath>

#include "model/layer_tensors.h"

namespace gemma {
namespace {

// Looked up where an image's rows are to come: every table has it, the soft token's id may lie past the end.
constexpr int32_t kPadding = 0;

}  // namespace

Model::Model(std::span<const Stage> stages, ModelConfig config, Weights weights, const ModelLimits& limits)
    : config_(std::move(config)),
      rope_groups_(rope_groups(config_)),
      weights_(std::move(weights)),
      kv_pool_(stages, config_, limits),
      max_batch_(limits.max_batch),
      carried_(carried_floats(config_, stages.size(), limits.max_batch)) {
  const WorkLimits work = layer_work(config_, limits, has_quantized_weights(*weights_.tensors, config_));
  for (const Stage& stage : stages) {
    StageState& s = stages_.emplace_back();
    s.backend = stage.backend;
    s.first_layer = stage.first_layer;
    s.end_layer = stage.end_layer;
    s.each(config_, max_batch_,
           [&](std::unique_ptr<Buffer>& buffer, size_t bytes) { buffer = s.backend->allocate(bytes); });
    const bool is_last = stages_.size() == stages.size();
    s.backend->reserve(is_last ? with_logits(work, config_, limits) : work);
  }
  batch_.spans.resize(kv_pool_.n_groups());
  batch_.sequences.resize(stages_.size());
  for (Batch::Sequences& sequences : batch_.sequences) sequences.of.resize(kv_pool_.n_groups());
  Backend& last = *stages_.back().backend;
  if (!config_.is_encoder) {
    logits_head_ = std::make_unique<LogitsHead>(last, config_, weights_.output, weights_.output_norm, limits);
  }
  embedding_head_ = std::make_unique<EmbeddingHead>(last, config_, weights_.dense, weights_.output_norm);
  computes_prompts_apart_ = finds_prompts_apart();
}

bool Model::finds_prompts_apart() const {
  for (const StageState& s : stages_) {
    for (int i = s.first_layer; i < s.end_layer; ++i) {
      const LayerWeights& weights = weights_.layers[static_cast<size_t>(i)];
      for (const LayerTensor& tensor : layer_tensors(config_, i)) {
        if (tensor.matrix != nullptr && s.backend->computes_bulk_apart((weights.*tensor.matrix).type)) return true;
      }
    }
  }
  return false;
}

void Model::plan(std::span<const SequenceInput> inputs) {
  batch_.n = 0;
  batch_.tokens.clear();
  batch_.positions.clear();
  batch_.images.clear();
  batch_.adapted.clear();
  batch_.bulk = {};
  for (auto& spans : batch_.spans) spans.clear();
  for (Batch::Sequences& sequences : batch_.sequences) {
    for (std::vector<BatchSequence>& of_group : sequences.of) of_group.clear();
  }
  for (const SequenceInput& input : inputs) {
    const int n = static_cast<int>(input.tokens.size());
    input.kv->reserve(input.first_position, input.first_position + n);
    for (size_t stage = 0; stage < stages_.size(); ++stage) {
      for (size_t group = 0; group < kv_pool_.n_groups(); ++group)
        batch_.sequences[stage].of[group].push_back({batch_.n, n, input.kv->pages(group, stage)});
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
      // The window counts the token itself: position - window + 1 is the first that is seen. Nothing limits an image's
      // rows forward.
      for (size_t group = 0; group < kv_pool_.n_groups(); ++group) {
        const int window = kv_pool_.window(group);
        if (config_.is_encoder) {  // a whole text, of whose local rows each sees half of the window to either side
          const int n_around = window == 0 ? n : window / 2;
          batch_.spans[group].push_back({std::max(0, position - n_around), std::min(n, position + n_around + 1)});
          continue;
        }
        batch_.spans[group].push_back({window == 0 ? 0 : std::max(0, position - window + 1), end});
      }
    }
    if (input.adapters != nullptr && n > 0) {
      AdaptedRows* last = batch_.adapted.empty() ? nullptr : &batch_.adapted.back();
      if (last != nullptr && last->first + last->n == batch_.n && same_mix(last->mix, input.adapters)) {
        last->n += n;
      } else {
        batch_.adapted.push_back({batch_.n, n, input.adapters});
      }
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
    embed();
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
  for (size_t g = 0; g < rope_groups_.size(); ++g) {
    s.backend->rope_table(s.rope[g]->floats(), batch_.positions.data(), weights_.inv_freq[stage][g], batch_.n,
                          c.layers[rope_groups_.first_layer[g]].head_dim);
  }
}

// Rows of the tokens, and what adapters make of them, which is scaled as these are.
void Model::embed() {
  const StageState& s = stages_.front();
  const size_t dim = static_cast<size_t>(config_.model_dim);
  // sqrt(model_dim) in float32; the reference in bfloat16 rounds it, which float32 weights do not ask for.
  const float scale = std::sqrt(static_cast<float>(config_.model_dim));
  s.backend->embed(s.x->floats(), weights_.token_embd, batch_.tokens.data(), batch_.n, scale);
  for (const AdaptedRows& rows : batch_.adapted) {
    const int32_t* tokens = &batch_.tokens[static_cast<size_t>(rows.first)];
    const auto row = [&](int i) { return s.x->floats() + static_cast<size_t>(rows.first + i) * dim; };
    for (const AdapterMix::Use& use : rows.mix->uses) {
      const Adapter::Embedding& own = use.adapter->embedding();
      if (own.table.data != nullptr) s.backend->embed(row(0), own.table, tokens, rows.n, scale);
      const std::span<const int32_t> ids = use.adapter->token_ids();
      for (int i = 0; !ids.empty() && i < rows.n; ++i) {
        const auto found = std::lower_bound(ids.begin(), ids.end(), tokens[i]);
        if (found == ids.end() || *found != tokens[i]) continue;
        const int32_t index = static_cast<int32_t>(found - ids.begin());
        s.backend->embed(row(i), use.adapter->token_rows(), &index, 1, scale);
      }
    }
    for (const AdapterMix::Use& use : rows.mix->uses) {
      const LowRankWeights& own = use.adapter->embedding().low_rank;
      if (own.b.data == nullptr) continue;
      LowRank added = own.of(rows.first, rows.n, use.scale * scale, s.x->floats(), config_.model_dim);
      added.a = {};
      s.backend->embed(own.t + static_cast<size_t>(rows.first) * static_cast<size_t>(own.b.n_out), own.a, tokens,
                       rows.n, 1.0f);
      s.backend->add_low_rank({&added, 1});
    }
  }
}

void Model::project(const StageState& s, int layer, std::span<const Product> products, const float* x) {
  const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
  LinearJob jobs[kMostProducts];
  added_.clear();
  for (size_t i = 0; i < products.size(); ++i) {
    const Weight& weight = weights.*products[i].weight;
    jobs[i] = {&weight, products[i].out};
    if (on_product_) on_product_(weight, x, batch_.n);
    for (const AdaptedRows& rows : batch_.adapted) {
      for (const AdapterMix::Use& use : rows.mix->uses) {
        if (const LowRankWeights* own = use.adapter->find(layer, products[i].weight))
          added_.push_back(own->of(rows.first, rows.n, use.scale, products[i].out, weight.n_out));
      }
    }
  }
  s.backend->linear(std::span(jobs).first(products.size()), x, batch_.n, batch_.bulk, added_);
}

void Model::norm_rows(const StageState& s, int layer, const float* LayerWeights::* norm) {
  const size_t dim = static_cast<size_t>(config_.model_dim);
  for_norms(layer, norm, [&](int first, int n, const float* weight) {
    const size_t at = static_cast<size_t>(first) * dim;
    s.backend->rms_norm(s.h->floats() + at, s.x->floats() + at, weight, n, config_.model_dim, config_.rms_eps);
  });
}

void Model::add_norm_rows(const StageState& s, int layer, const float* LayerWeights::* norm) {
  const size_t dim = static_cast<size_t>(config_.model_dim);
  for_norms(layer, norm, [&](int first, int n, const float* weight) {
    const size_t at = static_cast<size_t>(first) * dim;
    s.backend->add_rms_norm(s.x->floats() + at, s.h->floats() + at, weight, n, config_.model_dim, config_.rms_eps);
  });
}

bool Model::run_layers(std::span<const SequenceInput> inputs, const std::function<bool()>& should_stop) {
  plan(inputs);
  for (size_t stage = 0; stage < stages_.size(); ++stage) {
    begin_stage(stage);
    for (int layer = stages_[stage].first_layer; layer < stages_[stage].end_layer; ++layer) {
      if (should_stop()) return false;
      attention_block(stage, layer);
      ffn_block(stages_[stage], layer);
    }
  }
  return true;
}

bool Model::forward(std::span<const SequenceInput> inputs, const std::function<bool()>& should_stop,
                    const std::function<void(size_t sequence, int index, const Logits& logits)>& on_logits) {
  if (!run_layers(inputs, should_stop) || should_stop()) return false;
  batch_.wanted.clear();
  batch_.sources.clear();
  int32_t first_row = 0;
  for (size_t s = 0; s < inputs.size(); ++s) {
    for (const WantedRow& wanted : inputs[s].wanted) {
      batch_.wanted.push_back({first_row + wanted.index, wanted.top, inputs[s].adapters});
      batch_.sources.push_back({s, wanted.index});
    }
    first_row += static_cast<int32_t>(inputs[s].tokens.size());
  }
  return logits_head_->run(hidden(), batch_.wanted, should_stop, [&](size_t i, const Logits& logits) {
    on_logits(batch_.sources[i].sequence, batch_.sources[i].index, logits);
  });
}

bool Model::pool(std::span<const SequenceInput> inputs, const std::function<bool()>& should_stop,
                 std::span<double* const> sums) {
  if (!run_layers(inputs, should_stop) || should_stop()) return false;
  float* normed = stages_.back().h->floats();
  embedding_head_->norm(normed, hidden(), batch_.n, batch_.adapted);
  int first = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const int n = static_cast<int>(inputs[i].tokens.size());
    embedding_head_->add_rows(sums[i], normed, first, n, inputs[i].first_position);
    first += n;
  }
  return true;
}

}  // namespace gemma
