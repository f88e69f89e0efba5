// Thread pool, limits of cgroups, half floats, error names, and the comparator that the other tests rely on.
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <limits>
#include <new>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <thread>
#include <type_traits>

#include "backend/cpu/cpu_features.h"
#include "base/file.h"
#include "base/half.h"
#include "base/thread_pool.h"
#include "check.h"

using namespace gemma;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Runs n_chunks and checks that each ran once, on a thread of the pool, and that its writes are visible afterwards.
void check_run(ThreadPool& pool, int n_chunks) {
  std::vector<int> runs(static_cast<size_t>(n_chunks), 0);  // plain ints: the thread sanitizer checks the ordering
  std::vector<int> threads(static_cast<size_t>(n_chunks), -1);
  pool.parallel_for(n_chunks, [&](int chunk, int thread) {
    ++runs[static_cast<size_t>(chunk)];
    threads[static_cast<size_t>(chunk)] = thread;
  });
  for (const int n : runs) CHECK(n == 1);
  for (const int t : threads) CHECK(t >= 0 && t < pool.n_threads());
}

}  // namespace

TEST("thread pool: every chunk once, any number of chunks and threads") {
  for (const int n_threads : {1, 2, 3, 7}) {
    ThreadPool pool(n_threads);
    CHECK(pool.n_threads() == n_threads);
    for (const int n_chunks : {0, 1, 2, 3, 8, 100, 1000}) check_run(pool, n_chunks);
  }
}

TEST("thread pool: many small jobs, each sees what the one before wrote") {
  ThreadPool pool(3);
  std::vector<int> values(64, 0);
  std::vector<int> next(64, 0);
  for (int round = 0; round < 20000; ++round) {
    pool.parallel_for(64, [&](int chunk, int) {  // reads what another thread may have written a job ago
      const size_t i = static_cast<size_t>(chunk);
      next[i] = values[(i + 17) % 64] + 1;
    });
    values.swap(next);
  }
  for (const int value : values) CHECK(value == 20000);
}

TEST("thread pool: workers that fell asleep are woken") {
  ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(round % 4));
    check_run(pool, 5 + round);
  }
  // Chunks that wait for each other: passes only when all threads take part.
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  std::atomic<int> arrived{0};
  pool.parallel_for(3, [&](int, int) {
    ++arrived;
    while (arrived.load() < 3) std::this_thread::yield();
  });
  CHECK(arrived.load() == 3);
}

TEST("thread pool: a slow chunk holds up nothing else") {
  ThreadPool pool(2);
  std::atomic<bool> others_done{false};
  std::atomic<int> n_others{0};
  // Ends only if the other thread does all other chunks meanwhile.
  pool.parallel_for(50, [&](int chunk, int) {
    if (chunk == 0) {
      while (!others_done.load()) std::this_thread::yield();
    } else if (++n_others == 49) {
      others_done.store(true);
    }
  });
  CHECK(n_others.load() == 49);
}

TEST("thread pool: each thread takes neighbouring chunks, of its own share and of each it helps with") {
  for (const int n_threads : {2, 3}) {
    ThreadPool pool(n_threads);
    std::vector<int> last(static_cast<size_t>(n_threads), -1);
    std::vector<int> n_runs(static_cast<size_t>(n_threads), 0);
    std::atomic<int> n_here{0};
    pool.parallel_for(100 * n_threads, [&](int chunk, int thread) {
      const size_t t = static_cast<size_t>(thread);
      if (n_runs[t] == 0) {
        CHECK(chunk == 100 * thread);  // nobody else has been there
        ++n_here;
        while (n_here.load() < n_threads) std::this_thread::yield();
      }
      if (chunk <= last[t] || n_runs[t] == 0) ++n_runs[t];
      last[t] = chunk;
    });
    for (const int n : n_runs) CHECK(n >= 1 && n <= n_threads);
  }
}

