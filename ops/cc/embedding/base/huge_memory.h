// Memory for large tables, from the kernel.
#ifndef MILLRACE_EMBEDDING_HUGE_MEMORY_H_
#define MILLRACE_EMBEDDING_HUGE_MEMORY_H_

#include <sys/mman.h>

#include <cstdint>

namespace millrace {

inline constexpr int64_t kHugePage = int64_t{2} << 20;

// Addresses that start on a boundary of a huge page and read as zeros; memory is taken as they are touched.
struct HugeMapping {
  char* start = nullptr;  // null: the kernel has none, or the process has its limit of mappings
  int64_t bytes = 0;

  // What is mapped beyond the boundaries is given back: it would split one mapping into three, and a process may have
  // 65,530 of them.
  static HugeMapping Take(int64_t bytes) {
    constexpr int64_t kPage = 4096;
    bytes = (bytes + kPage - 1) / kPage * kPage;
    void* memory = ::mmap(nullptr, static_cast<size_t>(bytes + kHugePage), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return {};
    char* const first = static_cast<char*>(memory);
    const auto address = reinterpret_cast<uintptr_t>(memory);
    const auto before = static_cast<int64_t>((kHugePage - address % kHugePage) % kHugePage);
    if (before > 0) ::munmap(first, static_cast<size_t>(before));
    if (before < kHugePage) ::munmap(first + before + bytes, static_cast<size_t>(kHugePage - before));
    return {first + before, bytes};
  }

  void AdviseHugePages() const {
#ifdef MADV_HUGEPAGE
    ::madvise(start, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  }
  void Give() const { ::munmap(start, static_cast<size_t>(bytes)); }
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_HUGE_MEMORY_H_
