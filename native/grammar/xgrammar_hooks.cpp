#include "grammar/xgrammar_hooks.h"

#include <ctime>
#include <new>
#include <string>
#ifdef _WIN32
#include <windows.h>
#endif

#define XGRAMMAR_LOG_CUSTOMIZE 1
#include <cpp/support/logging.h>

#include "base/error.h"

namespace gemma {
namespace {

thread_local XGrammarLimits* limits = nullptr;

// Seconds that this thread has run.
double thread_seconds() {
#ifdef _WIN32
  FILETIME created{}, ended{}, kernel{}, user{};
  GetThreadTimes(GetCurrentThread(), &created, &ended, &kernel, &user);
  const auto ticks = [](const FILETIME& time) {
    return static_cast<double>(time.dwHighDateTime) * 4294967296.0 + static_cast<double>(time.dwLowDateTime);
  };
  return 1e-7 * (ticks(kernel) + ticks(user));
#else
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
#endif
}

}  // namespace

XGrammarLimits::XGrammarLimits(size_t max_bytes, double seconds, const std::atomic<bool>& stop)
    : max_bytes_(max_bytes), deadline_(thread_seconds() + seconds), stop_(stop) {
  limits = this;
}

XGrammarLimits::~XGrammarLimits() {
  limits = nullptr;
}

void XGrammarLimits::check() {
  if (stop_.load(std::memory_order_relaxed)) throw Error(ErrorCode::kDisposed, "CANCELLED", "cancelled");
  if (thread_seconds() > deadline_) {
    throw Error(ErrorCode::kInvalidArgument, "GRAMMAR_TOO_LARGE",
                "the grammar takes too long to compile: expected fewer or simpler parts");
  }
}

struct XGrammarMemory {
  static void* allocate(std::size_t size) {
    XGrammarLimits* const current = limits;
    if (current == nullptr) return ::operator new(size);
    if (size > current->max_bytes_ || current->bytes_ > static_cast<ptrdiff_t>(current->max_bytes_ - size)) {
      throw Error(ErrorCode::kInvalidArgument, "GRAMMAR_TOO_LARGE",
                  "the grammar takes more than " + std::to_string(current->max_bytes_ >> 20) +
                      " MiB to compile: expected fewer or simpler parts");
    }
    if (++current->n_calls_ % 256 == 0) current->check();  // a look at the clock costs as much as some allocations
    void* const memory = ::operator new(size);
    current->bytes_ += static_cast<ptrdiff_t>(size);
    return memory;
  }
  static void release(void* memory, std::size_t size) noexcept {
    if (limits != nullptr && memory != nullptr) limits->bytes_ -= static_cast<ptrdiff_t>(size);
    ::operator delete(memory);
  }
};

}  // namespace gemma

#ifndef _MSC_VER
// The names that cmake/xgrammar/counted_memory.h gives to operator new and delete.
void* gemma_xgrammar_new(std::size_t size) __asm__("_ZN14gemma_xgrammarnwEm");
void* gemma_xgrammar_new(std::size_t size) {
  return gemma::XGrammarMemory::allocate(size);
}
void gemma_xgrammar_delete(void* memory, std::size_t size) noexcept __asm__("_ZN14gemma_xgrammardlEPvm");
void gemma_xgrammar_delete(void* memory, std::size_t size) noexcept {
  gemma::XGrammarMemory::release(memory, size);
}
#endif

namespace xgrammar {
namespace {

// What the library's own code expects to catch, without the place in its sources.
class Failure final : public LogFatalError {
 public:
  Failure(const std::string& file, int line, const std::string& message)
      : LogFatalError(file, line, message), message_(message) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

}  // namespace

// Errors of what it was given and failed checks of its own.
void LogFatalImpl(const std::string& file, int line, const std::string& message) {
  throw Failure(file, line, message);
}

// Nothing is printed on the user's terminal: warnings are of what lib/schema.ts refuses or checks afterwards.
void LogMessageImpl(const std::string& /*file*/, int /*line*/, int /*level*/, const std::string& /*message*/) {}

}  // namespace xgrammar
