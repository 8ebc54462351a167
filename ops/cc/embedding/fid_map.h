// Exact-key map from fid to entry: open addressing, linear probing, no tombstones. Not thread-safe: see EntryArena.
#ifndef MILLRACE_EMBEDDING_FID_MAP_H_
#define MILLRACE_EMBEDDING_FID_MAP_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "ops/cc/embedding/fid.h"

namespace millrace {

class FidMap {
 public:
  struct Slot {
    int64_t fid;
    uint32_t handle : 31;  // entry in the arena; kEmpty marks a free slot
    uint32_t touched : 1;  // updated since the touched keys were last stolen
    uint32_t timestamp;    // Unix seconds of the last write, 0 before the first
    bool empty() const { return handle == kEmpty; }
  };
  static_assert(sizeof(Slot) == 16, "four slots a cache line");

  static constexpr uint32_t kEmpty = 0x7FFFFFFF;

  size_t size() const { return size_; }

  void Prefetch(uint64_t hash) const {
    if (!slots_.empty()) __builtin_prefetch(&slots_[hash & mask_]);
  }

  // `hash` is HashFid(fid) everywhere. Returns null when absent. A pointer is valid until the next Insert, Erase or
  // Clear.
  Slot* Find(int64_t fid, uint64_t hash) {
    if (slots_.empty()) return nullptr;
    for (uint64_t i = hash & mask_;; i = (i + 1) & mask_) {
      if (slots_[i].empty()) return nullptr;
      if (slots_[i].fid == fid) return &slots_[i];
    }
  }
  const Slot* Find(int64_t fid, uint64_t hash) const { return const_cast<FidMap*>(this)->Find(fid, hash); }

  // Requires that `fid` is absent.
  Slot* Insert(int64_t fid, uint64_t hash, uint32_t handle) {
    if ((size_ + 1) * 4 > slots_.size() * 3) Grow();
    ++size_;
    return Place({fid, handle, 0, 0}, hash);
  }

  // Requires that `slot` came from Find. Later members of its run move up, so no tombstone is left.
  void Erase(Slot* slot) {
    uint64_t hole = slot - slots_.data();
    for (uint64_t i = (hole + 1) & mask_; !slots_[i].empty(); i = (i + 1) & mask_) {
      const uint64_t home = HashFid(slots_[i].fid) & mask_;
      if (((i - home) & mask_) >= ((i - hole) & mask_)) {
        slots_[hole] = slots_[i];
        hole = i;
      }
    }
    slots_[hole] = kFreeSlot;
    --size_;
  }

  void Clear() {
    std::vector<Slot>().swap(slots_);
    mask_ = 0;
    size_ = 0;
  }

  template <typename Function>  // void(Slot&)
  void ForEach(Function function) {
    for (Slot& slot : slots_) {
      if (!slot.empty()) function(slot);
    }
  }
  template <typename Function>  // void(const Slot&)
  void ForEach(Function function) const {
    for (const Slot& slot : slots_) {
      if (!slot.empty()) function(slot);
    }
  }

 private:
  static constexpr Slot kFreeSlot = {0, kEmpty, 0, 0};

  Slot* Place(const Slot& slot, uint64_t hash) {
    uint64_t i = hash & mask_;
    while (!slots_[i].empty()) i = (i + 1) & mask_;
    slots_[i] = slot;
    return &slots_[i];
  }

  void Grow() {
    std::vector<Slot> old(slots_.empty() ? 16 : slots_.size() * 2, kFreeSlot);
    old.swap(slots_);
    mask_ = slots_.size() - 1;
    for (const Slot& slot : old) {
      if (!slot.empty()) Place(slot, HashFid(slot.fid));
    }
  }

  std::vector<Slot> slots_;
  uint64_t mask_ = 0;
  size_t size_ = 0;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_FID_MAP_H_
