#include "grammar/grammar.h"

#include <dlpack/dlpack.h>
#include <xgrammar/xgrammar.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <exception>
#include <new>
#include <optional>
#include <utility>

// Of the pinned version: which tokens a grammar names, and masks that are made early, are not part of its public interface.
#include <cpp/compiled_grammar_impl.h>
#include <cpp/grammar_impl.h>

#include "base/error.h"
#include "grammar/xgrammar_hooks.h"

namespace gemma {
namespace {

using Clock = std::chrono::steady_clock;

// Begins the spelling of control tokens in the library's vocabulary: no text of a grammar holds this byte, which UTF-8
// has not.
constexpr char kNoText = '\xFF';

const char* detail_of(GrammarKind kind) {
  switch (kind) {
    case GrammarKind::kJson:
    case GrammarKind::kJsonSchema: return "BAD_SCHEMA";
    case GrammarKind::kRegex: return "BAD_REGEX";
    case GrammarKind::kEbnf: return "BAD_GRAMMAR";
    case GrammarKind::kStructuralTag: return "BAD_STRUCTURAL_TAG";
  }
  return "BAD_GRAMMAR";
}

const char* name_of(GrammarKind kind) {
  switch (kind) {
    case GrammarKind::kJson: return "JSON";
    case GrammarKind::kJsonSchema: return "schema";
    case GrammarKind::kRegex: return "regular expression";
    case GrammarKind::kEbnf: return "grammar";
    case GrammarKind::kStructuralTag: return "structural tags";
  }
  return "grammar";
}

[[noreturn]] void too_large(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "GRAMMAR_TOO_LARGE", message);
}

// The library follows brackets by recursion. Those in strings count too: nobody nests them that deep.
void check_size(const GrammarSource& source) {
  if (source.text.size() > kMaxGrammarBytes) {
    too_large(std::string(name_of(source.kind)) + ": expected at most " + std::to_string(kMaxGrammarBytes) +
              " bytes, found " + std::to_string(source.text.size()));
  }
  int depth = 0;
  int deepest = 0;
  for (const char c : source.text) {
    if (c == '(' || c == '[' || c == '{') deepest = std::max(deepest, ++depth);
    if ((c == ')' || c == ']' || c == '}') && depth > 0) --depth;
  }
  if (deepest > kMaxGrammarDepth) {
    too_large(std::string(name_of(source.kind)) + ": expected brackets " + std::to_string(kMaxGrammarDepth) +
              " deep at most, found " + std::to_string(deepest));
  }
}

// Blanks in a row after which the next token of JSON begins with something else: models that do not know how to go on
// would write them for ever. Indentation of twenty levels is less.
constexpr int kMaxBlanks = 40;

bool is_blank(char c) {
  return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

void set_bit(std::vector<uint32_t>* words, TokenId token) {
  (*words)[static_cast<size_t>(token) / 32] |= 1u << (token % 32);
}

// Bits that are 1, as far as TokenMask counts them.
size_t count(std::span<const uint32_t> words) {
  size_t n = 0;
  for (const uint32_t word : words) {
    if (word == 0) continue;
    n += static_cast<size_t>(std::popcount(word));
    if (n > TokenMask::kMostCounted) return TokenMask::kMostCounted + 1;
  }
  return n;
}

DLTensor tensor_of(std::vector<uint32_t>& words, int64_t* shape) {
  *shape = static_cast<int64_t>(words.size());
  return {words.data(), {kDLCPU, 0}, 1, xgrammar::GetBitmaskDLType(), shape, nullptr, 0};
}

}  // namespace

struct GrammarVocabulary {
  // Once, before anything is read.
  void prepare(const Tokenizer& tokenizer) {
    if (info) return;
    const int n_vocab = tokenizer.n_vocab();
    texts.assign(static_cast<size_t>(n_vocab + 31) / 32, 0u);
    blanks = texts;
    std::vector<std::string> spellings(static_cast<size_t>(n_vocab));
    for (TokenId token = 0; token < n_vocab; ++token) {
      std::string& spelling = spellings[static_cast<size_t>(token)];
      if (!tokenizer.is_control(token)) {
        spelling = tokenizer.token_bytes(token);
        set_bit(&texts, token);
        if (!spelling.empty() && is_blank(spelling[0])) set_bit(&blanks, token);
      } else if (const std::string_view name = tokenizer.token_bytes(token, true); !name.empty()) {
        spelling.append(1, kNoText).append(name);
      }
    }
    const std::span<const TokenId> ends = tokenizer.ends();
    for (const TokenId token : ends) set_bit(&texts, token);
    info.emplace(spellings, xgrammar::VocabType::RAW, n_vocab, std::vector<int32_t>(ends.begin(), ends.end()));
  }

