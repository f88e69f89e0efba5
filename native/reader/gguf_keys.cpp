#include "reader/gguf_keys.h"

#include <algorithm>
#include <cstdio>

#include "base/error.h"

namespace gemma {
namespace {

std::string number_text(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", x);
  return text;
}

}  // namespace

void bad_hparam(const std::string& key, const std::string& message) {
  throw Error(ErrorCode::kGgufInvalid, "BAD_HPARAM", "metadata \"" + key + "\": " + message);
}

std::string shown(std::string text) {
  text.resize(std::min<size_t>(text.size(), 64));
  for (char& c : text) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  return "\"" + text + "\"";
}

void keep_weights(const GgufFile& file, TensorSource& source) {
  const std::shared_ptr<const GgufWeights> weights = file.weights();
  source.set_prefetch([weights](const TensorSource::OnRead& on_read) { weights->prefetch(on_read); });
  source.set_release([weights](std::span<const std::byte> bytes) { weights->release(bytes); });
  source.set_check([weights] { weights->check(); });
  source.set_version(weights->version());
}

std::optional<int> Keys::find_int(const std::string& name, int min, int max) const {
  const std::optional<int64_t> value = file_.find_int(full(name));
  if (!value) return std::nullopt;
  if (*value < min || *value > max) {
    bad_hparam(full(name),
               "expected " + std::to_string(min) + " to " + std::to_string(max) + ", found " + std::to_string(*value));
  }
  return static_cast<int>(*value);
}

std::optional<float> Keys::find_float(const std::string& name, double min, double max) const {
  const std::optional<double> value = file_.find_float(full(name));
  if (!value) return std::nullopt;
  if (!(*value >= min && *value <= max)) {  // NaN fails too
    bad_hparam(full(name),
               "expected " + number_text(min) + " to " + number_text(max) + ", found " + number_text(*value));
  }
  return static_cast<float>(*value);
}

int Keys::need_int(const std::string& name, int min, int max) const {
  const std::optional<int> value = find_int(name, min, max);
  if (!value) bad_hparam(full(name), "missing, expected " + std::to_string(min) + " to " + std::to_string(max));
  return *value;
}

}  // namespace gemma
