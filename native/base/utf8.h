// UTF-8 as the Unicode standard (table 3-7) allows it: no overlong forms, no surrogates, nothing past U+10FFFF.
#pragma once

#include <cstddef>
#include <string_view>

namespace gemma {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// The number of bytes, 1 to 4, of the character at the start of text, which must not be empty. 0 if these bytes cannot
// begin a character, -1 if text ends inside a character that is valid so far.
inline int utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  unsigned low = 0x80;
  unsigned high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) == text.size()) return -1;
    if (byte(static_cast<size_t>(i)) < low || byte(static_cast<size_t>(i)) > high) return 0;
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

}  // namespace gemma
