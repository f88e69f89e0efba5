// Tokenizer against a plain reimplementation of SentencePiece's rule on small vocabularies, the vocabularies of broken
// files, and the text stream against whole-text decoding. The real vocabulary: test/api/tokenizer-golden.test.ts and
// test/reference/tokenizer_fuzz.py.
#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <random>
#include <unordered_map>

#include "base/utf8.h"
#include "check.h"
#include "gguf/gguf.h"
#include "gguf_builder.h"
#include "reader/gguf_reader.h"
#include "tokenizer/text_stream.h"

using namespace gemma;

namespace {

using Ids = std::vector<TokenId>;

struct OwnedVocabulary {
  std::vector<std::string> text;
  Vocabulary vocabulary;
  TokenId add(std::string piece, float score, TokenKind kind = TokenKind::kNormal) {
    text.push_back(std::move(piece));
    vocabulary.scores.push_back(score);
    vocabulary.kinds.push_back(kind);
    vocabulary.pieces.assign(text.begin(), text.end());
    return static_cast<TokenId>(text.size() - 1);
  }
  TokenId id(std::string_view piece) const {
    return static_cast<TokenId>(std::find(text.begin(), text.end(), piece) - text.begin());
  }
};

void add_bytes(OwnedVocabulary* v) {
  for (int i = 0; i < 256; ++i) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(i));
    v->add(name, -1000, TokenKind::kByte);
  }
}

// Gemma's kinds of tokens with a handful of pieces; scores neither fall with length nor are all different.
OwnedVocabulary small_vocabulary() {
  OwnedVocabulary v;
  for (const char* name :
       {"<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<unused0>", "<start_of_turn>", "<end_of_turn>"}) {
    v.add(name, -1000, TokenKind::kControl);
  }
  v.vocabulary.kinds[3] = TokenKind::kUnknown;
  v.vocabulary.pad = 0;
  v.vocabulary.eos = 1;
  v.vocabulary.bos = 2;
  v.vocabulary.unk = 3;
  for (const char* name : {"\n", "\n\n", "\n\n\n", "  ", "   ", "\t", "\t\t", "<b>", "</b>", "<s>", "</s>",
                           "<start_of_image>", "<end_of_image>"}) {
    v.add(name, -1000, TokenKind::kUserDefined);
  }
  add_bytes(&v);
  float score = 0;
  for (const char* piece : {"ab", "aa", "▁a", "bc", "abc", "aab", "▁ab", "▁abc", "aaaa", "ca", "cab", "bb", "é", "éa",
                            "你好", "ba", "▁b", "aaa"}) {
    v.add(piece, score);
    score -= 0.5f;
  }
  v.add("cc", -2.0f);  // a tie with another piece
  v.add("▁cc", 7.0f);  // better than its parts
  for (const char* piece :
       {"▁", "a", "b", "c", "<", ">", "/", "s", "_", "t", "r", "o", "f", "u", "n", "你", "好", "é", "1"})
    v.add(piece, -100);
  return v;
}

std::string replace_all(std::string s, const std::string& from, const std::string& to) {
  for (size_t at = 0; (at = s.find(from, at)) != std::string::npos; at += to.size()) s.replace(at, from.size(), to);
  return s;
}

