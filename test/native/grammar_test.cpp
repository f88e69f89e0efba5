// Grammars: the tokens that are allowed against a check of texts that was written apart from them, hostile sources, and
// the engine: whatever is guessed and whoever runs beside, the answer is the same, and it is a text of the grammar.
#include "grammar/grammar.h"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <iterator>
#include <random>
#include <set>
#include <thread>
#include <utility>

#include "check.h"
#include "engine_helpers.h"
#include "gguf/gguf.h"
#include "reader/gguf_reader.h"

namespace gemma {
namespace {

using namespace gemma::test;

// The vocabulary of a tiny model: bytes, letters, syllables and blanks, with control tokens.
const Tokenizer& tokenizer() {
  static const std::unique_ptr<const Tokenizer> tokenizer = [] {
    const auto file = GgufFile::open(data("text-a-f16.gguf"), {.headers_only = true});
    const int n_vocab = static_cast<int>(file->find_tensor("token_embd.weight")->shape[0]);
    return std::make_unique<const Tokenizer>(read_vocabulary(*file, n_vocab));
  }();
  return *tokenizer;
}

std::shared_ptr<const Grammar> compile(GrammarCompiler& compiler, GrammarKind kind, const std::string& text) {
  bool cached = false;
  return compiler.compile({kind, text}, &cached);
}

// The token of these bytes alone.
TokenId token_of(const std::string& bytes) {
  for (TokenId token = 0; token < tokenizer().n_vocab(); ++token) {
    if (!tokenizer().is_control(token) && tokenizer().token_bytes(token) == bytes) return token;
  }
  return -1;
}

std::vector<TokenId> listed(const TokenMask& mask) {
  std::vector<TokenId> tokens;
  for (TokenId token = 0; token < tokenizer().n_vocab(); ++token) {
    if (mask.allows(token)) tokens.push_back(token);
  }
  CHECK(tokens.size() == mask.n_allowed && (tokens.empty() ? -1 : tokens[0]) == mask.first());
  return tokens;
}

enum class Text { kNone, kBeginning, kWhole };  // kBeginning: of a text that goes on

// Follows random allowed tokens; at each place the allowed ones must be those after which look(text) is not kNone, and
// end tokens where the text so far is whole. max_blanks: at the end of the text, after which none is allowed.
void check_walk(const std::shared_ptr<const Grammar>& grammar, const std::function<Text(const std::string&)>& look,
                std::mt19937& rng, int n_steps, size_t max_blanks = 1000000) {
  Matcher matcher(grammar);
  TokenMask mask;
  std::string text;
  for (int step = 0; step < n_steps; ++step) {
    matcher.allowed(&mask);
    const bool whole = look(text) == Text::kWhole;
    CHECK(matcher.complete() == whole);
    const bool no_blank = text.size() - (text.find_last_not_of(" \n\r\t") + 1) >= max_blanks;
    for (TokenId token = 0; token < tokenizer().n_vocab(); ++token) {
      bool want = tokenizer().is_end(token) && whole;
      if (!tokenizer().is_end(token) && !tokenizer().is_control(token))
        want = look(text + std::string(tokenizer().token_bytes(token))) != Text::kNone;
      if (want && no_blank && std::string(" \n\r\t").find(tokenizer().token_bytes(token)[0]) != std::string::npos)
        want = false;
      if (mask.allows(token) == want) continue;
      std::string bytes;
      for (const char c : text + std::string(tokenizer().token_bytes(token, true)))
        bytes += " " + std::to_string(static_cast<unsigned char>(c));
      fail(__FILE__, __LINE__,
           "after \"" + text + "\": token " + std::to_string(token) + " is " + (want ? "refused" : "allowed") +
               ", bytes" + bytes);
    }
    const std::vector<TokenId> tokens = listed(mask);
    const TokenId token = tokens[rng() % tokens.size()];
    CHECK(matcher.accept(token));
    if (matcher.ended()) {
      matcher.allowed(&mask);
      CHECK(mask.n_allowed == 0 && !matcher.accept(token) && matcher.complete());
      return;
    }
    text += tokenizer().token_bytes(token);
  }
}

std::function<Text(const std::string&)> finite(std::set<std::string> texts) {
  return [texts = std::move(texts)](const std::string& text) {
    if (texts.contains(text)) return Text::kWhole;
    const auto next = texts.lower_bound(text);
    return next != texts.end() && next->starts_with(text) ? Text::kBeginning : Text::kNone;
  };
}

// A JSON object or array, read character by character.
class JsonReader {
 public:
  Text read(const std::string& text) {
    for (const char c : text) {
      if (!take(static_cast<unsigned char>(c))) return Text::kNone;
    }
    return state_ == kAfter && stack_.empty() ? Text::kWhole : Text::kBeginning;
  }

