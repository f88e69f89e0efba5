// The JavaScript object of one loaded model: JS values to plain structs, work to other threads, events back.
#pragma once

#include <napi.h>

#include <memory>

#include "runtime/engine.h"

namespace gemma::binding {

class ModelBinding : public Napi::ObjectWrap<ModelBinding> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit ModelBinding(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ModelBinding>(info) {}

  void attach(std::shared_ptr<Engine> engine, bool instruction_tuned);

 private:
  Napi::Value info(const Napi::CallbackInfo& info);
  Napi::Value stats(const Napi::CallbackInfo& info);
  Napi::Value encode(const Napi::CallbackInfo& info);
  Napi::Value decode(const Napi::CallbackInfo& info);
  Napi::Value generate(const Napi::CallbackInfo& info);
  Napi::Value evaluate(const Napi::CallbackInfo& info);
  Napi::Value encode_images(const Napi::CallbackInfo& info);
  Napi::Value acknowledge(const Napi::CallbackInfo& info);
  Napi::Value cancel(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);

  // The engine; throws kDisposed after close().
  const std::shared_ptr<Engine>& engine() const;

  std::shared_ptr<Engine> engine_;
  bool instruction_tuned_ = false;
};

}  // namespace gemma::binding
