// Logits of a token sequence, no sampling.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/error.h"
#include "runtime/prompt.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

struct AdapterMix;
struct LoadedModel;
class SequenceRequest;
struct Signal;

struct LogitsParams {
  std::vector<TokenId> tokens;
  bool all = false;  // every position, not only the last
  std::vector<PromptImage> images;
  std::vector<AdapterUse> adapters;
  bool background = false;  // Request::background()
};

// logits[n_vocab] of a position, valid during the call. What it throws ends the request.
using OnLogits = std::function<void(int position, std::span<const float> logits)>;
// Once; null on success. Must not throw.
using OnDone = std::function<void(std::shared_ptr<const Error> error)>;

// params must have passed check_prompt(); loaded must live until the request is finished.
std::shared_ptr<SequenceRequest> make_logits_request(std::shared_ptr<Signal> signal, LoadedModel& loaded,
                                                     std::shared_ptr<const AdapterMix> adapters, LogitsParams params,
                                                     OnLogits on_row, OnDone on_done);

}  // namespace gemma
