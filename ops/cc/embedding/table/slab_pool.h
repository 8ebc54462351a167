// Equal pieces of memory on huge pages, for all shards of a table.
#ifndef MILLRACE_EMBEDDING_SLAB_POOL_H_
#define MILLRACE_EMBEDDING_SLAB_POOL_H_

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

namespace millrace {

// Thread-safe. Random access to a large table misses the TLB at every step unless it lies on huge pages; shards that
// mapped their own would each hold one that is half empty, and all touch a new one in the same batch. So they share.
class SlabPool {
 public:
  explicit SlabPool(int64_t slab_bytes) : slab_bytes_((slab_bytes + 63) / 64 * 64) {
    region_bytes_ = std::max(kRegionBytes, (slab_bytes_ + kHugePage - 1) / kHugePage * kHugePage);
  }
  ~SlabPool() { Unmap(); }
  SlabPool(const SlabPool&) = delete;
  SlabPool& operator=(const SlabPool&) = delete;

  int64_t slab_bytes() const { return slab_bytes_; }

  // On a 64-byte boundary; holds anything. Throws std::bad_alloc.
  char* Take() {
    const std::lock_guard lock(mutex_);
    ++taken_;
    if (!free_.empty()) {
      char* slab = free_.back();
      free_.pop_back();
      return slab;
    }
    if (next_ + slab_bytes_ > end_) Map();
    char* slab = next_;
    next_ += slab_bytes_;
    return slab;
  }

  void Give(char* slab) {
    const std::lock_guard lock(mutex_);
    free_.push_back(slab);
    if (--taken_ == 0) Unmap();
  }

 private:
  static constexpr int64_t kHugePage = int64_t{2} << 20;
  static constexpr int64_t kRegionBytes = int64_t{64} << 20;  // of addresses: pages are filled as they are touched

  void Map() {
    // One huge page more, to start on a boundary of one.
    void* memory =
        ::mmap(nullptr, region_bytes_ + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      --taken_;
      throw std::bad_alloc();
    }
    regions_.push_back(memory);
    const auto start = (reinterpret_cast<uintptr_t>(memory) + kHugePage - 1) / kHugePage * kHugePage;
    next_ = reinterpret_cast<char*>(start);
    end_ = next_ + region_bytes_;
#ifdef MADV_HUGEPAGE
    ::madvise(next_, region_bytes_, MADV_HUGEPAGE);
#endif
  }

  void Unmap() {
    for (void* region : regions_) ::munmap(region, region_bytes_ + kHugePage);
    regions_.clear();
    std::vector<char*>().swap(free_);
    next_ = end_ = nullptr;
  }

  const int64_t slab_bytes_;
  int64_t region_bytes_;
  std::mutex mutex_;
  std::vector<void*> regions_;
  std::vector<char*> free_;
  char* next_ = nullptr;
  char* end_ = nullptr;
  int64_t taken_ = 0;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_SLAB_POOL_H_
