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
#include "model/weights.h"

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

// Buffers of the embedding head: pooled texts and what the dense layers make of them.
struct EmbeddingBuffers {
  std::vector<std::unique_ptr<Buffer>>
      rows;  // [kPooledRows, what goes into a dense layer], and what the last one makes

  // Calls f(buffer, bytes) for each.
  template <class F>
  void each(const ModelConfig& config, const F& f) {
    if (!config.has_dense()) return;
    rows.resize(config.dense.size() + 1);
    for (size_t i = 0; i < rows.size(); ++i)
      f(rows[i], static_cast<size_t>(kPooledRows) * static_cast<size_t>(config.dense_in_dim(i)) * sizeof(float));
  }
};

// Embeddings of texts: a text's rows after the output norm in one, then the dense layers where there are some. Source:
// sentence-transformers 6.2 (Pooling, Dense).
class EmbeddingHead {
 public:
  // dense: of each of config.dense; must live as long as the head. Throws Error{kOutOfMemory}.
  EmbeddingHead(Backend& backend, const ModelConfig& config, std::span<const DenseWeights> dense,
                const float* output_norm);

  // normed[n, model_dim] = the output norm of hidden[n, model_dim], both on the backend; adapted are the rows with
  // adapters, which may have norms of their own.
  void norm(float* normed, const float* hidden, int n, std::span<const AdaptedRows> adapted = {});
  // Takes rows first .. first + n - 1 of normed, the first of which is at a position of its text, into sum[model_dim]:
  // one after the other, in double precision, so that the sum does not depend on how a text was cut into steps. At a
  // text's first row the sum is zeros.
  void add_rows(double* sum, const float* normed, int first, int n, int position);
  // What a sum over all rows of a text is divided by.
  double divisor(int n_rows) const;
  // embeddings[n, embedding_dim] of pooled[n, model_dim], both on the host. Not normalised.
  void project(float* embeddings, const float* pooled, int n);

 private:
  void finish_layer(size_t layer, float* rows, int n);

  Backend& backend_;
  int model_dim_;
  int embedding_dim_;
  float rms_eps_;
  Pooling pooling_;
  std::vector<DenseConfig> config_;
  std::span<const DenseWeights> dense_;
  const float* output_norm_;
  EmbeddingBuffers buffers_;
  std::vector<float> host_rows_;
};

}  // namespace gemma
