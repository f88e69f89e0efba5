// The scheduler: admits requests, forms each step's ragged batch, runs it, and gives every request its rows. What a
// request wants of a step and makes of it is the request's own (sequence_request.h, embed_request.h, encode_request.h).
// Requests are touched by the engine thread alone, except for what request.h says.
#include "runtime/engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <iterator>
#include <list>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "base/file.h"
#include "base/thread.h"
#include "runtime/load.h"
#include "runtime/request_checks.h"
#include "runtime/sequence_request.h"
#include "runtime/vision_source.h"

namespace gemma {
namespace {

using Clock = std::chrono::steady_clock;

// While others decode, a prompt takes smaller bites: each step then stays short enough for a fluent stream.
constexpr int kPrefillBesideDecode = 128;

// Rows of a step in the background. It is given up between layers for a request that comes, so that one waits for a layer
// of so many rows: of a model of 4 billion parameters for some milliseconds.
constexpr int kBackgroundRows = 64;

}  // namespace

class Engine::Scheduler {
 public:
  explicit Scheduler(LoadedModel& loaded) : loaded_(loaded), thread_(start_thread([this] { run(); })) {}
  ~Scheduler() { close(); }

  const std::shared_ptr<Signal>& signal() const { return signal_; }

  EngineStats stats() const {
    const std::lock_guard lock(signal_->mutex);
    return stats_;
  }

  template <typename Kind>
  std::shared_ptr<Request> submit(std::shared_ptr<Kind> request, bool background = false) {
    request->set_background(background);
    std::list<Waiting> entry;
    entry.emplace_back(std::list{request});
    {
      const std::lock_guard lock(signal_->mutex);
      if (closing_.load()) throw Error(ErrorCode::kDisposed, "", "the model was disposed");
      waiting_.splice(waiting_.end(), entry);
      if (!background) foreground_came_.store(true);
      ++stats_.waiting;
      ++signal_->changes;
    }
    signal_->wake.notify_one();
    return request;
  }

  // Waits for the work of a request. Throws Error as it does.
  void wait_for(const std::shared_ptr<TaskRequest>& request) {
    auto ended = request->ended();
    submit(request);
    if (const std::shared_ptr<const Error> error = ended.get()) throw Error(*error);
  }
  void copy(StateRequest::Way way, const std::shared_ptr<const AdapterMix>& adapters, StateShape* shape, State* state) {
    wait_for(std::make_shared<StateRequest>(signal_, loaded_, adapters, way, shape, state));
  }

  void close() {
    const std::lock_guard close_lock(close_mutex_);
    closing_.store(true);
    signal_->notify();
    if (thread_.joinable()) thread_.join();
    loaded_.release();
  }

 private:
  // By how they run: through the layers, as texts that leave nothing in the cache, in the vision encoder, or as work with
  // memory between steps.
  using Sequence = std::shared_ptr<SequenceRequest>;
  using Embed = std::shared_ptr<EmbedRequest>;
  using Encode = std::shared_ptr<EncodeRequest>;
  using Copy = std::shared_ptr<TaskRequest>;
  // A list of one, made by the caller of submit(): from there on requests are handed from list to list, and nothing is
  // allocated.
  using Waiting = std::variant<std::list<Sequence>, std::list<Embed>, std::list<Encode>, std::list<Copy>>;

  // Nothing that is thrown leaves the thread. A request that fails is marked, and finished when the next turn begins.
  void run() noexcept {
    for (;;) {
      wait_for_work();
      const bool closing = closing_.load();
      drop_ended(closing);
      if (closing) return;
      try {
        admit();
        share_cache();
        // Looked at before each step: what has come meanwhile waits for one of them.
        in_background_ = !foreground_works();
        embed_step();
        in_background_ = !foreground_works();
        encode_step();
        copy_step();
        in_background_ = !foreground_works();
        if (plan_step()) run_step();
      } catch (...) {
        fail_newest();
        step_.clear();
      }
    }
  }

  // What is being thrown is nobody's in particular: the newest request ends with it, the others go on without.
  void fail_newest() noexcept {
    const auto newest =
        std::find_if(running_.rbegin(), running_.rend(), [](const Sequence& request) { return request->has_place(); });
    if (newest != running_.rend()) {
      (*newest)->fail_with_current();
    } else if (!embeds_.empty()) {
      embeds_.back()->fail_with_current();
    } else if (!encodes_.empty()) {
      encodes_.back()->fail_with_current();
    } else if (!copies_.empty()) {
      copies_.back()->fail_with_current();
    }
  }

