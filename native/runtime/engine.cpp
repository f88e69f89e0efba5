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
#include "model/forward.h"
#include "model/vision.h"
#include "model/vocabulary.h"
#include "model/weights.h"
#include "runtime/devices.h"
#include "runtime/draft.h"
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
// A call's pictures are held in memory.
constexpr int kMaxImages = 1024;

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
  std::vector<TokenId> tokens;  // prompt and output
  int n_prompt = 0;
  int n_done = 0;   // positions in the cache
  int n_taken = 0;  // rows of logits that the running step has delivered and that count
  std::unique_ptr<KvSequence> kv;
  std::optional<Error> failure;
  Clock::time_point queued = Clock::now();
  Clock::time_point started;
  Clock::time_point prefilled;

  int n_cached = 0;  // positions that another request has left
  PromptImages images;
  std::vector<ImageRows> image_rows;  // of images; tokens are kImageToken there

  // generate
  bool is_generate = false;
  GenerateParams params;
  std::function<void(GenerateEvent&&)> on_event;
  std::optional<Sampler> sampler;
  bool prompt_accepted = false;  // by the sampler
  std::optional<TextStream> text;
  int max_output = 0;
  int n_output = 0;
  int n_drafted = 0, n_accepted = 0;
  std::unique_ptr<DraftState> draft;
  std::vector<TokenId> step_tokens;   // decoding: the last token, and what is guessed to follow
  std::vector<SampledToken> sampled;  // of the step that is running, n_taken
  bool diverged = false;              // the rows after these were computed for other tokens

  // logits
  bool all_logits = false;
  std::function<void(int, std::span<const float>)> on_row;
  std::function<void(std::shared_ptr<const Error>)> on_done;

  // encode_images
  EncodeParams pictures;
  std::function<void(double)> on_progress;
  std::function<void(std::vector<float>&&, std::shared_ptr<const Error>)> on_images;

  bool decoding() const { return n_done >= n_prompt; }
  bool paused() const { return is_generate && params.max_unread > 0 && unread.load() >= params.max_unread; }
};

bool is_finite_row(std::span<const float> logits) {
  float sum = 0;
  for (const float logit : logits) sum += logit * 0.0f;
  return sum == 0.0f;
}