// SentencePiece's rule, as slow as it comes: strings, and a scan of all pairs for each merge.
Ids encode_plainly(const Vocabulary& v, const std::string& text, const std::vector<TokenId>& marked) {
  std::vector<std::string> piece;
  std::unordered_map<std::string, TokenId> normal;
  for (const std::string_view p : v.pieces) {
    piece.push_back(replace_all(std::string(p), "▁", " "));
    const auto id = static_cast<TokenId>(piece.size() - 1);
    if (v.kinds[piece.size() - 1] == TokenKind::kNormal) normal.emplace(piece.back(), id);
  }
  const std::string s = replace_all(text, "▁", " ");
  Ids ids;
  std::vector<std::string> symbols;
  const auto find = [&](const std::string& symbol) {
    const auto found = normal.find(symbol);
    return found == normal.end() ? TokenId{-1} : found->second;
  };
  const auto flush = [&] {
    for (;;) {
      size_t best = symbols.size();
      float best_score = 0;
      for (size_t i = 0; i + 1 < symbols.size(); ++i) {
        const TokenId id = find(symbols[i] + symbols[i + 1]);
        if (id < 0) continue;
        const float score = v.scores[static_cast<size_t>(id)];
        if (best == symbols.size() || score > best_score) {
          best = i;
          best_score = score;
        }
      }
      if (best == symbols.size()) break;
      symbols[best] += symbols[best + 1];
      symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
    for (const std::string& symbol : symbols) {
      const TokenId id = find(symbol);
      if (id >= 0) {
        ids.push_back(id);
        continue;
      }
      for (const char c : symbol) {
        char name[8];
        std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(static_cast<unsigned char>(c)));
        ids.push_back(static_cast<TokenId>(std::find(piece.begin(), piece.end(), name) - piece.begin()));
      }
    }
    symbols.clear();
  };
  for (size_t at = 0; at < s.size();) {
    TokenId longest = -1;
    for (const TokenId id : marked) {
      const std::string& p = piece[static_cast<size_t>(id)];
      if (s.compare(at, p.size(), p) == 0 && (longest < 0 || p.size() > piece[static_cast<size_t>(longest)].size()))
        longest = id;
    }
    if (longest >= 0) {
      flush();
      ids.push_back(longest);
      at += piece[static_cast<size_t>(longest)].size();
    } else {
      const auto size = static_cast<size_t>(std::max(1, utf8_length(std::string_view(s).substr(at))));
      symbols.push_back(s.substr(at, size));
      at += size;
    }
  }
  flush();
  return ids;
}

Ids encode(const Tokenizer& tokenizer, const std::string& text, Trust trust = Trust::kUser) {
  Ids ids;
  tokenizer.encode(text, trust, &ids);
  return ids;
}

std::string show(const Ids& ids) {
  std::string s;
  for (const TokenId id : ids) s += std::to_string(id) + " ";
  return s;
}

std::string random_text(std::mt19937* rng, const std::vector<std::string>& atoms, size_t max_atoms) {
  std::string text;
  for (size_t n = (*rng)() % (max_atoms + 1); n > 0; --n) {
    const std::string& atom = atoms[(*rng)() % atoms.size()];
    for (size_t times = (*rng)() % 8 == 0 ? (*rng)() % 40 : 1; times > 0; --times) text += atom;
  }
  return text;
}

// Ids whose strings are cut out of text of this trust, by the rules in tokenizer.h, written a second time.
std::vector<TokenId> marked_ids(const Vocabulary& v, Trust trust) {
  std::vector<TokenId> ids;
  for (size_t i = 0; i < v.pieces.size(); ++i) {
    const std::string_view p = v.pieces[i];
    const bool is_image = p == "<start_of_image>" || p == "<end_of_image>";
    const bool is_user_defined = v.kinds[i] == TokenKind::kUserDefined && !is_image;
    const bool is_control = v.kinds[i] == TokenKind::kControl || v.kinds[i] == TokenKind::kUnknown || is_image;
    if (is_user_defined || (is_control && trust == Trust::kTemplate)) ids.push_back(static_cast<TokenId>(i));
  }
  return ids;
}

void compare_on_random_texts(const Vocabulary& v, const std::vector<std::string>& atoms, size_t max_atoms,
                             int n_texts) {
  const Tokenizer tokenizer(v);
  std::mt19937 rng(7);
  for (int i = 0; i < n_texts; ++i) {
    const std::string text = random_text(&rng, atoms, max_atoms);
    for (const Trust trust : {Trust::kUser, Trust::kTemplate}) {
      const Ids got = encode(tokenizer, text, trust);
      const Ids want = encode_plainly(v, text, marked_ids(v, trust));
      if (got != want)
        test::fail(__FILE__, __LINE__, "text: " + text + "\n  got  " + show(got) + "\n  want " + show(want));
      CHECK(tokenizer.decode(got, true).size() >= text.size() / 3);
      if (trust != Trust::kUser) continue;
      for (const TokenId id : got) CHECK(!tokenizer.is_control(id));
    }
  }
}

}  // namespace

