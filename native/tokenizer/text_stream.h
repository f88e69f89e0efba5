// Bytes of generated tokens -> pieces of valid UTF-8, holding back incomplete characters and possible stop sequences.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace gemma {

class TextStream {
 public:
  // Empty stop sequences are ignored.
  explicit TextStream(std::vector<std::string> stop_sequences = {});

  // Adds a token's bytes and returns the text that can no longer change. A byte that cannot be part of a character
  // becomes one U+FFFD. Once a stop sequence is found (stopped()), the returned text ends before it, and later calls
  // return nothing. The stop sequence that is complete first wins; of those complete at the same byte, the longest. The
  // result does not depend on how the text is cut into calls.
  std::string push(std::string_view bytes);
  // Returns the held-back text at the end of generation. The beginning of a character at its end becomes one U+FFFD per
  // byte where the text is whole; where it was cut off, it ends before this character.
  std::string finish(bool is_whole);
  bool stopped() const { return stopped_; }
  // The stop sequence that was found, or empty.
  const std::string& matched() const { return matched_; }

 private:
  struct Matcher {  // Knuth-Morris-Pratt: one step per byte, whatever overlaps
    std::string stop;
    std::vector<size_t> border;  // [i]: longest proper prefix of stop that ends stop[0..i]
    size_t n_matched = 0;
  };
  std::vector<Matcher> matchers_;
  std::string bytes_;    // the beginning of a character
  std::string pending_;  // decoded, its end may begin a stop sequence
  bool stopped_ = false;
  std::string matched_;

  enum class Rest { kComes, kMissing, kCut };  // what follows the bytes
  std::string advance(std::string_view bytes, Rest rest);
  void append(std::string_view text);
};

}  // namespace gemma
