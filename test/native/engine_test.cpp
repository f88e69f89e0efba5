// The engine as a whole on the tiny models: results that do not depend on company, chunks or threads, how answers end,
// and what is refused.
#include "runtime/engine.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <mutex>
#include <thread>

#include "check.h"
#include "engine_helpers.h"
#include "gguf/gguf.h"

namespace gemma {
namespace {

using namespace gemma::test;

// No rounding is allowed for: every operation computes a row in one order of arithmetic, whatever else is in the batch
// and however many threads share the work (kernels.h), so results are equal to the bit.
TEST("logits do not depend on threads, chunks or instruction set's batch shapes") {
  for (const char* file : {"text-a-f16.gguf", "text-a-q4_0.gguf", "text-k-mix.gguf"}) {
    for (const std::string& isa : model_isas()) {
      for (const KvType kv : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
        LoadOptions o = options(file);
        o.isa = isa;
        o.kv_type = kv;
        o.n_threads = 1;
        const std::vector<TokenId> tokens = some_tokens(83);
        const std::shared_ptr<Engine> one = Engine::load(o);
        CHECK(one->info().isa == isa);
        const std::vector<float> want = logits_of(*one, tokens);
        for (const int n_batch : {1, 7, 64, 512}) {
          o.n_batch = n_batch;
          o.n_threads = n_batch == 7 ? 3 : 2;
          CHECK(same_bits(logits_of(*Engine::load(o), tokens), want));
        }
      }
    }
  }
}

// The bounds are those of test/api/exactness.test.ts, which has all cases; here for processors that Node does not
// reach.
TEST("logits of every instruction set agree with transformers'") {
  for (const char* name : {"text-a", "text-a-q4_0", "text-k-mix"}) {
    const bool is_float = std::string(name) == "text-a";
    const Golden golden(name, "long");
    for (const std::string& isa : model_isas()) {
      LoadOptions o = options(is_float ? "text-a-f16.gguf" : std::string(name) + ".gguf");
      o.isa = isa;
      if (is_float) o.kv_type = KvType::kF32;
      const std::vector<float> got = logits_of(*Engine::load(o), golden.tokens);
      CHECK(got.size() == golden.logits.size() && !got.empty());
      if (!is_float) {
        CHECK(normalised_error(got, golden.logits) < 0.08);
        continue;
      }
      CHECK(worst_row(got, golden.logits, static_cast<int>(got.size() / golden.tokens.size())) < 3e-4);
    }
  }
}

TEST("positions past two segments: prefill in chunks equals one by one") {
  LoadOptions o = options("text-a-q4_0.gguf");
  const std::vector<TokenId> tokens = some_tokens(2200);
  const std::vector<float> want = logits_of(*Engine::load(o), tokens, false);
  for (const int n_batch : {1, 100}) {
    o.n_batch = n_batch;
    CHECK(same_bits(logits_of(*Engine::load(o), tokens, false), want));
  }
}

TEST("logits and sampled tokens do not depend on company") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-q4_0.gguf"));
  const std::vector<TokenId> tokens = some_tokens(150);
  const std::vector<float> alone = logits_of(*engine, tokens);
  const auto lonely = start(*engine, sampled(some_tokens(40, 5), 60, 17));
  lonely->ended.wait();

  std::vector<std::shared_ptr<Generation>> company;
  for (int i = 0; i < 5; ++i)
    company.push_back(start(*engine, sampled(some_tokens(30 + 17 * i, i + 2), 200, static_cast<uint64_t>(i))));
  const auto again = start(*engine, sampled(some_tokens(40, 5), 60, 17));
  CHECK(same_bits(logits_of(*engine, tokens), alone));
  again->ended.wait();
  CHECK(again->tokens == lonely->tokens && again->text == lonely->text && lonely->tokens.size() == 60);
  for (const auto& g : company) {
    g->ended.wait();
    CHECK(g->finish.reason == FinishReason::kLength && g->tokens.size() == 200 && g->n_finish == 1);
  }
}

TEST("greedy generation takes the best logit of each step") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  std::vector<TokenId> tokens = some_tokens(20);
  const auto g = start(*engine, greedy(tokens, 12));
  g->ended.wait();
  CHECK(g->finish.reason == FinishReason::kLength && g->finish.n_input == 20 && g->finish.n_output == 12);
  for (const TokenId token : g->tokens) {
    const std::vector<float> row = logits_of(*engine, tokens, false);
    std::vector<float> allowed = row;
    const SpecialIds& special = engine->tokenizer().special();
    for (const TokenId id : {special.start_of_image, special.end_of_image, special.image_soft}) {
      if (id >= 0 && id < static_cast<TokenId>(allowed.size())) allowed[static_cast<size_t>(id)] = -1e30f;
    }
    CHECK(token == static_cast<TokenId>(std::max_element(allowed.begin(), allowed.end()) - allowed.begin()));
    tokens.push_back(token);
  }
}