TEST("utf8_length") {
  const std::pair<const char*, int> cases[] = {
      {"a", 1},
      {"\x7F", 1},
      {"\xC3\xA9", 2},
      {"\xE2\x96\x81", 3},
      {"\xF0\x9D\x95\x8F", 4},
      {"\xC3", -1},
      {"\xE2\x96", -1},
      {"\xF0\x9D\x95", -1},
      {"\x80", 0},
      {"\xBF", 0},
      {"\xC0\x80", 0},
      {"\xC1\xBF", 0},
      {"\xE0\x80\x80", 0},
      {"\xE0\x80", 0},
      {"\xE0\xA0", -1},
      {"\xED\xA0\x80", 0},
      {"\xED\x9F\xBF", 3},
      {"\xF0\x80\x80\x80", 0},
      {"\xF4\x8F\xBF\xBF", 4},
      {"\xF4\x90\x80\x80", 0},
      {"\xF5\x80\x80\x80", 0},
      {"\xFF", 0},
      {"\xC3"
       "a",
       0},
      {"\xE2\x96"
       "a",
       0},
      {"\xEF\xBF\xBF", 3},
  };
  for (const auto& [text, length] : cases) CHECK(utf8_length(text) == length);
}

TEST("encode equals the plain algorithm: short parts") {
  const OwnedVocabulary v = small_vocabulary();
  compare_on_random_texts(v.vocabulary,
                          {"a",
                           "b",
                           "c",
                           " ",
                           "▁",
                           "\n",
                           "\t",
                           "é",
                           "你好",
                           "你",
                           "1",
                           "x",
                           "<b>",
                           "</s>",
                           "<",
                           "<bos>",
                           "<unused0>",
                           "<start_of_image>",
                           "<start_of_turn>",
                           "<unk>",
                           "𝕏",
                           std::string(1, '\0')},
                          12, 4000);
}

TEST("encode equals the plain algorithm: parts of hundreds of characters") {
  const OwnedVocabulary v = small_vocabulary();
  compare_on_random_texts(v.vocabulary, {"a", "b", "c", "aa", "ab"}, 150, 300);
}

TEST("encode equals the plain algorithm: a trained vocabulary") {
  const auto file = GgufFile::open(GEMMA_TEST_DATA "/text-a-f16.gguf");
  const auto rows = static_cast<int>(file->find_tensor("token_embd.weight")->shape[0]);
  const Vocabulary v = read_vocabulary(*file, rows);
  CHECK(v.bos == 2 && v.eos == 1);
  compare_on_random_texts(v,
                          {"the ", "distant ", "bridge", " paints", "forget", "golden", "e", "n", " ", "  ", "ng", "th",
                           "\n", "er", "你", "<b>"},
                          16, 500);
  const Tokenizer tokenizer(v);
  CHECK((encode(tokenizer, "café 你好 😀 \t\t x  y   z\n\n<b>1234</b>") ==
         Ids{384, 373, 393, 440, 371, 447, 257, 193, 217, 371, 268, 187, 180, 156, 371,
             21,  371, 418, 13,  394, 14,  150, 10,  23,  403, 411, 415, 408, 24}));
  CHECK((encode(tokenizer, "<start_of_turn>user\n", Trust::kTemplate) == Ids{5, 339, 287, 9}));
}

TEST("long runs take linear time") {
  const OwnedVocabulary v = small_vocabulary();
  const Tokenizer tokenizer(v.vocabulary);
  // Quadratic work would be 10^12 steps; the limit leaves room for sanitizers and busy machines.
  const auto start = std::chrono::steady_clock::now();
  for (const char* atom : {"a", "\n", " ", "x", "<", "▁", "你", "ab"}) {
    std::string text;
    for (int i = 0; i < 1000000; ++i) text += atom;
    CHECK(!encode(tokenizer, text).empty());
  }
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(60));
}

