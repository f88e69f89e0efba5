// Logits of every position of given ids, as raw float32: what test/reference/compare.py reads.
//
//   logits_tool model.gguf ids.txt out.f32 [kv] [isa] [threads]      kv: f32, f16 (default), q8_0
//
// ids.txt holds ids separated by commas, blanks or line ends.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <future>
#include <iterator>
#include <sstream>
#include <string>

#include "runtime/engine.h"

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: logits_tool model.gguf ids.txt out.f32 [kv] [isa] [threads]\n");
    return 2;
  }
  try {
    std::ifstream file(argv[2]);
    std::string text{std::istreambuf_iterator<char>(file), {}};
    for (char& c : text) {
      if (c == ',') c = ' ';
    }
    gemma::LogitsParams params;
    params.all = true;
    std::istringstream in(text);
    for (gemma::TokenId id; in >> id;) params.tokens.push_back(id);

    gemma::LoadOptions options;
    options.path = argv[1];
    const std::string kv = argc > 4 ? argv[4] : "f16";
    options.kv_type = kv == "f32" ? gemma::KvType::kF32 : kv == "q8_0" ? gemma::KvType::kQ8_0 : gemma::KvType::kF16;
    if (argc > 5) options.isa = argv[5];
    if (argc > 6) options.n_threads = std::atoi(argv[6]);
    options.n_ctx = static_cast<int>(params.tokens.size()) + 1;
    const auto engine = gemma::Engine::load(options);

    std::ofstream out(argv[3], std::ios::binary);
    std::promise<std::shared_ptr<const gemma::Error>> done;
    const auto request = engine->logits(
        params,
        [&](int, std::span<const float> row) {
          out.write(reinterpret_cast<const char*>(row.data()), static_cast<std::streamsize>(row.size_bytes()));
        },
        [&](std::shared_ptr<const gemma::Error> error) { done.set_value(std::move(error)); });
    if (const auto error = done.get_future().get()) throw gemma::Error(*error);
    out.flush();
    if (!out) throw gemma::Error(gemma::ErrorCode::kFile, "", std::string(argv[3]) + ": cannot be written");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "logits_tool: %s\n", error.what());
    return 1;
  }
  return 0;
}
