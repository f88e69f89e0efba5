// The engine thread: admits requests, forms each step's ragged batch, runs it, samples, and reports. Requests are
// touched by this thread alone, except for three atomics (cancelled, unread, finished) that handles of other threads
// use.
#include "runtime/engine.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <limits>
#include <mutex>
#include <new>
#include <optional>
#include <thread>

#include "backend/cpu/cpu_features.h"
#include "backend/cpu/kernels.h"
#include "model/forward.h"
#include "model/vocabulary.h"
#include "model/weights.h"
#include "tokenizer/text_stream.h"

namespace gemma {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kDefaultContext = 32768;
constexpr int kDefaultBatch = 512;
// While others decode, a prompt takes smaller bites: each step then stays short enough for a fluent stream.
constexpr int kPrefillBesideDecode = 128;
// Logits of every position are wanted: steps stay short, so that cancelling does.
constexpr int kLogitsBatch = 64;
constexpr size_t kMaxRunning = 64;

double ms_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double, std::milli>(b - a).count();
}

// What handles and the engine thread share; outlives both.
struct Signal {
  std::mutex mutex;
  std::condition_variable wake;
  uint64_t changes = 0;  // guarded by mutex

  void notify() {
    {
      const std::lock_guard lock(mutex);
      ++changes;
    }
    wake.notify_one();
  }
};

struct Job final : Request {
  explicit Job(std::shared_ptr<Signal> s) : signal(std::move(s)) {}

  void cancel() override {
    if (!cancelled.exchange(true)) signal->notify();
  }
  void acknowledge(int n) override {
    unread.fetch_sub(n);
    signal->notify();
  }

  std::shared_ptr<Signal> signal;
  std::atomic<bool> cancelled{false};
  std::atomic<int> unread{0};

  // The engine thread's own.
  std::vector<TokenId> prompt;
  int n_done = 0;  // positions in the cache
  std::unique_ptr<KvSequence> kv;
  std::optional<Error> failure;
  Clock::time_point queued = Clock::now();
  Clock::time_point started;
  Clock::time_point prefilled;

  // generate
  bool is_generate = false;
  GenerateParams params;
  std::function<void(GenerateEvent&&)> on_event;
  std::optional<Sampler> sampler;
  bool prompt_accepted = false;  // by the sampler
  std::optional<TextStream> text;
  int max_output = 0;
  int n_output = 0;
  std::optional<SampledToken> sampled;  // of the step that is running
  TokenId last_token = -1;

  // logits
  bool all_logits = false;
  std::function<void(int, std::span<const float>)> on_row;
  std::function<void(std::shared_ptr<const Error>)> on_done;

  bool decoding() const { return n_done >= static_cast<int>(prompt.size()); }
  bool paused() const { return is_generate && params.max_unread > 0 && unread.load() >= params.max_unread; }
};

bool is_finite_row(std::span<const float> logits) {
  float sum = 0;
  for (const float logit : logits) sum += logit * 0.0f;
  return sum == 0.0f;
}

