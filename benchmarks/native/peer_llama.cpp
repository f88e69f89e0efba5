// What llama.cpp's own tools do not measure, over its public API. Prints one JSON object.
//
//   peer_llama tokenize MODEL FILE ROUNDS
//       {"tokens":N,"seconds":[...]}: the text of a file to ids, each round anew
//   peer_llama decode MODEL THREADS CONTEXT PORTIONS TOKENS
//       {"seconds":[...]}: PORTIONS times TOKENS greedy tokens, with CONTEXT positions in the cache before
//   peer_llama embed MODEL THREADS IDS
//       {"rows":[[...]],"seconds":[S]}: the first embeddings, and the time for all texts of a file, a text of token ids in
//       each line. As many whole texts as fit into a batch of 512 tokens, the server's default, go through together: what
//       the server does, without HTTP, JSON and its slots.
//
// The cache is not filled by evaluating a prompt of CONTEXT tokens, which takes minutes: 512 tokens are evaluated,
// saved and restored again and again at later positions. What decode costs depends on how many positions are there, not
// on what they hold; `llama-bench -d` measures the same rates.
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "llama.h"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void print_seconds(const std::vector<double>& seconds) {
  std::printf("\"seconds\":[");
  for (size_t i = 0; i < seconds.size(); ++i) std::printf("%s%.6f", i > 0 ? "," : "", seconds[i]);
  std::printf("]}\n");
}

