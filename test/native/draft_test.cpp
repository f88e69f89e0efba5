// Drafting on the tiny models: whatever is guessed, the tokens, texts and scores are those of plain decoding.
#include "runtime/draft.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <random>
#include <thread>

#include "check.h"
#include "engine_helpers.h"
#include "gguf/gguf.h"

namespace gemma {
namespace {

using namespace gemma::test;

LoadOptions with_draft(const std::string& file, const std::string& draft) {
  LoadOptions o = options(file);
  o.draft_path = data(draft);
  return o;
}

// A prompt that repeats itself, and so is continued by repetition now and then.
std::vector<TokenId> repetitive(int n, int seed = 1) {
  const std::vector<TokenId> some = some_tokens(12, seed);
  std::vector<TokenId> tokens;
  for (int i = 0; i < n; ++i) tokens.push_back(some[static_cast<size_t>(i) % some.size()]);
  return tokens;
}

GenerateParams drafted(GenerateParams p, DraftMode mode, int n_draft = -1) {
  p.draft = mode;
  p.n_draft = n_draft;
  return p;
}

std::shared_ptr<Generation> run(Engine& engine, GenerateParams p) {
  auto g = start(engine, std::move(p));
  g->ended.wait();
  return g;
}

// Pages are counted when the engine thread comes round.
bool all_pages_back(Engine& engine) {
  for (int i = 0; i < 500 && engine.stats().kv_pages_in_use != 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  return engine.stats().kv_pages_in_use == 0 && engine.stats().kv_bytes_resident == 0;
}

// Settings that reach every part of the sampler.
std::vector<SamplingParams> sampling_cases() {
  std::vector<SamplingParams> cases(9);
  cases[0].temperature = 0;
  cases[1].temperature = 0, cases[1].repetition_penalty = 1.3f, cases[1].penalty_window = 7;
  cases[2].temperature = 0.5f, cases[2].top_k = 4;
  cases[3].temperature = 1;
  cases[4].temperature = 0.7f, cases[4].top_k = 0, cases[4].top_p = 1;
  cases[5].temperature = 0.6f, cases[5].frequency_penalty = 0.3f, cases[5].penalty_window = -1;
  cases[6].temperature = 0.3f, cases[6].min_p = 0.2f, cases[6].presence_penalty = -0.5f;
  cases[7].temperature = 0.4f, cases[7].logit_bias = {{20, 3.0f}, {21, 3.0f}, {22, -1e30f}};
  cases[8].temperature = 0.2f, cases[8].top_k = 3;
  for (size_t i = 0; i < cases.size(); ++i) {
    cases[i].seed = 100 + i;
    cases[i].n_logprobs = 3;
  }
  return cases;
}

TEST("step cost: follows a straight line, forgets, is not misled by one slow step, stays sane") {
  StepCost cost(0);
  CHECK(cost.ms(0) == 0 && cost.ms(1) > 0 && cost.ms(8) > cost.ms(1) && cost.ms(8) < 2 * cost.ms(1));
  for (int i = 0; i < 200; ++i) {
    const int rows = i % 3 == 0 ? 9 : 1;
    cost.add(rows, 10 + 2 * rows);
  }
  CHECK(std::fabs(cost.ms(1) - 12) < 0.5 && std::fabs(cost.ms(5) - 20) < 0.5 && std::fabs(cost.ms(16) - 42) < 1);
  const double before = cost.ms(4);
  cost.add(4, 1e6);
  CHECK(cost.ms(4) < 1.2 * before);
  for (int i = 0; i < 400; ++i) cost.add(i % 2 == 0 ? 4 : 1, i % 2 == 0 ? 5 : 5);
  CHECK(std::fabs(cost.ms(1) - 5) < 0.3 && std::fabs(cost.ms(16) - 5) < 1);
  for (int i = 0; i < 400; ++i) cost.add(i % 2 == 0 ? 4 : 1, i % 2 == 0 ? 1 : 5);  // less for more: noise
  for (int rows = 1; rows < 100; ++rows) CHECK(cost.ms(rows + 1) >= cost.ms(rows) && cost.ms(rows) > 0);
  for (int i = 0; i < 400; ++i) cost.add(i % 2 == 0 ? 16 : 8, i % 2 == 0 ? 1000 : 5);
  CHECK(cost.ms(1) > 0 && cost.ms(16) <= 16 * cost.ms(1) * 1.0001);
}

TEST("prompt lookup: copies what followed an earlier occurrence, and knows its chances") {
  std::mt19937 random(7);
  std::vector<TokenId> guesses;
  std::vector<double> chances;
  for (const int n_symbols : {2, 5, 40, 100000}) {
    PromptLookup lookup;
    std::vector<TokenId> tokens;
    int n_found = 0;
    for (int step = 0; step < 2000; ++step) {
      for (int i = 0; i < 1 + step % 3; ++i)
        tokens.push_back(static_cast<TokenId>(random() % static_cast<unsigned>(n_symbols)));
      lookup.extend(tokens);
      lookup.propose(tokens, kMaxDraft, &guesses, &chances);
      CHECK(guesses.size() == chances.size() && (guesses.empty() || guesses.size() == kMaxDraft));
      if (guesses.empty()) continue;
      ++n_found;
      // Some earlier place has the last two tokens and then the guesses, as far as it goes.
      bool found = false;
      for (size_t from = 2; from < tokens.size() && !found; ++from) {
        found = tokens[from - 2] == tokens[tokens.size() - 2] && tokens[from - 1] == tokens.back();
        for (size_t i = 0; i < guesses.size() && found; ++i)
          found = guesses[i] == (from + i < tokens.size() ? tokens[from + i] : guesses[from + i - tokens.size()]);
      }
      CHECK(found);
      for (size_t i = 0; i < chances.size(); ++i) CHECK(chances[i] > 0 && chances[i] <= (i == 0 ? 1 : chances[i - 1]));
    }
    if (n_symbols <= 5) CHECK(n_found > 1900);
    // Chance level: guesses of random text are right as often as any symbol.
    if (n_symbols == 5) CHECK(!chances.empty() && chances[0] < 0.6);
    if (n_symbols == 100000) CHECK(n_found < 100);
  }

  // The longest occurrence counts: "1 2 3 4 9" before "7 3 4 8".
  PromptLookup lookup;
  std::vector<TokenId> tokens = {1, 2, 3, 4, 9, 7, 3, 4, 8, 1, 2, 3, 4};
  lookup.extend(tokens);
  lookup.propose(tokens, 2, &guesses, &chances);
  CHECK(guesses == (std::vector<TokenId>{9, 7}));
  // The latest of equals, and one token at a time comes to the same.
  tokens = {5, 6, 1, 5, 6, 2, 5, 6};
  PromptLookup slow;
  for (size_t n = 1; n <= tokens.size(); ++n) slow.extend(std::span(tokens).first(n));
  slow.propose(tokens, 3, &guesses, &chances);
  CHECK(guesses == (std::vector<TokenId>{2, 5, 6}));
  // A period goes on past the end, and becomes nearly certain.
  PromptLookup period;
  tokens.clear();
  for (int i = 0; i < 200; ++i) tokens.push_back(i % 3);
  period.extend(tokens);
  period.propose(tokens, 8, &guesses, &chances);
  CHECK(guesses == (std::vector<TokenId>{2, 0, 1, 2, 0, 1, 2, 0}) && chances[0] > 0.95 && chances[7] > 0.7);
  period.propose(tokens, 0, &guesses, &chances);
  CHECK(guesses.empty());
}

TEST("prompt lookup: same tokens, texts and scores for every sampling, whatever is guessed") {
  for (const char* file : {"text-a-f16.gguf", "text-k-mix.gguf"}) {
    for (const KvType kv : {KvType::kF16, KvType::kQ8_0}) {
      LoadOptions o = options(file);
      o.kv_type = kv;
      const std::shared_ptr<Engine> engine = Engine::load(o);
      int n_drafted = 0;
      int n_accepted = 0;
      for (const SamplingParams& sampling : sampling_cases()) {
        GenerateParams p = greedy(repetitive(50), 150);
        p.sampling = sampling;
        const auto plain = run(*engine, drafted(p, DraftMode::kOff));
        CHECK(plain->tokens.size() == 150 && plain->finish.n_drafted == 0);
        for (const int n_draft : {1, 4, 15, -1}) {
          const auto g = run(*engine, drafted(p, DraftMode::kPromptLookup, n_draft));
          CHECK(same(*g, *plain));
          CHECK(g->finish.n_accepted <= g->finish.n_drafted && g->n_finish == 1);
          n_drafted += g->finish.n_drafted;
          n_accepted += g->finish.n_accepted;
        }
      }
      CHECK(n_accepted > 200 && n_drafted > n_accepted);
      CHECK(all_pages_back(*engine));
    }
  }
}

TEST("draft model: same tokens, texts and scores; a model drafting for itself is always right") {
  struct Pair {
    const char* target;
    const char* draft;
    bool is_same;
  };
  for (const Pair& pair :
       {Pair{"text-a-f16.gguf", "text-a-q4_0.gguf", false}, Pair{"text-a-q4_0.gguf", "text-a-f16.gguf", false},
        Pair{"text-a-f16.gguf", "text-a-f16.gguf", true}}) {
    const std::shared_ptr<Engine> engine = Engine::load(with_draft(pair.target, pair.draft));
    CHECK(engine->info().has_draft_model);
    for (const SamplingParams& sampling : sampling_cases()) {
      GenerateParams p = greedy(some_tokens(70, 3), 100);
      p.sampling = sampling;
      const auto plain = run(*engine, drafted(p, DraftMode::kOff));
      for (const int n_draft : {1, 3, 15, -1}) {
        const auto g = run(*engine, drafted(p, DraftMode::kModel, n_draft));
        CHECK(same(*g, *plain));
        if (pair.is_same) CHECK(g->finish.n_accepted == g->finish.n_drafted);
        if (n_draft > 0) CHECK(g->finish.n_accepted > 0);
        if (pair.is_same && n_draft == 15) CHECK(g->finish.n_drafted >= 90);
      }
    }
    const auto by_default = run(*engine, drafted(greedy(some_tokens(70, 3), 100), DraftMode::kAuto, 4));
    CHECK(by_default->finish.n_drafted > 0);
    CHECK(same(*by_default, *run(*engine, drafted(greedy(some_tokens(70, 3), 100), DraftMode::kOff))));
    CHECK(all_pages_back(*engine));
  }
}

TEST("guesses go on where pages were taken back and computed again") {
  const std::shared_ptr<Engine> engine = Engine::load(with_draft("text-a-f16.gguf", "text-a-q4_0.gguf"));
  GenerateParams p = sampled(repetitive(130), 100, 4);
  p.sampling.n_logprobs = 2;
  const auto plain = run(*engine, drafted(p, DraftMode::kOff));
  p.max_unread = 40;
  for (const DraftMode mode : {DraftMode::kPromptLookup, DraftMode::kModel}) {
    const auto slow = start(*engine, drafted(p, mode, 3));
    lose_pages(*engine, *slow);
    read_all({slow});
    CHECK(same(*slow, *plain));
    CHECK(slow->finish.n_drafted > 0);
    CHECK(all_pages_back(*engine));
  }
}

TEST("a prompt longer than a step, and steps too small for guesses") {
  for (const int n_batch : {1, 2, 7, 40}) {
    LoadOptions o = with_draft("text-a-f16.gguf", "text-a-q4_0.gguf");
    o.n_batch = n_batch;
    const std::shared_ptr<Engine> engine = Engine::load(o);
    const GenerateParams p = sampled(repetitive(130), 60, 4);
    const auto plain = run(*engine, drafted(p, DraftMode::kOff));
    for (const DraftMode mode : {DraftMode::kPromptLookup, DraftMode::kModel})
      CHECK(same(*run(*engine, drafted(p, mode, 15)), *plain));
    CHECK(all_pages_back(*engine));
  }
}

TEST("the end token, stop sequences and the limit end a drafted generation where they end a plain one") {
  const std::shared_ptr<Engine> engine = Engine::load(with_draft("text-a-f16.gguf", "text-a-f16.gguf"));
  const auto check = [&](const GenerateParams& p, FinishReason reason) {
    const auto plain = run(*engine, drafted(p, DraftMode::kOff));
    CHECK(plain->finish.reason == reason);
    for (const DraftMode mode : {DraftMode::kPromptLookup, DraftMode::kModel}) {
      for (const int n_draft : {2, 15}) CHECK(same(*run(*engine, drafted(p, mode, n_draft)), *plain));
    }
  };
  GenerateParams p = greedy(repetitive(60), 90);
  const std::string text = run(*engine, p)->text;
  CHECK(text.size() > 60);
  for (const size_t at :
       {size_t{1}, size_t{9}, size_t{17}, text.size() / 2}) {  // across tokens, at any place in a draft
    for (const size_t length : {size_t{1}, size_t{5}, size_t{30}}) {
      p.stop_sequences = {"never there", text.substr(at, length)};
      check(p, FinishReason::kStop);
    }
  }
  p.stop_sequences.clear();
  for (int limit = 0; limit < 25; ++limit) {
    p.max_tokens = limit;
    check(p, FinishReason::kLength);
  }
  p.max_tokens = 90;
  p.stop_at_end_token = true;
  p.sampling.temperature = 0.8f;
  bool ended = false;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    p.sampling.seed = seed;
    p.sampling.logit_bias = {{engine->tokenizer().special().eos, 1.5f}};
    const auto plain = run(*engine, drafted(p, DraftMode::kOff));
    ended = ended || plain->finish.reason == FinishReason::kStop;
    check(p, plain->finish.reason);
  }
  CHECK(ended);
}

TEST("drafting at the context's end, and past the window of local layers") {
  LoadOptions o = with_draft("text-a-f16.gguf", "text-a-q4_0.gguf");
  for (const int n_ctx : {64, 65, 97, 1300}) {
    o.n_ctx = n_ctx;
    const std::shared_ptr<Engine> engine = Engine::load(o);
    GenerateParams p = greedy(repetitive(n_ctx - 40), -1);
    const auto plain = run(*engine, drafted(p, DraftMode::kOff));
    CHECK(plain->tokens.size() == 40 && plain->finish.reason == FinishReason::kLength);
    for (const DraftMode mode : {DraftMode::kPromptLookup, DraftMode::kModel})
      CHECK(same(*run(*engine, drafted(p, mode, 15)), *plain));
    CHECK(all_pages_back(*engine));
  }
}

TEST("many sequences draft at once, each as it would alone") {
  const std::shared_ptr<Engine> engine = Engine::load(with_draft("text-a-f16.gguf", "text-a-q4_0.gguf"));
  const std::vector<SamplingParams> cases = sampling_cases();
  const auto params = [&](int i) {
    GenerateParams p =
        greedy(i % 2 == 0 ? repetitive(20 + 31 * i, i + 1) : some_tokens(20 + 31 * i, i + 1), 80 + 7 * i);
    p.sampling = cases[static_cast<size_t>(i) % cases.size()];
    return p;
  };
  std::vector<std::shared_ptr<Generation>> plain;
  for (int i = 0; i < 20; ++i) plain.push_back(run(*engine, drafted(params(i), DraftMode::kOff)));
  const std::vector<TokenId> tokens = some_tokens(300);
  const std::vector<float> logits = logits_of(*engine, tokens);
  for (const int n_draft : {-1, 15}) {
    std::vector<std::shared_ptr<Generation>> together;
    for (int i = 0; i < 20; ++i)
      together.push_back(start(*engine, drafted(params(i), static_cast<DraftMode>(i % 4), n_draft)));
    CHECK(same_bits(logits_of(*engine, tokens), logits));
    for (int i = 0; i < 20; ++i) {
      together[static_cast<size_t>(i)]->ended.wait();
      CHECK(same(*together[static_cast<size_t>(i)], *plain[static_cast<size_t>(i)]));
    }
  }
  CHECK(all_pages_back(*engine));
}

TEST("steps given up for a cancelled neighbour change nothing; cancelled ones leave nothing") {
  const std::shared_ptr<Engine> engine = Engine::load(with_draft("text-a-f16.gguf", "text-a-q4_0.gguf"));
  const auto params = [&](int i) { return sampled(repetitive(40 + i, i), 250, static_cast<uint64_t>(i)); };
  std::vector<std::shared_ptr<Generation>> plain;
  for (int i = 0; i < 6; ++i) plain.push_back(run(*engine, drafted(params(i), DraftMode::kOff)));
  const std::vector<TokenId> tokens = some_tokens(400);
  const std::vector<float> logits = logits_of(*engine, tokens);

  for (int repeat = 0; repeat < 3; ++repeat) {
    std::vector<std::shared_ptr<Generation>> together;
    for (int i = 0; i < 6; ++i)
      together.push_back(
          start(*engine, drafted(params(i), i % 2 == 0 ? DraftMode::kModel : DraftMode::kPromptLookup, 12)));
    std::thread other([&] { CHECK(same_bits(logits_of(*engine, tokens), logits)); });
    for (int round = 0; round < 30; ++round) {
      const auto g = start(*engine, drafted(sampled(repetitive(200, round), -1, 1), DraftMode::kModel, 15));
      std::this_thread::sleep_for(std::chrono::microseconds(97 * round));
      g->request->cancel();
      g->ended.wait();
      CHECK(g->finish.reason == FinishReason::kCancelled && g->n_finish == 1);
    }
    other.join();
    for (size_t i = 0; i < together.size(); ++i) {
      together[i]->ended.wait();
      CHECK(same(*together[i], *plain[i]));
    }
    CHECK(all_pages_back(*engine));
  }
  for (int round = 0; round < 5; ++round) {
    const std::shared_ptr<Engine> closed = Engine::load(with_draft("text-a-f16.gguf", "text-a-q4_0.gguf"));
    const auto g = start(*closed, drafted(sampled(repetitive(100), -1, 1), DraftMode::kModel, 15));
    std::this_thread::sleep_for(std::chrono::milliseconds(3 * round));
    closed->close();
    g->ended.wait();
    CHECK(g->finish.reason == FinishReason::kCancelled);
  }
}

TEST("a reader who does not read gets no more than he is allowed") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  const auto plain = run(*engine, drafted(greedy(repetitive(50), 60), DraftMode::kOff));
  GenerateParams p = drafted(greedy(repetitive(50), 60), DraftMode::kPromptLookup, 15);
  p.max_unread = 5;
  const auto slow = start(*engine, std::move(p));
  CHECK(slow->ended.wait_for(std::chrono::milliseconds(50)) == std::future_status::timeout);
  CHECK(slow->n_events.load() == 6);  // prefill progress and five tokens
  while (slow->ended.wait_for(std::chrono::milliseconds(1)) == std::future_status::timeout)
    slow->request->acknowledge(1);
  CHECK(slow->tokens == plain->tokens);
}

TEST("the distribution over seeds is that of plain sampling") {
  const std::shared_ptr<Engine> engine = Engine::load(with_draft("text-a-f16.gguf", "text-a-q4_0.gguf"));
  constexpr int kSeeds = 600;
  constexpr size_t kTokens = 6;
  // Counts of the tokens at each position; seeds of different runs do not overlap, so equality is no tautology.
  const auto histogram = [&](DraftMode mode, uint64_t first_seed, int* n_accepted) {
    std::map<std::pair<size_t, TokenId>, double> counts;
    std::vector<std::shared_ptr<Generation>> all;
    for (uint64_t seed = first_seed; seed < first_seed + kSeeds; ++seed) {
      GenerateParams p = drafted(sampled(repetitive(40), kTokens, seed), mode, 3);
      p.sampling.top_k = 5;
      all.push_back(start(*engine, std::move(p)));
    }
    for (const auto& g : all) {
      g->ended.wait();
      *n_accepted += g->finish.n_accepted;
      for (size_t i = 0; i < kTokens; ++i) ++counts[{i, g->tokens[i]}];
    }
    return counts;
  };
  int n_accepted = 0;
  const auto plain = histogram(DraftMode::kOff, 0, &n_accepted);
  CHECK(n_accepted == 0);
  for (const DraftMode mode : {DraftMode::kPromptLookup, DraftMode::kModel, DraftMode::kOff}) {
    n_accepted = 0;
    const auto other = histogram(mode, static_cast<uint64_t>(mode) * 10000 + 10000, &n_accepted);
    CHECK(mode == DraftMode::kOff || n_accepted > 30);
    // Chi-squared of two samples of one size; rare tokens (fewer than 10 together) of a position are one category.
    double chi2 = 0;
    int freedom = 0;
    for (size_t i = 0; i < kTokens; ++i) {
      std::map<TokenId, std::pair<double, double>> both;
      for (const auto& [key, n] : plain) {
        if (key.first == i) both[key.second].first = n;
      }
      for (const auto& [key, n] : other) {
        if (key.first == i) both[key.second].second = n;
      }
      std::pair<double, double> rest;
      int n_categories = 0;
      const auto add = [&](double a, double b) {
        if (a + b == 0) return;
        chi2 += (a - b) * (a - b) / (a + b);
        ++n_categories;
      };
      for (const auto& [token, n] : both) {
        if (n.first + n.second >= 10) {
          add(n.first, n.second);
        } else {
          rest.first += n.first;
          rest.second += n.second;
        }
      }
      add(rest.first, rest.second);
      freedom += n_categories - 1;
    }
    CHECK(freedom > 20);
    // Five standard deviations of chi-squared; the plain sampler against itself must pass too.
    CHECK(chi2 < freedom + 5 * std::sqrt(2.0 * freedom));
  }
}

// A copy of a tiny model with some bytes changed.
class ChangedFile {
 public:
  ChangedFile(const std::string& name, const std::function<void(std::vector<char>&)>& change) {
    std::ifstream in(data(name), std::ios::binary);
    std::vector<char> bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    change(bytes);
    std::ofstream(path_, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  ~ChangedFile() { std::filesystem::remove(path_); }
  ChangedFile(const ChangedFile&) = delete;
  ChangedFile& operator=(const ChangedFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_ = (std::filesystem::temp_directory_path() /
                       ("gemma-native-draft-" + std::to_string(std::random_device()()) + ".gguf"))
                          .string();
};

TEST("a draft model of another vocabulary, or none, is refused with a reason") {
  LoadOptions o = options("text-a-f16.gguf");
  const ChangedFile other("text-a-q4_0.gguf", [](std::vector<char>& bytes) {
    const std::string piece = "<end_of_turn>";
    const auto at = std::search(bytes.begin(), bytes.end(), piece.begin(), piece.end());
    CHECK(at != bytes.end());
    at[3] = 'X';
  });
  o.draft_path = other.path();
  CHECK_THROWS(kUnsupportedModel, "DRAFT_VOCABULARY", Engine::load(o));
  o.draft_path = data("mmproj-mm-a-f16.gguf");
  CHECK_THROWS(kUnsupportedModel, "", Engine::load(o));
  o.draft_path = data("no-such-file.gguf");
  CHECK_THROWS(kFile, "", Engine::load(o));
  o.draft_path.clear();
  const std::shared_ptr<Engine> engine = Engine::load(o);
  CHECK(!engine->info().has_draft_model);
  CHECK_THROWS(kInvalidArgument, "NO_DRAFT", start(*engine, drafted(greedy(some_tokens(3), 3), DraftMode::kModel)));
  o.draft_path = data("text-a-q4_0.gguf");
  CHECK(Engine::load(o)->info().memory.total_bytes > engine->info().memory.total_bytes);
}

TEST("a damaged draft model guesses nothing and harms nothing") {
  const ChangedFile damaged("text-a-f16.gguf", [](std::vector<char>& bytes) {
    const auto file = GgufFile::parse({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
    const Tensor* tensor = file->find_tensor("output_norm.weight");
    const uint32_t nan = 0x7fc00000u;
    std::memcpy(bytes.data() + (reinterpret_cast<const char*>(tensor->data) - bytes.data()), &nan, 4);
  });
  LoadOptions o = options("text-a-f16.gguf");
  o.draft_path = damaged.path();
  const std::shared_ptr<Engine> engine = Engine::load(o);
  const GenerateParams p = sampled(some_tokens(40), 60, 5);
  const auto g = run(*engine, drafted(p, DraftMode::kModel, 4));
  CHECK(g->finish.n_drafted == 0 && same(*g, *run(*engine, drafted(p, DraftMode::kOff))));
  CHECK(all_pages_back(*engine));
}

TEST("bans hold for guessed rows as well") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  GenerateParams p = greedy(repetitive(30), 50);
  for (TokenId id = 0; id < engine->config().n_vocab; ++id) {
    if (id != 40) p.sampling.logit_bias.emplace_back(id, -std::numeric_limits<float>::infinity());
  }
  const auto g = run(*engine, drafted(p, DraftMode::kPromptLookup, 15));
  CHECK(g->tokens == std::vector<TokenId>(50, 40) && g->finish.n_accepted > 40);
}

}  // namespace
}  // namespace gemma

TEST_MAIN
