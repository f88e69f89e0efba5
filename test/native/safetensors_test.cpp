// The JSON reader and the safetensors reader on sound texts and on every kind of broken one.
#include "safetensors/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "base/json.h"
#include "check.h"
#include "reader/hf_vocabulary.h"

using namespace gemma;
using Bytes = std::vector<std::byte>;

namespace {

constexpr JsonRules kRules = {.code = ErrorCode::kSafetensorsInvalid, .detail = "BAD_JSON"};

void check_json(int line, const char* detail, std::string_view text, const JsonRules& rules = kRules) {
  test::check_throws(__FILE__, line, ErrorCode::kSafetensorsInvalid, detail, [&] {
    JsonReader json(text, rules);
    json.skip();
    json.end();
  });
}
#define CHECK_JSON(...) check_json(__LINE__, "BAD_JSON", __VA_ARGS__)

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

// A file of this header and n_data bytes of data.
Bytes file_of(const std::string& header, size_t n_data, uint64_t length = 0) {
  Bytes bytes(8 + header.size() + n_data);
  if (length == 0) length = header.size();
  std::memcpy(bytes.data(), &length, 8);
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  for (size_t i = 0; i < n_data; ++i) bytes[8 + header.size() + i] = static_cast<std::byte>(i + 1);
  return bytes;
}

std::string tensor(const std::string& type, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + type + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

void check_invalid(int line, const char* detail, const Bytes& bytes) {
  // At an odd address in an allocation of their own, so that a sanitizer sees any step outside.
  const std::unique_ptr<std::byte[]> exact(new std::byte[bytes.size() + 1]);
  std::copy(bytes.begin(), bytes.end(), exact.get() + 1);
  test::check_throws(__FILE__, line, ErrorCode::kSafetensorsInvalid, detail,
                     [&] { SafetensorsFile::parse({exact.get() + 1, bytes.size()}); });
}
#define CHECK_INVALID(detail, ...) check_invalid(__LINE__, detail, file_of(__VA_ARGS__))

}  // namespace

TEST("json: values of all kinds") {
  JsonReader json(R"( {"a": 1, "b" : [true, false, null, -0.5e2, ""], "\u00e9\ud83d\ude00": "x\n\"\u0000", "é": {} } )",
                  kRules);
  std::vector<std::string> keys;
  json.read_object([&](std::string_view key) {
    keys.emplace_back(key);
    if (key == "a") {
      CHECK(json.kind() == JsonKind::kNumber);
      CHECK(json.read_int(0, 1) == 1);
    } else if (key == "b") {
      int i = 0;
      json.read_array([&] {
        if (i == 0) CHECK(json.read_bool());
        if (i == 1) CHECK(!json.read_null() && !json.read_bool());
        if (i == 2) CHECK(json.read_null());
        if (i == 3) CHECK(json.read_number() == -50);
        if (i == 4) CHECK(json.read_string().empty());
        ++i;
      });
      CHECK(i == 5);
    } else if (key == "é") {
      json.read_object([](std::string_view) {});
    } else {
      CHECK(json.read_string() == std::string_view("x\n\"\0", 4));
    }
  });
  json.end();
  CHECK((keys == std::vector<std::string>{"a", "b", "é😀", "é"}));
}

TEST("json: blanks of every kind and number between values") {
  const std::string text = R"([1,{"a":"  ","b":[]},null])";
  const std::string blanks = " \t\n\r";
  for (size_t n = 0; n < 40; ++n) {
    for (const char other : blanks) {
      for (size_t at = 0; at <= n; ++at) {
        std::string between(n, ' ');
        if (at < n) between[at] = other;
        std::string spread = between;
        bool is_in_string = false;
        for (const char c : text) {
          if (c == '"') is_in_string = !is_in_string;
          spread += c;
          if (!is_in_string && !(c >= 'a' && c <= 'z')) spread += between;
        }
        JsonReader json(spread, kRules);
        json.skip();
        json.end();
      }
    }
  }
  CHECK_JSON("[1]        x");
  CHECK_JSON("[1,         ");
}

