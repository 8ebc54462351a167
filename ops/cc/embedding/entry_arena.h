// Slab arena of equal entries with a free list. Not thread-safe: its owner holds the lock of a shard.
#ifndef MILLRACE_EMBEDDING_ENTRY_ARENA_H_
#define MILLRACE_EMBEDDING_ENTRY_ARENA_H_

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace millrace {

// Entries are addressed by 31-bit handles and never move. Block k holds 16 << k entries, so a small table stays small
// and a large one has few blocks; pages of a block that were never written cost no memory.
class EntryArena {
 public:
  // `floats`: size of one entry. Entries start on a 16-byte boundary.
  explicit EntryArena(int64_t floats) : stride_((floats + 3) / 4 * 4) {}

  uint32_t Allocate() {
    if (!free_.empty()) {
      const uint32_t handle = free_.back();
      free_.pop_back();
      return handle;
    }
    if (next_ == Capacity()) AddBlock();
    return next_++;
  }

  void Free(uint32_t handle) { free_.push_back(handle); }

  float* At(uint32_t handle) const {
    const uint32_t group = handle / kFirstBlock + 1;
    const int block = 31 - __builtin_clz(group);
    return blocks_[block].get() + (handle - FirstHandle(block)) * stride_;
  }

  // Forgets all entries and returns the memory.
  void Clear() {
    blocks_.clear();
    free_.clear();
    next_ = 0;
  }

 private:
  static constexpr uint32_t kFirstBlock = 16;

  struct Deleter {
    void operator()(float* block) const { std::free(block); }
  };

  static uint64_t FirstHandle(size_t block) { return kFirstBlock * ((uint64_t{1} << block) - 1); }
  uint64_t Capacity() const { return FirstHandle(blocks_.size()); }

  void AddBlock() {
    const uint64_t entries = static_cast<uint64_t>(kFirstBlock) << blocks_.size();
    // 16 entries of 16 bytes or more: the size is a multiple of the alignment.
    auto* block = static_cast<float*>(std::aligned_alloc(64, entries * stride_ * sizeof(float)));
    if (block == nullptr) throw std::bad_alloc();
    blocks_.emplace_back(block);
  }

  const uint64_t stride_;
  std::vector<std::unique_ptr<float, Deleter>> blocks_;
  std::vector<uint32_t> free_;
  uint32_t next_ = 0;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_ENTRY_ARENA_H_
