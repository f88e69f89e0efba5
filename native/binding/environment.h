// What the addon keeps per JavaScript environment (main thread, each worker): nothing is global, so environments come
// and go independently. When one ends, everything it started is cancelled and its threads are joined before Node
// unloads the addon.
#pragma once

#include <napi.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "binding/convert.h"
#include "binding/mailbox.h"
#include "runtime/engine.h"

namespace gemma::binding {

// Something under way that reports to a JavaScript callback. JavaScript thread only.
struct Operation {
  Napi::FunctionReference on_event;
  std::shared_ptr<Engine> engine;    // generate, evaluate, encodeImages: keeps a forgotten model alive until the end
  std::shared_ptr<Request> request;  // likewise
  std::shared_ptr<std::atomic<bool>> cancelled;  // load, quantize, merge, importance
  std::thread thread;                            // likewise
  std::optional<Error> failure;  // an event could not be made: what the operation ends with, whatever it says itself
  void stop();                   // its last event still comes
};

class Environment : public Napi::Addon<Environment> {
 public:
  Environment(Napi::Env env, Napi::Object exports);
  static Environment& of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

  const std::shared_ptr<Mailbox>& mailbox() const { return mailbox_; }

  uint64_t add_operation(Napi::Env env, Operation operation);
  Operation* find_operation(uint64_t id);
  void remove_operation(Napi::Env env, uint64_t id);
  // Calls the operation's callback with the event that make(env) makes; nothing happens when it is gone. An event that
  // cannot be made ends the operation.
  template <typename Make>
  void emit(Napi::Env env, uint64_t id, const Make& make);
  // The same with an operation's last event: the operation is gone before JavaScript hears of it. Where the event
  // cannot be made, it is { kind, error }.
  template <typename Make>
  void finish_operation(Napi::Env env, uint64_t id, const char* kind, const Make& make);

  // cancel(id), of the addon and of every model: an operation of either.
  Napi::Value cancel(const Napi::CallbackInfo& info);

  Napi::Object make_model(std::shared_ptr<Engine> engine);
  // An instance of GemmaError (an Error before init()).
  Napi::Value make_error(Napi::Env env, const Error& error) const;

  // Runs f on the JavaScript thread and turns what it throws into a GemmaError.
  template <typename F>
  auto guarded(Napi::Env env, F&& f) const {
    std::optional<Error> error;
    try {
      return f();
    } catch (const Napi::Error&) {
      throw;
    } catch (...) {
      error = describe(std::current_exception());
    }
    throw Napi::Error(env, make_error(env, *error));
  }

 private:
  Napi::Value init(const Napi::CallbackInfo& info);
  Napi::Value devices(const Napi::CallbackInfo& info);
  Napi::Value inspect(const Napi::CallbackInfo& info);
  Napi::Value crop_boxes(const Napi::CallbackInfo& info);
  Napi::Value prepare_square(const Napi::CallbackInfo& info);
  Napi::Value adapter_modules(const Napi::CallbackInfo& info);
  Napi::Value lock_file(const Napi::CallbackInfo& info);
  Napi::Value load(const Napi::CallbackInfo& info);
  Napi::Value quantize(const Napi::CallbackInfo& info);
  Napi::Value merge(const Napi::CallbackInfo& info);
  Napi::Value importance(const Napi::CallbackInfo& info);
  void shut_down();
  Napi::Object failed_event(Napi::Env env, const char* kind, const Napi::Value& error) const;

  std::shared_ptr<Mailbox> mailbox_;
  Napi::FunctionReference error_class_;
  Napi::FunctionReference model_class_;
  std::unordered_map<uint64_t, Operation> operations_;
  uint64_t next_operation_ = 1;
  std::vector<std::weak_ptr<Engine>> engines_;
};

template <typename Make>
void Environment::emit(Napi::Env env, uint64_t id, const Make& make) {
  Operation* operation = find_operation(id);
  if (operation == nullptr || operation->failure) return;
  Napi::Object event;
  try {
    event = make(env);
  } catch (...) {
    operation->failure = describe(std::current_exception());
    operation->stop();
    return;
  }
  operation->on_event.Call(env.Undefined(), {event});
}

template <typename Make>
void Environment::finish_operation(Napi::Env env, uint64_t id, const char* kind, const Make& make) {
  Operation* operation = find_operation(id);
  if (operation == nullptr) return;
  const Napi::FunctionReference on_event = std::move(operation->on_event);
  std::optional<Error> failure = operation->failure;
  remove_operation(env, id);
  Napi::Object event;
  if (!failure) {
    try {
      event = make(env);
    } catch (const Napi::Error& error) {
      event = failed_event(env, kind, error.Value());
    } catch (...) {
      failure = describe(std::current_exception());
    }
  }
  if (failure) event = failed_event(env, kind, make_error(env, *failure));
  on_event.Call(env.Undefined(), {event});
}

// A task that calls f(env) and destroys it after.
template <typename F>
std::unique_ptr<Task> make_task(F f) {
  class FunctionTask final : public Task {
   public:
    explicit FunctionTask(F&& f) : f_(std::move(f)) {}
    void run(Napi::Env env) override { f_(env); }

   private:
    F f_;
  };
  return std::make_unique<FunctionTask>(std::move(f));
}

// Runs work on a pool thread of Node and settles a promise with convert(env, result).
template <typename Result>
class PoolTask : public Napi::AsyncWorker {
 public:
  using Work = std::function<Result()>;
  using Convert = std::function<Napi::Value(Napi::Env, Result&&)>;

  static Napi::Value run(Napi::Env env, Work work, Convert convert) {
    std::unique_ptr<PoolTask> task(new PoolTask(env, std::move(work), std::move(convert)));
    const Napi::Promise promise = task->deferred_.Promise();
    task->Queue();
    task.release();  // deletes itself when done
    return promise;
  }

 protected:
  void Execute() override {
    try {
      result_.emplace(work_());
    } catch (...) {
      error_ = describe(std::current_exception());
    }
  }
  void OnOK() override {
    Napi::Value value;
    try {
      if (!error_) value = convert_(Env(), std::move(*result_));
    } catch (const Napi::Error& error) {
      return deferred_.Reject(error.Value());
    } catch (...) {
      error_ = describe(std::current_exception());
    }
    if (error_) {
      deferred_.Reject(Environment::of(Env()).make_error(Env(), *error_));
    } else {
      deferred_.Resolve(value);
    }
  }

 private:
  PoolTask(Napi::Env env, Work work, Convert convert)
      : Napi::AsyncWorker(env), deferred_(env), work_(std::move(work)), convert_(std::move(convert)) {}

  Napi::Promise::Deferred deferred_;
  Work work_;
  Convert convert_;
  std::optional<Result> result_;
  std::optional<Error> error_;
};

}  // namespace gemma::binding
