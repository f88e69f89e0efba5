// An open regular file: its bytes, and whether it is still what it was when it was opened.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"

namespace gemma {

class File {
 public:
  // path is UTF-8. Only a regular file is opened; a directory, pipe or device is refused without blocking on it.
  // Throws Error{kFile} with the path and the system's reason. On Windows nobody can write to the file or shorten it
  // until it is closed.
  static std::shared_ptr<const File> open(const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }  // when it was opened, bytes
  // Fills out with the bytes from offset on. Throws Error{kFile} when the disk fails or the file has become shorter.
  void read(uint64_t offset, std::span<std::byte> out) const;
  // Throws Error{kFile, FILE_CHANGED} when its size or the time of its last change is not that of its opening. One
  // cheap system call. A change within the resolution of the system's clock for files (milliseconds) goes unnoticed.
  void check_unchanged() const;
  // Tells versions of a file apart: a hash of its size and the time of its last change.
  uint64_t version() const;

  // Throws Error{kFile}: "PATH: what".
  [[noreturn]] void fail(const std::string& what, const char* detail = "") const;

#ifdef _WIN32
  using Handle = void*;
#else
  using Handle = int;
#endif
  Handle handle() const { return handle_; }

 private:
  File(std::string path, Handle handle) : path_(std::move(path)), handle_(handle) {}

  std::string path_;
  Handle handle_;
  uint64_t size_ = 0;
  int64_t changed_s_ = 0, changed_ns_ = 0;  // time of the last change of its contents; in the system's own units
};

// What a path names. Links are followed. kOther is whatever is no folder, also what cannot be looked at.
enum class PathKind { kNone, kFolder, kOther };
PathKind path_kind(const std::string& path);

// The bytes of a file that is small for its kind. Throws Error: kFile, FILE_TOO_LARGE above max_bytes; kOutOfMemory.
std::vector<std::byte> read_file(const std::string& path, uint64_t max_bytes);

// Whether anything has this name; UTF-8.
bool file_exists(const std::string& path);

// A file that takes the place of another once it is whole. Until then its bytes are in a file beside, which goes with the
// writer.
class FileWriter {
 public:
  enum class Readers { kOwner, kEveryone };  // kEveryone: whom the system's default lets
  // Throws Error{kFile}.
  explicit FileWriter(const std::string& path, Readers readers = Readers::kOwner);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  // Appends. Throws Error{kFile} with the system's reason: the disk is full.
  void write(std::span<const std::byte> bytes);
  // When it returns, the file is there under its name and on the disk. Throws Error{kFile}; the old file stays then.
  void commit();

 private:
  void close();

  std::string path_;
  std::string beside_;
  bool is_open_ = false;
  File::Handle handle_;
};

// A file that takes its name when it is whole, and may take several runs of a program to become so: until then it is
// "PATH.part", which stays when a run ends. One writer at a time has it. All but commit() may be called on any thread.
class PartFile {
 public:
  // Opens the one that is there, or makes one. Throws Error{kFile}: IN_USE when another writer has it, DISK_FULL.
  explicit PartFile(const std::string& path);
  ~PartFile();
  PartFile(const PartFile&) = delete;
  PartFile& operator=(const PartFile&) = delete;

  uint64_t size() const;
  // Fills out with the bytes from offset on; false when the file ends before.
  bool read(uint64_t offset, std::span<std::byte> out) const;
  // Throws Error{kFile}: DISK_FULL.
  void write(uint64_t offset, std::span<const std::byte> bytes);
  // What is added are zeros.
  void resize(uint64_t size);
  // When it returns, its bytes are on the disk.
  void sync();
  // When it returns, the file is there under its name and on the disk. sync() went before, and nothing was written since.
  void commit();

 private:
  bool open_part();
  void close();

  std::string path_;
  std::string part_;
  bool is_open_ = false;
  File::Handle handle_;
};

// An exclusive lock that other processes respect which ask for one of the same file: flock(), on Windows LockFileEx() of
// the first byte; both as Python's filelock takes them. The system ends it with the process, however that ends.
class FileLock {
 public:
  // Makes the file where it is not there. nullptr: somebody else has the lock, also of this process. Does not wait.
  // Throws Error{kFile}.
  static std::shared_ptr<FileLock> try_lock(const std::string& path);
  ~FileLock() { release(); }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

  // Again it does nothing. The file stays.
  void release();

 private:
  explicit FileLock(File::Handle handle) : handle_(handle) {}

  File::Handle handle_;
  bool is_held_ = true;
};

// The system's last error: kOutOfMemory or kFile, and the reason: "No such file or directory".
ErrorCode system_code();
std::string system_reason();

}  // namespace gemma
