// The order in which a batch visits the shards.
#include "ops/cc/embedding/table/sharded_batch.h"

#include <cstddef>
#include <mutex>

#include "tests/cc/test_tables.h"

namespace millrace {
namespace {

std::vector<Executor> Executors() { return {RunInline, RunOnFourThreads, RunBackwards}; }

// The order that a stable sort by shard gives.
std::vector<ShardedId> StableSort(const std::vector<IdList>& lists) {
  std::vector<ShardedId> sorted;
  for (uint32_t l = 0; l < lists.size(); ++l) {
    for (int64_t i = 0; i < lists[l].count; ++i) {
      const uint32_t row = lists[l].rows == nullptr ? static_cast<uint32_t>(i) : lists[l].rows[i];
      sorted.push_back({lists[l].fids[i], row, l});
    }
  }
  std::stable_sort(sorted.begin(), sorted.end(), [](const ShardedId& a, const ShardedId& b) {
    return LockShardOf(HashFid(a.fid)) < LockShardOf(HashFid(b.fid));
  });
  return sorted;
}

void ExpectStable(const std::vector<IdList>& lists) {
  const std::vector<ShardedId> expected = StableSort(lists);
  for (const Executor& run : Executors()) {
    const ShardedBatch batch = ShardedBatch::Sort(lists, run);
    ASSERT_EQ(batch.begin[0], 0u);
    ASSERT_EQ(batch.begin[kLockShards], expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(batch.ids[i].fid, expected[i].fid) << i;
      ASSERT_EQ(batch.ids[i].row, expected[i].row) << i;
      ASSERT_EQ(batch.ids[i].list, expected[i].list) << i;
    }
    for (int s = 0; s < kLockShards; ++s) {
      for (uint32_t i = batch.begin[s]; i < batch.begin[s + 1]; ++i) {
        ASSERT_EQ(LockShardOf(HashFid(batch.ids[i].fid)), s);
      }
    }
  }
}

TEST(ShardedBatch, KeepsTheOrderOfTheListsWithinAShardUnderAnyExecutor) {
  std::vector<int64_t> many(50000), few(100);
  std::vector<uint32_t> rows(few.size());
  for (size_t i = 0; i < many.size(); ++i) many[i] = static_cast<int64_t>(i * i % 1000) - 500;
  for (size_t i = 0; i < few.size(); ++i) {
    few[i] = static_cast<int64_t>(i % 7);
    rows[i] = static_cast<uint32_t>(1000 - i / 3);
  }
  const IdList of_many{many.data(), static_cast<int64_t>(many.size()), nullptr};
  const IdList of_few{few.data(), static_cast<int64_t>(few.size()), rows.data()};
  ExpectStable({of_few, of_many, {}, of_few});
}

TEST(ShardedBatch, ABatchMayBeEmpty) {
  ExpectStable({});
  ExpectStable({{}, {}});
}

TEST(ShardedBatch, VisitsEachShardWithIdsOnce) {
  const std::vector<int64_t> fids = Sequence(20);
  for (const Executor& run : Executors()) {
    const ShardedBatch batch = ShardedBatch::Sort({{fids.data(), 20, nullptr}}, run);
    std::mutex mutex;
    std::vector<int> visits(kLockShards);
    uint32_t ids = 0;
    batch.ForEachShard(run, 1, [&](int shard, uint32_t begin, uint32_t end) {
      const std::lock_guard lock(mutex);
      ++visits[shard];
      ids += end - begin;
      EXPECT_LT(begin, end);
    });
    EXPECT_EQ(ids, 20u);
    for (int s = 0; s < kLockShards; ++s) EXPECT_EQ(visits[s], batch.begin[s] != batch.begin[s + 1]);
  }
}

}  // namespace
}  // namespace millrace
