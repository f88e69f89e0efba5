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

  // Adds a token's bytes and returns the text that is now certain. A byte that cannot be part of a character becomes
  // one U+FFFD. After a stop sequence was found (stopped()) the returned text ends before it and later calls return
  // nothing. Of several stop sequences the one complete first is taken, of those complete at the same byte the longest,
  // however the text is cut into calls.
  std::string push(std::string_view bytes);
  // The held-back rest at the end of generation; an incomplete character becomes U+FFFD, one per byte.
  std::string finish();
  bool stopped() const { return stopped_; }
  // Which stop sequence was found; empty when none.
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

  std::string advance(std::string_view bytes, bool at_end);
  void append(std::string_view text);
};

}  // namespace gemma