  // Whether a request that is not in the background has something to compute, or has just come.
  bool foreground_works() const {
    const auto works = [](const auto& request) {
      const Request& any = *request;
      return !any.background() && !any.ended();
    };
    return foreground_came_.load(std::memory_order_relaxed) || std::any_of(embeds_.begin(), embeds_.end(), works) ||
           std::any_of(encodes_.begin(), encodes_.end(), works) || std::any_of(copies_.begin(), copies_.end(), works) ||
           std::any_of(running_.begin(), running_.end(), [&](const Sequence& request) {
             return works(request) && request->has_begun() && (request->has_place() || !request->paused());
           });
  }

  // Whether a request takes no part in this step because others have work.
  bool holds_back(const Request& request) const { return request.background() && !in_background_; }

  // Calls f for a request. What it throws ends that request alone, and false is returned.
  template <class F>
  static bool attempt(Request& request, const F& f) noexcept {
    try {
      f();
    } catch (...) {
      request.fail_with_current();
    }
    return !request.failed();
  }

  void wait_for_work() {
    std::unique_lock lock(signal_->mutex);
    for (;;) {
      loaded_.free_adapters();
      give_places();
      count();
      if (closing_.load() || !waiting_.empty() || n_places_ > 0) return;
      if (!embeds_.empty() || !encodes_.empty() || !copies_.empty()) return;
      if (std::any_of(running_.begin(), running_.end(), [](const Sequence& r) { return r->ended(); })) return;
      const uint64_t seen = signal_->changes;
      signal_->wake.wait(lock, [&] { return signal_->changes != seen; });
    }
  }

  // At most kMaxRunning requests go through the layers together. One whose reader does not read loses its place, and has
  // the first claim to one that is free when its reader reads again. Under the mutex.
  void give_places() {
    for (const Sequence& request : running_) {
      if (request->paused()) request->set_place(false);
    }
    n_places_ = std::count_if(running_.begin(), running_.end(), [](const Sequence& r) { return r->has_place(); });
    for (const bool background : {false, true}) {
      for (const Sequence& request : running_) {
        if (request->background() != background || request->has_place() || request->paused()) continue;
        if (!find_place(background)) break;
        request->set_place(true);
        ++n_places_;
      }
    }
  }

  // Whether there is a place. One that is not in the background takes that of the last one there.
  bool find_place(bool background) {
    if (n_places_ < kMaxRunning) return true;
    if (background) return false;
    const auto last = std::find_if(running_.rbegin(), running_.rend(), [](const Sequence& request) {
      return request->background() && request->has_place() && request->can_rest();
    });
    if (last == running_.rend()) return false;
    (*last)->set_place(false);
    --n_places_;
    return true;
  }

  // Of those that wait, the next: who is not in the background first.
  std::list<Waiting>::iterator next_waiting() {
    const auto first = std::find_if(waiting_.begin(), waiting_.end(),
                                    [](const Waiting& waiting) { return !as_request(waiting)->background(); });
    return first == waiting_.end() ? waiting_.begin() : first;
  }

  // All that is counted, at once: who sees that requests have gone sees that their pages have. Under the mutex.
  void count() {
    stats_.running = static_cast<int>(n_places_) + static_cast<int>(embeds_.size() + encodes_.size() + copies_.size());
    stats_.waiting = static_cast<int>(waiting_.size());
    stats_.paused = static_cast<int>(running_.size()) - static_cast<int>(n_places_);
    const KvPool& pool = loaded_.model->kv_pool();
    stats_.prefixes = static_cast<int>(loaded_.prefixes->size());
    stats_.prefix_bytes = loaded_.prefixes->bytes();
    stats_.kv_pages_in_use = pool.pages_in_use() + loaded_.drafter->pages_in_use();
    stats_.kv_bytes_resident = pool.bytes_resident() + loaded_.drafter->bytes_resident();
  }

