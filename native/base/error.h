// The only exception that the core throws: a stable code, a more specific detail, and a message that says what, where,
// expected and found. native/binding/ turns it into the JavaScript class GemmaError.
#pragma once

#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

namespace gemma {

// Kept equal to GemmaErrorCode in lib/errors.ts by a test.
enum class ErrorCode {
  kFile,                // ERR_FILE: cannot open or read
  kGgufInvalid,         // ERR_GGUF_INVALID: the file breaks the format or its own metadata
  kSafetensorsInvalid,  // ERR_SAFETENSORS_INVALID: likewise of a safetensors file or the JSON files beside it
  kUnsupportedModel,    // ERR_UNSUPPORTED_MODEL: a valid file of another kind of model
  kAdapterInvalid,      // ERR_ADAPTER_INVALID: an adapter that is damaged, or does not fit the model
  kUnsupportedInput,    // ERR_UNSUPPORTED_INPUT: input that this model or version does not support
  kImage,               // ERR_IMAGE: a picture that cannot be fetched or decoded, or is too large
  kVideo,               // ERR_VIDEO: a video that cannot be decoded, or is too large
  kChatTemplate,  // ERR_CHAT_TEMPLATE: a chat template refuses the messages, fails or takes too much (lib/jinja.ts)
  kContextFull,   // ERR_CONTEXT_FULL: prompt and output do not fit into the context
  kNonFinite,     // ERR_NON_FINITE: NaN or infinity in the logits
  kOutOfMemory,   // ERR_OUT_OF_MEMORY
  kBackendUnavailable,  // ERR_BACKEND_UNAVAILABLE: device or instruction set not available
  kInvalidArgument,     // ERR_INVALID_ARGUMENT: a token id outside the vocabulary, ...
  kDisposed,            // ERR_DISPOSED: used after dispose()
  kQueueFull,           // ERR_QUEUE_FULL: as many calls wait as may
  kStalled,             // ERR_STALLED: the reader of a stream took nothing for too long
  kOutputInvalid,       // ERR_OUTPUT_INVALID: an answer does not meet the schema that it was asked for with
  kDownload,            // ERR_DOWNLOAD: a model cannot be got from where it is published (lib/hub)
  kInternal,            // ERR_INTERNAL: a bug in gemma-native
};

// "ERR_GGUF_INVALID" and so on.
const char* error_code_name(ErrorCode code);

// Copying one never allocates, so that it can be handed on where there is no memory.
class Error : public std::runtime_error {
 public:
  // detail: an upper-case word that is more specific than the code ("BAD_SHAPE"), may be empty; a literal, or the
  // detail of another error.
  Error(ErrorCode code, const char* detail, const std::string& message)
      : std::runtime_error(message), code_(code), detail_(detail) {}

  ErrorCode code() const { return code_; }
  std::string_view detail() const { return detail_; }
  // The same error with a message that says more.
  Error with_message(const std::string& message) const { return {code_, detail_, message}; }

 private:
  ErrorCode code_;
  const char* detail_;
};

// A path as messages show it: of a long one the end.
std::string shown_path(const std::string& path);
// Text of a file as messages show it: in quotation marks, cut and made printable.
std::string quoted(std::string_view text);

// What f() returns. Of what it throws, errors get the file they are about in front ("PATH: message"), and want of memory
// becomes Error{kOutOfMemory}. Code that reads a file names it this way once, at the outside, and nowhere within.
template <typename F>
auto in_file(const std::string& path, const F& f) {
  try {
    return f();
  } catch (const Error& error) {
    throw error.with_message(shown_path(path) + ": " + error.what());
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory, "", shown_path(path) + ": not enough memory to read it");
  }
}

// kOutOfMemory in general. Made by the first call, which may throw std::bad_alloc: whoever is to report errors later
// asks for it while there is memory.
const Error& out_of_memory();

// What is being thrown, as an Error: std::bad_alloc and std::length_error are kOutOfMemory, other exceptions
// kInternal. For use after a call of out_of_memory().
Error describe(const std::exception_ptr& exception) noexcept;

}  // namespace gemma
