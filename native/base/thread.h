// A thread, or an error that says that there is none.
#pragma once

#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "base/error.h"

namespace gemma {

// Runs f on a thread of its own. f must not throw. Throws Error: kOutOfMemory, THREADS when the system refuses another
// thread; std::bad_alloc.
template <class F>
std::thread start_thread(F&& f) {
  try {
    return std::thread(std::forward<F>(f));
  } catch (const std::system_error& error) {
    throw Error(ErrorCode::kOutOfMemory, "THREADS", std::string("the system refuses another thread: ") + error.what());
  }
}

}  // namespace gemma