  // Finishes what was cancelled or failed, or all there is.
  void drop_ended(bool all) noexcept {
    for (;;) {
      std::shared_ptr<Request> ended;
      {
        const std::lock_guard lock(signal_->mutex);
        take_ended(waiting_, all, &ended);
        take_ended(embeds_, all, &ended);
        take_ended(encodes_, all, &ended);
        take_ended(copies_, all, &ended);
        take_ended(running_, all, &ended);
      }
      if (ended == nullptr) return;
      ended->finish(ended->failed() ? FinishReason::kError : FinishReason::kCancelled);
    }
  }

  // Moves the first that ended out of a list, unless one was found before.
  static void take_ended(auto& from, bool all, std::shared_ptr<Request>* ended) {
    if (*ended != nullptr) return;
    const auto found =
        std::find_if(from.begin(), from.end(), [&](const auto& entry) { return all || as_request(entry)->ended(); });
    if (found == from.end()) return;
    *ended = as_request(*found);
    from.erase(found);
  }

  template <typename Kind>
  static std::shared_ptr<Request> as_request(const std::shared_ptr<Kind>& request) {
    return request;
  }
  static std::shared_ptr<Request> as_request(const Waiting& waiting) {
    if (const auto* sequence = std::get_if<std::list<Sequence>>(&waiting)) return sequence->front();
    if (const auto* embed = std::get_if<std::list<Embed>>(&waiting)) return embed->front();
    if (const auto* encode = std::get_if<std::list<Encode>>(&waiting)) return encode->front();
    return std::get_if<std::list<Copy>>(&waiting)->front();
  }

  void admit() {
    {
      const std::lock_guard lock(signal_->mutex);
      foreground_came_.store(false);
      give_places();
      for (auto next = next_waiting(); next != waiting_.end() && find_place(as_request(*next)->background());
           next = next_waiting()) {
        if (auto* sequence = std::get_if<std::list<Sequence>>(&*next)) {
          sequence->front()->set_place(true);
          running_.splice(running_.end(), *sequence);
          ++n_places_;
        } else if (auto* embed = std::get_if<std::list<Embed>>(&*next)) {
          embeds_.splice(embeds_.end(), *embed);
        } else if (auto* encode = std::get_if<std::list<Encode>>(&*next)) {
          encodes_.splice(encodes_.end(), *encode);
        } else {
          copies_.splice(copies_.end(), std::get<std::list<Copy>>(*next));
        }
        waiting_.erase(next);
      }
      count();  // the first step may take seconds, and shows them as running
    }
    for (const Sequence& request : running_) {
      if (request->has_begun() || !request->has_place() || request->failed()) continue;
      attempt(*request, [&] { request->begin(running_); });
      if (!request->has_begun()) continue;
      const std::lock_guard lock(signal_->mutex);
      stats_.prompt_tokens += static_cast<uint64_t>(request->n_prompt());
      stats_.cached_prompt_tokens += static_cast<uint64_t>(request->n_cached());
    }
  }

  // Paused requests keep their part of the cache while others leave room: no more than kMaxRunning sequences are in it
  // together, so that readers who do not read take no more memory than readers who do.
  void share_cache() {
    auto n = std::count_if(running_.begin(), running_.end(),
                           [](const Sequence& request) { return request->has_place() || request->holds_pages(); });
    while (n-- > kMaxRunning) release_paused();
  }

  // Takes back the pages of the paused request that came first. False where none has any.
  bool release_paused() {
    for (const Sequence& request : running_) {
      if (request->has_place() || !request->holds_pages()) continue;
      request->release_pages();
      return true;
    }
    return false;
  }

