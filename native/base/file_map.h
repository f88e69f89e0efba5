// A file's bytes, read-only: mapped (pages shared with other processes and the page cache) or read into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "base/file.h"
#include "base/mapping_guard.h"

namespace gemma {

// How a model file is opened.
struct FileOptions {
  bool mmap = true;           // false: read into memory (for files that may change underneath)
  bool headers_only = false;  // metadata and the list of tensors, whose data stay null (their sizes are checked)
};

class FileMap {
 public:
  // Maps the whole file and keeps it open. It should not change while it is used: check() tells whether it has. Cutting
  // it does no harm (mapping_guard.h). Throws Error{kFile}, kOutOfMemory.
  static FileMap map(std::shared_ptr<const File> file);
  // Reads the bytes from offset to the end into memory; offset is at most the size. Throws Error: kFile, FILE_CHANGED
  // when it was written to since it was opened, kOutOfMemory.
  static FileMap read(const File& file, uint64_t offset);

  FileMap(FileMap&& other) noexcept;
  FileMap& operator=(FileMap&&) = delete;
  ~FileMap();

  // Starts on a page or a multiple of 64. Empty for an empty file.
  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Throws Error{kFile, FILE_CHANGED} when a mapped file was cut or written to since it was opened, or could not be
  // read: what was computed from its bytes does not count. Any thread.
  void check() const;

  // File::version() of a mapped file, 0 of one that was read into memory.
  uint64_t version() const { return file_ == nullptr ? 0 : file_->version(); }

  // Bytes of a mapping that have been read and will not be needed soon: they stop counting as memory of this process.
  // Reading them again is right, and slower. Does nothing with bytes that are not of this mapping.
  void release(std::span<const std::byte> bytes) const;

  // Reads a mapped file into the system's cache, from its first byte to its last. Takes as long as the disk needs. On
  // systems that cannot wait for the reads, it asks the system to read ahead. Linux caches a file that is read in
  // order in large pages if the file system supports them (ext4, XFS). Random reads leave pages of 4 KiB, from which
  // decoding is a tenth slower for as long as they stay cached. on_read gets the number of bytes read: first 0, last
  // the size. An exception from on_read ends the reading. Read errors are ignored. Does nothing, and does not call
  // on_read, if the file is not mapped.
  void prefetch(const std::function<void(size_t bytes)>& on_read) const;

 private:
  FileMap() = default;
  std::shared_ptr<const File> file_;  // of a mapping
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  MappingGuard guard_;
};

}  // namespace gemma
