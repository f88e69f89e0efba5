// Whole models on the emulated device of every chip: logits against transformers' with the bounds that the CPU has
// (test/api/exactness.test.ts), equal to the bit however a prompt is cut and in whatever company, images, the real
// model. GEMMA_TEST_CHIPS="sm_80 gfx942" runs only those, with the slow tests too, and GEMMA_TEST_MODEL_CHIPS says so
// of these tests alone; with GEMMA_TEST_REPORT set the largest errors are printed beside their bounds.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <sstream>

#include "backend/gpu/emulator/emulated_device.h"
#include "check.h"
#include "engine_helpers.h"

namespace gemma {
namespace {

using namespace gemma::test;

// The slow tests take one chip with lanes of 32 and one of 64, unless told; the others all.
std::vector<std::string> chips(bool all = true) {
  std::vector<std::string> names;
  const char* wanted = std::getenv("GEMMA_TEST_MODEL_CHIPS");
  if (wanted == nullptr) wanted = std::getenv("GEMMA_TEST_CHIPS");
  if (wanted != nullptr) {
    std::istringstream words(wanted);
    for (std::string word; words >> word;) names.push_back(word);
    return names;
  }
  if (!all) return {"sm_80", "gfx942"};
  for (const gpu::EmulatedChip* chip : gpu::emulated_chips()) names.emplace_back(chip->name);
  return names;
}

LoadOptions on(const std::string& chip, const std::string& file) {
  LoadOptions o = options(file);
  o.device = "emulated:" + chip;
  return o;
}

// Mean Kullback-Leibler divergence of the rows.
double divergence(std::span<const float> got, std::span<const float> want, size_t n_vocab) {
  double sum = 0;
  for (size_t row = 0; row < want.size(); row += n_vocab) {
    double scale[2] = {0, 0};
    for (size_t i = row; i < row + n_vocab; ++i) {
      scale[0] += std::exp(static_cast<double>(want[i]));
      scale[1] += std::exp(static_cast<double>(got[i]));
    }
    for (size_t i = row; i < row + n_vocab; ++i) {
      const double p = std::exp(static_cast<double>(want[i])) / scale[0];
      sum += p * (static_cast<double>(want[i]) - std::log(scale[0]) - static_cast<double>(got[i]) + std::log(scale[1]));
    }
  }
  return sum / (static_cast<double>(want.size()) / static_cast<double>(n_vocab));
}

// The largest value of each kind, and its bound, by chip and what was measured.
std::map<std::pair<std::string, std::string>, std::pair<double, double>> figures;

void check_below(const std::string& chip, const std::string& what, double value, double bound) {
  auto& [largest, its_bound] = figures[{chip, what}];
  if (!(value / bound <= largest / its_bound)) largest = value, its_bound = bound;
  if (!(value < bound)) {
    fail(__FILE__, __LINE__,
         chip + ", " + what + ": " + std::to_string(value) + ", expected less than " + std::to_string(bound));
  }
}

void check_rows(const std::string& chip, const std::string& what, std::span<const float> got,
                std::span<const float> want, size_t n_vocab, double bound) {
  CHECK(got.size() == want.size() && !got.empty());
  for (size_t i = 0; i < got.size(); i += n_vocab)
    check_below(chip, what, normalised_error(got.subspan(i, n_vocab), want.subspan(i, n_vocab)), bound);
}

TEST("float models agree with transformers'") {
  for (const std::string& chip : chips(false)) {
    for (const auto& [name, cases] : std::vector<std::pair<std::string, std::vector<std::string>>>{
             {"text-a", {"bos", "text", "unicode", "window-1", "window+0", "window+1", "window+2", "long"}},
             {"text-27b", {"text", "window+1", "long"}}}) {
      for (const KvType kv : {KvType::kF32, KvType::kF16}) {
        LoadOptions o = on(chip, name + "-f16.gguf");
        o.kv_type = kv;
        const std::shared_ptr<Engine> engine = Engine::load(o);
        CHECK(engine->info().device == "emulated:" + chip && engine->info().isa == chip);
        for (const std::string& c : cases) {
          const Golden golden(name, c);
          const std::vector<float> got = logits_of(*engine, golden.tokens);
          if (kv == KvType::kF32) {
            check_rows(chip, "float weights, f32 cache: a position's logits", got, golden.logits,
                       got.size() / golden.tokens.size(), 3e-4);
          } else {
            check_below(chip, "float weights, f16 cache: all logits", normalised_error(got, golden.logits),
                        name == "text-27b" ? 3e-3 : 2e-3);
          }
        }
      }
    }
  }
}

TEST("quantised models agree with transformers'") {
  for (const std::string& chip : chips()) {
    for (const char* name : {"text-a-q4_0", "text-k-mix"}) {
      const std::shared_ptr<Engine> engine = Engine::load(on(chip, std::string(name) + ".gguf"));
      for (const char* c : {"text", "long"}) {
        const Golden golden(name, c);
        const std::vector<float> got = logits_of(*engine, golden.tokens);
        CHECK(got.size() == golden.logits.size() && !got.empty());
        check_below(chip, "Q4_0 and K-quants: all logits", normalised_error(got, golden.logits), 0.08);
        check_below(chip, "Q4_0 and K-quants: mean KL divergence",
                    divergence(got, golden.logits, got.size() / golden.tokens.size()), 0.012);
      }
    }
  }
}

TEST("every type agrees with transformers' as on the CPU") {
  const GoldenFile golden = read_safetensors(data("types/types.safetensors"));
  const std::vector<TokenId> tokens = [] {
    std::ifstream in(data("types/types.json"));
    const std::string json((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    std::vector<TokenId> ids;
    const size_t at = json.find("\"ids\": [") + 8;
    std::istringstream list(json.substr(at, json.find(']', at) - at));
    for (std::string id; std::getline(list, id, ',');) ids.push_back(static_cast<TokenId>(std::stoi(id)));
    return ids;
  }();
  CHECK(tokens.size() == 64);
  for (const std::string& chip : chips()) {
    int n_types = 0;
    for (const auto& entry : std::filesystem::directory_iterator(data("types"))) {
      if (entry.path().extension() != ".gguf") continue;
      const std::string type = entry.path().stem();
      if (!golden.contains(type + ".logits")) continue;  // float matrices, whose bounds are the float models'
      LoadOptions o = options("types/" + type + ".gguf");
      o.isa = "ref";  // x in 8-bit integers as on the device; wider sets may have more exact arithmetic for prompts
      const std::vector<float> cpu = logits_of(*Engine::load(o), tokens);
      o.isa.clear();
      o.device = "emulated:" + chip;
      const std::vector<float> got = logits_of(*Engine::load(o), tokens);
      const std::vector<float> want = golden.at(type + ".logits").as<float>();
      CHECK(got.size() == want.size() && !got.empty());
      check_below(chip, "fourteen types: all logits", normalised_error(got, want), 0.08);
      // The same codes; sums in another order now and then round an activation the other way.
      check_below(chip, "fourteen types: against the CPU's error", normalised_error(got, want),
                  1.05 * normalised_error(cpu, want) + 1e-4);
      ++n_types;
    }
    CHECK(n_types == 14);
  }
}

// Adapters of PEFT with its logits, and rows with different ones in a batch.
TEST("adapters agree with PEFT's") {
  const GoldenFile golden = read_safetensors(data("adapters/logits.safetensors"));
  std::vector<TokenId> tokens;
  for (const double id : golden_numbers("adapters/adapters", "", "ids")) tokens.push_back(static_cast<TokenId>(id));
  const std::vector<std::string> names = {"qv-layer0", "bf16", "lora-bias",  "dora",          "saved-norm",
                                          "embed",     "head", "token-rows", "plain-f16.gguf"};
  for (const std::string& chip : chips(false)) {
    LoadOptions o = on(chip, "adapters/text-f16.gguf");
    o.kv_type = KvType::kF32;
    for (const std::string& name : names) o.adapters.push_back(golden_adapter(name));
    const std::shared_ptr<Engine> engine = Engine::load(o);
    const auto check = [&](const std::string& name, std::vector<AdapterUse> adapters) {
      const std::vector<float> got = logits_of(*engine, tokens, false, {}, std::move(adapters));
      const std::vector<float> want = golden.at(name).as<float>();
      CHECK(got.size() == want.size() && !got.empty());
      check_below(chip, "adapters: a position's logits", normalised_error(got, want), 3e-4);
    };
    check("base-text", {});
    for (const std::string& name : names) check(name, {{name, 1}});
    std::vector<GenerateParams> asked;
    for (const std::vector<AdapterUse>& adapters : std::vector<std::vector<AdapterUse>>{
             {}, {{"dora", 1}}, {{"bf16", 0.5f}, {"head", -1}}, {{"token-rows", 1}}, {{"dora", 1}}}) {
      asked.push_back(sampled(some_tokens(20, static_cast<int>(asked.size()) + 3), 8, asked.size()));
      asked.back().adapters = adapters;
    }
    std::vector<std::vector<TokenId>> alone;
    for (const GenerateParams& params : asked) {
      const auto g = start(*engine, params);
      g->ended.wait();
      alone.push_back(g->tokens);
    }
    std::vector<std::shared_ptr<Generation>> together;
    for (const GenerateParams& params : asked) together.push_back(start(*engine, params));
    for (size_t i = 0; i < asked.size(); ++i) {
      together[i]->ended.wait();
      CHECK(together[i]->tokens == alone[i] && alone[i].size() == 8);
    }
  }
}

// One order of arithmetic: chunks of one row (dot products), a few, and many (matrix instructions).
TEST("logits do not depend on how a prompt is cut") {
  for (const std::string& chip : chips(false)) {
    for (const char* file : {"text-a-f16.gguf", "text-a-q4_0.gguf", "text-k-mix.gguf"}) {
      for (const KvType kv : {KvType::kF16, KvType::kQ8_0}) {
        LoadOptions o = on(chip, file);
        o.kv_type = kv;
        const std::vector<TokenId> tokens = some_tokens(83);
        const std::vector<float> want = logits_of(*Engine::load(o), tokens);
        for (const int n_batch : {1, 7, 33}) {
          o.n_batch = n_batch;
          CHECK(same_bits(logits_of(*Engine::load(o), tokens), want));
        }
      }
    }
  }
}

TEST("candidates have the log-probabilities of their logits behind the prompt, to the bit") {
  for (const std::string& chip : chips(false)) {
    const std::shared_ptr<Engine> engine = Engine::load(on(chip, "text-a-q4_0.gguf"));
    const std::vector<TokenId> prompt = some_tokens(41);
    const std::vector<std::vector<TokenId>> candidates = {some_tokens(3, 2), {9}, some_tokens(7, 2), some_tokens(2, 5)};
    const std::vector<double> want = scores_by_logits(*engine, prompt, candidates);
    CHECK(scores_of(*engine, prompt, candidates) == want);
    wait_until([&] { return engine->stats().kv_pages_in_use == 0; });
  }
}

TEST("positions past two segments, in chunks") {
  for (const std::string& chip : chips(false)) {
    LoadOptions o = on(chip, "text-a-q4_0.gguf");
    const std::vector<TokenId> tokens = some_tokens(600);
    const std::vector<float> want = logits_of(*Engine::load(o), tokens, false);
    o.n_batch = 100;
    CHECK(same_bits(logits_of(*Engine::load(o), tokens, false), want));
  }
}

TEST("tokens do not depend on company") {
  for (const std::string& chip : chips(false)) {
    const std::shared_ptr<Engine> engine = Engine::load(on(chip, "text-a-q4_0.gguf"));
    const auto lonely = start(*engine, sampled(some_tokens(40, 5), 20, 17));
    lonely->ended.wait();
    std::vector<std::shared_ptr<Generation>> company;
    for (int i = 0; i < 3; ++i)
      company.push_back(start(*engine, sampled(some_tokens(30 + 17 * i, i + 2), 30, static_cast<uint64_t>(i))));
    const auto again = start(*engine, sampled(some_tokens(40, 5), 20, 17));
    again->ended.wait();
    CHECK(again->tokens == lonely->tokens && again->text == lonely->text && lonely->tokens.size() == 20);
    for (const auto& g : company) {
      g->ended.wait();
      CHECK(g->finish.reason == FinishReason::kLength);
    }
  }
}

constexpr int kSide = 112;
constexpr size_t kImageBytes = size_t{kSide} * kSide * 3;
constexpr int kImageRows = 16;
constexpr int kDim = 64;
constexpr TokenId kSoft = 448;

std::vector<uint8_t> pixels_of(const GoldenFile& golden, const std::string& name) {
  const std::vector<uint8_t> planes = golden.at(name + ".pixel_levels").as<uint8_t>();  // [n, 3, size, size]
  constexpr size_t kArea = size_t{kSide} * kSide;
  std::vector<uint8_t> pixels(planes.size());
  for (size_t i = 0; i < planes.size(); ++i)
    pixels[(i / kImageBytes * kArea + i % kArea) * 3 + i / kArea % 3] = planes[i];
  return pixels;
}

std::vector<float> encode(Engine& engine, std::vector<uint8_t> pixels) {
  std::promise<std::vector<float>> done;
  const int n = static_cast<int>(pixels.size() / kImageBytes);
  const auto request = engine.encode_images(
      {std::move(pixels), n, {}}, [](double) {},
      [&](std::vector<float>&& embeddings, std::shared_ptr<const Error> error) {
        done.set_value(error ? std::vector<float>() : std::move(embeddings));
      });
  return done.get_future().get();
}

TEST("images: embeddings and logits agree with transformers'") {
  const GoldenFile golden = read_safetensors(data("mm-a.safetensors"));
  for (const std::string& chip : chips(false)) {
    for (const Arithmetic arithmetic : {Arithmetic::kExact, Arithmetic::kFast}) {
      const bool exact = arithmetic == Arithmetic::kExact;
      LoadOptions o = on(chip, "mm-a-f16.gguf");
      o.mmproj_path = data("mmproj-mm-a-f16.gguf");
      o.kv_type = KvType::kF32;
      o.vision_arithmetic = arithmetic;
      const std::shared_ptr<Engine> engine = Engine::load(o);
      for (const std::string name : {"img-square", "img-photo", "img-two", "img-wide-pas"}) {
        const Golden want("mm-a", name);
        const std::vector<float> embeddings = encode(*engine, pixels_of(golden, name));
        const std::vector<float> reference = golden.at(name + ".image_embeds").as<float>();
        CHECK(embeddings.size() == reference.size());
        check_below(chip, exact ? "image embeddings, exact" : "image embeddings, fast arithmetic",
                    normalised_error(embeddings, reference), exact ? 3e-4 : 0.03);
        if (!exact) continue;
        std::vector<PromptImage> images;
        auto next = embeddings.begin();
        for (size_t i = 0; i < want.tokens.size(); ++i) {
          if (want.tokens[i] != kSoft) continue;
          images.push_back({static_cast<int>(i), {next, next + kImageRows * kDim}});
          next += kImageRows * kDim;
          i += kImageRows - 1;
        }
        std::vector<float> got = logits_of(*engine, want.tokens, true, std::move(images));
        const size_t n_vocab = got.size() / want.tokens.size();
        got.erase(got.begin(),
                  got.end() - static_cast<std::ptrdiff_t>(want.logits.size()));  // the last ones are golden
        check_rows(chip, "text after images: a position's logits", got, want.logits, n_vocab, 3e-4);
      }
    }
  }
}

TEST("an unknown chip is refused") {
  CHECK_THROWS(kBackendUnavailable, "DEVICE", Engine::load(on("sm_1", "text-a-f16.gguf")));
}

TEST("report") {
  if (std::getenv("GEMMA_TEST_REPORT") == nullptr) return;
  for (const auto& [key, value] : figures)
    std::printf("figure: %s | %s | %.3g | %.3g\n", key.first.c_str(), key.second.c_str(), value.first, value.second);
}

}  // namespace
}  // namespace gemma

TEST_MAIN
