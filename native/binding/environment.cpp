#include "binding/environment.h"

#include <algorithm>
#include <string>
#include <system_error>

#include "binding/model_binding.h"
#include "gguf/gguf.h"

namespace gemma::binding {
namespace {

struct Loaded {
  std::shared_ptr<Engine> engine;
  bool instruction_tuned = false;
};

}  // namespace

Environment::Environment(Napi::Env env, Napi::Object exports) : mailbox_(std::make_shared<Mailbox>(env)) {
  DefineAddon(exports, {
                           InstanceMethod("init", &Environment::init),
                           InstanceMethod("devices", &Environment::devices),
                           InstanceMethod("inspect", &Environment::inspect),
                           InstanceMethod("cropBoxes", &Environment::crop_boxes),
                           InstanceMethod("prepareImage", &Environment::prepare_image),
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
    if (operation.cancelled) operation.cancelled->store(true);
    if (operation.request) operation.request->cancel();
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

void Environment::emit(Napi::Env env, uint64_t id, const Napi::Object& event) {
  if (Operation* operation = find_operation(id)) operation->on_event.Call(env.Undefined(), {event});
}

Napi::Object Environment::make_model(std::shared_ptr<Engine> engine, bool instruction_tuned) {
  std::erase_if(engines_, [](const std::weak_ptr<Engine>& weak) { return weak.expired(); });
  engines_.push_back(engine);
  const Napi::Object object = model_class_.New({});
  ModelBinding::Unwrap(object)->attach(std::move(engine), instruction_tuned);
  return object;
}

Napi::Value Environment::make_error(Napi::Env env, const ErrorInfo& info) const {
  if (error_class_.IsEmpty()) return Napi::Error::New(env, info.message).Value();
  const Napi::Value detail = info.detail.empty() ? env.Undefined() : Napi::Value(Napi::String::New(env, info.detail));
  return error_class_.New({Napi::String::New(env, info.code), Napi::String::New(env, info.message), detail});
}

// init(GemmaError): the class native errors are made of.
Napi::Value Environment::init(const Napi::CallbackInfo& info) {
  error_class_ = Napi::Persistent(info[0].As<Napi::Function>());
  return info.Env().Undefined();
}

Napi::Value Environment::devices(const Napi::CallbackInfo& info) {
  return PoolTask<std::vector<DeviceInfo>>::run(info.Env(), list_devices,
                                                [](Napi::Env env, auto&& devices) { return to_js(env, devices); });
}

// inspect({ contexts: number[], ...as load }): headers only.
Napi::Value Environment::inspect(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto options = info[0].As<Napi::Object>();
    LoadOptions load_options = to_load_options(options);
    std::vector<int> contexts;
    const auto list = options.Get("contexts").As<Napi::Array>();
    for (uint32_t i = 0; i < list.Length(); ++i) contexts.push_back(list.Get(i).As<Napi::Number>().Int32Value());
    if (load_options.n_batch <= 0) load_options.n_batch = 512;
    return PoolTask<FileSummary>::run(
        info.Env(), [load_options, contexts] { return summarize_file(load_options, contexts); },
        [](Napi::Env env, FileSummary&& summary) { return to_js(env, summary); });
  });
}

// cropBoxes({ width, height, panAndScan?, tile? }) -> { x, y, width, height }[]
Napi::Value Environment::crop_boxes(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto options = info[0].As<Napi::Object>();
    const int width = options.Get("width").As<Napi::Number>().Int32Value();
    const int height = options.Get("height").As<Napi::Number>().Int32Value();
    return to_js(info.Env(), gemma::crop_boxes(width, height, to_crop_options(options)));
  });
}

// prepareImage({ data, width, height, layout, imageSize, panAndScan?, tile? }) -> Promise<{ pixels, crops }>. The data
// is read where it is, on another thread, without a copy: its array must not change, move or be handed to anyone until
// then.
Napi::Value Environment::prepare_image(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto options = info[0].As<Napi::Object>();
    const Image image = to_image(options);
    check_image(image);
    const int size = options.Get("imageSize").As<Napi::Number>().Int32Value();
    const auto keep = std::make_shared<Napi::ObjectReference>(Napi::Persistent(options.Get("data").As<Napi::Object>()));
    return PoolTask<PreparedImage>::run(
        info.Env(),
        [image, size, keep, crops = to_crop_options(options)] { return gemma::prepare_image(image, size, crops); },
        [](Napi::Env env, PreparedImage&& prepared) { return to_js(env, prepared); });
  });
}

// load(options, onEvent) -> id. Events: {kind: 'progress', fraction}, then {kind: 'loaded', model} or {kind: 'failed',
// error}. On a thread of its own: a pool thread could not be cancelled when the environment ends, because Node waits
// for the pool first.
Napi::Value Environment::load(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Env env = info.Env();
    LoadOptions options = to_load_options(info[0].As<Napi::Object>());
    Operation operation;
    operation.on_event = Napi::Persistent(info[1].As<Napi::Function>());
    operation.cancelled = std::make_shared<std::atomic<bool>>(false);
    const std::shared_ptr<std::atomic<bool>> cancelled = operation.cancelled;
    const uint64_t id = add_operation(env, std::move(operation));
    const std::shared_ptr<Mailbox> mailbox = mailbox_;

    options.cancel = cancelled.get();
    options.on_progress = [mailbox, id, last = -1.0](double fraction) mutable {
      if (fraction < 1 && fraction - last < 0.01) return;
      last = fraction;
      mailbox->post([id, fraction](Napi::Env task_env) {
        Napi::Object event = Napi::Object::New(task_env);
        event["kind"] = "progress";
        event["fraction"] = fraction;
        Environment::of(task_env).emit(task_env, id, event);
      });
    };
    const auto run = [mailbox, cancelled, id, options = std::move(options)] {
      Loaded loaded;
      ErrorInfo error;
      try {
        loaded.instruction_tuned =
            is_instruction_tuned(*GgufFile::open(options.path, {.mmap = true, .headers_only = true}));
        loaded.engine = Engine::load(options);
      } catch (...) {
        error = describe(std::current_exception());
      }
      mailbox->post([id, loaded = std::move(loaded), error = std::move(error)](Napi::Env task_env) {
        Environment& self = Environment::of(task_env);
        Napi::Object event = Napi::Object::New(task_env);
        if (loaded.engine) {
          event["kind"] = "loaded";
          event["model"] = self.make_model(loaded.engine, loaded.instruction_tuned);
        } else {
          event["kind"] = "failed";
          event["error"] = self.make_error(task_env, error);
        }
        const Napi::FunctionReference on_event = std::move(self.find_operation(id)->on_event);
        self.remove_operation(task_env, id);
        on_event.Call(task_env.Undefined(), {event});
      });
    };
    try {
      find_operation(id)->thread = std::thread(run);
    } catch (const std::system_error&) {
      remove_operation(env, id);
      throw Error(ErrorCode::kOutOfMemory, "THREADS", "the system refuses another thread");
    }
    return Napi::Number::New(env, static_cast<double>(id));
  });
}

// cancel(id): stops a load, generate, evaluate or encodeImages; its last event still arrives. Unknown ids are done
// already.
Napi::Value Environment::cancel(const Napi::CallbackInfo& info) {
  const auto id = static_cast<uint64_t>(info[0].As<Napi::Number>().Int64Value());
  if (Operation* operation = find_operation(id)) {
    if (operation->cancelled) operation->cancelled->store(true);
    if (operation->request) operation->request->cancel();
  }
  return info.Env().Undefined();
}

}  // namespace gemma::binding