  // One step of texts, one of each request in turn, so that nobody waits for all texts of another.
  void embed_step() {
    const auto held = [&](const Embed& request) { return holds_back(*request); };
    if (std::all_of(embeds_.begin(), embeds_.end(), held)) return;
    embedding_.clear();
    text_inputs_.clear();
    text_sums_.clear();
    int most = n_places_ > 0 ? std::min(loaded_.max_text_rows, kPrefillBesideDecode) : loaded_.max_text_rows;
    if (in_background_) most = std::min(most, kBackgroundRows);
    TextRoom room{most, max_text_pages(loaded_.model->max_batch())};
    try {
      std::remove_copy_if(embeds_.begin(), embeds_.end(), std::back_inserter(embedding_), held);
      for (bool any = true; any;) {
        any = false;
        for (const Embed& request : embedding_) any |= request->add_text(&room, &text_inputs_, &text_sums_);
      }
    } catch (...) {  // want of memory: the newest gives way, what is in the step already is asked for anew
      embeds_.back()->fail_with_current();
    }
    bool done = false;
    if (!embeds_.back()->failed()) {
      try {
        done = loaded_.model->pool(text_inputs_, [this] { return should_stop(embedding_); }, text_sums_);
        check_weights();
      } catch (...) {
        done = false;
        fail_step(embedding_);
      }
      const std::lock_guard lock(signal_->mutex);
      ++stats_.steps;
    }
    // Over the list: there may be no memory for a copy of it.
    for (auto at = embeds_.begin(); at != embeds_.end();) {
      const Embed request = *at++;
      if (!held(request)) attempt(*request, [&] { request->end_step(done && !request->failed()); });
      if (!request->failed() && !request->done()) continue;
      {
        const std::lock_guard lock(signal_->mutex);
        embeds_.erase(std::prev(at));
        count();  // a caller who asks when it has the answer sees the request gone
      }
      request->finish(request->failed() ? FinishReason::kError : FinishReason::kStop);
    }
    embedding_.clear();  // an idle engine holds no callbacks
  }

  // What is being thrown by a step of these requests, the newest last, is one's of them: all of them where the file
  // changed; nobody's as long as something gives way.
  void fail_step(const auto& requests) {
    const Error error = describe(std::current_exception());
    if (error.code() == ErrorCode::kFile) {
      for (const auto& request : requests) request->fail(error);
    } else if (error.code() == ErrorCode::kOutOfMemory && !loaded_.prefixes->empty()) {
      loaded_.prefixes->clear();  // what is kept gives way; the step is repeated
    } else if (error.code() == ErrorCode::kOutOfMemory && release_paused()) {
      // So does what paused requests hold.
    } else {
      requests.back()->fail(error);  // the newest: the others go on without it
    }
  }

  // One step of the pictures that come first; afterwards others decode.
  void encode_step() {
    const auto next = std::find_if(encodes_.begin(), encodes_.end(), [&](const Encode& r) { return !holds_back(*r); });
    if (next != encodes_.end()) {
      const Encode& request = *next;
      for (const Encode& other : encodes_) {
        if (other != request) other->restart();
      }
      encoder_in_use_ = true;
      // A step of the encoder that was given up cannot be repeated: the background yields after it.
      if (request->advance([&] { return any_ended(std::span(&request, 1)); })) return;
      std::list<Encode> ended;
      {
        const std::lock_guard lock(signal_->mutex);
        ended.splice(ended.end(), encodes_, next);
      }
      request->finish(request->failed() ? FinishReason::kError : FinishReason::kStop);
    }
    if (encodes_.empty() && encoder_in_use_) {  // an idle encoder holds no activations
      encoder_in_use_ = false;
      loaded_.encoder->rest();
    }
  }

  // Some of the pages of the state that comes first.
  void copy_step() {
    if (copies_.empty()) return;
    const Copy request = copies_.front();
    if (request->advance()) return;
    {
      const std::lock_guard lock(signal_->mutex);
      copies_.pop_front();
    }
    request->finish(request->failed() ? FinishReason::kError : FinishReason::kStop);
  }

