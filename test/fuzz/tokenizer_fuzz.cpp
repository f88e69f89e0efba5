// libFuzzer entry: any bytes as a vocabulary and a text. The vocabulary is refused with an Error, or encode, decode and
// the text stream keep what they promise.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/utf8.h"
#include "tokenizer/text_stream.h"
#include "tokenizer/tokenizer.h"

namespace {

void require(bool condition) {
  if (!condition) __builtin_trap();
}

// One line per token: kind, score, piece. Behind an empty line: the text.
gemma::Vocabulary read_vocabulary(std::string_view* input) {
  gemma::Vocabulary v;
  static const std::vector<std::string> kBytes = [] {
    std::vector<std::string> names;
    constexpr char kHex[] = "0123456789ABCDEF";
    for (int i = 0; i < 256; ++i) names.push_back(std::string("<0x") + kHex[i / 16] + kHex[i % 16] + ">");
    return names;
  }();
  for (const std::string& name : kBytes) {
    v.pieces.push_back(name);
    v.scores.push_back(0);
    v.kinds.push_back(gemma::TokenKind::kByte);
  }
  while (!input->empty()) {
    const std::string_view line = input->substr(0, input->find('\n'));
    input->remove_prefix(std::min(input->size(), line.size() + 1));
    if (line.size() < 2) break;
    v.kinds.push_back(static_cast<gemma::TokenKind>(1 + static_cast<unsigned char>(line[0]) % 6));
    v.scores.push_back(static_cast<float>(static_cast<signed char>(line[1])));
    v.pieces.push_back(line.substr(2));
  }
  return v;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view input(reinterpret_cast<const char*>(data), size);
  try {
    const gemma::Tokenizer tokenizer(read_vocabulary(&input));
    std::string blanks;  // what decoding must give back
    for (std::string_view rest = input; !rest.empty();) {
      const bool is_metaspace = rest.starts_with("\xE2\x96\x81");
      blanks += is_metaspace ? ' ' : rest[0];
      rest.remove_prefix(is_metaspace ? 3 : 1);
    }
    for (const auto trust : {gemma::Trust::kUser, gemma::Trust::kTemplate}) {
      std::vector<gemma::TokenId> ids;
      tokenizer.encode(input, trust, &ids);
      std::string bytes;
      gemma::TextStream stream;
      std::string streamed;
      for (const gemma::TokenId id : ids) {
        require(trust == gemma::Trust::kTemplate || !tokenizer.is_control(id));
        bytes += tokenizer.token_bytes(id, true);
        streamed += stream.push(tokenizer.token_bytes(id, true));
      }
      streamed += stream.finish(true);
      require(bytes == blanks);
      for (std::string_view rest = streamed; !rest.empty();) {
        const int length = gemma::utf8_length(rest);
        require(length > 0);
        rest.remove_prefix(static_cast<size_t>(length));
      }
      tokenizer.decode(ids);
    }
  } catch (const gemma::Error&) {
  }
  return 0;
}
