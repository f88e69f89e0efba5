// Heads: what is made of the hidden rows in which the layers end. There is one, which makes logits.
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

inline int logit_rows(const ModelLimits& limits) {
  return std::min(limits.max_batch, kLogitRows);
}

// Whether the best few logits can be told from a screen. A cap is applied to all logits.
inline bool has_screen(const ModelConfig& config, const ModelLimits& limits) {
  return limits.screened && config.final_softcap == 0;
}

// Buffers of the logits head.
struct LogitsBuffers {
  std::unique_ptr<Buffer> x;       // [logit_rows, model_dim]: normed
  std::unique_ptr<Buffer> logits;  // [logit_rows, n_vocab], with room for kOutputLanes

  // Calls f(buffer, bytes) for each.
  template <class F>
  void each(const ModelConfig& config, const ModelLimits& limits, const F& f) {
    const size_t n_rows = static_cast<size_t>(logit_rows(limits));
    const size_t n_logits = static_cast<size_t>((config.n_vocab + kOutputLanes - 1) / kOutputLanes * kOutputLanes);
    f(x, n_rows * static_cast<size_t>(config.model_dim) * sizeof(float));
    f(logits, n_rows * n_logits * sizeof(float));
  }
};

// Floats of a row of logits on the host.
inline size_t host_logits_floats(const ModelConfig& config) {
  return static_cast<size_t>(config.n_vocab);
}

// What the head asks of a backend, added to what layers ask.
inline WorkLimits with_logits(WorkLimits work, const ModelConfig& config, const ModelLimits& limits) {
  work.n_top_rows = logit_rows(limits);
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

}  // namespace gemma
