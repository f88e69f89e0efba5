// The scheduler on the tiny models: requests that are cancelled, paused, forgotten or closed at any moment, their places
// and their parts of the cache. What it computes with are the kernels of engine_test.cpp.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"
#include "engine_helpers.h"
#include "runtime/engine.h"

namespace gemma {
namespace {

using namespace gemma::test;

TEST("cancel at any moment: one finish event, pages go back, others go on") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  const auto survivor = start(*engine, greedy(some_tokens(500), 300));
  for (int round = 0; round < 40; ++round) {
    const auto g = start(*engine, greedy(some_tokens(3000, round), -1));
    std::this_thread::sleep_for(std::chrono::microseconds(137 * round));
    g->request->cancel();
    g->request->cancel();
    g->ended.wait();
    CHECK(g->finish.reason == FinishReason::kCancelled);
  }
  survivor->ended.wait();
  CHECK(survivor->finish.reason == FinishReason::kLength && survivor->tokens.size() == 300);
  std::promise<std::shared_ptr<const Error>> done;
  const auto request = engine->logits(
      {some_tokens(4000), true, {}, {}}, [](int, std::span<const float>) {},
      [&](std::shared_ptr<const Error> error) { done.set_value(std::move(error)); });
  request->cancel();
  const std::shared_ptr<const Error> error = done.get_future().get();
  CHECK(error != nullptr && error->detail() == "CANCELLED");
  wait_until([&] { return engine->stats().kv_pages_in_use == 0 && engine->stats().kv_bytes_resident == 0; });
}

TEST("a reader who does not read pauses its generation only") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  GenerateParams p = greedy(some_tokens(10), 50);
  p.max_unread = 4;
  const auto slow = start(*engine, std::move(p));
  const auto quick = start(*engine, greedy(some_tokens(10, 8), 80));
  quick->ended.wait();
  CHECK(quick->tokens.size() == 80);
  CHECK(slow->ended.wait_for(std::chrono::milliseconds(50)) == std::future_status::timeout);
  CHECK(slow->n_events.load() == 5);  // prefill progress and four tokens
  while (slow->ended.wait_for(std::chrono::milliseconds(1)) == std::future_status::timeout)
    slow->request->acknowledge(1);
  CHECK(slow->finish.reason == FinishReason::kLength && slow->tokens.size() == 50);
}

TEST("readers who do not read give up their places, then their part of the cache; their answers stay the same") {
  LoadOptions o = options("text-a-q4_0.gguf");
  o.n_threads = 1;
  const std::shared_ptr<Engine> engine = Engine::load(o);
  const auto params = [](int i, int max_unread) {
    GenerateParams p = sampled(some_tokens(40, i + 1), 24, static_cast<uint64_t>(i));
    p.sampling.n_logprobs = 2;
    p.max_unread = max_unread;
    return p;
  };
  std::vector<std::shared_ptr<Generation>> slow;
  const auto stall = [&](int n) {
    while (static_cast<int>(slow.size()) < n) slow.push_back(start(*engine, params(static_cast<int>(slow.size()), 4)));
    wait_until([&] { return engine->stats().paused == n; });
    CHECK(engine->stats().running == 0 && engine->stats().waiting == 0);
  };
  stall(kPlaces);
  const uint64_t most = engine->stats().kv_pages_in_use;
  const auto quick = start(*engine, params(500, 0));
  quick->ended.wait();
  CHECK(quick->tokens.size() == 24);
  stall(2 * kPlaces);
  CHECK(engine->stats().kv_pages_in_use == most);

  read_all(slow);  // in turn, so that all of them lose their pages again and again
  for (int i = 0; i < 2 * kPlaces; ++i) {
    const auto alone = start(*engine, params(i, 0));
    alone->ended.wait();
    CHECK(same(*slow[static_cast<size_t>(i)], *alone) && alone->tokens.size() == 24);
  }
  wait_until([&] { return engine->stats().paused == 0 && engine->stats().kv_pages_in_use == 0; });
}

TEST("what was taken back of prompt and answer is computed again as it was, on every instruction set") {
  for (const std::string& isa : model_isas()) {
    LoadOptions o = options("text-k-mix.gguf");
    o.isa = isa;
    o.n_batch = 48;
    o.n_threads = 1;
    const std::shared_ptr<Engine> engine = Engine::load(o);
    GenerateParams p = sampled(some_tokens(100, 5), 80, 3);
    p.sampling.n_logprobs = 3;
    const auto alone = start(*engine, p);
    alone->ended.wait();
    p.max_unread = 60;
    const auto slow = start(*engine, p);
    lose_pages(*engine, *slow);
    read_all({slow});
    CHECK(same(*slow, *alone));
  }
}

TEST("a paused request can be cancelled, and its model closed") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  std::vector<std::shared_ptr<Generation>> slow;
  for (int i = 0; i < 2 * kPlaces; ++i) {
    GenerateParams p = greedy(some_tokens(10, i), 50);
    p.max_unread = 2;
    slow.push_back(start(*engine, std::move(p)));
  }
  wait_until([&] { return engine->stats().paused == 2 * kPlaces; });
  for (int i = 0; i < kPlaces; ++i) slow[static_cast<size_t>(i)]->request->cancel();
  for (int i = 0; i < kPlaces; ++i) slow[static_cast<size_t>(i)]->ended.wait();
  engine->close();
  for (const auto& g : slow) {
    CHECK(g->ended.wait_for(std::chrono::seconds(0)) == std::future_status::ready);
    CHECK(g->finish.reason == FinishReason::kCancelled && g->n_finish == 1 && g->tokens.size() == 2);
  }
}