  // Rows of the next step: one for each sequence that decodes and those of its guesses, then answers whose pages were
  // taken back, then prompts in the order they came, up to the batch size.
  bool plan_step() {
    step_.clear();
    step_inputs_.clear();
    int budget = loaded_.model->max_batch();
    for (const Sequence& request : running_) {
      if (!request->decoding() || rests(request) || budget == 0) continue;
      step_.push_back(request);
      --budget;
    }
    // Rows with the same adapters lie side by side, so that these are read once.
    std::stable_sort(step_.begin(), step_.end(),
                     [](const Sequence& a, const Sequence& b) { return seed_of(*a) < seed_of(*b); });
    // The next prompt's image is to fit beside the guesses, or it would wait as long as others decode.
    const auto next = std::find_if(running_.begin(), running_.end(),
                                   [&](const Sequence& request) { return !request->decoding() && !rests(request); });
    const int n_image = next == running_.end() ? 0 : (*next)->image_rows_next();
    // Rows that are known without guessing take what guesses leave.
    int n_more = std::max(0, std::min(budget / 2, budget - n_image));
    n_more -= guess_ahead(n_more);
    n_decoding_ = 0;
    for (Sequence& request : step_) {
      if (!add_inputs(request, n_more)) continue;
      const int n_rows = static_cast<int>(step_inputs_.back().tokens.size());
      n_more -= std::max(0, n_rows - 1 - request->n_guesses());
      budget -= n_rows - 1;
      std::swap(step_[n_decoding_++], request);
    }
    step_.resize(n_decoding_);
    int room = budget;
    if (!step_.empty()) budget = std::min(budget, kPrefillBesideDecode);
    if (in_background_) budget = std::min(budget, kBackgroundRows);
    for (const bool in_prompt : {false, true}) {  // a step's rows of prompts come last
      for (const Sequence& request : running_) {
        if (request->decoding() || request->reads_prompt() != in_prompt || rests(request) || budget == 0) continue;
        const int n = request->prompt_rows(budget, room);
        if (n == 0 || !add_inputs(request, n)) continue;
        step_.resize(step_inputs_.size(), request);
        room -= n;
        budget = std::max(0, budget - n);
      }
    }
    return !step_.empty();
  }

  static uint64_t seed_of(const SequenceRequest& request) {
    return request.adapters() != nullptr ? request.adapters()->seed : 0;
  }

  bool rests(const Sequence& request) const {
    return !request->has_place() || !request->has_begun() || request->failed() || holds_back(*request);
  }

  // The request's rows of the next step; false where it cannot have them.
  bool add_inputs(const Sequence& request, int n_rows) {
    const size_t n_before = step_inputs_.size();
    const bool added = attempt(*request, [&] { request->add_inputs(n_rows, &step_inputs_); });
    if (!added) step_inputs_.resize(n_before);
    for (size_t i = n_before; i < step_inputs_.size(); ++i) step_inputs_[i].adapters = request->adapters();
    return added;
  }

  // Guesses for the requests that decode in the coming step, at most n_max_rows of them; returns how many there are.
  // Beside, the draft model reads the prompts as far as they are in the cache.
  int guess_ahead(int n_max_rows) {
    draft_requests_.clear();
    const auto add = [&](const Sequence& request) {
      if (const std::optional<DraftRequest> wanted = request->draft_request()) draft_requests_.push_back(*wanted);
    };
    for (const Sequence& request : step_) add(request);
    if (loaded_.drafter->has_model()) {
      for (const Sequence& request : running_) {
        if (!request->decoding() && !rests(request)) add(request);
      }
    }
    if (!draft_requests_.empty())
      loaded_.drafter->draft(draft_requests_, n_max_rows, [this] { return should_stop(running_); });
    int n = 0;
    for (const Sequence& request : step_) n += request->n_guesses();
    return n;
  }

  // Whether a step of these requests is to be given up.
  bool should_stop(const auto& requests) const { return any_ended(requests) || (in_background_ && foreground_works()); }
  bool any_ended(const auto& requests) const {
    return closing_.load(std::memory_order_relaxed) ||
           std::any_of(requests.begin(), requests.end(), [](const auto& request) { return request->cancelled(); });
  }

