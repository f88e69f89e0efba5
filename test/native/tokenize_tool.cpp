// Ids of texts, for test/reference/tokenizer_fuzz.py:  tokenize_tool MODEL.gguf [user|template] <texts >ids
// stdin: texts, each a 32-bit length and its bytes. stdout: for each a 32-bit count and its 32-bit ids. Little endian
// hosts.
//   tokenize_tool MODEL.gguf time FILE   construction time and encoding rate to stdout
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "gguf/gguf.h"
#include "reader/gguf_reader.h"
#include "tokenizer/tokenizer.h"

namespace {

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

bool read_exactly(void* to, size_t n) {
  return std::fread(to, 1, n, stdin) == n;
}

int run(const std::string& path, const std::string& mode, const std::string& text_path) {
  auto start = std::chrono::steady_clock::now();
  const auto file = gemma::GgufFile::open(path, {.headers_only = true});
  const gemma::Tensor* embedding = file->find_tensor("token_embd.weight");
  if (embedding == nullptr) throw std::runtime_error("no tensor token_embd.weight");
  const double open_ms = milliseconds_since(start);
  start = std::chrono::steady_clock::now();
  const gemma::Tokenizer tokenizer(gemma::read_vocabulary(*file, static_cast<int>(embedding->shape[0])));
  const double construct_ms = milliseconds_since(start);

  std::vector<gemma::TokenId> ids;
  if (mode == "time") {
    std::ifstream in(text_path, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    start = std::chrono::steady_clock::now();
    tokenizer.encode(text, gemma::Trust::kUser, &ids);
    const double encode_ms = milliseconds_since(start);
    std::printf("open %.1f ms, vocabulary %.1f ms, %zu bytes to %zu ids in %.1f ms, %.1f MB/s\n", open_ms, construct_ms,
                text.size(), ids.size(), encode_ms, static_cast<double>(text.size()) / 1e3 / encode_ms);
    return 0;
  }
  const auto trust = mode == "template" ? gemma::Trust::kTemplate : gemma::Trust::kUser;
  std::string text;
  for (uint32_t size; read_exactly(&size, sizeof size);) {
    text.resize(size);
    if (!read_exactly(text.data(), size)) throw std::runtime_error("input ends inside a text");
    ids.clear();
    tokenizer.encode(text, trust, &ids);
    const auto count = static_cast<uint32_t>(ids.size());
    std::fwrite(&count, sizeof count, 1, stdout);
    std::fwrite(ids.data(), sizeof ids[0], ids.size(), stdout);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: tokenize_tool MODEL.gguf [user|template|time FILE]\n");
    return 2;
  }
  try {
    return run(argv[1], argc > 2 ? argv[2] : "user", argc > 3 ? argv[3] : "");
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
