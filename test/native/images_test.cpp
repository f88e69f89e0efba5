// Images in prompts: logits against transformers', independence of how a prompt is cut and of company, and the queue of
// pictures for the encoder.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <future>
#include <limits>
#include <thread>

#include "check.h"
#include "engine_helpers.h"

namespace gemma {
namespace {

using namespace gemma::test;

constexpr int kSide = 112;
constexpr size_t kImageBytes = size_t{kSide} * kSide * 3;
constexpr int kRows = 16;  // of an image
constexpr int kDim = 64;   // of the decoder
constexpr TokenId kSoft = 448;
const std::vector<std::string> kCases = {"img-square", "img-photo", "img-two", "img-wide-pas"};

LoadOptions with_vision(const std::string& isa = "") {
  LoadOptions o = options("mm-a-f16.gguf");
  o.mmproj_path = data("mmproj-mm-a-f16.gguf");
  o.kv_type = KvType::kF32;
  o.vision_arithmetic = Arithmetic::kExact;
  o.isa = isa;
  return o;
}

const GoldenFile& golden() {
  static const GoldenFile file = read_safetensors(data("mm-a.safetensors"));
  return file;
}

std::vector<uint8_t> pixels_of(const std::string& name) {
  const std::vector<uint8_t> planes = golden().at(name + ".pixel_levels").as<uint8_t>();  // [n, 3, size, size]
  constexpr size_t kArea = size_t{kSide} * kSide;
  std::vector<uint8_t> pixels(planes.size());
  for (size_t i = 0; i < planes.size(); ++i)
    pixels[(i / kImageBytes * kArea + i % kArea) * 3 + i / kArea % 3] = planes[i];
  return pixels;
}

struct Encoded {
  std::vector<float> embeddings;
  std::vector<double> progress;
  std::shared_ptr<const Error> error;
  int n_done = 0;
  std::shared_ptr<Request> request;
  std::promise<void> done;
  std::shared_future<void> ended = done.get_future().share();
};
std::shared_ptr<Encoded> start_encoding(Engine& engine, std::vector<uint8_t> pixels) {
  auto encoded = std::make_shared<Encoded>();
  const int n = static_cast<int>(pixels.size() / kImageBytes);
  encoded->request = engine.encode_images(
      {std::move(pixels), n, {}}, [encoded](double fraction) { encoded->progress.push_back(fraction); },
      [encoded](std::vector<float>&& embeddings, std::shared_ptr<const Error> error) {
        encoded->embeddings = std::move(embeddings);
        encoded->error = std::move(error);
        if (++encoded->n_done == 1) encoded->done.set_value();
      });
  return encoded;
}
std::vector<float> encode(Engine& engine, std::vector<uint8_t> pixels) {
  const auto encoded = start_encoding(engine, std::move(pixels));
  encoded->ended.wait();
  if (encoded->error) throw Error(*encoded->error);
  return encoded->embeddings;
}

// Embeddings of images one after the other, at the runs of soft tokens.
std::vector<PromptImage> place(const std::vector<TokenId>& tokens, const std::vector<float>& embeddings) {
  std::vector<PromptImage> images;
  auto next = embeddings.begin();
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] != kSoft) continue;
    CHECK(embeddings.end() - next >= kRows * kDim);
    images.push_back({static_cast<int>(i), {next, next + kRows * kDim}});
    next += kRows * kDim;
    i += kRows - 1;
  }
  CHECK(next == embeddings.end());
  return images;
}

std::vector<float> golden_embeddings(const std::string& name) {
  return golden().at(name + ".image_embeds").as<float>();
}

