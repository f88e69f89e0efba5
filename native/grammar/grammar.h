// Grammars that answers are bound to: a JSON Schema, a regular expression, EBNF or structural tags become a set of
// allowed tokens for each place of an answer. The work is XGrammar's (Dong et al. 2024), which nothing outside of this
// folder sees.
//
// Control tokens are never part of a text: a grammar allows one only where it names it as a token (structural tags,
// EBNF's Token()). End tokens are allowed where the text is complete. JSON goes on with something else after 40 blanks in
// a row.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace gemma {

enum class GrammarKind { kJson, kJsonSchema, kRegex, kEbnf, kStructuralTag };

struct GrammarSource {
  GrammarKind kind = GrammarKind::kJson;
  std::string text;           // UTF-8; empty for kJson
  std::string root = "root";  // of kEbnf: the rule to begin with
  bool operator==(const GrammarSource&) const = default;
};

// Tokens of a vocabulary, a bit for each: token t is bit t % 32 of words[t / 32].
struct TokenMask {
  static constexpr size_t kMostCounted = 2048;
  std::vector<uint32_t> words;
  size_t n_allowed = 0;  // kMostCounted + 1 where there are more
  bool allows(TokenId token) const {
    const size_t word = static_cast<size_t>(token) / 32;
    return token >= 0 && word < words.size() && (words[word] >> (token % 32) & 1u) != 0;
  }
  // The lowest that is allowed, -1: none.
  TokenId first() const;
};

struct GrammarVocabulary;

// Compiled for one vocabulary. Immutable: any number of matchers may read it, on any threads.
class Grammar {
 public:
  ~Grammar();
  Grammar(const Grammar&) = delete;
  Grammar& operator=(const Grammar&) = delete;
  // About: without the vocabulary, which all grammars of a compiler share.
  size_t bytes() const { return bytes_; }
  double compile_ms() const { return compile_ms_; }

 private:
  friend class GrammarCompiler;
  friend class Matcher;
  struct Impl;
  Grammar();
  std::unique_ptr<Impl> impl_;
  size_t bytes_ = 0;
  double compile_ms_ = 0;
};

// A place in a text of a grammar. Not for several threads at a time. allowed() and accept() throw Error:
// kInvalidArgument, GRAMMAR_TOO_LARGE where a place takes too much time or memory; std::bad_alloc. A matcher is of no use
// after that.
class Matcher {
 public:
  explicit Matcher(std::shared_ptr<const Grammar> grammar);
  ~Matcher();
  Matcher(const Matcher&) = delete;
  Matcher& operator=(const Matcher&) = delete;

  // The tokens that may follow: none after an end token, or where no text goes on.
  void allowed(TokenMask* mask);
  // Goes on behind a token. False, without a change, where it is not allowed.
  bool accept(TokenId token);
  // Takes back the last n tokens that were accepted.
  void rollback(int n);
  // Whether what was accepted is a whole text.
  bool complete() const;
  // Whether an end token was accepted.
  bool ended() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// How long a compilation may take: short ones go on beside each other, long ones one at a time.
enum class Effort { kQuick, kFull };

// Compiles grammars for one vocabulary and keeps those that were asked for last. Any thread.
class GrammarCompiler {
 public:
  // The tokenizer must outlive the compiler. Takes next to nothing: what is made of the vocabulary is made by the first
  // compile(), for Gemma's in a fifth of a second and 23 MB.
  explicit GrammarCompiler(const Tokenizer& tokenizer);
  ~GrammarCompiler();

  // Blocking. kQuick: for a quarter of a second of a processor's time at most; null where the grammar takes more. kFull:
  // for a second, and while others are compiled so. *cached: whether it was kept.
  // Throws Error: kInvalidArgument with BAD_SCHEMA, BAD_REGEX, BAD_GRAMMAR or BAD_STRUCTURAL_TAG for a source that is
  // not one or that allows no text, GRAMMAR_TOO_LARGE where it passes a limit of size, depth, time or memory;
  // kOutOfMemory; kDisposed after close().
  std::shared_ptr<const Grammar> compile(const GrammarSource& source, bool* cached, Effort effort = Effort::kFull);
  // Whether it was compiled here.
  bool made(const Grammar& grammar) const;
  // Ends a compile() that runs, and all later ones.
  void close();

 private:
  std::shared_ptr<const Grammar> compile_new(const GrammarSource& source, Effort effort);
  std::shared_ptr<const Grammar> compile_once(const GrammarSource& source, bool* cached, Effort effort);
  std::shared_ptr<const Grammar> find(const GrammarSource& source);
  void keep(const GrammarSource& source, const std::shared_ptr<const Grammar>& grammar);

  const Tokenizer& tokenizer_;
  std::mutex compiling_;                           // with all effort
  std::mutex preparing_;                           // guards what is in vocabulary_ until it is there
  std::shared_ptr<GrammarVocabulary> vocabulary_;  // which one it is stays
  std::atomic<bool> closed_{false};
  struct Kept {
    GrammarSource source;
    std::shared_ptr<const Grammar> grammar;
  };
  std::mutex mutex_;
  std::list<Kept> kept_;                       // guarded by mutex_; the last used first
  std::list<const GrammarSource*> under_way_;  // guarded by mutex_; quickly
  std::condition_variable ended_;              // of these
};

// What a compiler keeps of a vocabulary, by the tokens of Gemma's: their spellings, twice, in two orders. While it is made,
// half as much besides.
constexpr uint64_t grammar_vocabulary_bytes(int n_vocab) {
  return static_cast<uint64_t>(n_vocab) * 88;
}

// Limits of a source, and of its compilation. Fractions of them are what large schemas that people use need.
inline constexpr size_t kMaxGrammarBytes = 1 << 20;
inline constexpr int kMaxGrammarDepth = 200;  // of brackets
// Of a processor: for the automata, and for masks that are made before they are needed.
inline constexpr double kMaxCompileSeconds = 0.8;
inline constexpr double kMaxEarlyMaskSeconds = 0.1;
inline constexpr size_t kMaxCompileBytes = size_t{512} << 20;
// The same for compiling quickly, and of a source that is tried so.
inline constexpr double kMaxQuickSeconds = 0.06;
inline constexpr double kMaxQuickMaskSeconds = 0.2;
inline constexpr size_t kMaxQuickBytes = size_t{64} << 20;
inline constexpr size_t kMaxQuickSourceBytes = 32 << 10;
// For a call of a matcher.
inline constexpr double kMaxMaskSeconds = 0.3;
inline constexpr size_t kMaxKeptGrammarBytes = size_t{64} << 20;

}  // namespace gemma
