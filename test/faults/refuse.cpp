// A library that is loaded before all others (LD_PRELOAD) and refuses memory, mappings and threads, or space on the disk,
// to the addon, not to Node: V8 ends the process when it gets none. Whose call it is tells its return address. What is refused, a test writes
// into the file that GEMMA_REFUSALS names.
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

struct Control {
  std::atomic<int64_t> on;
  int64_t first, last;  // of the calls that come while it is on; the first is 1
  std::atomic<int64_t> n_seen;
  int64_t what;  // 0: memory, 1: the disk
};

Control* control = nullptr;
std::atomic<uintptr_t> code_begin{0};  // of the addon
std::atomic<uintptr_t> code_end{0};

int find_addon(dl_phdr_info* info, size_t, void*) {
  if (info->dlpi_name == nullptr || std::strstr(info->dlpi_name, "gemma_native.node") == nullptr) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& header = info->dlpi_phdr[i];
    if (header.p_type != PT_LOAD || (header.p_flags & PF_X) == 0) continue;
    code_end = info->dlpi_addr + header.p_vaddr + header.p_memsz;
    code_begin = info->dlpi_addr + header.p_vaddr;
  }
  return 1;
}

// The function that this one hides. Looked up anew: the first call may come before this library is initialised.
template <class F>
F* hidden(F*, const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
}

__attribute__((constructor)) void open_control() {
  const char* path = std::getenv("GEMMA_REFUSALS");
  const int file = path != nullptr ? ::open(path, O_RDWR | O_CLOEXEC) : -1;
  if (file < 0) return;
  void* memory = hidden(&mmap, "mmap")(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  ::close(file);
  if (memory != MAP_FAILED) control = static_cast<Control*>(memory);
}

bool is_refused(const void* caller, int64_t what = 0) {
  if (control == nullptr || control->on == 0 || control->what != what) return false;
  if (code_begin == 0) dl_iterate_phdr(find_addon, nullptr);
  const auto address = reinterpret_cast<uintptr_t>(caller);
  if (address < code_begin || address >= code_end) return false;
  const int64_t i = ++control->n_seen;
  return i >= control->first && i <= control->last;
}

}  // namespace

#define REFUSED is_refused(__builtin_return_address(0))

extern "C" {

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t n) {
  if (!REFUSED) return __libc_malloc(n);
  errno = ENOMEM;
  return nullptr;
}

void* calloc(size_t n, size_t size) {
  if (!REFUSED) return __libc_calloc(n, size);
  errno = ENOMEM;
  return nullptr;
}

void* realloc(void* p, size_t n) {
  if (!REFUSED) return __libc_realloc(p, n);
  errno = ENOMEM;
  return nullptr;
}

void* aligned_alloc(size_t alignment, size_t n) {
  if (!REFUSED) return __libc_memalign(alignment, n);
  errno = ENOMEM;
  return nullptr;
}

int posix_memalign(void** out, size_t alignment, size_t n) {
  if (REFUSED) return ENOMEM;
  *out = __libc_memalign(alignment, n);
  return *out == nullptr ? ENOMEM : 0;
}

void* mmap(void* address, size_t n, int protection, int flags, int file, off_t offset) {
  if (!REFUSED) return hidden(&mmap, "mmap")(address, n, protection, flags, file, offset);
  errno = ENOMEM;
  return MAP_FAILED;
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*f)(void*), void* argument) {
  if (REFUSED) return EAGAIN;
  return hidden(&pthread_create, "pthread_create")(thread, attributes, f, argument);
}

#define DISK_REFUSED is_refused(__builtin_return_address(0), 1)

ssize_t pwrite(int file, const void* bytes, size_t n, off_t offset) {
  if (!DISK_REFUSED) return hidden(&pwrite, "pwrite")(file, bytes, n, offset);
  errno = ENOSPC;
  return -1;
}

int ftruncate(int file, off_t n) {
  if (!DISK_REFUSED) return hidden(&ftruncate, "ftruncate")(file, n);
  errno = EFBIG;
  return -1;
}

int fsync(int file) {
  if (!DISK_REFUSED) return hidden(&fsync, "fsync")(file);
  errno = EDQUOT;
  return -1;
}

}  // extern "C"