TEST("thread pool: comes and goes, idle, asleep or just used; several side by side") {
  for (int round = 0; round < 100; ++round) {
    ThreadPool pool(1 + round % 4);
    if (round % 3 == 1) check_run(pool, 10);
    if (round % 10 == 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  std::vector<std::thread> owners;
  std::atomic<long> total{0};
  for (int i = 0; i < 3; ++i) {
    owners.emplace_back([&total] {
      ThreadPool pool(2);
      for (int round = 0; round < 500; ++round) {
        std::vector<long> parts(9, 0);
        pool.parallel_for(9, [&](int chunk, int) { parts[static_cast<size_t>(chunk)] = chunk; });
        total += std::accumulate(parts.begin(), parts.end(), 0L);
      }
    });
  }
  for (std::thread& owner : owners) owner.join();
  CHECK(total.load() == 3L * 500 * 36);
}

TEST("thread pool: a worker held up in its chunk; the caller sleeps, works alone for a while, then together again") {
  ThreadPool pool(3);
  for (int round = 0; round < 3; ++round) {
    std::atomic<bool> worker_in{false};
    std::vector<std::atomic<int>> done(64);
    pool.parallel_for(64, [&](int chunk, int thread) {
      if (thread != 0 && !worker_in.exchange(true)) std::this_thread::sleep_for(std::chrono::milliseconds(3));
      // The caller leaves work to the others until one of them has come.
      for (int i = 0; chunk == 0 && thread == 0 && i < 1000 && !worker_in.load(); ++i)
        std::this_thread::sleep_for(std::chrono::microseconds(10));
      ++done[static_cast<size_t>(chunk)];
    });
    for (const std::atomic<int>& n : done) CHECK(n.load() == 1);
    for (int i = 0; i < 200; ++i) check_run(pool, 17);
  }
}

TEST("thread pool: a worker that ends at the moment its caller falls asleep wakes it") {
  ThreadPool pool(2);
  uint32_t random = 1;
  for (int round = 0; round < 300000; ++round) {
    random = random * 1664525u + 1013904223u;
    const uint32_t length = 3000 + random % 6000;  // about as long as the caller spins, on a slow and on a fast machine
    pool.parallel_for(2, [&](int, int thread) {
      volatile uint32_t count = thread != 0 ? length : 500;
      while (count > 0) count = count - 1;
    });
  }
}

#if defined(__linux__)
TEST("errors are copied and described without memory, by their kind") {
  const Error error(ErrorCode::kFile, "WORD", "a message");
  static_assert(std::is_nothrow_copy_assignable_v<Error>);
  const auto described = [](auto thrown) { return describe(std::make_exception_ptr(thrown)); };
  CHECK(described(error).code() == ErrorCode::kFile && described(error).detail() == "WORD");
  CHECK(described(std::bad_alloc()).code() == ErrorCode::kOutOfMemory);
  CHECK(described(std::length_error("x")).code() == ErrorCode::kOutOfMemory);
  CHECK(described(std::runtime_error("x")).code() == ErrorCode::kInternal);
  CHECK(described(7).code() == ErrorCode::kInternal);
}

TEST("what a chunk throws comes out of the call, and the pool goes on") {
  for (const int n_threads : {1, 3}) {
    ThreadPool pool(n_threads);
    for (int round = 0; round < 200; ++round) {
      const auto fail = [&](int chunk, int) {
        if (chunk % 7 == round % 7) throw Error(ErrorCode::kOutOfMemory, "CHUNK", "no memory");
      };
      CHECK_THROWS(kOutOfMemory, "CHUNK", pool.parallel_for(64, fail));
      std::atomic<int> n{0};
      pool.parallel_for(64, [&](int, int) { ++n; });
      CHECK(n == 64);
    }
  }
}

TEST("cgroup_cores: version 1 and 2, the group's own limit and those above, inside a container, none") {
  namespace fs = std::filesystem;
  const fs::path base = fs::temp_directory_path() / ("gemma-cgroup-" + std::to_string(std::random_device{}()));
  const auto write = [&](const std::string& file, const std::string& text) {
    fs::create_directories((base / file).parent_path());
    std::ofstream(base / file) << text;
  };
  const std::string b = base.string();
  write("none/cgroup", "0::/\n");
  write("none/mountinfo", "31 23 0:28 / /sys rw - sysfs sysfs rw\n");
  CHECK(cpu::cgroup_cores(b + "/none") == 0);
  CHECK(cpu::cgroup_cores(b + "/absent") == 0);

  write("v2/cgroup", "0::/user/app\n");
  write("v2/mountinfo", "41 31 0:38 / " + b + "/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n");
  write("unified/user/app/cpu.max", "max 100000\n");
  CHECK(cpu::cgroup_cores(b + "/v2") == 0);
  write("unified/user/cpu.max", "250000 100000\n");
  CHECK(cpu::cgroup_cores(b + "/v2") == 2.5);
  write("unified/user/app/cpu.max", "50000 100000\n");
  CHECK(cpu::cgroup_cores(b + "/v2") == 0.5);

  write("v1/cgroup", "3:cpuset:/x\n2:cpu,cpuacct:/pod/one\n0::/\n");
  write("v1/mountinfo", "32 31 0:29 / " + b + "/cpu rw - cgroup cgroup rw,cpu,cpuacct\n33 31 0:30 / " + b +
                            "/cpuset rw - cgroup cgroup rw,cpuset\n");
  write("cpu/pod/one/cpu.cfs_quota_us", "-1\n");
  write("cpu/pod/one/cpu.cfs_period_us", "100000\n");
  CHECK(cpu::cgroup_cores(b + "/v1") == 0);
  write("cpu/pod/cpu.cfs_quota_us", "150000\n");
  write("cpu/pod/cpu.cfs_period_us", "50000\n");
  CHECK(cpu::cgroup_cores(b + "/v1") == 3);

  // The mount shows the container's own group as its root.
  write("container/cgroup", "2:cpu:/docker/abc/inner\n");
  write("container/mountinfo", "32 31 0:29 /docker/abc " + b + "/inside rw - cgroup cgroup rw,cpu\n");
  write("inside/inner/cpu.cfs_quota_us", "400000\n");
  write("inside/inner/cpu.cfs_period_us", "100000\n");
  CHECK(cpu::cgroup_cores(b + "/container") == 4);
  write("inside/cpu.cfs_quota_us", "100000\n");
  write("inside/cpu.cfs_period_us", "100000\n");
  CHECK(cpu::cgroup_cores(b + "/container") == 1);
  write("container/cgroup", "2:cpu:/elsewhere\n");
  CHECK(cpu::cgroup_cores(b + "/container") == 1);
  write("container/cgroup", "2:cpu:/../elsewhere\n");
  CHECK(cpu::cgroup_cores(b + "/container") == 1);
  fs::remove_all(base);
}
#endif

TEST("half floats: all 65,536 survive the way to float and back") {
  for (uint32_t h = 0; h < 65536; ++h) {
    const uint16_t half = static_cast<uint16_t>(h);
    const float value = f16_to_f32(half);
    const bool is_nan = (h & 0x7c00u) == 0x7c00u && (h & 0x3ffu) != 0;
    CHECK(std::isnan(value) == is_nan);
    if (is_nan) {
      CHECK((f32_to_f16(value) & 0x7c00u) == 0x7c00u && (f32_to_f16(value) & 0x3ffu) != 0);
      continue;
    }
    CHECK(f32_to_f16(value) == half);
    // The definition: sign, 2^(e - 15), 10 bits of fraction; e = 0 is subnormal, e = 31 infinite.
    const int exponent = static_cast<int>(h >> 10 & 31);
    const double fraction = static_cast<double>(h & 1023) / 1024;
    double want = exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15);
    if (exponent == 31) want = kInfinity;
    CHECK(value == (h & 0x8000u ? -want : want));
  }
}

TEST("half floats: conversion rounds to the nearest, ties to even") {
  // Between any two neighbours: just below, at and just above the middle.
  for (uint32_t h = 0; h < 0x7bff; ++h) {
    const float low = f16_to_f32(static_cast<uint16_t>(h));
    const float high = f16_to_f32(static_cast<uint16_t>(h + 1));
    const float middle = low + (high - low) / 2;  // exact
    const uint32_t even = h % 2 == 0 ? h : h + 1;
    CHECK(f32_to_f16(middle) == even);
    CHECK(f32_to_f16(std::nextafter(middle, -1.0f)) == h);
    CHECK(f32_to_f16(std::nextafter(middle, kInfinity)) == h + 1);
    CHECK(f32_to_f16(-middle) == (even | 0x8000u));
  }
  CHECK(f32_to_f16(65519.99f) == 0x7bff && f32_to_f16(65520.0f) == 0x7c00 && f32_to_f16(3e38f) == 0x7c00);
  CHECK(f32_to_f16(kInfinity) == 0x7c00 && f32_to_f16(-kInfinity) == 0xfc00);
  CHECK(f32_to_f16(1e-45f) == 0 && f32_to_f16(-1e-45f) == 0x8000);
}

TEST("bfloat16: the upper half of a float") {
  CHECK(bf16_to_f32(0x3f80) == 1.0f && bf16_to_f32(0xc2f7) == -123.5f && bf16_to_f32(0x8000) == 0.0f);
  CHECK(std::signbit(bf16_to_f32(0x8000)) && std::isnan(bf16_to_f32(0x7fc0)) && bf16_to_f32(0xff80) == -kInfinity);
  CHECK(bf16_to_f32(0x0001) == std::bit_cast<float>(0x10000u));
}

TEST("errors: names are distinct and complete") {
  std::set<std::string> names;
  for (int i = 0; i <= static_cast<int>(ErrorCode::kInternal); ++i)
    names.insert(error_code_name(static_cast<ErrorCode>(i)));
  CHECK(names.size() == static_cast<size_t>(ErrorCode::kInternal) + 1);
  for (const std::string& name : names) CHECK(name.rfind("ERR_", 0) == 0);
  const Error error(ErrorCode::kFile, "WORD", "what happened");
  CHECK(error.code() == ErrorCode::kFile && error.detail() == "WORD" && std::string(error.what()) == "what happened");
}

TEST("a file's lock is one holder's, of this process too, and free again after it") {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("gemma-lock-" + std::to_string(std::random_device()()));
  std::filesystem::create_directory(folder);
  const std::string path = (folder / "x.lock").string();
  const std::shared_ptr<FileLock> lock = FileLock::try_lock(path);
  CHECK(lock != nullptr && FileLock::try_lock(path) == nullptr);
  CHECK(FileLock::try_lock((folder / "y.lock").string()) != nullptr);
  lock->release();
  lock->release();
  std::shared_ptr<FileLock> second = FileLock::try_lock(path);
  CHECK(second != nullptr && FileLock::try_lock(path) == nullptr);
  second.reset();
  CHECK(FileLock::try_lock(path) != nullptr);
  CHECK_THROWS(kFile, "", FileLock::try_lock((folder / "none" / "x.lock").string()));
  CHECK_THROWS(kFile, "", FileLock::try_lock(""));
  std::filesystem::remove_all(folder);
}

TEST("comparator: NaN, infinity, sign and length are seen") {
  const auto close = [](std::vector<float> got, std::vector<float> want, double tolerance) {
    return test::compare(got, want, tolerance).empty();
  };
  CHECK(close({}, {}, 0));
  CHECK(close({1.0f, 2.0f}, {1.0f, 2.0f}, 0));
  CHECK(close({1.0f}, {1.25f}, 0.25) && !close({1.0f}, {1.25f}, 0.24));
  CHECK(!close({-100.0f}, {-1.0f}, 1) && !close({-1.0f}, {1.0f}, 1));
  CHECK(!close({kNaN}, {1.0f}, 1e30) && !close({1.0f}, {kNaN}, 1e30) && !close({kNaN}, {kNaN}, 1e30));
  CHECK(!close({kInfinity}, {1.0f}, 1e30) && !close({kInfinity}, {kInfinity}, 1));
  CHECK(!close({1.0f}, {1.0f}, kNaN));
  CHECK(!close({1.0f, 2.0f}, {1.0f}, 1) && !close({1.0f, 1.0f, 9.0f}, {1.0f, 1.0f, 1.0f}, 1));
}

TEST("harness: a throw of the wrong code, another exception or none is a failure") {
  const auto fails = [](const std::function<void()>& f, ErrorCode code, const std::string& detail) {
    try {
      test::check_throws("file", 1, code, detail, f);
    } catch (const std::exception&) {
      return true;
    }
    return false;
  };
  const auto error = [] { throw Error(ErrorCode::kFile, "A", "x"); };
  CHECK(!fails(error, ErrorCode::kFile, "A") && !fails(error, ErrorCode::kFile, ""));
  CHECK(fails(error, ErrorCode::kFile, "B") && fails(error, ErrorCode::kInternal, "A"));
  CHECK(fails([] {}, ErrorCode::kFile, "") && fails([] { throw std::runtime_error("x"); }, ErrorCode::kFile, ""));
}

TEST_MAIN
