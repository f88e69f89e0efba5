// libFuzzer entry: any bytes as a schema, a regular expression, EBNF or structural tags. The first byte says which, the second
// which tokens are taken. It is compiled, or refused with an Error, within the limits of what is compiled quickly; then an
// answer is followed, in which allowed tokens are accepted and no others. Built with GEMMA_FUZZ and run by scripts/fuzz.mjs.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "grammar/grammar.h"
#include "tokenizer/tokenizer.h"

namespace {

void require(bool condition) {
  if (!condition) __builtin_trap();
}

// Bytes, some pieces of several characters, and control tokens.
const gemma::Tokenizer& tokenizer() {
  static const std::unique_ptr<const gemma::Tokenizer> tokenizer = [] {
    static std::vector<std::string> bytes;
    gemma::Vocabulary v;
    const auto add = [&](std::string_view piece, gemma::TokenKind kind) {
      v.pieces.push_back(piece);
      v.kinds.push_back(kind);
      v.scores.push_back(-static_cast<float>(v.pieces.size()));
    };
    for (const std::string_view name : {"<pad>", "<eos>", "<bos>", "<end_of_turn>"})
      add(name, gemma::TokenKind::kControl);
    constexpr char kHex[] = "0123456789ABCDEF";
    bytes.reserve(256);
    for (int i = 0; i < 256; ++i) {
      bytes.push_back(std::string("<0x") + kHex[i / 16] + kHex[i % 16] + ">");
      add(bytes.back(), gemma::TokenKind::kByte);
    }
    for (const std::string_view piece :
         {"{\"", "\":", "\",", "\"}", "true", "null", "12", "ab", "abc", "\xE2\x96\x81", "\xE2\x96\x81\xE2\x96\x81",
          "\xC3\xA9", "\xE6\x97\xA5", "\n\n", "root", "a\xE2\x96\x81"})
      add(piece, gemma::TokenKind::kNormal);
    v.eos = 1;
    v.bos = 2;
    return std::make_unique<const gemma::Tokenizer>(v);
  }();
  return *tokenizer;
}

void follow(const std::shared_ptr<const gemma::Grammar>& grammar, unsigned choice) {
  gemma::Matcher matcher(grammar);
  gemma::TokenMask mask;
  for (int step = 0; step < 12 && !matcher.ended(); ++step) {
    matcher.allowed(&mask);
    if (mask.n_allowed == 0) return;  // a dead end
    std::vector<gemma::TokenId> allowed;
    gemma::TokenId refused = -1;
    for (gemma::TokenId token = 0; token < tokenizer().n_vocab(); ++token) {
      if (mask.allows(token))
        allowed.push_back(token);
      else
        refused = token;
    }
    require(allowed.size() == mask.n_allowed && allowed.front() == mask.first());
    require(refused < 0 || tokenizer().is_control(refused) || !matcher.accept(refused));
    const gemma::TokenId token = allowed[choice % allowed.size()];
    choice = choice * 1103515245 + 12345;
    const bool was_complete = matcher.complete();
    require(matcher.accept(token));
    if (step % 4 == 3) {
      matcher.rollback(1);
      require(matcher.complete() == was_complete && matcher.accept(token));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  constexpr gemma::GrammarKind kKinds[] = {gemma::GrammarKind::kJsonSchema, gemma::GrammarKind::kRegex,
                                           gemma::GrammarKind::kEbnf, gemma::GrammarKind::kStructuralTag};
  const gemma::GrammarSource source{kKinds[data[0] % 4],
                                    std::string(reinterpret_cast<const char*>(data) + 2, size - 2)};
  static gemma::GrammarCompiler compiler(tokenizer());  // keeps its vocabulary, and what it compiled last
  try {
    bool is_cached = false;
    if (const auto grammar = compiler.compile(source, &is_cached, gemma::Effort::kQuick)) follow(grammar, data[1]);
  } catch (const gemma::Error&) {
  }
  return 0;
}