class EngineImpl final : public Engine {
 public:
  explicit EngineImpl(const LoadOptions& options) : signal_(std::make_shared<Signal>()) {
    const auto progress = [&](double fraction) {
      if (options.cancel != nullptr && options.cancel->load())
        throw Error(ErrorCode::kDisposed, "CANCELLED", "loading was cancelled");
      if (options.on_progress) options.on_progress(fraction);
    };
    progress(0.0);
    if (options.device != "auto" && options.device != "cpu") {
      throw Error(ErrorCode::kBackendUnavailable, "DEVICE",
                  "device " + options.device + ": this build has the backend " + compiled_backend() + " only");
    }
    info_.n_threads = options.n_threads > 0 ? options.n_threads : cpu::usable_cores();
    backend_ = make_cpu_backend(options.isa, info_.n_threads);
    info_.device = backend_->device();
    info_.isa = backend_->isa();

    GgufOpenOptions open_options;
    open_options.mmap = options.mmap;
    std::shared_ptr<const GgufFile> file = GgufFile::open(options.path, open_options);
    progress(0.2);
    config_ = read_model_config(*file);
    tokenizer_ = std::make_unique<Tokenizer>(read_vocabulary(*file, config_.n_vocab));
    progress(0.7);
    file->prefetch();

    if (options.n_ctx > config_.n_ctx_train) {
      throw Error(ErrorCode::kInvalidArgument, "CONTEXT_SIZE",
                  "contextSize " + std::to_string(options.n_ctx) + ": the model was trained for " +
                      std::to_string(config_.n_ctx_train));
    }
    info_.n_ctx = options.n_ctx > 0 ? options.n_ctx : std::min(config_.n_ctx_train, kDefaultContext);
    info_.kv_type = options.kv_type;
    const int n_batch = options.n_batch > 0 ? options.n_batch : kDefaultBatch;
    info_.memory = plan_memory(*file, config_, info_.n_ctx, info_.kv_type, n_batch);
    Weights weights = load_weights(*backend_, file, config_);
    model_ = std::make_unique<Model>(*backend_, config_, std::move(weights), info_.kv_type, n_batch,
                                     options.screen_logits);
    find_banned();
    progress(1.0);
    thread_ = std::thread([this] { run(); });
  }

  ~EngineImpl() override { EngineImpl::close(); }

  const ModelConfig& config() const override { return config_; }
  const Tokenizer& tokenizer() const override { return *tokenizer_; }
  const EngineInfo& info() const override { return info_; }
  EngineStats stats() const override {
    const std::lock_guard lock(signal_->mutex);
    return stats_;
  }

  std::shared_ptr<Request> generate(GenerateParams params, std::function<void(GenerateEvent&&)> on_event) override {
    check_tokens(params.tokens);
    const int room = info_.n_ctx - static_cast<int>(params.tokens.size());
    if (params.overflow_is_error && (room < 1 || params.max_tokens > room)) {
      const std::string wanted =
          params.max_tokens >= 0 ? " and maxOutputTokens " + std::to_string(params.max_tokens) : "";
      throw Error(ErrorCode::kContextFull, "CONTEXT_OVERFLOW",
                  "the prompt of " + std::to_string(params.tokens.size()) + " tokens" + wanted +
                      " does not fit into the context of " + std::to_string(info_.n_ctx) +
                      " positions: shorten it, lower maxOutputTokens or load with a larger contextSize");
    }
    for (const auto& [token, bias] : params.sampling.logit_bias) {
      if (token < 0 || token >= config_.n_vocab) {
        throw Error(ErrorCode::kInvalidArgument, "BAD_TOKEN",
                    "logit bias: expected an id in 0.." + std::to_string(config_.n_vocab - 1) + ", found " +
                        std::to_string(token));
      }
    }
    auto job = std::make_shared<Job>(signal_);
    job->is_generate = true;
    job->prompt = std::move(params.tokens);
    job->max_output = params.max_tokens < 0 ? std::max(0, room) : std::min(params.max_tokens, std::max(0, room));
    job->sampler.emplace(params.sampling, banned_);
    job->text.emplace(params.stop_sequences);
    job->params = std::move(params);
    job->on_event = std::move(on_event);
    return submit(std::move(job));
  }

  std::shared_ptr<Request> logits(LogitsParams params, std::function<void(int, std::span<const float>)> on_row,
                                  std::function<void(std::shared_ptr<const Error>)> on_done) override {
    check_tokens(params.tokens);
    auto job = std::make_shared<Job>(signal_);
    job->prompt = std::move(params.tokens);
    job->all_logits = params.all;
    job->on_row = std::move(on_row);
    job->on_done = std::move(on_done);
    return submit(std::move(job));
  }

  void close() override {
    const std::lock_guard close_lock(close_mutex_);
    closing_.store(true);
    signal_->notify();
    if (thread_.joinable()) thread_.join();
    model_.reset();  // weights, cache
  }

