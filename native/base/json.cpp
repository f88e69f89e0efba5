// Source: RFC 8259. What is stricter than it is said in json.h.
#include "base/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <locale>
#include <new>
#include <span>
#include <sstream>
#include <utility>

#include "base/hash.h"
#include "base/utf8.h"

namespace gemma {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

bool is_plain(char c) {  // stands for itself in a string
  return c >= 0x20 && c != '"' && c != '\\' && static_cast<unsigned char>(c) < 0x80;
}

const char* name_of(JsonKind kind) {
  constexpr const char* kNames[] = {"null", "true or false", "a number", "a string", "an array", "an object"};
  return kNames[static_cast<size_t>(kind)];
}

uint64_t hash_of(std::string_view key) {
  return hash_bytes(0, std::as_bytes(std::span(key.data(), key.size())));
}

void append_utf8(uint32_t code, std::string* out) {
  const auto put = [&](uint32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | code >> 6);
    put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3f));
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  }
}

// The nearest float64 of a number as JSON writes it; infinity when it is too large.
double to_double(std::string_view text) {
  // A stream with the classic locale: std::strtod obeys the process's, and std::from_chars of floats is not everywhere.
  std::istringstream in{std::string(text)};
  in.imbue(std::locale::classic());
  double value = 0;
  in >> value;
  if (in.bad()) throw std::bad_alloc();  // the stream has caught it
  // Libraries fail on a number that is too large, some on one that is too small as well.
  return in.fail() && std::fabs(value) > 1 ? std::copysign(std::numeric_limits<double>::infinity(), value) : value;
}

std::string number_text(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", x);
  return text;
}

}  // namespace

std::string JsonReader::path() const {
  constexpr size_t kMaxShown = 6;
  std::string out;
  for (size_t i = levels_.size() - std::min(levels_.size(), kMaxShown); i < levels_.size(); ++i) {
    const Level& level = levels_[i];
    if (!level.is_object) {
      if (level.n_items > 0) out += "[" + std::to_string(level.n_items - 1) + "]";
      continue;
    }
    const size_t end = i + 1 < levels_.size() ? levels_[i + 1].first_key : keys_.size();
    if (end == level.first_key) continue;
    size_t at = keys_[end - 1].at;
    std::string unescaped;
    out += (out.empty() ? "" : ".") + quoted(scan_string(&at, &unescaped));
  }
  return out;
}

void JsonReader::fail(const std::string& what, size_t at) const {
  const std::string where = path();
  throw Error(rules_.code, rules_.detail,
              where + (where.empty() ? "" : ": ") + what + " (at byte " + std::to_string(at) + " of " +
                  std::to_string(text_.size()) + ")");
}

void JsonReader::expected(const std::string& what) {
  const char* found = name_of(kind());
  fail("expected " + what + ", found " + found, at_);
}

void JsonReader::skip_blanks() {
  // Large files are often indented: more than half of a published tokenizer.json is blanks.
  constexpr std::string_view kIndent = "        ";
  for (; at_ < text_.size(); ++at_) {
    const char c = text_[at_];
    if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return;
    while (text_.substr(at_ + 1, kIndent.size()) == kIndent) at_ += kIndent.size();
  }
}

size_t JsonReader::offset() {
  skip_blanks();
  return at_;
}

JsonKind JsonReader::kind() {
  skip_blanks();
  if (at_ == text_.size()) fail("expected a value, the text ends", at_);
  switch (text_[at_]) {
    case '{': return JsonKind::kObject;
    case '[': return JsonKind::kArray;
    case '"': return JsonKind::kString;
    case 't':
    case 'f': return JsonKind::kBool;
    case 'n': return JsonKind::kNull;
    default:
      if (text_[at_] == '-' || is_digit(text_[at_])) return JsonKind::kNumber;
      fail("not valid JSON: expected a value, found " + quoted(text_.substr(at_, 1)), at_);
  }
}

void JsonReader::count_value() {
  if (++n_values_ > rules_.max_values)
    fail("more than " + std::to_string(rules_.max_values) + " values are not accepted", at_);
}

void JsonReader::open(char bracket, const char* what) {
  skip_blanks();
  if (at_ == text_.size() || text_[at_] != bracket) expected(what);
  if (levels_.size() == rules_.max_depth) {
    fail("more than " + std::to_string(rules_.max_depth) + " arrays and objects inside each other are not accepted",
         at_);
  }
  count_value();
  ++at_;
  levels_.push_back({bracket == '{', keys_.size(), 0});
}

