// Saved states: the file, every byte of it changed, and engines that go on where another stopped.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>

#include "../fuzz/state_fuzz.cpp"
#include "check.h"
#include "engine_helpers.h"
#include "runtime/state_file.h"

namespace gemma {
namespace {

using namespace gemma::test;

std::string folder() {
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("gemma-state-" + std::to_string(std::random_device()()));
  std::filesystem::create_directory(path);
  return path.string();
}

std::vector<std::byte> bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::vector<char> chars((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::vector<std::byte> bytes(chars.size());
  std::transform(chars.begin(), chars.end(), bytes.begin(), [](char c) { return static_cast<std::byte>(c); });
  return bytes;
}

void write_bytes(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

std::vector<std::byte> written(const State& state, const StateShape& shape) {
  std::vector<std::byte> file;
  const uint64_t n = write_state(
      state, shape, [&](std::span<const std::byte> bytes) { file.insert(file.end(), bytes.begin(), bytes.end()); });
  CHECK(n == file.size());
  return file;
}

State read_back(const std::vector<std::byte>& file, const StateShape& shape) {
  return read_state(file.size(), shape, [&](uint64_t offset, std::span<std::byte> out) {
    CHECK(offset <= file.size() && out.size() <= file.size() - offset);
    if (!out.empty()) std::memcpy(out.data(), &file[offset], out.size());
  });
}

bool equal(const State& a, const State& b) {
  return a.tokens == b.tokens && a.metadata == b.metadata && a.n == b.n && a.pages == b.pages &&
         std::equal(a.images.begin(), a.images.end(), b.images.begin(), b.images.end(),
                    [](const auto& x, const auto& y) { return x.first == y.first && x.embedding == y.embedding; });
}

State a_state(const StateShape& shape, int n_tokens, int n, size_t n_metadata) {
  State state;
  for (int i = 0; i < n_tokens; ++i) state.tokens.push_back(7 * i + 1);
  state.images = {{2, std::vector<float>(15, 0.5f)}, {9, std::vector<float>(6, -1.25f)}};
  state.metadata.assign(n_metadata, 'm');
  state.n = n;
  state.pages.resize(shape.bytes_of_pages(n));
  for (size_t i = 0; i < state.pages.size(); ++i) state.pages[i] = static_cast<std::byte>(i * i >> 3);
  return state;
}

TEST("pages of a state: those that the next position sees") {
  const StateShape shape = state_fuzz_shape();
  CHECK(shape.n_pages(0, 0) == 0 && shape.n_pages(1, 0) == 0 && shape.bytes_of_pages(0) == 0);
  for (int n = 1; n < 200; ++n) {
    size_t n_seen = 0;
    for (int page = 0; page * 32 < n; ++page) n_seen += page * 32 + 31 > n - 40 ? 1 : 0;
    CHECK(shape.n_pages(0, n) == n_seen && shape.n_pages(1, n) == static_cast<size_t>((n + 31) / 32));
  }
}

TEST("a file is what was written, over borders of blocks too; what does not fit the model is said") {
  StateShape shape = state_fuzz_shape();
  for (const size_t n_metadata : {size_t{0}, size_t{1}, kStateBlock - 500, kStateBlock, 2 * kStateBlock + 77}) {
    const State state = a_state(shape, 90, 77, n_metadata);
    const std::vector<std::byte> file = written(state, shape);
    const State back = read_back(file, shape);
    CHECK(equal(back, state) && back.same_arithmetic);
    StateShape other = shape;
    other.arithmetic = 3;
    CHECK(!read_back(file, other).same_arithmetic);
    other = shape;
    other.model = 3;
    CHECK_THROWS(kUnsupportedModel, "STATE_MODEL", read_back(file, other));
    other = shape;
    other.kv_type = KvType::kQ8_0;
    CHECK_THROWS(kUnsupportedModel, "STATE_KV_TYPE", read_back(file, other));
    other = shape;
    other.n_ctx = 89;
    CHECK_THROWS(kContextFull, "CONTEXT_OVERFLOW", read_back(file, other));
    other = shape;
    other.groups[1].page_bytes = 6;
    CHECK_THROWS(kFile, "STATE_DAMAGED", read_back(file, other));
  }
  CHECK_THROWS(kInvalidArgument, "STATE_METADATA", written(a_state(shape, 9, 5, kMaxStateMetadata + 1), shape));
}

TEST("every byte changed, every length: an error with a name") {
  const StateShape shape = state_fuzz_shape();
  const std::vector<std::byte> file = written(a_state(shape, 60, 45, 33), shape);
  CHECK(file.size() < 600);
  for (size_t i = 0; i < file.size(); ++i) {
    for (const int flip : {1, 0x80, 0xff}) {
      std::vector<std::byte> changed = file;
      changed[i] ^= static_cast<std::byte>(flip);
      try {
        read_back(changed, shape);
        fail(__FILE__, __LINE__, "byte " + std::to_string(i) + " was not missed");
      } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::kFile && !error.detail().empty());
        CHECK(error.detail() == (i < 8 ? "NOT_A_STATE" : i < 12 ? "STATE_VERSION" : "STATE_DAMAGED"));
      }
      // With checksums that are right: an error, or another state, never a crash.
      std::vector<uint8_t> input(file.size() + 1, 1);
      std::memcpy(&input[1], changed.data(), changed.size());
      LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    const std::vector<std::byte> cut(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(i));
    CHECK_THROWS(kFile, i < 80 ? "NOT_A_STATE" : "STATE_DAMAGED", read_back(cut, shape));
  }
  std::vector<std::byte> longer = file;
  longer.push_back({});
  CHECK_THROWS(kFile, "STATE_DAMAGED", read_back(longer, shape));
  CHECK(state_fuzz_read > 100);
}

TEST("random bytes with right checksums never crash") {
  const StateShape shape = state_fuzz_shape();
  const std::vector<std::byte> file = written(a_state(shape, 60, 45, 33), shape);
  std::mt19937 random(7);
  for (int round = 0; round < 20000; ++round) {
    std::vector<uint8_t> input(1 + file.size());
    std::transform(file.begin(), file.end(), input.begin() + 1,
                   [](std::byte byte) { return static_cast<uint8_t>(byte); });
    input[0] = 1;
    for (uint32_t n = 1 + random() % 4; n > 0; --n) input[1 + random() % file.size()] = static_cast<uint8_t>(random());
    if (random() % 4 == 0) input.resize(1 + random() % file.size());
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
}

SaveParams save_params(const std::string& path, const std::vector<TokenId>& tokens) {
  return {path, tokens, {}, "{\"turn\": 1, \"text\": \"\u00e9\"}", {}};
}

TEST("an engine goes on where another stopped, to the bit; caches of every type, with images") {
  const std::string at = folder();
  const std::string path = at + "/chat.state";
  constexpr int kRows = 16;
  for (const KvType kv : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    for (const bool with_image : {false, true}) {
      LoadOptions o = options(with_image ? "mm-a-f16.gguf" : "text-a-f16.gguf");
      o.kv_type = kv;
      o.n_batch = 80;
      o.prefix_cache_bytes = 16 << 20;
      std::vector<PromptImage> images;
      if (with_image) images.push_back({50, std::vector<float>(size_t{kRows} * 64, 0.75f)});
      GenerateParams p = sampled(some_tokens(301), 30, 5);
      p.images = images;
      const std::shared_ptr<Engine> first = Engine::load(o);
      const auto answer = start(*first, p);
      answer->ended.wait();
      std::vector<TokenId> heard = p.tokens;
      heard.insert(heard.end(), answer->tokens.begin(), answer->tokens.end());
      SaveParams params = save_params(path, heard);
      params.images = images;
      const SavedState saved = first->save_state(params);
      CHECK(saved.n_positions == static_cast<int>(heard.size()) - 1);
      CHECK(saved.n_bytes == std::filesystem::file_size(path));
      std::vector<TokenId> next = heard;
      next.insert(next.end(), {20, 21, 22});
      const std::vector<float> want = logits_of(*first, next, false, images);
      // The same file again, from what another has restored: nothing in it depends on who was there.
      const std::shared_ptr<Engine> second = Engine::load(o);
      const RestoredState restored = second->restore_state(path);
      CHECK(restored.tokens.size() == heard.size() && restored.metadata == params.metadata);
      for (size_t i = 0; i < heard.size(); ++i) {
        const bool in_image = with_image && i >= 50 && i < 50 + kRows;
        if (!in_image) CHECK(restored.tokens[i] == heard[i]);
      }
      CHECK(restored.n_positions == saved.n_positions);
      params.path = path + "2";
      CHECK(second->save_state(params).n_positions == saved.n_positions);
      CHECK(bytes_of(path) == bytes_of(params.path));
      const EngineStats before = second->stats();
      CHECK(same_bits(logits_of(*second, next, false, images), want));
      CHECK(second->stats().cached_prompt_tokens - before.cached_prompt_tokens ==
            static_cast<uint64_t>(saved.n_positions));
      // Without a cache, and with one that is too small: the tokens alone.
      for (const uint64_t bytes : {0, 1000}) {
        o.prefix_cache_bytes = bytes;
        const std::shared_ptr<Engine> small = Engine::load(o);
        CHECK(small->restore_state(path).n_positions == 0 && small->restore_state(path).tokens == restored.tokens);
        CHECK(small->save_state(params).n_positions == 0);
        CHECK(small->restore_state(params.path).metadata == params.metadata);
      }
    }
  }
  std::filesystem::remove_all(at);
}

TEST("what cannot be restored or written is an error, and nothing else is touched") {
  const std::string at = folder();
  const std::string path = at + "/chat.state";
  LoadOptions o = options("text-a-f16.gguf");
  o.prefix_cache_bytes = 16 << 20;
  const std::shared_ptr<Engine> engine = Engine::load(o);
  const std::vector<TokenId> tokens = some_tokens(45);
  const std::vector<float> want = logits_of(*engine, tokens, false);
  CHECK(engine->save_state(save_params(path, tokens)).n_positions == 45);
  const std::vector<std::byte> file = bytes_of(path);

  LoadOptions other = o;
  other.path = data("text-a-q4_0.gguf");
  CHECK_THROWS(kUnsupportedModel, "STATE_MODEL", Engine::load(other)->restore_state(path));
  other = o;
  other.kv_type = KvType::kQ8_0;
  CHECK_THROWS(kUnsupportedModel, "STATE_KV_TYPE", Engine::load(other)->restore_state(path));
  other = o;
  other.n_ctx = 40;
  CHECK_THROWS(kContextFull, "CONTEXT_OVERFLOW", Engine::load(other)->restore_state(path));
  other = o;
  other.isa = "ref";
  if (engine->info().isa != "ref") {  // other arithmetic: the tokens alone
    const RestoredState restored = Engine::load(other)->restore_state(path);
    CHECK(restored.n_positions == 0 && restored.tokens == tokens);
  }
  CHECK_THROWS(kFile, "", engine->restore_state(at + "/none"));
  CHECK_THROWS(kFile, "", engine->restore_state(at));
  CHECK_THROWS(kFile, "NOT_A_STATE", engine->restore_state(data("text-a-f16.gguf")));
  // Tokens that the model does not have, with checksums that are right.
  std::vector<std::byte> hostile = file;
  const size_t first_token = 80 + save_params("", {}).metadata.size();
  std::memset(&hostile[first_token], 0x7f, 4);
  seal_state(hostile);
  write_bytes(path, hostile);
  CHECK_THROWS(kInvalidArgument, "BAD_TOKEN", engine->restore_state(path));
  // A prime number of bytes lies between two that are changed: in front and behind all of them are.
  for (size_t i = 0; i < file.size(); i += i < 400 || i + 100 > file.size() ? 1 : 97) {
    std::vector<std::byte> changed = file;
    changed[i] ^= std::byte{0x10};
    write_bytes(path, changed);
    try {
      engine->restore_state(path);
      fail(__FILE__, __LINE__, "byte " + std::to_string(i) + " was not missed");
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kFile);
      CHECK(std::string(error.what()).find("chat.state") != std::string::npos);
    }
  }
  // A failed writer leaves the old file, and nothing beside.
  write_bytes(path, file);
  CHECK_THROWS(kFile, "", engine->save_state(save_params(at + "/none/chat.state", tokens)));
  CHECK_THROWS(kFile, "", engine->save_state(save_params("", tokens)));
  CHECK_THROWS(kInvalidArgument, "EMPTY", engine->save_state(save_params(path, {})));
  CHECK_THROWS(kInvalidArgument, "BAD_TOKEN", engine->save_state(save_params(path, {2, -5})));
  SaveParams large = save_params(path, tokens);
  large.metadata.resize(kMaxStateMetadata + 1);
  CHECK_THROWS(kInvalidArgument, "STATE_METADATA", engine->save_state(large));
  CHECK_THROWS(kFile, "", engine->save_state(save_params(at, tokens)));  // a folder is in its place
  CHECK(bytes_of(path) == file);
  CHECK(std::distance(std::filesystem::directory_iterator(at), std::filesystem::directory_iterator()) == 1);
  CHECK(same_bits(logits_of(*engine, tokens, false), want));

  engine->close();
  CHECK_THROWS(kDisposed, "", engine->save_state(save_params(path, tokens)));
  CHECK_THROWS(kDisposed, "", engine->restore_state(path));
  std::filesystem::remove_all(at);
}

TEST("saving and restoring beside requests that run, and while the engine closes") {
  const std::string at = folder();
  LoadOptions o = options("text-a-f16.gguf");
  o.prefix_cache_bytes = 16 << 20;
  for (int round = 0; round < 4; ++round) {
    const std::shared_ptr<Engine> engine = Engine::load(o);
    const auto busy = start(*engine, greedy(some_tokens(20), 3000));
    logits_of(*engine, some_tokens(145), false);
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&, i] {
        const std::string path = at + "/" + std::to_string(i);
        try {
          for (int n = 0; n < 20; ++n) {
            CHECK(engine->save_state(save_params(path, some_tokens(145))).n_positions == 145);
            CHECK(engine->restore_state(path).n_positions == 145);
          }
        } catch (const Error& error) {
          CHECK(error.code() == ErrorCode::kDisposed);
        }
      });
    }
    if (round % 2 != 0) {
      wait_until([&] { return std::filesystem::exists(at + "/0"); });
      engine->close();
    }
    for (std::thread& thread : threads) thread.join();
    busy->request->cancel();
    busy->ended.wait();
  }
  for (const auto& entry : std::filesystem::directory_iterator(at)) CHECK(entry.path().extension() != ".tmp");
  std::filesystem::remove_all(at);
}

}  // namespace
}  // namespace gemma

TEST_MAIN
