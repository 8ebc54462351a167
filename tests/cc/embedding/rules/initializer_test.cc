// First vectors of new entries.
#include "ops/cc/embedding/rules/initializer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/cc/covers.h"

namespace millrace {
namespace {

const RuleConfig kUniform{"random_uniform", {{"minval", -0.05}, {"maxval", 0.05}}};

Initializer MakeRule(const RuleConfig& rule, uint64_t seed = 0, const std::string& table = "t") {
  Initializer initializer;
  const Status made = Initializer::Make("segment 0: initializer", rule, seed, table, &initializer);
  EXPECT_TRUE(made.ok()) << made.message();
  return initializer;
}

std::vector<float> Vector(const Initializer& initializer, int64_t fid, int dim, int first_dim = 0) {
  std::vector<float> weights(dim, 99.0f);
  initializer.Fill(fid, first_dim, weights.data(), dim);
  return weights;
}

TEST(Initializer, FixedValues) {
  EXPECT_EQ(Vector(MakeRule({"zeros", {}}), 1, 3), (std::vector<float>{0, 0, 0}));
  EXPECT_EQ(Vector(MakeRule({"ones", {}}), 1, 3), (std::vector<float>{1, 1, 1}));
  EXPECT_EQ(Vector(MakeRule({"constant", {{"value", -2.5}}}), 1, 2), (std::vector<float>{-2.5, -2.5}));
  EXPECT_EQ(Vector(MakeRule({"random_uniform", {{"minval", 3}, {"maxval", 3}}}), 1, 2), (std::vector<float>{3, 3}));
}

TEST(Initializer, SegmentsFollowOneAnother) {
  std::vector<float> weights(3);
  MakeRule({"constant", {{"value", 3}}}).Fill(1, 0, weights.data(), 1);
  MakeRule({"constant", {{"value", 4}}}).Fill(1, 1, weights.data() + 1, 2);
  EXPECT_EQ(weights, (std::vector<float>{3, 4, 4}));
}

// The oracle in tests/reference gives these.
TEST(Initializer, VectorsStayTheSameFromReleaseToRelease) {
  const std::vector<float> expected{0.0471274965f, -0.00909018517f, -0.0135142915f, -0.0160937533f};
  EXPECT_EQ(Vector(MakeRule(kUniform, 3, "movies"), (int64_t{1} << 48) | 7, 4), expected);
}

COVERS("emb:H35")
TEST(Initializer, H35AVectorIsAFunctionOfSeedTableFidAndDim) {
  const Initializer uniform = MakeRule(kUniform, 1, "a");
  const std::vector<float> vector = Vector(uniform, 5, 8);
  EXPECT_EQ(Vector(uniform, 5, 8), vector);
  EXPECT_NE(Vector(uniform, 6, 8), vector);
  EXPECT_NE(Vector(MakeRule(kUniform, 2, "a"), 5, 8), vector);
  EXPECT_NE(Vector(MakeRule(kUniform, 1, "b"), 5, 8), vector);
  EXPECT_EQ(Vector(uniform, 5, 3, 5), std::vector<float>(vector.begin() + 5, vector.end()));
}

TEST(Initializer, UniformValuesFillTheirRangeWithoutItsEnd) {
  const Initializer uniform = MakeRule({"random_uniform", {{"minval", -1}, {"maxval", 3}}});
  double sum = 0, low = 9, high = -9;
  for (const int64_t fid : {int64_t{0}, int64_t{-1}, std::numeric_limits<int64_t>::min()}) {
    for (const float value : Vector(uniform, fid, 10000)) {
      ASSERT_TRUE(value >= -1 && value < 3) << value;
      sum += value;
      low = std::min<double>(low, value);
      high = std::max<double>(high, value);
    }
  }
  EXPECT_NEAR(sum / 30000, 1, 0.03);
  EXPECT_NEAR(low, -1, 0.01);
  EXPECT_NEAR(high, 3, 0.01);
}

TEST(Initializer, ARangeOfNeighbouringFloatsHoldsItsStartOnly) {
  const double above = std::nextafter(1.0f, 2.0f);
  const Initializer narrow = MakeRule({"random_uniform", {{"minval", 1}, {"maxval", above}}});
  EXPECT_EQ(Vector(narrow, 1, 64), std::vector<float>(64, 1.0f));
}

TEST(Initializer, RefusesUnknownKindsNumbersAndRanges) {
  const auto problem = [](const RuleConfig& rule) {
    Initializer initializer;
    return Initializer::Make("table 't': initializer", rule, 0, "t", &initializer).message();
  };
  EXPECT_EQ(problem({"normal", {}}),
            "table 't': initializer 'normal' is unknown; choose from zeros, ones, constant, random_uniform");
  EXPECT_EQ(problem({"zeros", {{"value", 1}}}), "table 't': initializer zeros has no 'value'");
  EXPECT_EQ(problem({"constant", {}}), "table 't': initializer constant needs 'value'");
  EXPECT_NE(problem({"constant", {{"value", HUGE_VAL}}}).find("out of bounds"), std::string::npos);
  EXPECT_NE(problem({"random_uniform", {{"minval", 1}, {"maxval", 0}}}).find("range that is empty"), std::string::npos);
  EXPECT_NE(problem({"random_uniform", {{"minval", -3e38}, {"maxval", 3e38}}}).find("beyond float"), std::string::npos);
}

}  // namespace
}  // namespace millrace
