#include "model/heads.h"

#include <cstring>

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
      output_(backend.make_output(output, has_screen(config, limits), logit_rows(config, limits))) {
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