// Whether an entry follows in the open array or object, which else is closed.
bool JsonReader::next(bool is_first, char closing) {
  skip_blanks();
  const char found = at_ < text_.size() ? text_[at_] : '\0';
  if (found == closing) {
    ++at_;
    return false;
  }
  if (!is_first) {
    if (at_ == text_.size()) fail(std::string("not valid JSON: expected , or ") + closing + ", the text ends", at_);
    if (found != ',') {
      fail(std::string("not valid JSON: expected , or ") + closing + ", found " + quoted(text_.substr(at_, 1)), at_);
    }
    ++at_;
  }
  return true;
}

bool JsonReader::next_item(bool is_first) {
  if (!next(is_first, ']')) return false;
  ++levels_.back().n_items;
  return true;
}

bool JsonReader::next_key(bool is_first, std::string_view* key) {
  if (!next(is_first, '}')) return false;
  skip_blanks();
  if (at_ == text_.size() || text_[at_] != '"') {
    fail("not valid JSON: expected a key, found " +
             (at_ == text_.size() ? std::string("the end") : quoted(text_.substr(at_, 1))),
         at_);
  }
  count_value();
  const size_t at = at_;
  *key = scan_string(&at_, &unescaped_);
  keys_.push_back({hash_of(*key), at});
  skip_blanks();
  if (at_ == text_.size() || text_[at_] != ':') fail("not valid JSON: expected a colon", at_);
  ++at_;
  return true;
}

// By sorting: no choice of keys makes it slow.
void JsonReader::close_object() {
  const auto begin = keys_.begin() + static_cast<ptrdiff_t>(levels_.back().first_key);
  std::sort(begin, keys_.end(), [](const Key& a, const Key& b) { return a.hash < b.hash; });
  for (auto first = begin; first != keys_.end();) {
    const auto last = std::find_if(first, keys_.end(), [&](const Key& key) { return key.hash != first->hash; });
    if (last - first > 1) {
      std::vector<std::pair<std::string, size_t>> same;
      for (auto key = first; key != last; ++key) {
        size_t at = key->at;
        std::string unescaped;
        same.emplace_back(scan_string(&at, &unescaped), key->at);
      }
      std::sort(same.begin(), same.end());
      for (size_t i = 1; i < same.size(); ++i) {
        if (same[i].first != same[i - 1].first) continue;
        keys_.erase(begin, keys_.end());
        levels_.pop_back();
        throw Error(rules_.code, "DUPLICATE",
                    path() + (levels_.empty() ? "" : ": ") + "the key " + quoted(same[i].first) +
                        " comes twice (at byte " + std::to_string(same[i - 1].second) + " and at byte " +
                        std::to_string(same[i].second) + ")");
      }
    }
    first = last;
  }
  keys_.erase(begin, keys_.end());
  levels_.pop_back();
}

// The string whose quotation mark is at *at, which goes on past its end. unescaped holds it if it has escapes.
std::string_view JsonReader::scan_string(size_t* at, std::string* unescaped) const {
  const size_t begin = *at + 1;
  size_t i = begin;
  size_t copied = begin;  // up to there the string is in unescaped
  bool has_escapes = false;
  for (;;) {
    while (i < text_.size() && is_plain(text_[i])) ++i;
    if (i == text_.size()) fail("not valid JSON: a string without an end", begin - 1);
    if (text_[i] == '"') break;
    if (text_[i] == '\\') {
      if (!has_escapes) unescaped->clear();
      has_escapes = true;
      unescaped->append(text_.substr(copied, i - copied));
      unescape(&i, unescaped);
      copied = i;
    } else if (static_cast<unsigned char>(text_[i]) < 0x20) {
      fail("not valid JSON: a control character in a string", i);
    } else {
      const int length = utf8_length(text_.substr(i, 4));
      if (length <= 0) fail("not valid UTF-8", i);
      i += static_cast<size_t>(length);
    }
  }
  *at = i + 1;
  if (!has_escapes) return text_.substr(begin, i - begin);
  unescaped->append(text_.substr(copied, i - copied));
  return *unescaped;
}

uint32_t JsonReader::read_hex(size_t at) const {  // of \uXXXX at the backslash
  uint32_t code = 0;
  const char* begin = text_.data() + at + 2;
  const bool is_there = at + 6 <= text_.size() && text_[at] == '\\' && text_[at + 1] == 'u';
  if (!is_there || std::from_chars(begin, begin + 4, code, 16).ptr != begin + 4)
    fail("not valid JSON: expected an escape of the form \\u0000", at);
  return code;
}

