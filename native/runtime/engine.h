// One loaded model and the thread that runs it. All requests of a model go into one queue; each step of the engine
// thread takes prefill chunks and decode tokens of every running request through the layers together (a ragged batch).
// Nothing here knows JavaScript; callbacks arrive on the engine thread and must not block, nor throw where their type
// does not say what becomes of it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/adapters.h"
#include "runtime/embed_request.h"
#include "runtime/encode_request.h"
#include "runtime/generate_request.h"
#include "runtime/load_options.h"
#include "runtime/logits_request.h"
#include "runtime/request.h"
#include "runtime/score_request.h"
#include "runtime/state_request.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

struct EngineStats {  // a snapshot, any thread
  uint64_t steps = 0;
  uint64_t kv_pages_in_use = 0;
  uint64_t kv_bytes_resident = 0;  // allocated for cache pages
  int running = 0, waiting = 0;
  int paused = 0;             // their readers do not read; they take no place from those that wait
  int prefixes = 0;           // kept for prompts that begin alike; their pages are in use
  uint64_t prefix_bytes = 0;  // that these take
  // Of all requests that have begun: tokens of their prompts, and those of them that were in the cache already.
  uint64_t prompt_tokens = 0;
  uint64_t cached_prompt_tokens = 0;
};

class Engine {
 public:
  // Blocking; call off the JavaScript thread. Throws Error.
  static std::shared_ptr<Engine> load(const LoadOptions& options);
  ~Engine();  // same as close()
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const ModelConfig& config() const;
  const Tokenizer& tokenizer() const;
  const EngineInfo& info() const;
  EngineStats stats() const;

  // As GrammarCompiler::compile(). Blocking, any thread.
  std::shared_ptr<const Grammar> compile_grammar(const GrammarSource& source, bool* cached,
                                                 Effort effort = Effort::kFull);

  // Checks the parameters (throws Error{kInvalidArgument, kContextFull, kDisposed}; kInvalidArgument, BAD_IMAGE for
  // images that overlap, leave the prompt, are not finite or too large for a step), queues the request and returns.
  std::shared_ptr<Request> generate(GenerateParams params, OnGenerateEvent on_event);

  // on_row: one call per wanted position in order; on_done: once, error null on success (kDisposed/CANCELLED after
  // cancel()). Positions are computed in chunks, so a long text does not hold n x vocab floats. Throws Error as
  // generate() does.
  std::shared_ptr<Request> logits(LogitsParams params, OnLogits on_row, OnDone on_done);

  // Log-probabilities of candidates after a prompt, in order (OnScores); on_done as of logits(). The prompt is read once.
  // Throws Error as generate() does, and kInvalidArgument with EMPTY or CANDIDATE_LIMIT for candidates without tokens or too many.
  std::shared_ptr<Request> score(ScoreParams params, OnScores on_scores, OnDone on_done);

  // Embeddings of pictures, between the steps of other requests, one call after the other. on_done: once, embeddings or
  // error (kDisposed/CANCELLED after cancel()). Throws Error: kUnsupportedInput, NO_VISION without an encoder;
  // kInvalidArgument, BAD_IMAGE; kDisposed.
  std::shared_ptr<Request> encode_images(EncodeParams params, OnProgress on_progress, OnEmbeddings on_done);

  // Loads an adapter under a name of its own. Blocking; any thread but the engine's. Throws Error: kInvalidArgument,
  // ADAPTER_EXISTS; kDisposed, CANCELLED after should_stop was true; as prepare_adapter() does; kOutOfMemory.
  AdapterInfo load_adapter(const NamedAdapter& source, const std::function<bool()>& should_stop);
  // Requests that have it keep it. Throws Error: kInvalidArgument, UNKNOWN_ADAPTER; kDisposed.
  void unload_adapter(const std::string& name);
  std::vector<AdapterInfo> adapters() const;
  // Embeddings of texts, of an embedding model as of any other: of these the mean of the rows after the output norm.
  // on_done as of logits(). Throws Error as check_embed(); kDisposed.
  std::shared_ptr<Request> embed(EmbedParams params, OnTexts on_texts, OnDone on_done);

  // Writes tokens, images and metadata to a file, with the keys and values of the longest beginning that the prefix cache
  // holds. The file takes its name when it is whole. Blocking, for as long as the engine needs to come to it and the
  // disk takes: call off the JavaScript thread and the engine's. Throws Error: those of check_prompt(); kFile;
  // kInvalidArgument, STATE_METADATA; kDisposed; kOutOfMemory (the pages are held in memory once more).
  SavedState save_state(SaveParams params);
  // Reads such a file, and puts its keys and values into the prefix cache: prompts that begin with its tokens and images
  // go on from there, with the same results to the bit as where they were saved; with these adapters, and only where they
  // are those that the state was saved with. Blocking likewise. Throws Error as
  // read_state() and check_prompt() do; kFile; kDisposed; kOutOfMemory.
  RestoredState restore_state(const std::string& path, const std::vector<AdapterUse>& adapters = {});

  // Cancels all requests (their finish events arrive), joins the threads, releases the weights. Any thread but the
  // engine's own; idempotent. Later calls of generate/logits throw kDisposed.
  void close();

 private:
  class Scheduler;
  explicit Engine(std::unique_ptr<LoadedModel> loaded);

  std::unique_ptr<LoadedModel> loaded_;
  AdapterRegistry adapters_;
  std::unique_ptr<Scheduler> scheduler_;
  std::mutex load_mutex_;  // of what adapters are made for, against close()
};

}  // namespace gemma
