#include "base/file_map.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <string>
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
#include <sys/mman.h>
#endif

namespace gemma {
namespace {

constexpr size_t kAlignment = 64;

void free_aligned(const std::byte* p) {
  ::operator delete(const_cast<std::byte*>(p), std::align_val_t(kAlignment));
}

[[noreturn]] void fail_for_memory(const File& file, uint64_t bytes) {
  throw Error(ErrorCode::kOutOfMemory, "",
              shown_path(file.path()) + ": no memory for its " + std::to_string(bytes) + " bytes");
}

size_t size_in_memory(const File& file, uint64_t bytes) {
  if (bytes > std::numeric_limits<size_t>::max() / 2) fail_for_memory(file, bytes);
  return static_cast<size_t>(bytes);
}

// Null with the system's error.
const std::byte* map_file(const File& file, size_t size) {
#ifdef _WIN32
  const HANDLE mapping = CreateFileMappingW(file.handle(), nullptr, PAGE_READONLY, 0, 0, nullptr);
  if (mapping == nullptr) return nullptr;
  const void* view = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, size);
  const DWORD error = GetLastError();
  CloseHandle(mapping);  // the view keeps it alive
  SetLastError(error);
  return static_cast<const std::byte*>(view);
#else
  void* view = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.handle(), 0);
  return view == MAP_FAILED ? nullptr : static_cast<const std::byte*>(view);
#endif
}

void unmap(const std::byte* data, [[maybe_unused]] size_t size) {
#ifdef _WIN32
  UnmapViewOfFile(data);
#else
  ::munmap(const_cast<std::byte*>(data), size);
#endif
}

}  // namespace

FileMap FileMap::map(std::shared_ptr<const File> file) {
  FileMap result;
  const size_t size = size_in_memory(*file, file->size());
  if (size == 0) return result;
  const std::byte* data = map_file(*file, size);
  if (data == nullptr && system_code() == ErrorCode::kOutOfMemory) fail_for_memory(*file, size);
  if (data == nullptr) file->fail("cannot be mapped (" + system_reason() + "); mmap: false reads it instead");
  result.file_ = std::move(file);
  result.data_ = data;
  result.size_ = size;
  result.guard_ = MappingGuard(data, size);
  return result;
}

FileMap FileMap::read(const File& file, uint64_t offset) {
  FileMap result;
  const size_t size = size_in_memory(file, file.size() - offset);
  if (size == 0) return result;
  auto* data = static_cast<std::byte*>(::operator new(size, std::align_val_t(kAlignment), std::nothrow));
  if (data == nullptr) fail_for_memory(file, size);
  result.data_ = data;
  result.size_ = size;
  file.read(offset, {data, size});
  file.check_unchanged();  // or the bytes are of several versions of it
  return result;
}

FileMap::FileMap(FileMap&& other) noexcept
    : file_(std::move(other.file_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      guard_(std::move(other.guard_)) {}

FileMap::~FileMap() {
  if (data_ == nullptr) return;
  guard_ = MappingGuard();
  if (file_ != nullptr) {
    unmap(data_, size_);
  } else {
    free_aligned(data_);
  }
}

void FileMap::check() const {
  if (file_ == nullptr) return;
  file_->check_unchanged();
  if (guard_.lost()) file_->fail("a part of the file could not be read while it was in use", "FILE_CHANGED");
}

void FileMap::prefetch(const std::function<void(size_t bytes)>& on_read) const {
  if (file_ == nullptr) return;
  size_t done = 0;
  on_read(done);
  std::byte* data = const_cast<std::byte*>(data_);
#if defined(_WIN32)
  WIN32_MEMORY_RANGE_ENTRY range{data, size_};
  PrefetchVirtualMemory(GetCurrentProcess(), 1, &range, 0);
#else
#if defined(__linux__)
  constexpr int kPopulateRead = 22;           // MADV_POPULATE_READ, since Linux 5.14
  constexpr size_t kPart = size_t{64} << 20;  // some tens of milliseconds of a fast disk
  while (done < size_) {
    const size_t n = std::min(kPart, size_ - done);
    if (::madvise(data + done, n, kPopulateRead) != 0) break;
    done += n;
    on_read(done);
  }
  if (done == size_) return;
#endif
  ::madvise(data, size_, MADV_WILLNEED);
#endif
  on_read(size_);
}

void FileMap::release(std::span<const std::byte> bytes) const {
  const std::less_equal<const std::byte*> not_after;  // pointers of several objects
  if (file_ == nullptr || bytes.empty()) return;
  if (!not_after(data_, bytes.data()) || !not_after(bytes.data() + bytes.size(), data_ + size_)) return;
#ifdef _WIN32
  VirtualUnlock(const_cast<std::byte*>(bytes.data()), bytes.size());  // of pages not locked: they leave the working set
#else
  // Pages of a size that is a multiple of every system's: from that of the first byte, which the bytes before share, to
  // before that of the last, which goes with the bytes behind. So nothing stays between bytes that are read in order.
  constexpr size_t kLargestPage = 65536;
  const size_t first = static_cast<size_t>(bytes.data() - data_) / kLargestPage * kLargestPage;
  const size_t end =
      static_cast<size_t>(bytes.data() - data_ + static_cast<ptrdiff_t>(bytes.size())) / kLargestPage * kLargestPage;
  if (end > first) ::madvise(const_cast<std::byte*>(data_) + first, end - first, MADV_DONTNEED);
#endif
}

}  // namespace gemma
