// One table: lookup, updates, filter, expiry, touched keys.
#include "ops/cc/embedding/table/embedding_table.h"

#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "tests/cc/covers.h"
#include "tests/cc/fids.h"
#include "tests/cc/test_tables.h"

namespace millrace {
namespace {

constexpr uint32_t kDay = 86400;

int64_t InSlot(int slot, int64_t signature = 0) { return (static_cast<int64_t>(slot) << kSignatureBits) | signature; }

// Reading and writing.

COVERS("emb:H1")
TEST(EmbeddingTable, H1AddsToAssignedIdsAndAMissingIdReadsAsZeros) {
  const auto table = MakeTable(Config(1));
  ASSERT_TRUE(AssignAdd(*table, {0, 1}, {1, 1}).ok());
  ExpectNear(LookUp(*table, {0, 1, 2}), {1, 1, 0}, 0);
  EXPECT_EQ(table->size(), 2);
  EXPECT_EQ(Contains(*table, {0, 1, 2}), "110");
}

COVERS("emb:H2")
TEST(EmbeddingTable, H2AssignOverwritesAndOfEqualIdsTheLastWins) {
  const auto table = MakeTable(Config(1));
  ASSERT_TRUE(Assign(*table, {0, 1, 1}, {1, 1, 5}).ok());
  ExpectNear(LookUp(*table, {0, 1, 2}), {1, 5, 0}, 0);
  EXPECT_EQ(table->size(), 2);
}

COVERS("emb:H3")
TEST(EmbeddingTable, H3AnEntryHasWeightsStateAndTimeAndAMissingOneIsNotFound) {
  const auto table = MakeTable(Config(1, Adagrad(0.5)));
  ASSERT_TRUE(Assign(*table, {0, 1, 2}, {0.1f, 0.2f, 0.3f}, {77, false, false}).ok());
  const std::vector<int64_t> fids = {2, 3, 0};
  EntryRows rows;
  rows.row_bytes = table->layout().row_bytes();
  rows.bytes.resize(3 * rows.row_bytes);
  bool found[3];
  table->LookupEntries(fids.data(), 3, found, rows.bytes.data());
  EXPECT_TRUE(found[0] && !found[1] && found[2]);
  EXPECT_EQ(RowHeader::Fid(rows.at(0)), 2);
  EXPECT_EQ(RowHeader::Timestamp(rows.at(0)), 77u);
  const auto floats_of = [&](int64_t i) {
    const float* weights = EntryLayout::Weights(RowHeader::EntryOf(rows.at(i)));
    return std::vector<float>(weights, weights + 2);
  };
  ExpectNear(floats_of(0), {0.3, 0.5});
  ExpectNear(floats_of(2), {0.1, 0.5});
}

TEST(EmbeddingTable, LookupKeepsTheOrderOfIdsInBatchesOfAnySize) {
  const auto table = MakeTable(Config(2));
  const std::vector<int64_t> fids = Sequence(30000, -15000);
  std::vector<float> values;
  for (const int64_t fid : fids) values.insert(values.end(), {static_cast<float>(fid), static_cast<float>(2 * fid)});
  ASSERT_TRUE(Assign(*table, fids, values, {}, RunOnFourThreads).ok());
  std::mt19937 random(1);
  for (const size_t count : {0, 1, 511, 512, 8192, 8193, 40000}) {
    std::vector<int64_t> asked;
    std::vector<double> expected;
    for (size_t i = 0; i < count; ++i) {
      asked.push_back(static_cast<int64_t>(random() % 40000) - 20000);
      const double value = asked.back() >= -15000 && asked.back() < 15000 ? asked.back() : 0;
      expected.insert(expected.end(), {value, 2 * value});
    }
    for (const Executor& run : {Executor(RunInline), Executor(RunOnFourThreads), Executor(RunBackwards)}) {
      ExpectNear(LookUp(*table, asked, {}, run), expected, 0);
    }
  }
  EXPECT_EQ(table->size(), 30000);
}

TEST(EmbeddingTable, AnIdWithoutEntryShowsAsTheCallerWants) {
  const auto table = MakeTable(Config(2, kSgd, kUniform));
  const std::vector<float> first = LookUp(*table, {4, 4}, {Missing::kFirstVector, 0});
  EXPECT_NE(first[0], 0);
  EXPECT_EQ(table->size(), 0);
  EXPECT_EQ(CreateAndLookUp(*table, {4, 4}), first);
  EXPECT_EQ(table->size(), 1);
  EXPECT_EQ(LookUp(*table, {4, 4}), first);
}

TEST(EmbeddingTable, ATableWithAFilterCreatesAtUpdatesOnly) {
  const auto table = MakeTable(Filtered(Config(1, kSgd, {"ones", {}}), Sliding(300), 1));
  ExpectNear(CreateAndLookUp(*table, {4}), {1}, 0);
  EXPECT_EQ(table->size(), 0);
}

COVERS("emb:H37")
TEST(EmbeddingTable, H37ARandomIdIsZerosBeforeItsFirstWriteAndStartsAtItsFirstVector) {
  const auto table = MakeTable(Config(2, kSgd, kUniform));
  const std::vector<float> first = LookUp(*table, {4, 5}, {Missing::kFirstVector, 0});
  ExpectNear(LookUp(*table, {4, 5}), {0, 0, 0, 0}, 0);
  ASSERT_TRUE(AssignAdd(*table, {4}, {1, 2}).ok());
  ASSERT_TRUE(Update(*table, {5}, {-1, -2}).ok());
  ExpectNear(LookUp(*table, {4, 5}), {first[0] + 1.0, first[1] + 2.0, first[2] + 1.0, first[3] + 2.0});
}

COVERS("emb:H35")
TEST(EmbeddingTable, H35AFirstVectorDependsOnSeedTableAndIdAlone) {
  std::vector<int64_t> fids(2000);
  for (size_t i = 0; i < fids.size(); ++i) fids[i] = static_cast<int64_t>(i * i) << 20;
  const TableConfig config = Config(8, kSgd, kUniform);
  const auto a = MakeTable(config), b = MakeTable(config);
  const std::vector<float> values = CreateAndLookUp(*a, fids, RunOnFourThreads);
  CreateAndLookUp(*b, {fids.rbegin(), fids.rend()});
  EXPECT_EQ(values, LookUp(*b, fids));
  EXPECT_NE(values, CreateAndLookUp(*MakeTable(Named("u", config)), fids));
  TableConfig seeded = config;
  seeded.seed = 1;
  EXPECT_NE(values, CreateAndLookUp(*MakeTable(seeded), fids));
}

TEST(EmbeddingTable, AssignRefusesValuesThatAreNotFiniteAndChangesNothing) {
  const auto table = MakeTable(Named("movies", Config(2)));
  const Status status = Assign(*table, {5, 6, 7}, {1, 1, 1, NAN, INFINITY, 1});
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("table 'movies': the value of id 6"), std::string::npos) << status.message();
  EXPECT_EQ(table->size(), 0);
}

TEST(EmbeddingTable, AssignLeavesTheOptimizerStateOfAnEntryAsItIs) {
  const auto table = MakeTable(Config(1, Adagrad(0)));
  ASSERT_TRUE(Update(*table, {1}, {3}).ok());
  ASSERT_TRUE(Assign(*table, {1, 2}, {10, 10}).ok());
  ASSERT_TRUE(Update(*table, {1, 2}, {4, 4}).ok());
  ExpectNear(LookUp(*table, {1, 2}), {10 - 4 / 5.0, 9});  // norm 9 + 16, and 16 alone
}

TEST(EmbeddingTable, ATimestampIsTheNewestOfTheUpdates) {
  const auto table = MakeTable(Config(1));
  ASSERT_TRUE(Update(*table, {1}, {1}, {{1}, 200, 0}).ok());
  ASSERT_TRUE(Update(*table, {1, 2}, {1, 1}, {{1}, 100, 0}).ok());
  EXPECT_EQ(TimestampOf(*table, 1), 200u);
  EXPECT_EQ(TimestampOf(*table, 2), 100u);
  EXPECT_EQ(table->newest_timestamp(), 200u);
  ASSERT_TRUE(AssignAdd(*table, {1}, {1}, UINT32_MAX).ok());
  EXPECT_EQ(TimestampOf(*table, 1), UINT32_MAX);
  EXPECT_EQ(table->newest_timestamp(), UINT32_MAX);
}

COVERS("emb:H10")
TEST(EmbeddingTable, H10ClearForgetsAllAndReturnsTheMemory) {
  const auto table = MakeTable(Filtered(Config(1), Sliding(300), 1));
  const int64_t empty = table->Stats().memory_bytes;
  for (int sighting = 0; sighting < 2; ++sighting) {
    ASSERT_TRUE(Update(*table, Sequence(3000), std::vector<float>(3000, 1)).ok());
  }
  Erase(*table, {1});
  EXPECT_GT(table->size(), 0);
  table->Clear();
  EXPECT_EQ(table->size(), 0);
  EXPECT_EQ(table->Stats().memory_bytes, empty);
  ExpectNear(LookUp(*table, {1, 2, 3}), {0, 0, 0}, 0);
  EXPECT_TRUE(Touched(*table).empty());
  ASSERT_TRUE(Update(*table, {1}, {1}).ok());
  EXPECT_EQ(table->size(), 0);  // the filter counts anew
}

// 1 and 0 are true and false here; an unknown table is an error that says its name instead of -1.
COVERS("emb:H22")
TEST(EmbeddingTable, H22ReinitializeGivesFirstVectorsFreshStateAndSaysWhatWasThere) {
  const auto table = MakeTable(Config(1, Adagrad(0.5), kUniform));
  const std::vector<float> first = LookUp(*table, {1, 2, 3}, {Missing::kFirstVector, 0});
  ASSERT_TRUE(Update(*table, {2, 3}, {5, 5}).ok());
  Touched(*table);
  const std::vector<int64_t> fids = {1, 2, 3};
  bool existed[3];
  table->Reinitialize(fids.data(), 3, 99, existed);
  EXPECT_TRUE(!existed[0] && existed[1] && existed[2]);
  EXPECT_EQ(LookUp(*table, fids), first);
  EXPECT_EQ(TimestampOf(*table, 2), 99u);
  EXPECT_EQ(table->newest_timestamp(), 99u);
  EXPECT_EQ(Touched(*table), fids);
  const auto fresh = MakeTable(Config(1, Adagrad(0.5), kUniform));
  CreateAndLookUp(*fresh, {2});
  EXPECT_EQ(RowOf(*table, 2).substr(RowHeader::kBytes), RowOf(*fresh, 2).substr(RowHeader::kBytes));

  const auto zeros = MakeTable(Config(1));
  ASSERT_TRUE(Assign(*zeros, {2, 3}, {5, 5}).ok());
  zeros->Reinitialize(fids.data(), 3, 0, existed);
  ExpectNear(LookUp(*zeros, fids), {0, 0, 0}, 0);
}

TEST(EmbeddingTable, ErasedIdsAreGoneAndStartAnew) {
  const auto table = MakeTable(Config(1, Adagrad(0.5), kUniform));
  const std::vector<float> first = LookUp(*table, {1}, {Missing::kFirstVector, 0});
  ASSERT_TRUE(Update(*table, {1, 2}, {1, 1}).ok());
  EXPECT_EQ(Erase(*table, {1, 1, 3}), 1);
  EXPECT_EQ(Contains(*table, {1, 2, 3}), "010");
  EXPECT_EQ(CreateAndLookUp(*table, {1}), first);
}

TEST(EmbeddingTable, ChurnTakesNoMoreMemoryThanTheEntriesThatLive) {
  const auto table = MakeTable(Config(16));
  CreateAndLookUp(*table, Sequence(2000));
  const int64_t before = table->Stats().memory_bytes;
  for (int64_t round = 1; round < 50; ++round) {
    EXPECT_EQ(Erase(*table, Sequence(2000, 2000 * (round - 1))), 2000);
    CreateAndLookUp(*table, Sequence(2000, 2000 * round));
  }
  EXPECT_EQ(table->size(), 2000);
  EXPECT_LT(table->Stats().memory_bytes, 2 * before);
}

// Training.

COVERS("emb:H4")
TEST(EmbeddingTable, H4StepsAlongTheSumOfAnIdsGradients) {
  const auto table = MakeTable(Config(1));
  ASSERT_TRUE(Update(*table, {0, 0, 1}, {-1, -1, -1}, {{0.1f}, 0, 0}).ok());
  ExpectNear(LookUp(*table, {0, 1}), {0.2, 0.1});
}

COVERS("emb:H6")
TEST(EmbeddingTable, H6EveryDimStepsAlongItsSum) {
  const auto table = MakeTable(Config(10));
  ASSERT_TRUE(Update(*table, {0, 1, 0, 1, 0}, std::vector<float>(50, -1), {{0.1f}, 0, 0}).ok());
  std::vector<double> expected(10, 0.3);
  expected.resize(20, 0.2);
  ExpectNear(LookUp(*table, {0, 1}), expected);
}

COVERS("emb:H7")
TEST(EmbeddingTable, H7TheOrderOfIdsDoesNotMatter) {
  const auto table = MakeTable(Config(1));
  ASSERT_TRUE(Update(*table, {1, 0, 1}, {-1, -1, -1}, {{0.1f}, 0, 0}).ok());
  ExpectNear(LookUp(*table, {0, 1}), {0.1, 0.2});
  const auto adagrad = MakeTable(Config(1, Adagrad(0)));
  ASSERT_TRUE(Update(*adagrad, {1, 0, 1}, {-1, -1, -1}, {{0.1f}, 0, 0}).ok());
  ExpectNear(LookUp(*adagrad, {0, 1}), {0.1, 0.1});  // one step along the sum, not two
}

TEST(EmbeddingTable, ResultsDoNotDependOnThreads) {
  std::mt19937 random(3);
  std::vector<int64_t> fids(20000);
  std::vector<float> gradients(fids.size() * 4);
  for (int64_t& fid : fids) fid = random() % 3000;
  for (float& value : gradients) value = static_cast<float>(random() % 1000) / 1000 - 0.5f;
  const auto expected = MakeTable(Config(4, Adagrad(0.1), kUniform));
  ASSERT_TRUE(Update(*expected, fids, gradients, {{0.1f}, 5, 0}).ok());
  for (const Executor& run : {Executor(RunOnFourThreads), Executor(RunBackwards)}) {
    const auto table = MakeTable(Config(4, Adagrad(0.1), kUniform));
    ASSERT_TRUE(Update(*table, fids, gradients, {{0.1f}, 5, 0}, run).ok());
    EXPECT_EQ(Content(*table), Content(*expected));
  }
}

TEST(EmbeddingTable, AGradientThatIsNotFiniteIsRefusedOrLeftOutOrClipped) {
  TableConfig config = Named("movies", Config(1));
  const auto refuses = MakeTable(config);
  const Status status = Update(*refuses, {5, 6, 7}, {1, NAN, INFINITY}, {}, RunOnFourThreads);
  EXPECT_NE(status.message().find("table 'movies': the gradient of id 6"), std::string::npos) << status.message();
  EXPECT_EQ(refuses->size(), 0);

  config.non_finite = NonFinite::kSkip;
  const auto skips = MakeTable(config);
  ASSERT_TRUE(Update(*skips, {5, 6, 7}, {1, NAN, INFINITY}).ok());
  EXPECT_EQ(Contains(*skips, {5, 6, 7}), "100");
  EXPECT_EQ(skips->Stats().not_finite, 2);
  EXPECT_EQ(Touched(*skips), std::vector<int64_t>{5});

  config.non_finite = NonFinite::kClip;
  config.gradient_limit = 10;
  const auto clips = MakeTable(config);
  ASSERT_TRUE(Update(*clips, {5, 6, 7}, {1, NAN, INFINITY}).ok());
  ExpectNear(LookUp(*clips, {5, 6, 7}), {-1, 0, -10}, 0);
  EXPECT_EQ(clips->Stats().not_finite, 2);
}

TEST(EmbeddingTable, ATableThatServesOrHasNoOptimizerTakesNoGradients) {
  EXPECT_EQ(Update(*MakeTable(Config(1, {"none", {}})), {5}, {1}).code(), Code::kFailedPrecondition);
  EXPECT_EQ(Update(*MakeTable(Serving(Config(1))), {5}, {1}).code(), Code::kFailedPrecondition);
}

// The occurrence filter.

COVERS("emb:H8")
TEST(EmbeddingTable, H8AnIdGetsItsEntryAtTheFirstSightingBeyondTheThreshold) {
  const auto table = MakeTable(Filtered(Config(1), Sliding(300), 3));
  const auto run = [&](const std::vector<int64_t>& fids) {
    ASSERT_TRUE(Update(*table, fids, std::vector<float>(fids.size(), -1), {{0.1f}, 0, 0}).ok());
  };
  for (const std::vector<double>& expected : std::vector<std::vector<double>>{{0, 0}, {0.1, 0}, {0.3, 0}, {0.5, 0.1}}) {
    for (const int64_t fid : {0, 0, 1}) run({fid});  // the vector's sightings come one by one
    ExpectNear(LookUp(*table, {0, 1}), expected);
  }
  table->Clear();
  for (const std::vector<double>& expected : std::vector<std::vector<double>>{{0, 0}, {0, 0}, {0.2, 0}, {0.4, 0.1}}) {
    run({0, 0, 1});  // merged, the filter is asked once with both sightings
    ExpectNear(LookUp(*table, {0, 1}), expected);
  }
  EXPECT_EQ(table->Stats().admitted, 4u);
}

COVERS("emb:F3")
TEST(EmbeddingTable, F3OnlyAdmittedSightingsTakeASTep) {
  const auto table = MakeTable(Filtered(Config(1), Sliding(100), 3));
  for (const std::vector<double>& expected : std::vector<std::vector<double>>{{0, 0}, {1, 0}, {3, 0}, {5, 1}}) {
    for (const int64_t fid : {int64_t{1}, int64_t{3} << 17, int64_t{1}}) ASSERT_TRUE(Update(*table, {fid}, {-1}).ok());
    ExpectNear(LookUp(*table, {1, int64_t{3} << 17}), expected, 0);
  }
}

TEST(EmbeddingTable, TheFilterIsNotAskedAboutIdsThatHaveAnEntry) {
  const RuleConfig probabilistic{"probabilistic", {{"equal_probability", 0}, {"seed", 0}}};
  for (const auto& [filter, threshold] : {std::pair(probabilistic, 1 << 20), std::pair(Sliding(300), 255)}) {
    const auto table = MakeTable(Filtered(Config(1), filter, threshold));
    ASSERT_TRUE(Assign(*table, {1}, {0}).ok());  // an import does not ask
    for (int i = 0; i < 200; ++i) ASSERT_TRUE(Update(*table, {1, 2}, {-1, -1}).ok());
    ExpectNear(LookUp(*table, {1, 2}), {200, 0}, 0);
    EXPECT_EQ(table->Stats().rejected, 200u);
  }
}

COVERS("emb:F10")
TEST(EmbeddingTable, F10AThresholdOf40AdmitsTheSighting41) {
  const auto table = MakeTable(Filtered(Config(1), Sliding(300), 40));
  for (int sighting = 1; sighting <= 40; ++sighting) ASSERT_TRUE(Update(*table, {7}, {-1}).ok());
  EXPECT_EQ(Contains(*table, {7}), "0");
  ASSERT_TRUE(Update(*table, {7}, {-1}).ok());
  ExpectNear(LookUp(*table, {7}), {1}, 0);
}

TEST(EmbeddingTable, ASlotHasItsOwnThreshold) {
  TableConfig config = Filtered(Config(1), Sliding(300), 1);
  config.thresholds.by_slot = {{2, 0}};
  const auto table = MakeTable(config);
  ASSERT_TRUE(Update(*table, {InSlot(1), InSlot(2)}, {1, 1}).ok());
  EXPECT_EQ(Contains(*table, {InSlot(1), InSlot(2)}), "01");
}

TEST(EmbeddingTable, AssignAsksTheFilterIfToldSo) {
  const auto table = MakeTable(Filtered(Config(1), Sliding(300), 1));
  ASSERT_TRUE(Assign(*table, {1}, {5}, {0, false, true}).ok());
  EXPECT_EQ(table->size(), 0);
  ASSERT_TRUE(Assign(*table, {1}, {5}, {0, false, true}).ok());
  ASSERT_TRUE(Assign(*table, {1}, {6}, {0, false, true}).ok());
  ExpectNear(LookUp(*table, {1}), {6}, 0);
}

// Expiry.

COVERS("emb:H11")
TEST(EmbeddingTable, H11EvictRemovesWhatIsOlderThanItsSlotAllows) {
  TableConfig config = Config(1);
  config.expire_days = 14;
  config.slot_expire_days = {{0, 0}, {1, 5}, {2, 6}};
  const auto table = MakeTable(config);
  const std::vector<int64_t> fids = {InSlot(1, 7), InSlot(2, 7), InSlot(3, 7)};
  ASSERT_TRUE(Update(*table, fids, {1, 1, 1}, {{1}, 1234, 0}).ok());
  Touched(*table);
  EXPECT_EQ(table->Evict(1234 + 5 * kDay - 1), 0);
  EXPECT_EQ(table->Evict(1234 + 5 * kDay + 60), 1);
  EXPECT_EQ(Contains(*table, fids), "011");
  EXPECT_EQ(Touched(*table), std::vector<int64_t>{fids[0]});
  EXPECT_EQ(table->Evict(1234 + 14 * kDay), 2);
}

TEST(EmbeddingTable, AnEntryExpiresAtItsAgeToTheSecond) {
  TableConfig config = Config(1);
  config.expire_days = 0.5;
  const auto table = MakeTable(config);
  ASSERT_TRUE(Assign(*table, {1, 2}, {1, 1}, {1000, false, false}).ok());
  EXPECT_EQ(table->Evict(1000 + kDay / 2 - 1), 0);
  EXPECT_EQ(table->Evict(900), 0);  // a watermark before the entries
  ASSERT_TRUE(Assign(*table, {2}, {1}, {1001, false, false}).ok());
  EXPECT_EQ(table->Evict(1000 + kDay / 2), 1);
  EXPECT_EQ(Contains(*table, {1, 2}), "01");
}

TEST(EmbeddingTable, EvictReachesAllEntriesOfALargeShard) {
  const auto table = MakeTable(Config(1));
  const std::vector<int64_t> fids = FidsOfLockShard(9, 10000);
  CreateAndLookUp(*table, fids);
  ASSERT_TRUE(Assign(*table, {fids[4095], fids[9999]}, {1, 1}, {UINT32_MAX, false, false}).ok());
  EXPECT_EQ(table->Evict(UINT32_MAX), 9998);
  EXPECT_EQ(table->size(), 2);
}

// Serving.

COVERS("emb:H21")
TEST(EmbeddingTable, H21AServingTableMaySkipZeros) {
  TableConfig config = Serving(Config(2));
  config.skip_zero = true;
  const auto table = MakeTable(config);
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < 10; ++t) {
    threads.emplace_back([&, t] {
      for (int64_t fid = 300 * t; fid < 300 * (t + 1); ++fid) {
        ASSERT_TRUE(Assign(*table, {fid}, {static_cast<float>(fid % 2), 0}).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(table->size(), 1500);
  for (int64_t fid = 0; fid < 3000; ++fid) EXPECT_EQ(Contains(*table, {fid}), fid % 2 == 1 ? "1" : "0");
}

TEST(EmbeddingTable, AssigningZerosRemovesAnEntryAndEqualIdsTakeEffectInOrder) {
  TableConfig config = Serving(Config(1));
  config.skip_zero = true;
  const auto table = MakeTable(config);
  ASSERT_TRUE(Assign(*table, {1, 2, 3, 4}, {1, 1, 1, 1}).ok());
  ASSERT_TRUE(Assign(*table, {1, 2, 2, 3, 3, 5, 5}, {0, 0, 2, 0, 0, 5, 0}).ok());
  EXPECT_EQ(Contains(*table, {1, 2, 3, 4, 5}), "01010");
  ExpectNear(LookUp(*table, {1, 2, 3, 4, 5}), {0, 2, 0, 1, 0}, 0);
  ASSERT_TRUE(Assign(*table, {6, 7, 8}, {6, 7, 8}).ok());  // into the places that became free
  ExpectNear(LookUp(*table, {2, 4, 6, 7, 8}), {2, 1, 6, 7, 8}, 0);
  EXPECT_EQ(table->size(), 5);
}

TEST(EmbeddingTable, AServingTableAddsToDecodedWeightsAndStartsFromTheFirstVector) {
  const auto table = MakeTable(Serving(Config({Segment(2, kSgd, {"ones", {}}, {"fp16", {}})})));
  ASSERT_TRUE(AssignAdd(*table, {1}, {0.5f, 1}, 9).ok());
  ASSERT_TRUE(AssignAdd(*table, {1}, {1, 1}, 10).ok());
  ExpectNear(LookUp(*table, {1}), {2.5, 3}, 0);
  EXPECT_EQ(TimestampOf(*table, 1), 10u);
  EXPECT_EQ(table->layout().entry_bytes(), 4);
}

// Touched keys.

TEST(EmbeddingTable, TouchedKeysAreUpdatedReinitializedOrErasedOnes) {
  const auto table = MakeTable(Config(1));
  ASSERT_TRUE(Assign(*table, {1}, {1}).ok());
  CreateAndLookUp(*table, {8});
  EXPECT_TRUE(Touched(*table).empty());
  ASSERT_TRUE(Update(*table, {3, 2, 3}, {1, 1, 1}).ok());
  ASSERT_TRUE(Update(*table, {3}, {1}).ok());
  EXPECT_EQ(Erase(*table, {2, 2, 8, 1000}), 2);
  ASSERT_TRUE(Update(*table, {2}, {1}).ok());
  EXPECT_EQ(Touched(*table), (std::vector<int64_t>{2, 3, 8}));
  EXPECT_TRUE(Touched(*table).empty());
}

TEST(EmbeddingTable, StolenKeysCanBePutBack) {
  const auto table = MakeTable(Config(1));
  ASSERT_TRUE(Update(*table, {1, 2}, {1, 1}).ok());
  Erase(*table, {2});
  const std::vector<int64_t> stolen = Touched(*table);
  EXPECT_EQ(stolen, (std::vector<int64_t>{1, 2}));
  ASSERT_TRUE(Update(*table, {3}, {1}).ok());
  for (int i = 0; i < 2; ++i) table->RestoreTouched(stolen.data(), stolen.size());
  EXPECT_EQ(Touched(*table), (std::vector<int64_t>{1, 2, 3}));
}

COVERS("emb:L12")
TEST(EmbeddingTable, L12AThousandTouchedKeysAreAllStolen) {
  const auto table = MakeTable(Config(1));
  ASSERT_TRUE(Update(*table, Sequence(1000), std::vector<float>(1000, 1)).ok());
  EXPECT_EQ(Touched(*table), Sequence(1000));
}

TEST(EmbeddingTable, AShardWithTooManyTouchedKeysForgetsThemSaysSoOnceAndStartsAnew) {
  const auto table = MakeTable(Config(1));
  const std::vector<int64_t> fids = FidsOfLockShard(3, LockShard::kMaxTouched + 1);
  const std::vector<int64_t> others = FidsOfLockShard(4, 5);
  ASSERT_TRUE(Update(*table, fids, std::vector<float>(fids.size(), 1)).ok());
  ASSERT_TRUE(Update(*table, others, std::vector<float>(5, 1)).ok());
  std::vector<int64_t> stolen;
  EXPECT_TRUE(table->StealTouched(&stolen));
  EXPECT_EQ(std::set<int64_t>(stolen.begin(), stolen.end()), std::set<int64_t>(others.begin(), others.end()));
  ASSERT_TRUE(Update(*table, {fids[0], fids[9]}, {1, 1}).ok());
  std::vector<int64_t> again = {fids[0], fids[9]};
  std::sort(again.begin(), again.end());
  EXPECT_EQ(Touched(*table), again);
}

TEST(EmbeddingTable, KeysThatAreTouchedAgainAndAgainTakeOnePlace) {
  const auto table = MakeTable(Config(1));
  const std::vector<int64_t> fids = FidsOfLockShard(3, LockShard::kMaxTouched / 2);
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(Update(*table, fids, std::vector<float>(fids.size(), 1)).ok());
  }
  EXPECT_EQ(Touched(*table).size(), fids.size());
}

TEST(EmbeddingTable, TenThreadsTouchKeysAndOverflowIsSeenOncePerSteal) {
  const auto table = MakeTable(Config(1));
  constexpr int64_t kIds = 8000;
  const std::vector<int64_t> fids = FidsOfLockShard(3, 10 * kIds);
  for (int steal = 0; steal < 2; ++steal) {
    std::vector<std::thread> threads;
    for (int64_t t = 0; t < 10; ++t) {
      threads.emplace_back([&, t] {
        const std::vector<int64_t> own(fids.begin() + t * kIds, fids.begin() + (t + 1) * kIds);
        ASSERT_TRUE(Update(*table, own, std::vector<float>(kIds, 1)).ok());
      });
    }
    for (std::thread& thread : threads) thread.join();
    std::vector<int64_t> stolen;
    EXPECT_TRUE(table->StealTouched(&stolen));
    EXPECT_FALSE(table->StealTouched(&stolen));
    EXPECT_TRUE(stolen.empty());
  }
}

// Walks and imports.

COVERS("emb:H19")
TEST(EmbeddingTable, H19AWalkGoesOnWhereItStopped) {
  const auto table = MakeTable(Config(1));
  CreateAndLookUp(*table, {1, 2});
  std::multiset<int64_t> seen;
  WalkPosition position;
  while (position.shard < kLockShards) {
    EntryRows rows;
    table->Walk(kLockShards, 1, &position, &rows);
    for (int64_t i = 0; i < rows.size(); ++i) seen.insert(RowHeader::Fid(rows.at(i)));
  }
  EXPECT_EQ(seen, (std::multiset<int64_t>{1, 2}));
}

COVERS("emb:H20")
TEST(EmbeddingTable, H20WalksOfDisjointShardsSeeAllEntriesOnce) {
  const auto table = MakeTable(Config(1));
  CreateAndLookUp(*table, Sequence(100));
  std::multiset<int64_t> seen;
  for (int part = 0; part < 10; ++part) {
    WalkPosition position{part * 7, 0};
    const int end = std::min(kLockShards, (part + 1) * 7);
    while (position.shard < end) {
      EntryRows rows;
      table->Walk(end, 2, &position, &rows);
      for (int64_t i = 0; i < rows.size(); ++i) seen.insert(RowHeader::Fid(rows.at(i)));
    }
  }
  const std::vector<int64_t> expected = Sequence(100);
  EXPECT_EQ(seen, std::multiset<int64_t>(expected.begin(), expected.end()));
}

TEST(EmbeddingTable, ImportedEntriesAreWholeAndOverwriteWhatIsThere) {
  const auto source = MakeTable(Config(2, Adagrad(0.1), kUniform)), target = MakeTable(Config(2, Adagrad(0.1)));
  ASSERT_TRUE(Update(*source, Sequence(5000), std::vector<float>(10000, 1), {{0.1f}, 55, 0}).ok());
  CreateAndLookUp(*target, Sequence(100, 4950));
  WalkPosition position;
  EntryRows rows;
  source->Walk(kLockShards, INT64_MAX, &position, &rows);
  target->Import(rows.bytes.data(), rows.size(), RunOnFourThreads);
  EXPECT_EQ(target->newest_timestamp(), 55u);
  EXPECT_EQ(target->size(), 5050);
  Erase(*target, Sequence(50, 5000));
  EXPECT_EQ(Content(*target), Content(*source));
}

}  // namespace
}  // namespace millrace
