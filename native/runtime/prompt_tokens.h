// From the parts of a prompt, text and markers, to its tokens.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace gemma {

// The control tokens of a prompt, by the numbers that lib/chat-template.ts has for them.
enum class Marker : int { kBos = 0, kStartOfTurn = 1, kEndOfTurn = 2, kStartOfImage = 3, kEndOfImage = 4, kImage = 5 };
inline constexpr Marker kLastMarker = Marker::kImage;

// A prompt comes in pieces of plain text, markers, and tokens by their ids. Only the text is not trusted. Long text lies
// elsewhere.
using PromptPart = std::variant<std::string, std::string_view, Marker, TokenId>;

// The id that stands for a row of an image. Most files end one short of it, right where it would be.
TokenId image_token(const Tokenizer& tokenizer);

// Text between two markers is one run for the tokenizer, however many pieces it came in: newlines of the template and
// of the user's text merge as they do in one string. Throws Error: kUnsupportedModel, NO_MARKER; kInvalidArgument, BAD_TOKEN for an id past the vocabulary; kDisposed, CANCELLED
// after should_stop, which is asked now and then, was true.
std::vector<TokenId> encode_parts(const Tokenizer& tokenizer, const std::vector<PromptPart>& parts, Trust trust,
                                  const std::function<bool()>& should_stop = nullptr);

}  // namespace gemma
