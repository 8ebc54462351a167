// One table: creation, lookup, updates, erasure, touched keys, threads.
#include "ops/cc/embedding/embedding_table.h"

#include <atomic>
#include <cmath>
#include <limits>
#include <random>
#include <unordered_map>

#include "ops/cc/embedding/crc32c.h"
#include "ops/cc/embedding/fid.h"
#include "tests/cc/test_tables.h"

namespace millrace {
namespace {

// emb:H33
TEST(Fid, H33SlotAndShardOfAnyId) {
  EXPECT_EQ(SlotOf(int64_t{1} << 48), 1);
  EXPECT_EQ(SlotOf((int64_t{1} << 48) | 123), 1);
  EXPECT_EQ(SlotOf(-1), 32767);
  EXPECT_EQ(ShardOf(-1, 3), 2);
}

TEST(Crc32c, MatchesThePublishedCheckValue) {
  EXPECT_EQ(Crc32c(0, "123456789", 9), 0xE3069283u);
  EXPECT_EQ(Crc32c(Crc32c(0, "1234", 4), "56789", 5), 0xE3069283u);
}

TEST(FidMap, AgreesWithTheStandardMapUnderInsertAndErase) {
  FidMap map;
  std::unordered_map<int64_t, uint32_t> expected;
  std::mt19937_64 random(5);
  for (uint32_t i = 0; i < 200000; ++i) {
    const auto fid = static_cast<int64_t>(random() % 5000) - 2500;
    FidMap::Slot* slot = map.Find(fid, HashFid(fid));
    ASSERT_EQ(slot != nullptr, expected.count(fid) == 1);
    if (slot == nullptr) {
      map.Insert(fid, HashFid(fid), i);
      expected[fid] = i;
    } else {
      ASSERT_EQ(slot->handle, expected[fid]);
      map.Erase(slot);
      expected.erase(fid);
    }
  }
  EXPECT_EQ(map.size(), expected.size());
  size_t seen = 0;
  map.ForEach([&](const FidMap::Slot& slot) { seen += expected.at(slot.fid) == slot.handle; });
  EXPECT_EQ(seen, expected.size());
}

TEST(EntryArena, EntriesNeverMoveAndFreeOnesComeBack) {
  EntryArena arena(5);
  std::vector<float*> entries;
  for (uint32_t i = 0; i < 10000; ++i) {
    ASSERT_EQ(arena.Allocate(), i);
    entries.push_back(arena.At(i));
    ASSERT_EQ(reinterpret_cast<uintptr_t>(entries.back()) % 16, 0u);
    for (int d = 0; d < 5; ++d) entries.back()[d] = static_cast<float>(i);
  }
  for (uint32_t i = 0; i < 10000; ++i) {
    ASSERT_EQ(arena.At(i), entries[i]);
    for (int d = 0; d < 5; ++d) ASSERT_EQ(entries[i][d], static_cast<float>(i));
  }
  arena.Free(17);
  EXPECT_EQ(arena.Allocate(), 17u);
  EXPECT_EQ(arena.Allocate(), 10000u);
}

// emb:H1
TEST(EmbeddingTable, H1AMissingIdReadsAsZerosAndIsNotCreated) {
  const auto table = MakeTable(TableText("t", 2, std::string(kSgd) + kUniform));
  ExpectNear(LookUp(*table, {1, -1, std::numeric_limits<int64_t>::min()}), std::vector<double>(6), 0);
  EXPECT_EQ(table->size(), 0);
}

// emb:H2
TEST(EmbeddingTable, H2AssignOverwritesAndOfEqualIdsTheLastWins) {
  const auto table = MakeTable(TableText("t", 1, std::string(kSgd) + kZeros));
  const std::vector<int64_t> fids = {0, 1, 1};
  const std::vector<float> values = {1, 1, 5};
  ASSERT_TRUE(table->Assign(fids.data(), values.data(), 3, 7, RunInline).ok());
  ExpectNear(LookUp(*table, {0, 1, 2}), {1, 5, 0}, 0);
  EXPECT_EQ(table->size(), 2);
}

// emb:H6 emb:H7
TEST(EmbeddingTable, H6H7GradientsOfEqualIdsAreSummed) {
  const auto table = MakeTable(TableText("t", 1, std::string(kSgd) + kZeros));
  ASSERT_TRUE(Update(*table, {1, 0, 1}, {-1, -1, -1}, 0.1f).ok());
  ExpectNear(LookUp(*table, {0, 1}), {0.1, 0.2});
  const auto adagrad = MakeTable(TableText("t", 1, Adagrad(0) + kZeros));
  ASSERT_TRUE(Update(*adagrad, {1, 0, 1}, {-1, -1, -1}, 0.1f).ok());
  ExpectNear(LookUp(*adagrad, {0, 1}), {0.1, 0.1});  // one step along the sum, not two steps
}

// emb:H9
TEST(EmbeddingTable, H9ConcurrentUpdatesLoseNothing) {
  const auto table = MakeTable(TableText("t", 1, std::string(kSgd) + kZeros));
  constexpr int kThreads = 8, kRounds = 50, kIds = 500;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      std::vector<int64_t> fids(kIds);
      for (int i = 0; i < kIds; ++i) fids[i] = i * 7919;
      const std::vector<float> gradients(kIds, -1);
      for (int round = 0; round < kRounds; ++round) {
        ASSERT_TRUE(Update(*table, fids, gradients, 1).ok());
        LookUp(*table, fids, round % 2 == 0);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < kIds; ++i) EXPECT_EQ(LookUp(*table, {i * 7919})[0], kThreads * kRounds);
}

TEST(EmbeddingTable, AnEntryIsNeverSeenHalfWritten) {
  const auto table = MakeTable(TableText("t", 64, std::string(kSgd) + kZeros));
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (float value = 1; !stop; value += 1) {
      const std::vector<float> row(64, value);
      const int64_t fid = 3;
      ASSERT_TRUE(table->Assign(&fid, row.data(), 1, 0, RunInline).ok());
    }
  });
  std::thread eraser([&] {
    for (int64_t other = 100; !stop; ++other) {
      LookUp(*table, {other}, true);
      table->Erase(&other, 1);
      std::vector<int64_t> touched;
      table->StealTouched(&touched);
    }
  });
  for (int i = 0; i < 5000; ++i) {
    const std::vector<float> row = LookUp(*table, {3});
    ASSERT_EQ(row.front(), row.back());
  }
  stop = true;
  writer.join();
  eraser.join();
}