TEST("logits of all multimodal cases agree with transformers' on every instruction set") {
  for (const std::string& isa : model_isas()) {
    const std::shared_ptr<Engine> engine = Engine::load(with_vision(isa));
    CHECK(engine->info().vision && engine->info().vision->n_tokens == kRows);
    for (const std::string& name : kCases) {
      const Golden want("mm-a", name);
      const std::vector<float> embeddings = encode(*engine, pixels_of(name));
      std::vector<float> got = logits_of(*engine, want.tokens, true, place(want.tokens, embeddings));
      const int n_vocab = static_cast<int>(got.size() / want.tokens.size());
      got.erase(got.begin(), got.end() - static_cast<std::ptrdiff_t>(want.logits.size()));  // the last ones are golden
      CHECK(got.size() == want.logits.size() && !got.empty());
      CHECK(worst_row(got, want.logits, n_vocab) < 3e-4);
    }
  }
}

TEST("greedy tokens after images are transformers'") {
  const std::shared_ptr<Engine> engine = Engine::load(with_vision());
  for (const std::string& name : kCases) {
    const Golden want("mm-a", name);
    const std::vector<double> ids = golden_numbers("mm-a", name, "greedy_ids");
    const std::vector<double> gaps = golden_numbers("mm-a", name, "greedy_gap");
    for (const DraftMode draft : {DraftMode::kOff, DraftMode::kPromptLookup}) {
      GenerateParams p = greedy(want.tokens, static_cast<int>(ids.size()));
      p.images = place(want.tokens, golden_embeddings(name));
      p.draft = draft;
      p.n_draft = draft == DraftMode::kOff ? -1 : 5;
      const auto g = start(*engine, std::move(p));
      g->ended.wait();
      CHECK(g->tokens.size() == ids.size() && g->finish.n_input == static_cast<int>(want.tokens.size()));
      for (size_t i = 0; i < ids.size() && gaps[i] >= 0.05; ++i) CHECK(g->tokens[i] == static_cast<TokenId>(ids[i]));
    }
  }
}

// A long prompt: text, and images side by side, behind each other and at both ends.
struct LongPrompt {
  std::vector<TokenId> tokens;
  std::vector<PromptImage> images;

  explicit LongPrompt(int n_text = 29) {
    const std::vector<float> four = golden_embeddings("img-wide-pas");
    const auto add_image = [&](size_t i) {
      const auto first = four.begin() + static_cast<std::ptrdiff_t>(i) * kRows * kDim;
      images.push_back({static_cast<int>(tokens.size()), {first, first + kRows * kDim}});
      tokens.insert(tokens.end(), kRows, kSoft);
    };
    const auto add_text = [&](int n, int seed) {
      const std::vector<TokenId> text = some_tokens(n, seed);
      tokens.insert(tokens.end(), text.begin(), text.end());
    };
    add_image(0);
    add_text(n_text, 1);
    add_image(1);
    add_image(2);
    add_text(2 * n_text + 1, 2);
    add_image(3);
    add_text(1, 3);
    add_image(0);
    add_text(n_text, 4);
    add_image(2);
  }
};

TEST("logits do not depend on how a prompt with images is cut, on threads or on company") {
  const LongPrompt prompt;
  for (const KvType kv : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    LoadOptions o = with_vision();
    o.kv_type = kv;
    o.n_threads = 1;
    o.n_batch = 512;
    const std::vector<float> want = logits_of(*Engine::load(o), prompt.tokens, true, prompt.images);
    for (const int n_batch : {1, 81, 87, 93, 97}) {  // 1: raised to an image and 64
      o.n_batch = n_batch;
      o.n_threads = n_batch == 87 ? 3 : 2;
      const std::shared_ptr<Engine> engine = Engine::load(o);
      CHECK(same_bits(logits_of(*engine, prompt.tokens, true, prompt.images), want));
      std::vector<std::shared_ptr<Generation>> company;
      for (int i = 0; i < 6; ++i) company.push_back(start(*engine, greedy(some_tokens(30 + 7 * i, i + 2), 60)));
      const std::vector<float> last = logits_of(*engine, prompt.tokens, false, prompt.images);
      CHECK(same_bits(last, {want.end() - static_cast<std::ptrdiff_t>(last.size()), want.end()}));
      for (const auto& g : company) g->ended.wait();
    }
  }
}

