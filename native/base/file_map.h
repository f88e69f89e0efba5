// A file's bytes, read-only: mapped (pages shared with other processes and the page cache) or read into memory.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace gemma {

class FileMap {
 public:
  // path is UTF-8. Only a regular file is opened; a directory, pipe or device is refused without blocking on it.
  // An empty file gives an empty span. Throws Error{kFile} with the path and the system's reason, kOutOfMemory.
  // map: a mapped file must not shrink while it is used (the system kills a process that reads past its end); false:
  // read.
  static FileMap open(const std::string& path, bool map);

  FileMap(FileMap&& other) noexcept;
  FileMap& operator=(FileMap&&) = delete;
  ~FileMap();

  // Starts on a page or a multiple of 64.
  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Asks for the pages to be read ahead: a hint, errors are ignored. May take as long as the disk; nothing when not
  // mapped.
  void prefetch() const;

 private:
  FileMap() = default;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  bool mapped_ = false;
};

}  // namespace gemma
