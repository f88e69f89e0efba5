#include "model/heads.h"

namespace gemma {

LogitsHead::LogitsHead(Backend& backend, const ModelConfig& config, const Weight& output, const float* output_norm,
                       const ModelLimits& limits)
    : backend_(backend),
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
  float* x = buffers_.x->floats();
  float* products = buffers_.logits->floats();
  for (size_t begin = 0; begin < wanted.size(); begin += kLogitRows) {
    if (begin > 0 && should_stop()) return false;
    const size_t n = std::min<size_t>(kLogitRows, wanted.size() - begin);
    int32_t rows[kLogitRows];
    TopRows tops[kLogitRows];
    for (size_t i = 0; i < n; ++i) {
      rows[i] = wanted[begin + i].row;
      tops[i] = wanted[begin + i].top;
    }
    backend_.gather_rows(x, hidden, rows, static_cast<int>(n), model_dim_);
    backend_.rms_norm(x, x, output_norm_, static_cast<int>(n), model_dim_, rms_eps_);
    backend_.top_linear(*output_, products, x, static_cast<int>(n), std::span(tops).first(n),
                        std::span(found_).first(n));
    if (final_softcap_ > 0) backend_.softcap(products, n * n_vocab, final_softcap_);
    for (size_t i = 0; i < n; ++i) {
      Logits logits{found_[i].values, found_[i].rows, tops[i].always.size()};
      if (found_[i].all) {
        backend_.download(host_logits_.data(), products + i * n_vocab, n_vocab * sizeof(float));
        logits = {host_logits_, {}, 0};
      }
      on_logits(begin + i, logits);
    }
  }
  return true;
}

}  // namespace gemma