TEST("candidates after images: the log-probabilities of logits, the second time from what the first has left") {
  LongPrompt prompt(23);
  const std::vector<TokenId> text = some_tokens(5, 8);
  prompt.tokens.insert(prompt.tokens.end(), text.begin(), text.end());
  const std::vector<std::vector<TokenId>> candidates = {some_tokens(3, 2), {9}, some_tokens(37, 2), some_tokens(3, 2)};
  LoadOptions o = with_vision();
  const std::vector<double> want = scores_by_logits(*Engine::load(o), prompt.tokens, candidates, prompt.images);
  o.prefix_cache_bytes = 64 << 20;
  const std::shared_ptr<Engine> engine = Engine::load(o);
  for (const uint64_t n_most : {100, 4}) {
    const uint64_t n_before = engine->stats().steps;
    CHECK(scores_of(*engine, prompt.tokens, candidates, prompt.images) == want);
    CHECK(engine->stats().steps - n_before <= n_most && engine->stats().prefixes == 1);
  }
}

TEST("sampled tokens after images do not depend on cuts, company or guesses") {
  const LongPrompt prompt(17);
  LoadOptions o = with_vision();
  o.kv_type = KvType::kF16;
  std::vector<TokenId> want;
  for (const int n_batch : {512, 80, 91}) {
    o.n_batch = n_batch;
    const std::shared_ptr<Engine> engine = Engine::load(o);
    for (const DraftMode draft : {DraftMode::kOff, DraftMode::kPromptLookup}) {
      std::vector<std::shared_ptr<Generation>> all;
      for (int i = 0; i < 5; ++i) {
        GenerateParams p = sampled(prompt.tokens, 70, 11);
        p.images = prompt.images;
        p.draft = draft;
        if (draft == DraftMode::kPromptLookup) p.n_draft = 3 + 3 * i;  // whether they pay or not
        p.sampling.repetition_penalty = 1.1f;
        all.push_back(start(*engine, std::move(p)));
      }
      for (const auto& g : all) {
        g->ended.wait();
        CHECK(g->finish.reason == FinishReason::kLength);
        if (want.empty()) want = g->tokens;
        CHECK(g->tokens == want && want.size() == 70);
      }
    }
  }
}

TEST("a prompt with images whose pages were taken back is computed again as it was") {
  const LongPrompt prompt(17);
  LoadOptions o = with_vision();
  o.n_batch = 80;
  o.prefix_cache_bytes = 0;
  const std::shared_ptr<Engine> engine = Engine::load(o);
  GenerateParams p = sampled(prompt.tokens, 70, 11);
  p.images = prompt.images;
  p.sampling.n_logprobs = 2;
  const auto alone = start(*engine, p);
  alone->ended.wait();
  p.max_unread = 20;
  const auto slow = start(*engine, p);
  lose_pages(*engine, *slow);
  read_all({slow});
  CHECK(same(*slow, *alone));
}

TEST("a draft model has no part in prompts with images") {
  const LongPrompt prompt(17);
  LoadOptions o = with_vision();
  std::vector<TokenId> want;
  for (const bool drafts : {false, true}) {
    if (drafts) o.draft_path = o.path;
    const std::shared_ptr<Engine> engine = Engine::load(o);
    GenerateParams p = greedy(prompt.tokens, 40);
    p.images = prompt.images;
    if (drafts) p.draft = DraftMode::kModel;
    const auto g = start(*engine, std::move(p));
    g->ended.wait();
    CHECK(g->finish.reason == FinishReason::kLength);
    if (!drafts) want = g->tokens;
    CHECK(g->tokens == want);
  }
}

