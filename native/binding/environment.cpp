#include "binding/environment.h"

#include <algorithm>
#include <string>

#include "base/file.h"
#include "base/thread.h"
#include "binding/model_binding.h"

namespace gemma::binding {
namespace {

// The last event of a load, made before it begins.
class LoadCompletion final : public Task {
 public:
  explicit LoadCompletion(uint64_t id) : id_(id) {}

  void load(const LoadOptions& options) noexcept {
    try {
      engine_ = Engine::load(options);
    } catch (...) {
      error_ = describe(std::current_exception());
    }
  }

  void run(Napi::Env env) override {
    Environment& environment = Environment::of(env);
    environment.finish_operation(env, id_, "failed", [&](Napi::Env) {
      if (error_) throw Error(*error_);
      Napi::Object event = Napi::Object::New(env);
      event["kind"] = "loaded";
      event["model"] = environment.make_model(std::move(engine_));
      return event;
    });
  }

 private:
  uint64_t id_;
  std::shared_ptr<Engine> engine_;
  std::optional<Error> error_;
};

}  // namespace

void Operation::stop() {
  if (cancelled) cancelled->store(true);
  if (request) request->cancel();
}

Environment::Environment(Napi::Env env, Napi::Object exports) : mailbox_(std::make_shared<Mailbox>(env)) {
  out_of_memory();  // made while there is memory
  DefineAddon(exports, {
                           InstanceMethod("init", &Environment::init),
                           InstanceMethod("devices", &Environment::devices),
                           InstanceMethod("inspect", &Environment::inspect),
                           InstanceMethod("cropBoxes", &Environment::crop_boxes),
                           InstanceMethod("prepareSquare", &Environment::prepare_square),
                           InstanceMethod("lockFile", &Environment::lock_file),
                           InstanceMethod("load", &Environment::load),
                           InstanceMethod("cancel", &Environment::cancel),
                           InstanceValue("backend", Napi::String::New(env, compiled_backend())),
                       });
  model_class_ = Napi::Persistent(ModelBinding::define(env));
  // Added after the mailbox's thread-safe function: hooks run in reverse order, so this one finds it still open.
  env.AddCleanupHook([](Environment* self) { self->shut_down(); }, this);
}

void Environment::shut_down() {
  // From here no thread can reach JavaScript; what they still report is dropped.
  mailbox_->close();
  for (auto& [id, operation] : operations_) {
    operation.stop();
  }
  for (auto& [id, operation] : operations_) {
    if (operation.thread.joinable()) operation.thread.join();
  }
  for (const std::weak_ptr<Engine>& weak : engines_) {
    if (const std::shared_ptr<Engine> engine = weak.lock()) engine->close();
  }
}

uint64_t Environment::add_operation(Napi::Env env, Operation operation) {
  const uint64_t id = next_operation_++;
  operations_.emplace(id, std::move(operation));
  mailbox_->operation_begins(env);
  return id;
}

Operation* Environment::find_operation(uint64_t id) {
  const auto found = operations_.find(id);
  return found == operations_.end() ? nullptr : &found->second;
}

void Environment::remove_operation(Napi::Env env, uint64_t id) {
  const auto found = operations_.find(id);
  if (found == operations_.end()) return;
  if (found->second.thread.joinable()) found->second.thread.join();  // its last act was the report
  operations_.erase(found);
  mailbox_->operation_ends(env);
}

Napi::Object Environment::make_model(std::shared_ptr<Engine> engine) {
  std::erase_if(engines_, [](const std::weak_ptr<Engine>& weak) { return weak.expired(); });
  engines_.push_back(engine);
  Napi::Object object;
  try {
    object = model_class_.New({});
  } catch (const Napi::Error&) {
    throw std::bad_alloc();  // its constructor does nothing else that could fail
  }
  ModelBinding::Unwrap(object)->attach(std::move(engine));
  return object;
}

// Sets properties by names that are not copied: nothing here allocates but JavaScript.
Napi::Object Environment::failed_event(Napi::Env env, const char* kind, const Napi::Value& error) const {
  Napi::Object event = Napi::Object::New(env);
  event.Set("kind", kind);
  event.Set("reason", "error");
  event.Set("text", "");
  event.Set("error", error);
  return event;
}

Napi::Value Environment::make_error(Napi::Env env, const Error& error) const {
  if (error_class_.IsEmpty()) return Napi::Error::New(env, error.what()).Value();
  const Napi::Value detail =
      error.detail().empty() ? env.Undefined() : Napi::Value(Napi::String::New(env, error.detail()));
  try {
    return error_class_.New(
        {Napi::String::New(env, error_code_name(error.code())), Napi::String::New(env, error.what()), detail});
  } catch (const Napi::Error& thrown) {
    return thrown.Value();  // an error all the same, so that what waits for one ends
  }
}

// init(GemmaError): the class native errors are made of.
Napi::Value Environment::init(const Napi::CallbackInfo& info) {
  error_class_ = Napi::Persistent(to_function(info[0], "init"));
  return info.Env().Undefined();
}

Napi::Value Environment::devices(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return PoolTask<std::vector<DeviceInfo>>::run(info.Env(), list_devices,
                                                  [](Napi::Env env, auto&& devices) { return to_js(env, devices); });
  });
}

