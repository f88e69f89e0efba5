// The one road from other threads to the JavaScript thread of an environment: a queue of tasks and one thread-safe
// function that wakes the loop. A single function, closed under a lock before the engines' threads are joined, so that
// no thread can touch it after Node has freed it; one per request would be freed by Node while engine threads still
// hold it.
#pragma once

#include <napi.h>

#include <deque>
#include <functional>
#include <mutex>

namespace gemma::binding {

class Mailbox {
 public:
  // Tasks may be destroyed on any thread: they must own no JavaScript reference.
  using Task = std::function<void(Napi::Env)>;

  explicit Mailbox(Napi::Env env);

  // Any thread. Tasks run in order on the JavaScript thread; after close() they are dropped.
  void post(Task task);

  // JavaScript thread: while at least one operation is under way the event loop stays alive.
  void operation_begins(Napi::Env env);
  void operation_ends(Napi::Env env);

  // JavaScript thread, when the environment ends.
  void close();

 private:
  static void run_tasks(Napi::Env env, Napi::Function, Mailbox* self, void*);
  using Wake = Napi::TypedThreadSafeFunction<Mailbox, void, run_tasks>;

  std::mutex mutex_;
  std::deque<Task> tasks_;
  bool closed_ = false;
  int n_operations_ = 0;
  Wake wake_;
};

}  // namespace gemma::binding
