#include "base/thread_pool.h"

#include <utility>

#include "base/thread.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace gemma {
namespace {

// About 20 to 50 microseconds: longer than the serial stretches between two operations of a layer, far shorter than a
// scheduler's time slice.
constexpr int kSpins = 1000;

// No chunk of a decode step takes this long. If the wait is also longer than the work itself, another process must have
// taken a core.
constexpr std::chrono::microseconds kLongWait{200};
constexpr int kAloneFactor = 4;

void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int n_threads) : shares_(static_cast<size_t>(n_threads > 1 ? n_threads : 1)) {
  workers_.reserve(static_cast<size_t>(n_threads > 1 ? n_threads - 1 : 0));
  try {
    for (int i = 1; i < n_threads; ++i) workers_.push_back(start_thread([this, i] { worker_main(i); }));
  } catch (...) {
    stop();  // those that run already
    throw;
  }
}

ThreadPool::~ThreadPool() {
  stop();
}

void ThreadPool::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::work(int thread) {
  const size_t n = shares_.size();
  try {
    for (size_t i = 0; i < n; ++i) {
      Share& share = shares_[(static_cast<size_t>(thread) + i) % n];
      for (int chunk; (chunk = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;)
        call_(context_, chunk, thread);
    }
  } catch (...) {
    // The first one stays. The caller reads it when no worker is inside any more.
    if (!failed_.exchange(true)) failure_ = std::current_exception();
  }
}

void ThreadPool::run(int n_chunks, Call call, const void* context) {
  const Clock::time_point start = Clock::now();
  if (start < alone_until_) {
    for (int i = 0; i < n_chunks; ++i) call(context, i, 0);
    return;
  }
  call_ = call;
  context_ = context;
  const auto n = static_cast<int64_t>(shares_.size());
  int begin = 0;
  for (int64_t t = 0; t < n; ++t) {
    Share& share = shares_[static_cast<size_t>(t)];
    share.next.store(begin, std::memory_order_relaxed);
    share.end = begin = static_cast<int>(n_chunks * (t + 1) / n);
  }
  state_.fetch_add(kJob | kOpen, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    const std::lock_guard lock(mutex_);
    wake_.notify_all();
  }
  work(0);
  state_.fetch_sub(kOpen, std::memory_order_acq_rel);
  wait_for_workers(start);
  if (failed_.load(std::memory_order_relaxed)) {
    failed_.store(false, std::memory_order_relaxed);
    std::rethrow_exception(std::exchange(failure_, nullptr));
  }
}

void ThreadPool::wait_for_workers(Clock::time_point start) {
  for (int spins = 0; spins < kSpins; ++spins) {
    if ((state_.load(std::memory_order_acquire) & kWorkersMask) == 0) return;
    relax();
  }
  // The system preempted a worker inside its last chunk. Sleep, so that it can continue the worker on this core.
  const Clock::time_point idle = Clock::now();
  {
    std::unique_lock lock(mutex_);
    state_.fetch_or(kCallerSleeps, std::memory_order_acq_rel);
    done_.wait(lock, [&] { return (state_.load(std::memory_order_acquire) & kWorkersMask) == 0; });
    state_.fetch_and(~kCallerSleeps, std::memory_order_relaxed);
  }
  const Clock::time_point end = Clock::now();
  const Clock::duration waited = end - idle;
  if (waited > kLongWait && waited > idle - start) alone_until_ = end + kAloneFactor * waited;
}

void ThreadPool::worker_main(int thread) {
  uint64_t seen = 0;  // number of the last job this worker looked at
  for (;;) {
    uint64_t state = state_.load(std::memory_order_acquire);
    for (int spins = 0; state / kJob == seen && spins < kSpins && !stop_.load(std::memory_order_relaxed); ++spins) {
      relax();
      state = state_.load(std::memory_order_acquire);
    }
    if (state / kJob == seen) {
      std::unique_lock lock(mutex_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return stop_.load() || state_.load(std::memory_order_seq_cst) / kJob != seen; });
      sleepers_.fetch_sub(1, std::memory_order_seq_cst);
      if (stop_.load()) return;
      state = state_.load(std::memory_order_acquire);
    }
    seen = state / kJob;
    while ((state & kOpen) != 0 && state / kJob == seen) {
      if (state_.compare_exchange_weak(state, state + kWorker, std::memory_order_acq_rel)) {
        work(thread);
        if ((state_.fetch_sub(kWorker, std::memory_order_acq_rel) & kCallerSleeps) != 0) {
          const std::lock_guard lock(mutex_);
          done_.notify_one();
        }
        break;
      }
    }
  }
}

}  // namespace gemma