TEST("blanks and U+2581 are one character") {
  const OwnedVocabulary v = small_vocabulary();
  const Tokenizer tokenizer(v.vocabulary);
  CHECK(encode(tokenizer, "▁▁") == Ids{v.id("  ")});
  CHECK(encode(tokenizer, "a▁ ▁b") == encode(tokenizer, "a   b"));
  CHECK(tokenizer.decode(encode(tokenizer, "▁abc")) == " abc");
}

TEST("user text never yields control, image or unused tokens, however a file types them") {
  for (const TokenKind kind : {TokenKind::kNormal, TokenKind::kControl, TokenKind::kUserDefined, TokenKind::kUnknown}) {
    OwnedVocabulary v = small_vocabulary();
    const std::vector<std::string> names = {"<pad>",
                                            "<eos>",
                                            "<bos>",
                                            "<unk>",
                                            "<mask>",
                                            "<unused0>",
                                            "[multimodal]",
                                            "<|im_end|>",
                                            "<start_function_response>",
                                            "<start_of_turn>",
                                            "<end_of_turn>",
                                            "<start_of_image>",
                                            "<end_of_image>",
                                            "<image_soft_token>"};
    for (const char* name : {"<image_soft_token>", "[multimodal]", "<|im_end|>", "<start_function_response>"}) {
      v.add(name, -1000);
    }
    // Pieces that would merge into a marker typed as normal.
    v.add("<start_of_", 50);
    v.add("turn>", 50);
    for (const std::string& name : names) v.vocabulary.kinds[static_cast<size_t>(v.id(name))] = kind;
    const Tokenizer tokenizer(v.vocabulary);
    for (const std::string& name : names) {
      const TokenId id = v.id(name);
      CHECK(encode(tokenizer, name, Trust::kTemplate) == Ids{id});
      const Ids ids = encode(tokenizer, name + name);
      CHECK(std::find(ids.begin(), ids.end(), id) == ids.end());
      CHECK(tokenizer.decode(ids) == name + name);
      CHECK(tokenizer.is_control(id));
      CHECK(tokenizer.token_bytes(id).empty());
      CHECK(tokenizer.token_bytes(id, true) == name);
    }
    CHECK(tokenizer.special().start_of_turn == v.id("<start_of_turn>"));
    CHECK(tokenizer.special().image_soft == v.id("<image_soft_token>"));
    CHECK(encode(tokenizer, "<b>") == Ids{v.id("<b>")});
  }
}

TEST("</s> is a tag, whatever its type") {
  OwnedVocabulary v = small_vocabulary();
  v.vocabulary.kinds[static_cast<size_t>(v.id("</s>"))] = TokenKind::kControl;
  const Tokenizer tokenizer(v.vocabulary);
  const TokenId id = v.id("</s>");
  CHECK(encode(tokenizer, "a</s>b") == (Ids{v.id("a"), id, v.id("b")}));
  CHECK(tokenizer.token_bytes(id) == "</s>");
  CHECK(!tokenizer.is_control(id) && !tokenizer.is_end(id));
  CHECK(tokenizer.is_end(v.id("<eos>")) && tokenizer.is_end(v.id("<end_of_turn>")) && !tokenizer.is_end(v.id("a")));
}

TEST("the file's eos ends generation beside <eos>") {
  OwnedVocabulary v = small_vocabulary();
  v.vocabulary.eos = v.id("<mask>");
  const Tokenizer tokenizer(v.vocabulary);
  CHECK(tokenizer.is_end(v.id("<mask>")) && tokenizer.is_end(v.id("<eos>")));
}

TEST("what ends an answer: what the file says, and what is known by name") {
  OwnedVocabulary v = small_vocabulary();
  for (const char* name : {"<|im_end|>", "<|eot_id|>", "<start_function_response>", "<|mine|>", "im_end"}) {
    v.add(name, -1000, TokenKind::kUserDefined);
  }
  v.vocabulary.ends = {v.id("<mask>"), v.id("</s>"), v.id("<mask>")};
  const Tokenizer tokenizer(v.vocabulary);
  Ids expected = {v.id("<eos>"),      v.id("<mask>"),     v.id("<end_of_turn>"),
                  v.id("<|im_end|>"), v.id("<|eot_id|>"), v.id("<start_function_response>")};
  std::sort(expected.begin(), expected.end());
  CHECK(Ids(tokenizer.ends().begin(), tokenizer.ends().end()) == expected);
  for (TokenId id = 0; id < tokenizer.n_vocab(); ++id) {
    CHECK(tokenizer.is_end(id) == (std::find(expected.begin(), expected.end(), id) != expected.end()));
  }
  v.vocabulary.ends = {static_cast<TokenId>(v.vocabulary.pieces.size())};
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", Tokenizer(v.vocabulary));
}