 private:
  enum State { kStart, kValue, kFirst, kKey, kFirstKey, kColon, kString, kEscape, kHex, kNumber, kWord, kAfter };

  static bool is_blank(unsigned char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }
  bool value(unsigned char c) {
    number_.clear();
    if (c == '{' || c == '[') {
      stack_.push_back(static_cast<char>(c));
      state_ = c == '{' ? kFirstKey : kFirst;
      return true;
    }
    if (state_ == kStart) return false;
    if (c == '"') return in_key_ = false, state_ = kString, true;
    for (const char* word : {"true", "false", "null"}) {
      if (c == static_cast<unsigned char>(*word)) return word_ = word + 1, state_ = kWord, true;
    }
    state_ = kNumber;
    return number(c);
  }
  bool number(unsigned char c) {
    const std::string next = number_ + static_cast<char>(c);
    const size_t digits = next[0] == '-' ? 1 : 0;
    static const std::string kShape = "-0123456789.eE+";
    if (kShape.find(static_cast<char>(c)) == std::string::npos) return false;
    // Sign, integer without leading zeros, fraction, exponent: each part may still be growing.
    size_t i = digits;
    if (i < next.size() && next[i] == '0') {
      ++i;
    } else {
      if (i < next.size() && !(next[i] >= '1' && next[i] <= '9')) return false;
      while (i < next.size() && std::isdigit(static_cast<unsigned char>(next[i]))) ++i;
    }
    done_ = i > digits;
    if (i < next.size() && next[i] == '.') {
      const size_t first = ++i;
      while (i < next.size() && std::isdigit(static_cast<unsigned char>(next[i]))) ++i;
      done_ = i > first;
    }
    if (i < next.size() && done_ && (next[i] == 'e' || next[i] == 'E')) {
      ++i;
      if (i < next.size() && (next[i] == '+' || next[i] == '-')) ++i;
      const size_t first = i;
      while (i < next.size() && std::isdigit(static_cast<unsigned char>(next[i]))) ++i;
      done_ = i > first;
    }
    if (i != next.size()) return false;
    number_ = next;
    return true;
  }
  bool utf8(unsigned char c) {
    if (n_more_ > 0) {
      const unsigned char low = std::exchange(low_, 0x80), high = std::exchange(high_, 0xBF);
      --n_more_;
      return c >= low && c <= high;
    }
    if (c < 0x80) return true;
    if (c >= 0xC2 && c <= 0xDF) return n_more_ = 1, true;
    if (c >= 0xE0 && c <= 0xEF) {
      if (c == 0xE0) low_ = 0xA0;
      // XGrammar lets surrogates through, which no text holds: decoded they become U+FFFD as other stray bytes do.
      return n_more_ = 2, true;
    }
    if (c >= 0xF0 && c <= 0xF4) {
      if (c == 0xF0) low_ = 0x90;
      if (c == 0xF4) high_ = 0x8F;
      return n_more_ = 3, true;
    }
    return false;
  }
  bool after(unsigned char c) {
    state_ = kAfter;
    if (is_blank(c)) return !stack_.empty();
    if (stack_.empty()) return false;
    if (c == ',') return state_ = stack_.back() == '{' ? kKey : kValue, true;
    if (c != (stack_.back() == '{' ? '}' : ']')) return false;
    stack_.pop_back();
    return true;
  }
  bool take(unsigned char c) {
    switch (state_) {
      case kStart: return value(c);
      case kValue: return is_blank(c) || value(c);
      case kFirst: return is_blank(c) || (c == ']' ? after(c) : value(c));
      case kFirstKey:
        if (c == '}') return after(c);
        [[fallthrough]];
      case kKey:
        if (is_blank(c)) return true;
        in_key_ = true;
        state_ = kString;
        return c == '"';
      case kColon:
        if (c == ':') state_ = kValue;
        return c == ':' || is_blank(c);
      case kString:
        if (n_more_ == 0 && c == '"') return state_ = in_key_ ? kColon : kAfter, true;
        if (n_more_ == 0 && c == '\\') return state_ = kEscape, true;
        return c >= 0x20 && utf8(c);
      case kEscape:
        state_ = c == 'u' ? kHex : kString;
        n_hex_ = 4;
        return std::string("\"\\/bfnrtu").find(static_cast<char>(c)) != std::string::npos;
      case kHex:
        if (--n_hex_ == 0) state_ = kString;
        return std::isxdigit(c) != 0;
      case kWord:
        if (c != static_cast<unsigned char>(*word_)) return false;
        if (*++word_ == '\0') state_ = kAfter;
        return true;
      case kNumber: return number(c) || (done_ && after(c));
      case kAfter: return after(c);
    }
    return false;
  }