  std::vector<uint32_t> texts;   // tokens that are text, and end tokens
  std::vector<uint32_t> blanks;  // tokens that begin with a blank
  std::optional<xgrammar::TokenizerInfo> info;
};

namespace {

xgrammar::CompiledGrammar compile_by_library(const xgrammar::TokenizerInfo& info, const GrammarSource& source) {
  // Grammars are kept here, by what is asked for. One thread: errors of others would end the process. No masks yet.
  xgrammar::GrammarCompiler compiler(info, 1, false, -1, true);
  switch (source.kind) {
    case GrammarKind::kJson: break;
    case GrammarKind::kJsonSchema:
      return compiler.CompileJSONSchema(source.text, true, std::nullopt, std::nullopt, false);
    case GrammarKind::kRegex: return compiler.CompileRegex(source.text);
    case GrammarKind::kEbnf: return compiler.CompileGrammar(source.text, source.root);
    case GrammarKind::kStructuralTag: return compiler.CompileStructuralTag(source.text);
  }
  return compiler.CompileBuiltinJSONGrammar();
}

}  // namespace

struct Grammar::Impl {
  Impl(std::shared_ptr<const GrammarVocabulary> owner, xgrammar::CompiledGrammar result, bool json)
      : vocabulary(std::move(owner)), compiled(std::move(result)), permitted(vocabulary->texts), is_json(json) {
    const xgrammar::Grammar grammar = compiled.GetGrammar();
    const auto& machine = grammar->complete_fsm;
    for (int state = 0; state < machine.NumStates(); ++state) {
      for (const auto& edge : machine.GetEdges(state)) {
        if (!edge.IsToken()) continue;
        const auto tokens = machine.GetTokenEdgeInfo(edge.GetAuxIndex());
        for (int32_t i = 0; i < tokens.Count(); ++i) set_bit(&permitted, tokens.TokenIds()[i]);
      }
    }
  }

  std::shared_ptr<const GrammarVocabulary> vocabulary;
  xgrammar::CompiledGrammar compiled;
  std::vector<uint32_t> permitted;  // text, end tokens and the tokens that it names
  bool is_json;
};

TokenId TokenMask::first() const {
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] != 0) return static_cast<TokenId>(i * 32) + std::countr_zero(words[i]);
  }
  return -1;
}

Grammar::Grammar() = default;
Grammar::~Grammar() = default;

struct Matcher::Impl {
  explicit Impl(std::shared_ptr<const Grammar> owner) : grammar(std::move(owner)), matcher(grammar->impl_->compiled) {}
  std::shared_ptr<const Grammar> grammar;

  // Calls f within the limits of a call. What it throws leaves the library's state as it is.
  template <class F>
  auto guarded(const F& f) {
    if (failed) throw Error(ErrorCode::kInternal, "GRAMMAR", "the grammar's state was lost");
    static const std::atomic<bool> never{false};
    XGrammarLimits limits(kMaxCompileBytes, kMaxMaskSeconds, never);
    failed = true;
    auto result = f();
    failed = false;
    return result;
  }

