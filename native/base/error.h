// The one exception the core throws: a stable code, a finer detail, and a message that says what,
// where, expected, found. native/binding/ turns it into the JavaScript class GemmaError.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace gemma {

// Kept equal to GemmaErrorCode in lib/errors.ts by a test.
enum class ErrorCode {
  kFile,                // ERR_FILE: cannot open or read
  kGgufInvalid,         // ERR_GGUF_INVALID: the file breaks the format or its own metadata
  kUnsupportedModel,    // ERR_UNSUPPORTED_MODEL: a sound file of something else
  kUnsupportedInput,    // ERR_UNSUPPORTED_INPUT: what this model or version cannot take
  kImage,               // ERR_IMAGE: a picture that cannot be fetched or decoded, or is too large
  kVideo,               // ERR_VIDEO: the same of a video
  kContextFull,         // ERR_CONTEXT_FULL: prompt and output do not fit into the context
  kNonFinite,           // ERR_NON_FINITE: NaN or infinity in the logits
  kOutOfMemory,         // ERR_OUT_OF_MEMORY
  kBackendUnavailable,  // ERR_BACKEND_UNAVAILABLE: device or instruction set not here
  kInvalidArgument,     // ERR_INVALID_ARGUMENT: a token id past the vocabulary, ...
  kDisposed,            // ERR_DISPOSED: used after dispose()
  kInternal,            // ERR_INTERNAL: a fault of ours
};

// "ERR_GGUF_INVALID" and so on.
const char* error_code_name(ErrorCode code);

class Error : public std::runtime_error {
 public:
  // detail: upper-case word of finer grain ("BAD_SHAPE"), may be empty.
  Error(ErrorCode code, std::string detail, const std::string& message)
      : std::runtime_error(message), code_(code), detail_(std::move(detail)) {}

  ErrorCode code() const { return code_; }
  const std::string& detail() const { return detail_; }

 private:
  ErrorCode code_;
  std::string detail_;
};

}  // namespace gemma
