// A library that is opened at run time, for drivers that a machine may have or not.
#pragma once

#include <dlfcn.h>

#include <initializer_list>
#include <string>

#include "base/error.h"

namespace gemma::gpu {

class SharedLibrary {
 public:
  // The first of the names that opens. Throws Error{kBackendUnavailable, NO_DRIVER} with what: "NVIDIA's driver".
  SharedLibrary(std::initializer_list<const char*> names, const std::string& what) {
    std::string reasons;
    for (const char* name : names) {
      handle_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (handle_ != nullptr) {
        name_ = name;
        return;
      }
      const char* reason = dlerror();
      reasons += std::string(reasons.empty() ? "" : "; ") + (reason != nullptr ? reason : name);
    }
    throw Error(ErrorCode::kBackendUnavailable, "NO_DRIVER", what + " is not installed: " + reasons);
  }
  // Drivers keep threads and exit handlers: they stay loaded.
  ~SharedLibrary() = default;
  SharedLibrary(const SharedLibrary&) = delete;
  SharedLibrary& operator=(const SharedLibrary&) = delete;

  const std::string& name() const { return name_; }

  // Sets function to the address of the symbol. Throws Error{kBackendUnavailable, OLD_DRIVER}.
  template <class F>
  void find(F*& function, const char* symbol) const {
    if (find_optional(function, symbol)) return;
    throw Error(ErrorCode::kBackendUnavailable, "OLD_DRIVER", name_ + " has no " + symbol + ": it is too old");
  }
  template <class F>
  bool find_optional(F*& function, const char* symbol) const {
    function = reinterpret_cast<F*>(dlsym(handle_, symbol));
    return function != nullptr;
  }

 private:
  void* handle_ = nullptr;
  std::string name_;
};

}  // namespace gemma::gpu