  xgrammar::GrammarMatcher matcher;
  std::vector<int> n_blanks{0};  // at the end of the text: now, and after each token before the last
  bool failed = false;
};

Matcher::Matcher(std::shared_ptr<const Grammar> grammar) : impl_(std::make_unique<Impl>(std::move(grammar))) {}
Matcher::~Matcher() = default;

void Matcher::allowed(TokenMask* mask) {
  const std::vector<uint32_t>& permitted = impl_->grammar->impl_->permitted;
  mask->words.resize(permitted.size());
  mask->n_allowed = 0;
  if (ended()) {
    std::fill(mask->words.begin(), mask->words.end(), 0u);
    return;
  }
  int64_t shape = 0;
  DLTensor tensor = tensor_of(mask->words, &shape);
  impl_->guarded([&] { return impl_->matcher.FillNextTokenBitmask(&tensor); });
  for (size_t i = 0; i < permitted.size(); ++i) mask->words[i] &= permitted[i];
  if (impl_->grammar->impl_->is_json && impl_->n_blanks.back() >= kMaxBlanks) {
    const std::vector<uint32_t>& blanks = impl_->grammar->impl_->vocabulary->blanks;
    std::vector<uint32_t> others = mask->words;
    for (size_t i = 0; i < others.size(); ++i) others[i] &= ~blanks[i];
    if (count(others) > 0) mask->words.swap(others);
  }
  mask->n_allowed = count(mask->words);
}

bool Matcher::accept(TokenId token) {
  if (ended() || !impl_->guarded([&] { return impl_->matcher.AcceptToken(token); })) return false;
  const std::string& text = impl_->grammar->impl_->vocabulary->info->GetDecodedVocab()[static_cast<size_t>(token)];
  const auto last = std::find_if_not(text.rbegin(), text.rend(), is_blank);
  const int n = static_cast<int>(last - text.rbegin());
  impl_->n_blanks.push_back(last == text.rend() ? impl_->n_blanks.back() + n : n);
  return true;
}

void Matcher::rollback(int n) {
  if (n <= 0 || impl_->failed) return;
  impl_->matcher.Rollback(n);
  impl_->n_blanks.resize(impl_->n_blanks.size() - static_cast<size_t>(n));
}

bool Matcher::complete() const {
  return !impl_->failed && impl_->matcher.IsCompleted();
}

bool Matcher::ended() const {
  return !impl_->failed && impl_->matcher.IsTerminated();
}

GrammarCompiler::GrammarCompiler(const Tokenizer& tokenizer)
    : tokenizer_(tokenizer), vocabulary_(std::make_shared<GrammarVocabulary>()) {
  out_of_memory();  // made while there is memory
}

GrammarCompiler::~GrammarCompiler() = default;

bool GrammarCompiler::made(const Grammar& grammar) const {
  return grammar.impl_->vocabulary == vocabulary_;
}

void GrammarCompiler::close() {
  closed_.store(true);
}

std::shared_ptr<const Grammar> GrammarCompiler::find(const GrammarSource& source) {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const Kept& kept) { return kept.source == source; });
  if (found == kept_.end()) return nullptr;
  kept_.splice(kept_.begin(), kept_, found);
  return found->grammar;
}

void GrammarCompiler::keep(const GrammarSource& source, const std::shared_ptr<const Grammar>& grammar) {
  std::list<Kept> entry;
  entry.push_back({source, grammar});
  const std::lock_guard lock(mutex_);
  kept_.splice(kept_.begin(), entry);
  size_t bytes = 0;
  auto kept = kept_.begin();
  for (; kept != kept_.end(); ++kept) {
    bytes += kept->grammar->bytes() + kept->source.text.size();
    if (bytes > kMaxKeptGrammarBytes) break;
  }
  entry.splice(entry.begin(), kept_, kept, kept_.end());
}