TEST("the mask: an image sees itself both ways, nothing sees what comes later") {
  const std::shared_ptr<Engine> engine = Engine::load(with_vision());
  const std::vector<float> e = golden_embeddings("img-wide-pas");
  const auto image = [&](int first, size_t i) {
    const auto at = e.begin() + static_cast<std::ptrdiff_t>(i) * kRows * kDim;
    return PromptImage{first, {at, at + kRows * kDim}};
  };
  // Two images side by side: 3 tokens, 16 rows, 16 rows, 2 tokens.
  std::vector<TokenId> tokens = some_tokens(3);
  tokens.insert(tokens.end(), 2 * kRows, kSoft);
  tokens.insert(tokens.end(), {20, 21});
  const std::vector<float> a = logits_of(*engine, tokens, true, {image(3, 0), image(19, 1)});
  const std::vector<float> b = logits_of(*engine, tokens, true, {image(3, 0), image(19, 2)});
  const auto n_vocab = static_cast<std::ptrdiff_t>(a.size() / tokens.size());
  const auto rows = [&](const std::vector<float>& all, int first, int end) {
    return std::vector<float>(all.begin() + first * n_vocab, all.begin() + end * n_vocab);
  };
  CHECK(same_bits(rows(a, 0, 19), rows(b, 0, 19)));
  for (int i = 19; i < 37; ++i) CHECK(!same_bits(rows(a, i, i + 1), rows(b, i, i + 1)));
  // The last row of an image reaches its first, the token before the image not.
  PromptImage changed = image(3, 0);
  changed.embedding.back() += 1;
  const std::vector<float> c = logits_of(*engine, tokens, true, {changed, image(19, 1)});
  CHECK(same_bits(rows(a, 0, 3), rows(c, 0, 3)) && !same_bits(rows(a, 3, 4), rows(c, 3, 4)));
  // One run of soft tokens taken as one image is another thing than two.
  PromptImage both = image(3, 0);
  const PromptImage second = image(19, 1);
  both.embedding.insert(both.embedding.end(), second.embedding.begin(), second.embedding.end());
  CHECK(!same_bits(rows(logits_of(*engine, tokens, true, {both}), 3, 4), rows(a, 3, 4)));
  // What stands in the tokens of an image means nothing.
  std::vector<TokenId> others = tokens;
  for (size_t i = 3; i < 35; ++i) others[i] = static_cast<TokenId>(i) * 1000000 - 9;
  CHECK(same_bits(logits_of(*engine, others, true, {image(3, 0), image(19, 1)}), a));
}

TEST("encoding: progress, the order of calls, and others who decode meanwhile") {
  const std::shared_ptr<Engine> engine = Engine::load(with_vision());
  const auto text = start(*engine, greedy(some_tokens(20), 400));
  std::vector<std::shared_ptr<Encoded>> all;
  for (int round = 0; round < 5; ++round) {
    for (const std::string& name : kCases) all.push_back(start_encoding(*engine, pixels_of(name)));
  }
  for (size_t i = 0; i < all.size(); ++i) {
    all[i]->ended.wait();
    CHECK(all[i]->error == nullptr && all[i]->n_done == 1);
    const std::vector<float> want = golden_embeddings(kCases[i % kCases.size()]);
    CHECK_CLOSE(all[i]->embeddings, want, 1e-3);
    const std::vector<double>& progress = all[i]->progress;
    CHECK(progress.size() == 4 && progress.back() == 1 && std::is_sorted(progress.begin(), progress.end()));
  }
  text->ended.wait();
  CHECK(text->tokens.size() == 400);
  const std::shared_ptr<Engine> idle = Engine::load(with_vision());
  const auto alone = start(*idle, greedy(some_tokens(20), 400));
  alone->ended.wait();
  CHECK(alone->tokens == text->tokens);
}

