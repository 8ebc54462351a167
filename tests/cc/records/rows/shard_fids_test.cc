// Numbers and places of fids by (feature, shard).
#include "ops/cc/records/rows/shard_fids.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <map>
#include <random>
#include <vector>

#include "ops/cc/embedding/base/fid.h"

namespace millrace::records {
namespace {

constexpr int64_t kShards = 3;

struct Batch {
  std::vector<int64_t> fids;
  std::vector<int64_t> splits;
  FeatureFids view() const { return {fids.data(), splits.data(), static_cast<int32_t>(splits.size()) - 1, kShards}; }
};

struct Numbers {
  std::vector<uint64_t> places;
  std::vector<int64_t> counts;
};

Numbers NumbersOf(const Batch& batch, bool unique) {
  Numbers numbers{std::vector<uint64_t>(batch.fids.size()),
                  std::vector<int64_t>((batch.splits.size() - 1) * kShards, -1)};
  NumberFids(batch.view(), unique, numbers.places.data(), numbers.counts.data());
  return numbers;
}

uint64_t Place(uint64_t shard, uint64_t number) { return shard << 32 | number; }

TEST(ShardFids, NumbersFidsOfAFeatureAndShardAsTheyCome) {
  const Batch batch{{3, 4, 3, 6, 3, 3}, {0, 4, 4, 6}};
  const Numbers all = NumbersOf(batch, false);
  EXPECT_EQ(all.places,
            (std::vector<uint64_t>{Place(0, 0), Place(1, 0), Place(0, 1), Place(0, 2), Place(0, 0), Place(0, 1)}));
  EXPECT_EQ(all.counts, (std::vector<int64_t>{3, 1, 0, 0, 0, 0, 2, 0, 0}));
}

TEST(ShardFids, AUniqueFidHasOneNumberAFeature) {
  const Batch batch{{3, 4, 3, 6, 3, 3}, {0, 4, 4, 6}};
  const Numbers distinct = NumbersOf(batch, true);
  EXPECT_EQ(distinct.places,
            (std::vector<uint64_t>{Place(0, 0), Place(1, 0), Place(0, 0), Place(0, 1), Place(0, 0), Place(0, 0)}));
  EXPECT_EQ(distinct.counts, (std::vector<int64_t>{2, 1, 0, 0, 0, 0, 1, 0, 0}));
}

TEST(ShardFids, ABatchMayBeEmpty) {
  const Numbers none = NumbersOf({{}, {0, 0}}, true);
  EXPECT_EQ(none.counts, (std::vector<int64_t>{0, 0, 0}));
}

TEST(ShardFids, ManyDistinctFidsKeepTheOrderOfTheirFirstOccurrence) {
  std::mt19937_64 random(1);
  Batch batch{std::vector<int64_t>(50000), {0, 20000, 50000}};
  for (int64_t& fid : batch.fids) fid = static_cast<int64_t>(random() % 9000);
  const Numbers numbers = NumbersOf(batch, true);
  for (size_t f = 0; f < 2; ++f) {
    std::map<int64_t, uint64_t> seen;
    std::vector<uint64_t> next(kShards);
    for (int64_t i = batch.splits[f]; i < batch.splits[f + 1]; ++i) {
      const auto shard = static_cast<uint64_t>(ShardOf(batch.fids[i], kShards));
      const auto [found, is_new] = seen.emplace(batch.fids[i], next[shard]);
      if (is_new) ++next[shard];
      ASSERT_EQ(numbers.places[i], Place(shard, found->second)) << i;
    }
  }
}

TEST(ShardFids, FidsGoWhereTheirCellBeginsAndPlacesBecomeOffsets) {
  const Batch batch{{3, 4, 3, 6, 3}, {0, 4, 5}};
  Numbers numbers = NumbersOf(batch, true);
  const std::vector<int64_t> starts{0, 3, 4, 2, 4, 4}, steps{10, 7};
  const std::vector<uint64_t> first{100, 200, 300, 120, 220, 320};
  std::vector<int64_t> sharded(4);
  PlaceFids(batch.view(), starts.data(), first.data(), steps.data(), numbers.places.data(), sharded.data());
  EXPECT_EQ(sharded, (std::vector<int64_t>{3, 6, 3, 4}));
  EXPECT_EQ(numbers.places, (std::vector<uint64_t>{100, 200, 100, 110, 120}));
}

}  // namespace
}  // namespace millrace::records
