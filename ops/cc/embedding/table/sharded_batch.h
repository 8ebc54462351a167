// The ids of a batch in the order of the lock shards they fall into.
#ifndef MILLRACE_EMBEDDING_SHARDED_BATCH_H_
#define MILLRACE_EMBEDDING_SHARDED_BATCH_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "ops/cc/embedding/base/executor.h"
#include "ops/cc/embedding/base/fid.h"
#include "ops/cc/embedding/base/scratch_array.h"

namespace millrace {

// Locks of a table: a batch visits each shard once, so it takes at most this many, and an update never two at a time.
inline constexpr int kLockShards = 64;
inline int LockShardOf(uint64_t hash) { return static_cast<int>(hash >> 58); }

// Some ids of a batch and, for a reader, where each one's row lies: at rows[i], or at i where `rows` is null.
struct IdList {
  const int64_t* fids = nullptr;
  int64_t count = 0;
  const uint32_t* rows = nullptr;
};

// An id of list `list` whose row is `row`.
struct ShardedId {
  int64_t fid;
  uint32_t row;
  uint32_t list;
};

// Shard s holds ids[begin[s]] up to ids[begin[s + 1]], in the order of the lists. Sorted by counting, on all threads.
struct ShardedBatch {
  std::array<uint32_t, kLockShards + 1> begin{};
  ScratchArray<ShardedId> ids;

  static ShardedBatch Sort(const std::vector<IdList>& lists, const Executor& run) {
    struct Range {
      uint32_t list;
      int64_t first, last;
      std::array<uint32_t, kLockShards> places{};  // how many of each shard, then where they go
    };
    constexpr int64_t kRange = 16384;
    std::vector<Range> ranges;
    int64_t total = 0;
    for (uint32_t l = 0; l < lists.size(); ++l) {
      total += lists[l].count;
      for (int64_t first = 0; first < lists[l].count; first += kRange) {
        ranges.push_back({l, first, std::min(first + kRange, lists[l].count), {}});
      }
    }
    const auto on_ranges = [&](auto visit) {
      if (ranges.empty()) return;
      const int64_t units = static_cast<int64_t>(ranges.size());
      run(units, 2 * total / units + 1, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r) visit(ranges[r]);
      });
    };
    on_ranges([&](Range& range) {
      const int64_t* fids = lists[range.list].fids;
      for (int64_t i = range.first; i < range.last; ++i) ++range.places[LockShardOf(HashFid(fids[i]))];
    });
    ShardedBatch batch;
    batch.ids = ScratchArray<ShardedId>(total);
    uint32_t place = 0;
    for (int s = 0; s < kLockShards; ++s) {
      batch.begin[s] = place;
      for (Range& range : ranges) {
        const uint32_t count = range.places[s];
        range.places[s] = place;
        place += count;
      }
    }
    batch.begin[kLockShards] = place;
    on_ranges([&](Range& range) {
      const IdList& list = lists[range.list];
      for (int64_t i = range.first; i < range.last; ++i) {
        const uint32_t row = list.rows == nullptr ? static_cast<uint32_t>(i) : list.rows[i];
        batch.ids[range.places[LockShardOf(HashFid(list.fids[i]))]++] = {list.fids[i], row, range.list};
      }
    });
    return batch;
  }

  // Runs visit(shard, first place, last place) for each shard that has ids, on all threads.
  template <typename Visit>
  void ForEachShard(const Executor& run, int64_t nanoseconds_per_id, const Visit& visit) const {
    const int64_t cost = begin[kLockShards] * nanoseconds_per_id / kLockShards + 50;
    run(kLockShards, cost, [&](int64_t first, int64_t last) {
      for (int64_t s = first; s < last; ++s) {
        if (begin[s] != begin[s + 1]) visit(static_cast<int>(s), begin[s], begin[s + 1]);
      }
    });
  }
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_SHARDED_BATCH_H_
