#include "binding/environment.h"

#include <algorithm>
#include <string>

#include "base/file.h"
#include "binding/model_binding.h"
#include "binding/train_binding.h"
#include "binding/work.h"

namespace gemma::binding {
namespace {

Napi::Object loaded_event(Napi::Env env, std::shared_ptr<Engine>&& engine) {
  Napi::Object event = Napi::Object::New(env);
  event["kind"] = "loaded";
  event["model"] = Environment::of(env).make_model(std::move(engine));
  return event;
}

template <typename Result>
Napi::Object done_event(Napi::Env env, Result&& result) {
  Napi::Object event = Napi::Object::New(env);
  event["kind"] = "done";
  event["result"] = to_js(env, result);
  return event;
}

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
                           InstanceMethod("adapterModules", &Environment::adapter_modules),
                           InstanceMethod("lockFile", &Environment::lock_file),
                           InstanceMethod("load", &Environment::load),
                           InstanceMethod("quantize", &Environment::quantize),
                           InstanceMethod("merge", &Environment::merge),
                           InstanceMethod("importance", &Environment::importance),
                           InstanceMethod("cancel", &Environment::cancel),
                           InstanceValue("backend", Napi::String::New(env, compiled_backend())),
                       });
  define_training(env, exports);
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

// adapterModules(path: string) -> Promise<string[]>: the modules that a PEFT adapter's safetensors has pairs of.
Napi::Value Environment::adapter_modules(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    if (!info[0].IsString()) throw Napi::TypeError::New(env, "path: expected a string");
    return PoolTask<std::vector<std::string>>::run(
        env, [path = info[0].As<Napi::String>().Utf8Value()] { return peft_modules(path); },
        [](Napi::Env result_env, std::vector<std::string>&& modules) -> Napi::Value {
          Napi::Array array = Napi::Array::New(result_env, modules.size());
          for (uint32_t i = 0; i < modules.size(); ++i) array.Set(i, modules[i]);
          return array;
        });
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

// load(options, onEvent) -> id. Events as of start_work(), at last {kind: 'loaded', model}.
Napi::Value Environment::load(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return start_work(*this, info, to_load_options(to_object(info[0], "options")), Engine::load, loaded_event);
  });
}

// quantize(options, onEvent) -> id. Events as of start_work(), at last {kind: 'done', result}.
Napi::Value Environment::quantize(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return start_work(*this, info, to_quantize_options(to_object(info[0], "options")), quantize_file,
                      done_event<QuantizeResult>);
  });
}

// merge(options, onEvent) -> id. Likewise.
Napi::Value Environment::merge(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return start_work(*this, info, to_merge_options(to_object(info[0], "options")), merge_file,
                      done_event<MergeResult>);
  });
}

// importance(options, onEvent) -> id. Likewise.
Napi::Value Environment::importance(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return start_work(*this, info, to_importance_options(to_object(info[0], "options")), compute_importance,
                      done_event<ImportanceResult>);
  });
}

// cancel(id): stops a load, quantize, merge, importance, generate, evaluate or encodeImages; its last event still arrives. Unknown
// ids are done already.
Napi::Value Environment::cancel(const Napi::CallbackInfo& info) {
  if (Operation* operation = find_operation(to_id(info[0]))) operation->stop();
  return info.Env().Undefined();
}

}  // namespace gemma::binding
