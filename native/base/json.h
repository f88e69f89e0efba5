// Reads JSON (RFC 8259) of strangers: one pass over the text, value by value, no tree. Whoever reads says at each place
// what it expects there; anything else is an Error that names the byte and the key. Memory is that of the longest string
// and of the keys of the objects that are open. Stricter than most: a key that an object has twice is an error, and so
// is half of a surrogate pair. There are no extensions: no comments, no NaN, no byte order mark.
//
//   JsonReader json(text, {.code = ErrorCode::kSafetensorsInvalid, .detail = "BAD_HPARAM"});
//   json.read_object([&](std::string_view key) {
//     if (key == "r") rank = json.read_int(1, 4096);
//     else if (key == "target_modules") json.read_array([&] { names.emplace_back(json.read_string()); });
//     else json.skip();
//   });
//   json.end();
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace gemma {

// What errors of a text are, and how much of it is accepted. The size of the text is for who reads the file to limit.
struct JsonRules {
  ErrorCode code = ErrorCode::kInternal;
  const char* detail = "";      // a literal
  size_t max_depth = 64;        // arrays and objects inside each other
  size_t max_values = 1 << 24;  // of all kinds, keys included
};

enum class JsonKind { kNull, kBool, kNumber, kString, kArray, kObject };

class JsonReader {
 public:
  // text must outlive the reader.
  JsonReader(std::string_view text, const JsonRules& rules) : text_(text), rules_(rules) {}
  JsonReader(const JsonReader&) = delete;
  JsonReader& operator=(const JsonReader&) = delete;

  // Of the value that comes next, by its first byte.
  JsonKind kind();
  // What read_... and skip() throw in general: Error with the code and detail of the rules.
  // The value of an escaped string is a view into the reader, of any other into the text: valid until the next string.
  std::string_view read_string();
  bool read_bool();
  // Nearest float64. NaN and infinity cannot come out: a number that is too large is an error.
  double read_number(double min = std::numeric_limits<double>::lowest(),
                     double max = std::numeric_limits<double>::max());
  // A number without fraction or exponent.
  int64_t read_int(int64_t min = std::numeric_limits<int64_t>::min(),
                   int64_t max = std::numeric_limits<int64_t>::max());
  // True when null comes next, which is read then.
  bool read_null();
  // Checked, whatever it is.
  void skip();

  // f(key) is called for each entry in the order of the text and must read its value. The key is valid until the next
  // string is read. That a key comes twice is found at the end of the object.
  template <class F>
  void read_object(const F& f) {
    open('{', "an object");
    std::string_view key;
    for (bool is_first = true; next_key(is_first, &key); is_first = false) f(key);
    close_object();
  }
  // f() is called before each item and must read it.
  template <class F>
  void read_array(const F& f) {
    open('[', "an array");
    for (bool is_first = true; next_item(is_first); is_first = false) f();
    levels_.pop_back();
  }

  // Nothing but blanks may follow. Checks that it is so.
  void end();

  // Position of the next byte that is not blank.
  size_t offset();
  // Throws: what, with the byte and the keys on the way there.
  [[noreturn]] void fail(const std::string& what, size_t at) const;
  // "expected WHAT, found a string": throws.
  [[noreturn]] void expected(const std::string& what);

 private:
  struct Key {
    uint64_t hash;
    size_t at;  // of its quotation mark
  };
  struct Level {
    bool is_object;
    size_t first_key;  // into keys_
    size_t n_items;
  };

  void skip_blanks();
  void open(char bracket, const char* what);
  bool next_key(bool is_first, std::string_view* key);
  bool next_item(bool is_first);
  bool next(bool is_first, char closing);
  void close_object();
  void count_value();
  std::string_view scan_string(size_t* at, std::string* unescaped) const;
  void unescape(size_t* at, std::string* out) const;
  uint32_t read_hex(size_t at) const;
  std::string_view scan_number(bool* is_integer);
  void read_word(std::string_view word);
  std::string path() const;

  std::string_view text_;
  JsonRules rules_;
  size_t at_ = 0;
  size_t n_values_ = 0;
  std::vector<Level> levels_;
  std::vector<Key> keys_;  // of the open objects
  std::string unescaped_;  // of the last string that has escapes
};

}  // namespace gemma
