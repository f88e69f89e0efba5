// The JavaScript object of one loaded model: JS values to plain structs, work to other threads, events back.
#pragma once

#include <napi.h>

#include <memory>

#include "runtime/engine.h"

namespace gemma::binding {

class ModelBinding : public Napi::ObjectWrap<ModelBinding> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit ModelBinding(const Napi::CallbackInfo& info);

  void attach(std::shared_ptr<Engine> engine);

 private:
  Napi::Value info(const Napi::CallbackInfo& info);
  Napi::Value stats(const Napi::CallbackInfo& info);
  Napi::Value markers(const Napi::CallbackInfo& info);
  Napi::Value find_token(const Napi::CallbackInfo& info);
  Napi::Value encode(const Napi::CallbackInfo& info);
  Napi::Value decode(const Napi::CallbackInfo& info);
  Napi::Value compile_grammar(const Napi::CallbackInfo& info);
  Napi::Value generate(const Napi::CallbackInfo& info);
  Napi::Value evaluate(const Napi::CallbackInfo& info);
  Napi::Value score(const Napi::CallbackInfo& info);
  Napi::Value embed(const Napi::CallbackInfo& info);
  Napi::Value encode_images(const Napi::CallbackInfo& info);
  Napi::Value hold_rows(const Napi::CallbackInfo& info);
  Napi::Value save_state(const Napi::CallbackInfo& info);
  Napi::Value restore_state(const Napi::CallbackInfo& info);
  Napi::Value load_adapter(const Napi::CallbackInfo& info);
  Napi::Value unload_adapter(const Napi::CallbackInfo& info);
  Napi::Value adapters(const Napi::CallbackInfo& info);
  Napi::Value acknowledge(const Napi::CallbackInfo& info);
  Napi::Value cancel(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);

  // Calls the method if it is called on a model. What it is called on may be anything that another addon has made: this
  // is not looked at before that is known.
  template <Napi::Value (ModelBinding::*method)(const Napi::CallbackInfo& info)>
  Napi::Value checked(const Napi::CallbackInfo& info);

  // The engine; throws kDisposed after close().
  const std::shared_ptr<Engine>& engine() const;

  Napi::Value start(const Napi::CallbackInfo& info, const auto& begin);

  std::shared_ptr<Engine> engine_;
};

}  // namespace gemma::binding