std::shared_ptr<const Grammar> GrammarCompiler::compile(const GrammarSource& source, bool* cached, Effort effort) {
  check_size(source);
  *cached = true;
  if (std::shared_ptr<const Grammar> grammar = find(source)) return grammar;
  if (effort == Effort::kFull) {
    const std::lock_guard lock(compiling_);
    return compile_once(source, cached, effort);
  }
  if (source.text.size() > kMaxQuickSourceBytes) return nullptr;
  // The same source is compiled by the first who asks; the others wait.
  std::list<const GrammarSource*> mine{&source};
  const auto place = mine.begin();
  {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [&] {
      return std::none_of(under_way_.begin(), under_way_.end(), [&](const auto* other) { return *other == source; });
    });
    under_way_.splice(under_way_.begin(), mine);
  }
  std::shared_ptr<const Grammar> grammar;
  std::exception_ptr error;
  try {
    grammar = compile_once(source, cached, effort);
  } catch (...) {
    error = std::current_exception();
  }
  {
    const std::lock_guard lock(mutex_);
    mine.splice(mine.begin(), under_way_, place);
  }
  ended_.notify_all();
  if (error) std::rethrow_exception(error);
  return grammar;
}

std::shared_ptr<const Grammar> GrammarCompiler::compile_once(const GrammarSource& source, bool* cached, Effort effort) {
  if (std::shared_ptr<const Grammar> grammar = find(source)) return grammar;
  *cached = false;
  std::shared_ptr<const Grammar> grammar = compile_new(source, effort);
  if (grammar) keep(source, grammar);
  return grammar;
}

std::shared_ptr<const Grammar> GrammarCompiler::compile_new(const GrammarSource& source, Effort effort) {
  if (closed_.load()) throw Error(ErrorCode::kDisposed, "", "the model was disposed");
  {
    const std::lock_guard lock(preparing_);
    vocabulary_->prepare(tokenizer_);
  }
  const bool quick = effort == Effort::kQuick;
  const Clock::time_point start = Clock::now();
  std::shared_ptr<Grammar> grammar(new Grammar);
  try {
    XGrammarLimits limits(quick ? kMaxQuickBytes : kMaxCompileBytes, quick ? kMaxQuickSeconds : kMaxCompileSeconds,
                          closed_);
    grammar->impl_ =
        std::make_unique<Grammar::Impl>(vocabulary_, compile_by_library(*vocabulary_->info, source),
                                        source.kind == GrammarKind::kJson || source.kind == GrammarKind::kJsonSchema);
    limits.check();
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const Error& error) {
    if (quick && error.code() == ErrorCode::kInvalidArgument) return nullptr;
    throw error.with_message(std::string(name_of(source.kind)) + ": " + error.what());
  } catch (const std::exception& error) {
    throw Error(ErrorCode::kInvalidArgument, detail_of(source.kind),
                std::string(name_of(source.kind)) + ": " + error.what());
  }
  // Masks are made now, so that none takes long later. Where that takes too long, each that is left is made when an answer
  // comes there first.
  try {
    XGrammarLimits limits(quick ? kMaxQuickBytes : kMaxCompileBytes,
                          quick ? kMaxQuickMaskSeconds : kMaxEarlyMaskSeconds, closed_);
    grammar->impl_->compiled->MaterializeAdaptiveTokenMaskCache();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kInvalidArgument) throw;
  }
  grammar->bytes_ = grammar->impl_->compiled.MemorySizeBytes() + grammar->impl_->permitted.size() * sizeof(uint32_t);
  TokenMask first;
  Matcher(grammar).allowed(&first);
  if (first.n_allowed == 0) {
    throw Error(ErrorCode::kInvalidArgument, detail_of(source.kind),
                std::string(name_of(source.kind)) + ": no text satisfies it");
  }
  grammar->compile_ms_ = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  return grammar;
}

}  // namespace gemma