TEST("tokens by their spelling") {
  OwnedVocabulary v = small_vocabulary();
  v.add("<|mine|>", -1000, TokenKind::kUserDefined);
  const Tokenizer tokenizer(v.vocabulary);
  for (const char* name : {"<eos>", "<unused0>", "<start_of_image>", "<b>", "\n\n", "abc", "<|mine|>"}) {
    CHECK(tokenizer.find(name) == v.id(name));
  }
  CHECK(tokenizer.find(" ab") == v.id("▁ab") && tokenizer.find("▁ab") == v.id("▁ab"));
  for (const char* name : {"", "<0x41>", "<eos", "<eos>x", "nothing"}) CHECK(tokenizer.find(name) == -1);
  const Ids markers = tokenizer.markers();
  for (const char* name : {"<pad>", "<eos>", "<unused0>", "<end_of_turn>", "<end_of_image>", "<|mine|>"}) {
    CHECK(std::find(markers.begin(), markers.end(), v.id(name)) != markers.end());
  }
  for (const char* name : {"<b>", "</s>", "\n", "abc"}) {
    CHECK(std::find(markers.begin(), markers.end(), v.id(name)) == markers.end());
  }
}

TEST("bytes that are not UTF-8 are encoded as they are") {
  const OwnedVocabulary v = small_vocabulary();
  const Tokenizer tokenizer(v.vocabulary);
  CHECK(encode(tokenizer, "a\xFF\xE2\x96") == (Ids{v.id("a"), v.id("<0xFF>"), v.id("<0xE2>"), v.id("<0x96>")}));
  CHECK(encode(tokenizer, "<0x41>").size() == 6);  // text, not a byte
}

TEST("without byte tokens characters that are no piece are unknown") {
  OwnedVocabulary v;
  v.add("<unk>", 0, TokenKind::kUnknown);
  v.add("a", 0);
  const Tokenizer tokenizer(v.vocabulary);
  CHECK(encode(tokenizer, "a你a") == (Ids{1, 0, 1}));
}

TEST("decode") {
  const OwnedVocabulary v = small_vocabulary();
  const Tokenizer tokenizer(v.vocabulary);
  const auto byte = [&](const char* name) { return v.id(name); };
  CHECK(tokenizer.decode(Ids{}).empty());
  CHECK(tokenizer.decode(Ids{v.id("▁a"), v.id("b")}) == " ab");
  CHECK(tokenizer.decode(Ids{2, v.id("a"), 1}) == "a");
  CHECK(tokenizer.decode(Ids{2, v.id("a"), 1}, true) == "<bos>a<eos>");
  CHECK(tokenizer.decode(Ids{byte("<0xC3>"), byte("<0xA9>")}) == "é");
  CHECK(tokenizer.decode(Ids{byte("<0xC3>"), v.id("a")}) == "\uFFFDa");
  CHECK(tokenizer.decode(Ids{byte("<0xF0>"), byte("<0x9F>"), byte("<0x94>")}) == "\uFFFD\uFFFD\uFFFD");
  // As in tokenizer.json, one bad byte spoils its run.
  CHECK(tokenizer.decode(Ids{byte("<0x3F>"), byte("<0xFF>")}) == "\uFFFD\uFFFD");
  CHECK_THROWS(kInvalidArgument, "BAD_TOKEN", tokenizer.decode(Ids{tokenizer.n_vocab()}));
  CHECK_THROWS(kInvalidArgument, "BAD_TOKEN", tokenizer.decode(Ids{-1}));
}

