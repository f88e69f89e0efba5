// The prefix cache: what it finds and what it holds, and engines with one against engines without.
#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "check.h"
#include "engine_helpers.h"
#include "runtime/prefix_cache.h"

namespace gemma {
namespace {

using namespace gemma::test;

constexpr int kDim = 64;   // of mm-a
constexpr int kRows = 16;  // of an image

EngineStats settled(const Engine& engine) {
  for (;;) {
    const EngineStats stats = engine.stats();
    if (stats.running == 0 && stats.waiting == 0) return stats;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

LoadOptions cached(const std::string& file, uint64_t bytes) {
  LoadOptions o = options(file);
  o.prefix_cache_bytes = bytes;
  return o;
}

std::vector<TokenId> joined(std::vector<TokenId> a, const std::vector<TokenId>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Text that holds neither <bos> nor a marker.
std::vector<TokenId> text(int n, int seed) {
  std::vector<TokenId> tokens = some_tokens(n + 1, seed);
  tokens.erase(tokens.begin());
  return tokens;
}

std::shared_ptr<Generation> ask(Engine& engine, const std::vector<TokenId>& tokens, int n = 12) {
  GenerateParams p = sampled(tokens, n, 5);
  p.sampling.n_logprobs = 3;
  auto g = start(engine, std::move(p));
  g->ended.wait();
  CHECK(g->finish.reason == FinishReason::kLength);
  return g;
}

TEST("hashes of blocks: chained, images by their values and places, and what two prompts have in common") {
  std::vector<TokenId> a = some_tokens(200);
  std::vector<PromptImage> images = {{40, std::vector<float>(3 * kDim, 0.5f)}, {70, std::vector<float>(kDim, 1.0f)}};
  const auto hashes = [](const std::vector<TokenId>& tokens, const std::vector<PromptImage>& with) {
    std::vector<uint64_t> all;
    hash_blocks(tokens, with, &all);
    // In pieces of any size: the same.
    std::vector<uint64_t> grown;
    for (size_t n = 0; n <= tokens.size(); n += 7) hash_blocks(std::span(tokens).first(n), with, &grown);
    hash_blocks(tokens, with, &grown);
    CHECK(all.size() == tokens.size() / kPagePositions && grown == all);
    return all;
  };
  const std::vector<uint64_t> want = hashes(a, images);
  CHECK(std::set<uint64_t>(want.begin(), want.end()).size() == 6);
  const auto first_other = [&](const std::vector<TokenId>& tokens, const std::vector<PromptImage>& with) {
    const std::vector<uint64_t> got = hashes(tokens, with);
    const auto n = std::mismatch(got.begin(), got.end(), want.begin(), want.end()).first - got.begin();
    for (size_t i = static_cast<size_t>(n); i < got.size() && i < want.size(); ++i) CHECK(got[i] != want[i]);
    return n;
  };
  for (const int position : {0, 31, 32, 100, 191, 192}) {
    std::vector<TokenId> b = a;
    b[static_cast<size_t>(position)] ^= 1;
    CHECK(first_other(b, images) == position / kPagePositions);
    CHECK(common_by_hashes(want, a, hashes(b, images), b) == position);
  }
  CHECK(common_by_hashes(want, a, want, a) == 200);
  for (const size_t n : {1u, 31u, 32u, 33u, 130u}) {
    const std::vector<TokenId> b(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(n));
    CHECK(common_by_hashes(want, a, hashes(b, images), b) == static_cast<int>(n));
  }
  std::vector<PromptImage> others = images;
  others[1].embedding.back() = std::nextafter(1.0f, 2.0f);
  CHECK(first_other(a, others) == 2);
  others = images;
  others[0].first = 41;
  CHECK(first_other(a, others) == 1);
  others = {images[0]};
  CHECK(first_other(a, others) == 2);
  CHECK(first_other(a, {}) == 1);
}

TEST("conversations: the next turn, another last question, the same again, a shared beginning; all to the same bits") {
  for (const KvType kv : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    LoadOptions o = options("text-a-f16.gguf");
    o.kv_type = kv;
    const std::shared_ptr<Engine> plain = Engine::load(o);
    const TokenId turn = plain->tokenizer().special().start_of_turn;
    CHECK(turn >= 0);
    o.prefix_cache_bytes = 64 << 20;
    o.n_batch = 100;
    const std::shared_ptr<Engine> engine = Engine::load(o);
    const auto check = [&](const std::vector<TokenId>& tokens, int at_least, int at_most) {
      const auto want = ask(*plain, tokens);
      const auto got = ask(*engine, tokens);
      CHECK(same(*got, *want));
      CHECK(got->finish.n_cached >= at_least && got->finish.n_cached <= at_most);
      return got->tokens;
    };
    const auto say = [&](const std::vector<TokenId>& before, int n, int seed) {
      return joined(joined(before, {turn, 12}), joined(text(n, seed), {turn, 13}));
    };
    const std::vector<TokenId> first = say(joined({2}, text(301, 3)), 40, 4);
    std::vector<TokenId> prompt = first;
    const std::vector<TokenId> answer = check(prompt, 0, 0);
    const std::vector<TokenId> heard = joined(prompt, answer);
    const int n_heard = static_cast<int>(heard.size());
    // The next turn: all but the last token of the answer was computed.
    prompt = say(heard, 75, 5);
    const std::vector<TokenId> second = check(prompt, n_heard - 1, n_heard - 1);
    // Once more: all but the last token of the prompt.
    const int n_prompt = static_cast<int>(prompt.size());
    check(prompt, n_prompt - 1, n_prompt - 1);
    // Another last question: up to where it parts, or where its turn begins.
    check(say(heard, 60, 6), n_heard - 1, n_heard + 2);
    check(say(heard, 90, 7), n_heard - 1, n_heard + 2);
    // Further on, and then back to before the first answer.
    check(say(joined(prompt, second), 50, 8), n_prompt + 11, n_prompt + 11);
    const int n_first = static_cast<int>(first.size());
    check(joined(first, joined({44}, text(70, 9))), n_first, n_first);
    // Another first question.
    check(say(joined({2}, text(301, 3)), 45, 10), 302, 304);
    // Something else.
    check(joined({2}, text(301, 11)), 0, 0);
    // Logits of the last position; all of them are computed, whatever is kept.
    const EngineStats before = settled(*engine);
    CHECK(same_bits(logits_of(*engine, prompt, false), logits_of(*plain, prompt, false)));
    const EngineStats after = settled(*engine);
    CHECK(after.cached_prompt_tokens - before.cached_prompt_tokens == static_cast<uint64_t>(n_prompt - 1));
    CHECK(after.prompt_tokens - before.prompt_tokens == static_cast<uint64_t>(n_prompt));
    CHECK(same_bits(logits_of(*engine, prompt), logits_of(*plain, prompt)));
    CHECK(settled(*engine).cached_prompt_tokens == after.cached_prompt_tokens);
    CHECK(after.prefixes > 0 && after.prefix_bytes > 0 && after.prefix_bytes <= 64 << 20);
  }
}

TEST("a beginning that no marker ends: the third prompt that parts there goes on from there") {
  const std::shared_ptr<Engine> plain = Engine::load(options("text-a-f16.gguf"));
  const std::shared_ptr<Engine> engine = Engine::load(cached("text-a-f16.gguf", 64 << 20));
  const std::vector<TokenId> system = some_tokens(1003, 3);
  for (int i = 0; i < 4; ++i) {
    const std::vector<TokenId> prompt = joined(system, text(600 + i, 20 + i));
    const auto got = ask(*engine, prompt);
    CHECK(same(*got, *ask(*plain, prompt)));
    CHECK(got->finish.n_cached == (i < 2 ? 0 : 1003));
  }
}

TEST("users that come together with one system prompt: it is computed once") {
  const std::shared_ptr<Engine> plain = Engine::load(options("text-a-f16.gguf"));
  const std::vector<TokenId> system = some_tokens(1499, 3);
  std::vector<std::vector<TokenId>> prompts;
  uint64_t n_distinct = system.size();
  for (int i = 0; i < 16; ++i) {
    prompts.push_back(joined(system, joined({50 + i}, text(20 + 7 * i, i + 2))));
    n_distinct += prompts.back().size() - system.size();
  }
  const std::shared_ptr<Engine> engine = Engine::load(cached("text-a-f16.gguf", 64 << 20));
  std::vector<std::shared_ptr<Generation>> all;
  for (const auto& prompt : prompts) all.push_back(start(*engine, greedy(prompt, 9)));
  for (size_t i = 0; i < all.size(); ++i) {
    all[i]->ended.wait();
    const auto want = start(*plain, greedy(prompts[i], 9));
    want->ended.wait();
    CHECK(all[i]->tokens == want->tokens);
  }
  const EngineStats stats = settled(*engine);
  CHECK(stats.prompt_tokens - stats.cached_prompt_tokens <= n_distinct + n_distinct / 20);
  CHECK(stats.prompt_tokens - stats.cached_prompt_tokens >= n_distinct);
}

TEST("whoever computes for others may be cancelled, fail or stop to read: the others go on") {
  const std::shared_ptr<Engine> plain = Engine::load(options("text-a-f16.gguf"));
  const std::vector<TokenId> system = some_tokens(1499, 3);
  const auto prompt = [&](int i) { return joined(system, joined({50 + i}, text(33, i + 2))); };
  std::vector<std::vector<TokenId>> want;
  for (int i = 0; i < 6; ++i) want.push_back(ask(*plain, prompt(i))->tokens);
  for (const uint64_t bytes : {64 << 20, 100 << 10, 1000}) {
    const std::shared_ptr<Engine> engine = Engine::load(cached("text-a-f16.gguf", bytes));
    for (int round = 0; round < 8; ++round) {
      std::vector<std::shared_ptr<Generation>> all;
      for (int i = 0; i < 6; ++i) {
        GenerateParams p = sampled(prompt(i), 12, 5);
        p.sampling.n_logprobs = 3;
        all.push_back(start(*engine, std::move(p)));
      }
      // The first ones, at any moment of their prompts.
      if (round % 2 != 0) wait_until([&] { return all[0]->n_events > round / 3; });
      for (int i = 0; i < 1 + round % 3; ++i) all[static_cast<size_t>(i)]->request->cancel();
      for (size_t i = 0; i < all.size(); ++i) {
        all[i]->ended.wait();
        if (static_cast<int>(i) > round % 3) CHECK(all[i]->tokens == want[i]);
      }
    }
    CHECK(settled(*engine).prefix_bytes <= bytes);
    engine->close();
  }
}

TEST("the cache is bounded, keeps what was used last, and takes nothing that is larger than it") {
  const std::shared_ptr<Engine> engine = Engine::load(cached("text-a-f16.gguf", 400 << 10));
  const std::vector<TokenId> kept = some_tokens(100, 99);
  ask(*engine, kept, 2);
  for (int i = 0; i < 30; ++i) {
    ask(*engine, some_tokens(60 + i, i + 1), 2);
    CHECK(ask(*engine, kept, 2)->finish.n_cached == 99);
    const EngineStats stats = settled(*engine);
    CHECK(stats.prefix_bytes <= 400 << 10 && stats.prefixes >= 1);
  }
  CHECK(ask(*engine, some_tokens(60, 1), 2)->finish.n_cached == 0);  // used longest ago
  ask(*engine, some_tokens(3000, 5), 2);
  CHECK(ask(*engine, kept, 2)->finish.n_cached == 99);
  CHECK(settled(*engine).prefix_bytes <= 400 << 10);
}

// One of many: a prompt, with what was answered, that others go on from.
struct Node {
  std::vector<TokenId> tokens;
  std::vector<PromptImage> images;
};

// Prompts that branch, are edited and cut, with images; cancelled at any moment; several at a time. Each answer is that
// of an engine without a cache, to the bit of its log-probabilities.
void converse(const LoadOptions& with, int n_rounds, uint32_t seed, bool with_images) {
  LoadOptions without = with;
  without.prefix_cache_bytes = 0;
  without.n_batch = 0;
  const std::shared_ptr<Engine> plain = Engine::load(without);
  const std::shared_ptr<Engine> engine = Engine::load(with);
  const TokenId turn = plain->tokenizer().special().start_of_turn;
  std::mt19937 random(seed);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); };
  std::vector<Node> nodes = {{{2}, {}}};
  const auto n_cut = [&](const Node& node, int n) {  // not within an image
    for (const PromptImage& image : node.images) {
      if (image.first < n && n < image.first + kRows) return image.first;
    }
    return n;
  };
  const auto next_prompt = [&] {
    Node node = nodes[static_cast<size_t>(below(static_cast<int>(nodes.size())))];
    if (below(3) == 0) {  // cut anywhere
      const int n = n_cut(node, 1 + below(static_cast<int>(node.tokens.size())));
      node.tokens.resize(static_cast<size_t>(n));
      std::erase_if(node.images, [&](const PromptImage& image) { return image.first >= n; });
    }
    const int n_parts = below(3) + (node.tokens.size() < 3 ? 1 : 0);
    for (int i = 0; i < n_parts; ++i) {
      if (below(2) == 0) node.tokens.push_back(turn);
      if (with_images && below(3) == 0) {
        node.images.push_back({static_cast<int>(node.tokens.size()),
                               std::vector<float>(size_t{kRows} * kDim, 0.1f * static_cast<float>(1 + below(3)))});
        node.tokens.insert(node.tokens.end(), kRows, 0);
      }
      node.tokens = joined(node.tokens, text(1 + below(80), below(4)));
    }
    if (node.tokens.size() > 700) node = nodes[0];
    node.tokens.push_back(14);  // an image's row has logits, too, but nobody asks
    return node;
  };
  int n_cached = 0;
  for (int round = 0; round < n_rounds; ++round) {
    std::vector<Node> asked;
    std::vector<std::shared_ptr<Generation>> got;
    std::vector<std::shared_ptr<Generation>> want;
    const int n_together = 1 + (below(3) == 0 ? below(5) : 0);
    for (int i = 0; i < n_together; ++i) {
      asked.push_back(i > 0 && below(2) == 0 ? asked[0] : next_prompt());
      if (i > 0) asked.back().tokens.back() = 14 + below(5);
      GenerateParams p = sampled(asked.back().tokens, 1 + below(40), random());
      p.images = asked.back().images;
      p.sampling.n_logprobs = 2;
      p.draft = below(2) == 0 ? DraftMode::kOff : DraftMode::kPromptLookup;
      if (p.draft == DraftMode::kPromptLookup) p.n_draft = 1 + below(6);
      want.push_back(start(*plain, p));
      got.push_back(start(*engine, std::move(p)));
    }
    std::vector<bool> cancelled(got.size());
    for (size_t i = 0; i < got.size(); ++i) {
      if (below(5) != 0) continue;
      cancelled[i] = true;
      const int n_events = below(8);
      const auto& g = *got[i];
      wait_until([&] {
        return g.n_events >= n_events || g.ended.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
      });
      got[i]->request->cancel();
    }
    for (size_t i = 0; i < got.size(); ++i) {
      got[i]->ended.wait();
      want[i]->ended.wait();
      n_cached += got[i]->finish.n_cached;
      if (cancelled[i] && got[i]->finish.reason == FinishReason::kCancelled) continue;
      CHECK(same(*got[i], *want[i]));
      asked[i].tokens = joined(asked[i].tokens, got[i]->tokens);
      nodes.push_back(std::move(asked[i]));
      if (nodes.size() > 20) nodes.erase(nodes.begin() + 1 + below(19));
    }
    if (below(7) == 0) {
      const Node node = next_prompt();
      CHECK(same_bits(logits_of(*engine, node.tokens, false, node.images),
                      logits_of(*plain, node.tokens, false, node.images)));
    }
  }
  CHECK(n_cached > 0 || with.prefix_cache_bytes < 100000);
  CHECK(settled(*engine).prefix_bytes <= with.prefix_cache_bytes);
}

TEST("conversations at random: the tokens and log-probabilities of an engine without a cache") {
  uint32_t seed = 1;
  for (const uint64_t bytes : {64 << 20, 1 << 20, 150 << 10, 3000}) {
    for (const int n_batch : {0, 80}) {
      LoadOptions o = cached("mm-a-f16.gguf", bytes);
      o.mmproj_path = data("mmproj-mm-a-f16.gguf");
      o.n_batch = n_batch;
      o.kv_type = n_batch == 0 ? KvType::kF16 : KvType::kQ8_0;
      converse(o, 14, seed++, true);
      o = cached(n_batch == 0 ? "text-a-q4_0.gguf" : "text-k-mix.gguf", bytes);
      o.n_batch = n_batch;
      converse(o, 14, seed++, false);
    }
  }
}

TEST("the memory plan has the cache of a model without pictures, too") {
  const MemoryPlan without = Engine::load(cached("text-a-f16.gguf", 0))->info().memory;
  const MemoryPlan with = Engine::load(cached("text-a-f16.gguf", 1 << 20))->info().memory;
  CHECK(with.kv_bytes == without.kv_bytes + (1 << 20) && with.total_bytes == without.total_bytes + (1 << 20));
}

}  // namespace
}  // namespace gemma

TEST_MAIN
