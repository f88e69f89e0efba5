// Values of JavaScript, checked: what the conversions of convert.h and of the bindings are made of.
#pragma once

#include <napi.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>

#include "binding/convert.h"

namespace gemma::binding {

[[noreturn]] inline void bad_type(Napi::Env env, const char* name, const char* expected) {
  throw Napi::TypeError::New(env, std::string(name) + ": expected " + expected);
}

[[noreturn]] inline void bad_range(Napi::Env env, const char* name, double low, double high, double found) {
  char text[128];
  std::snprintf(text, sizeof text, ": expected an integer from %.16g to %.16g, found %.16g", low, high, found);
  throw Napi::RangeError::New(env, std::string(name) + text);
}

inline double to_double(const Napi::Value& value, const char* name) {
  if (!value.IsNumber()) bad_type(value.Env(), name, "a number");
  return value.As<Napi::Number>().DoubleValue();
}

// Doubles hold all integers up to here.
inline constexpr double kMaxExact = 9007199254740991.0;

inline double to_integer(const Napi::Value& value, const char* name, double low, double high) {
  const double number = to_double(value, name);
  if (!(number >= low && number <= high) || std::floor(number) != number)
    bad_range(value.Env(), name, low, high, number);
  return number;
}

inline std::string to_string(const Napi::Value& value, const char* name) {
  if (!value.IsString()) bad_type(value.Env(), name, "a string");
  return value.As<Napi::String>().Utf8Value();
}

// Calls take(element) for each element.
inline void for_each(const Napi::Value& value, const char* name, const auto& take) {
  if (!value.IsArray()) bad_type(value.Env(), name, "an array");
  const auto list = value.As<Napi::Array>();
  // The length is asked for again each time: code of the caller runs in between.
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const Napi::HandleScope scope(value.Env());
    take(list.Get(i));
  }
}

template <class T>
struct ArrayOf;
template <>
struct ArrayOf<uint8_t> {
  static constexpr napi_typedarray_type kType = napi_uint8_array;
  static constexpr const char* kName = "Uint8Array";
};
template <>
struct ArrayOf<int32_t> {
  static constexpr napi_typedarray_type kType = napi_int32_array;
  static constexpr const char* kName = "Int32Array";
};
template <>
struct ArrayOf<float> {
  static constexpr napi_typedarray_type kType = napi_float32_array;
  static constexpr const char* kName = "Float32Array";
};
template <>
struct ArrayOf<double> {
  static constexpr napi_typedarray_type kType = napi_float64_array;
  static constexpr const char* kName = "Float64Array";
};

// The elements of a typed array where they are, none of one whose buffer was taken away: until the caller's code runs
// again.
template <class T>
std::span<const T> elements_of(const Napi::Value& value, const char* name) {
  bool is_typed_array = false;
  napi_typedarray_type type = napi_int8_array;  // which nobody wants here; stays, for a type that Node does not know
  size_t n = 0;
  void* data = nullptr;
  const napi_env env = value.Env();
  if (napi_is_typedarray(env, value, &is_typed_array) != napi_ok || !is_typed_array ||
      napi_get_typedarray_info(env, value, &type, &n, &data, nullptr, nullptr) != napi_ok ||
      type != ArrayOf<T>::kType) {
    throw Napi::TypeError::New(env, std::string(name) + ": expected a " + ArrayOf<T>::kName);
  }
  return data == nullptr ? std::span<const T>() : std::span(static_cast<const T*>(data), n);
}

// The limits of lib/options.ts.
inline constexpr int kMaxGpuLayers = 1'000'000;
inline constexpr int kMaxThreads = 1024;
inline constexpr int kMaxBatch = 65536;

// An optional property of options: absent or undefined leaves *out as it is.
inline void read(const Napi::Object& options, const char* key, const auto& take) {
  const Napi::Value value = options.Get(key);
  if (!value.IsUndefined()) take(value);
}
inline void read(const Napi::Object& options, const char* key, int* out, int low, int high) {
  read(options, key, [&](const Napi::Value& value) { *out = static_cast<int>(to_integer(value, key, low, high)); });
}
inline void read(const Napi::Object& options, const char* key, int* out) {
  read(options, key, [&](const Napi::Value& value) { *out = to_int(value, key); });
}
inline void read(const Napi::Object& options, const char* key, float* out) {
  read(options, key, [&](const Napi::Value& value) { *out = static_cast<float>(to_double(value, key)); });
}
inline void read(const Napi::Object& options, const char* key, double* out) {
  read(options, key, [&](const Napi::Value& value) { *out = to_double(value, key); });
}
inline void read(const Napi::Object& options, const char* key, bool* out) {
  read(options, key, [&](const Napi::Value& value) { *out = to_bool(value, key); });
}
inline void read(const Napi::Object& options, const char* key, std::string* out) {
  read(options, key, [&](const Napi::Value& value) { *out = to_string(value, key); });
}
// 0 to 2^53 - 1.
inline void read(const Napi::Object& options, const char* key, uint64_t* out) {
  read(options, key,
       [&](const Napi::Value& value) { *out = static_cast<uint64_t>(to_integer(value, key, 0, kMaxExact)); });
}

}  // namespace gemma::binding
