#include "model/heads.h"

#include <cstring>

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
      output_(backend.make_output(output, has_screen(config, limits), logit_rows(config, limits))) {
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

EmbeddingHead::EmbeddingHead(Backend& backend, const ModelConfig& config, const Weight& dense_2, const Weight& dense_3,
                             const float* output_norm)
    : backend_(backend),
      model_dim_(config.model_dim),
      embedding_dim_(config.embedding_dim()),
      rms_eps_(config.rms_eps),
      has_dense_(config.has_dense()),
      dense_2_(dense_2),
      dense_3_(dense_3),
      output_norm_(output_norm),
      host_rows_(host_pooled_floats(config)) {
  buffers_.each(config, [&](std::unique_ptr<Buffer>& buffer, size_t bytes) { buffer = backend.allocate(bytes); });
}

void EmbeddingHead::norm(float* normed, const float* hidden, int n) {
  backend_.rms_norm(normed, hidden, output_norm_, n, model_dim_, rms_eps_);
}

void EmbeddingHead::add_rows(double* sum, const float* normed, int first, int n) {
  const size_t dim = static_cast<size_t>(model_dim_);
  for (int done = 0; done < n; done += kPooledRows) {
    const size_t n_rows = static_cast<size_t>(std::min(kPooledRows, n - done));
    backend_.download(host_rows_.data(), normed + static_cast<size_t>(first + done) * dim,
                      n_rows * dim * sizeof(float));
    const float* row = host_rows_.data();
    for (size_t r = 0; r < n_rows; ++r, row += dim) {
      for (size_t i = 0; i < dim; ++i) sum[i] += static_cast<double>(row[i]);
    }
  }
}

void EmbeddingHead::project(float* embeddings, const float* means, int n) {
  const size_t dim = static_cast<size_t>(model_dim_);
  if (!has_dense_) {
    std::memcpy(embeddings, means, static_cast<size_t>(n) * dim * sizeof(float));
    return;
  }
  const size_t out_dim = static_cast<size_t>(embedding_dim_);
  for (int done = 0; done < n; done += kPooledRows) {
    const int n_rows = std::min(kPooledRows, n - done);
    const size_t first = static_cast<size_t>(done);
    backend_.upload(buffers_.means->floats(), means + first * dim, static_cast<size_t>(n_rows) * dim * sizeof(float));
    const LinearJob to_dense_2{&dense_2_, buffers_.dense_2->floats()};
    backend_.linear({&to_dense_2, 1}, buffers_.means->floats(), n_rows, {});
    const LinearJob to_dense_3{&dense_3_, buffers_.dense_3->floats()};
    backend_.linear({&to_dense_3, 1}, buffers_.dense_2->floats(), n_rows, {});
    backend_.download(embeddings + first * out_dim, buffers_.dense_3->floats(),
                      static_cast<size_t>(n_rows) * out_dim * sizeof(float));
  }
}

}  // namespace gemma