void JsonReader::unescape(size_t* at, std::string* out) const {
  constexpr std::string_view kShort = "\"\\/bfnrt";
  constexpr std::string_view kMeaning = "\"\\/\b\f\n\r\t";
  const char found = *at + 1 < text_.size() ? text_[*at + 1] : '\0';
  if (found != 'u') {
    const size_t i = found == '\0' ? std::string_view::npos : kShort.find(found);
    if (i == std::string_view::npos) fail("not valid JSON: no such escape in a string", *at);
    out->push_back(kMeaning[i]);
    *at += 2;
    return;
  }
  uint32_t code = read_hex(*at);
  if (code >= 0xd800 && code < 0xdc00) {
    const bool is_followed = text_.substr(std::min(*at + 6, text_.size()), 2) == "\\u";
    const uint32_t low = is_followed ? read_hex(*at + 6) : 0;
    if (low < 0xdc00 || low > 0xdfff) fail("not valid JSON: half of a surrogate pair", *at);
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    *at += 6;
  } else if (code >= 0xdc00 && code < 0xe000) {
    fail("not valid JSON: half of a surrogate pair", *at);
  }
  append_utf8(code, out);
  *at += 6;
}

std::string_view JsonReader::read_string() {
  if (kind() != JsonKind::kString) expected("a string");
  count_value();
  return scan_string(&at_, &unescaped_);
}

void JsonReader::read_word(std::string_view word) {
  if (text_.substr(at_, word.size()) != word) fail("not valid JSON: expected a value", at_);
  count_value();
  at_ += word.size();
}

bool JsonReader::read_bool() {
  if (kind() != JsonKind::kBool) expected("true or false");
  const bool value = text_[at_] == 't';
  read_word(value ? "true" : "false");
  return value;
}

bool JsonReader::read_null() {
  if (kind() != JsonKind::kNull) return false;
  read_word("null");
  return true;
}

std::string_view JsonReader::scan_number(bool* is_integer) {
  const size_t begin = at_;
  size_t i = at_;
  const auto digits = [&] {
    const size_t first = i;
    while (i < text_.size() && is_digit(text_[i])) ++i;
    if (i == first) fail("not valid JSON: expected a digit", i);
    return i - first;
  };
  const auto is = [&](std::string_view any) {
    return i < text_.size() && any.find(text_[i]) != std::string_view::npos;
  };
  if (is("-")) ++i;
  const size_t first = i;
  if (digits() > 1 && text_[first] == '0') fail("not valid JSON: a number with a leading zero", begin);
  *is_integer = true;
  if (is(".")) {
    *is_integer = false;
    ++i;
    digits();
  }
  if (is("eE")) {
    *is_integer = false;
    ++i;
    if (is("+-")) ++i;
    digits();
  }
  count_value();
  at_ = i;
  return text_.substr(begin, i - begin);
}

double JsonReader::read_number(double min, double max) {
  if (kind() != JsonKind::kNumber) expected("a number");
  const size_t at = at_;
  bool is_integer = false;
  const std::string_view text = scan_number(&is_integer);
  const double value = to_double(text);
  if (!(value >= min && value <= max)) {
    fail("expected " + number_text(min) + " to " + number_text(max) + ", found " + std::string(text.substr(0, 40)), at);
  }
  return value;
}

int64_t JsonReader::read_int(int64_t min, int64_t max) {
  if (kind() != JsonKind::kNumber) expected("an integer");
  const size_t at = at_;
  bool is_integer = false;
  const std::string_view text = scan_number(&is_integer);
  int64_t value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (!is_integer || text == "-0" || result.ec != std::errc() || value < min || value > max) {
    fail("expected an integer from " + std::to_string(min) + " to " + std::to_string(max) + ", found " +
             std::string(text.substr(0, 40)),
         at);
  }
  return value;
}

void JsonReader::skip() {
  switch (kind()) {
    case JsonKind::kNull: read_null(); return;
    case JsonKind::kBool: read_bool(); return;
    case JsonKind::kString: read_string(); return;
    case JsonKind::kNumber: read_number(); return;
    case JsonKind::kArray: read_array([&] { skip(); }); return;
    case JsonKind::kObject: read_object([&](std::string_view) { skip(); }); return;
  }
}

void JsonReader::end() {
  skip_blanks();
  if (at_ != text_.size()) fail("not valid JSON: expected the end of the text", at_);
}

}  // namespace gemma
