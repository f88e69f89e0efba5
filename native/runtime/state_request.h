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
  std::vector<AdapterUse> adapters;
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

// Work on the engine's thread between the steps of other requests, for which a caller waits.
class TaskRequest : public Request {
 public:
  using Request::Request;
  // A part of the work. False when it is over: done, or failed().
  virtual bool advance() = 0;
  void finish(FinishReason reason) noexcept override;
  // null or an error, once.
  std::future<std::shared_ptr<const Error>> ended() { return ended_.get_future(); }

 protected:
  virtual void on_finish() noexcept {}

 private:
  std::promise<std::shared_ptr<const Error>> ended_;
};

// Puts a prepared adapter into the backends' memory.
class InstallRequest final : public TaskRequest {
 public:
  InstallRequest(std::shared_ptr<Signal> signal, LoadedModel& loaded, std::shared_ptr<Adapter> adapter)
      : TaskRequest(std::move(signal)), loaded_(loaded), adapter_(std::move(adapter)) {}
  bool advance() override;

 private:
  void on_finish() noexcept override { adapter_.reset(); }

  LoadedModel& loaded_;
  std::shared_ptr<Adapter> adapter_;
};

// Copies between a state and the cache.
class StateRequest final : public TaskRequest {
 public:
  // kShape: what states must be like, and nothing else. kSave: puts into state the keys and values of the longest
  // beginning of its tokens that is kept. kRestore: keeps those of a state that was read. loaded and what is pointed to
  // must live until finish(). adapters: with which keys and values are computed.
  enum class Way { kShape, kSave, kRestore };
  StateRequest(std::shared_ptr<Signal> signal, LoadedModel& loaded, std::shared_ptr<const AdapterMix> adapters, Way way,
               StateShape* shape, State* state)
      : TaskRequest(std::move(signal)),
        loaded_(loaded),
        adapters_(std::move(adapters)),
        way_(way),
        shape_(shape),
        state_(state) {}

  bool advance() override;

 private:
  void on_finish() noexcept override;
  void begin();
  bool copy_some();
  void clear_rest();
  void keep();

  LoadedModel& loaded_;
  std::shared_ptr<const AdapterMix> adapters_;
  Way way_;
  StateShape* shape_;  // kShape
  State* state_;       // others
  bool has_begun_ = false;
  std::unique_ptr<KvSequence> kv_;
  std::shared_ptr<PrefixText> text_;
  size_t group_ = 0;  // what comes next: a page of this group ...
  size_t page_ = 0;   // ... of the sequence
  size_t at_ = 0;     // in the state's pages
};

}  // namespace gemma
