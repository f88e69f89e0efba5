// Embeddings of texts: the texts of all such requests go through the layers in steps of their own, between the steps of
// other requests, one text after the other without padding. Nothing of them stays in the cache.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "model/forward.h"
#include "runtime/logits_request.h"
#include "runtime/prompt.h"
#include "runtime/request.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

struct LoadedModel;

// Bounds of a request; whoever has more asks again. A single text may have any number of tokens that fit the context.
inline constexpr size_t kMaxTexts = 16384;
inline constexpr size_t kMaxTextTokens = 1 << 20;

struct EmbedParams {
  std::vector<TokenId> tokens;  // of all texts, one after the other
  std::vector<int> lengths;     // tokens of each, at least one
  int n_dims = 0;               // of an embedding, the first are kept; 0: all
  bool normalize = true;        // to a length of 1, after that
  std::vector<AdapterUse> adapters;
  bool background = false;  // Request::background()
};

// rows[n, n_dims] of texts first, first + 1, ... Every text comes once, in order. What it throws ends the request.
using OnTexts = std::function<void(size_t first, std::vector<float>&& rows)>;

// What a step has room for.
struct TextRoom {
  int n_rows = 0;
  size_t n_pages = 0;  // of each group of the cache
};

class EmbedRequest final : public Request {
 public:
  // params must have passed check_embed(); loaded must live until finish(). adapters: those of params, may be null.
  EmbedRequest(std::shared_ptr<Signal> signal, LoadedModel& loaded, std::shared_ptr<const AdapterMix> adapters,
               EmbedParams params, OnTexts on_texts, OnDone on_done);

  // Appends the next text that is not in the step yet, or of a decoder as much of it as there is room for, and where
  // its rows are added up. False where there is no text or no room. A step's first text always has room.
  bool add_text(TextRoom* room, std::vector<SequenceInput>* inputs, std::vector<double*>* sums);
  // The step is over. done: it was not given up.
  void end_step(bool done);
  // Every text is embedded.
  bool done() const { return next_ == params_.lengths.size(); }
  void finish(FinishReason reason) noexcept override;

 private:
  // A text of the step.
  struct Text {
    std::unique_ptr<KvSequence> kv;
    int n_rows = 0;                // in the step
    std::vector<double> sum;       // [model_dim]: of the rows before the step (EmbeddingHead::add_rows)
    std::vector<double> next_sum;  // and of those after it
  };

  bool is_whole(size_t i) const;
  void embed(size_t n);

  LoadedModel& loaded_;
  std::shared_ptr<const AdapterMix> adapters_;
  EmbedParams params_;
  OnTexts on_texts_;
  OnDone on_done_;
  size_t next_ = 0;          // the first text that is not embedded
  size_t first_token_ = 0;   // of that text
  int n_done_ = 0;           // rows of that text that were computed in earlier steps
  std::vector<Text> texts_;  // of the step, or begun: from next_ on
  size_t n_in_step_ = 0;     // of texts_
  size_t next_token_ = 0;    // of the first text behind these
};

}  // namespace gemma
