// A model whose layers lie on several backends computes what it computes on one, to the bit where the backends are
// alike.
#include <memory>

#include "check.h"
#include "engine_helpers.h"
#include "model/forward.h"
#include "reader/gguf_reader.h"

using namespace gemma;
using namespace gemma::test;

namespace {

// Logits of every position of two sequences that take turns in uneven steps, one of which is rolled back and forked on
// the way; and the number of pages at the end.
struct Run {
  std::vector<float> logits;
  size_t pages = 0;
};

Run run(const std::string& name, const std::vector<int>& ends, KvType kv_type) {
  const std::shared_ptr<const GgufFile> file = GgufFile::open(data(name), {});
  const ModelConfig config = read_model_config(*file);
  std::vector<std::unique_ptr<Backend>> backends;
  std::vector<Stage> stages;
  int first = 0;
  for (const int end : ends) {
    const int last = end < 0 ? config.n_layers() : end;
    backends.push_back(make_cpu_backend("", 2));
    stages.push_back({backends.back().get(), first, last});
    first = last;
  }
  Run result;
  {
    Model model(stages, config, load_weights(stages, decoder_tensors(file), config),
                ModelLimits{150, kv_type, 64, true});
    auto a = std::make_unique<KvSequence>(model.kv_pool());
    KvSequence b(model.kv_pool());
    const std::vector<TokenId> text = some_tokens(150);
    const std::vector<TokenId> other = some_tokens(150, 7);
    const auto step = [&](KvSequence& kv, const std::vector<TokenId>& tokens, int begin, int end) {
      std::vector<WantedRow> wanted;
      for (int i = 0; i < end - begin; ++i) wanted.push_back({i, {}});
      const SequenceInput input{
          &kv, begin, std::span(tokens).subspan(static_cast<size_t>(begin), wanted.size()), wanted, {}};
      const bool done = model.forward(
          std::span(&input, 1), [] { return false; },
          [&](size_t, int, const Logits& logits) {
            result.logits.insert(result.logits.end(), logits.values.begin(), logits.values.end());
          });
      CHECK(done);
      kv.trim(end);
    };
    step(*a, text, 0, 50);
    step(b, other, 0, 3);
    step(*a, text, 50, 101);
    step(b, other, 3, 66);
    a->rollback(100);
    a = a->fork(100);
    step(*a, text, 100, 150);
    step(b, other, 66, 67);
    result.pages = model.kv_pool().pages_in_use();
    CHECK(model.kv_pool().bytes_resident() > 0);
  }
  return result;
}

}  // namespace

TEST("layers on several backends give the logits of one backend") {
  for (const char* name : {"text-a-f16.gguf", "text-a-q4_0.gguf", "text-k-mix.gguf"}) {
    for (const KvType kv_type : {KvType::kF16, KvType::kQ8_0}) {
      const Run one = run(name, {-1}, kv_type);
      CHECK(!one.logits.empty());
      for (const std::vector<int>& ends : {std::vector<int>{1, -1}, {2, -1}, {1, 2, -1}}) {
        const Run several = run(name, ends, kv_type);
        CHECK(several.logits == one.logits);
        CHECK(several.pages >= one.pages && several.pages <= one.pages * ends.size());
      }
    }
  }
}

TEST(
    "rows are wanted one by one: their logits are those of the same rows among all, and their hidden rows the body's") {
  const std::shared_ptr<const GgufFile> file = GgufFile::open(data("text-a-f16.gguf"));
  const ModelConfig config = read_model_config(*file);
  const std::unique_ptr<Backend> backend = make_cpu_backend("", 2);
  const Stage stages[] = {{backend.get(), 0, config.n_layers()}};
  const std::vector<TokenId> text = some_tokens(40);
  const auto dim = static_cast<size_t>(config.model_dim);
  std::vector<float> hidden;
  const auto logits_of = [&](const std::vector<int>& indices) {
    Model model(stages, config, load_weights(stages, decoder_tensors(file), config), ModelLimits{40, KvType::kF16, 40});
    KvSequence a(model.kv_pool());
    KvSequence b(model.kv_pool());
    std::vector<WantedRow> wanted;
    for (const int index : indices) wanted.push_back({index, {}});
    // The second sequence's rows follow those of the first, of which none is wanted.
    const SequenceInput inputs[] = {{&a, 0, std::span(text).first(7), {}, {}},
                                    {&b, 0, std::span(text).subspan(7), wanted, {}}};
    std::vector<std::vector<float>> rows;
    std::vector<int> got;
    model.forward(
        inputs, [] { return false; },
        [&](size_t sequence, int index, const Logits& logits) {
          CHECK(sequence == 1);
          got.push_back(index);
          rows.emplace_back(logits.values.begin(), logits.values.end());
        });
    CHECK(got == indices);
    hidden.assign(model.hidden(), model.hidden() + 40 * dim);
    return rows;
  };
  std::vector<int> all(33);
  for (int i = 0; i < 33; ++i) all[static_cast<size_t>(i)] = i;
  const std::vector<std::vector<float>> every = logits_of(all);  // more than a head takes at a time
  const std::vector<float> first = hidden;
  const std::vector<std::vector<float>> few = logits_of({0, 20, 32});
  CHECK(few == std::vector<std::vector<float>>({every[0], every[20], every[32]}));
  CHECK(logits_of({}).empty() && hidden == first);
}

TEST_MAIN
