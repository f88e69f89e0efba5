// Saving and restoring what the prefix cache holds (state_file.h). Pages are copied between the steps of other requests,
// some megabytes at a time; files are read and written by the thread that calls.
#pragma once

#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/prefix_cache.h"
#include "runtime/prompt.h"
#include "runtime/request.h"
#include "runtime/state_file.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

struct LoadedModel;

struct SaveParams {
  std::string path;
  std::vector<TokenId> tokens;      // of a prompt with its answer
  std::vector<PromptImage> images;  // of the tokens
  std::string metadata;             // the caller's own, at most kMaxStateMetadata bytes
};

struct SavedState {
  uint64_t n_bytes = 0;  // of the file
  int n_positions = 0;   // of the tokens, those whose keys and values are in it
};

struct RestoredState {
  std::vector<TokenId> tokens;  // as they were saved; anything in images
  std::vector<PromptImage> images;
  std::string metadata;
  // Of the tokens, those that need not be computed again: 0 where other arithmetic computed them than would here, or the
  // prefix cache has no room for them.
  int n_positions = 0;
};

// Copies between a state and the cache, on the engine's thread.
class StateRequest final : public Request {
 public:
  // kShape: what states must be like, and nothing else. kSave: puts into state the keys and values of the longest
  // beginning of its tokens that is kept. kRestore: keeps those of a state that was read. loaded and what is pointed to
  // must live until finish().
  enum class Way { kShape, kSave, kRestore };
  StateRequest(std::shared_ptr<Signal> signal, LoadedModel& loaded, Way way, StateShape* shape, State* state)
      : Request(std::move(signal)), loaded_(loaded), way_(way), shape_(shape), state_(state) {}

  // A part of the work. False when it is over: done, or failed().
  bool advance();
  void finish(FinishReason reason) noexcept override;
  // null or an error, once.
  std::future<std::shared_ptr<const Error>> ended() { return ended_.get_future(); }

 private:
  void begin();
  bool copy_some();
  void clear_rest();
  void keep();

  LoadedModel& loaded_;
  Way way_;
  StateShape* shape_;  // kShape
  State* state_;       // others
  bool has_begun_ = false;
  std::unique_ptr<KvSequence> kv_;
  std::shared_ptr<PrefixText> text_;
  size_t group_ = 0;  // what comes next: a page of this group ...
  size_t page_ = 0;   // ... of the sequence
  size_t at_ = 0;     // in the state's pages
  std::promise<std::shared_ptr<const Error>> ended_;
};

}  // namespace gemma