int tokenize(const llama_model* model, const char* file, int rounds) {
  std::ifstream in(file, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (text.empty()) return 1;
  std::vector<llama_token> ids(text.size() + 16);
  std::vector<double> seconds;
  int n = 0;
  for (int i = 0; i < rounds; ++i) {
    const auto start = Clock::now();
    n = llama_tokenize(llama_model_get_vocab(model), text.data(), static_cast<int32_t>(text.size()), ids.data(),
                       static_cast<int32_t>(ids.size()), false, false);
    seconds.push_back(seconds_since(start));
    if (n < 0) return 1;
  }
  std::printf("{\"tokens\":%d,", n);
  print_seconds(seconds);
  return 0;
}

int decode(llama_model* model, int threads, int context, int portions, int tokens) {
  constexpr int kChunk = 512;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>(context + kChunk + portions * tokens + 64);
  params.n_seq_max = 2;
  params.kv_unified = true;
  params.n_threads = params.n_threads_batch = threads;
  params.no_perf = true;
  llama_context* ctx = llama_init_from_model(model, params);
  if (ctx == nullptr) return 1;
  llama_memory_t memory = llama_get_memory(ctx);

  std::vector<llama_token> prompt(kChunk);
  for (int i = 0; i < kChunk; ++i) prompt[static_cast<size_t>(i)] = 1000 + i * 97;
  if (llama_decode(ctx, llama_batch_get_one(prompt.data(), kChunk)) != 0) return 1;
  std::vector<uint8_t> state(llama_state_seq_get_size(ctx, 0));
  if (llama_state_seq_get_data(ctx, state.data(), state.size(), 0) != state.size()) return 1;
  for (int at = kChunk; at < context; at += kChunk) {
    if (llama_state_seq_set_data(ctx, state.data(), state.size(), 1) == 0) return 1;
    llama_memory_seq_add(memory, 1, 0, -1, at);
    llama_memory_seq_cp(memory, 1, 0, -1, -1);
    llama_memory_seq_rm(memory, 1, -1, -1);
  }
  if (llama_memory_seq_pos_max(memory, 0) != (context + kChunk - 1) / kChunk * kChunk - 1) return 1;

  llama_token token = 1000;
  const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
  const auto step = [&] {
    if (llama_decode(ctx, llama_batch_get_one(&token, 1)) != 0) return false;
    const float* logits = llama_get_logits_ith(ctx, -1);
    token = 0;
    for (int i = 1; i < n_vocab; ++i) {
      if (logits[i] > logits[token]) token = i;
    }
    return true;
  };
  for (int i = 0; i < 4; ++i) {  // the first one also moves the keys to their positions
    if (!step()) return 1;
  }
  std::vector<double> seconds;
  for (int p = 0; p < portions; ++p) {
    const auto start = Clock::now();
    for (int i = 0; i < tokens; ++i) {
      if (!step()) return 1;
    }
    seconds.push_back(seconds_since(start));
  }
  llama_free(ctx);
  std::printf("{");
  print_seconds(seconds);
  return 0;
}

int embed(llama_model* model, int threads, const char* file) {
  constexpr int kBatch = 512;
  std::vector<std::vector<llama_token>> texts;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    std::vector<llama_token>& ids = texts.emplace_back();
    for (const char* p = line.c_str(); *p != '\0';) {
      char* end = nullptr;
      ids.push_back(static_cast<llama_token>(std::strtol(p, &end, 10)));
      if (end == p) return 1;
      p = *end == ' ' ? end + 1 : end;
    }
    if (ids.empty() || ids.size() > kBatch) return 1;
  }
  llama_context_params params = llama_context_default_params();
  params.n_ctx = kBatch;
  params.n_batch = params.n_ubatch = kBatch;
  params.n_seq_max = 64;
  params.kv_unified = true;
  params.n_threads = params.n_threads_batch = threads;
  params.embeddings = true;
  params.no_perf = true;
  llama_context* ctx = llama_init_from_model(model, params);
  if (ctx == nullptr) return 1;
  llama_batch batch = llama_batch_init(kBatch, 0, 1);
  const size_t dim = static_cast<size_t>(llama_model_n_embd(model));
  std::vector<float> rows(texts.size() * dim);
  const auto run = [&](size_t n_texts) {
    for (size_t first = 0; first < n_texts;) {
      size_t next = first;
      batch.n_tokens = 0;
      while (next < n_texts && next - first < 64 &&
             static_cast<size_t>(batch.n_tokens) + texts[next].size() <= kBatch) {
        for (size_t i = 0; i < texts[next].size(); ++i) {
          const int at = batch.n_tokens++;
          batch.token[at] = texts[next][i];
          batch.pos[at] = static_cast<llama_pos>(i);
          batch.n_seq_id[at] = 1;
          batch.seq_id[at][0] = static_cast<llama_seq_id>(next - first);
          batch.logits[at] = 1;
        }
        ++next;
      }
      if (llama_encode(ctx, batch) != 0) return false;
      for (size_t t = first; t < next; ++t) {
        const float* row = llama_get_embeddings_seq(ctx, static_cast<llama_seq_id>(t - first));
        if (row == nullptr) return false;
        double square = 0;
        for (size_t i = 0; i < dim; ++i) square += static_cast<double>(row[i]) * static_cast<double>(row[i]);
        for (size_t i = 0; i < dim; ++i) rows[t * dim + i] = static_cast<float>(row[i] / std::sqrt(square));
      }
      first = next;
    }
    return true;
  };
  const size_t n_first = texts.size() < 4 ? texts.size() : 4;
  if (!run(n_first)) return 1;
  std::printf("{\"rows\":[");
  for (size_t t = 0; t < n_first; ++t) {
    for (size_t i = 0; i < dim; ++i)
      std::printf("%s%.8g", i > 0 ? "," : (t > 0 ? ",[" : "["), static_cast<double>(rows[t * dim + i]));
    std::printf("]");
  }
  std::printf("],");
  const auto start = Clock::now();
  if (!run(texts.size())) return 1;
  print_seconds({seconds_since(start)});
  llama_batch_free(batch);
  llama_free(ctx);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 2 ? argv[1] : "";
  if (!(mode == "tokenize" && argc == 5) && !(mode == "decode" && argc == 7) && !(mode == "embed" && argc == 5)) {
    std::fprintf(stderr,
                 "usage: peer_llama tokenize MODEL FILE ROUNDS | decode MODEL THREADS CONTEXT PORTIONS TOKENS | "
                 "embed MODEL THREADS IDS\n");
    return 2;
  }
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level >= GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  llama_backend_init();
  llama_model_params params = llama_model_default_params();
  params.vocab_only = mode == "tokenize";
  llama_model* model = llama_model_load_from_file(argv[2], params);
  if (model == nullptr) return 1;
  int result = 0;
  if (mode == "tokenize") {
    result = tokenize(model, argv[3], std::atoi(argv[4]));
  } else if (mode == "embed") {
    result = embed(model, std::atoi(argv[3]), argv[4]);
  } else {
    result = decode(model, std::atoi(argv[3]), std::atoi(argv[4]), std::atoi(argv[5]), std::atoi(argv[6]));
  }
  llama_model_free(model);
  return result;
}