 private:
  void find_banned() {
    const SpecialIds& special = tokenizer_->special();
    for (const TokenId id : {special.start_of_image, special.end_of_image, special.image_soft}) {
      if (id >= 0 && id < config_.n_vocab) banned_.push_back(id);
    }
    for (TokenId id = 0; id < config_.n_vocab; ++id) {
      if (id >= tokenizer_->n_vocab() || tokenizer_->token_bytes(id, true).empty()) banned_.push_back(id);
    }
  }

  void check_tokens(const std::vector<TokenId>& tokens) const {
    if (tokens.empty())
      throw Error(ErrorCode::kInvalidArgument, "EMPTY", "the prompt has no tokens: expected at least one");
    if (tokens.size() > static_cast<size_t>(info_.n_ctx)) {
      throw Error(ErrorCode::kContextFull, "CONTEXT_OVERFLOW",
                  "the prompt of " + std::to_string(tokens.size()) + " tokens does not fit into the context of " +
                      std::to_string(info_.n_ctx) + " positions: shorten it or load with a larger contextSize");
    }
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] < 0 || tokens[i] >= config_.n_vocab) {
        throw Error(ErrorCode::kInvalidArgument, "BAD_TOKEN",
                    "token " + std::to_string(i) + ": expected an id in 0.." + std::to_string(config_.n_vocab - 1) +
                        ", found " + std::to_string(tokens[i]));
      }
    }
  }

  std::shared_ptr<Request> submit(std::shared_ptr<Job> job) {
    {
      const std::lock_guard lock(signal_->mutex);
      if (closing_.load()) throw Error(ErrorCode::kDisposed, "", "the model was disposed");
      waiting_.push_back(job);
      ++stats_.waiting;
      ++signal_->changes;
    }
    signal_->wake.notify_one();
    return job;
  }

  // ------------------------------------------------------------------------------------------------ the engine thread

  void run() {
    for (;;) {
      wait_for_work();
      const bool closing = closing_.load();
      drop_cancelled(closing);
      if (closing) return;
      admit();
      if (!plan_step()) continue;
      run_step();
    }
  }

  void wait_for_work() {
    std::unique_lock lock(signal_->mutex);
    for (;;) {
      stats_.running = static_cast<int>(running_.size());
      stats_.waiting = static_cast<int>(waiting_.size());
      stats_.kv_pages_in_use = model_->kv_pool().pages_in_use();
      stats_.kv_bytes_resident = model_->kv_pool().bytes_resident();
      if (closing_.load() || !waiting_.empty()) return;
      const bool any = std::any_of(running_.begin(), running_.end(),
                                   [](const auto& job) { return job->cancelled.load() || !job->paused(); });
      if (any) return;
      const uint64_t seen = signal_->changes;
      signal_->wake.wait(lock, [&] { return signal_->changes != seen; });
    }
  }

  void drop_cancelled(bool all) {
    std::deque<std::shared_ptr<Job>> dropped;
    {
      const std::lock_guard lock(signal_->mutex);
      const auto move_out = [&](std::deque<std::shared_ptr<Job>>& from) {
        for (size_t i = 0; i < from.size();) {
          if (all || from[i]->cancelled.load()) {
            dropped.push_back(std::move(from[i]));
            from.erase(from.begin() + static_cast<std::ptrdiff_t>(i));
          } else {
            ++i;
          }
        }
      };
      move_out(waiting_);
      move_out(running_);
    }
    for (const std::shared_ptr<Job>& job : dropped) finish(*job, FinishReason::kCancelled);
  }

  void admit() {
    const std::lock_guard lock(signal_->mutex);
    while (!waiting_.empty() && running_.size() < kMaxRunning) {
      running_.push_back(std::move(waiting_.front()));
      waiting_.pop_front();
      running_.back()->started = Clock::now();
      running_.back()->kv = std::make_unique<KvSequence>(model_->kv_pool(), config_.n_window);
    }
  }

  // Rows of the next step: one for each sequence that decodes, then prompts in the order they came, up to the batch
  // size.
  bool plan_step() {
    step_jobs_.clear();
    step_inputs_.clear();
    int budget = model_->max_batch();
    for (const std::shared_ptr<Job>& job : running_) {
      if (!job->is_generate || !job->decoding() || job->paused() || budget == 0) continue;
      add_input(job, {&job->last_token, 1}, 1);
      --budget;
    }
    if (!step_jobs_.empty()) budget = std::min(budget, kPrefillBesideDecode);
    for (const std::shared_ptr<Job>& job : running_) {
      if (job->decoding() || job->paused() || budget == 0) continue;
      int n = std::min(budget, static_cast<int>(job->prompt.size()) - job->n_done);
      if (job->all_logits) n = std::min(n, kLogitsBatch);
      const bool last = job->n_done + n == static_cast<int>(job->prompt.size());
      add_input(job, std::span(job->prompt).subspan(static_cast<size_t>(job->n_done), static_cast<size_t>(n)),
                job->all_logits ? n : (last ? 1 : 0));
      budget -= n;
    }
    return !step_jobs_.empty();
  }

  void add_input(const std::shared_ptr<Job>& job, std::span<const TokenId> tokens, int n_logits) {
    step_jobs_.push_back(job);
    SequenceInput input{job->kv.get(), job->n_done, tokens, n_logits, {}};
    if (job->is_generate && n_logits > 0) {
      if (!job->prompt_accepted) {
        for (const TokenId token : job->prompt) job->sampler->accept(token);
        job->prompt_accepted = true;
      }
      input.top = job->sampler->wanted();
    }
    step_inputs_.push_back(input);
  }

  void run_step() {
    const auto should_stop = [&] {
      return closing_.load(std::memory_order_relaxed) ||
             std::any_of(step_jobs_.begin(), step_jobs_.end(),
                         [](const auto& job) { return job->cancelled.load(std::memory_order_relaxed); });
    };
    bool done = false;
    try {
      done = model_->forward(step_inputs_, should_stop, [&](size_t i, int index, std::span<float> logits) {
        take_logits(*step_jobs_[i], index, logits);
      });
    } catch (const Error& error) {
      step_jobs_.back()->failure = error;  // the newest: the others go on without it
    } catch (const std::bad_alloc&) {
      step_jobs_.back()->failure = Error(ErrorCode::kOutOfMemory, "", "out of memory in a generation step");
    }
    {
      const std::lock_guard lock(signal_->mutex);
      ++stats_.steps;
    }
    for (size_t i = 0; i < step_jobs_.size(); ++i) {
      Job& job = *step_jobs_[i];
      if (done && !job.failure) commit(job, static_cast<int>(step_inputs_[i].tokens.size()));
      if (job.failure) retire(step_jobs_[i], FinishReason::kError);
    }
    step_jobs_.clear();  // an idle engine holds no callbacks
  }

  // Called within the step, once per wanted row.
  void take_logits(Job& job, int index, std::span<float> logits) {
    if (job.failure) return;
    try {
      if (job.is_generate) {
        job.sampled = job.sampler->sample(logits);
        return;
      }
      if (!is_finite_row(logits)) {
        throw Error(ErrorCode::kNonFinite, "NONFINITE",
                    "logits of position " + std::to_string(job.n_done + index) +
                        " hold NaN or infinity: the weights are damaged");
      }
      job.on_row(job.n_done + index, logits);
    } catch (const Error& error) {
      job.failure = error;
    } catch (const std::bad_alloc&) {
      job.failure = Error(ErrorCode::kOutOfMemory, "", "out of memory while sampling");
    }
  }

  // The step counts: its positions are in the cache.
  void commit(Job& job, int n) {
    const bool was_prefill = !job.decoding();
    job.n_done += n;
    job.kv->trim(job.n_done);
    const std::shared_ptr<Job> keep = find_running(job);
    if (!job.is_generate) {
      if (job.decoding()) retire(keep, FinishReason::kStop);
      return;
    }
    if (was_prefill) {
      GenerateEvent event;
      event.kind = GenerateEvent::kPrefillProgress;
      event.n_prefilled = job.n_done;
      job.on_event(std::move(event));
      if (job.decoding()) job.prefilled = Clock::now();
    }
    if (!job.sampled) return;
    SampledToken sampled = std::move(*job.sampled);
    job.sampled.reset();
    emit_token(keep, std::move(sampled));
  }

  void emit_token(const std::shared_ptr<Job>& job, SampledToken sampled) {
    if (job->max_output == 0) return retire(job, FinishReason::kLength);
    const TokenId token = sampled.token;
    job->sampler->accept(token);
    job->last_token = token;
    ++job->n_output;
    const bool is_end = job->params.stop_at_end_token && tokenizer_->is_end(token);

    GenerateEvent event;
    event.kind = GenerateEvent::kToken;
    event.token = std::move(sampled);
    if (!is_end) event.text = job->text->push(tokenizer_->token_bytes(token));
    event.in_text = !is_end && !job->text->stopped();
    job->unread.fetch_add(1);
    job->on_event(std::move(event));
    if (is_end || job->text->stopped()) {
      retire(job, FinishReason::kStop);
    } else if (job->n_output >= job->max_output) {
      retire(job, FinishReason::kLength);
    }
  }

  std::shared_ptr<Job> find_running(const Job& job) const {
    for (const std::shared_ptr<Job>& candidate : running_) {
      if (candidate.get() == &job) return candidate;
    }
    return nullptr;
  }

  void retire(const std::shared_ptr<Job>& job, FinishReason reason) {
    {
      const std::lock_guard lock(signal_->mutex);
      std::erase(running_, job);
    }
    finish(*job, reason);
  }

  // The last word to the caller. Pages go back first, so that a caller who asks sees them gone.
  void finish(Job& job, FinishReason reason) {
    job.kv.reset();
    std::shared_ptr<const Error> error;
    if (job.failure) error = std::make_shared<const Error>(*job.failure);
    if (!job.is_generate) {
      if (reason == FinishReason::kCancelled)
        error = std::make_shared<const Error>(ErrorCode::kDisposed, "CANCELLED", "cancelled");
      job.on_done(error);
      return;
    }
    const Clock::time_point now = Clock::now();
    GenerateEvent event;
    event.kind = GenerateEvent::kFinish;
    event.reason = reason;
    event.error = std::move(error);
    event.text = job.text->finish();
    event.matched_stop = job.text->matched();
    event.n_input = static_cast<int>(job.prompt.size());
    event.n_output = job.n_output;
    if (job.started == Clock::time_point()) job.started = now;
    if (job.prefilled == Clock::time_point()) job.prefilled = now;
    event.timings = {ms_between(job.queued, job.started), ms_between(job.started, job.prefilled),
                     ms_between(job.prefilled, now)};
    job.on_event(std::move(event));
  }

  ModelConfig config_;
  EngineInfo info_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Model> model_;  // after backend_: destroyed before it
  std::vector<TokenId> banned_;

  std::shared_ptr<Signal> signal_;
  std::atomic<bool> closing_{false};
  std::deque<std::shared_ptr<Job>> waiting_;  // guarded by signal_->mutex
  std::deque<std::shared_ptr<Job>> running_;  // changed by the engine thread only, under the mutex
  EngineStats stats_;                         // guarded by signal_->mutex
  std::vector<std::shared_ptr<Job>> step_jobs_;
  std::vector<SequenceInput> step_inputs_;
  std::mutex close_mutex_;
  std::thread thread_;
};

}  // namespace

std::shared_ptr<Engine> Engine::load(const LoadOptions& options) {
  try {
    return std::make_shared<EngineImpl>(options);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory, "", "out of memory while loading " + options.path);
  }
}

std::vector<DeviceInfo> list_devices() {
  DeviceInfo cpu;
  cpu.name = "cpu";
  cpu.description = cpu::cpu_name();
  for (const cpu::KernelRow& row : cpu::kernel_table()) {
    if (row.available()) cpu.isas.emplace_back(row.isa);
  }
  cpu.isa_default = cpu.isas.front();
  cpu.n_cores = cpu::usable_cores();
  cpu.memory_bytes = cpu::memory_bytes();
  return {cpu};
}

const char* compiled_backend() {
  return GEMMA_BACKEND_NAME;
}

}  // namespace gemma
