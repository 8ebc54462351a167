// Slots, shards and hashes of ids.
#include "ops/cc/embedding/base/fid.h"

#include <gtest/gtest.h>

#include "tests/cc/covers.h"
#include "tests/cc/fids.h"

namespace millrace {
namespace {

COVERS("emb:H33")
TEST(Fid, H33SlotAndShardOfAnyId) {
  EXPECT_EQ(SlotOf(int64_t{1} << 48), 1);
  EXPECT_EQ(SlotOf((int64_t{1} << 48) | 123), 1);
  EXPECT_EQ(SlotOf(-1), 32767);
  EXPECT_EQ(ShardOf(-1, 3), 2);
  for (int64_t fid = -10; fid < 10; ++fid) EXPECT_EQ(ShardOf(fid, 5), (fid + 10) % 5);
}

TEST(Fid, AHashIsTheSameInEveryProcessAndBelongsToOneId) {
  EXPECT_EQ(HashFid(0), 0xE220A8397B1DCDAFull);  // the first number of SplitMix64 with seed 0
  for (const int64_t fid : {int64_t{0}, int64_t{1}, int64_t{-1}, INT64_MIN, INT64_MAX, int64_t{3} << 48}) {
    EXPECT_EQ(FidOfHash(HashFid(fid)), fid);
  }
  EXPECT_EQ(HashText("foobar"), 0x85944171F73967E8ull);  // a published value of FNV-1a
}

}  // namespace
}  // namespace millrace
