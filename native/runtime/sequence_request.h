// A request whose prompt goes through the layers: its tokens, the part of them that is in the cache, and the rows it
// wants of the next step. The scheduler asks add_inputs() and then, within the step, gives the logits of the wanted
// rows to take_logits(); commit() ends the step for the request. A step that is given up is asked for anew: nothing is
// committed before it ends. Engine thread only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "model/forward.h"
#include "runtime/draft.h"
#include "runtime/load.h"
#include "runtime/prompt.h"
#include "runtime/request.h"

namespace gemma {

class SequenceRequest : public Request {
 public:
  // loaded must live until finish(). The prompt must have passed check_prompt().
  SequenceRequest(std::shared_ptr<Signal> signal, LoadedModel& loaded, std::shared_ptr<const AdapterMix> adapters,
                  std::vector<TokenId>&& tokens, std::vector<PromptImage>&& images);
  // Null: none. Until finish().
  const AdapterMix* adapters() const { return adapters_.get(); }

  // Called in every turn until it has begun. What is in the cache already is found. Where a request before it in the
  // list is about to compute more of what both prompts begin with, it waits for that. No two wait for each other: only
  // those before are waited for.
  void begin(const std::list<std::shared_ptr<SequenceRequest>>& running);
  bool has_begun() const { return has_begun_; }
  int n_prompt() const { return n_prompt_; }
  int n_cached() const { return n_cached_; }  // positions of the prompt that another request has left

  // The prompt and all that was sampled, but for the last token, are in the cache.
  bool decoding() const { return !branching_ && n_done_ >= std::max(n_prompt_, n_restored_); }
  // The next rows are the prompt's.
  bool in_prompt() const { return n_done_ < n_prompt_; }
  // The next rows have a prompt's role: its own, or those of branches behind it.
  bool reads_prompt() const { return in_prompt() || branching_; }
  // Whether it takes part in the scheduler's steps.
  bool has_place() const { return has_place_; }
  void set_place(bool has_place) { has_place_ = has_place; }
  // Its part of the cache goes to others. When it has a place again its rows are computed once more, each in the role
  // that it had (SequenceInput::is_prompt), so that what follows is the same to the bit. Allocates nothing.
  void release_pages();
  bool holds_pages() const { return n_done_ > 0; }
  // Asks for no rows until its reader has caught up.
  virtual bool paused() const { return false; }
  // Whether its place, and its pages, may be taken for some time.
  virtual bool can_rest() const { return false; }
  // What drafting needs to guess this sequence's next tokens; nothing where none are to be guessed.
  virtual std::optional<DraftRequest> draft_request() { return std::nullopt; }
  // Guesses of the next step.
  virtual int n_guesses() const { return 0; }

  // Rows of the image that the prompt has come to, 0 for none.
  int image_rows_next() const;
  // How many rows of the prompt, or of an answer that was released, go into the next step: at most n_max; up to n_room
  // where an image would be cut otherwise. 0: not now.
  int prompt_rows(int n_max, int n_room) const;
  // Appends the rows of the next step: n_rows of the prompt, or of what was released; while decoding at most n_rows besides
  // the last token and its guesses. They are one sequence's, or those of several branches of it, one after the other. What
  // it throws leaves no use for what was appended.
  virtual void add_inputs(int n_rows, std::vector<SequenceInput>* inputs);

  // Logits of a wanted row of the step, in order. Errors are kept for the end of the step (failed()).
  void take_logits(int index, const Logits& logits);
  // Rows of logits that the running step has delivered and that count.
  int n_taken() const { return n_taken_; }
  // How many of the step's positions count. done: the step was not given up.
  virtual int n_counted(std::span<const SequenceInput> inputs, bool done);
  // The first n positions of the step count: they are in the cache. Others are taken back. Returns why the request is
  // over, if it is.
  std::optional<FinishReason> commit(int n);

 protected:
  // For each kind.
  virtual bool shares_prefix() const { return loaded_.prefixes->on(); }  // goes on from what others left
  virtual void prepare() {}     // begin() ends, or all rows that were released are there again
  virtual void on_release() {}  // release_pages() ends
  virtual int max_prompt_rows() const { return n_prompt_; }  // of a step
  // Adds to wanted_ what is wanted of the next n rows of the prompt.
  virtual void want_prompt_rows(int n) {
    if (ends_prompt(n)) wanted_.push_back({n - 1, {}});
  }
  virtual SequenceInput make_input(int n_rows);
  // Of branches: how many rows the next step may have; what commit() does.
  virtual int branch_rows() const { return 0; }
  virtual std::optional<FinishReason> commit_branches(int /*n*/) { return std::nullopt; }
  // Adds to n_taken_ for a row that counts. May throw Error and bad_alloc.
  virtual void take(int index, const Logits& logits) = 0;
  // Ends commit().
  virtual std::optional<FinishReason> report(bool was_prompt) = 0;

  void begin_step() {
    n_taken_ = 0;
    wanted_.clear();
  }
  // Leaves all that others may go on from, and gives the pages back. Ends finish().
  void leave_prefix(FinishReason reason) noexcept;

  bool restoring() const { return n_done_ < n_restored_; }
  bool ends_prompt(int n) const { return n_done_ + n == n_prompt_; }

  LoadedModel& loaded_;
  std::shared_ptr<const AdapterMix> adapters_;
  std::vector<TokenId> tokens_;  // prompt and output
  int n_prompt_ = 0;
  bool branching_ = false;  // the prompt is in the cache, and several sequences go on from it
  bool has_place_ = false;
  int n_done_ = 0;                 // positions in the cache
  int n_cached_ = 0;               // of these, those that another request has left
  int n_restored_ = 0;             // positions that were in it before release_pages()
  std::vector<WantedRow> wanted_;  // of the step
  int n_taken_ = 0;
  std::unique_ptr<KvSequence> kv_;
  PromptImages images_;
  std::vector<ImageRows> image_rows_;  // of images_; tokens are kImageToken there

 private:
  void hash_tokens();
  void find_prefix() noexcept;
  void find_branches();
  void add_branch(int position);
  bool waits_for_prefix(const std::list<std::shared_ptr<SequenceRequest>>& running);
  bool will_compute(int position) const { return in_prompt() && n_done_ < position && has_place_ && !ended(); }
  int common_prompt(const SequenceRequest& other) const;
  void keep_branches(int begin) noexcept;

  bool has_begun_ = false;
  std::vector<uint64_t> hashes_;                  // of tokens_ (hash_blocks)
  std::vector<int> branches_;                     // ascending: positions of the prompt that others may part at
  std::shared_ptr<const PrefixText> text_;        // the prompt, once something of it was kept
  std::shared_ptr<const SequenceRequest> ahead_;  // waits until this one has computed ...
  int n_ahead_ = 0;                               // ... so many positions
};

}  // namespace gemma