// emb:H35
TEST(EmbeddingTable, H35AFirstVectorDependsOnSeedTableAndIdAlone) {
  std::vector<int64_t> fids(2000);
  for (size_t i = 0; i < fids.size(); ++i) fids[i] = static_cast<int64_t>(i * i) << 20;
  const std::string rules = std::string(kSgd) + kUniform;
  const auto a = MakeTable(TableText("t", 8, rules)), b = MakeTable(TableText("t", 8, rules));
  std::vector<float> values(fids.size() * 8);
  a->Lookup(fids.data(), fids.size(), true, values.data(), RunOnFourThreads);
  const std::vector<int64_t> reversed(fids.rbegin(), fids.rend());
  LookUp(*b, reversed, true);
  EXPECT_EQ(values, LookUp(*b, fids));
  EXPECT_NE(values, LookUp(*MakeTable(TableText("u", 8, rules)), fids, true));
  EXPECT_NE(values, LookUp(*MakeTable(TableText("t", 8, rules + ";seed=1")), fids, true));
  double sum = 0;
  for (const float value : values) {
    ASSERT_GE(value, -0.05f);
    ASSERT_LT(value, 0.05f);
    sum += value;
  }
  EXPECT_NEAR(sum / values.size(), 0, 0.001);
}

// emb:H37
TEST(EmbeddingTable, H37ARandomIdIsZerosBeforeItsFirstWriteAndStartsAtItsFirstVector) {
  const auto table = MakeTable(TableText("t", 2, std::string(kSgd) + kUniform));
  const auto other = MakeTable(TableText("t", 2, std::string(kSgd) + kUniform));
  const std::vector<float> first = LookUp(*other, {4}, true);
  ExpectNear(LookUp(*table, {4}), {0, 0}, 0);
  ASSERT_TRUE(Update(*table, {4}, {-1, -2}, 1).ok());
  ExpectNear(LookUp(*table, {4}), {first[0] + 1.0, first[1] + 2.0});
}

