#include "base/error.h"

namespace gemma {

const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kFile: return "ERR_FILE";
    case ErrorCode::kGgufInvalid: return "ERR_GGUF_INVALID";
    case ErrorCode::kUnsupportedModel: return "ERR_UNSUPPORTED_MODEL";
    case ErrorCode::kUnsupportedInput: return "ERR_UNSUPPORTED_INPUT";
    case ErrorCode::kImage: return "ERR_IMAGE";
    case ErrorCode::kVideo: return "ERR_VIDEO";
    case ErrorCode::kContextFull: return "ERR_CONTEXT_FULL";
    case ErrorCode::kNonFinite: return "ERR_NON_FINITE";
    case ErrorCode::kOutOfMemory: return "ERR_OUT_OF_MEMORY";
    case ErrorCode::kBackendUnavailable: return "ERR_BACKEND_UNAVAILABLE";
    case ErrorCode::kInvalidArgument: return "ERR_INVALID_ARGUMENT";
    case ErrorCode::kDisposed: return "ERR_DISPOSED";
    case ErrorCode::kInternal: return "ERR_INTERNAL";
  }
  return "ERR_INTERNAL";
}

}  // namespace gemma
