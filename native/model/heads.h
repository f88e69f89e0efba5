// Heads: what is made of the hidden rows in which the layers end: logits, or embeddings of texts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "model/adapter.h"
#include "model/config.h"
#include "model/logits.h"
#include "model/stage.h"

namespace gemma {

// Logits are 1 MiB a row: they are computed for this many rows at a time.
inline constexpr int kLogitRows = 32;

// None of an encoder.
inline int logit_rows(const ModelConfig& config, const ModelLimits& limits) {
  return config.is_encoder ? 0 : std::min(limits.max_batch, kLogitRows);
}

// Whether the best few logits can be told from a screen. A cap is applied to all logits.
inline bool has_screen(const ModelConfig& config, const ModelLimits& limits) {
  return limits.screened && config.final_softcap == 0 && !config.is_encoder;
}

// Buffers of the logits head.
struct LogitsBuffers {
  std::unique_ptr<Buffer> x;       // [logit_rows, model_dim]: normed
  std::unique_ptr<Buffer> logits;  // [logit_rows, n_vocab], with room for kOutputLanes

  // Calls f(buffer, bytes) for each.
  template <class F>
  void each(const ModelConfig& config, const ModelLimits& limits, const F& f) {
    const size_t n_rows = static_cast<size_t>(logit_rows(config, limits));
    if (n_rows == 0) return;
    const size_t n_logits = static_cast<size_t>((config.n_vocab + kOutputLanes - 1) / kOutputLanes * kOutputLanes);
    f(x, n_rows * static_cast<size_t>(config.model_dim) * sizeof(float));
    f(logits, n_rows * n_logits * sizeof(float));
  }
};

// Floats of a row of logits on the host.
inline size_t host_logits_floats(const ModelConfig& config) {
  return config.is_encoder ? 0 : static_cast<size_t>(config.n_vocab);
}

// What the head asks of a backend, added to what layers ask.
inline WorkLimits with_logits(WorkLimits work, const ModelConfig& config, const ModelLimits& limits) {
  if (config.is_encoder) return work;
  work.n_top_rows = logit_rows(config, limits);
  work.n_out = config.n_vocab;
  work.screened = has_screen(config, limits);
  return work;
}

// A hidden row whose logits are wanted, and which of them; the others may be left out.
struct LogitsRow {
  int32_t row = 0;
  TopRows top;
  const AdapterMix* adapters = nullptr;
};

class LogitsHead {
 public:
  // output: [n_vocab, model_dim]; output_norm: [model_dim].
  LogitsHead(Backend& backend, const ModelConfig& config, const Weight& output, const float* output_norm,
             const ModelLimits& limits);

  // Calls on_logits(i, logits) for each of rows[i] of hidden[., model_dim], in order; logits may be changed in place
  // and are valid during the call. should_stop is asked now and then; after true the rest is left out, and false
  // returned.
  bool run(const float* hidden, std::span<const LogitsRow> rows, const std::function<bool()>& should_stop,
           const std::function<void(size_t i, const Logits& logits)>& on_logits);

 private:
  void multiply(const AdapterMix& mix, int n);
  void replace_token_logits(const AdapterMix& mix, size_t row);

  Backend& backend_;
  Weight weight_;
  int model_dim_;
  float rms_eps_;
  float final_softcap_;
  const float* output_norm_;
  LogitsBuffers buffers_;
  std::vector<float> host_logits_;
  std::vector<float> token_logits_;  // of rows that an adapter has in place of the matrix's
  std::vector<LowRank> added_;
  std::vector<AdaptedRows> adapted_;
  std::vector<TopProducts> found_;  // [kLogitRows]
  std::unique_ptr<OutputMatrix> output_;
};

// Hidden rows, and means of texts, are taken to the host and back so many at a time.
inline constexpr int kPooledRows = 32;

// Floats of these on the host.
inline size_t host_pooled_floats(const ModelConfig& config) {
  return static_cast<size_t>(kPooledRows) * static_cast<size_t>(config.model_dim);
}

// Buffers of the embedding head: means of texts and what the dense layers make of them.
struct EmbeddingBuffers {
  std::unique_ptr<Buffer> means;    // [kPooledRows, model_dim]
  std::unique_ptr<Buffer> dense_2;  // [kPooledRows, dense_dim]
  std::unique_ptr<Buffer> dense_3;  // [kPooledRows, dense_out_dim]

  // Calls f(buffer, bytes) for each.
  template <class F>
  void each(const ModelConfig& config, const F& f) {
    if (!config.has_dense()) return;
    const auto rows = [&](std::unique_ptr<Buffer>& buffer, int width) {
      f(buffer, static_cast<size_t>(kPooledRows) * static_cast<size_t>(width) * sizeof(float));
    };
    rows(means, config.model_dim);
    rows(dense_2, config.dense_dim);
    rows(dense_3, config.dense_out_dim);
  }
};

// Embeddings of texts: the mean of a text's rows after the output norm, then the dense layers where there are some.
// Source: sentence-transformers 6.2 (Pooling with pooling_mode_mean_tokens; Dense without bias and activation).
class EmbeddingHead {
 public:
  // dense_2, dense_3: looked at where config.has_dense(). Throws Error{kOutOfMemory}.
  EmbeddingHead(Backend& backend, const ModelConfig& config, const Weight& dense_2, const Weight& dense_3,
                const float* output_norm);

  // normed[n, model_dim] = the output norm of hidden[n, model_dim], both on the backend.
  void norm(float* normed, const float* hidden, int n);
  // sum[model_dim] += rows first .. first + n - 1 of normed, one after the other, in double precision: the sum does not
  // depend on how a text was cut into steps.
  void add_rows(double* sum, const float* normed, int first, int n);
  // embeddings[n, embedding_dim] of means[n, model_dim], both on the host. Not normalised.
  void project(float* embeddings, const float* means, int n);

 private:
  Backend& backend_;
  int model_dim_;
  int embedding_dim_;
  float rms_eps_;
  bool has_dense_;
  Weight dense_2_;
  Weight dense_3_;
  const float* output_norm_;
  EmbeddingBuffers buffers_;
  std::vector<float> host_rows_;
};

}  // namespace gemma
