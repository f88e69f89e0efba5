// The only compute pool of a model. Work is cut into small chunks. Each thread first processes its own run of
// consecutive chunks, so that it can prefetch what the next chunk reads. Then it takes chunks that are left of the
// other threads' runs, so a thread that the operating system delays holds up one chunk, not the step. Waiting threads
// spin briefly, then sleep.
//
// When another process takes a core, a worker may be preempted inside a chunk for a whole time slice, which is fifty
// times as long as the operation. The caller notices this by the length of its wait, and then works alone for some
// time: one undisturbed core is worth more than two that wait for each other.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace gemma {

class ThreadPool {
 public:
  // n_threads >= 1 counts the caller of parallel_for. Throws Error: kOutOfMemory, THREADS; std::bad_alloc.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls f(chunk, thread) once for each chunk in 0..n_chunks-1, thread in 0..n_threads-1, and returns when all are
  // done. One caller at a time. The first exception of f is thrown again here, when no thread works any more; then not
  // all chunks have been done. No allocation.
  template <class F>
  void parallel_for(int n_chunks, const F& f) {
    if (n_chunks <= 0) return;
    if (n_chunks == 1 || workers_.empty()) {
      for (int i = 0; i < n_chunks; ++i) f(i, 0);
      return;
    }
    run(
        n_chunks, [](const void* context, int chunk, int thread) { (*static_cast<const F*>(context))(chunk, thread); },
        &f);
  }

 private:
  using Call = void (*)(const void* context, int chunk, int thread);
  using Clock = std::chrono::steady_clock;
  void run(int n_chunks, Call call, const void* context);
  void work(int thread);
  void wait_for_workers(Clock::time_point start);
  void worker_main(int thread);
  void stop();

  // state_: bit 0 "open", bit 1 "the caller sleeps", bits 2..31 workers inside, bits 32.. the job's number. A worker
  // enters only an open job and the caller leaves only a closed one without workers, so a worker that wakes up late can
  // never touch a job that has ended. The caller announces its sleep in the same word that the workers change. In a
  // separate word, a wake-up would depend on a store being visible before a later load, and an emulated arm64 processor
  // got that wrong.
  static constexpr uint64_t kOpen = 1;
  static constexpr uint64_t kCallerSleeps = 2;
  static constexpr uint64_t kWorker = 4;
  static constexpr uint64_t kWorkersMask = 0xfffffffcu;
  static constexpr uint64_t kJob = uint64_t{1} << 32;

  alignas(64) std::atomic<uint64_t> state_{0};
  // The remaining chunks of one thread's run.
  struct alignas(64) Share {
    std::atomic<int> next{0};
    int end = 0;
  };
  std::vector<Share> shares_;
  Call call_ = nullptr;
  const void* context_ = nullptr;

  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;  // workers: a new job
  std::condition_variable done_;  // the caller: no worker inside
  Clock::time_point alone_until_;
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;  // of the job; written by whoever set failed_
  std::vector<std::thread> workers_;
};

}  // namespace gemma
