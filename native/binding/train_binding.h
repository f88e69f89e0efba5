// Fine-tuning for JavaScript: functions of the addon, see native.ts.
#pragma once

#include <napi.h>

namespace gemma::binding {

// Adds them to the addon's exports.
void define_training(Napi::Env env, Napi::Object exports);

}  // namespace gemma::binding