TEST(EmbeddingTable, ResultsDoNotDependOnThreads) {
  std::mt19937 random(3);
  std::vector<int64_t> fids(20000);
  std::vector<float> gradients(fids.size() * 4);
  for (int64_t& fid : fids) fid = random() % 3000;
  for (float& value : gradients) value = static_cast<float>(random() % 1000) / 1000 - 0.5f;
  const auto one = MakeTable(TableText("t", 4, Adagrad(0.1) + kUniform));
  const auto four = MakeTable(TableText("t", 4, Adagrad(0.1) + kUniform));
  ASSERT_TRUE(Update(*one, fids, gradients, 0.1f).ok());
  ASSERT_TRUE(Update(*four, fids, gradients, 0.1f, RunOnFourThreads).ok());
  EXPECT_EQ(LookUp(*one, fids), LookUp(*four, fids));
}

TEST(EmbeddingTable, ANonFiniteGradientNamesTheFirstIdAndChangesNothing) {
  const auto table = MakeTable(TableText("movies", 1, std::string(kSgd) + kZeros));
  const Status status = Update(*table, {5, 6, 7}, {1, NAN, INFINITY}, 1, RunOnFourThreads);
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("table 'movies': the gradient of id 6"), std::string::npos) << status.message();
  EXPECT_EQ(table->size(), 0);
  const float largest = std::numeric_limits<float>::max();
  EXPECT_FALSE(Update(*table, {5, 5}, {largest, largest}, 1).ok());  // only the sum overflows
}

TEST(EmbeddingTable, AServingTableTakesNoGradients) {
  const auto table = MakeTable(TableText("t", 1, std::string(";optimizer=none") + kZeros));
  EXPECT_EQ(Update(*table, {5}, {1}, 1).code(), Code::kFailedPrecondition);
}

TEST(EmbeddingTable, TouchedKeysAreUpdatedOrErasedOnes) {
  const auto table = MakeTable(TableText("t", 1, std::string(kSgd) + kZeros));
  std::vector<int64_t> touched;
  const int64_t assigned = 1, erased = 2;
  const float value = 1;
  ASSERT_TRUE(table->Assign(&assigned, &value, 1, 0, RunInline).ok());
  LookUp(*table, {8}, true);
  EXPECT_FALSE(table->StealTouched(&touched));
  EXPECT_TRUE(touched.empty());
  ASSERT_TRUE(Update(*table, {3, 2, 3}, {1, 1, 1}, 1).ok());
  ASSERT_TRUE(Update(*table, {3}, {1}, 1).ok());
  EXPECT_EQ(table->Erase(&erased, 1), 1);
  EXPECT_EQ(table->Erase(&erased, 1), 0);
  ASSERT_TRUE(Update(*table, {2}, {1}, 1).ok());
  EXPECT_FALSE(table->StealTouched(&touched));
  EXPECT_EQ(touched, (std::vector<int64_t>{2, 3}));
  table->RestoreTouched(touched.data(), touched.size());
  table->RestoreTouched(touched.data(), touched.size());
  std::vector<int64_t> again;
  EXPECT_FALSE(table->StealTouched(&again));
  EXPECT_EQ(again, touched);
  EXPECT_FALSE(table->StealTouched(&again));
  EXPECT_TRUE(again.empty());
}

TEST(EmbeddingTable, TouchedKeysOverflowIsSaidOnceAndThenTheyCountAnew) {
  TouchedKeys keys(3);
  for (int64_t fid = 0; fid < 5; ++fid) keys.Add(fid);
  std::vector<int64_t> fids;
  EXPECT_TRUE(keys.Steal(&fids));
  EXPECT_TRUE(fids.empty());
  keys.Add(9);
  EXPECT_FALSE(keys.Steal(&fids));
  EXPECT_EQ(fids, (std::vector<int64_t>{9}));
}

