#include "model/heads.h"

namespace gemma {

LogitsHead::LogitsHead(Backend& backend, const ModelConfig& config, const Weight& output, const float* output_norm,
                       const ModelLimits& limits)
    : backend_(backend),
      weight_(output),
      model_dim_(config.model_dim),
      rms_eps_(config.rms_eps),
      final_softcap_(config.final_softcap),
      output_norm_(output_norm),
      host_logits_(host_logits_floats(config)),
      found_(kLogitRows),
      output_(backend.make_output(output, has_screen(config, limits), logit_rows(limits))) {
  buffers_.each(config, limits,
                [&](std::unique_ptr<Buffer>& buffer, size_t bytes) { buffer = backend.allocate(bytes); });
}

bool LogitsHead::run(const float* hidden, std::span<const LogitsRow> wanted, const std::function<bool()>& should_stop,
                     const std::function<void(size_t i, const Logits& logits)>& on_logits) {
  const size_t n_vocab = host_logits_.size();
  const size_t dim = static_cast<size_t>(model_dim_);
  float* x = buffers_.x->floats();
  float* products = buffers_.logits->floats();
  // Rows whose output matrix an adapter changes go by themselves: the screen is of the model's own.
  const auto changed = [&](size_t i) {
    const AdapterMix* mix = wanted[i].adapters;
    return mix != nullptr && mix->changes_output() ? mix : nullptr;
  };
  for (size_t begin = 0; begin < wanted.size();) {
    if (begin > 0 && should_stop()) return false;
    int32_t rows[kLogitRows];
    TopRows tops[kLogitRows];
    adapted_.clear();
    size_t n = 0;
    for (; n < kLogitRows && begin + n < wanted.size() && same_mix(changed(begin), changed(begin + n)); ++n) {
      const LogitsRow& row = wanted[begin + n];
      rows[n] = row.row;
      tops[n] = row.top;
      if (row.adapters != nullptr) adapted_.push_back({static_cast<int>(n), 1, row.adapters});
    }
    backend_.gather_rows(x, hidden, rows, static_cast<int>(n), model_dim_);
    for_norm_rows(
        adapted_, static_cast<int>(n), output_norm_, [](const AdapterMix& mix) { return mix.output_norm(); },
        [&](int first, int n_rows, const float* weight) {
          float* at = x + static_cast<size_t>(first) * dim;
          backend_.rms_norm(at, at, weight, n_rows, model_dim_, rms_eps_);
        });
    const AdapterMix* mix = changed(begin);
    if (mix != nullptr) {
      multiply(*mix, static_cast<int>(n));
    } else {
      backend_.top_linear(*output_, products, x, static_cast<int>(n), std::span(tops).first(n),
                          std::span(found_).first(n));
    }
    if (final_softcap_ > 0) backend_.softcap(products, n * n_vocab, final_softcap_);
    for (size_t i = 0; i < n; ++i) {
      Logits logits{found_[i].values, found_[i].rows, tops[i].always.size()};
      if (mix != nullptr || found_[i].all) {
        backend_.download(host_logits_.data(), products + i * n_vocab, n_vocab * sizeof(float));
        if (mix != nullptr) replace_token_logits(*mix, i);
        logits = {host_logits_, {}, 0};
      }
      on_logits(begin + i, logits);
    }
    begin += n;
  }
  return true;
}

// All products of n rows with the output matrix as the adapters change it.
void LogitsHead::multiply(const AdapterMix& mix, int n) {
  const float* x = buffers_.x->floats();
  LinearJob job{&weight_, buffers_.logits->floats()};
  added_.clear();
  for (const AdapterMix::Use& use : mix.uses) {
    const Adapter::Head& head = use.adapter->head();
    if (head.matrix.data != nullptr) job.weight = &head.matrix;
    if (head.low_rank.b.data != nullptr) added_.push_back(head.low_rank.of(0, n, use.scale, job.out, weight_.n_out));
  }
  backend_.linear({&job, 1}, x, n, {}, added_);
  for (const AdapterMix::Use& use : mix.uses) {
    if (!use.adapter->head().has_token_rows) continue;
    const LinearJob rows{&use.adapter->output_rows(), use.adapter->output_products()};
    backend_.linear({&rows, 1}, x, n, {});
    if (final_softcap_ > 0)
      backend_.softcap(rows.out, static_cast<size_t>(n) * use.adapter->token_ids().size(), final_softcap_);
  }
}

void LogitsHead::replace_token_logits(const AdapterMix& mix, size_t row) {
  for (const AdapterMix::Use& use : mix.uses) {
    if (!use.adapter->head().has_token_rows) continue;
    const std::span<const int32_t> ids = use.adapter->token_ids();
    token_logits_.resize(ids.size());
    backend_.download(token_logits_.data(), use.adapter->output_products() + row * ids.size(),
                      ids.size() * sizeof(float));
    for (size_t i = 0; i < ids.size(); ++i) host_logits_[static_cast<size_t>(ids[i])] = token_logits_[i];
  }
}

}  // namespace gemma