  State state_ = kStart;
  std::string stack_;
  bool in_key_ = false;
  bool done_ = false;  // the number may end
  std::string number_;
  const char* word_ = nullptr;
  int n_hex_ = 0;
  int n_more_ = 0;  // bytes of the character
  unsigned char low_ = 0x80, high_ = 0xBF;
};

Text json(const std::string& text) {
  return JsonReader().read(text);
}

TEST("the reader of JSON that others are held against") {
  for (const char* text : {"{}", "[]", "{\"a\":1}", "[1, -2.5e+3 ,\"\\u00e9\xC3\xA9\",true,{}]", "{ \"a\" : [ ] }"})
    CHECK(json(text) == Text::kWhole);
  for (const char* text : {"", "{", "[1", "[-", "[1.", "[1e", "{\"a", "{\"a\"", "{\"a\":tr", "[\"\\u12", "[\"\xC3"})
    CHECK(json(text) == Text::kBeginning);
  for (const char* text :
       {"1", "{,", "[01", "[1.e", "[--", "{\"a\"1", "[\"\\x", "[\"\xC3\"", "[\n1,]", "{} ", "[\"\n", "[tx"})
    CHECK(json(text) == Text::kNone);
}

TEST("allowed tokens are those that lead on: regular expressions and grammars with few texts") {
  GrammarCompiler compiler(tokenizer());
  std::mt19937 rng(5);
  std::set<std::string> words;
  for (const char* a : {"the", "a"}) {
    for (const char* b : {"", " in", " ing"}) {
      for (const char* c : {"", "1", "12"}) words.insert(std::string(a) + b + c);
    }
  }
  std::set<std::string> counted;
  for (const char* a : {"x", "xx", "xxx"}) {
    for (const char* b : {"\xC3\xA9", "\xE2\x82\xAC"}) counted.insert(std::string(a) + b);
  }
  const struct {
    GrammarKind kind;
    std::string source;
    std::set<std::string> texts;
  } cases[] = {
      {GrammarKind::kRegex, "(the|a)( ing?)?(12?)?", {}},
      {GrammarKind::kEbnf, "root ::= (\"the\" | \"a\") b? c?\nb ::= \" in\" \"g\"?\nc ::= \"1\" | \"12\"", {}},
      {GrammarKind::kRegex, "x{1,3}(\xC3\xA9|\xE2\x82\xAC)", counted},
      {GrammarKind::kJsonSchema, R"({"enum": ["on", "one", 1, 12, true]})", {"\"on\"", "\"one\"", "1", "12", "true"}},
      {GrammarKind::kEbnf, "root ::= \"\"", {""}},
  };
  for (const auto& c : cases) {
    const std::shared_ptr<const Grammar> grammar = compile(compiler, c.kind, c.source);
    for (int run = 0; run < 12; ++run) check_walk(grammar, finite(c.texts.empty() ? words : c.texts), rng, 40);
  }
}

TEST("allowed tokens are those that lead on: JSON") {
  GrammarCompiler compiler(tokenizer());
  std::mt19937 rng(6);
  const std::shared_ptr<const Grammar> grammar = compile(compiler, GrammarKind::kJson, "");
  for (int run = 0; run < 20; ++run) check_walk(grammar, json, rng, 60, 40);
  // Nothing in a string that JSON would have escaped, whatever says what the string is.
  for (const char* rule :
       {"", ", \"maxLength\": 30", ", \"minLength\": 2", ", \"pattern\": \".*\"", ", \"pattern\": \"[^a]{3,9}\""}) {
    Matcher matcher(compile(compiler, GrammarKind::kJsonSchema, std::string("{\"type\": \"string\"") + rule + "}"));
    CHECK(matcher.accept(token_of("\"")));
    TokenMask mask;
    for (int i = 0; i < 4; ++i) {
      matcher.allowed(&mask);
      for (const TokenId token : listed(mask)) {
        std::string text = "[\"xxx" + std::string(tokenizer().token_bytes(token));
        CHECK(json(text) != Text::kNone);
      }
      CHECK(matcher.accept(token_of("b")));
    }
  }
}

TEST("control tokens are allowed where they are named, and only there") {
  GrammarCompiler compiler(tokenizer());
  const SpecialIds& special = tokenizer().special();
  const std::string turn = std::to_string(special.start_of_turn);
  const std::string image = std::to_string(special.start_of_image);
  // Text, then perhaps a call between two control tokens, of which the second is to be nowhere else.
  const std::string tags =
      R"({"type": "structural_tag", "format": {"type": "token_triggered_tags", "trigger_tokens": [)" + turn +
      R"(], "tags": [{"type": "tag", "begin": {"type": "token", "token": )" + turn +
      R"(}, "content": {"type": "regex", "pattern": "[0-9]{2}"}, "end": {"type": "token", "token": )" + image +
      "}}], \"exclude_tokens\": [" + image + "]}}";
  Matcher matcher(compile(compiler, GrammarKind::kStructuralTag, tags));
  TokenMask mask;
  const auto controls = [&] {
    matcher.allowed(&mask);
    std::set<TokenId> found;
    for (const TokenId token : listed(mask)) {
      if (tokenizer().is_control(token) && !tokenizer().is_end(token)) found.insert(token);
    }
    return found;
  };
  const TokenId letter = token_of("a");
  const TokenId digit = token_of("7");
  CHECK(letter >= 0 && digit >= 0);
  CHECK(controls() == std::set<TokenId>{special.start_of_turn});
  CHECK(mask.allows(letter) && mask.allows(tokenizer().ends()[0]) && matcher.complete());
  CHECK(!matcher.accept(special.start_of_image) && matcher.accept(letter) && matcher.accept(special.start_of_turn));
  CHECK(controls().empty() && !matcher.complete() && mask.allows(digit) && !mask.allows(letter));
  CHECK(!matcher.accept(tokenizer().ends()[0]));
  CHECK(matcher.accept(digit) && controls().empty() && matcher.accept(digit));
  CHECK(controls() == std::set<TokenId>{special.start_of_image} && mask.n_allowed == 1);
  CHECK(matcher.accept(special.start_of_image) && matcher.complete());
  CHECK(controls() == std::set<TokenId>{special.start_of_turn} && mask.allows(letter));
  // The spelling of a control token is text like any other where text is allowed.
  Matcher any(compile(compiler, GrammarKind::kRegex, "<[a-z_]+>"));
  for (const char c : std::string("<start_of_turn>")) CHECK(any.accept(token_of(std::string(1, c))));
  CHECK(any.complete() && !Matcher(compile(compiler, GrammarKind::kRegex, "<[a-z_]+>")).accept(special.start_of_turn));
}

TEST("a matcher that went on and back stands where it stood") {
  GrammarCompiler compiler(tokenizer());
  std::mt19937 rng(7);
  const std::shared_ptr<const Grammar> grammar = compile(compiler, GrammarKind::kJson, "");
  Matcher matcher(grammar);
  std::vector<TokenMask> masks(1);
  matcher.allowed(&masks[0]);
  for (int round = 0; round < 200; ++round) {
    const int n = static_cast<int>(rng() % 9);
    int n_on = 0;
    for (; n_on < n && !matcher.ended(); ++n_on) {
      const std::vector<TokenId> tokens = listed(masks.back());
      CHECK(matcher.accept(tokens[rng() % tokens.size()]));
      matcher.allowed(&masks.emplace_back());
    }
    const int n_back = std::min(n_on, static_cast<int>(rng() % 10));
    matcher.rollback(n_back);
    masks.resize(masks.size() - static_cast<size_t>(n_back));
    TokenMask again;
    matcher.allowed(&again);
    CHECK(again.words == masks.back().words && again.n_allowed == masks.back().n_allowed);
    if (matcher.ended()) break;
  }
}

TEST("sources that are none are refused with what is wrong") {
  GrammarCompiler compiler(tokenizer());
  const struct {
    GrammarKind kind;
    const char* source;
    const char* detail;
  } cases[] = {
      {GrammarKind::kJsonSchema, "", "BAD_SCHEMA"},
      {GrammarKind::kJsonSchema, "{\"type\":", "BAD_SCHEMA"},
      {GrammarKind::kJsonSchema, "17", "BAD_SCHEMA"},
      {GrammarKind::kJsonSchema, "{\"type\": \"thing\"}", "BAD_SCHEMA"},
      {GrammarKind::kJsonSchema, "false", "BAD_SCHEMA"},
      {GrammarKind::kJsonSchema, "{\"$ref\": \"#/definitions/none\"}", "BAD_SCHEMA"},
      {GrammarKind::kRegex, "(", "BAD_REGEX"},
      {GrammarKind::kRegex, "[z-a]", "BAD_REGEX"},
      {GrammarKind::kRegex, "a{2,1}", "BAD_REGEX"},
      {GrammarKind::kEbnf, "", "BAD_GRAMMAR"},
      {GrammarKind::kEbnf, "root ::= missing", "BAD_GRAMMAR"},
      {GrammarKind::kEbnf, "other ::= \"a\"", "BAD_GRAMMAR"},
      {GrammarKind::kEbnf, "root ::= \"a", "BAD_GRAMMAR"},
      {GrammarKind::kEbnf, "root ::= root", "BAD_GRAMMAR"},
      {GrammarKind::kStructuralTag, "{}", "BAD_STRUCTURAL_TAG"},
      {GrammarKind::kStructuralTag,
       "{\"type\": \"structural_tag\", \"format\": {\"type\": \"token\", \"token\": 99999999}}", "BAD_STRUCTURAL_TAG"},
      {GrammarKind::kStructuralTag, "{\"type\": \"structural_tag\", \"format\": {\"type\": \"token\", \"token\": -5}}",
       "BAD_STRUCTURAL_TAG"},
  };
  for (const auto& c : cases) {
    try {
      compile(compiler, c.kind, c.source);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kInvalidArgument && error.detail() == c.detail) continue;
      fail(__FILE__, __LINE__, std::string(c.source) + ": " + std::string(error.detail()) + ": " + error.what());
    }
    fail(__FILE__, __LINE__, std::string("compiled: ") + c.source);
  }
}

TEST("what takes long is not compiled quickly, and holds up nobody who compiles what does not") {
  GrammarCompiler compiler(tokenizer());
  const auto large = [](int n) {
    std::string text = R"({"type": "object", "additionalProperties": false, "properties": {)";
    for (int i = 0; i < 1500; ++i) {
      text += (i > 0 ? ", \"" : "\"") + std::to_string(n) + "name" + std::to_string(i) + R"(": {"type": "string"})";
    }
    return GrammarSource{GrammarKind::kJsonSchema, text + "}}"};
  };
  bool cached = false;
  CHECK(compiler.compile(large(0), &cached, Effort::kQuick) == nullptr);
  // Small as a text, large as an automaton.
  const GrammarSource nested{GrammarKind::kRegex, "((((a|b)?c|[d-f]{3}){30}x|y[a-z]{20}){30}z|[0-9]{40}){30}"};
  compiler.compile(nested, &cached, Effort::kQuick);
  std::atomic<int> n_ended{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&, i] {
      try {
        bool was_kept = false;
        compiler.compile(large(i + 1), &was_kept);
      } catch (const Error& error) {
        CHECK(error.detail() == "GRAMMAR_TOO_LARGE" || error.code() == ErrorCode::kDisposed);
      }
      ++n_ended;
    });
  }
  const auto small = compiler.compile({GrammarKind::kRegex, "small[0-9]+"}, &cached, Effort::kQuick);
  CHECK(small != nullptr && !cached && n_ended < 6);
  CHECK(compiler.compile({GrammarKind::kRegex, "small[0-9]+"}, &cached) == small && cached);
  compiler.close();
  for (std::thread& thread : threads) thread.join();
}

