#include "binding/mailbox.h"

#include <chrono>

namespace gemma::binding {
namespace {

// Two of them may run in one turn of the loop.
constexpr std::chrono::milliseconds kSlice{2};

}  // namespace

TaskQueue::~TaskQueue() {
  while (!empty()) pop();
}

void TaskQueue::push(std::unique_ptr<Task> task) {
  Task* added = task.release();
  (empty() ? first_ : last_->next_) = added;
  last_ = added;
}

std::unique_ptr<Task> TaskQueue::pop() {
  std::unique_ptr<Task> task(first_);
  first_ = std::exchange(task->next_, nullptr);
  return task;
}

void TaskQueue::put_before(TaskQueue&& other) {
  if (other.empty()) return;
  other.last_->next_ = first_;
  if (empty()) last_ = other.last_;
  first_ = std::exchange(other.first_, nullptr);
}

Mailbox::Mailbox(Napi::Env env)
    : wake_(Wake::New(env, "gemma-native", 0, 1, this)), resume_(Wake::New(env, "gemma-native", 0, 1, this)) {
  wake_.Unref(env);
  resume_.Unref(env);
}

void Mailbox::post(std::unique_ptr<Task> task) noexcept {
  const std::lock_guard lock(mutex_);
  if (closed_) return;
  tasks_.push(std::move(task));
  if (std::exchange(awake_, true)) return;
  wake_.NonBlockingCall(nullptr);
}

void Mailbox::operation_begins(Napi::Env env) {
  if (n_operations_++ == 0) wake_.Ref(env);
}

void Mailbox::operation_ends(Napi::Env env) {
  if (--n_operations_ == 0) wake_.Unref(env);
}

void Mailbox::close() {
  TaskQueue dropped;  // destroyed after the lock is gone: a task may own the last reference to an engine
  const std::lock_guard lock(mutex_);
  closed_ = true;
  dropped.put_before(std::move(tasks_));
}

// Null when there is none: then whoever posts one wakes the loop.
std::unique_ptr<Task> Mailbox::next_task() {
  const std::lock_guard lock(mutex_);
  awake_ = !tasks_.empty();
  return awake_ ? tasks_.pop() : nullptr;
}

// Has run_tasks() called in the next turn, if there are tasks.
void Mailbox::go_on(bool is_resumed) {
  const std::lock_guard lock(mutex_);
  awake_ = !tasks_.empty();
  if (awake_) (is_resumed ? wake_ : resume_).NonBlockingCall(is_resumed ? nullptr : this);
}

void Mailbox::run_tasks(Napi::Env env, Napi::Function, Mailbox* self, void* is_resumed) {
  if (static_cast<napi_env>(env) == nullptr) return;  // Node empties its queue while the environment ends
  const auto end = std::chrono::steady_clock::now() + kSlice;
  while (const std::unique_ptr<Task> task = self->next_task()) {
    const Napi::HandleScope scope(env);
    try {
      task->run(env);
    } catch (...) {
      // A JavaScript callback threw: Node reports it as an uncaught exception. The other tasks get their turn
      // afterwards.
      self->go_on(is_resumed != nullptr);
      throw;
    }
    if (std::chrono::steady_clock::now() >= end) return self->go_on(is_resumed != nullptr);
  }
}

}  // namespace gemma::binding
