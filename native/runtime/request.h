// What all kinds of requests share: the handle that callers hold, and how they and the engine thread reach each other.
// A kind of request is a class in a file of its own: what it wants of a step, what it makes of the results, and how it
// reports. A kind whose prompt goes through the layers derives from SequenceRequest.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>

#include "base/error.h"

namespace gemma {

enum class FinishReason { kStop, kLength, kCancelled, kError };

// What handles and the engine thread share; outlives both.
struct Signal {
  std::mutex mutex;
  std::condition_variable wake;
  uint64_t changes = 0;  // guarded by mutex

  void notify() {
    {
      const std::lock_guard lock(mutex);
      ++changes;
    }
    wake.notify_one();
  }
};

// What cancelled requests end with. Made by the first call, which may throw std::bad_alloc.
inline const Error& cancelled_error() {
  static const Error error(ErrorCode::kDisposed, "CANCELLED", "cancelled");
  return error;
}

// A handle may outlive its engine: cancel() and acknowledge() touch the signal alone. All else belongs to the engine
// thread.
//
// A request can always end: all that is needed to say why is made with the request, so that nothing on that way
// allocates.
class Request {
 public:
  explicit Request(std::shared_ptr<Signal> signal)
      : signal_(std::move(signal)), error_(std::make_shared<Error>(out_of_memory())) {
    cancelled_error();
  }
  virtual ~Request() = default;

  // Any thread, any time, any number of times. The finish event (kCancelled) still arrives.
  void cancel() {
    if (!cancelled_.exchange(true)) signal_->notify();
  }
  // The reader has taken n more events (back-pressure). Any thread.
  void acknowledge(int n) {
    // More than there are would count as events that are still to come.
    for (int unread = n_unread_.load(); !n_unread_.compare_exchange_weak(unread, unread - std::clamp(n, 0, unread));) {
    }
    signal_->notify();
  }

  // Work for which nobody waits: it is computed while no other request has anything to compute. Set before the request is
  // handed over.
  bool background() const { return background_; }
  void set_background(bool background) { background_ = background; }

  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  // The request is to end with this error.
  void fail(const Error& error) noexcept {
    *error_ = error;
    failed_ = true;
  }
  // The same with the exception that is being handled.
  void fail_with_current() noexcept { fail(describe(std::current_exception())); }
  bool failed() const { return failed_; }
  // Nothing more is to be computed for it.
  bool ended() const { return failed() || cancelled(); }
  // The last word to the caller, once. kError: with what fail() was given.
  virtual void finish(FinishReason reason) noexcept = 0;

 protected:
  // Events that were reported and not yet acknowledged.
  int n_unread() const { return n_unread_.load(); }
  void add_unread() { n_unread_.fetch_add(1); }
  // For kinds whose last word is a result or an error: null where there is a result.
  std::shared_ptr<const Error> error_of(FinishReason reason) noexcept {
    if (reason == FinishReason::kCancelled) fail(cancelled_error());
    return reason == FinishReason::kError || reason == FinishReason::kCancelled ? error_ : nullptr;
  }

 private:
  std::shared_ptr<Signal> signal_;
  std::atomic<bool> cancelled_{false};
  std::atomic<int> n_unread_{0};
  std::shared_ptr<Error> error_;  // what fail() was given
  bool failed_ = false;
  bool background_ = false;
};

}  // namespace gemma
