// Work that takes long and ends with a result, on a thread of its own.
#pragma once

#include <napi.h>

#include <atomic>
#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/thread.h"
#include "binding/environment.h"

namespace gemma::binding {

// What work on a thread of its own is told to report to, and what it looks at.
template <typename Options>
Options& hooks(Options& options) {
  return options;
}
inline LoadOptions& hooks(ImportanceOptions& options) {
  return options.model;
}

// The last event of such work, made before it begins.
template <typename Options, typename Result>
class Completion final : public Task {
 public:
  using Work = Result (*)(const Options&);
  using Make = Napi::Object (*)(Napi::Env, Result&&);

  Completion(uint64_t id, Work to_do, Make make_event) : id_(id), work_(to_do), make_(make_event) {}

  void run_work(const Options& options) noexcept {
    try {
      result_.emplace(work_(options));
    } catch (...) {
      error_ = describe(std::current_exception());
    }
  }

  void run(Napi::Env env) override {
    Environment::of(env).finish_operation(env, id_, "failed", [&](Napi::Env event_env) {
      if (error_) throw Error(*error_);
      return make_(event_env, std::move(*result_));
    });
  }

 private:
  uint64_t id_;
  Work work_;
  Make make_;
  std::optional<Result> result_;
  std::optional<Error> error_;
};

// Begins work that reports {kind: 'progress', fraction}, then what make() makes of its result, or {kind: 'failed', error}.
// On a thread of its own: a pool thread could not be cancelled when the environment ends, because Node waits for the
// pool first.
template <typename Options, typename Result>
Napi::Value start_work(Environment& environment, const Napi::CallbackInfo& info, Options options,
                       Result (*work)(const Options&), Napi::Object (*make)(Napi::Env, Result&&)) {
  const Napi::Env env = info.Env();
  Operation operation;
  operation.on_event = Napi::Persistent(to_function(info[1], "onEvent"));
  operation.cancelled = std::make_shared<std::atomic<bool>>(false);
  const std::shared_ptr<std::atomic<bool>> cancelled = operation.cancelled;
  const uint64_t id = environment.add_operation(env, std::move(operation));
  try {
    const std::shared_ptr<Mailbox> mailbox = environment.mailbox();
    hooks(options).cancel = cancelled.get();
    hooks(options).on_progress = [mailbox, id, last = -1.0](double fraction) mutable {
      if (fraction < 1 && fraction - last < 0.01) return;
      last = fraction;
      mailbox->post(make_task([id, fraction](Napi::Env task_env) {
        Environment::of(task_env).emit(task_env, id, [fraction](Napi::Env event_env) {
          Napi::Object event = Napi::Object::New(event_env);
          event["kind"] = "progress";
          event["fraction"] = fraction;
          return event;
        });
      }));
    };
    environment.find_operation(id)->thread =
        start_thread([mailbox, cancelled, options = std::move(options),
                      completion = std::make_unique<Completion<Options, Result>>(id, work, make)]() mutable {
          completion->run_work(options);
          mailbox->post(std::move(completion));
        });
  } catch (...) {
    environment.remove_operation(env, id);
    throw;
  }
  return Napi::Number::New(env, static_cast<double>(id));
}

}  // namespace gemma::binding
