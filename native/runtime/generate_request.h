// Tokens after a prompt, sampled one by one, with their text.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "grammar/grammar.h"
#include "runtime/prompt.h"
#include "runtime/request.h"
#include "runtime/sampler.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

struct AdapterMix;
struct LoadedModel;
class SequenceRequest;

struct Timings {
  double queue_ms = 0;
  double prefill_ms = 0;  // first prompt token in to first logits out
  double decode_ms = 0;   // after the first token
};

// How tokens are guessed ahead (draft.h). The tokens that come out are the same.
enum class DraftMode {
  kAuto,  // by the draft model if there is one, else by prompt lookup
  kOff,
  kPromptLookup,
  kModel,  // Error{kInvalidArgument, NO_DRAFT} when the engine was loaded without a draft model
};

struct GenerateParams {
  std::vector<TokenId> tokens;    // the prompt, BOS included where wanted; at least one
  int max_tokens = -1;            // -1: to the end of the context
  bool overflow_is_error = true;  // prompt + max_tokens > n_ctx: kContextFull before any work; false: cut the output
  bool stop_at_end_token = true;
  std::vector<TokenId> stop_tokens;  // these end the answer too, as end tokens do
  SamplingParams sampling;
  std::vector<std::string> stop_sequences;
  int max_unread = 256;  // pause this request while so many events are not acknowledged; 0: never pause
  // What the answer is bound to; null: nothing. An end token ends it then, whatever stop_at_end_token says.
  std::shared_ptr<const Grammar> grammar;
  DraftMode draft = DraftMode::kAuto;
  int n_draft = -1;  // guesses a step; -1: as many as pay, by their chances and by what steps cost
  // In order, apart from each other or side by side. Prompts with images are never read by a draft model: guesses come
  // from prompt lookup then.
  std::vector<PromptImage> images;
  std::vector<AdapterUse> adapters;
  bool background = false;  // Request::background()
};

// One event per generated token (text may be empty while characters are incomplete), then one finish event.
struct GenerateEvent {
  enum Kind { kPrefillProgress, kToken, kFinish } kind = kToken;
  // kPrefillProgress
  int n_prefilled = 0;
  // kToken
  SampledToken token;
  bool in_text = true;  // false for the end token and tokens inside a stop sequence
  // kToken and kFinish: valid UTF-8 that is new
  std::string text;
  // kFinish
  FinishReason reason = FinishReason::kStop;
  std::string matched_stop;  // the stop sequence, if one ended it
  int n_input = 0, n_output = 0;
  int n_cached = 0;                   // of n_input, positions whose keys and values were there already
  int n_drafted = 0, n_accepted = 0;  // tokens guessed ahead, and those of them that were right
  Timings timings;
  bool has_grammar = false;
  bool grammar_complete = false;       // the answer is a whole text of it
  std::shared_ptr<const Error> error;  // for kError
};

// What it throws ends the request; for the finish event it must not throw.
using OnGenerateEvent = std::function<void(GenerateEvent&& event)>;

// params must have passed check_generate(); loaded must live until the request is finished. Throws Error as Sampler
// does.
std::shared_ptr<SequenceRequest> make_generate_request(std::shared_ptr<Signal> signal, LoadedModel& loaded,
                                                       std::shared_ptr<const AdapterMix> adapters,
                                                       GenerateParams params, OnGenerateEvent on_event);

}  // namespace gemma