TEST("encoding: cancelled at any moment, before and within; the next call is not touched") {
  LoadOptions o = with_vision();
  o.vision_arithmetic = Arithmetic::kFast;
  const std::shared_ptr<Engine> engine = Engine::load(o);
  const std::vector<uint8_t> one = pixels_of("img-square");
  std::vector<uint8_t> many;
  for (int i = 0; i < 300; ++i) many.insert(many.end(), one.begin(), one.end());
  for (int round = 0; round < 12; ++round) {
    const auto first = start_encoding(*engine, many);
    const auto second = start_encoding(*engine, many);
    const auto third = start_encoding(*engine, one);
    std::this_thread::sleep_for(std::chrono::microseconds(900 * round));
    second->request->cancel();
    first->request->cancel();
    first->request->acknowledge(1);
    for (const auto& cancelled : {first, second}) {
      cancelled->ended.wait();
      CHECK(cancelled->n_done == 1);
      CHECK(cancelled->error == nullptr || cancelled->error->detail() == "CANCELLED");
    }
    third->ended.wait();
    CHECK(third->error == nullptr && third->embeddings.size() == kRows * kDim);
  }
}

TEST("encoding while the engine closes: every call ends") {
  for (int round = 0; round < 6; ++round) {
    const std::shared_ptr<Engine> engine = Engine::load(with_vision());
    std::vector<std::shared_ptr<Encoded>> all;
    for (int i = 0; i < 20; ++i) all.push_back(start_encoding(*engine, pixels_of("img-wide-pas")));
    std::this_thread::sleep_for(std::chrono::milliseconds(round));
    engine->close();
    for (const auto& encoded : all) {
      CHECK(encoded->ended.wait_for(std::chrono::seconds(0)) == std::future_status::ready && encoded->n_done == 1);
      CHECK(encoded->error == nullptr || encoded->error->code() == ErrorCode::kDisposed);
    }
    CHECK_THROWS(kDisposed, "", start_encoding(*engine, pixels_of("img-square")));
  }
}

// Tokens with their log-probabilities: equal only when logits are.
struct Answer {
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  int n_cached = 0;
};
Answer ask(Engine& engine, const std::vector<TokenId>& tokens, const std::vector<PromptImage>& images, int n = 12) {
  GenerateParams p = sampled(tokens, n, 5);
  p.images = images;
  p.sampling.n_logprobs = 3;
  const auto g = start(engine, std::move(p));
  g->ended.wait();
  CHECK(g->finish.reason == FinishReason::kLength);
  Answer answer{g->tokens, {}, g->finish.n_cached};
  for (const SampledToken& score : g->scores) {
    answer.logprobs.push_back(score.chosen.logprob);
    for (const TokenLogprob& top : score.top) answer.logprobs.push_back(top.logit);
  }
  return answer;
}

TEST("what finished requests leave: the next prompt goes on from there, to the same bits") {
  const LongPrompt prompt(23);  // ends with an image
  const int n_prompt = static_cast<int>(prompt.tokens.size());
  for (const KvType kv : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    LoadOptions o = with_vision();
    o.kv_type = kv;
    const std::shared_ptr<Engine> plain = Engine::load(o);
    o.prefix_cache_bytes = 64 << 20;
    o.n_batch = 90;
    const std::shared_ptr<Engine> engine = Engine::load(o);
    const auto check = [&](const std::vector<TokenId>& tokens, const std::vector<PromptImage>& images, int n_cached) {
      const Answer want = ask(*plain, tokens, images);
      CHECK(want.n_cached == 0 && want.tokens.size() == 12);
      const Answer got = ask(*engine, tokens, images);
      CHECK(got.tokens == want.tokens && same_bits(got.logprobs, want.logprobs));
      CHECK(got.n_cached == n_cached);
      return got.tokens;
    };
    const auto with_text = [&](int n, int seed) {
      std::vector<TokenId> tokens = prompt.tokens;
      const std::vector<TokenId> text = some_tokens(n, seed);
      tokens.insert(tokens.end(), text.begin(), text.end());
      return tokens;
    };
    const std::vector<TokenId> first = with_text(60, 9);
    const std::vector<TokenId> answer = check(first, prompt.images, 0);
    // Another question about the same images: from where they part, a token behind the last one, 59 positions and a
    // window of 10 back.
    check(with_text(9, 10), prompt.images, n_prompt + 1);
    check(with_text(200, 11), prompt.images, n_prompt + 1);
    // The same question again: the last token is wanted, the window is there.
    check(with_text(9, 10), prompt.images, n_prompt + 8);
    // The conversation goes on: all but the last token of the answer is there.
    std::vector<TokenId> longer = first;
    longer.insert(longer.end(), answer.begin(), answer.end());
    longer.insert(longer.end(), {20, 21, 22});
    check(longer, prompt.images, static_cast<int>(first.size() + answer.size()) - 1);
    // The prompt alone: its last row is an image's, so that image is read anew.
    const int before_last = prompt.images.back().first;
    check(prompt.tokens, prompt.images, before_last);
    // Another image in place of one: what comes before it would do, but its window is gone.
    LongPrompt other = prompt;
    other.images[2] = {other.images[2].first, prompt.images[0].embedding};
    check(with_text(9, 10), other.images, 0);
    check(with_text(10, 12), other.images, n_prompt + 1);
    check(with_text(9, 10), prompt.images, n_prompt + 8);
    // One bit of the last image
    LongPrompt near = prompt;
    near.images.back().embedding.back() = std::nextafter(near.images.back().embedding.back(), 9.0f);
    check(with_text(9, 10), near.images, before_last);
    // The same tokens as text, and another text before
    std::vector<TokenId> shifted = with_text(9, 10);
    shifted[kRows] = 30;
    check(shifted, prompt.images, 0);
    check(some_tokens(300), {}, 0);
  }
}

