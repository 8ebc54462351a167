// Memory of a table's entries, shared by its shards.
#ifndef MILLRACE_EMBEDDING_ENTRY_ARENA_H_
#define MILLRACE_EMBEDDING_ENTRY_ARENA_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/cc/embedding/base/huge_memory.h"

namespace millrace {

// A table has as many entries as it can number.
class TableFull : public std::runtime_error {
 public:
  explicit TableFull(uint32_t entries)
      : std::runtime_error("a table holds " + std::to_string(entries) +
                           " entries at most: spread it over more parameter servers, or let entries expire") {}
};

// Equal entries, addressed by handles that never move, in regions of some 32 MB, of which one mapping holds the more the
// larger the table is, up to 1 GB. Regions beyond the first are on huge pages: without them every access to a large
// table misses the TLB. Shards take slabs of entries in turn, so that they
// fill one huge page after the other together; each with a region of its own would touch a new page in the same batch.
class EntryArena {
 public:
  static constexpr uint32_t kMostHandles = 0x7FFFFFFF;

  explicit EntryArena(int64_t entry_bytes)
      : stride_(Stride(entry_bytes)),
        slab_bits_(std::max(BitsOf(kSlabBytes), kLeastSlabBits)),
        region_bits_(std::max(BitsOf(kRegionBytes), slab_bits_)),
        regions_(new char*[(kMostHandles >> region_bits_) + 1]) {}
  ~EntryArena() { Unmap(); }
  EntryArena(const EntryArena&) = delete;
  EntryArena& operator=(const EntryArena&) = delete;

  int64_t stride() const { return stride_; }
  uint32_t slab_entries() const { return uint32_t{1} << slab_bits_; }

  char* At(uint32_t handle) const {
    return regions_[handle >> region_bits_] + (handle & ((uint32_t{1} << region_bits_) - 1)) * stride_;
  }

  // All handles given out so far are below. Thread-safe.
  uint32_t end() {
    const std::lock_guard lock(mutex_);
    return next_;
  }

  // First handle of a slab, whose entries hold anything. Thread-safe. Throws std::bad_alloc and TableFull.
  uint32_t TakeSlab() {
    const std::lock_guard lock(mutex_);
    if (!free_slabs_.empty()) {
      const uint32_t first = free_slabs_.back();
      free_slabs_.pop_back();
      ++taken_;
      return first;
    }
    if (next_ >> region_bits_ == mapped_) Map();
    ++taken_;
    next_ += slab_entries();
    return next_ - slab_entries();
  }

  // Takes slabs back; the memory is returned with the last one. Thread-safe.
  void GiveSlabs(const std::vector<uint32_t>& firsts) {
    const std::lock_guard lock(mutex_);
    free_slabs_.insert(free_slabs_.end(), firsts.begin(), firsts.end());
    taken_ -= firsts.size();
    if (taken_ == 0) Unmap();
  }

 private:
  static constexpr int64_t kSlabBytes = 64 << 10;
  static constexpr int kLeastSlabBits = 6;  // CutMarks needs it: the bits of two slabs share no word of 64
  static constexpr int64_t kRegionBytes = 32 << 20;
  static constexpr uint32_t kMostRegions = 32;  // of a mapping: a terabyte takes some 1,000 of the 65,530 of a process

  // A multiple of 4, so that floats are aligned; of 16 or of a cache line where that costs at most an eighth, so that
  // an entry lies in fewer lines.
  static int64_t Stride(int64_t entry_bytes) {
    for (const int64_t unit : {64, 16}) {
      const int64_t stride = (entry_bytes + unit - 1) / unit * unit;
      if (stride - entry_bytes <= entry_bytes / 8) return stride;
    }
    return (entry_bytes + 3) / 4 * 4;
  }
  // Logarithm of how many entries fit into so many bytes.
  int BitsOf(int64_t bytes) const {
    int bits = 0;
    while (stride_ << (bits + 1) <= bytes) ++bits;
    return bits;
  }

  void Map() {
    const uint32_t left = (kMostHandles >> region_bits_) - mapped_;
    if (left == 0) throw TableFull(next_);
    uint32_t regions = std::clamp(mapped_, uint32_t{1}, std::min(left, kMostRegions));
    const int64_t region_bytes = stride_ << region_bits_;
    mappings_.reserve(mappings_.size() + 1);
    HugeMapping mapping = HugeMapping::Take(regions * region_bytes);
    if (mapping.start == nullptr && regions > 1) mapping = HugeMapping::Take((regions = 1) * region_bytes);
    if (mapping.start == nullptr) throw std::bad_alloc();
    mappings_.push_back(mapping);
    // The first region stays on small pages, or a small table would hold a huge one for each of its shards.
    if (mapped_ > 0) mapping.AdviseHugePages();
    for (uint32_t r = 0; r < regions; ++r) regions_[mapped_++] = mapping.start + r * region_bytes;
  }

  void Unmap() {
    for (const HugeMapping& mapping : mappings_) mapping.Give();
    mappings_.clear();
    std::vector<uint32_t>().swap(free_slabs_);
    next_ = mapped_ = 0;
  }

  const int64_t stride_;
  const int slab_bits_;
  const int region_bits_;
  const std::unique_ptr<char*[]> regions_;
  std::mutex mutex_;
  std::vector<HugeMapping> mappings_;
  std::vector<uint32_t> free_slabs_;
  uint32_t next_ = 0;
  uint32_t mapped_ = 0;  // regions
  size_t taken_ = 0;
};

// The entries of one shard. Not thread-safe: its owner holds the lock of the shard.
class ShardEntries {
 public:
  // `arena` must outlive this.
  explicit ShardEntries(EntryArena* arena) : arena_(*arena) {}
  ~ShardEntries() { Clear(); }
  ShardEntries(const ShardEntries&) = delete;
  ShardEntries& operator=(const ShardEntries&) = delete;

  uint32_t Allocate() {
    if (free_.empty()) return AllocateFresh();
    const uint32_t handle = free_.back();
    free_.pop_back();
    return handle;
  }

  void Free(uint32_t handle) { free_.push_back(handle); }

  // Of what was ever given out, and of the list of what is free.
  int64_t MemoryBytes() const {
    const int64_t entries = static_cast<int64_t>(slabs_.size()) * arena_.slab_entries() - left_;
    return entries * arena_.stride() + static_cast<int64_t>(free_.capacity() * sizeof(uint32_t));
  }

  // Forgets all entries and returns the memory.
  void Clear() {
    arena_.GiveSlabs(slabs_);
    std::vector<uint32_t>().swap(slabs_);
    std::vector<uint32_t>().swap(free_);
    left_ = 0;
  }

 private:
  uint32_t AllocateFresh() {
    if (left_ == 0) {
      slabs_.push_back(arena_.TakeSlab());
      left_ = arena_.slab_entries();
    }
    return slabs_.back() + (arena_.slab_entries() - left_--);
  }

  EntryArena& arena_;
  std::vector<uint32_t> slabs_;  // first handles
  std::vector<uint32_t> free_;
  uint32_t left_ = 0;  // entries of the last slab that were never given out
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_ENTRY_ARENA_H_
