// One loaded model and the thread that runs it. All requests of a model go into one queue; each step of the engine
// thread takes prefill chunks and decode tokens of every running request through the layers together (a ragged batch).
// Nothing here knows JavaScript; callbacks arrive on the engine thread and must not block or throw.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "gguf/gguf.h"
#include "model/config.h"
#include "model/vision_config.h"
#include "runtime/prefix_cache.h"
#include "runtime/sampler.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

struct LoadOptions {
  std::string path;             // GGUF file (first part of a split model)
  std::string device = "auto";  // "auto", "cpu", "cuda", "cuda:1", "cuda:0,cuda:1", likewise "rocm"
  int n_gpu_layers = -1;        // so many of the last layers on GPUs; -1: as memory allows
  std::string isa;              // "" best; "avx512_vnni", "avx2", "ref": forced, error when unknown or not here
  int n_threads = 0;            // 0: physical cores this process may use
  int n_ctx = 0;                // positions per sequence; 0: min(model's, 32768)
  KvType kv_type = KvType::kF16;
  int n_batch = 0;         // rows per step; 0: default (512). With vision at least an image and 64.
  std::string draft_path;  // a smaller model of the same vocabulary that guesses tokens ahead; "": none
  bool mmap = true;
  std::string mmproj_path;  // the model's vision encoder; "": the one in the model file, if it holds one
  bool vision = true;       // false: none, whatever the model file holds
  // kExact: the encoder's float weights as they are stored, in float32. kFast: requantised to Q8_0, int8 products.
  Arithmetic vision_arithmetic = Arithmetic::kFast;
  // Keys and values of finished requests with images, kept for prompts that begin alike (prefix_cache.h), beside the
  // memory plan; 0: none.
  uint64_t prefix_cache_bytes = 0;
  // Keep a screen of the output matrix, a quarter of its size at 16 bits: sampled logits then cost a fraction of all.
  bool screen_logits = true;
  // fraction in 0..1, called on the loading thread
  std::function<void(double)> on_progress;
  const std::atomic<bool>* cancel = nullptr;  // looked at during load; throws Error{kDisposed, CANCELLED}
};

struct Timings {
  double queue_ms = 0;
  double prefill_ms = 0;  // first prompt token in to first logits out
  double decode_ms = 0;   // after the first token
};

enum class FinishReason { kStop, kLength, kCancelled, kError };

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
  SamplingParams sampling;
  std::vector<std::string> stop_sequences;
  int max_unread = 256;  // pause this request while so many events are not acknowledged; 0: never pause
  DraftMode draft = DraftMode::kAuto;
  int n_draft = -1;  // guesses a step; -1: as many as pay, by their chances and by what steps cost
  // In order, apart from each other or side by side. Prompts with images are never read by a draft model: guesses come
  // from prompt lookup then.
  std::vector<PromptImage> images;
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
  std::shared_ptr<const Error> error;  // for kError
};

// Logits of a token sequence, no sampling.
struct LogitsParams {
  std::vector<TokenId> tokens;
  bool all = false;  // every position, not only the last
  std::vector<PromptImage> images;
};

// Pictures for the vision encoder.
struct EncodeParams {
  std::vector<uint8_t> pixels;  // [n_images, image_size, image_size, 3], red green blue
  int n_images = 0;
};

class Request {
 public:
  virtual ~Request() = default;
  // Any thread, any time, any number of times. The finish event (kCancelled) still arrives.
  virtual void cancel() = 0;
  // The reader has taken n more events (back-pressure).
  virtual void acknowledge(int n) = 0;
};

struct EngineInfo {
  std::string device;  // "cpu", "cuda:0", "cpu + cuda:0"
  std::string isa;     // "avx512_vnni", "sm_90": of the last of the devices
  int n_gpu_layers = 0;
  int n_threads = 0;
  int n_ctx = 0;
  KvType kv_type = KvType::kF16;
  MemoryPlan memory;  // the draft model included
  bool has_draft_model = false;
  std::optional<VisionConfig> vision;
  Arithmetic vision_arithmetic = Arithmetic::kFast;
};

struct EngineStats {  // a snapshot, any thread
  uint64_t steps = 0;
  uint64_t kv_pages_in_use = 0;
  uint64_t kv_bytes_resident = 0;  // allocated for cache pages
  int running = 0, waiting = 0;
  int prefixes = 0;  // kept for prompts that begin alike; their pages are in use
};

class Engine {
 public:
  // Blocking; call off the JavaScript thread. Throws Error.
  static std::shared_ptr<Engine> load(const LoadOptions& options);
  virtual ~Engine() = default;  // same as close()

  virtual const ModelConfig& config() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;
  virtual const EngineInfo& info() const = 0;
  virtual EngineStats stats() const = 0;

  // Checks the parameters (throws Error{kInvalidArgument, kContextFull, kDisposed}; kInvalidArgument, BAD_IMAGE for
  // images that overlap, leave the prompt, are not finite or too large for a step), queues the request and returns.
  virtual std::shared_ptr<Request> generate(GenerateParams params, std::function<void(GenerateEvent&&)> on_event) = 0;

  // on_row: one call per wanted position in order, logits[n_vocab] valid during the call; on_done: once, error null on
  // success (kDisposed/CANCELLED after cancel()). Positions are computed in chunks, so a long text does not hold n x
  // vocab floats.
  virtual std::shared_ptr<Request> logits(LogitsParams params,
                                          std::function<void(int position, std::span<const float> logits)> on_row,
                                          std::function<void(std::shared_ptr<const Error> error)> on_done) = 0;

  // Embeddings of pictures, between the steps of other requests, one call after the other. on_progress: fraction in
  // 0..1 after each step. on_done: once, embeddings [n_images, n_tokens, model_dim], or error (kDisposed/CANCELLED
  // after cancel()). Throws Error: kUnsupportedInput, NO_VISION without an encoder; kInvalidArgument, BAD_IMAGE;
  // kDisposed.
  virtual std::shared_ptr<Request> encode_images(
      EncodeParams params, std::function<void(double fraction)> on_progress,
      std::function<void(std::vector<float>&& embeddings, std::shared_ptr<const Error> error)> on_done) = 0;

  // Cancels all requests (their finish events arrive), joins the threads, releases the weights. Any thread but the
  // engine's own; idempotent. Later calls of generate/logits throw kDisposed.
  virtual void close() = 0;
};

// The vision encoder that goes with a model: of the mmproj file, of the model's own file, or none.
struct VisionSource {
  std::shared_ptr<const GgufFile> file;
  VisionConfig config;
};
// open_options: how an mmproj file is opened. Throws Error as GgufFile::open and read_vision_config do.
std::optional<VisionSource> open_vision(const LoadOptions& options, const std::shared_ptr<const GgufFile>& model_file,
                                        const ModelConfig& config, const GgufOpenOptions& open_options);
// Rows of a step of a model with this encoder, if it has one: at least an image beside all that may decode.
int rows_per_step(int n_batch, const std::optional<VisionConfig>& vision);

// What this build and machine offer, for `gemma-native devices`.
struct DeviceInfo {
  std::string name;               // "cpu", "cuda:0"; "cuda" for a backend that finds no device
  std::string description;        // CPU or GPU model
  std::vector<std::string> isas;  // usable here, best first; the chip of a GPU
  std::string isa_default;
  int n_cores = 0;  // physical cores this process may use; a GPU's multiprocessors
  uint64_t memory_bytes = 0;
  bool available = true;
  std::string reason;  // why not available
};
std::vector<DeviceInfo> list_devices();
const char* compiled_backend();  // "cpu"

}  // namespace gemma