TEST("the end token, a stop sequence and the limit end a generation") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  const auto free_run = start(*engine, greedy(some_tokens(9, 3), 30));
  free_run->ended.wait();
  CHECK(free_run->text.size() > 6);

  GenerateParams p = greedy(some_tokens(9, 3), 30);
  p.stop_sequences = {free_run->text.substr(3, 3)};
  const auto stopped = start(*engine, std::move(p));
  stopped->ended.wait();
  CHECK(stopped->finish.reason == FinishReason::kStop && stopped->finish.matched_stop == free_run->text.substr(3, 3));
  CHECK(stopped->text == free_run->text.substr(0, free_run->text.find(free_run->text.substr(3, 3))));

  p = greedy(some_tokens(9, 3), 30);
  p.stop_at_end_token = true;
  p.sampling.logit_bias = {{engine->tokenizer().special().eos, 1000.0f}};
  const auto ended = start(*engine, std::move(p));
  ended->ended.wait();
  CHECK(ended->finish.reason == FinishReason::kStop && ended->tokens.size() == 1 && ended->text.empty());

  const auto none = start(*engine, greedy(some_tokens(9, 3), 0));
  none->ended.wait();
  CHECK(none->finish.reason == FinishReason::kLength && none->tokens.empty());
}

TEST("a prompt that does not fit is refused before any work") {
  LoadOptions o = options("text-a-f16.gguf");
  o.n_ctx = 64;
  const std::shared_ptr<Engine> engine = Engine::load(o);
  CHECK_THROWS(kContextFull, "CONTEXT_OVERFLOW", start(*engine, greedy(some_tokens(65), 1)));
  CHECK_THROWS(kContextFull, "CONTEXT_OVERFLOW", start(*engine, greedy(some_tokens(64), -1)));
  CHECK_THROWS(kContextFull, "CONTEXT_OVERFLOW", start(*engine, greedy(some_tokens(60), 5)));
  CHECK_THROWS(kContextFull, "CONTEXT_OVERFLOW", logits_of(*engine, some_tokens(65)));
  CHECK_THROWS(kInvalidArgument, "EMPTY", start(*engine, greedy({}, 5)));
  CHECK_THROWS(kInvalidArgument, "BAD_TOKEN", start(*engine, greedy({2, 448}, 5)));
  CHECK_THROWS(kInvalidArgument, "BAD_TOKEN", start(*engine, greedy({-1}, 5)));
  const auto full = start(*engine, greedy(some_tokens(60), 4));
  const auto rest = start(*engine, greedy(some_tokens(60), -1));
  GenerateParams cut = greedy(some_tokens(60), 100);
  cut.overflow_is_error = false;
  const auto truncated = start(*engine, std::move(cut));
  for (const auto& g : {full, rest, truncated}) {
    g->ended.wait();
    CHECK(g->finish.reason == FinishReason::kLength && g->tokens.size() == 4);
  }
  o.n_ctx = 5000;
  CHECK_THROWS(kInvalidArgument, "CONTEXT_SIZE", Engine::load(o));
}