TEST("grammars are kept by their source, the last used first, up to a size") {
  GrammarCompiler compiler(tokenizer());
  bool cached = true;
  const auto first = compiler.compile({GrammarKind::kRegex, "a+"}, &cached);
  CHECK(!cached && first->bytes() > 0);
  CHECK(compiler.compile({GrammarKind::kRegex, "a+"}, &cached) == first && cached);
  // The same text is another source as something else.
  CHECK(compiler.compile({GrammarKind::kJsonSchema, "true"}, &cached) != first && !cached);
  CHECK(compiler.compile({GrammarKind::kEbnf, "root ::= \"a\"\nb ::= \"b\""}, &cached) != nullptr && !cached);
  CHECK(compiler.compile({GrammarKind::kEbnf, "root ::= \"a\"\nb ::= \"b\"", "b"}, &cached) != nullptr && !cached);
  // What is large drives out what was not used for longest.
  const std::string padding(kMaxGrammarBytes / 2, ' ');
  for (size_t i = 0; i < 2 * kMaxKeptGrammarBytes / kMaxGrammarBytes; ++i) {
    if (i % 8 == 0) CHECK(compiler.compile({GrammarKind::kRegex, "a+"}, &cached) == first && cached);
    compiler.compile({GrammarKind::kEbnf, "root ::= \"" + std::to_string(i) + "\"" + padding}, &cached);
    CHECK(!cached);
  }
  compiler.compile({GrammarKind::kEbnf, "root ::= \"0\"" + padding}, &cached);
  CHECK(!cached);
  CHECK(compiler.compile({GrammarKind::kRegex, "a+"}, &cached) == first && cached);
  CHECK(compiler.made(*first) && !GrammarCompiler(tokenizer()).made(*first));
}

