#include "base/error.h"

#include <new>

namespace gemma {

const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kFile: return "ERR_FILE";
    case ErrorCode::kGgufInvalid: return "ERR_GGUF_INVALID";
    case ErrorCode::kSafetensorsInvalid: return "ERR_SAFETENSORS_INVALID";
    case ErrorCode::kUnsupportedModel: return "ERR_UNSUPPORTED_MODEL";
    case ErrorCode::kAdapterInvalid: return "ERR_ADAPTER_INVALID";
    case ErrorCode::kUnsupportedInput: return "ERR_UNSUPPORTED_INPUT";
    case ErrorCode::kImage: return "ERR_IMAGE";
    case ErrorCode::kVideo: return "ERR_VIDEO";
    case ErrorCode::kChatTemplate: return "ERR_CHAT_TEMPLATE";
    case ErrorCode::kContextFull: return "ERR_CONTEXT_FULL";
    case ErrorCode::kNonFinite: return "ERR_NON_FINITE";
    case ErrorCode::kOutOfMemory: return "ERR_OUT_OF_MEMORY";
    case ErrorCode::kBackendUnavailable: return "ERR_BACKEND_UNAVAILABLE";
    case ErrorCode::kInvalidArgument: return "ERR_INVALID_ARGUMENT";
    case ErrorCode::kDisposed: return "ERR_DISPOSED";
    case ErrorCode::kQueueFull: return "ERR_QUEUE_FULL";
    case ErrorCode::kStalled: return "ERR_STALLED";
    case ErrorCode::kOutputInvalid: return "ERR_OUTPUT_INVALID";
    case ErrorCode::kDownload: return "ERR_DOWNLOAD";
    case ErrorCode::kInternal: return "ERR_INTERNAL";
  }
  return "ERR_INTERNAL";
}

std::string shown_path(const std::string& path) {
  constexpr size_t kMaxShown = 400;
  if (path.size() <= kMaxShown) return path;
  size_t begin = path.size() - kMaxShown;
  while (begin < path.size() && (static_cast<unsigned char>(path[begin]) & 0xc0) == 0x80) ++begin;  // whole characters
  return "..." + path.substr(begin);
}

std::string quoted(std::string_view text) {
  constexpr size_t kMaxShown = 80;
  std::string out = "\"";
  for (const char c : text.substr(0, kMaxShown)) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      constexpr char kHex[] = "0123456789abcdef";
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return out + (text.size() > kMaxShown ? "...\"" : "\"");
}

const Error& out_of_memory() {
  static const Error error(ErrorCode::kOutOfMemory, "", "not enough memory; try a smaller context or a smaller model");
  return error;
}

Error describe(const std::exception_ptr& exception) noexcept {
  // A message that cannot be made for want of memory gives way to the one that is there.
  try {
    try {
      std::rethrow_exception(exception);
    } catch (const Error& error) {
      return error;
    } catch (const std::bad_alloc&) {
      return out_of_memory();
    } catch (const std::length_error& error) {
      return {ErrorCode::kOutOfMemory, "", std::string("a size is too large for this machine: ") + error.what()};
    } catch (const std::exception& error) {
      return {ErrorCode::kInternal, "", std::string("unexpected failure in the native core: ") + error.what()};
    } catch (...) {
      return {ErrorCode::kInternal, "", "unexpected failure in the native core"};
    }
  } catch (...) {
    return out_of_memory();
  }
}

}  // namespace gemma
