#include "base/file_map.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <new>
#include <utility>

#include "base/error.h"

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#endif

namespace gemma {
namespace {

constexpr size_t kAlignment = 64;

[[noreturn]] void fail(const std::string& path, const std::string& reason) {
  throw Error(ErrorCode::kFile, "", "cannot read " + path + ": " + reason);
}

struct FreeAligned {
  void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t(kAlignment)); }
};

using AlignedBytes = std::unique_ptr<std::byte, FreeAligned>;

AlignedBytes allocate(const std::string& path, size_t size) {
  void* p = ::operator new(size, std::align_val_t(kAlignment), std::nothrow);
  if (p == nullptr) {
    throw Error(ErrorCode::kOutOfMemory, "", "no memory for the " + std::to_string(size) + " bytes of " + path);
  }
  return AlignedBytes(static_cast<std::byte*>(p));
}

#ifdef _WIN32

struct Handle {
  HANDLE h;
  ~Handle() {
    if (h != nullptr && h != INVALID_HANDLE_VALUE) CloseHandle(h);
  }
};

[[noreturn]] void fail_with_last_error(const std::string& path) {
  const DWORD code = GetLastError();
  char text[256];
  DWORD n = FormatMessageA(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, nullptr, code,
                           MAKELANGID(LANG_ENGLISH, SUBLANG_ENGLISH_US), text, sizeof text, nullptr);
  while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r' || text[n - 1] == '.')) --n;
  fail(path, n > 0 ? std::string(text, n) : "system error " + std::to_string(code));
}

std::wstring wide(const std::string& path) {
  const int n =
      MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.data(), static_cast<int>(path.size()), nullptr, 0);
  if (n <= 0) fail(path, "the path is not valid UTF-8");
  std::wstring out(static_cast<size_t>(n), L'\0');
  MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.data(), static_cast<int>(path.size()), out.data(), n);
  return out;
}

#else

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

[[noreturn]] void fail_with_errno(const std::string& path) {
  fail(path, std::generic_category().message(errno));
}

#endif

}  // namespace

#ifdef _WIN32

FileMap FileMap::open(const std::string& path, bool map) {
  if (path.empty() || path.find('\0') != std::string::npos) fail(path.c_str(), "the path is empty or holds a NUL");
  const Handle file{CreateFileW(wide(path).c_str(), GENERIC_READ, FILE_SHARE_READ, nullptr, OPEN_EXISTING,
                                FILE_ATTRIBUTE_NORMAL, nullptr)};
  if (file.h == INVALID_HANDLE_VALUE) fail_with_last_error(path);
  if (GetFileType(file.h) != FILE_TYPE_DISK) fail(path, "not a regular file");
  LARGE_INTEGER size;
  if (!GetFileSizeEx(file.h, &size)) fail_with_last_error(path);
  if (static_cast<unsigned long long>(size.QuadPart) > std::numeric_limits<size_t>::max())
    fail(path, "larger than the address space");
  FileMap result;
  const size_t n = static_cast<size_t>(size.QuadPart);
  if (n == 0) return result;
  if (map) {
    const Handle mapping{CreateFileMappingW(file.h, nullptr, PAGE_READONLY, 0, 0, nullptr)};
    if (mapping.h == nullptr) fail_with_last_error(path);
    // The view keeps the mapping alive after its handle is closed.
    const void* view = MapViewOfFile(mapping.h, FILE_MAP_READ, 0, 0, 0);
    if (view == nullptr) fail_with_last_error(path);
    result.data_ = static_cast<const std::byte*>(view);
    result.mapped_ = true;
  } else {
    AlignedBytes buffer = allocate(path, n);
    for (size_t done = 0; done < n;) {
      DWORD got = 0;
      const DWORD want = static_cast<DWORD>(std::min<size_t>(n - done, size_t{1} << 30));
      if (!ReadFile(file.h, buffer.get() + done, want, &got, nullptr)) fail_with_last_error(path);
      if (got == 0) fail(path, "the file became shorter while it was read");
      done += got;
    }
    result.data_ = buffer.release();
  }
  result.size_ = n;
  return result;
}

FileMap::~FileMap() {
  if (data_ == nullptr) return;
  if (mapped_) {
    UnmapViewOfFile(data_);
  } else {
    FreeAligned()(const_cast<std::byte*>(data_));
  }
}

void FileMap::prefetch(const std::function<void(size_t bytes)>& on_read) const {
  if (!mapped_) return;
  on_read(0);
  WIN32_MEMORY_RANGE_ENTRY range{const_cast<std::byte*>(data_), size_};
  PrefetchVirtualMemory(GetCurrentProcess(), 1, &range, 0);
  on_read(size_);
}

#else

FileMap FileMap::open(const std::string& path, bool map) {
  if (path.empty() || path.find('\0') != std::string::npos) fail(path, "the path is empty or holds a NUL");
  // O_NONBLOCK: opening a pipe that nobody writes would wait for ever; it changes nothing for a regular file.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) fail_with_errno(path);
  struct stat info;
  if (::fstat(file.fd, &info) != 0) fail_with_errno(path);
  if (S_ISDIR(info.st_mode)) fail(path, "it is a directory, expected a file");
  if (!S_ISREG(info.st_mode)) fail(path, "not a regular file");
  FileMap result;
  const size_t n = static_cast<size_t>(info.st_size);
  if (n == 0) return result;
  if (map) {
    void* view = ::mmap(nullptr, n, PROT_READ, MAP_SHARED, file.fd, 0);
    if (view == MAP_FAILED) fail_with_errno(path);
    result.data_ = static_cast<const std::byte*>(view);
    result.mapped_ = true;
  } else {
    AlignedBytes buffer = allocate(path, n);
    for (size_t done = 0; done < n;) {
      const ssize_t got = ::read(file.fd, buffer.get() + done, std::min<size_t>(n - done, size_t{1} << 30));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail_with_errno(path);
      if (got == 0) fail(path, "the file became shorter while it was read");
      done += static_cast<size_t>(got);
    }
    result.data_ = buffer.release();
  }
  result.size_ = n;
  return result;
}

FileMap::~FileMap() {
  if (data_ == nullptr) return;
  if (mapped_) {
    ::munmap(const_cast<std::byte*>(data_), size_);
  } else {
    FreeAligned()(const_cast<std::byte*>(data_));
  }
}

void FileMap::prefetch(const std::function<void(size_t bytes)>& on_read) const {
  if (!mapped_) return;
  std::byte* data = const_cast<std::byte*>(data_);
  size_t done = 0;
  on_read(done);
#if defined(__linux__)
  constexpr int kPopulateRead = 22;           // MADV_POPULATE_READ, since Linux 5.14
  constexpr size_t kPart = size_t{64} << 20;  // some tens of milliseconds of a fast disk
  while (done < size_) {
    const size_t n = std::min(kPart, size_ - done);
    if (::madvise(data + done, n, kPopulateRead) != 0) break;
    done += n;
    on_read(done);
  }
#endif
  if (done == size_) return;
  ::madvise(data, size_, MADV_WILLNEED);
  on_read(size_);
}

#endif

FileMap::FileMap(FileMap&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), mapped_(other.mapped_) {}

}  // namespace gemma
