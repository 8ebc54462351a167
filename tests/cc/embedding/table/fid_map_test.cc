// The index against the standard map, also for ids that were chosen to collide.
#include "ops/cc/embedding/table/fid_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "tests/cc/fids.h"

namespace millrace {
namespace {

constexpr uint64_t kShard = uint64_t{5} << 58;  // the bits of a hash that belong to the map's owner

// An index beside a standard map that knows what it should hold.
class CheckedMap {
 public:
  void Insert(int64_t fid) {
    const auto number = static_cast<uint32_t>(expected_.size());
    FidMap::Slot* slot = map_.Insert(fid, HashFid(fid), number);
    slot->timestamp = number + 1;
    slot->touched = number & 1;
    expected_[fid] = number;
  }

  void Erase(int64_t fid) {
    map_.Erase(map_.Find(fid, HashFid(fid)));
    expected_.erase(fid);
  }

  void Clear() {
    map_.Clear();
    expected_.clear();
  }

  bool Has(int64_t fid) const { return expected_.count(fid) != 0; }

  // Finds what is there, with all that its slot knows, and only that.
  void Check(int64_t fid) const {
    const FidMap::Slot* slot = map_.Find(fid, HashFid(fid));
    const auto found = expected_.find(fid);
    ASSERT_EQ(slot != nullptr, found != expected_.end()) << fid;
    if (slot == nullptr) return;
    ASSERT_EQ(slot->fid, fid);
    ASSERT_EQ(slot->handle, found->second);
    ASSERT_EQ(slot->timestamp, found->second + 1);
    ASSERT_EQ(slot->touched, found->second & 1);
  }

  void CheckAll(const std::vector<int64_t>& fids) const {
    ASSERT_EQ(map_.size(), expected_.size());
    for (const int64_t fid : fids) Check(fid);
    std::unordered_set<int64_t> met;
    for (uint64_t start = 0; start != FidMap::kEnd;) {
      start = map_.VisitPage(start, [&](const FidMap::Slot& slot) { ASSERT_TRUE(met.insert(slot.fid).second); });
    }
    ASSERT_EQ(met.size(), expected_.size());
    for (const auto& [fid, number] : expected_) ASSERT_EQ(met.count(fid), 1u);
  }

  FidMap& map() { return map_; }