TEST("close while busy: every request ends, later ones are refused") {
  for (int round = 0; round < 10; ++round) {
    const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
    std::vector<std::shared_ptr<Generation>> all;
    for (int i = 0; i < 80; ++i) all.push_back(start(*engine, greedy(some_tokens(100, i), -1)));
    std::this_thread::sleep_for(std::chrono::milliseconds(round));
    std::thread other([&] { engine->close(); });
    engine->close();
    other.join();
    for (const auto& g : all) {
      CHECK(g->ended.wait_for(std::chrono::seconds(0)) == std::future_status::ready);
      CHECK(g->finish.reason == FinishReason::kCancelled && g->n_finish == 1);
      g->request->cancel();
      g->request->acknowledge(1);
    }
    CHECK_THROWS(kDisposed, "", start(*engine, greedy(some_tokens(3), 1)));
  }
}

TEST("local pages go back while a sequence grows") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  std::atomic<uint64_t> most{0};
  Generation g;
  auto listener = g.listener();
  const auto request = engine->generate(greedy(some_tokens(10), 1000), [&](GenerateEvent&& event) {
    most = std::max<uint64_t>(most, engine->stats().kv_pages_in_use);
    listener(std::move(event));
  });
  g.ended.wait();
  // 1010 positions: 32 global pages; the window of 8 never needs more than two local ones.
  CHECK(most <= 34 && most >= 32);
}

// Events of the background while another request was computed, from that one's first event to its last.
struct Watched {
  Generation own;
  std::atomic<int>* n_background = nullptr;
  int n_before = -1;
  int n_after = -1;

  std::function<void(GenerateEvent&&)> listener() {
    return [this, next = own.listener()](GenerateEvent&& event) {
      if (n_before < 0) n_before = n_background->load();
      if (event.kind == GenerateEvent::kFinish) n_after = n_background->load();
      next(std::move(event));
    };
  }
};

TEST("the background waits while others have work, for more requests than have a place, and answers the same") {
  LoadOptions o = options("text-a-q4_0.gguf");
  const std::shared_ptr<Engine> engine = Engine::load(o);
  const auto params = [](int i, bool background) {
    GenerateParams p = sampled(some_tokens(150 + i, i + 1), 30, static_cast<uint64_t>(i));
    p.sampling.n_logprobs = 2;
    p.background = background;
    return p;
  };
  const int n = kPlaces + 6;
  std::atomic<int> n_events{0};
  std::vector<std::shared_ptr<Generation>> background;
  for (int i = 0; i < n; ++i) {
    auto g = std::make_shared<Generation>();
    g->request = engine->generate(params(i, true), [&n_events, next = g->listener()](GenerateEvent&& event) {
      ++n_events;
      next(std::move(event));
    });
    background.push_back(std::move(g));
  }
  wait_until([&] { return n_events > 0; });
  for (int i = 0; i < 5; ++i) {
    Watched watched;
    watched.n_background = &n_events;
    watched.own.request = engine->generate(params(500 + i, false), watched.listener());
    watched.own.ended.wait();
    CHECK(watched.own.finish.reason == FinishReason::kLength && watched.n_before >= 0);
    CHECK(watched.n_after == watched.n_before);
  }
  for (int i = 0; i < n; ++i) {
    background[static_cast<size_t>(i)]->ended.wait();
    const auto alone = start(*engine, params(i, false));
    alone->ended.wait();
    CHECK(same(*background[static_cast<size_t>(i)], *alone) && alone->tokens.size() == 30);
  }
}

TEST("a request that comes is computed before the next step in the background") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  std::atomic<int> n_events{0};
  Watched watched;
  watched.n_background = &n_events;
  Generation slow;
  GenerateParams p = greedy(some_tokens(40), 60);
  p.background = true;
  slow.request = engine->generate(std::move(p), [&, next = slow.listener()](GenerateEvent&& event) {
    next(std::move(event));
    if (++n_events == 10) watched.own.request = engine->generate(greedy(some_tokens(400, 3), 20), watched.listener());
  });
  slow.ended.wait();
  watched.own.ended.wait();
  CHECK(watched.own.tokens.size() == 20 && slow.tokens.size() == 60);
  CHECK(watched.n_before == 10 && watched.n_after == 10);
}

TEST("logits, scores and embeddings in the background are the same, beside others") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  const std::vector<TokenId> tokens = some_tokens(300);
  const std::vector<float> want = logits_of(*engine, tokens);
  const auto embedded = [&](bool background) {
    EmbedParams params{tokens, {83, 17, 200}, 0, true, {}, background};
    std::vector<float> rows;
    std::promise<std::shared_ptr<const Error>> done;
    const auto request = engine->embed(
        std::move(params),
        [&](size_t, std::vector<float>&& found) { rows.insert(rows.end(), found.begin(), found.end()); },
        [&](std::shared_ptr<const Error> error) { done.set_value(std::move(error)); });
    CHECK(done.get_future().get() == nullptr);
    return rows;
  };
  const std::vector<float> texts = embedded(false);
  // Not for ever: where a step takes longer than others leave it, the background comes after them.
  std::thread others([&] {
    for (int i = 0; i < 30; ++i) start(*engine, greedy(some_tokens(50, 7), 3))->ended.wait();
  });
  std::vector<float> rows;
  std::promise<std::shared_ptr<const Error>> done;
  const auto request = engine->logits(
      {tokens, true, {}, {}, true},
      [&](int, std::span<const float> row) { rows.insert(rows.end(), row.begin(), row.end()); },
      [&](std::shared_ptr<const Error> error) { done.set_value(std::move(error)); });
  const std::vector<float> again = embedded(true);
  const std::shared_ptr<const Error> error = done.get_future().get();
  others.join();
  CHECK(error == nullptr && same_bits(rows, want) && same_bits(again, texts));
}

}  // namespace
}  // namespace gemma

TEST_MAIN
