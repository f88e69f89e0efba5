// A small test harness: TEST("name") { CHECK(...); } and one main. Prints each test with the seconds it took, the failures
// and "N passed, N failed".
#pragma once

#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"

namespace gemma::test {

struct Case {
  const char* name;
  void (*run)();
};
inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct Register {
  Register(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  throw Failure(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

// Largest |a - b| / (scale) must be <= tolerance; NaN anywhere fails. Returns an empty string, or what is wrong.
inline std::string compare(std::span<const float> got, std::span<const float> want, double tolerance) {
  if (got.size() != want.size())
    return "sizes differ: " + std::to_string(got.size()) + " and " + std::to_string(want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::fabs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    if (!(error <= tolerance)) {
      return "at " + std::to_string(i) + ": got " + std::to_string(got[i]) + ", want " + std::to_string(want[i]) +
             " +- " + std::to_string(tolerance);
    }
  }
  return "";
}

// Runs f and requires an Error with this code (and detail, unless empty).
inline void check_throws(const char* file, int line, ErrorCode code, const std::string& detail,
                         const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    if (e.code() != code || (!detail.empty() && e.detail() != detail)) {
      fail(file, line,
           std::string("expected ") + error_code_name(code) + "/" + detail + ", got " + error_code_name(e.code()) +
               "/" + std::string(e.detail()) + ": " + e.what());
    }
    return;
  }
  fail(file, line, std::string("expected ") + error_code_name(code) + "/" + detail + ", nothing was thrown");
}

// main of a test program; arguments: substrings of the names to run.
inline int run_all(int argc, char** argv) {
  int passed = 0;
  int failed = 0;
  using Clock = std::chrono::steady_clock;
  // What was printed before a program hung or died tells where.
  std::setvbuf(stdout, nullptr, _IOLBF, 4096);
  for (const Case& c : cases()) {
    bool wanted = argc < 2;
    for (int i = 1; i < argc; ++i) wanted = wanted || std::string(c.name).find(argv[i]) != std::string::npos;
    if (!wanted) continue;
    const Clock::time_point start = Clock::now();
    try {
      c.run();
      ++passed;
    } catch (const std::exception& e) {
      ++failed;
      std::printf("FAILED %s\n  %s\n", c.name, e.what());
    }
    std::printf("%8.2f s  %s\n", std::chrono::duration<double>(Clock::now() - start).count(), c.name);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace gemma::test

#define GEMMA_CONCAT2(a, b) a##b
#define GEMMA_CONCAT(a, b) GEMMA_CONCAT2(a, b)
#define TEST(name)                                                                                           \
  static void GEMMA_CONCAT(test_, __LINE__)();                                                               \
  static const gemma::test::Register GEMMA_CONCAT(register_, __LINE__)(name, GEMMA_CONCAT(test_, __LINE__)); \
  static void GEMMA_CONCAT(test_, __LINE__)()
#define CHECK(condition)                                                 \
  do {                                                                   \
    if (!(condition)) gemma::test::fail(__FILE__, __LINE__, #condition); \
  } while (false)
#define CHECK_CLOSE(got, want, tolerance)                                          \
  do {                                                                             \
    const std::string message_ = gemma::test::compare((got), (want), (tolerance)); \
    if (!message_.empty()) gemma::test::fail(__FILE__, __LINE__, message_);        \
  } while (false)
#define CHECK_THROWS(code, detail, ...) \
  gemma::test::check_throws(__FILE__, __LINE__, gemma::ErrorCode::code, detail, [&] { __VA_ARGS__; })
#define TEST_MAIN                            \
  int main(int argc, char** argv) {          \
    return gemma::test::run_all(argc, argv); \
  }