TEST("merges in any order make pieces of the same ranks, whatever the numbers of the pieces") {
  const std::vector<std::string> pieces = {"a", "b", "c", "ab", "bc", "abc", "ca"};
  const std::vector<std::string> merges = {"a b", "b c", "ab c", "a bc", "c a"};
  const std::vector<float> scores = {-1e9f, -1e9f, -1e9f, 0, -1, -2, -4};
  std::vector<size_t> order = {0, 1, 2, 3, 4, 5, 6};
  do {
    std::string vocab;
    for (size_t i = 0; i < pieces.size(); ++i)
      vocab += (i == 0 ? "" : ",") + ("\"" + pieces[i] + "\":" + std::to_string(order[i]));
    std::string pairs;
    for (const std::string& merge : merges) pairs += (pairs.empty() ? "\"" : ",\"") + merge + "\"";
    // Pieces lie in the text.
    const std::string text =
        R"({"normalizer":{"type":"Replace","pattern":{"String":" "},"content":"\u2581"},"model":{"type":"BPE",)"
        R"("byte_fallback":true,"vocab":{)" +
        vocab + "},\"merges\":[" + pairs + "]}}";
    HfVocabulary vocabulary(7);
    read_tokenizer_json(text, &vocabulary);
    for (size_t i = 0; i < pieces.size(); ++i) {
      CHECK(vocabulary.tokens.pieces[order[i]] == pieces[i]);
      CHECK(vocabulary.tokens.scores[order[i]] == scores[i]);
    }
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST("json: numbers") {
  const auto number = [](std::string_view text) { return JsonReader(text, kRules).read_number(); };
  CHECK(number("0") == 0 && std::signbit(number("-0")) && number("1e-06") == 1e-6 && number("1E+2") == 100);
  CHECK(number("0.1") == 0.1 && number("123456789012345678901234567890") == 123456789012345678901234567890.0);
  CHECK(number("4.9e-324") == 4.9e-324 && number("1e-999") == 0 && number("1.7976931348623157e308") < HUGE_VAL);
  CHECK(number("0.07715167498104596") == 0.07715167498104596);
  for (const char* text : {"1e999", "-1e999", "01", "-", "+1", ".5", "1.", "1e", "1e+", "NaN", "Infinity", "-Infinity",
                           "0x10", "1_0", "--1"})
    CHECK_JSON(text);
  const auto integer = [](std::string_view text) { return JsonReader(text, kRules).read_int(); };
  CHECK(integer("9223372036854775807") == std::numeric_limits<int64_t>::max() && integer("-9223372036854775808") < 0);
  for (const char* text : {"9223372036854775808", "1.0", "1e2", "true", "\"1\"", "[]"})
    CHECK_THROWS(kSafetensorsInvalid, "BAD_JSON", JsonReader(text, kRules).read_int());
  CHECK_THROWS(kSafetensorsInvalid, "BAD_JSON", JsonReader("8", kRules).read_int(0, 7));
  CHECK_THROWS(kSafetensorsInvalid, "BAD_JSON", JsonReader("-1", kRules).read_number(0));
}

TEST("json: what is not valid") {
  for (const char* text : {"",
                           " ",
                           "{",
                           "[",
                           "[1",
                           "[1,",
                           "[1,]",
                           "[,1]",
                           "[1 2]",
                           "{\"a\"}",
                           "{\"a\":}",
                           "{\"a\":1,}",
                           "{a:1}",
                           "{1:1}",
                           "{\"a\":1 \"b\":2}",
                           "{\"a\" 1}",
                           "]",
                           "}",
                           "[}",
                           "{]",
                           "[1}",
                           "nul",
                           "True",
                           "'a'",
                           "\"a",
                           "\"\\x\"",
                           "\"\\u12\"",
                           "\"\\u12g4\"",
                           "\"\\\"",
                           "\"\n\"",
                           "1 2",
                           "// c\n1",
                           "\xEF\xBB\xBF{}",
                           "\"\\ud800\"",
                           "\"\\ud800\\u0041\"",
                           "\"\\udc00\"",
                           "\"\\ud800\\n\"",
                           "\"\xff\"",
                           "\"\xc0\xaf\"",
                           "\"\xed\xa0\x80\"",
                           "\"\xe2\x82\"",
                           "\xc3\xa9"})
    CHECK_JSON(text);
  CHECK_JSON(std::string_view("\"a\0b\"", 5));
  CHECK_JSON(std::string_view("\0", 1));
}

TEST("json: limits") {
  const std::string deep(100000, '[');
  CHECK_JSON(deep);
  const auto nested = [](size_t n) { return std::string(n, '[') + std::string(n, ']'); };
  const std::string text = nested(64);
  JsonReader(text, kRules).skip();
  CHECK_JSON(nested(65));
  std::string objects;
  for (int i = 0; i < 65; ++i) objects += "{\"a\":";
  CHECK_JSON(objects);
  JsonRules few = kRules;
  few.max_values = 4;
  CHECK_JSON("[1,2,3,4]", few);
  CHECK_JSON("{\"a\":1,\"b\":2}", few);
  JsonReader("[1,2,3]", few).skip();
}

TEST("json: a key that comes twice") {
  check_json(__LINE__, "DUPLICATE", R"({"a":1,"b":2,"a":3})");
  check_json(__LINE__, "DUPLICATE", R"([{"x":{"a":1,"\u0061":2}}])");
  check_json(__LINE__, "DUPLICATE", R"({"":1,"":2})");
  JsonReader(R"({"a":{"a":{"a":1}},"A":[{"a":1},{"a":1}]})", kRules).skip();
  std::string many = "{";
  for (int i = 0; i < 50000; ++i) many += "\"k" + std::to_string(i) + "\":" + std::to_string(i) + ",";
  JsonReader(many + "\"k\":0}", kRules).skip();
  check_json(__LINE__, "DUPLICATE", many + "\"k777\":0}");
}

TEST("json: messages say where") {
  const std::string message = message_of([] {
    JsonReader json(R"({"a": {"b\n": [1, {"c": "x"}]}})", kRules);
    json.read_object([&](std::string_view) {
      json.read_object([&](std::string_view) {
        json.read_array([&] {
          if (json.kind() == JsonKind::kNumber) return json.skip();
          json.read_object([&](std::string_view) { json.read_int(); });
        });
      });
    });
  });
  CHECK(message == R"("a"."b\x0a"[1]."c": expected an integer, found a string (at byte 24 of 31))");
}

TEST("safetensors: a sound file") {
  const std::string header = R"(  {"second": )" + tensor("BF16", "[2,3]", "[8,20]") +
                             R"(,"__metadata__":{"format":"pt"},
    "first":)" + tensor("F32", "[]", "[0,4]") +
                             R"(,"none":)" + tensor("U8", "[7,0]", "[8,8]") + R"(,"":)" +
                             R"({"data_offsets":[4,8],"more":[{}],"shape":[1,1,4],"dtype":"F8_E4M3"}})" + "  \n";
  const Bytes bytes = file_of(header, 20);
  const auto file = SafetensorsFile::parse(bytes);
  CHECK(file->tensors().size() == 4 && file->tensors()[0].name == "second" && file->file_bytes() == bytes.size());
  CHECK(file->metadata().size() == 1 && file->metadata()[0] == std::pair(std::string("format"), std::string("pt")));
  const SafetensorsTensor& second = *file->find("second");
  CHECK(second.type->type == TensorType::kBF16 && (second.shape == std::vector<int64_t>{2, 3}) && second.bytes == 12);
  CHECK(second.data == bytes.data() + 8 + header.size() + 8 && second.offset == 8 + header.size() + 8);
  CHECK(file->find("first")->shape.empty() && file->find("first")->bytes == 4);
  CHECK(file->find("none")->bytes == 0 && file->find("")->bytes == 4 && !file->find("")->type->type);
  CHECK(file->find("third") == nullptr);
  CHECK(SafetensorsFile::parse(file_of("{}", 0))->tensors().empty());
  CHECK(SafetensorsFile::parse(file_of(R"({"__metadata__":null})", 0))->metadata().empty());
}

TEST("safetensors: every kind of broken file") {
  const std::string t = R"({"t":)";
  check_invalid(__LINE__, "TRUNCATED", Bytes());
  check_invalid(__LINE__, "TRUNCATED", Bytes(7));
  CHECK_INVALID("TRUNCATED", "{}", 0, 3);
  CHECK_INVALID("BAD_HEADER", "{}", 0, uint64_t{1} << 63);
  CHECK_INVALID("BAD_HEADER", "{}", 0, 100000001);
  CHECK_INVALID("TRUNCATED", "{}", 0, 100000000);
  CHECK_INVALID("BAD_HEADER", "{}", 0, 1);
  CHECK_INVALID("BAD_HEADER", "", 0);
  CHECK_INVALID("BAD_HEADER", "{} {}", 0);
  CHECK_INVALID("BAD_HEADER", "[]", 0);
  CHECK_INVALID("BAD_HEADER", std::string(100000, '['), 0);
  CHECK_INVALID("BAD_HEADER", t + std::string(100000, '[') + "}", 0);
  CHECK_INVALID("BAD_HEADER", "{\"\xff\":" + tensor("U8", "[1]", "[0,1]") + "}", 1);
  for (const char* type : {"", "f32", "F33", "F128"})
    CHECK_INVALID("BAD_HEADER", t + tensor(type, "[1]", "[0,4]") + "}", 4);
  CHECK_INVALID("BAD_HEADER", t + R"({"dtype":1,"shape":[1],"data_offsets":[0,4]}})", 4);
  CHECK_INVALID("BAD_HEADER", t + R"({"shape":[1],"data_offsets":[0,4]}})", 4);
  CHECK_INVALID("BAD_HEADER", t + R"({"dtype":"F32","data_offsets":[0,4]}})", 4);
  CHECK_INVALID("BAD_HEADER", t + R"({"dtype":"F32","shape":[1]}})", 4);
  CHECK_INVALID("BAD_HEADER", t + "1}", 0);
  for (const char* shape : {"[-1]", "[1.0]", "[1e0]", "[\"1\"]", "1", "null", "[[1]]", "[18446744073709551616]"})
    CHECK_INVALID("BAD_HEADER", t + tensor("F32", shape, "[0,4]") + "}", 4);
  for (const char* offsets : {"[0]", "[0,4,4]", "[]", "[-4,0]", "[4,0]", "[0,4.0]", "{}", "[0,null]"})
    CHECK_INVALID("BAD_HEADER", t + tensor("F32", "[1]", offsets) + "}", 4);
  for (const char* shape : {"[2]", "[0]", "[1,2]"})
    CHECK_INVALID("BAD_SHAPE", t + tensor("F32", shape, "[0,4]") + "}", 4);
  CHECK_INVALID("BAD_SHAPE", t + tensor("F32", "[4294967296,4294967296]", "[0,4]") + "}", 4);
  CHECK_INVALID("BAD_SHAPE", t + tensor("F32", "[4294967296,4294967296,0]", "[0,0]") + "}", 0);
  CHECK_INVALID("BAD_SHAPE", t + tensor("F64", "[1152921504606846976]", "[0,0]") + "}", 0);
  CHECK_INVALID("BAD_SHAPE", t + tensor("F4", "[3]", "[0,1]") + "}", 1);
  CHECK_INVALID("TRUNCATED", t + tensor("F32", "[2]", "[0,8]") + "}", 7);
  CHECK_INVALID("BAD_HEADER", t + tensor("F32", "[2]", "[0,8]") + "}", 9);
  CHECK_INVALID("BAD_HEADER", "{}", 1);
  CHECK_INVALID("BAD_HEADER", t + tensor("F32", "[1]", "[4,8]") + "}", 8);
  const auto two = [&](const char* first, const char* second) {
    return t + tensor("U8", "[4]", first) + R"(,"u":)" + tensor("U8", "[4]", second) + "}";
  };
  SafetensorsFile::parse(file_of(two("[4,8]", "[0,4]"), 8));
  CHECK_INVALID("BAD_HEADER", two("[0,4]", "[0,4]"), 4);
  CHECK_INVALID("BAD_HEADER", two("[0,4]", "[2,6]"), 6);
  CHECK_INVALID("BAD_HEADER", two("[0,4]", "[5,9]"), 9);
  CHECK_INVALID("DUPLICATE", t + tensor("U8", "[4]", "[0,4]") + R"(,"t":)" + tensor("U8", "[4]", "[0,4]") + "}", 4);
  CHECK_INVALID("DUPLICATE", R"({"__metadata__":{},"__metadata__":{}})", 0);
  CHECK_INVALID("DUPLICATE", R"({"__metadata__":{"a":"","a":""}})", 0);
  CHECK_INVALID("DUPLICATE", t + R"({"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1);
  for (const char* metadata : {"1", "[]", R"({"a":1})", R"({"a":null})", R"({"a":{}})"})
    CHECK_INVALID("BAD_HEADER", std::string(R"({"__metadata__":)") + metadata + "}", 0);
}

TEST("safetensors: mapped, read, and the header alone") {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("gemma-" + std::to_string(std::random_device()()))).string();
  const Bytes bytes = file_of(R"({"t":)" + tensor("BF16", "[4]", "[0,8]") + "}", 8);
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  for (const FileOptions& options : {FileOptions{.mmap = true}, FileOptions{.mmap = false}}) {
    const auto file = SafetensorsFile::open(path, options);
    CHECK(file->find("t")->data[0] == std::byte{1} && file->find("t")->data[7] == std::byte{8});
    file->check();
  }
  CHECK(SafetensorsFile::open(path, {.headers_only = true})->find("t")->data == nullptr);
  std::filesystem::resize_file(path, bytes.size() - 1);
  CHECK(message_of([&] { SafetensorsFile::open(path); }).starts_with(path + ": the tensors end at byte 8"));
  std::filesystem::remove(path);
  CHECK_THROWS(kFile, "", SafetensorsFile::open(path));
}

TEST_MAIN
