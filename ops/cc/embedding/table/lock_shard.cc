#include "ops/cc/embedding/table/lock_shard.h"

namespace millrace {

void LockShard::Clear() {
  cut_.BeforeClear(number_, map_);
  map_.Clear();
  entries_.Clear();
  std::vector<int64_t> forgotten;
  touched_.Steal(&forgotten);
}

bool LockShard::StealTouched(std::vector<int64_t>* fids) {
  const bool overflowed = touched_.Steal(fids) > 0;
  for (uint64_t start = overflowed ? 0 : FidMap::kEnd; start != FidMap::kEnd;) {
    start = map_.VisitPage(start, [](FidMap::Slot& slot) { slot.touched = 0; });
  }
  const auto fid_at = [&](uint32_t i) { return (*fids)[i]; };
  ForEachSlot(static_cast<uint32_t>(fids->size()), fid_at, [](uint32_t, FidMap::Slot* slot, uint64_t) {
    if (slot != nullptr) slot->touched = 0;
  });
  return overflowed;
}

LockShards::LockShards(EntryArena* arena, SlabPool* pages, CutSession* cut) {
  for (int s = 0; s < kLockShards; ++s) shards_[s] = std::make_unique<LockShard>(s, arena, pages, cut);
}

void LockShards::LockAll() const {
  for (const auto& shard : shards_) shard->lock.lock();
}

void LockShards::UnlockAll() const {
  for (const auto& shard : shards_) shard->lock.unlock();
}

ReadLocks::ReadLocks(const LockShards& shards, uint64_t mask) : shards_(shards), mask_(mask) {
  for (uint64_t bits = mask_; bits != 0; bits &= bits - 1) shards_[__builtin_ctzll(bits)].lock.lock_shared();
}

ReadLocks::~ReadLocks() {
  for (uint64_t bits = mask_; bits != 0; bits &= bits - 1) shards_[__builtin_ctzll(bits)].lock.unlock_shared();
}

}  // namespace millrace