// Of a draft model's weights.
uint64_t draft_bytes(const std::string& path, const GgufOpenOptions& options) {
  const std::shared_ptr<const GgufFile> file = GgufFile::open(path, options);
  uint64_t bytes = 0;
  for (const GgufTensor& tensor : file->tensors()) bytes += tensor.bytes;
  return bytes;
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
    info_.n_threads = options.n_threads > 0 ? options.n_threads : cpu::usable_cores();
    make_cpu_backend(options.isa, 1);  // a wrong name is an error wherever the layers go

    GgufOpenOptions open_options;
    open_options.mmap = options.mmap;
    std::shared_ptr<const GgufFile> file = GgufFile::open(options.path, open_options);
    progress(0.1);
    config_ = read_model_config(*file);
    const Vocabulary vocabulary = read_vocabulary(*file, config_.n_vocab);
    tokenizer_ = std::make_unique<Tokenizer>(vocabulary);
    progress(0.2);

    if (options.n_ctx > config_.n_ctx_train) {
      throw Error(ErrorCode::kInvalidArgument, "CONTEXT_SIZE",
                  "contextSize " + std::to_string(options.n_ctx) + ": the model was trained for " +
                      std::to_string(config_.n_ctx_train));
    }
    info_.n_ctx = options.n_ctx > 0 ? options.n_ctx : std::min(config_.n_ctx_train, kDefaultContext);
    info_.kv_type = options.kv_type;
    const std::optional<VisionSource> vision = open_vision(options, file, config_, open_options);
    if (vision) info_.vision = vision->config;
    info_.vision_arithmetic = options.vision_arithmetic;
    const int n_batch = rows_per_step(options.n_batch > 0 ? options.n_batch : kDefaultBatch, info_.vision);
    max_image_rows_ = n_batch - static_cast<int>(kMaxRunning);
    info_.memory = plan_memory(*file, config_, info_.n_ctx, info_.kv_type, n_batch, options.screen_logits);
    const auto vision_bytes = [&](bool has_bulk) {
      const bool requantizes = vision_requantizes(vision->config, options.vision_arithmetic, has_bulk);
      return plan_vision_bytes(*vision->file, vision->config, requantizes);
    };
    PlacementRequest request{options.device, options.n_gpu_layers, options.isa, info_.n_threads};
    if (vision) request.other_bytes = std::max(vision_bytes(false), vision_bytes(true));
    if (!options.draft_path.empty()) request.other_bytes += draft_bytes(options.draft_path, open_options);
    Placement placement = open_devices(request, layer_costs(*file, config_, info_.n_ctx, info_.kv_type, n_batch));
    backends_ = std::move(placement.backends);
    Backend& last = *backends_.back();
    info_.device = placement.device;
    info_.isa = last.isa();
    info_.n_gpu_layers = placement.n_gpu_layers;
    if (placement.n_gpu_layers > 0) {  // GPUs read the output matrix itself
      info_.memory.total_bytes -= info_.memory.screen_bytes;
      info_.memory.screen_bytes = 0;
    }
    file->prefetch([&](double fraction) { progress(0.2 + 0.6 * fraction); });
    Weights weights = load_weights(placement.stages, file, config_);
    model_ = std::make_unique<Model>(placement.stages, config_, std::move(weights), info_.kv_type, n_batch,
                                     options.screen_logits);
    if (vision) {
      info_.memory.add_vision(vision_bytes(last.has_bulk()));
      encoder_ = std::make_unique<VisionEncoder>(last, vision->file, vision->config, options.vision_arithmetic);
    }
    prefixes_ = std::make_unique<PrefixCache>(model_->kv_pool(), config_.model_dim, options.prefix_cache_bytes);
    find_banned();
    drafter_ = std::make_unique<Drafter>(*tokenizer_, config_.n_vocab, banned_, info_.memory.weights_bytes);
    if (!options.draft_path.empty()) {
      progress(0.8);
      info_.memory +=
          drafter_->load_model(last, options.draft_path, options.mmap, vocabulary, info_.n_ctx, info_.kv_type, n_batch,
                               options.screen_logits, [&](double fraction) { progress(0.8 + 0.2 * fraction); });
      info_.has_draft_model = true;
    }
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
    check_images(params.tokens, params.images);
    check_tokens(params.tokens, params.images);
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
    if (params.draft == DraftMode::kModel && !info_.has_draft_model) {
      throw Error(ErrorCode::kInvalidArgument, "NO_DRAFT",
                  "draft 'model': the model was loaded without one; name it when loading (option draft)");
    }
    auto job = std::make_shared<Job>(signal_);
    job->is_generate = true;
    take_prompt(*job, std::move(params.tokens), std::move(params.images));
    job->max_output = params.max_tokens < 0 ? std::max(0, room) : std::min(params.max_tokens, std::max(0, room));
    job->sampler.emplace(params.sampling, banned_);
    job->text.emplace(params.stop_sequences);
    job->params = std::move(params);
    job->on_event = std::move(on_event);
    return submit(std::move(job));
  }

  std::shared_ptr<Request> logits(LogitsParams params, std::function<void(int, std::span<const float>)> on_row,
                                  std::function<void(std::shared_ptr<const Error>)> on_done) override {
    check_images(params.tokens, params.images);
    check_tokens(params.tokens, params.images);
    auto job = std::make_shared<Job>(signal_);
    take_prompt(*job, std::move(params.tokens), std::move(params.images));
    job->all_logits = params.all;
    job->on_row = std::move(on_row);
    job->on_done = std::move(on_done);
    return submit(std::move(job));
  }

  std::shared_ptr<Request> encode_images(
      EncodeParams params, std::function<void(double)> on_progress,
      std::function<void(std::vector<float>&&, std::shared_ptr<const Error>)> on_done) override {
    if (!info_.vision) {
      throw Error(ErrorCode::kUnsupportedInput, "NO_VISION",
                  "the model was loaded without a vision encoder: name its mmproj file when loading (option mmproj)");
    }
    const size_t size = static_cast<size_t>(info_.vision->image_size);
    if (params.n_images < 1 || params.n_images > kMaxImages ||
        params.pixels.size() != static_cast<size_t>(params.n_images) * size * size * 3) {
      throw Error(ErrorCode::kInvalidArgument, "BAD_IMAGE",
                  "pixels: expected 1 to " + std::to_string(kMaxImages) + " images of " + std::to_string(size) + " x " +
                      std::to_string(size) + " x 3 bytes, found " + std::to_string(params.n_images) + " in " +
                      std::to_string(params.pixels.size()) + " bytes");
    }
    auto job = std::make_shared<Job>(signal_);
    job->pictures = std::move(params);
    job->on_progress = std::move(on_progress);
    job->on_images = std::move(on_done);
    return submit(std::move(job));
  }

  void close() override {
    const std::lock_guard close_lock(close_mutex_);
    closing_.store(true);
    signal_->notify();
    if (thread_.joinable()) thread_.join();
    prefixes_.reset();
    model_.reset();  // weights, cache
    encoder_.reset();
    drafter_->close();
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

  [[noreturn]] static void bad_image(size_t i, const std::string& message) {
    throw Error(ErrorCode::kInvalidArgument, "BAD_IMAGE", "image " + std::to_string(i) + ": " + message);
  }

  void check_images(const std::vector<TokenId>& tokens, const std::vector<PromptImage>& images) const {
    const size_t dim = static_cast<size_t>(config_.model_dim);
    size_t free = 0;  // the first token that is no image's yet
    for (size_t i = 0; i < images.size(); ++i) {
      const std::vector<float>& embedding = images[i].embedding;
      if (embedding.empty() || embedding.size() % dim != 0) {
        bad_image(i, "expected an embedding of rows of " + std::to_string(dim) + " values, found " +
                         std::to_string(embedding.size()) + " values");
      }
      const size_t n = embedding.size() / dim;
      if (images[i].first < 0 || static_cast<size_t>(images[i].first) < free ||
          static_cast<size_t>(images[i].first) + n > tokens.size()) {
        bad_image(i, "expected " + std::to_string(n) + " tokens within " + std::to_string(free) + ".." +
                         std::to_string(tokens.size()) + " of the prompt, found the first at " +
                         std::to_string(images[i].first));
      }
      if (n > static_cast<size_t>(std::max(0, max_image_rows_))) {
        bad_image(i, "expected at most " + std::to_string(std::max(0, max_image_rows_)) + " rows, found " +
                         std::to_string(n) +
                         ": an image goes through the layers in one step; load with a larger batchSize");
      }
      if (!is_finite_row(embedding)) bad_image(i, "its embedding holds NaN or infinity");
      free = static_cast<size_t>(images[i].first) + n;
    }
  }

  void take_prompt(Job& job, std::vector<TokenId>&& tokens, std::vector<PromptImage>&& images) const {
    job.tokens = std::move(tokens);
    job.n_prompt = static_cast<int>(job.tokens.size());
    job.images = std::make_shared<const std::vector<PromptImage>>(std::move(images));
    for (const PromptImage& image : *job.images) {
      const int n = static_cast<int>(image.embedding.size()) / config_.model_dim;
      job.image_rows.push_back({image.first, n, image.embedding.data()});
      std::fill_n(job.tokens.begin() + image.first, n, kImageToken);
    }
  }

  void check_tokens(const std::vector<TokenId>& tokens, const std::vector<PromptImage>& images) const {
    if (tokens.empty())
      throw Error(ErrorCode::kInvalidArgument, "EMPTY", "the prompt has no tokens: expected at least one");
    if (tokens.size() > static_cast<size_t>(info_.n_ctx)) {
      throw Error(ErrorCode::kContextFull, "CONTEXT_OVERFLOW",
                  "the prompt of " + std::to_string(tokens.size()) + " tokens does not fit into the context of " +
                      std::to_string(info_.n_ctx) + " positions: shorten it or load with a larger contextSize");
    }
    auto image = images.begin();
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (image != images.end() && i == static_cast<size_t>(image->first)) {
        i += image++->embedding.size() / static_cast<size_t>(config_.model_dim) - 1;
        continue;
      }
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
      encode_step();
      if (!plan_step()) continue;
      run_step();
    }
  }

  void wait_for_work() {
    std::unique_lock lock(signal_->mutex);
    for (;;) {
      stats_.running = static_cast<int>(running_.size() + encodes_.size());
      stats_.waiting = static_cast<int>(waiting_.size());
      stats_.prefixes = static_cast<int>(prefixes_->size());
      stats_.kv_pages_in_use = model_->kv_pool().pages_in_use() + drafter_->pages_in_use();
      stats_.kv_bytes_resident = model_->kv_pool().bytes_resident() + drafter_->bytes_resident();
      if (closing_.load() || !waiting_.empty() || !encodes_.empty()) return;
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
      move_out(encodes_);
      move_out(running_);
    }
    for (const std::shared_ptr<Job>& job : dropped) finish(*job, FinishReason::kCancelled);
  }

  void admit() {
    const size_t n_before = running_.size();
    {
      const std::lock_guard lock(signal_->mutex);
      while (!waiting_.empty() && running_.size() < kMaxRunning) {
        std::deque<std::shared_ptr<Job>>& to = waiting_.front()->on_images ? encodes_ : running_;
        to.push_back(std::move(waiting_.front()));
        waiting_.pop_front();
        to.back()->started = Clock::now();
      }
    }
    for (size_t i = n_before; i < running_.size(); ++i) begin(*running_[i]);
  }

  void begin(Job& job) {
    if (job.is_generate) {
      try {
        PrefixCache::Match match = prefixes_->find(job.tokens, job.images);
        job.kv = std::move(match.kv);
        job.n_done = job.n_cached = match.n;
      } catch (const std::exception&) {
        job.n_done = job.n_cached = 0;  // no memory for a copy of a page: all is read anew
      }
    }
    if (job.kv == nullptr) job.kv = std::make_unique<KvSequence>(model_->kv_pool(), config_.n_window);
    if (!job.is_generate || job.max_output < 2 || job.params.draft == DraftMode::kOff) return;
    const bool by_model = drafter_->has_model() && job.params.draft != DraftMode::kPromptLookup && job.images->empty();
    job.draft = drafter_->begin(by_model ? DraftKind::kModel : DraftKind::kPromptLookup);
  }

  // Keeps the first n positions of a sequence for prompts that begin alike: in place, or a copy of a sequence that goes
  // on. Failing for want of memory costs nothing but time later.
  void keep_prefix(Job& job, int n, bool goes_on) {
    try {
      if (!job.kv->can_fork(n)) return;
      std::unique_ptr<KvSequence> kv = goes_on ? job.kv->fork(n) : std::move(job.kv);
      prefixes_->keep(std::move(kv), std::span(job.tokens).first(static_cast<size_t>(n)), job.images);
    } catch (const std::exception&) {
      prefixes_->clear();
    }
  }

  // One step of the pictures that come first; afterwards others decode.
  void encode_step() {
    if (!encodes_.empty()) {
      const std::shared_ptr<Job> job = encodes_.front();
      bool more = false;
      try {
        if (encoding_ != job) {
          encoding_ = job;
          encoder_->start(job->pictures.pixels, job->pictures.n_images);
        }
        more = encoder_->advance([&] { return should_stop(std::span(&job, 1)); });
        job->on_progress(encoder_->progress());
      } catch (const Error& error) {
        job->failure = error;
      } catch (const std::bad_alloc&) {
        job->failure = Error(ErrorCode::kOutOfMemory, "", "out of memory while encoding images");
      }
      if (more && !job->failure) return;
      {
        const std::lock_guard lock(signal_->mutex);
        encodes_.pop_front();
      }
      finish(*job, job->failure ? FinishReason::kError : FinishReason::kStop);
    }
    if (encodes_.empty() && encoding_ != nullptr) {  // an idle encoder holds no activations
      encoding_.reset();
      encoder_->rest();
    }
  }

  // Rows of the image that the prompt has come to, 0 for none.
  static int image_rows_next(const Job& job) {
    for (const ImageRows& image : job.image_rows) {
      if (image.first_position == job.n_done) return image.n;
    }
    return 0;
  }

  // How many of the next n rows of a prompt make a step that cuts no image: fewer where one lies across the end, or
  // more, up to n_max, where one lies across the beginning; 0 when that does not fit.
  static int without_cut(const Job& job, int n, int n_max) {
    const int end = job.n_done + n;
    for (const ImageRows& image : job.image_rows) {
      if (image.first_position >= end || image.first_position + image.n <= end) continue;
      if (image.first_position > job.n_done) return image.first_position - job.n_done;
      return image.n <= n_max ? image.n : 0;
    }
    return n;
  }

  // Rows of the next step: one for each sequence that decodes and those of its guesses, then prompts in the order they
  // came, up to the batch size.
  bool plan_step() {
    step_jobs_.clear();
    step_inputs_.clear();
    int budget = model_->max_batch();
    for (const std::shared_ptr<Job>& job : running_) {
      if (!job->is_generate || !job->decoding() || job->paused() || budget == 0) continue;
      step_jobs_.push_back(job);
      --budget;
    }
    // The next prompt's image is to fit beside the guesses, or it would wait as long as others decode.
    const auto next = std::find_if(running_.begin(), running_.end(),
                                   [](const auto& job) { return !job->decoding() && !job->paused(); });
    const int n_image = next == running_.end() ? 0 : image_rows_next(**next);
    guess_ahead(std::max(0, std::min(budget / 2, budget - n_image)));
    for (const std::shared_ptr<Job>& job : step_jobs_) {
      job->step_tokens.assign(1, job->tokens.back());
      if (job->draft) {
        const std::vector<TokenId>& guesses = job->draft->guesses();
        job->step_tokens.insert(job->step_tokens.end(), guesses.begin(), guesses.end());
        budget -= static_cast<int>(guesses.size());
      }
      add_input(job, job->step_tokens, static_cast<int>(job->step_tokens.size()));
    }
    n_decoding_ = step_jobs_.size();
    int room = budget;
    if (!step_jobs_.empty()) budget = std::min(budget, kPrefillBesideDecode);
    for (const std::shared_ptr<Job>& job : running_) {
      if (job->decoding() || job->paused() || budget == 0) continue;
      int n = std::min(budget, job->n_prompt - job->n_done);
      if (job->all_logits) n = std::min(n, kLogitsBatch);
      n = without_cut(*job, n, room);
      if (n == 0) continue;
      const bool last = job->n_done + n == job->n_prompt;
      step_jobs_.push_back(job);
      add_input(job, std::span(job->tokens).subspan(static_cast<size_t>(job->n_done), static_cast<size_t>(n)),
                job->all_logits ? n : (last ? 1 : 0));
      room -= n;
      budget = std::max(0, budget - n);
    }
    return !step_jobs_.empty();
  }

  void add_input(const std::shared_ptr<Job>& job, std::span<const TokenId> tokens, int n_logits) {
    SequenceInput input{job->kv.get(), job->n_done, tokens, n_logits, {}, job->image_rows};
    if (job->is_generate && n_logits > 0) {
      if (!job->prompt_accepted) {
        for (const TokenId token : job->tokens) {
          if (token != kImageToken) job->sampler->accept(token);
        }
        job->prompt_accepted = true;
      }
      // The first token of several is in the window already.
      input.top = job->sampler->wanted(job->decoding() ? tokens.subspan(1) : std::span<const TokenId>());
    }
    input.is_prompt = !job->decoding();
    step_inputs_.push_back(input);
  }

  // Guesses for the jobs that decode in the coming step, at most n_max_rows of them. Beside, the draft model reads the
  // prompts as far as they are in the cache.
  void guess_ahead(int n_max_rows) {
    draft_requests_.clear();
    for (const std::shared_ptr<Job>& job : step_jobs_) {
      if (!job->draft) continue;
      int n_max = job->max_output - job->n_output - 1;
      if (job->params.max_unread > 0) n_max = std::min(n_max, job->params.max_unread - job->unread.load() - 1);
      draft_requests_.push_back({job->draft.get(), job->tokens, &*job->sampler, std::max(0, n_max), job->params.n_draft,
                                 job->params.stop_at_end_token});
    }
    if (drafter_->has_model()) {
      for (const std::shared_ptr<Job>& job : running_) {
        if (!job->draft || job->decoding() || job->paused()) continue;
        draft_requests_.push_back({job->draft.get(), std::span(job->tokens).first(static_cast<size_t>(job->n_done))});
      }
    }
    if (!draft_requests_.empty())
      drafter_->draft(draft_requests_, n_max_rows, [this] { return should_stop(running_); });
  }

  // Whether a step of these jobs is to be given up.
  bool should_stop(const auto& jobs) const {
    return closing_.load(std::memory_order_relaxed) || std::any_of(jobs.begin(), jobs.end(), [](const auto& job) {
             return job->cancelled.load(std::memory_order_relaxed);
           });
  }

  void run_step() {
    for (const std::shared_ptr<Job>& job : step_jobs_) {
      job->n_taken = 0;
      job->sampled.clear();
      job->diverged = false;
    }
    const Clock::time_point start = Clock::now();
    bool done = false;
    try {
      done = model_->forward(
          step_inputs_, [this] { return should_stop(step_jobs_); },
          [&](size_t i, int index, const Logits& logits) { take_logits(*step_jobs_[i], index, logits); });
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kOutOfMemory && !prefixes_->empty()) {
        prefixes_->clear();  // what is kept gives way; the step is repeated
      } else {
        step_jobs_.back()->failure = error;  // the newest: the others go on without it
      }
    } catch (const std::bad_alloc&) {
      step_jobs_.back()->failure = Error(ErrorCode::kOutOfMemory, "", "out of memory in a generation step");
    }
    {
      const std::lock_guard lock(signal_->mutex);
      ++stats_.steps;
    }
    if (done && n_decoding_ == step_jobs_.size()) {
      int n_rows = 0;
      for (const SequenceInput& input : step_inputs_) n_rows += input.n_logits;
      drafter_->add_step(n_rows, ms_between(start, Clock::now()));
    }
    for (size_t i = 0; i < step_jobs_.size(); ++i) {
      const std::shared_ptr<Job>& job = step_jobs_[i];
      // Rows that were delivered count, also of a step that was given up or failed afterwards: random numbers were
      // drawn for them, and their positions are in the cache.
      if (job->n_taken > 0 || (done && !job->failure))
        commit(job, static_cast<int>(step_inputs_[i].tokens.size()) - step_inputs_[i].n_logits + job->n_taken);
      if (job->failure && job->kv != nullptr) retire(job, FinishReason::kError);
    }
    step_jobs_.clear();  // an idle engine holds no callbacks
  }

  // Called within the step, once per wanted row.
  void take_logits(Job& job, int index, const Logits& logits) {
    if (job.failure || job.diverged) return;
    try {
      if (job.is_generate) {
        const TokenId token = job.sampled.emplace_back(job.sampler->sample(logits)).token;
        job.sampler->accept(token);
        ++job.n_taken;
        const auto next = static_cast<size_t>(index) + 1;  // the row of the guess that token is to be
        job.diverged = !job.decoding() || next >= job.step_tokens.size() || job.step_tokens[next] != token;
        return;
      }
      if (!is_finite_row(logits.values)) {
        throw Error(ErrorCode::kNonFinite, "NONFINITE",
                    "logits of position " + std::to_string(job.n_done + index) +
                        " hold NaN or infinity: the weights are damaged");
      }
      job.on_row(job.n_done + index, logits.values);  // all: none was left out
      ++job.n_taken;
    } catch (const Error& error) {
      job.failure = error;
    } catch (const std::bad_alloc&) {
      job.failure = Error(ErrorCode::kOutOfMemory, "", "out of memory while sampling");
    }
  }

  // The first n positions of the step count: they are in the cache. What was guessed wrong is taken back.
  void commit(const std::shared_ptr<Job>& shared, int n) {
    Job& job = *shared;
    const bool was_prefill = !job.decoding();
    job.n_done += n;
    job.kv->rollback(job.n_done);
    if (job.is_generate && was_prefill && !job.image_rows.empty()) {
      const int image_end = job.image_rows.back().first_position + job.image_rows.back().n;
      if (job.n_done - n < image_end && job.n_done >= image_end) keep_prefix(job, image_end, true);
      // An answer that is asked about has become part of a prompt. Where those are computed apart, what was kept of it
      // as an answer would make the result depend on what the cache holds: the prompt is all that is kept.
      if (job.decoding() && model_->computes_prompts_apart()) keep_prefix(job, job.n_done, true);
    }
    job.kv->trim(job.n_done);
    if (!job.is_generate) {
      if (job.decoding()) retire(shared, FinishReason::kStop);
      return;
    }
    if (was_prefill) {
      GenerateEvent event;
      event.kind = GenerateEvent::kPrefillProgress;
      event.n_prefilled = job.n_done;
      job.on_event(std::move(event));
      if (job.decoding()) job.prefilled = Clock::now();
    }
    const int n_accepted = static_cast<int>(job.sampled.size()) - 1;
    if (job.draft && !was_prefill) {
      drafter_->judge(*job.draft, n_accepted);
      job.n_drafted += static_cast<int>(job.draft->guesses().size());
      job.n_accepted += n_accepted;
    }
    for (SampledToken& sampled : job.sampled) {
      emit_token(shared, std::move(sampled));
      if (job.kv == nullptr) return;  // that was the last one
    }
  }

  void emit_token(const std::shared_ptr<Job>& job, SampledToken sampled) {
    if (job->max_output == 0) return retire(job, FinishReason::kLength);
    const TokenId token = sampled.token;
    job->tokens.push_back(token);
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

  void retire(const std::shared_ptr<Job>& job, FinishReason reason) {
    {
      const std::lock_guard lock(signal_->mutex);
      std::erase(running_, job);
    }
    finish(*job, reason);
  }

  // The last word to the caller. Pages go back first, so that a caller who asks sees them gone.
  void finish(Job& job, FinishReason reason) {
    const bool is_whole = reason == FinishReason::kStop || reason == FinishReason::kLength;
    if (job.is_generate && is_whole && !job.image_rows.empty() && !model_->computes_prompts_apart()) {
      // Guesses behind the last token may have come true as well.
      keep_prefix(job, std::min(job.n_done, static_cast<int>(job.tokens.size())), false);
    }
    job.kv.reset();
    job.draft.reset();
    std::shared_ptr<const Error> error;
    if (reason == FinishReason::kError) error = std::make_shared<const Error>(*job.failure);
    if (!job.is_generate) {
      if (reason == FinishReason::kCancelled)
        error = std::make_shared<const Error>(ErrorCode::kDisposed, "CANCELLED", "cancelled");
      if (job.on_images) {
        job.pictures = {};  // handles may stay for long, pixels are large
        job.on_progress = nullptr;
        const auto on_images = std::move(job.on_images);
        on_images(error ? std::vector<float>() : encoder_->take(), error);
      } else {
        job.on_done(error);
      }
      return;
    }
    const Clock::time_point now = Clock::now();
    GenerateEvent event;
    event.kind = GenerateEvent::kFinish;
    event.reason = reason;
    event.error = std::move(error);
    event.text = job.text->finish();
    event.matched_stop = job.text->matched();
    event.n_input = job.n_prompt;
    event.n_output = job.n_output;
    event.n_cached = job.n_cached;
    event.n_drafted = job.n_drafted;
    event.n_accepted = job.n_accepted;
    if (job.started == Clock::time_point()) job.started = now;
    if (job.prefilled == Clock::time_point()) job.prefilled = now;
    event.timings = {ms_between(job.queued, job.started), ms_between(job.started, job.prefilled),
                     ms_between(job.prefilled, now)};
    job.on_event(std::move(event));
  }

  ModelConfig config_;
  EngineInfo info_;
  std::vector<std::unique_ptr<Backend>> backends_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Model> model_;  // after backends_: destroyed before them
  std::unique_ptr<Drafter> drafter_;
  std::unique_ptr<PrefixCache> prefixes_;  // after model_, likewise
  std::unique_ptr<VisionEncoder> encoder_;
  std::vector<TokenId> banned_;
  int max_image_rows_ = 0;

  std::shared_ptr<Signal> signal_;
  std::atomic<bool> closing_{false};
  std::deque<std::shared_ptr<Job>> waiting_;  // guarded by signal_->mutex
  std::deque<std::shared_ptr<Job>> running_;  // changed by the engine thread only, under the mutex
  std::deque<std::shared_ptr<Job>> encodes_;  // likewise
  std::shared_ptr<Job> encoding_;             // whose work is in the encoder
  EngineStats stats_;                         // guarded by signal_->mutex
  std::vector<std::shared_ptr<Job>> step_jobs_;
  std::vector<SequenceInput> step_inputs_;
  size_t n_decoding_ = 0;  // of step_jobs_, the first
  std::vector<DraftRequest> draft_requests_;
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

std::optional<VisionSource> open_vision(const LoadOptions& options, const std::shared_ptr<const GgufFile>& model_file,
                                        const ModelConfig& config, const GgufOpenOptions& open_options) {
  if (!options.vision) return std::nullopt;
  if (options.mmproj_path.empty()) {
    if (!has_vision(*model_file)) return std::nullopt;
    return VisionSource{model_file, read_vision_config(*model_file, config.model_dim)};
  }
  try {
    std::shared_ptr<const GgufFile> file = GgufFile::open(options.mmproj_path, open_options);
    const VisionConfig vision = read_vision_config(*file, config.model_dim);
    return VisionSource{std::move(file), vision};
  } catch (const Error& error) {
    throw Error(error.code(), error.detail(), "mmproj " + options.mmproj_path + ": " + error.what());
  }
}

int rows_per_step(int n_batch, const std::optional<VisionConfig>& vision) {
  return vision ? std::max(n_batch, vision->n_tokens + static_cast<int>(kMaxRunning)) : n_batch;
}

}  // namespace gemma
