// Where the parts of an entry lie, and what its segments do with them.
#include "ops/cc/embedding/rules/entry_layout.h"

#include <cmath>
#include <string>

#include "tests/cc/covers.h"
#include "tests/cc/test_tables.h"

namespace millrace {
namespace {

const RuleConfig kOnes{"ones", {}};
const RuleConfig kInt8{"int8", {{"range", 1}}};

TEST(EntryLayout, ATrainingEntryIsTheWeightsThenTheStateOfEachSegment) {
  const auto table = MakeTable(Config({Segment(1, kSgd, kOnes), Segment(2, Adagrad(0.5), kZeros),
                                       Segment(3, Adagrad(0.25), {"constant", {{"value", 7}}})}));
  const EntryLayout& layout = table->layout();
  EXPECT_EQ(layout.dim(), 6);
  EXPECT_EQ(layout.state_floats(), 5);
  EXPECT_EQ(layout.entry_bytes(), 4 * 11);
  EXPECT_EQ(layout.row_bytes(), 12 + 4 * 11);
  EXPECT_EQ(layout.shown_bytes(), 4 * 6);
  CreateAndLookUp(*table, {-3});
  const std::string row = RowOf(*table, -3);
  EXPECT_EQ(RowHeader::Fid(row.data()), -3);
  std::vector<float> floats(11);
  std::memcpy(floats.data(), RowHeader::EntryOf(row.data()), 44);
  ExpectNear(floats, {1, 0, 0, 7, 7, 7, 0.5, 0.5, 0.25, 0.25, 0.25}, 0);
}

TEST(EntryLayout, AServingEntryIsTheCodesOfEachSegment) {
  const auto table =
      MakeTable(Serving(Config({Segment(3, Adagrad(0.5), kZeros, {"fp16", {}}),
                                Segment(9, kSgd, kZeros, OneBit(0.1, true)), Segment(1, kSgd, kZeros, kInt8)})));
  const EntryLayout& layout = table->layout();
  EXPECT_EQ(layout.state_floats(), 0);
  EXPECT_EQ(layout.entry_bytes(), 6 + 2 + 1);
  EXPECT_EQ(layout.shown_bytes(), layout.entry_bytes());
  std::vector<float> values(13, 0.25f);
  ASSERT_TRUE(Assign(*table, {1}, values).ok());
  std::vector<double> expected(3, 0.25);
  expected.resize(12, 0.1);
  expected.push_back(0.25);
  ExpectNear(LookUp(*table, {1}), expected);
}

TEST(EntryLayout, EachSegmentStepsByItsOwnRuleAndRate) {
  const auto table = MakeTable(Config({Segment(1), Segment(2, Adagrad(0))}));
  ASSERT_TRUE(Update(*table, {1, 2}, {1, 2, -3, 10, 20, 30}, {{0.5f, 2}, 0, 0}).ok());
  ExpectNear(LookUp(*table, {1, 2}), {-0.5, -2, 2, -5, -2, -2});
  ASSERT_TRUE(Update(*table, {1}, {1, 2, -3}, {{0.5f, 2}, 0, 0}).ok());
  ExpectNear(LookUp(*table, {1}), {-1, -2 - 2 / std::sqrt(2.0), 2 + 2 / std::sqrt(2.0)});
}

TEST(EntryLayout, AQuantisedSegmentShowsItsCodesAndKeepsItsWeights) {
  const auto table = MakeTable(Config({Segment(1), Segment(1, kSgd, kZeros, kInt8)}));
  ASSERT_TRUE(Assign(*table, {1}, {0.3f, 0.3f}).ok());
  ExpectNear(LookUp(*table, {1, 2}), {0.3, 38 / 128.0, 0, 0});
  ASSERT_TRUE(Update(*table, {1}, {0.001f, 0.001f}, {{1, 1}, 0, 0}).ok());
  ExpectNear(RawWeights(*table, 1), {0.299, 0.299});  // the gradient went straight through
}

TEST(EntryLayout, AOneBitSegmentSharpensWithTheStep) {
  const auto table = MakeTable(Config({Segment(1, kSgd, kZeros, OneBit(1, false))}));
  ASSERT_TRUE(Assign(*table, {1}, {1}).ok());
  ExpectNear(LookUp(*table, {1}, {Missing::kZeros, 0}), {std::tanh(1.0)});
  ExpectNear(LookUp(*table, {1}, {Missing::kZeros, 200}), {std::tanh(std::sqrt(2.0))});
  ASSERT_TRUE(Update(*table, {1}, {-1}, {{1}, 0, 200}).ok());
  ExpectNear(RawWeights(*table, 1), {1 + std::sqrt(2.0) * (1 - std::pow(std::tanh(std::sqrt(2.0)), 2))});
}

TEST(EntryLayout, ASegmentCompensatesForTheWeightsThatAModelRead) {
  SegmentConfig compensating = Segment(1);
  compensating.delay_compensation = 0.5f;
  const auto table = MakeTable(Config({Segment(1), compensating}));
  ASSERT_TRUE(Assign(*table, {1, 2}, {3, 3, 3, 3}).ok());
  const std::vector<int64_t> knows = {1}, unknown = {2};
  const std::vector<float> gradients = {2, 2}, read = {1, 1}, rates = {1, 1};
  MergedGradients merged;
  ASSERT_TRUE(table
                  ->Merge({{{knows.data(), 1, nullptr}, 1, gradients.data(), nullptr, read.data()},
                           {{unknown.data(), 1, nullptr}, 1, gradients.data(), nullptr, nullptr}},
                          RunInline, &merged)
                  .ok());
  table->Apply(merged, {rates.data(), 0, 0}, RunInline);
  // g + lambda g^2 (w - w_read) = 2 + 0.5 * 4 * 2
  ExpectNear(LookUp(*table, {1, 2}), {1, -3, 1, 1}, 0);
}

COVERS("emb:O26")
TEST(EntryLayout, O26StochasticRoundingStaysWithinItsSegment) {
  SegmentConfig rounding = Segment(1);
  rounding.stochastic_rounding = true;
  const auto table = MakeTable(Config({Segment(1), rounding, Segment(1)}));
  constexpr int64_t kIds = 20000;
  ASSERT_TRUE(Update(*table, Sequence(kIds), std::vector<float>(3 * kIds, -1.0003f), {{1, 1, 1}, 0, 4}).ok());
  const std::vector<float> values = LookUp(*table, Sequence(kIds));
  int64_t up = 0;
  for (int64_t i = 0; i < kIds; ++i) {
    EXPECT_EQ(values[3 * i], 1.0003f);
    EXPECT_EQ(values[3 * i + 2], 1.0003f);
    EXPECT_TRUE(values[3 * i + 1] == 1 || values[3 * i + 1] == 1.0009765625f);
    up += values[3 * i + 1] != 1;
  }
  EXPECT_NEAR(static_cast<double>(up) / kIds, 0.3072, 0.015);
}

TEST(EntryLayout, ABadNumberNamesTableSegmentAndRule) {
  std::unique_ptr<EmbeddingTable> table;
  const Status status = EmbeddingTable::Create(Config({Segment(1), Segment(1, Adagrad(-1))}), &table);
  EXPECT_NE(
      status.message().find("table 't', segment 1: optimizer adagrad has 'initial_accumulator_value' out of bounds"),
      std::string::npos)
      << status.message();
}

}  // namespace
}  // namespace millrace
