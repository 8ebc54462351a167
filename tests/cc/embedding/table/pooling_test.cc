// Pooled lookup and its gradient against plain loops.
#include "ops/cc/embedding/table/pooling.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <random>

#include "tests/cc/covers.h"
#include "tests/cc/test_tables.h"

namespace millrace {
namespace {

struct Ragged {
  std::vector<int64_t> values, row_splits;
};

PooledFeature Feature(EmbeddingTable* table, const Ragged& ids, Combiner combiner, int64_t max_length = 0) {
  return {"f",
          table,
          combiner,
          max_length,
          ids.values.data(),
          static_cast<int64_t>(ids.values.size()),
          ids.row_splits.data(),
          static_cast<int64_t>(ids.row_splits.size()) - 1};
}

std::vector<float> Pooled(const PooledFeature& feature, const LookupOptions& options = {},
                          const Executor& run = RunInline) {
  std::vector<float> pooled(feature.rows * feature.row_floats(), -99.0f);
  LookupPooled({feature}, options, {pooled.data()}, run);
  return pooled;
}

// Ids 0, 1, ... with these rows.
std::unique_ptr<EmbeddingTable> TableWith(int dim, const std::vector<float>& rows) {
  auto table = MakeTable(Config(dim));
  EXPECT_TRUE(Assign(*table, Sequence(rows.size() / dim), rows).ok());
  return table;
}

std::unique_ptr<EmbeddingTable> CountingTable() {
  std::vector<float> rows;
  for (int fid = 0; fid < 100; ++fid) rows.insert(rows.end(), {static_cast<float>(fid), static_cast<float>(-fid)});
  return TableWith(2, rows);
}

Status ApplyTo(const std::vector<PooledFeature>& features, const std::vector<const float*>& gradients,
               const Executor& run = RunInline) {
  static const float rates[] = {1, 1};
  return ApplyPooledGradients(features, gradients, std::vector<UpdateOptions>(features.size(), {rates, 7, 0}), run);
}

COVERS("emb:L1")
TEST(Pooling, L1SumsRows) {
  const auto table = TableWith(1, {1, 2, 3});
  ExpectNear(Pooled(Feature(table.get(), {{0, 1, 2}, {0, 1, 3}}, Combiner::kSum)), {1, 5}, 0);
}

COVERS("emb:L2")
TEST(Pooling, L2FirstNPadsShortRowsAndCutsLongOnes) {
  const auto table = TableWith(1, {1, 2, 3, 4, 5, 6});
  const Ragged ids{{0, 1, 2, 3, 4, 5}, {0, 1, 3, 6}};
  ExpectNear(Pooled(Feature(table.get(), ids, Combiner::kFirstN, 2)), {1, 0, 2, 3, 4, 5}, 0);
}

// Slices are columns of a row.
COVERS("emb:L3")
TEST(Pooling, L3SumsEveryDimAndGivesZerosForAnEmptyRow) {
  const auto table = TableWith(2, {1, 2, 2, 3, 3, 5});
  ExpectNear(Pooled(Feature(table.get(), {{0, 1, 2}, {0, 1, 1, 3}}, Combiner::kSum)), {1, 2, 0, 0, 5, 8}, 0);
}

COVERS("emb:L4")
TEST(Pooling, L4FirstNKeepsEveryDimOfTheFirstIds) {
  const auto table = TableWith(2, {1, 2, 2, 3, 3, 5, 10, 11});
  const Ragged ids{{0, 1, 2, 3}, {0, 1, 1, 4}};
  ExpectNear(Pooled(Feature(table.get(), ids, Combiner::kFirstN, 2)), {1, 2, 0, 0, 0, 0, 0, 0, 2, 3, 3, 5}, 0);
}

COVERS("emb:L7")
TEST(Pooling, L7TheMeanOfAnEmptyRowIsZerosAndSoIsItsGradient) {
  const auto table = CountingTable();
  const Ragged ids{{1, 2, 2, 50, 999}, {0, 3, 3, 4, 5}};
  const PooledFeature feature = Feature(table.get(), ids, Combiner::kMean);
  ExpectNear(Pooled(feature, {}, RunOnFourThreads), {5 / 3.0, -5 / 3.0, 0, 0, 50, -50, 0, 0});
  const std::vector<float> gradients = {3, 6, NAN, NAN, 1, 1, 0, 0};
  ASSERT_TRUE(ApplyTo({feature}, {gradients.data()}).ok());
  ExpectNear(LookUp(*table, {1, 2, 50}), {0, -3, 0, -6, 49, -51});
}

TEST(Pooling, OneIdPerRowIsAPlainLookup) {
  const auto table = CountingTable();
  for (const Combiner combiner : {Combiner::kSum, Combiner::kMean, Combiner::kFirstN}) {
    ExpectNear(Pooled(Feature(table.get(), {{7, 8}, {0, 1, 2}}, combiner, 1)), {7, -7, 8, -8}, 0);
  }
  // As many rows as ids, but not one each.
  ExpectNear(Pooled(Feature(table.get(), {{7, 8}, {0, 0, 2}}, Combiner::kSum)), {0, 0, 15, -15}, 0);
}

TEST(Pooling, IdsWithoutEntryAddNothingAndFirstNLeavesTheirPlace) {
  const auto table = CountingTable();
  const Ragged ids{{999, 3, 998, 4}, {0, 4}};
  ExpectNear(Pooled(Feature(table.get(), ids, Combiner::kSum)), {7, -7}, 0);
  ExpectNear(Pooled(Feature(table.get(), ids, Combiner::kFirstN, 4)), {0, 0, 3, -3, 0, 0, 4, -4}, 0);
  EXPECT_EQ(table->size(), 100);
}

TEST(Pooling, AgreesWithPlainLoopsWhateverTheRowsAndThreads) {
  const auto table = CountingTable();
  std::mt19937 random(2);
  for (const int longest : {1, 20, 9000}) {
    Ragged ids{{}, {0}};
    for (int r = 0; r < 30000 / longest + 2; ++r) {
      const auto length = r == 1 ? 0 : static_cast<int64_t>(random() % (longest + 1));
      for (int64_t i = 0; i < length; ++i) ids.values.push_back(random() % 120);
      ids.row_splits.push_back(ids.row_splits.back() + length);
    }
    std::vector<double> sums, means;
    for (size_t r = 0; r + 1 < ids.row_splits.size(); ++r) {
      double sum = 0;
      for (int64_t i = ids.row_splits[r]; i < ids.row_splits[r + 1]; ++i)
        sum += ids.values[i] < 100 ? ids.values[i] : 0;
      const double length = std::max<double>(1, ids.row_splits[r + 1] - ids.row_splits[r]);
      sums.insert(sums.end(), {sum, -sum});
      means.insert(means.end(), {sum / length, -sum / length});
    }
    for (const Executor& run : {Executor(RunInline), Executor(RunOnFourThreads), Executor(RunBackwards)}) {
      ExpectNear(Pooled(Feature(table.get(), ids, Combiner::kSum), {}, run), sums, 0);
      ExpectNear(Pooled(Feature(table.get(), ids, Combiner::kMean), {}, run), means, 1e-4);
    }
  }
}

TEST(Pooling, ALookupThatCreatesGivesAllIdsOfAllFeaturesTheirEntry) {
  const auto a = MakeTable(Named("a", Config(2, kSgd, kUniform))), b = MakeTable(Named("b", Config(1)));
  const Ragged ids{{1, 2, 1, 3}, {0, 2, 4}}, others{{9}, {0, 1, 1}};
  std::vector<float> of_a(2 * 2 * 1), of_b(2);
  LookupPooled({Feature(a.get(), ids, Combiner::kFirstN, 1), Feature(b.get(), others, Combiner::kSum)},
               {Missing::kCreate, 0}, {of_a.data(), of_b.data()}, RunOnFourThreads);
  EXPECT_EQ(a->size(), 3);
  EXPECT_EQ(b->size(), 1);
  const std::vector<float> rows = LookUp(*a, {1, 1});
  EXPECT_EQ(of_a, rows);
}

TEST(Pooling, GradientsMergeOverFeaturesOfATable) {
  const auto table = MakeTable(Config(1));
  const Ragged sums{{1, 2}, {0, 2}}, means{{1, 1, 3}, {0, 2, 2, 3}};
  const std::vector<float> sum_gradient = {1}, mean_gradient = {10, 100, 1000};
  ASSERT_TRUE(ApplyTo({Feature(table.get(), sums, Combiner::kSum), Feature(table.get(), means, Combiner::kMean)},
                      {sum_gradient.data(), mean_gradient.data()}, RunOnFourThreads)
                  .ok());
  ExpectNear(LookUp(*table, {1, 2, 3}), {-11, -1, -1000}, 0);
  EXPECT_EQ(TimestampOf(*table, 1), 7u);
  const auto adagrad = MakeTable(Config(1, Adagrad(0)));
  const float one = 1;
  ASSERT_TRUE(ApplyTo({Feature(adagrad.get(), {{4}, {0, 1}}, Combiner::kSum),
                       Feature(adagrad.get(), {{4}, {0, 1}}, Combiner::kMean)},
                      {&one, &one})
                  .ok());
  ExpectNear(LookUp(*adagrad, {4}), {-1});  // one step along the sum, not two
}

TEST(Pooling, FirstNPassesNoGradientToIdsBeyondN) {
  const auto table = MakeTable(Config(2));
  const Ragged ids{{5, 6, 7, 5, 8}, {0, 3, 3, 5}};
  const std::vector<float> gradients = {1, 2, 3, 4, 9, 9, 9, 9, 10, 20, 30, 40};
  ASSERT_TRUE(ApplyTo({Feature(table.get(), ids, Combiner::kFirstN, 2)}, {gradients.data()}).ok());
  ExpectNear(LookUp(*table, {5, 6, 8}), {-11, -22, -3, -4, -30, -40}, 0);
  EXPECT_EQ(Contains(*table, {5, 6, 7, 8}), "1101");
}

TEST(Pooling, ABadGradientInOneTableLeavesAllTablesAsTheyWere) {
  const auto good = MakeTable(Named("good", Config(1))), bad = MakeTable(Named("bad", Config(1)));
  const Ragged ids{{1}, {0, 1}};
  const float one = 1, infinite = HUGE_VALF;
  const Status status =
      ApplyTo({Feature(good.get(), ids, Combiner::kSum), Feature(bad.get(), ids, Combiner::kSum)}, {&one, &infinite});
  EXPECT_NE(status.message().find("table 'bad'"), std::string::npos) << status.message();
  EXPECT_EQ(good->size() + bad->size(), 0);
}

TEST(Pooling, BadRowSplitsAreNamed) {
  const auto table = CountingTable();
  const auto problem = [&](const Ragged& ids) {
    return CheckRowSplits(Feature(table.get(), ids, Combiner::kSum)).message();
  };
  EXPECT_EQ(problem({{1, 2}, {0, 1, 2}}), "");
  EXPECT_EQ(problem({{}, {0}}), "");
  EXPECT_NE(problem({{1, 2}, {}}).find("at least one"), std::string::npos);
  EXPECT_NE(problem({{1, 2}, {1, 2}}).find("start at 0"), std::string::npos);
  EXPECT_NE(problem({{1, 2}, {0, 2, 1, 2}}).find("must not fall, at row 1"), std::string::npos);
  EXPECT_NE(problem({{1, 2}, {0, 1}}).find("number of ids, 2, not 1"), std::string::npos);
}

TEST(Pooling, MoreRowsOfGradientsThanCanBeNumberedAreRefused) {
  const auto table = CountingTable();
  Ragged ids{{}, std::vector<int64_t>(1001, 0)};
  EXPECT_TRUE(CheckRowSplits(Feature(table.get(), ids, Combiner::kFirstN, 4'000'000)).ok());
  const Status refused = CheckRowSplits(Feature(table.get(), ids, Combiner::kFirstN, 5'000'000));
  EXPECT_NE(refused.message().find("must not have more than 858 rows"), std::string::npos) << refused.message();
}

}  // namespace
}  // namespace millrace
