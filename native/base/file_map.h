// A file's bytes, read-only: mapped (pages shared with other processes and the page cache) or read into memory.
#pragma once

#include <cstddef>
#include <functional>
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

  // Brings a mapped file into memory, from its first byte to its last, and takes as long as the disk; systems that
  // cannot wait for it are asked to read ahead. Linux keeps what is read in this order in large pages where the file
  // system can (ext4, XFS), but in pages of 4 KiB what threads read here and there, and decoding is a tenth slower from
  // these for as long as they stay cached. on_read gets the bytes done: first 0, then more, at last the size; what it
  // throws ends the reading. Errors of reading are ignored. Nothing, and no call, when not mapped.
  void prefetch(const std::function<void(size_t bytes)>& on_read) const;

 private:
  FileMap() = default;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  bool mapped_ = false;
};

}  // namespace gemma
