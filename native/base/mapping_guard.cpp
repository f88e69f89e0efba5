#include "base/mapping_guard.h"

#ifdef _WIN32

namespace gemma {

MappingGuard::MappingGuard(const void*, size_t) {}
MappingGuard::~MappingGuard() = default;
bool MappingGuard::lost() const {
  return false;
}

}  // namespace gemma

#else

#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>

namespace gemma {

// A place in the list of mappings. Places are never freed, so that the handler can walk the list at any time, but taken
// again. The version is odd while begin and end change, for the handler not to mix those of two mappings.
struct GuardedRange {
  std::atomic<uint32_t> version{0};
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};  // 0: a place that is free
  std::atomic<bool> lost{false};
  GuardedRange* next = nullptr;

  void set(uintptr_t new_begin, uintptr_t new_end) {
    ++version;
    begin = new_begin;
    end = new_end;
    ++version;
  }
};

namespace {

std::atomic<GuardedRange*> ranges{nullptr};
struct sigaction previous;  // the handler before ours

// Only what may be called in a signal handler: atomics without locks, and mmap, which is a system call.
static_assert(std::atomic<uintptr_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

void* map_zeros(uintptr_t begin, size_t bytes) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
#ifdef __linux__
  // Past the wrappers of the C library and of sanitizers: to these it would be a write beside the reads of others.
  // NOLINTNEXTLINE(performance-no-int-to-ptr): system calls return integers
  return reinterpret_cast<void*>(::syscall(SYS_mmap, begin, bytes, PROT_READ, kFlags, -1, 0));
#else
  // NOLINTNEXTLINE(performance-no-int-to-ptr): signals tell addresses, which are compared as integers
  return ::mmap(reinterpret_cast<void*>(begin), bytes, PROT_READ, kFlags, -1, 0);
#endif
}

bool replace_by_zeros(uintptr_t address) {
  for (GuardedRange* range = ranges; range != nullptr; range = range->next) {
    const uint32_t version = range->version;
    const uintptr_t begin = range->begin;
    const uintptr_t end = range->end;
    if (version % 2 != 0 || range->version != version || address < begin || address >= end) continue;
    range->lost = true;  // before anybody can read a zero
    const int saved_errno = errno;
    const void* zeros = map_zeros(begin, end - begin);
    errno = saved_errno;
    return zeros != MAP_FAILED;
  }
  return false;
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const bool was_sent = info->si_code <= 0;  // by kill() and the like, not raised by an access
  if (!was_sent && replace_by_zeros(reinterpret_cast<uintptr_t>(info->si_addr))) return;
  if ((previous.sa_flags & SA_SIGINFO) != 0) {
    previous.sa_sigaction(signal, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(signal);
  } else if (!was_sent || previous.sa_handler == SIG_DFL) {
    // As if nobody had handled it: the access faults again, or the signal comes again, and ends the process.
    struct sigaction standard = {};
    standard.sa_handler = SIG_DFL;
    ::sigaction(SIGBUS, &standard, nullptr);
    if (was_sent) ::raise(signal);
  }
}

// Node closes an addon that only a worker had loaded when the worker ends. A handler's code must stay.
void keep_library_loaded() {
  Dl_info info;
  if (::dladdr(reinterpret_cast<const void*>(&on_bus_error), &info) == 0 || info.dli_fname == nullptr) return;
  ::dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);  // null for a program, which stays anyway
}

void install() {
  keep_library_loaded();
  ::sigaction(SIGBUS, nullptr, &previous);
  struct sigaction action = {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, nullptr);
}

std::mutex mutex;  // of the places; the handler needs none

}  // namespace

MappingGuard::MappingGuard(const void* begin, size_t bytes) {
  const std::lock_guard lock(mutex);
  if (ranges == nullptr) install();
  for (range_ = ranges; range_ != nullptr && range_->end != 0; range_ = range_->next) continue;
  if (range_ == nullptr) {
    range_ = new GuardedRange;
    range_->next = ranges;
    ranges = range_;
  }
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin);
  range_->lost = false;
  range_->set(first, (first + bytes + page - 1) / page * page);
}

MappingGuard::~MappingGuard() {
  if (range_ == nullptr) return;
  const std::lock_guard lock(mutex);
  range_->set(0, 0);
}

bool MappingGuard::lost() const {
  return range_ != nullptr && range_->lost;
}

}  // namespace gemma

#endif