  void run_step() {
    const Clock::time_point start = Clock::now();
    bool done = false;
    try {
      done = loaded_.model->forward(
          step_inputs_, [this] { return should_stop(step_); },
          [&](size_t i, int index, const Logits& logits) {
            check_weights();  // what a file that was cut makes is not sampled from
            step_[i]->take_logits(index, logits);
          });
      check_weights();
    } catch (...) {
      fail_step(step_);
    }
    {
      const std::lock_guard lock(signal_->mutex);
      ++stats_.steps;
    }
    if (done && n_decoding_ == step_.size()) {
      int n_rows = 0;
      for (const SequenceInput& input : step_inputs_) n_rows += static_cast<int>(input.tokens.size());
      loaded_.drafter->add_step(n_rows, std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    }
    for (size_t i = 0, end = 0; i < step_.size(); i = end) {
      while (end < step_.size() && step_[end] == step_[i]) ++end;
      end_step(step_[i], std::span(step_inputs_).subspan(i, end - i), done);
    }
    step_.clear();  // an idle engine holds no callbacks
  }

  // Throws Error{kFile, FILE_CHANGED}.
  void check_weights() const {
    loaded_.model->tensors().check();
    loaded_.drafter->check_weights();
  }

  // Rows that were delivered count, also of a step that was given up or failed afterwards: random numbers were drawn
  // for them, and their positions are in the cache.
  void end_step(const Sequence& request, std::span<const SequenceInput> inputs, bool done) {
    std::optional<FinishReason> reason;
    if (request->n_taken() > 0 || (done && !request->failed())) {
      attempt(*request, [&] { reason = request->commit(request->n_counted(inputs, done)); });
    }
    if (!reason && request->failed()) reason = FinishReason::kError;
    if (!reason) return;
    {
      const std::lock_guard lock(signal_->mutex);
      std::erase(running_, request);
    }
    request->finish(*reason);
  }

  LoadedModel& loaded_;
  std::shared_ptr<Signal> signal_ = std::make_shared<Signal>();
  std::atomic<bool> closing_{false};
  std::list<Waiting> waiting_;                // guarded by signal_->mutex
  std::list<Sequence> running_;               // admitted; changed by the engine thread only, under the mutex
  std::list<Embed> embeds_;                   // likewise
  std::list<Encode> encodes_;                 // likewise
  std::list<Copy> copies_;                    // likewise
  std::ptrdiff_t n_places_ = 0;               // of running_, those that go through the layers
  bool encoder_in_use_ = false;               // holds activations
  bool in_background_ = false;                // of this step: nobody but requests in the background has work
  std::atomic<bool> foreground_came_{false};  // since the last admission
  EngineStats stats_;                         // guarded by signal_->mutex
  std::vector<Sequence> step_;                // whose step_inputs_ are
  std::vector<SequenceInput> step_inputs_;
  size_t n_decoding_ = 0;         // of step_, the first
  std::vector<Embed> embedding_;  // whose texts these are:
  std::vector<SequenceInput> text_inputs_;
  std::vector<double*> text_sums_;
  std::vector<DraftRequest> draft_requests_;
  std::mutex close_mutex_;
  std::thread thread_;  // last: it uses all of the above
};

Engine::Engine(std::unique_ptr<LoadedModel> loaded) : loaded_(std::move(loaded)) {
  for (const std::shared_ptr<const Adapter>& adapter : loaded_->adapters) adapters_.add(adapter);
  scheduler_ = std::make_unique<Scheduler>(*loaded_);
}

Engine::~Engine() = default;

std::shared_ptr<Engine> Engine::load(const LoadOptions& options) {
  try {
    return std::shared_ptr<Engine>(new Engine(load_model(options)));
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory, "", "out of memory while loading " + options.path);
  }
}

const ModelConfig& Engine::config() const {
  return loaded_->config;
}

const Tokenizer& Engine::tokenizer() const {
  return *loaded_->tokenizer;
}

const EngineInfo& Engine::info() const {
  return loaded_->info;
}

EngineStats Engine::stats() const {
  return scheduler_->stats();
}

std::shared_ptr<const Grammar> Engine::compile_grammar(const GrammarSource& source, bool* cached, Effort effort) {
  return loaded_->grammars->compile(source, cached, effort);
}

std::shared_ptr<Request> Engine::generate(GenerateParams params, OnGenerateEvent on_event) {
  check_generate(params, *loaded_);
  auto adapters = adapters_.mix(params.adapters);
  const bool background = params.background;
  return scheduler_->submit(make_generate_request(scheduler_->signal(), *loaded_, std::move(adapters),
                                                  std::move(params), std::move(on_event)),
                            background);
}

std::shared_ptr<Request> Engine::logits(LogitsParams params, OnLogits on_row, OnDone on_done) {
  check_prompt(params.tokens, params.images, *loaded_);
  auto adapters = adapters_.mix(params.adapters);
  const bool background = params.background;
  return scheduler_->submit(make_logits_request(scheduler_->signal(), *loaded_, std::move(adapters), std::move(params),
                                                std::move(on_row), std::move(on_done)),
                            background);
}

std::shared_ptr<Request> Engine::score(ScoreParams params, OnScores on_scores, OnDone on_done) {
  check_score(params, *loaded_);
  auto adapters = adapters_.mix(params.adapters);
  const bool background = params.background;
  return scheduler_->submit(make_score_request(scheduler_->signal(), *loaded_, std::move(adapters), std::move(params),
                                               std::move(on_scores), std::move(on_done)),
                            background);
}

std::shared_ptr<Request> Engine::encode_images(EncodeParams params, OnProgress on_progress, OnEmbeddings on_done) {
  check_encode(params, *loaded_);
  auto adapters = adapters_.mix(params.adapters);
  const bool background = params.background;
  return scheduler_->submit(
      std::make_shared<EncodeRequest>(scheduler_->signal(), *loaded_, std::move(adapters), std::move(params),
                                      std::move(on_progress), std::move(on_done)),
      background);
}

std::shared_ptr<Request> Engine::embed(EmbedParams params, OnTexts on_texts, OnDone on_done) {
  check_embed(params, *loaded_);
  auto adapters = adapters_.mix(params.adapters);
  const bool background = params.background;
  return scheduler_->submit(std::make_shared<EmbedRequest>(scheduler_->signal(), *loaded_, std::move(adapters),
                                                           std::move(params), std::move(on_texts), std::move(on_done)),
                            background);
}

SavedState Engine::save_state(SaveParams params) {
  check_prompt(params.tokens, params.images, *loaded_);
  const auto adapters = adapters_.mix(params.adapters);
  StateShape shape;
  scheduler_->copy(StateRequest::Way::kShape, adapters, &shape, nullptr);
  State state;
  state.tokens = std::move(params.tokens);
  state.images = std::move(params.images);
  state.metadata = std::move(params.metadata);
  scheduler_->copy(StateRequest::Way::kSave, adapters, nullptr, &state);
  FileWriter file(params.path);
  const uint64_t n_bytes = write_state(state, shape, [&](std::span<const std::byte> bytes) { file.write(bytes); });
  file.commit();
  return {n_bytes, state.n};
}

RestoredState Engine::restore_state(const std::string& path, const std::vector<AdapterUse>& uses) {
  const auto adapters = adapters_.mix(uses);
  const std::shared_ptr<const File> file = File::open(path);
  StateShape shape;
  scheduler_->copy(StateRequest::Way::kShape, adapters, &shape, nullptr);
  State state = in_file(path, [&] {
    State found =
        read_state(file->size(), shape, [&](uint64_t offset, std::span<std::byte> out) { file->read(offset, out); });
    check_prompt(found.tokens, found.images, *loaded_);
    return found;
  });
  scheduler_->copy(StateRequest::Way::kRestore, adapters, nullptr, &state);
  return {std::move(state.tokens), std::move(state.images), std::move(state.metadata), state.n};
}

AdapterInfo Engine::load_adapter(const NamedAdapter& source, const std::function<bool()>& should_stop) {
  adapters_.check_free(source.name);  // before the seconds are spent
  std::shared_ptr<const TensorSource> tensors;
  std::shared_ptr<const TensorSource> vision_tensors;
  {
    const std::lock_guard lock(load_mutex_);
    tensors = loaded_->tensors;
    vision_tensors = loaded_->vision_tensors;
  }
  if (tensors == nullptr) throw Error(ErrorCode::kDisposed, "", "the model was disposed");
  const std::shared_ptr<Adapter> adapter =
      prepare_adapter(source, loaded_->adapter_target(*tensors, vision_tensors.get()), should_stop);
  tensors->check();  // what was computed with weights of a file that was cut does not count
  scheduler_->wait_for(std::make_shared<InstallRequest>(scheduler_->signal(), *loaded_, adapter));
  if (should_stop()) throw Error(ErrorCode::kDisposed, "CANCELLED", "loading the adapter was cancelled");
  adapters_.add(adapter);
  return adapter->info();
}

void Engine::unload_adapter(const std::string& name) {
  adapters_.remove(name);
  scheduler_->signal()->notify();  // whose thread frees it when nobody has it
}

std::vector<AdapterInfo> Engine::adapters() const {
  return adapters_.list();
}

void Engine::close() {
  loaded_->grammars->close();
  adapters_.clear();
  const std::lock_guard lock(load_mutex_);
  scheduler_->close();
}

}  // namespace gemma
