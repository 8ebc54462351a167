// Preloaded into one process, adds an offset to the clock that its Python code reads; others keep the machine's.
//
// The offset, int64 microseconds, is the content of the file that MILLRACE_CHAOS_CLOCK names, and may change at any
// time. Native libraries compute the ends of their waits from this clock, and the kernel, which ends the waits, knows
// nothing of the offset: they get the true time, or a wait of a millisecond would take an hour.
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

namespace {

volatile const int64_t *offset_us = nullptr;
uintptr_t python_begin = 0, python_end = 0;

// Finds the loaded object that holds the interpreter.
int FindPython(dl_phdr_info *info, size_t, void *symbol) {
  const auto address = reinterpret_cast<uintptr_t>(symbol);
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto &part = info->dlpi_phdr[i];
    if (part.p_type != PT_LOAD || !(part.p_flags & PF_X)) continue;
    const uintptr_t begin = info->dlpi_addr + part.p_vaddr;
    if (address < begin || address >= begin + part.p_memsz) continue;
    python_begin = begin;
    python_end = begin + part.p_memsz;
    return 1;
  }
  return 0;
}

__attribute__((constructor)) void Begin() {
  const char *path = getenv("MILLRACE_CHAOS_CLOCK");
  void *symbol = dlsym(RTLD_DEFAULT, "Py_BytesMain");
  const int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0 || !symbol) return;
  void *memory = mmap(nullptr, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return;
  dl_iterate_phdr(FindPython, symbol);
  offset_us = static_cast<const int64_t *>(memory);
}

int64_t OffsetFor(const void *caller) {
  const auto address = reinterpret_cast<uintptr_t>(caller);
  return offset_us && address >= python_begin && address < python_end ? *offset_us : 0;
}

}  // namespace

extern "C" int clock_gettime(clockid_t clock, timespec *now) noexcept {
  static auto *real = reinterpret_cast<int (*)(clockid_t, timespec *)>(dlsym(RTLD_NEXT, "clock_gettime"));
  const int result = real(clock, now);
  if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += OffsetFor(__builtin_return_address(0)) / 1000000;
  return result;
}

extern "C" int gettimeofday(timeval *now, void *zone) noexcept {
  static auto *real = reinterpret_cast<int (*)(timeval *, void *)>(dlsym(RTLD_NEXT, "gettimeofday"));
  const int result = real(now, zone);
  if (result == 0) now->tv_sec += OffsetFor(__builtin_return_address(0)) / 1000000;
  return result;
}

extern "C" time_t time(time_t *out) noexcept {
  static auto *real = reinterpret_cast<time_t (*)(time_t *)>(dlsym(RTLD_NEXT, "time"));
  const time_t now = real(nullptr) + OffsetFor(__builtin_return_address(0)) / 1000000;
  if (out) *out = now;
  return now;
}