 private:
  SlabPool pages_{FidMap::kPageBytes};
  FidMap map_{&pages_};
  std::unordered_map<int64_t, uint32_t> expected_;
};

// Inserts all, then erases and inserts at random, then erases all.
void ExpectAgreement(const std::vector<int64_t>& fids, int random_changes) {
  CheckedMap map;
  for (const int64_t fid : fids) {
    map.Check(fid);
    map.Insert(fid);
  }
  map.CheckAll(fids);
  std::mt19937_64 random(5);
  for (int i = 0; i < random_changes; ++i) {
    const int64_t fid = fids[random() % fids.size()];
    map.Check(fid);
    if (map.Has(fid)) {
      map.Erase(fid);
    } else {
      map.Insert(fid);
    }
  }
  map.CheckAll(fids);
  for (const int64_t fid : fids) {
    if (map.Has(fid)) map.Erase(fid);
  }
  map.CheckAll(fids);
  EXPECT_EQ(map.map().size(), 0u);
}

// Ids whose hashes are `fixed` with the bits of `varied` filled from a count.
std::vector<int64_t> Colliding(uint64_t fixed, uint64_t varied, uint64_t count) {
  std::vector<int64_t> fids;
  for (uint64_t number = 0; number < count; ++number) {
    uint64_t hash = fixed & ~varied;
    uint64_t left = number;
    for (uint64_t bits = varied; bits != 0 && left != 0; bits &= bits - 1, left >>= 1) {
      if (left & 1) hash |= bits & -bits;
    }
    fids.push_back(FidOfHash(hash));
  }
  return fids;
}

TEST(FidMap, AnEmptyOneFindsNothing) {
  CheckedMap map;
  map.CheckAll({0, -1, INT64_MIN});
  EXPECT_EQ(map.map().MemoryBytes(), 0);
}

TEST(FidMap, AgreesWithTheStandardMapFromOneIdToManyPages) {
  for (const int64_t count : {1, 12, 13, 100, 3072, 3073, 40000}) {
    ExpectAgreement(FidsOfLockShard(5, count), 20000);
  }
}

TEST(FidMap, FindsIdsOfEveryValue) {
  ExpectAgreement({0, 1, -1, INT64_MIN, INT64_MAX, int64_t{1} << 48, 1 - (int64_t{1} << 48)}, 1000);
}

TEST(FidMap, IdsOfOneHomeAreAllFoundAlsoAroundTheEndOfAPage) {
  constexpr uint64_t kLowBits = 0xFFFFFF;
  for (const uint64_t home : {uint64_t{0}, kLowBits}) {
    std::vector<int64_t> fids;
    for (uint64_t i = 0; i < 2500; ++i) fids.push_back(FidOfHash(((Mix64(i) >> 6) & ~kLowBits) | kShard | home));
    ExpectAgreement(fids, 3000);
  }
}

TEST(FidMap, IdsThatShareTheirHashPrefixMakePagesGrowInsteadOfTheDirectory) {
  constexpr uint64_t kLowBits = (uint64_t{1} << 30) - 1;
  const std::vector<int64_t> fids = Colliding(kShard | (uint64_t{0x155555} << 36), kLowBits, 12000);
  ExpectAgreement(fids, 12000);
  CheckedMap map;
  for (const int64_t fid : fids) map.Insert(fid);
  EXPECT_LE(map.map().MemoryBytes(), 100 * static_cast<int64_t>(map.map().size()));
  // The same, and all of one home.
  ExpectAgreement(Colliding(kShard | (uint64_t{0x2AAAAA} << 36), kLowBits & ~uint64_t{0xFFFF}, 4000), 4000);
}

TEST(FidMap, OtherIdsStillFitBesideIdsThatShareTheirHashPrefix) {
  std::vector<int64_t> fids = Colliding(kShard | (uint64_t{0x155555} << 36), 0xFFFF, 4000);
  const std::vector<int64_t> others = FidsOfLockShard(5, 4000);
  fids.insert(fids.end(), others.begin(), others.end());
  ExpectAgreement(fids, 0);
}

TEST(FidMap, IdsThatDifferInOneLateBitOfThePrefixSplitLate) {
  std::vector<int64_t> fids = Colliding(kShard, 0xFFF, 4000);
  const std::vector<int64_t> others = Colliding(kShard | (uint64_t{1} << 46), 0xFFF, 4000);
  fids.insert(fids.end(), others.begin(), others.end());
  ExpectAgreement(fids, 10000);
}

TEST(FidMap, ClearForgetsAllReturnsTheMemoryAndTheMapServesOn) {
  const std::vector<int64_t> fids = FidsOfLockShard(5, 10000);
  CheckedMap map;
  for (int round = 0; round < 2; ++round) {
    for (const int64_t fid : fids) map.Insert(fid);
    map.CheckAll(fids);
    map.Clear();
    map.CheckAll(fids);
    EXPECT_EQ(map.map().MemoryBytes(), 0);
  }
}

TEST(FidMap, AWalkMeetsEachIdThatStaysExactlyOnceWhileOthersComeAndGo) {
  CheckedMap map;
  const std::vector<int64_t> staying = FidsOfLockShard(5, 20000);
  for (const int64_t fid : staying) map.Insert(fid);
  std::vector<int64_t> coming;
  for (uint64_t i = 0; i < 200000; ++i) coming.push_back(FidOfHash(kShard | (Mix64(~i) >> 6)));
  std::unordered_map<int64_t, int> met;
  size_t next = 0;
  for (uint64_t start = 0; start != FidMap::kEnd;) {
    start = map.map().VisitPage(start, [&](const FidMap::Slot& slot) { ++met[slot.fid]; });
    for (const size_t end = std::min(next + 20000, coming.size()); next < end; ++next) {
      map.Insert(coming[next]);
      if (next % 3 == 0) map.Erase(coming[next / 3]);
    }
  }
  for (const int64_t fid : staying) ASSERT_EQ(met[fid], 1);
}

TEST(FidMap, ChurnTakesNoMoreMemoryThanTheIdsThatLive) {
  CheckedMap map;
  constexpr int64_t kLive = 2000;
  const std::vector<int64_t> fids = FidsOfLockShard(5, 100000);
  for (int64_t i = 0; i < kLive; ++i) map.Insert(fids[i]);
  const int64_t before = map.map().MemoryBytes();
  for (size_t i = kLive; i < fids.size(); ++i) {
    map.Erase(fids[i - kLive]);
    map.Insert(fids[i]);
  }
  map.CheckAll(fids);
  EXPECT_LE(map.map().MemoryBytes(), before);
}

TEST(FidMap, AnEntryCosts21To44Bytes) {
  SlabPool pages(FidMap::kPageBytes);
  FidMap map(&pages);
  uint64_t counter = 0;
  for (const int64_t count : {250000, 500000, 1000000}) {
    while (static_cast<int64_t>(map.size()) < count) {
      const uint64_t hash = kShard | (Mix64(counter++) >> 6);
      map.Insert(FidOfHash(hash), hash, static_cast<uint32_t>(counter));
    }
    const double bytes = static_cast<double>(map.MemoryBytes()) / static_cast<double>(count);
    EXPECT_GE(bytes, 21) << count;
    EXPECT_LE(bytes, 44) << count;
  }
}

TEST(FidMap, IdsChosenToShareTheLowBitsOfTheirHashesHaveHomesApart) {
  SlabPool pages(FidMap::kPageBytes);
  FidMap map(&pages);
  std::unordered_set<const FidMap::Slot*> homes;
  const auto hash_of = [](uint64_t i) { return kShard | i << 33 | 12345; };
  for (uint64_t i = 0; i < 2000; ++i) map.Insert(FidOfHash(hash_of(i)), hash_of(i), static_cast<uint32_t>(i));
  for (uint64_t i = 0; i < 2000; ++i) homes.insert(map.Home(hash_of(i)));
  EXPECT_GT(homes.size(), 500u);  // of a page's 1024 lines
}

}  // namespace
}  // namespace millrace
