#include "base/file.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <limits>
#include <random>

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
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#endif

namespace gemma {
namespace {

constexpr size_t kMaxRead = size_t{1} << 30;  // what every system takes at once

[[noreturn]] void fail_to_open(const std::string& path, const std::string& reason) {
  throw Error(ErrorCode::kFile, "", shown_path(path) + ": cannot be opened (" + reason + ")");
}

// Of the system's last error.
Error system_error(const std::string& path, const char* what) {
  const ErrorCode code = system_code();
  return {code, "", shown_path(path) + ": " + what + " (" + system_reason() + ")"};
}

// A name that no other writer takes, in the same folder: only there a file can be renamed for sure.
std::string name_beside(const std::string& path) {
  static const uint64_t process = std::random_device()();
  static std::atomic<uint64_t> n_names{0};
  return path + "." + std::to_string(process) + "-" + std::to_string(n_names++) + ".tmp";
}

void check_path(const std::string& path) {
  if (path.empty()) throw Error(ErrorCode::kFile, "", "the path of a file is empty");
  const size_t nul = path.find('\0');
  if (nul != std::string::npos) fail_to_open(path.substr(0, nul), "a NUL follows in the path");
}

}  // namespace

void File::fail(const std::string& what, const char* detail) const {
  throw Error(ErrorCode::kFile, detail, shown_path(path_) + ": " + what);
}

#ifdef _WIN32

namespace {

std::wstring wide(const std::string& path) {
  const int n =
      MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.data(), static_cast<int>(path.size()), nullptr, 0);
  if (n <= 0) fail_to_open(path, "the path is not valid UTF-8");
  std::wstring out(static_cast<size_t>(n), L'\0');
  MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.data(), static_cast<int>(path.size()), out.data(), n);
  return out;
}

}  // namespace

ErrorCode system_code() {
  const DWORD code = GetLastError();
  const bool is_memory = code == ERROR_NOT_ENOUGH_MEMORY || code == ERROR_OUTOFMEMORY || code == ERROR_COMMITMENT_LIMIT;
  return is_memory ? ErrorCode::kOutOfMemory : ErrorCode::kFile;
}

std::string system_reason() {
  const DWORD code = GetLastError();
  char text[256];
  DWORD n = FormatMessageA(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, nullptr, code,
                           MAKELANGID(LANG_ENGLISH, SUBLANG_ENGLISH_US), text, sizeof text, nullptr);
  while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r' || text[n - 1] == '.')) --n;
  return n > 0 ? std::string(text, n) : "system error " + std::to_string(code);
}

std::shared_ptr<const File> File::open(const std::string& path) {
  check_path(path);
  // Whoever has the file open for writing makes this fail, and others cannot open it for writing from here on.
  const HANDLE handle = CreateFileW(wide(path).c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, nullptr,
                                    OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
  if (handle == INVALID_HANDLE_VALUE) throw system_error(path, "cannot be opened");
  const std::shared_ptr<File> file(new File(path, handle));
  if (GetFileType(handle) != FILE_TYPE_DISK) fail_to_open(path, "not a regular file");
  LARGE_INTEGER size;
  if (!GetFileSizeEx(handle, &size)) throw system_error(path, "cannot be opened");
  file->size_ = static_cast<uint64_t>(size.QuadPart);
  return file;
}

File::~File() {
  CloseHandle(handle_);
}

void File::read(uint64_t offset, std::span<std::byte> out) const {
  for (size_t done = 0; done < out.size();) {
    const uint64_t at = offset + done;
    OVERLAPPED place = {};
    place.Offset = static_cast<DWORD>(at);
    place.OffsetHigh = static_cast<DWORD>(at >> 32);
    DWORD got = 0;
    const DWORD want = static_cast<DWORD>(std::min(out.size() - done, kMaxRead));
    if (!ReadFile(handle_, out.data() + done, want, &got, &place) && GetLastError() != ERROR_HANDLE_EOF)
      throw system_error(path_, "cannot be read");
    if (got == 0) fail("became shorter while it was read", "FILE_CHANGED");
    done += got;
  }
}

void File::check_unchanged() const {}  // the system keeps others from writing

FileWriter::FileWriter(const std::string& path) : path_(path) {
  check_path(path);
  beside_ = name_beside(path);
  handle_ = CreateFileW(wide(beside_).c_str(), GENERIC_WRITE, 0, nullptr, CREATE_NEW, FILE_ATTRIBUTE_NORMAL, nullptr);
  if (handle_ == INVALID_HANDLE_VALUE) throw system_error(path_, "cannot be written");
  is_open_ = true;
}

void FileWriter::close() {
  if (is_open_) CloseHandle(handle_);
  is_open_ = false;
}

FileWriter::~FileWriter() {
  close();
  if (beside_.empty()) return;
  try {
    DeleteFileW(wide(beside_).c_str());
  } catch (const std::exception&) {  // no memory for the name: the file stays
  }
}

void FileWriter::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    DWORD n = 0;
    if (!WriteFile(handle_, bytes.data(), static_cast<DWORD>(std::min(bytes.size(), kMaxRead)), &n, nullptr))
      throw system_error(path_, "cannot be written");
    bytes = bytes.subspan(n);
  }
}

void FileWriter::commit() {
  if (!FlushFileBuffers(handle_)) throw system_error(path_, "cannot be written");
  close();
  if (!MoveFileExW(wide(beside_).c_str(), wide(path_).c_str(), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH))
    throw system_error(path_, "cannot be written");
  beside_.clear();
}

