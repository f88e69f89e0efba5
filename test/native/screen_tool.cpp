// Compares tokens sampled from screened logits with those from all logits, at every position of a text:
//
//   screen_tool MODEL.gguf TEXT.txt [POSITIONS] [ISA]
//
// In turn greedy, top-k 64 with top-p 0.95, and top-k 40 with penalties. Prints one JSON object; exit code
// 1 when any token differs. It is no part of `npm test` because 10^5 positions take minutes.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "backend/cpu/cpu_features.h"
#include "base/error.h"
#include "gguf/gguf.h"
#include "model/forward.h"
#include "model/weights.h"
#include "reader/gguf_reader.h"
#include "runtime/sampler.h"
#include "tokenizer/tokenizer.h"

using namespace gemma;

namespace {

constexpr int kContext = 1024;  // the text is cut into pieces of so many tokens
constexpr size_t kRows = 64;    // logits computed at a time, with one setting

std::vector<SamplingParams> settings() {
  SamplingParams greedy;
  greedy.temperature = 0;
  SamplingParams usual;  // Gemma's own: top-k 64, top-p 0.95
  SamplingParams penalised;
  penalised.temperature = 0.7f;
  penalised.top_k = 40;
  penalised.min_p = 0.02f;
  penalised.repetition_penalty = 1.2f;
  penalised.presence_penalty = 0.3f;
  return {greedy, usual, penalised};
}

int compare(const std::string& path, const std::string& text_path, size_t n_positions, const std::string& isa) {
  const std::unique_ptr<Backend> backend = make_cpu_backend(isa, cpu::usable_cores());
  const std::shared_ptr<const GgufFile> file = GgufFile::open(path, {});
  const ModelConfig config = read_model_config(*file);
  const Tokenizer tokenizer(read_vocabulary(*file, config.n_vocab));
  const Stage all[] = {{backend.get(), 0, config.n_layers()}};
  Model model(all, config, load_weights(all, decoder_tensors(file), config),
              ModelLimits{kContext, KvType::kF16, 512, true});

  std::ifstream in(text_path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::vector<TokenId> tokens;
  tokenizer.encode(text, Trust::kUser, &tokens);
  if (tokens.size() < n_positions) {
    std::fprintf(stderr, "%s has %zu tokens: expected at least %zu\n", text_path.c_str(), tokens.size(), n_positions);
    return 2;
  }
  tokens.resize(n_positions);

  const std::vector<SamplingParams> all_params = settings();
  size_t n_different = 0, n_computed = 0, n_screened = 0;
  for (size_t first = 0; first < tokens.size(); first += kContext - 1) {
    std::vector<TokenId> piece(1, tokenizer.special().bos);
    piece.insert(piece.end(), tokens.begin() + static_cast<std::ptrdiff_t>(first),
                 tokens.begin() + static_cast<std::ptrdiff_t>(std::min(tokens.size(), first + kContext - 1)));
    KvSequence kv(model.kv_pool());
    for (size_t at = 0; at < piece.size(); at += kRows) {
      const std::span<const TokenId> rows = std::span(piece).subspan(at, std::min<size_t>(kRows, piece.size() - at));
      const int position = static_cast<int>(at);
      SamplingParams params = all_params[(first + at) / kRows % all_params.size()];
      params.seed = first + at;
      std::vector<TokenId> want;
      for (const bool screened : {false, true}) {  // the same positions twice
        Sampler sampler(params, {});
        for (size_t i = 0; i <= at; ++i) sampler.accept(piece[i]);
        // Screened with the penalties of later rows besides.
        const TopRows top = screened ? sampler.wanted(rows) : TopRows{};
        std::vector<WantedRow> wanted;
        for (int i = 0; i < static_cast<int>(rows.size()); ++i) wanted.push_back({i, top});
        const SequenceInput input{&kv, position, rows, wanted, {}};
        const auto on_logits = [&](size_t, int index, const Logits& logits) {
          const auto i = static_cast<size_t>(index);
          const TokenId token = sampler.sample(logits).token;
          if (i + 1 < rows.size()) sampler.accept(rows[i + 1]);
          if (!screened) return want.push_back(token);
          n_different += token != want[i];
          if (logits.tokens.empty()) return;  // the screen is being built
          ++n_screened;
          n_computed += logits.tokens.size();
        };
        model.forward({&input, 1}, [] { return false; }, on_logits);
        if (!screened) kv.rollback(position);
      }
      kv.trim(position + static_cast<int>(rows.size()));
    }
    std::fprintf(stderr, "%zu of %zu positions, %zu different\r", std::min(tokens.size(), first + kContext - 1),
                 tokens.size(), n_different);
  }
  std::printf("{\"positions\":%zu,\"different\":%zu,\"screened\":%zu,\"computedPerRow\":%.0f}\n", tokens.size(),
              n_different, n_screened,
              static_cast<double>(n_computed) / static_cast<double>(std::max<size_t>(n_screened, 1)));
  return n_different == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: screen_tool MODEL.gguf TEXT.txt [POSITIONS] [ISA]\n");
    return 2;
  }
  try {
    return compare(argv[1], argv[2], argc > 3 ? std::strtoul(argv[3], nullptr, 10) : 100000, argc > 4 ? argv[4] : "");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