TEST("vocabularies that are refused, and what is accepted") {
  const auto construct = [](auto change) {
    OwnedVocabulary v = small_vocabulary();
    change(&v);
    const Tokenizer tokenizer(v.vocabulary);
    return encode(tokenizer, "abc \xF0\x9D\x95\x8F");
  };
  const Ids plain = construct([](OwnedVocabulary*) {});
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", Tokenizer{Vocabulary{}});
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", construct([](auto* v) { v->vocabulary.scores.pop_back(); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", construct([](auto* v) { v->vocabulary.kinds.pop_back(); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", construct([](auto* v) { v->vocabulary.bos = 2147483647; }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", construct([](auto* v) { v->vocabulary.eos = -2; }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", construct([](auto* v) { v->vocabulary.scores.back() = std::nanf(""); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", construct([](auto* v) { v->add("\xFF", 0); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", construct([](auto* v) { v->add("<0xZZ>", 0, TokenKind::kByte); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", construct([](auto* v) { v->add("<0x-1>", 0, TokenKind::kByte); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", construct([](auto* v) { v->add("A", 0, TokenKind::kByte); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", construct([](auto* v) { v->add(std::string(1 << 20, 'a'), 0); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB",
               construct([](auto* v) { v->add(std::string(1 << 20, '<'), 0, TokenKind::kControl); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", Tokenizer([] {
                 Vocabulary v;
                 v.pieces = {"a"};
                 v.scores = {0};
                 v.kinds = {TokenKind::kNormal};
                 return v;
               }()));
  CHECK(construct([](auto* v) { v->add("abc", 9); }) == plain);  // a duplicate: the first counts
  CHECK(construct([](auto* v) { v->add("", 9); }) == plain);
  CHECK(construct([](auto* v) { v->add(std::string("a\0b", 3), 9); }) == plain);
  CHECK(construct([](auto* v) { v->add("<0xF0>", 0, TokenKind::kByte); }) == plain);
  CHECK(construct([](auto* v) { v->add("abc ", 9, TokenKind::kUnused); }) == plain);
}

TEST("read_vocabulary") {
  const auto read = [](auto change, int n_vocab = 291) {
    test::GgufBuilder builder = test::tiny_gemma3();
    change(&builder);
    const std::vector<std::byte> bytes = builder.build();
    const auto file = GgufFile::parse(bytes);
    const Tokenizer tokenizer(read_vocabulary(*file, n_vocab));
    return encode(tokenizer, "hello");
  };
  const Ids plain = read([](auto*) {});
  CHECK(plain.size() == 4);  // he, l, l, o: there is no lo
  const std::string k = "tokenizer.ggml.";
  const auto n = test::tiny_pieces().size();
  CHECK(n == 291);
  const std::vector<float> short_scores(n - 1);
  const std::vector<int32_t> short_types(n - 1, 1);
  CHECK_THROWS(kUnsupportedModel, "", read([&](auto* b) { b->set_string(k + "model", "gpt2"); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", read([&](auto* b) { b->remove(k + "model"); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", read([&](auto* b) { b->remove(k + "tokens"); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", read([&](auto* b) { b->set_strings(k + "tokens", {}); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", read([&](auto* b) { b->set_array(k + "tokens", short_types); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", read([&](auto* b) { b->remove(k + "scores"); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", read([&](auto* b) { b->set_array(k + "scores", short_scores); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", read([&](auto* b) { b->set_array(k + "scores", std::vector<double>(n)); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", read([&](auto* b) { b->set(k + "scores", 1.0f); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", read([&](auto* b) { b->set_array(k + "token_type", short_types); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB",
               read([&](auto* b) { b->set_array(k + "token_type", std::vector<float>(n, 1)); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB",
               read([&](auto* b) { b->set_array(k + "token_type", std::vector<int32_t>(n, 7)); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB",
               read([&](auto* b) { b->set_array(k + "token_type", std::vector<int32_t>(n, -1)); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB",
               read([&](auto* b) { b->template set<uint32_t>(k + "bos_token_id", 2147483647); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", read([&](auto* b) { b->template set<uint32_t>(k + "eos_token_id", 291); }));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", read([](auto*) {}, 0));
  for (const char* key : {"eot_token_id", "eom_token_id"}) {
    CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", read([&](auto* b) { b->template set<uint32_t>(k + key, 291); }));
    CHECK(read([&](auto* b) { b->template set<int64_t>(k + key, -1); }) == plain);
  }
  const auto set_ends = [&](auto values) { return read([&](auto* b) { b->set_array(k + "eos_token_ids", values); }); };
  CHECK(set_ends(std::vector<int32_t>{1, 5, -1}) == plain && set_ends(std::vector<uint32_t>{}) == plain);
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", set_ends(std::vector<int32_t>{291}));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", set_ends(std::vector<int32_t>{-2}));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", set_ends(std::vector<uint32_t>(n + 1, 1)));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", set_ends(std::vector<float>{1}));
  CHECK_THROWS(kGgufInvalid, "BAD_VOCAB", read([&](auto* b) { b->template set<uint32_t>(k + "eos_token_ids", 1); }));
  CHECK(read([&](auto* b) { b->template set<uint32_t>(k + "padding_token_id", 0xFFFFFFFFu); }) == plain);
  CHECK(read([&](auto* b) { b->template set<int64_t>(k + "padding_token_id", -1); }) == plain);

  // Tokens past the rows are cut, rows past the tokens have no text.
  const std::vector<std::byte> bytes = test::tiny_gemma3().build();
  const auto file = GgufFile::parse(bytes);
  const Tokenizer cut(read_vocabulary(*file, 289));
  CHECK(cut.n_vocab() == 289);
  CHECK(encode(cut, "hello").size() == 5);  // without "he"
  const Tokenizer longer(read_vocabulary(*file, 300));
  CHECK(longer.n_vocab() == 300);
  CHECK(longer.is_control(299) && longer.token_bytes(299, true).empty() && longer.decode(Ids{299}).empty());
  CHECK(encode(longer, "hello") == plain);
}

TEST("encoding and decoding stop when they are asked to") {
  const OwnedVocabulary v = small_vocabulary();
  const Tokenizer tokenizer(v.vocabulary);
  const std::string one_word(300000, 'a');
  std::string words;
  for (int i = 0; i < 100000; ++i) words += "abc\n";
  for (const std::string& text : {one_word, words}) {
    const Ids want = encode(tokenizer, text);
    Ids ids;
    int n_asked = 0;
    tokenizer.encode(text, Trust::kUser, &ids, [&] { return ++n_asked, false; });
    CHECK(n_asked > 10 && ids == want);
    CHECK(tokenizer.decode(ids, false, [] { return false; }) == text);
    for (const int last : {1, n_asked / 2}) {
      int n = 0;
      Ids some;
      CHECK_THROWS(kDisposed, "CANCELLED", tokenizer.encode(text, Trust::kUser, &some, [&] { return ++n == last; }));
      CHECK(n == last && some.size() < ids.size());
    }
    CHECK_THROWS(kDisposed, "CANCELLED", tokenizer.decode(ids, false, [] { return true; }));
  }
}

TEST("no token stands for more text than the longest") {
  OwnedVocabulary v = small_vocabulary();
  CHECK(Tokenizer(v.vocabulary).longest_text() == std::string_view("<start_of_image>").size());
  v.add("▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁", -1000, TokenKind::kUserDefined);  // 20 spaces
  v.add("<unused_and_long_enough_to_show>", -1000, TokenKind::kUnused);
  CHECK(Tokenizer(v.vocabulary).longest_text() == 20);
}

// ---- text stream ----

namespace {

// All of the text at once: each byte that is part of no character becomes U+FFFD.
std::string sanitise(const std::string& bytes) {
  std::string out;
  for (size_t at = 0; at < bytes.size();) {
    const int length = utf8_length(std::string_view(bytes).substr(at));
    out += length > 0 ? bytes.substr(at, static_cast<size_t>(length)) : std::string(kReplacementCharacter);
    at += static_cast<size_t>(std::max(1, length));
  }
  return out;
}

struct Streamed {
  std::string text;
  std::string matched;
  bool stopped;
};

Streamed stream(const std::string& bytes, const std::vector<std::string>& stops, std::mt19937* rng) {
  TextStream s(stops);
  Streamed result;
  for (size_t at = 0; at < bytes.size();) {
    const size_t n = std::min<size_t>(bytes.size() - at, (*rng)() % 5);
    const std::string released = s.push(std::string_view(bytes).substr(at, n));
    CHECK(sanitise(released) == released);  // whole characters
    result.text += released;
    at += n;
  }
  result.text += s.finish(true);
  result.matched = s.matched();
  result.stopped = s.stopped();
  CHECK(s.push("more").empty() || !s.stopped());
  return result;
}

// The stop sequence that is complete first, the longest of those complete together.
Streamed stop_plainly(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::string longest;
    for (const std::string& stop : stops) {
      if (stop.size() > longest.size() && std::string_view(text).substr(0, end).ends_with(stop)) longest = stop;
    }
    if (!longest.empty()) return {text.substr(0, end - longest.size()), longest, true};
  }
  return {text, "", false};
}

}  // namespace

TEST("text stream: characters over token borders") {
  TextStream s;
  CHECK(s.push("a\xF0\x9F").empty() == false);
  CHECK(s.push("\x94").empty());
  CHECK(s.push("\xA5"
               "b") == "🔥b");
  CHECK(s.push("\xF0\x9F").empty());
  CHECK(s.push("c") == "\uFFFD\uFFFDc");  // the character cannot be completed any more
  CHECK(s.push("\xE2\x96").empty());
  CHECK(s.finish(true) == "\uFFFD\uFFFD");
  CHECK(!s.stopped() && s.matched().empty());
}

TEST("text stream: text that is cut off ends before the character that is") {
  const std::string fire = "🔥";
  for (size_t n = 1; n < fire.size(); ++n) {
    TextStream s({"END"});
    CHECK(s.push("a\x94") == "a\uFFFD");  // belongs to no character: not cut, but wrong
    CHECK(s.push("E").empty());
    CHECK(s.push(fire.substr(0, n)).empty());
    CHECK(s.finish(false) == "E");
  }
  TextStream whole;
  CHECK(whole.push(fire) == fire && whole.finish(false).empty());
}

TEST("text stream: stop sequences over token borders") {
  TextStream s({"aab"});
  CHECK(s.push("xa") == "x");
  CHECK(s.push("a").empty());
  CHECK(s.push("a") == "a");  // "aa" may still begin "aab"
  CHECK(s.push("b").empty());
  CHECK(s.stopped() && s.matched() == "aab");
  CHECK(s.push("more").empty() && s.finish(true).empty());
  TextStream held({"END"});
  CHECK(held.push("text EN") == "text ");
  CHECK(held.finish(true) == "EN");
}

TEST("text stream equals whole-text decoding, however the bytes are cut") {
  std::mt19937 rng(11);
  const std::vector<std::string> atoms = {"a", "b", "ab", "é", "🔥", "\xF0", "\x9F", "\xE2\x96", "\xFF", "aab", "\n"};
  const std::vector<std::vector<std::string>> stop_sets = {
      {}, {"aab"}, {"aab", "ab"}, {"abab", "ba", ""}, {"é🔥"}, {"\n\n", "b\n"}, {"aaaa", "aaab", "🔥a"}, {"\uFFFD"}};
  for (int i = 0; i < 20000; ++i) {
    const std::string bytes = random_text(&rng, atoms, 12);
    const std::vector<std::string>& stops = stop_sets[rng() % stop_sets.size()];
    const Streamed want = stop_plainly(sanitise(bytes), stops);
    const Streamed got = stream(bytes, stops, &rng);
    if (got.text != want.text || got.matched != want.matched || got.stopped != want.stopped) {
      test::fail(__FILE__, __LINE__, "text: " + bytes + "\n  got  " + got.text + "\n  want " + want.text);
    }
  }
}

TEST("text stream: a long stop sequence costs no more per byte") {
  const std::string almost(100000, 'a');
  TextStream s({almost + "b"});
  std::string text;
  for (int i = 0; i < 300000; ++i) text += s.push("a");
  text += s.finish(true);
  CHECK(text == std::string(300000, 'a'));
}

TEST_MAIN
