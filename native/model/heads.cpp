#include "model/heads.h"

#include <cmath>
#include <cstring>
#include <numbers>

namespace gemma {
namespace {

float activated(Activation activation, float value) {
  const double x = static_cast<double>(value);
  switch (activation) {
    case Activation::kIdentity: break;
    case Activation::kTanh: return static_cast<float>(std::tanh(x));
    case Activation::kRelu: return value > 0 || std::isnan(value) ? value : 0.0f;
    case Activation::kSigmoid: return static_cast<float>(1 / (1 + std::exp(-x)));
    case Activation::kGelu: return static_cast<float>(x * 0.5 * (1 + std::erf(x / std::numbers::sqrt2)));
    case Activation::kSilu: return static_cast<float>(x / (1 + std::exp(-x)));
  }
  return value;
}

}  // namespace

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

EmbeddingHead::EmbeddingHead(Backend& backend, const ModelConfig& config, std::span<const DenseWeights> dense,
                             const float* output_norm)
    : backend_(backend),
      model_dim_(config.model_dim),
      embedding_dim_(config.embedding_dim()),
      rms_eps_(config.rms_eps),
      pooling_(config.pooling),
      config_(config.dense),
      dense_(dense),
      output_norm_(output_norm),
      host_rows_(host_pooled_floats(config)) {
  buffers_.each(config, [&](std::unique_ptr<Buffer>& buffer, size_t bytes) { buffer = backend.allocate(bytes); });
}

void EmbeddingHead::norm(float* normed, const float* hidden, int n, std::span<const AdaptedRows> adapted) {
  const size_t dim = static_cast<size_t>(model_dim_);
  for_norm_rows(
      adapted, n, output_norm_, [](const AdapterMix& mix) { return mix.output_norm(); },
      [&](int first, int n_rows, const float* weight) {
        const size_t at = static_cast<size_t>(first) * dim;
        backend_.rms_norm(normed + at, hidden + at, weight, n_rows, model_dim_, rms_eps_);
      });
}

void EmbeddingHead::add_rows(double* sum, const float* normed, int first, int n, int position) {
  const size_t dim = static_cast<size_t>(model_dim_);
  if (pooling_ == Pooling::kFirst) n = position == 0 ? 1 : 0;
  if (pooling_ == Pooling::kLast) {
    first += n - 1;
    n = 1;
  }
  for (int done = 0; done < n; done += kPooledRows) {
    const int n_rows = std::min(kPooledRows, n - done);
    backend_.download(host_rows_.data(), normed + static_cast<size_t>(first + done) * dim,
                      static_cast<size_t>(n_rows) * dim * sizeof(float));
    const float* row = host_rows_.data();
    for (int r = 0; r < n_rows; ++r, row += dim) {
      const int at = position + done + r;
      const auto each = [&](const auto& f) {
        for (size_t i = 0; i < dim; ++i) sum[i] = f(sum[i], static_cast<double>(row[i]));
      };
      switch (pooling_) {
        case Pooling::kMean:
        case Pooling::kMeanSqrtLength: each([](double before, double x) { return before + x; }); break;
        case Pooling::kFirst:
        case Pooling::kLast: each([](double, double x) { return x; }); break;
        case Pooling::kMax:
          each([&](double before, double x) { return at > 0 && (before > x || std::isnan(before)) ? before : x; });
          break;
        case Pooling::kWeightedMean: each([&](double before, double x) { return before + (at + 1) * x; }); break;
      }
    }
  }
}

double EmbeddingHead::divisor(int n_rows) const {
  const double n = n_rows;
  switch (pooling_) {
    case Pooling::kMean: return n;
    case Pooling::kMeanSqrtLength: return std::sqrt(n);
    case Pooling::kWeightedMean: return n * (n + 1) / 2;
    case Pooling::kFirst:
    case Pooling::kLast:
    case Pooling::kMax: break;
  }
  return 1;
}

void EmbeddingHead::project(float* embeddings, const float* pooled, int n) {
  const size_t dim = static_cast<size_t>(model_dim_);
  if (dense_.empty()) {
    std::memcpy(embeddings, pooled, static_cast<size_t>(n) * dim * sizeof(float));
    return;
  }
  const size_t out_dim = static_cast<size_t>(embedding_dim_);
  for (int done = 0; done < n; done += kPooledRows) {
    const int n_rows = std::min(kPooledRows, n - done);
    const size_t first = static_cast<size_t>(done);
    backend_.upload(buffers_.rows[0]->floats(), pooled + first * dim,
                    static_cast<size_t>(n_rows) * dim * sizeof(float));
    for (size_t i = 0; i < dense_.size(); ++i) {
      float* out = buffers_.rows[i + 1]->floats();
      const LinearJob job{&dense_[i].matrix, out};
      backend_.linear({&job, 1}, buffers_.rows[i]->floats(), n_rows, {});
      if (config_[i].has_bias || config_[i].activation != Activation::kIdentity) finish_layer(i, out, n_rows);
    }
    backend_.download(embeddings + first * out_dim, buffers_.rows.back()->floats(),
                      static_cast<size_t>(n_rows) * out_dim * sizeof(float));
  }
}

// Bias and activation, on the host: there are few rows, and few models have any of it.
void EmbeddingHead::finish_layer(size_t layer, float* rows, int n) {
  const size_t dim = static_cast<size_t>(config_[layer].out_dim);
  const std::vector<float>& bias = dense_[layer].bias;
  std::vector<float> values(static_cast<size_t>(n) * dim);
  backend_.download(values.data(), rows, values.size() * sizeof(float));
  for (size_t i = 0; i < values.size(); ++i) {
    if (!bias.empty()) values[i] += bias[i % dim];
    values[i] = activated(config_[layer].activation, values[i]);
  }
  backend_.upload(rows, values.data(), values.size() * sizeof(float));
}

}  // namespace gemma
