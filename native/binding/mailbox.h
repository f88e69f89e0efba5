// The one road from other threads to the JavaScript thread of an environment: a queue of tasks and a thread-safe
// function that wakes the loop. No more than that, closed under a lock before the engines' threads are joined, so that
// no thread can touch it after Node has freed it; one per request would be freed by Node while engine threads still
// hold it.
//
// Tasks run in slices between which the loop turns: many may come at once, such as rows of logits. Node calls a
// function that was called while it ran again in the same turn, so a second one, of the JavaScript thread alone, goes
// on.
#pragma once

#include <napi.h>

#include <memory>
#include <mutex>
#include <utility>

namespace gemma::binding {

// Something to do on the JavaScript thread. It may be destroyed on any thread: it must own no JavaScript reference.
class Task {
 public:
  virtual ~Task() = default;
  virtual void run(Napi::Env env) = 0;

 private:
  friend class TaskQueue;
  Task* next_ = nullptr;
};

// Owns tasks, first in, first out. Tasks are links of the queue themselves, so that nothing allocates.
class TaskQueue {
 public:
  TaskQueue() = default;
  TaskQueue(TaskQueue&& other) noexcept
      : first_(std::exchange(other.first_, nullptr)), last_(std::exchange(other.last_, nullptr)) {}
  TaskQueue& operator=(TaskQueue&&) = delete;
  ~TaskQueue();

  bool empty() const { return first_ == nullptr; }
  void push(std::unique_ptr<Task> task);
  std::unique_ptr<Task> pop();
  // All of other before all of this.
  void put_before(TaskQueue&& other);

 private:
  Task* first_ = nullptr;
  Task* last_ = nullptr;
};

class Mailbox {
 public:
  explicit Mailbox(Napi::Env env);

  // Any thread. Tasks run in order on the JavaScript thread; after close() they are dropped. Allocates nothing here.
  void post(std::unique_ptr<Task> task) noexcept;

  // JavaScript thread: while at least one operation is under way the event loop stays alive.
  void operation_begins(Napi::Env env);
  void operation_ends(Napi::Env env);

  // JavaScript thread, when the environment ends.
  void close();

 private:
  static void run_tasks(Napi::Env env, Napi::Function, Mailbox* self, void* is_resumed);
  using Wake = Napi::TypedThreadSafeFunction<Mailbox, void, run_tasks>;

  std::unique_ptr<Task> next_task();
  void go_on(bool is_resumed);

  std::mutex mutex_;
  TaskQueue tasks_;
  bool closed_ = false;
  bool awake_ = false;  // run_tasks() is called, or will be
  int n_operations_ = 0;
  Wake wake_;
  Wake resume_;
};

}  // namespace gemma::binding
