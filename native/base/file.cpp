#include "base/file.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <limits>
#include <random>

#include "base/error.h"
#include "base/hash.h"

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

// The disk, a quota, or what a file system takes of a file.
bool is_disk_full() {
#ifdef _WIN32
  const DWORD code = GetLastError();
  return code == ERROR_DISK_FULL || code == ERROR_HANDLE_DISK_FULL || code == ERROR_FILE_TOO_LARGE;
#else
  return errno == ENOSPC || errno == EDQUOT || errno == EFBIG;
#endif
}

// Of the system's last error.
Error system_error(const std::string& path, const char* what) {
  const ErrorCode code = system_code();
  return {code, is_disk_full() ? "DISK_FULL" : "", shown_path(path) + ": " + what + " (" + system_reason() + ")"};
}

// A name that no other writer takes, in the same folder: only there a file can be renamed for sure.
std::string name_beside(const std::string& path) {
  static const uint64_t process = std::random_device()();
  static std::atomic<uint64_t> n_names{0};
  return path + "." + std::to_string(process) + "-" + std::to_string(n_names++) + ".tmp";
}

[[noreturn]] void in_use(const std::string& path) {
  throw Error(ErrorCode::kFile, "IN_USE", shown_path(path) + ": another process is writing it");
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

std::vector<std::byte> read_file(const std::string& path, uint64_t max_bytes) {
  const std::shared_ptr<const File> file = File::open(path);
  if (file->size() > max_bytes) {
    file->fail("expected at most " + std::to_string(max_bytes) + " bytes, found " + std::to_string(file->size()),
               "FILE_TOO_LARGE");
  }
  std::vector<std::byte> bytes;
  in_file(path, [&] { bytes.resize(static_cast<size_t>(file->size())); });
  file->read(0, bytes);
  file->check_unchanged();
  return bytes;
}

uint64_t File::version() const {
  return hash_value(hash_value(hash_value(0, size_), changed_s_), changed_ns_);
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

OVERLAPPED place_at(uint64_t offset) {
  OVERLAPPED place = {};
  place.Offset = static_cast<DWORD>(offset);
  place.OffsetHigh = static_cast<DWORD>(offset >> 32);
  return place;
}

// Fills out with the bytes from offset on; false when the file ends before.
bool read_at(File::Handle handle, const std::string& path, uint64_t offset, std::span<std::byte> out) {
  for (size_t done = 0; done < out.size();) {
    OVERLAPPED place = place_at(offset + done);
    DWORD got = 0;
    const DWORD want = static_cast<DWORD>(std::min(out.size() - done, kMaxRead));
    if (!ReadFile(handle, out.data() + done, want, &got, &place) && GetLastError() != ERROR_HANDLE_EOF)
      throw system_error(path, "cannot be read");
    if (got == 0) return false;
    done += got;
  }
  return true;
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

PathKind path_kind(const std::string& path) {
  check_path(path);
  const DWORD found = GetFileAttributesW(wide(path).c_str());
  if (found == INVALID_FILE_ATTRIBUTES) {
    const DWORD code = GetLastError();
    return code == ERROR_FILE_NOT_FOUND || code == ERROR_PATH_NOT_FOUND ? PathKind::kNone : PathKind::kOther;
  }
  return (found & FILE_ATTRIBUTE_DIRECTORY) != 0 ? PathKind::kFolder : PathKind::kOther;
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
  FILETIME changed;
  if (!GetFileTime(handle, nullptr, nullptr, &changed)) throw system_error(path, "cannot be opened");
  file->changed_s_ = changed.dwHighDateTime;
  file->changed_ns_ = changed.dwLowDateTime;
  return file;
}

File::~File() {
  CloseHandle(handle_);
}

void File::read(uint64_t offset, std::span<std::byte> out) const {
  if (!read_at(handle_, path_, offset, out)) fail("became shorter while it was read", "FILE_CHANGED");
}

bool file_exists(const std::string& path) {
  return GetFileAttributesW(wide(path).c_str()) != INVALID_FILE_ATTRIBUTES;
}

void File::check_unchanged() const {}  // the system keeps others from writing

FileWriter::FileWriter(const std::string& path, [[maybe_unused]] Readers readers) : path_(path) {
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

PartFile::PartFile(const std::string& path) : path_(path) {
  check_path(path);
  part_ = path + ".part";
  open_part();
}

bool PartFile::open_part() {
  handle_ = CreateFileW(wide(part_).c_str(), GENERIC_READ | GENERIC_WRITE, 0, nullptr, OPEN_ALWAYS,
                        FILE_ATTRIBUTE_NORMAL, nullptr);
  if (handle_ == INVALID_HANDLE_VALUE) {
    if (GetLastError() == ERROR_SHARING_VIOLATION) in_use(part_);
    throw system_error(part_, "cannot be written");
  }
  is_open_ = true;
  return true;
}

void PartFile::close() {
  if (is_open_) CloseHandle(handle_);
  is_open_ = false;
}

PartFile::~PartFile() {
  close();
}

uint64_t PartFile::size() const {
  LARGE_INTEGER size;
  if (!GetFileSizeEx(handle_, &size)) throw system_error(part_, "cannot be read");
  return static_cast<uint64_t>(size.QuadPart);
}

bool PartFile::read(uint64_t offset, std::span<std::byte> out) const {
  return read_at(handle_, part_, offset, out);
}

void PartFile::write(uint64_t offset, std::span<const std::byte> bytes) {
  for (size_t done = 0; done < bytes.size();) {
    OVERLAPPED place = place_at(offset + done);
    DWORD n = 0;
    const DWORD want = static_cast<DWORD>(std::min(bytes.size() - done, kMaxRead));
    if (!WriteFile(handle_, bytes.data() + done, want, &n, &place)) throw system_error(part_, "cannot be written");
    done += n;
  }
}

void PartFile::resize(uint64_t size) {
  FILE_END_OF_FILE_INFO end = {};
  end.EndOfFile.QuadPart = static_cast<LONGLONG>(size);
  if (!SetFileInformationByHandle(handle_, FileEndOfFileInfo, &end, sizeof end))
    throw system_error(part_, "cannot be written");
}

void PartFile::sync() {
  if (!FlushFileBuffers(handle_)) throw system_error(part_, "cannot be written");
}

void PartFile::commit() {
  close();
  if (!MoveFileExW(wide(part_).c_str(), wide(path_).c_str(), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH))
    throw system_error(path_, "cannot be written");
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

// Fills out with the bytes from offset on; false when the file ends before.
bool read_at(File::Handle handle, const std::string& path, uint64_t offset, std::span<std::byte> out) {
  for (size_t done = 0; done < out.size();) {
    const ssize_t got =
        ::pread(handle, out.data() + done, std::min(out.size() - done, kMaxRead), static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw system_error(path, "cannot be read");
    if (got == 0) return false;
    done += static_cast<size_t>(got);
  }
  return true;
}

// The name, too, outlasts a loss of power. File systems that cannot say so have done what they can.
void sync_folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int handle = ::open(folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (handle < 0) return;
  ::fsync(handle);
  ::close(handle);
}

}  // namespace

PathKind path_kind(const std::string& path) {
  check_path(path);
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) return errno == ENOENT || errno == ENOTDIR ? PathKind::kNone : PathKind::kOther;
  return S_ISDIR(info.st_mode) ? PathKind::kFolder : PathKind::kOther;
}

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
  if (!read_at(handle_, path_, offset, out)) fail("became shorter while it was read", "FILE_CHANGED");
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

bool file_exists(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0;
}

FileWriter::FileWriter(const std::string& path, Readers readers) : path_(path) {
  check_path(path);
  beside_ = name_beside(path);
  handle_ = ::open(beside_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC,
                   readers == Readers::kEveryone ? 0666 : S_IRUSR | S_IWUSR);
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
  sync_folder_of(path_);
}

PartFile::PartFile(const std::string& path) : path_(path) {
  check_path(path);
  part_ = path + ".part";
  while (!open_part()) close();
}

// False when the file had been given its name before it was locked: then it is nobody's any more.
bool PartFile::open_part() {
  // O_NOFOLLOW: where others may write to the folder, a link of theirs leads nowhere.
  handle_ = ::open(part_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
  if (handle_ < 0) throw system_error(part_, "cannot be written");
  is_open_ = true;
  try {
    struct stat info;
    if (::fstat(handle_, &info) != 0) throw system_error(part_, "cannot be written");
    if (!S_ISREG(info.st_mode)) fail_to_open(part_, "not a regular file");
    if (::flock(handle_, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) in_use(part_);
      throw system_error(part_, "cannot be locked");
    }
    struct stat named;
    return ::stat(part_.c_str(), &named) == 0 && named.st_ino == info.st_ino && named.st_dev == info.st_dev;
  } catch (...) {
    close();
    throw;
  }
}

void PartFile::close() {
  if (is_open_) ::close(handle_);
  is_open_ = false;
}

PartFile::~PartFile() {
  close();
}

uint64_t PartFile::size() const {
  struct stat info;
  if (::fstat(handle_, &info) != 0) throw system_error(part_, "cannot be read");
  return static_cast<uint64_t>(info.st_size);
}

bool PartFile::read(uint64_t offset, std::span<std::byte> out) const {
  return read_at(handle_, part_, offset, out);
}

void PartFile::write(uint64_t offset, std::span<const std::byte> bytes) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::pwrite(handle_, bytes.data() + done, std::min(bytes.size() - done, kMaxRead),
                               static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw system_error(part_, "cannot be written");
    done += static_cast<size_t>(n);
  }
}

void PartFile::resize(uint64_t size) {
  if (::ftruncate(handle_, static_cast<off_t>(size)) != 0) throw system_error(part_, "cannot be written");
}

void PartFile::sync() {
  if (::fsync(handle_) != 0) throw system_error(part_, "cannot be written");
}

void PartFile::commit() {
  // Closed after the rename: the lock holds as long as the name is there.
  if (::rename(part_.c_str(), path_.c_str()) != 0) throw system_error(path_, "cannot be written");
  close();
  sync_folder_of(path_);
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
