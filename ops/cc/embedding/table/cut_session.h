// The cut of one table: its content at one moment, handed out while the table goes on.
#ifndef MILLRACE_EMBEDDING_CUT_SESSION_H_
#define MILLRACE_EMBEDDING_CUT_SESSION_H_

#include <array>
#include <cstdint>
#include <memory>

#include "ops/cc/embedding/rules/entry_layout.h"
#include "ops/cc/embedding/table/cut_marks.h"
#include "ops/cc/embedding/table/entry_arena.h"
#include "ops/cc/embedding/table/entry_rows.h"
#include "ops/cc/embedding/table/fid_map.h"
#include "ops/cc/embedding/table/row_log.h"
#include "ops/cc/embedding/table/sharded_batch.h"

namespace millrace {

// Copy on write: while a cut is open, an entry of it is copied aside before its first change. Each entry of the cut is
// handed out once, by TakePage or, where it was copied aside, by TakeKept. Holds no lock: each method says which locks
// the caller holds.
class CutSession {
 public:
  // Both must outlive this.
  CutSession(const EntryLayout& layout, EntryArena* arena) : layout_(layout), arena_(*arena) {}

  // The write locks of all shards.
  void Begin() { marks_ = std::make_unique<CutMarks>(arena_.end()); }
  // The write locks of all shards. No-op when no cut is open.
  void End();

  // The write lock of `shard`: an entry was created at `handle`, which is therefore not of the cut.
  void OnCreate(uint32_t handle) {
    if (marks_ != nullptr) marks_->Drop(handle);
  }
  // The write lock of `shard`: the entry of `slot` is about to change or to go.
  void BeforeChange(int shard, const FidMap::Slot& slot) {
    if (marks_ != nullptr) Keep(shard, slot);
  }
  // The write lock of `shard`: all entries of `map`, its index, are about to go.
  void BeforeClear(int shard, const FidMap& map);

  // The read lock of the shard whose index is `map`: no writer is there, and only one caller takes the cut of a shard.
  // Appends the unchanged entries of one page and moves `start` on, from 0 to FidMap::kEnd.
  void TakePage(const FidMap& map, uint64_t* start, EntryRows* rows);
  // The write lock of `shard`: moves what was copied aside since the last call to `kept`, which is empty.
  void TakeKept(int shard, RowLog* kept) { kept->swap(kept_[shard].rows); }

 private:
  void Keep(int shard, const FidMap::Slot& slot);

  const EntryLayout& layout_;
  EntryArena& arena_;
  std::unique_ptr<CutMarks> marks_;  // null: no cut is open
  struct alignas(64) Kept {  // a cache line each: shards write at the same time
    RowLog rows;
  };
  std::array<Kept, kLockShards> kept_;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_CUT_SESSION_H_
