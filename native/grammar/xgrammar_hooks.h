// What XGrammar asks of whoever links it: memory, and where its messages go. The library has no limits of its own and
// asks nobody whether to stop: what it allocates is counted here, and where a limit is passed, or the time is over, the
// allocation throws. (Not with MSVC, which cannot rename what a library calls.)
#pragma once

#include <atomic>
#include <cstddef>

namespace gemma {

// Limits of what this thread does with the library, as long as the object lives. One at a time.
class XGrammarLimits {
 public:
  // seconds: of the thread's own time on a processor, so that what compiles does not depend on what else runs. stop:
  // ends the work when it becomes true.
  XGrammarLimits(size_t max_bytes, double seconds, const std::atomic<bool>& stop);
  ~XGrammarLimits();
  XGrammarLimits(const XGrammarLimits&) = delete;
  XGrammarLimits& operator=(const XGrammarLimits&) = delete;

  // Throws Error: kInvalidArgument, GRAMMAR_TOO_LARGE past a limit; kDisposed, CANCELLED.
  void check();

 private:
  friend struct XGrammarMemory;
  size_t max_bytes_;
  double deadline_;
  const std::atomic<bool>& stop_;
  ptrdiff_t bytes_ = 0;  // that are held; as good as: what the library hands on, or gets, is not counted
  unsigned n_calls_ = 0;
};

}  // namespace gemma