// ---- the engine

std::shared_ptr<const Grammar> compile(Engine& engine, GrammarKind kind, const std::string& text) {
  bool cached = false;
  return engine.compile_grammar({kind, text}, &cached);
}

std::shared_ptr<Generation> run(Engine& engine, GenerateParams p) {
  auto g = start(engine, std::move(p));
  g->ended.wait();
  return g;
}

GenerateParams bound(GenerateParams p, std::shared_ptr<const Grammar> grammar, DraftMode draft = DraftMode::kOff) {
  p.grammar = std::move(grammar);
  p.draft = draft;
  return p;
}

const char* const kSchema =
    R"({"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}, "kind": {"enum": ["alpha", "alphabet", "beta"]},)"
    R"( "n": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 5}}, "required": ["name", "kind", "n"],)"
    R"( "additionalProperties": false})";

TEST("an answer is a text of its grammar, whatever the sampling, and says whether it is whole") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  const std::shared_ptr<const Grammar> object = compile(*engine, GrammarKind::kJsonSchema, kSchema);
  const std::shared_ptr<const Grammar> words =
      compile(*engine, GrammarKind::kRegex, "(yes|no|maybe)( and (yes|no)){1,3}");
  const auto look = [&] {
    std::set<std::string> texts;
    for (const char* a : {"yes", "no", "maybe"}) {
      for (int n = 1; n <= 3; ++n) {
        for (int bits = 0; bits < 1 << n; ++bits) {
          std::string text = a;
          for (int i = 0; i < n; ++i) text += (bits >> i & 1) != 0 ? " and yes" : " and no";
          texts.insert(text);
        }
      }
    }
    return finite(texts);
  }();
  int n_whole = 0;
  for (uint64_t seed = 0; seed < 25; ++seed) {
    GenerateParams p = sampled(some_tokens(9, static_cast<int>(seed)), 40, seed);
    p.sampling.temperature = seed % 2 == 0 ? 2.0f : 0.0f;
    p.sampling.top_k = seed % 3 == 0 ? 0 : 40;
    if (seed % 5 == 0) p.sampling.repetition_penalty = 1.4f;
    if (seed % 5 == 1) p.sampling.logit_bias = {{token_of("y"), -30.0f}, {token_of("m"), 2.0f}, {token_of("x"), 50.0f}};
    if (seed % 5 == 2) p.sampling.n_logprobs = 3;
    const auto w = run(*engine, bound(p, words));
    CHECK(w->finish.reason == FinishReason::kStop && w->finish.has_grammar && w->finish.grammar_complete);
    CHECK(look(w->text) == Text::kWhole && engine->tokenizer().is_end(w->tokens.back()));
    p.max_tokens = 150;
    const auto o = run(*engine, bound(p, object));
    const bool whole = json(o->text) == Text::kWhole;
    if (json(o->text) == Text::kNone || o->finish.grammar_complete != whole)
      fail(__FILE__, __LINE__, "no beginning of JSON, or taken for whole: " + o->text);
    CHECK(whole || (o->finish.reason == FinishReason::kLength && o->tokens.size() == 150));
    n_whole += whole;
    // Cut in the middle.
    p.max_tokens = 2;
    const auto cut = run(*engine, bound(p, words));
    CHECK(cut->finish.reason == FinishReason::kLength && cut->tokens.size() == 2);
    CHECK(cut->finish.grammar_complete == (look(cut->text) == Text::kWhole));
    CHECK(std::equal(cut->tokens.begin(), cut->tokens.end(), w->tokens.begin()));
  }
  CHECK(n_whole > 0);
  const auto free_run = run(*engine, greedy(some_tokens(9), 3));
  CHECK(!free_run->finish.has_grammar && !free_run->finish.grammar_complete);
}