// inspect({ contexts: number[], ...as load }): headers only.
Napi::Value Environment::inspect(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Napi::Object options = to_object(info[0], "options");
    const LoadOptions load_options = to_load_options(options);
    const std::vector<int> contexts = to_contexts(options);
    return PoolTask<FileSummary>::run(
        info.Env(), [load_options, contexts] { return summarize_file(load_options, contexts); },
        [](Napi::Env env, FileSummary&& summary) { return to_js(env, summary); });
  });
}

// cropBoxes({ width, height, panAndScan?, tile? }) -> { x, y, width, height }[]
Napi::Value Environment::crop_boxes(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Napi::Object options = to_object(info[0], "options");
    const int width = to_int(options, "width");
    const int height = to_int(options, "height");
    return to_js(info.Env(), gemma::crop_boxes(width, height, to_crop_options(options)));
  });
}

// prepareSquare({ data, width, height, layout, alpha?, box, imageSize }) -> Promise<Uint8Array>. The data is read where it
// is, on another thread, without a copy: its array must not change, move or be handed to anyone until then.
Napi::Value Environment::prepare_square(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Napi::Object options = to_object(info[0], "options");
    const int size = to_int(options, "imageSize");
    const Box box = to_box(to_object(options.Get("box"), "box"));
    // Last: after it no code of the caller runs that could take the bytes away.
    Napi::Object array;
    const Image image = to_image(options, &array);
    check_image(image);
    const auto keep = std::make_shared<Napi::ObjectReference>(Napi::Persistent(array));
    return PoolTask<std::vector<uint8_t>>::run(
        info.Env(), [image, box, size, keep] { return gemma::prepare_square(image, box, size); },
        [](Napi::Env env, std::vector<uint8_t>&& square) { return to_js(env, std::span<const uint8_t>(square)); });
  });
}

// lockFile(path) -> Promise<release: () => void, or null>. The lock ends with the call of release, with the function, or
// with the process.
Napi::Value Environment::lock_file(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    if (!info[0].IsString()) throw Napi::TypeError::New(info.Env(), "path: expected a string");
    return PoolTask<std::shared_ptr<FileLock>>::run(
        info.Env(), [path = info[0].As<Napi::String>().Utf8Value()] { return FileLock::try_lock(path); },
        [](Napi::Env env, std::shared_ptr<FileLock>&& lock) -> Napi::Value {
          if (!lock) return env.Null();
          return Napi::Function::New(env, [lock = std::move(lock)](const Napi::CallbackInfo&) { lock->release(); });
        });
  });
}

// load(options, onEvent) -> id. Events: {kind: 'progress', fraction}, then {kind: 'loaded', model} or {kind: 'failed',
// error}. On a thread of its own: a pool thread could not be cancelled when the environment ends, because Node waits
// for the pool first.
Napi::Value Environment::load(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Env env = info.Env();
    LoadOptions options = to_load_options(to_object(info[0], "options"));
    Operation operation;
    operation.on_event = Napi::Persistent(to_function(info[1], "onEvent"));
    operation.cancelled = std::make_shared<std::atomic<bool>>(false);
    const std::shared_ptr<std::atomic<bool>> cancelled = operation.cancelled;
    const uint64_t id = add_operation(env, std::move(operation));
    try {
      const std::shared_ptr<Mailbox> mailbox = mailbox_;
      options.cancel = cancelled.get();
      options.on_progress = [mailbox, id, last = -1.0](double fraction) mutable {
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
      find_operation(id)->thread = start_thread([mailbox, cancelled, options = std::move(options),
                                                 completion = std::make_unique<LoadCompletion>(id)]() mutable {
        completion->load(options);
        mailbox->post(std::move(completion));
      });
    } catch (...) {
      remove_operation(env, id);
      throw;
    }
    return Napi::Number::New(env, static_cast<double>(id));
  });
}

// cancel(id): stops a load, generate, evaluate or encodeImages; its last event still arrives. Unknown ids are done
// already.
Napi::Value Environment::cancel(const Napi::CallbackInfo& info) {
  if (Operation* operation = find_operation(to_id(info[0]))) operation->stop();
  return info.Env().Undefined();
}

}  // namespace gemma::binding