TEST(EmbeddingTable, AShardWithTooManyTouchedKeysSaysSoAndStartsAnew) {
  const auto table = MakeTable(TableText("t", 1, std::string(kSgd) + kZeros));
  std::vector<int64_t> fids;
  for (int64_t fid = 0; fids.size() <= EmbeddingTable::kTouchedPerShard; ++fid) {
    if (HashFid(fid) >> 58 == 0) fids.push_back(fid);
  }
  ASSERT_TRUE(Update(*table, fids, std::vector<float>(fids.size(), 1), 1).ok());
  std::vector<int64_t> touched;
  EXPECT_TRUE(table->StealTouched(&touched));
  ASSERT_TRUE(Update(*table, {fids[0], fids[9]}, {1, 1}, 1).ok());
  EXPECT_FALSE(table->StealTouched(&touched));
  EXPECT_EQ(touched, (std::vector<int64_t>{fids[0], fids[9]}));
}

// emb:H10
TEST(EmbeddingTable, H10ClearForgetsAll) {
  const auto table = MakeTable(TableText("t", 1, std::string(kSgd) + kZeros));
  ASSERT_TRUE(Update(*table, {1, 2, 3}, {1, 1, 1}, 1).ok());
  table->Clear();
  EXPECT_EQ(table->size(), 0);
  ExpectNear(LookUp(*table, {1, 2, 3}), {0, 0, 0}, 0);
  std::vector<int64_t> touched;
  EXPECT_FALSE(table->StealTouched(&touched));
  EXPECT_TRUE(touched.empty());
}

TEST(StoreRegistry, AStoreLivesUntilItsLastOwnerAndNamesTheOpenOnes) {
  StoreRegistry registry;
  const std::vector<std::string> tables = {TableText("t", 1, std::string(kSgd) + kZeros)};
  std::shared_ptr<EmbeddingStore> store, joined;
  ASSERT_TRUE(registry.Open("a", tables, &store).ok());
  ASSERT_TRUE(registry.Open("a", tables, &joined).ok());
  EXPECT_EQ(store, joined);
  joined.reset();
  EXPECT_FALSE(registry.Open("a", {TableText("t", 2, std::string(kSgd) + kZeros)}, &joined).ok());
  EXPECT_NE(registry.Find("b", &joined).message().find("open are: a"), std::string::npos);
  const uint64_t incarnation = store->incarnation();
  registry.Close("a", incarnation, false);
  ASSERT_TRUE(registry.Find("a", &store).ok());
  registry.Close("a", incarnation, false);
  EXPECT_FALSE(registry.Find("a", &joined).ok());
  const std::weak_ptr<EmbeddingStore> watch = store;
  store.reset();
  EXPECT_TRUE(watch.expired());
}

TEST(StoreRegistry, ALateCloseOfAReleasedStoreSparesItsSuccessor) {
  StoreRegistry registry;
  const std::vector<std::string> tables = {TableText("t", 1, std::string(kSgd) + kZeros)};
  std::shared_ptr<EmbeddingStore> first, second;
  ASSERT_TRUE(registry.Open("a", tables, &first).ok());
  registry.Close("a", first->incarnation(), true);
  ASSERT_TRUE(registry.Open("a", tables, &second).ok());
  registry.Close("a", first->incarnation(), false);
  EXPECT_TRUE(registry.Find("a", &second).ok());
}

TEST(TableConfig, RefusesWhatItDoesNotKnow) {
  TableConfig config;
  for (const char* text : {"", "name=a", "name=a;dim=0", "name=../a;dim=1", "name=a;dim=1;colour=red",
                           "name=a;name=a;dim=1", "name=a;dim=1;optimizer.x=y", "name"}) {
    EXPECT_FALSE(TableConfig::Parse(text, &config).ok()) << text;
  }
}

}  // namespace
}  // namespace millrace