TEST("a stop sequence, a stop token and a limit end a bound answer where they do others") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  const std::shared_ptr<const Grammar> grammar = compile(*engine, GrammarKind::kRegex, "(ab){2,30}cd?");
  GenerateParams p = bound(greedy(some_tokens(9), 60), grammar);
  p.stop_sequences = {"bab"};
  const auto stopped = run(*engine, p);
  CHECK(stopped->text == "a" && stopped->finish.matched_stop == "bab" && !stopped->finish.grammar_complete);
  // Many tokens follow without being sampled; none too many comes.
  const std::shared_ptr<const Grammar> only = compile(*engine, GrammarKind::kRegex, "(xyz1){20}");
  p = greedy(some_tokens(9), 200);
  const auto all = run(*engine, bound(p, only));
  CHECK(all->finish.grammar_complete && all->text.size() == 80 && all->finish.reason == FinishReason::kStop);
  for (const int n : {1, 2, 7, static_cast<int>(all->tokens.size()) - 1}) {
    p.max_tokens = n;
    p.max_unread = n == 7 ? 3 : 0;
    const auto g = start(*engine, bound(p, only));
    read_all({g});
    CHECK(static_cast<int>(g->tokens.size()) == n && g->finish.reason == FinishReason::kLength);
    CHECK(std::equal(g->tokens.begin(), g->tokens.end(), all->tokens.begin()));
  }
  p = greedy(some_tokens(9), 200);
  p.stop_tokens = {all->tokens[4]};
  const auto token = run(*engine, bound(p, only));
  CHECK(token->tokens.back() == all->tokens[4] && token->finish.reason == FinishReason::kStop);
  CHECK(!token->finish.grammar_complete);
  // No token at all.
  p = greedy(some_tokens(9), 0);
  CHECK(run(*engine, bound(p, only))->tokens.empty() && !run(*engine, bound(p, only))->finish.grammar_complete);
}

