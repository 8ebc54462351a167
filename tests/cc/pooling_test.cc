// Pooled lookup and its gradient against plain loops.
#include "ops/cc/embedding/pooling.h"

#include <cmath>

#include "tests/cc/test_tables.h"

namespace millrace {
namespace {

struct Ragged {
  std::vector<int64_t> values, row_splits;
};

PooledFeature Feature(EmbeddingTable* table, const Ragged& ids, bool mean) {
  return {"f",
          table,
          mean,
          ids.values.data(),
          static_cast<int64_t>(ids.values.size()),
          ids.row_splits.data(),
          static_cast<int64_t>(ids.row_splits.size()) - 1};
}

std::vector<float> Pooled(const PooledFeature& feature, const Executor& run = RunInline) {
  std::vector<float> pooled(feature.rows * feature.table->dim(), -99.0f);
  LookupPooled(feature, false, pooled.data(), run);
  return pooled;
}

std::unique_ptr<EmbeddingTable> CountingTable() {
  auto table = MakeTable(TableText("t", 2, std::string(kSgd) + kZeros));
  std::vector<int64_t> fids;
  std::vector<float> values;
  for (int64_t fid = 0; fid < 100; ++fid) {
    fids.push_back(fid);
    values.insert(values.end(), {static_cast<float>(fid), static_cast<float>(-fid)});
  }
  EXPECT_TRUE(table->Assign(fids.data(), values.data(), 100, 0, RunInline).ok());
  return table;
}

TEST(Pooling, SumsAndAveragesRowsAndGivesZerosForEmptyOnes) {
  const auto table = CountingTable();
  const Ragged ids{{1, 2, 2, 50, 999}, {0, 3, 3, 4, 5}};
  ExpectNear(Pooled(Feature(table.get(), ids, false)), {5, -5, 0, 0, 50, -50, 0, 0}, 0);
  ExpectNear(Pooled(Feature(table.get(), ids, true), RunOnFourThreads), {5 / 3.0, -5 / 3.0, 0, 0, 50, -50, 0, 0}, 1e-6);
}

TEST(Pooling, OneIdPerRowIsAPlainLookup) {
  const auto table = CountingTable();
  ExpectNear(Pooled(Feature(table.get(), {{7, 8}, {0, 1, 2}}, true)), {7, -7, 8, -8}, 0);
  // As many rows as ids, but not one each.
  ExpectNear(Pooled(Feature(table.get(), {{7, 8}, {0, 0, 2}}, false)), {0, 0, 15, -15}, 0);
}

TEST(Pooling, GradientsMergeOverFeaturesOfATable) {
  const auto table = MakeTable(TableText("t", 1, std::string(kSgd) + kZeros));
  const Ragged sums{{1, 2}, {0, 2}}, means{{1, 1, 3}, {0, 2, 2, 3}};
  const std::vector<float> sum_gradient = {1}, mean_gradient = {10, 100, 1000};
  const float rates[] = {1, 1};
  ASSERT_TRUE(ApplyPooledGradients({Feature(table.get(), sums, false), Feature(table.get(), means, true)},
                                   {sum_gradient.data(), mean_gradient.data()}, rates, 0, RunOnFourThreads)
                  .ok());
  ExpectNear(LookUp(*table, {1, 2, 3}), {-11, -1, -1000}, 0);
}

TEST(Pooling, ABadGradientInOneTableLeavesAllTablesAsTheyWere) {
  const auto good = MakeTable(TableText("good", 1, std::string(kSgd) + kZeros));
  const auto bad = MakeTable(TableText("bad", 1, std::string(kSgd) + kZeros));
  const Ragged ids{{1}, {0, 1}};
  const float one = 1, infinite = HUGE_VALF, rates[] = {1, 1};
  const Status status = ApplyPooledGradients({Feature(good.get(), ids, false), Feature(bad.get(), ids, false)},
                                             {&one, &infinite}, rates, 0, RunInline);
  EXPECT_NE(status.message().find("table 'bad'"), std::string::npos);
  EXPECT_EQ(good->size() + bad->size(), 0);
}

TEST(Pooling, BadRowSplitsAreNamed) {
  const auto table = CountingTable();
  const auto problem = [&](const Ragged& ids) { return CheckRowSplits(Feature(table.get(), ids, false)).message(); };
  EXPECT_EQ(problem({{1, 2}, {0, 1, 2}}), "");
  EXPECT_EQ(problem({{}, {0}}), "");
  EXPECT_NE(problem({{1, 2}, {}}).find("at least one"), std::string::npos);
  EXPECT_NE(problem({{1, 2}, {1, 2}}).find("start at 0"), std::string::npos);
  EXPECT_NE(problem({{1, 2}, {0, 2, 1, 2}}).find("must not fall, at row 1"), std::string::npos);
  EXPECT_NE(problem({{1, 2}, {0, 1}}).find("number of ids, 2, not 1"), std::string::npos);
}

}  // namespace
}  // namespace millrace