std::shared_ptr<FileLock> FileLock::try_lock(const std::string& path) {
  check_path(path);
  const DWORD share = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
  const HANDLE handle = CreateFileW(wide(path).c_str(), GENERIC_READ | GENERIC_WRITE, share, nullptr, OPEN_ALWAYS,
                                    FILE_ATTRIBUTE_NORMAL, nullptr);
  if (handle == INVALID_HANDLE_VALUE) throw system_error(path, "cannot be locked");
  const std::shared_ptr<FileLock> lock(new FileLock(handle));
  OVERLAPPED first_byte = {};
  if (LockFileEx(handle, LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &first_byte)) return lock;
  if (GetLastError() != ERROR_LOCK_VIOLATION) throw system_error(path, "cannot be locked");
  return nullptr;
}

void FileLock::release() {
  if (is_held_) CloseHandle(handle_);
  is_held_ = false;
}

#else

ErrorCode system_code() {
  return errno == ENOMEM ? ErrorCode::kOutOfMemory : ErrorCode::kFile;
}

std::string system_reason() {
  return std::generic_category().message(errno);
}

namespace {

int64_t nanoseconds_of(const struct stat& info) {
#ifdef __APPLE__
  return info.st_mtimespec.tv_nsec;
#else
  return info.st_mtim.tv_nsec;
#endif
}

}  // namespace

std::shared_ptr<const File> File::open(const std::string& path) {
  check_path(path);
  // O_NONBLOCK: opening a pipe that nobody writes would block for ever. It has no effect on a regular file.
  const int handle = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (handle < 0) throw system_error(path, "cannot be opened");
  const std::shared_ptr<File> file(new File(path, handle));
  struct stat info;
  if (::fstat(handle, &info) != 0) throw system_error(path, "cannot be opened");
  if (S_ISDIR(info.st_mode)) fail_to_open(path, "it is a directory, expected a file");
  if (!S_ISREG(info.st_mode)) fail_to_open(path, "not a regular file");
  file->size_ = static_cast<uint64_t>(info.st_size);
  file->changed_s_ = static_cast<int64_t>(info.st_mtime);
  file->changed_ns_ = nanoseconds_of(info);
  return file;
}

File::~File() {
  ::close(handle_);
}

void File::read(uint64_t offset, std::span<std::byte> out) const {
  for (size_t done = 0; done < out.size();) {
    const ssize_t got =
        ::pread(handle_, out.data() + done, std::min(out.size() - done, kMaxRead), static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw system_error(path_, "cannot be read");
    if (got == 0) fail("became shorter while it was read", "FILE_CHANGED");
    done += static_cast<size_t>(got);
  }
}

void File::check_unchanged() const {
  struct stat info;
  if (::fstat(handle_, &info) != 0) fail("cannot be looked at (" + system_reason() + ")", "FILE_CHANGED");
  const uint64_t size = static_cast<uint64_t>(info.st_size);
  if (size == size_ && info.st_mtime == changed_s_ && nanoseconds_of(info) == changed_ns_) return;
  fail("the file was " +
           (size != size_ ? "changed from " + std::to_string(size_) + " to " + std::to_string(size) + " bytes"
                          : std::string("written to")) +
           " while it was in use. Load it again; to replace a model rename a new file over the old one, or "
           "load with mmap: false",
       "FILE_CHANGED");
}

FileWriter::FileWriter(const std::string& path) : path_(path) {
  check_path(path);
  beside_ = name_beside(path);
  handle_ = ::open(beside_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR);
  if (handle_ < 0) throw system_error(path_, "cannot be written");
  is_open_ = true;
}

void FileWriter::close() {
  if (is_open_) ::close(handle_);
  is_open_ = false;
}

FileWriter::~FileWriter() {
  close();
  if (!beside_.empty()) ::unlink(beside_.c_str());
}

void FileWriter::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(handle_, bytes.data(), std::min(bytes.size(), kMaxRead));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw system_error(path_, "cannot be written");
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

void FileWriter::commit() {
  if (::fsync(handle_) != 0) throw system_error(path_, "cannot be written");
  close();
  if (::rename(beside_.c_str(), path_.c_str()) != 0) throw system_error(path_, "cannot be written");
  beside_.clear();
  // The name, too, outlasts a loss of power. File systems that cannot say so have done what they can.
  const size_t slash = path_.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
  const int handle = ::open(folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (handle < 0) return;
  ::fsync(handle);
  ::close(handle);
}

std::shared_ptr<FileLock> FileLock::try_lock(const std::string& path) {
  check_path(path);
  constexpr mode_t kMode = S_IRUSR | S_IWUSR | S_IRGRP | S_IWGRP | S_IROTH;  // others of the group may wait for it
  const int handle = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW, kMode);
  if (handle < 0) throw system_error(path, "cannot be locked");
  const std::shared_ptr<FileLock> lock(new FileLock(handle));
  while (::flock(handle, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return nullptr;
    if (errno != EINTR) throw system_error(path, "cannot be locked");
  }
  // Who held it may have deleted the file: then the next one locks another file of this name.
  struct stat info;
  if (::fstat(handle, &info) != 0) throw system_error(path, "cannot be locked");
  return info.st_nlink > 0 ? lock : nullptr;
}

void FileLock::release() {
  if (is_held_) ::close(handle_);
  is_held_ = false;
}

#endif

}  // namespace gemma
