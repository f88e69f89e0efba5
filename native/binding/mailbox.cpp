#include "binding/mailbox.h"

#include <utility>

namespace gemma::binding {

Mailbox::Mailbox(Napi::Env env) : wake_(Wake::New(env, "gemma-native", 0, 1, this)) {
  wake_.Unref(env);
}

void Mailbox::post(Task task) {
  const std::lock_guard lock(mutex_);
  if (closed_) return;
  tasks_.push_back(std::move(task));
  if (tasks_.size() == 1) wake_.NonBlockingCall(nullptr);
}

void Mailbox::operation_begins(Napi::Env env) {
  if (n_operations_++ == 0) wake_.Ref(env);
}

void Mailbox::operation_ends(Napi::Env env) {
  if (--n_operations_ == 0) wake_.Unref(env);
}

void Mailbox::close() {
  std::deque<Task> dropped;  // destroyed after the lock is gone: a task may own the last reference to an engine
  const std::lock_guard lock(mutex_);
  closed_ = true;
  dropped.swap(tasks_);
}

void Mailbox::run_tasks(Napi::Env env, Napi::Function, Mailbox* self, void*) {
  if (static_cast<napi_env>(env) == nullptr) return;  // Node empties its queue while the environment ends
  std::deque<Task> tasks;
  {
    const std::lock_guard lock(self->mutex_);
    tasks.swap(self->tasks_);
  }
  while (!tasks.empty()) {
    const Task task = std::move(tasks.front());
    tasks.pop_front();
    const Napi::HandleScope scope(env);
    try {
      task(env);
    } catch (...) {
      // A JavaScript callback threw: Node reports it as an uncaught exception. The other tasks get their turn
      // afterwards.
      const std::lock_guard lock(self->mutex_);
      if (!self->closed_ && !tasks.empty()) {
        const bool wake = self->tasks_.empty();
        self->tasks_.insert(self->tasks_.begin(), std::make_move_iterator(tasks.begin()),
                            std::make_move_iterator(tasks.end()));
        if (wake) self->wake_.NonBlockingCall(nullptr);
      }
      throw;
    }
  }
}

}  // namespace gemma::binding
