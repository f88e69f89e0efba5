#include "tokenizer/text_stream.h"

#include <algorithm>
#include <utility>

#include "base/utf8.h"

namespace gemma {

TextStream::TextStream(std::vector<std::string> stop_sequences) {
  for (std::string& stop : stop_sequences) {
    if (stop.empty()) continue;
    std::vector<size_t> border(stop.size(), 0);
    for (size_t i = 1; i < stop.size(); ++i) {
      size_t n = border[i - 1];
      while (n > 0 && stop[n] != stop[i]) n = border[n - 1];
      border[i] = stop[n] == stop[i] ? n + 1 : 0;
    }
    matchers_.push_back({std::move(stop), std::move(border), 0});
  }
}

// Adds decoded text to pending_ until a stop sequence is complete.
void TextStream::append(std::string_view text) {
  for (const char c : text) {
    pending_.push_back(c);
    for (Matcher& m : matchers_) {
      while (m.n_matched > 0 && m.stop[m.n_matched] != c) m.n_matched = m.border[m.n_matched - 1];
      if (m.stop[m.n_matched] == c) ++m.n_matched;
      if (m.n_matched == m.stop.size()) {
        m.n_matched = m.border[m.n_matched - 1];
        stopped_ = true;
        if (m.stop.size() > matched_.size()) matched_ = m.stop;
      }
    }
    if (stopped_) {
      pending_.resize(pending_.size() - matched_.size());
      return;
    }
  }
}

std::string TextStream::advance(std::string_view bytes, Rest what_follows) {
  if (stopped_) return {};
  bytes_ += bytes;
  std::string_view rest = bytes_;
  while (!rest.empty() && !stopped_) {
    const int length = utf8_length(rest);
    if (length < 0 && what_follows != Rest::kMissing) break;
    if (length > 0) {
      append(rest.substr(0, static_cast<size_t>(length)));
      rest.remove_prefix(static_cast<size_t>(length));
    } else {
      append(kReplacementCharacter);
      rest.remove_prefix(1);
    }
  }
  bytes_.erase(0, bytes_.size() - rest.size());

  size_t n_held = 0;
  if (what_follows == Rest::kComes && !stopped_) {
    for (const Matcher& m : matchers_) n_held = std::max(n_held, m.n_matched);
  }
  std::string released = pending_.substr(0, pending_.size() - n_held);
  pending_.erase(0, released.size());
  return released;
}

std::string TextStream::push(std::string_view bytes) {
  return advance(bytes, Rest::kComes);
}

std::string TextStream::finish(bool is_whole) {
  return advance({}, is_whole ? Rest::kMissing : Rest::kCut);
}

}  // namespace gemma