// Once nothing is under way.
EngineStats settled(const Engine& engine) {
  for (;;) {
    const EngineStats stats = engine.stats();
    if (stats.running == 0 && stats.waiting == 0) return stats;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

TEST("what finished requests leave is bounded, shared by those who go on together, and gone where it is not wanted") {
  const LongPrompt prompt(23);
  std::vector<TokenId> tokens = prompt.tokens;
  tokens.insert(tokens.end(), {20, 21, 22, 23});
  LoadOptions o = with_vision();
  const std::shared_ptr<Engine> plain = Engine::load(o);
  const Answer want = ask(*plain, tokens, prompt.images, 50);
  CHECK(settled(*plain).prefixes == 0 && settled(*plain).kv_pages_in_use == 0);

  o.prefix_cache_bytes = 1000;  // less than a page
  const std::shared_ptr<Engine> tiny = Engine::load(o);
  for (int i = 0; i < 3; ++i) CHECK(ask(*tiny, tokens, prompt.images, 50).n_cached == 0);
  CHECK(settled(*tiny).prefixes == 0 && settled(*tiny).kv_pages_in_use == 0);

  o.prefix_cache_bytes = 3 << 20;
  const std::shared_ptr<Engine> engine = Engine::load(o);
  CHECK(ask(*engine, tokens, prompt.images, 50).n_cached == 0);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::shared_ptr<Generation>> all;
    for (int i = 0; i < 4; ++i) {
      GenerateParams p = sampled(tokens, 50, i < 2 ? 5 : static_cast<uint64_t>(100 * round + i));
      p.images = prompt.images;
      p.sampling.n_logprobs = 3;
      all.push_back(start(*engine, std::move(p)));
      if (i == 3 && round % 3 == 0) all.back()->request->cancel();
    }
    for (const auto& g : all) g->ended.wait();
    for (const size_t i : {0u, 1u}) CHECK(all[i]->tokens == want.tokens && all[i]->finish.n_cached >= 100);
    const EngineStats stats = settled(*engine);
    CHECK(stats.prefixes >= 1 && stats.prefix_bytes <= 3 << 20);
    CHECK(stats.kv_pages_in_use * kPagePositions * 2 * 2 * 32 * 4 < 3 << 20);  // a page of the one global layer
  }
  engine->close();
}

TEST("images that cannot be are refused at once") {
  const std::shared_ptr<Engine> engine = Engine::load(with_vision());
  const std::vector<float> e = golden_embeddings("img-square");
  const std::vector<TokenId> tokens(40, 7);
  const auto refused = [&](std::vector<PromptImage> images) {
    CHECK_THROWS(kInvalidArgument, "BAD_IMAGE", logits_of(*engine, tokens, true, images));
    GenerateParams p = greedy(tokens, 2);
    p.images = std::move(images);
    CHECK_THROWS(kInvalidArgument, "BAD_IMAGE", start(*engine, p));
  };
  refused({{0, {}}});
  refused({{0, {e.begin(), e.end() - 1}}});
  refused({{-1, e}});
  refused({{25, e}});
  refused({{1 << 30, e}});
  refused({{0, e}, {15, e}});
  refused({{20, e}, {0, e}});
  refused({{0, std::vector<float>(size_t{2000} * kDim)}});
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> damaged = e;
    damaged[777] = bad;
    refused({{3, damaged}});
  }
  logits_of(*engine, tokens, true, {{0, e}, {16, e}});
  CHECK_THROWS(kInvalidArgument, "BAD_TOKEN", logits_of(*engine, std::vector<TokenId>(40, kSoft), true, {{3, e}}));
  // Rows for a step that is too small, where no encoder says how many an image has
  LoadOptions o = options("mm-a-f16.gguf");
  o.n_batch = 70;
  const std::shared_ptr<Engine> small = Engine::load(o);
  CHECK_THROWS(kInvalidArgument, "BAD_IMAGE", logits_of(*small, tokens, true, {{0, e}}));
  o.n_batch = 80;
  logits_of(*Engine::load(o), tokens, true, {{0, e}});  // embeddings of elsewhere need no encoder here

  CHECK_THROWS(kUnsupportedInput, "NO_VISION", start_encoding(*small, pixels_of("img-square")));
  const auto refused_pixels = [&](size_t bytes, int n) {
    CHECK_THROWS(
        kInvalidArgument, "BAD_IMAGE",
        engine->encode_images({std::vector<uint8_t>(bytes), n, {}}, [](double) {}, [](auto&&, const auto&) {}));
  };
  refused_pixels(0, 0);
  refused_pixels(kImageBytes, -1);
  refused_pixels(kImageBytes - 1, 1);
  refused_pixels(kImageBytes, 2);
  refused_pixels(0, 1 << 30);
}