TEST("whatever is guessed, a bound answer is that without guessing") {
  LoadOptions o = options("text-a-f16.gguf");
  o.draft_path = data("text-a-q4_0.gguf");
  const std::shared_ptr<Engine> engine = Engine::load(o);
  const std::shared_ptr<const Grammar> grammars[] = {compile(*engine, GrammarKind::kJsonSchema, kSchema),
                                                     compile(*engine, GrammarKind::kJson, ""),
                                                     compile(*engine, GrammarKind::kRegex, "((the|a|in|of) ){4,30}end"),
                                                     compile(*engine, GrammarKind::kRegex, "(abcabd){3,9}")};
  int n_accepted = 0;
  for (uint64_t seed = 0; seed < 24; ++seed) {
    GenerateParams p = sampled(some_tokens(20, static_cast<int>(seed)), 60, seed);
    p.sampling.temperature = seed % 3 == 0 ? 0.0f : 0.8f;
    p.sampling.top_k = 5;
    if (seed % 4 == 1) p.sampling.n_logprobs = 2;
    if (seed % 4 == 2) p.sampling.repetition_penalty = 1.2f;
    const auto& grammar = grammars[seed % std::size(grammars)];
    const auto plain = run(*engine, bound(p, grammar));
    for (const DraftMode mode : {DraftMode::kPromptLookup, DraftMode::kModel}) {
      for (const int n : {-1, 1, 7}) {
        p.n_draft = n;
        const auto drafted = run(*engine, bound(p, grammar, mode));
        CHECK(same(*drafted, *plain) && drafted->finish.grammar_complete == plain->finish.grammar_complete);
        n_accepted += drafted->finish.n_accepted;
      }
    }
  }
  CHECK(n_accepted > 50);
}

