#include "tokenizer/vocabulary_index.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "base/utf8.h"

namespace gemma {
namespace {

constexpr size_t kMaxPieceBytes = 1024;              // Gemma's longest has 48
constexpr size_t kMaxMarkedBytes = size_t{1} << 20;  // text of all marked tokens; Gemma: 90 KB

[[noreturn]] void bad_vocab(const std::string& message) {
  throw Error(ErrorCode::kGgufInvalid, "BAD_VOCAB", "vocabulary: " + message);
}

std::string describe(TokenId id, std::string_view piece) {
  return "token " + std::to_string(id) + " (" + std::to_string(piece.size()) + " bytes)";
}

using namespace std::string_view_literals;

// Tokens that no typed text becomes, by their names: files disagree on the types of these.
constexpr std::string_view kMarkers[] = {"<pad>"sv,
                                         "<eos>"sv,
                                         "<bos>"sv,
                                         "<unk>"sv,
                                         "<mask>"sv,
                                         "[multimodal]"sv,
                                         "<start_of_turn>"sv,
                                         "<end_of_turn>"sv,
                                         "<start_of_image>"sv,
                                         "<end_of_image>"sv,
                                         "<image_soft_token>"sv,
                                         "<start_function_declaration>"sv,
                                         "<end_function_declaration>"sv,
                                         "<start_function_call>"sv,
                                         "<end_function_call>"sv,
                                         "<start_function_response>"sv,
                                         "<end_function_response>"sv,
                                         "<escape>"sv};

// Ends of a turn or of an answer in Gemma's and in other families' formats, which tuned files have in their
// vocabularies without always saying so in their metadata. FunctionGemma ends its calls where the response begins.
constexpr std::string_view kEnds[] = {"<end_of_turn>"sv,
                                      "<start_function_response>"sv,
                                      "<|im_end|>"sv,
                                      "<|eot_id|>"sv,
                                      "<|eom_id|>"sv,
                                      "<|end|>"sv,
                                      "<|endoftext|>"sv,
                                      "<|end_of_text|>"sv,
                                      "<|return|>"sv,
                                      "<|call|>"sv,
                                      "<|eot|>"sv,
                                      "<|END_OF_TURN_TOKEN|>"sv,
                                      "<end_of_utterance>"sv,
                                      "<EOT>"sv};

template <size_t N>
bool is_among(const std::string_view (&names)[N], std::string_view piece) {
  return std::find(std::begin(names), std::end(names), piece) != std::end(names);
}

// The way of writing control tokens in which many tuned files spell theirs, whatever type they give them.
bool is_bar_name(std::string_view piece) {
  return piece.size() > 4 && piece.starts_with("<|") && piece.ends_with("|>");
}

bool is_unused_name(std::string_view piece) {
  if (!piece.starts_with("<unused") || !piece.ends_with(">") || piece.size() < 9) return false;
  piece = piece.substr(7, piece.size() - 8);
  return std::all_of(piece.begin(), piece.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// Checks the name first, because files disagree on the types of these tokens.
TokenRole role_of(const Vocabulary& vocabulary, size_t id) {
  const std::string_view piece = vocabulary.pieces[id];
  const TokenKind kind = vocabulary.kinds[id];
  if (piece.empty() || kind == TokenKind::kUnused) return TokenRole::kSilent;
  if (kind == TokenKind::kByte) return TokenRole::kByte;
  const bool may_be_marker = piece.front() == '<' || piece.front() == '[';
  if (may_be_marker && (is_among(kMarkers, piece) || is_among(kEnds, piece) || is_unused_name(piece))) {
    return TokenRole::kMarker;
  }
  if (kind == TokenKind::kUserDefined && is_bar_name(piece)) return TokenRole::kMarker;
  if (kind == TokenKind::kControl || kind == TokenKind::kUnknown) {
    // In Gemma <s> and </s> are HTML (strike-through); llama.cpp turns </s> into a control token.
    const auto signed_id = static_cast<TokenId>(id);
    const bool is_html =
        (piece == "<s>" || piece == "</s>") && signed_id != vocabulary.bos && signed_id != vocabulary.eos;
    return is_html ? TokenRole::kMatched : TokenRole::kMarker;
  }
  return kind == TokenKind::kUserDefined ? TokenRole::kMatched : TokenRole::kPiece;
}

// "<0x41>" -> 0x41; -1 for anything else.
int parse_byte_piece(std::string_view piece) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
  };
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return -1;
  const int high = digit(piece[3]);
  const int low = digit(piece[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

// Scores as integers whose ascending order is the order of merging: best score first. No score maps to kNoMerge.
uint32_t merge_rank(float score) {
  const auto bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 is 0
  return (bits & 0x80000000u) != 0 ? bits : ~(bits | 0x80000000u);
}

void check_sizes(const Vocabulary& v) {
  const size_t n = v.pieces.size();
  if (n == 0) bad_vocab("no tokens");
  if (v.scores.size() != n || v.kinds.size() != n) {
    bad_vocab("expected " + std::to_string(n) + " scores and types, found " + std::to_string(v.scores.size()) +
              " and " + std::to_string(v.kinds.size()));
  }
  if (n > static_cast<size_t>(std::numeric_limits<TokenId>::max())) bad_vocab("too many tokens");
  std::vector<TokenId> ids = v.ends;
  ids.insert(ids.end(), {v.bos, v.eos, v.unk, v.pad});
  for (const TokenId id : ids) {
    if (id < -1 || id >= static_cast<TokenId>(n)) {
      bad_vocab("special token id " + std::to_string(id) + " is outside of 0.." + std::to_string(n - 1));
    }
  }
}

}  // namespace

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    const int length = utf8_length(text);
    if (length <= 0) return false;
    text.remove_prefix(static_cast<size_t>(length));
  }
  return true;
}

void append_blank_form(std::string_view text, std::string* out) {
  for (size_t at; (at = text.find(kMetaspace)) != std::string_view::npos; text.remove_prefix(at + kMetaspace.size())) {
    out->append(text.substr(0, at));
    out->push_back(' ');
  }
  out->append(text);
}

VocabularyIndex::VocabularyIndex(const Vocabulary& v) : begin(v.pieces.size() + 1), pieces(text, begin) {
  check_sizes(v);
  const size_t n = v.pieces.size();
  size_t n_bytes = 0;
  for (const std::string_view p : v.pieces) n_bytes += p.size();
  if (n_bytes > std::numeric_limits<uint32_t>::max()) bad_vocab("more than 4 GiB of text");
  text.reserve(n_bytes);
  roles.resize(n);
  ranks.resize(n, kNoMerge);
  byte_ids.fill(-1);
  unk = v.unk;
  size_t marked_bytes = 0;
  for (size_t i = 0; i < n; ++i) {
    const auto id = static_cast<TokenId>(i);
    const TokenRole role = role_of(v, i);
    roles[i] = role;
    begin[i] = static_cast<uint32_t>(text.size());
    append_text(v, id);
    begin[i + 1] = static_cast<uint32_t>(text.size());
    if (role != TokenRole::kByte && role != TokenRole::kSilent) longest_text = std::max(longest_text, piece(id).size());
    if (role != TokenRole::kByte && unk < 0 && v.kinds[i] == TokenKind::kUnknown) unk = id;
    if (role == TokenRole::kPiece) {
      if (std::isnan(v.scores[i])) bad_vocab(describe(id, v.pieces[i]) + " has no score (NaN)");
      ranks[i] = merge_rank(v.scores[i]);
    } else if (role == TokenRole::kMatched || role == TokenRole::kMarker) {
      marked_bytes += piece(id).size();
      if (marked_bytes > kMaxMarkedBytes) bad_vocab("more than 1 MiB of control and user-defined tokens");
      marked.insert(piece(id), id, role == TokenRole::kMatched);
    }
  }
  add_pieces();
  const bool has_all_bytes = std::find(byte_ids.begin(), byte_ids.end(), -1) == byte_ids.end();
  if (!has_all_bytes && unk < 0) bad_vocab("neither byte tokens for all 256 bytes nor an unknown token");
  find_special(v);
}

// The token's text in blank form; of a byte token its byte, which belongs to the first of its tokens.
void VocabularyIndex::append_text(const Vocabulary& v, TokenId id) {
  const std::string_view stored = v.pieces[static_cast<size_t>(id)];
  if (roles[static_cast<size_t>(id)] == TokenRole::kByte) {
    const int byte = parse_byte_piece(stored);
    if (byte < 0) bad_vocab(describe(id, stored) + " is typed as a byte but not spelled <0x00> to <0xFF>");
    text.push_back(static_cast<char>(byte));
    TokenId& known = byte_ids[static_cast<size_t>(byte)];
    if (known < 0) known = id;
    return;
  }
  if (stored.size() > kMaxPieceBytes)
    bad_vocab(describe(id, stored) + " is longer than " + std::to_string(kMaxPieceBytes));
  if (!is_valid_utf8(stored)) bad_vocab(describe(id, stored) + " is not valid UTF-8");
  append_blank_form(stored, &text);
}

void VocabularyIndex::add_pieces() {
  for (size_t i = 0; i < roles.size(); ++i) {
    const size_t ahead = std::min(i + kPrefetchAhead, roles.size() - 1);
    pieces.prefetch(piece(static_cast<TokenId>(ahead)));
    if (roles[i] == TokenRole::kPiece) add_piece(static_cast<TokenId>(i));
  }
}

void VocabularyIndex::add_piece(TokenId id) {
  const std::string_view blank = piece(id);
  pieces.insert(blank, id);
  longest_piece = std::max(longest_piece, blank.size());
  Character left = first_character(blank);
  for (size_t at = left.size; at < blank.size();) {
    const Character right = first_character(blank.substr(at));
    pairs.insert(left.bytes, right.bytes);
    left = right;
    at += right.size;
  }
}

void VocabularyIndex::find_special(const Vocabulary& v) {
  const auto by_name = [&](std::string_view name) {
    for (size_t i = 0; i < v.pieces.size(); ++i) {
      if (v.pieces[i] == name) return static_cast<TokenId>(i);
    }
    return TokenId{-1};
  };
  special = {by_name("<bos>"),
             by_name("<eos>"),
             by_name("<start_of_turn>"),
             by_name("<end_of_turn>"),
             by_name("<start_of_image>"),
             by_name("<end_of_image>"),
             by_name("<image_soft_token>"),
             v.unk,
             v.pad};
  if (special.bos < 0) special.bos = v.bos;
  const bool has_own_eos = special.eos >= 0;
  if (!has_own_eos) special.eos = v.eos;
  const auto add_end = [&](TokenId id) {
    // Beside <eos>, </s> is HTML again, not an end.
    if (id >= 0 && !(has_own_eos && v.pieces[static_cast<size_t>(id)] == "</s>")) ends.push_back(id);
  };
  add_end(special.eos);
  add_end(v.eos);
  for (const TokenId id : v.ends) add_end(id);
  for (size_t i = 0; i < v.pieces.size(); ++i) {
    const bool may_be_end = !v.pieces[i].empty() && v.pieces[i].front() == '<';
    if (may_be_end && is_among(kEnds, v.pieces[i])) ends.push_back(static_cast<TokenId>(i));
  }
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
}

}  // namespace gemma
