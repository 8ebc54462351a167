// Equal pieces of memory on huge pages, for all shards of a table.
#ifndef MILLRACE_EMBEDDING_SLAB_POOL_H_
#define MILLRACE_EMBEDDING_SLAB_POOL_H_

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

#include "ops/cc/embedding/base/huge_memory.h"

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
    if (!free_.empty()) {
      char* slab = free_.back();
      free_.pop_back();
      ++taken_;
      return slab;
    }
    if (end_ - next_ < slab_bytes_) Map();
    ++taken_;
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
  static constexpr int64_t kRegionBytes = int64_t{64} << 20;  // of addresses: pages are filled as they are touched

  void Map() {
    regions_.reserve(regions_.size() + 1);
    const HugeMapping region = HugeMapping::Take(region_bytes_);
    if (region.start == nullptr) throw std::bad_alloc();
    regions_.push_back(region);
    region.AdviseHugePages();
    next_ = region.start;
    end_ = next_ + region_bytes_;
  }

  void Unmap() {
    for (const HugeMapping& region : regions_) region.Give();
    regions_.clear();
    std::vector<char*>().swap(free_);
    next_ = end_ = nullptr;
  }

  const int64_t slab_bytes_;
  int64_t region_bytes_;
  std::mutex mutex_;
  std::vector<HugeMapping> regions_;
  std::vector<char*> free_;
  char* next_ = nullptr;
  char* end_ = nullptr;
  int64_t taken_ = 0;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_SLAB_POOL_H_