TEST("what cannot be loaded is refused with a reason; what is loaded says so") {
  LoadOptions o = with_vision();
  o.mmproj_path = data("text-a-f16.gguf");
  CHECK_THROWS(kUnsupportedModel, "", Engine::load(o));
  o.mmproj_path = data("no-such-file.gguf");
  CHECK_THROWS(kFile, "", Engine::load(o));
  o = with_vision();
  o.path = data("text-k-mix.gguf");  // 256 wide
  CHECK_THROWS(kGgufInvalid, "BAD_HPARAM", Engine::load(o));
  try {
    Engine::load(o);
  } catch (const Error& error) {
    CHECK(std::string(error.what()).find("another model") != std::string::npos);
    CHECK(std::string(error.what()).find("mmproj-mm-a-f16.gguf") != std::string::npos);
  }
  o = with_vision();
  const EngineInfo with = Engine::load(o)->info();
  o.vision = false;
  const EngineInfo without = Engine::load(o)->info();
  CHECK(with.vision && !without.vision && without.memory.vision_bytes == 0 && with.memory.vision_bytes > 0);
  CHECK(with.memory.total_bytes == without.memory.total_bytes + with.memory.vision_bytes);
  o.prefix_cache_bytes = 1 << 20;
  o.vision = true;
  const MemoryPlan kept = Engine::load(o)->info().memory;
  CHECK(kept.kv_bytes == with.memory.kv_bytes + (1 << 20) && kept.total_bytes == with.memory.total_bytes + (1 << 20));
}

}  // namespace
}  // namespace gemma

TEST_MAIN
