// The parts of a table that are locked apart.
#ifndef MILLRACE_EMBEDDING_LOCK_SHARD_H_
#define MILLRACE_EMBEDDING_LOCK_SHARD_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ops/cc/embedding/base/fid.h"
#include "ops/cc/embedding/base/rw_lock.h"
#include "ops/cc/embedding/table/cut_session.h"
#include "ops/cc/embedding/table/entry_arena.h"
#include "ops/cc/embedding/table/fid_map.h"
#include "ops/cc/embedding/table/sharded_batch.h"
#include "ops/cc/embedding/table/slab_pool.h"
#include "ops/cc/embedding/table/touched_keys.h"

namespace millrace {

// The ids whose hash begins with the same bits: their index, their entries' memory, which of them were touched, and the
// lock over all of it. Callers hold `lock`: for reading where a method is const, else for writing.
class alignas(64) LockShard {
 public:
  // Ids that are remembered as touched before the shard gives up (TouchedKeys): half a megabyte.
  static constexpr size_t kMaxTouched = size_t{1} << 16;

  // All must outlive this.
  LockShard(int number, EntryArena* arena, SlabPool* pages, CutSession* cut)
      : number_(number), cut_(*cut), map_(pages), entries_(arena), touched_(kMaxTouched) {}

  mutable RwLock lock;

  int number() const { return number_; }
  const FidMap& map() const { return map_; }
  TouchedKeys& touched() { return touched_; }
  int64_t MemoryBytes() const { return entries_.MemoryBytes() + map_.MemoryBytes(); }

  // Runs use(i, slot, hash) for each id in order, slot null where there is no entry. `use` may create and remove.
  template <typename FidAt, typename Use>
  void ForEachSlot(uint32_t count, const FidAt& fid_at, const Use& use) const {
    constexpr uint32_t kAhead = 16;  // ids whose cache lines are on their way: what one core can wait for at once
    struct Ahead {
      uint64_t hash;
      FidMap::Slot* home;
      uint64_t growths;  // of the map when `home` was right
    };
    Ahead ring[kAhead];
    for (uint32_t i = 0; i < count + kAhead; ++i) {
      Ahead& ahead = ring[i % kAhead];
      if (i >= kAhead) {
        if (ahead.growths != map_.growths()) ahead.home = map_.Home(ahead.hash);  // `use` has inserted
        use(i - kAhead, map_.FindAt(ahead.home, fid_at(i - kAhead), ahead.hash), ahead.hash);
      }
      if (i >= count) continue;
      const uint64_t hash = HashFid(fid_at(i));
      ahead = {hash, map_.Home(hash), map_.growths()};
      __builtin_prefetch(ahead.home);
    }
  }

  // A new entry, whose bytes hold anything. Requires that `fid` has none.
  FidMap::Slot* Create(int64_t fid, uint64_t hash) {
    const uint32_t handle = entries_.Allocate();
    cut_.OnCreate(handle);
    return map_.Insert(fid, hash, handle);
  }
  // The slot that is about to change: `slot`, or a new one where that is null.
  FidMap::Slot* Claim(FidMap::Slot* slot, int64_t fid, uint64_t hash) {
    if (slot == nullptr) return Create(fid, hash);
    BeforeChange(*slot);
    return slot;
  }
  void BeforeChange(const FidMap::Slot& slot) { cut_.BeforeChange(number_, slot); }
  // Removes an entry and marks its id as touched.
  void Remove(FidMap::Slot* slot) {
    BeforeChange(*slot);
    Touch(slot);
    entries_.Free(slot->handle);
    map_.Erase(slot);
  }
  void Touch(FidMap::Slot* slot) {
    if (slot->touched) return;
    slot->touched = 1;
    touched_.Add(slot->fid);
  }
  // Removes all entries, forgets all touched ids and returns the memory.
  void Clear();
  // Takes the touched ids out; returns whether some were forgotten for lack of room.
  bool StealTouched(std::vector<int64_t>* fids);

 private:
  const int number_;
  CutSession& cut_;
  FidMap map_;
  ShardEntries entries_;
  TouchedKeys touched_;
};

// The lock shards of a table, by the highest bits of an id's hash.
class LockShards {
 public:
  LockShards(EntryArena* arena, SlabPool* pages, CutSession* cut);

  LockShard& operator[](int number) const { return *shards_[number]; }
  LockShard& OfHash(uint64_t hash) const { return *shards_[LockShardOf(hash)]; }
  auto begin() const { return shards_.begin(); }
  auto end() const { return shards_.end(); }

  // Write locks of all shards, in ascending order.
  void LockAll() const;
  void UnlockAll() const;

 private:
  std::array<std::unique_ptr<LockShard>, kLockShards> shards_;
};

// Read locks of the shards of a bit mask, taken in ascending order.
class ReadLocks {
 public:
  ReadLocks(const LockShards& shards, uint64_t mask);
  ~ReadLocks();
  ReadLocks(const ReadLocks&) = delete;
  ReadLocks& operator=(const ReadLocks&) = delete;

 private:
  const LockShards& shards_;
  const uint64_t mask_;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_LOCK_SHARD_H_