TEST("an answer that is cut off within a character ends before it") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  const Tokenizer& tokenizer = engine->tokenizer();
  const auto byte_token = [&](std::string_view byte) {
    for (TokenId id = 0; id < tokenizer.n_vocab(); ++id) {
      if (tokenizer.token_bytes(id) == byte && tokenizer.decode(std::vector<TokenId>{id}) == "\uFFFD") return id;
    }
    return TokenId{-1};
  };
  const TokenId lead = byte_token("\xF0");
  CHECK(lead >= 0);
  // Every token is the first byte of a character, so all but the last are wrong and that one is cut.
  GenerateParams p = greedy(some_tokens(9, 3), 3);
  p.sampling.logit_bias = {{lead, 1000.0f}};
  const auto cut = start(*engine, p);
  cut->ended.wait();
  CHECK(cut->tokens == std::vector<TokenId>(3, lead) && cut->text == "\uFFFD\uFFFD");
  CHECK(cut->finish.reason == FinishReason::kLength && cut->finish.n_output == 3);
  // A model that ends its answer there has written what it has written.
  p.stop_at_end_token = true;
  p.sampling.repetition_penalty = 1e6f;  // the end token comes after the byte
  p.sampling.logit_bias.emplace_back(tokenizer.special().eos, 900.0f);
  const auto ended = start(*engine, p);
  ended->ended.wait();
  CHECK(ended->finish.reason == FinishReason::kStop && ended->text == "\uFFFD");
}

TEST("damaged weights are an error of the request, not a crash or nonsense") {
  std::ifstream in(data("text-a-f16.gguf"), std::ios::binary);
  std::vector<char> bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const auto file = GgufFile::parse({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
  for (const char* name :
       {"output_norm.weight", "blk.3.attn_norm.weight", "blk.2.ffn_down.weight", "blk.5.attn_k.weight"}) {
    for (const bool nan : {true, false}) {
      std::vector<char> damaged = bytes;
      const Tensor* tensor = file->find_tensor(name);
      const size_t offset = static_cast<size_t>(reinterpret_cast<const char*>(tensor->data) - bytes.data());
      const uint32_t bits = nan ? 0x7fc00000u : 0x7f800000u;
      const uint16_t half = nan ? 0x7e00 : 0x7c00;
      if (tensor->type == TensorType::kF32) {
        std::memcpy(damaged.data() + offset + 8, &bits, 4);
      } else {
        std::memcpy(damaged.data() + offset + 8, &half, 2);
      }
      const std::string path = (std::filesystem::temp_directory_path() /
                                ("gemma-native-damaged-" +
                                 std::to_string(std::hash<std::thread::id>()(std::this_thread::get_id())) + ".gguf"))
                                   .string();
      std::ofstream(path, std::ios::binary).write(damaged.data(), static_cast<std::streamsize>(damaged.size()));
      LoadOptions o;
      o.path = path;
      o.mmap = false;
      o.n_threads = 1;
      const std::shared_ptr<Engine> engine = Engine::load(o);
      std::filesystem::remove(path);
      const auto g = start(*engine, greedy(some_tokens(20), 5));
      g->ended.wait();
      CHECK(g->finish.reason == FinishReason::kError && g->finish.error != nullptr);
      CHECK(g->finish.error->code() == ErrorCode::kNonFinite && g->finish.error->detail() == "NONFINITE");
      CHECK_THROWS(kNonFinite, "NONFINITE", logits_of(*engine, some_tokens(20)));
    }
  }
}

TEST("what cannot be loaded is refused with a reason") {
  LoadOptions o = options("text-a-f16.gguf");
  o.isa = "sse9";
  CHECK_THROWS(kBackendUnavailable, "ISA", Engine::load(o));
  o = options("text-a-f16.gguf");
  o.device = "cuda";
  CHECK_THROWS(kBackendUnavailable, "DEVICE", Engine::load(o));
  o = options("text-27b-f16.gguf");
  o.kv_type = KvType::kQ8_0;  // head size 16
  CHECK_THROWS(kInvalidArgument, "KV_TYPE", Engine::load(o));
  o = options("no-such-file.gguf");
  CHECK_THROWS(kFile, "", Engine::load(o));
  const std::atomic<bool> cancel{true};
  o = options("text-a-f16.gguf");
  o.cancel = &cancel;
  CHECK_THROWS(kDisposed, "CANCELLED", Engine::load(o));
}

}  // namespace
}  // namespace gemma

TEST_MAIN