TEST("eight answers with eight grammars beside each other, and free ones, are each alone's") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-q4_0.gguf"));
  std::vector<GenerateParams> params;
  for (int i = 0; i < 8; ++i) {
    const std::string letters(1, static_cast<char>('a' + i));
    const auto grammar = i == 0 ? compile(*engine, GrammarKind::kJson, "")
                         : i == 1
                             ? compile(*engine, GrammarKind::kJsonSchema, kSchema)
                             : compile(*engine, GrammarKind::kRegex, "(" + letters + "{2,5}-[0-9]+,){3,12}" + letters);
    params.push_back(bound(sampled(some_tokens(5 + 9 * i, i + 1), 50 + i, static_cast<uint64_t>(i)), grammar,
                           i % 2 == 0 ? DraftMode::kOff : DraftMode::kAuto));
    if (i % 3 == 0) params.push_back(sampled(some_tokens(7 + i, i), 70, 3));
  }
  std::vector<std::shared_ptr<Generation>> alone;
  for (const GenerateParams& p : params) alone.push_back(run(*engine, p));
  std::vector<std::shared_ptr<Generation>> together;
  for (const GenerateParams& p : params) together.push_back(start(*engine, p));
  for (size_t i = 0; i < params.size(); ++i) {
    together[i]->ended.wait();
    CHECK(same(*together[i], *alone[i]) && together[i]->finish.grammar_complete == alone[i]->finish.grammar_complete);
  }
}

TEST("a paused answer whose pages went to others goes on in its grammar") {
  const std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  const std::shared_ptr<const Grammar> grammar = compile(*engine, GrammarKind::kRegex, "(abc[0-9]){30}x");
  GenerateParams p = bound(sampled(some_tokens(33), 70, 4), grammar, DraftMode::kAuto);
  const auto want = run(*engine, p);
  p.max_unread = 6;
  const auto g = start(*engine, p);
  lose_pages(*engine, *g);
  read_all({g});
  CHECK(same(*g, *want));
}

TEST("cancelled, closed and foreign") {
  std::shared_ptr<Engine> engine = Engine::load(options("text-a-f16.gguf"));
  const std::shared_ptr<Engine> other = Engine::load(options("text-a-f16.gguf"));
  const std::shared_ptr<const Grammar> grammar = compile(*engine, GrammarKind::kJson, "");
  CHECK_THROWS(kInvalidArgument, "OTHER_MODEL",
               other->generate(bound(greedy(some_tokens(3), 5), grammar), [](auto&&) {}));
  const auto g = start(*engine, bound(sampled(some_tokens(9), 2000, 1), grammar));
  wait_until([&] { return g->n_tokens > 3; });
  g->request->cancel();
  g->ended.wait();
  CHECK(g->finish.reason == FinishReason::kCancelled && g->finish.has_grammar && json(g->text) != Text::kNone);
  // Compiling while it closes ends with one or the other.
  std::thread closing([&] { engine->close(); });
  for (int i = 0;; ++i) {
    try {
      compile(*engine, GrammarKind::kRegex, "[a-z]{" + std::to_string(i + 1) + "}");
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kDisposed);
      break;
    }
  }
  closing.join();
  engine.reset();
  // A grammar outlives its model.
  Matcher matcher(grammar);
  CHECK(matcher.accept(token_of("[")));
}

}  // namespace
}  // namespace gemma

TEST_MAIN
