// How the gradients of a batch become one per id.
#include "ops/cc/embedding/table/gradient_merge.h"

#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <map>
#include <string>

#include "tests/cc/test_tables.h"

namespace millrace {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();

// Ids and the arrays that a gradient list points to.
struct Given {
  std::vector<int64_t> fids;
  std::vector<float> gradients;
  std::vector<uint32_t> rows;
  std::vector<float> scales;
  std::vector<float> read_weights;

  GradientList List(int dim) const {
    const auto or_null = [](const auto& array) { return array.empty() ? nullptr : array.data(); };
    return {{fids.data(), static_cast<int64_t>(fids.size()), or_null(rows)},
            static_cast<int64_t>(gradients.size()) / dim,
            gradients.data(),
            or_null(scales),
            or_null(read_weights)};
  }
};

// What was merged, by id.
struct Merged {
  Status status;
  MergedGradients result;

  uint32_t PlaceOf(int64_t fid) const {
    const int shard = LockShardOf(HashFid(fid));
    for (uint32_t i = 0; i < result.distinct[shard]; ++i) {
      if (result.fids[result.begin[shard] + i] == fid) return result.begin[shard] + i;
    }
    ADD_FAILURE() << "id " << fid << " is missing";
    return 0;
  }
  const float* GradientOf(int64_t fid) const { return result.gradients[PlaceOf(fid)]; }
  uint32_t CountOf(int64_t fid) const { return result.counts[PlaceOf(fid)]; }
  int64_t size() const {
    int64_t distinct = 0;
    for (const uint32_t count : result.distinct) distinct += count;
    return distinct;
  }
};

// Of lists that outlive what is merged, as its pointers need.
Merged Merge(const std::vector<std::reference_wrapper<const Given>>& given, const TableConfig& config,
             const Executor& run = RunInline) {
  std::vector<GradientList> lists;
  for (const Given& list : given) lists.push_back(list.List(config.segments[0].dim));
  Merged merged;
  merged.status = MergeGradients(config, config.segments[0].dim, lists, run, &merged.result);
  return merged;
}

TableConfig NonFiniteIs(NonFinite what, float limit = kInfinity) {
  TableConfig config = Config(1);
  config.name = "movies";
  config.non_finite = what;
  config.gradient_limit = limit;
  return config;
}

TEST(GradientMerge, SumsEqualIdsOverAllListsInTheirOrder) {
  // Of these three only the order of the lists gives 1: the large ones go first.
  const Given first{{7, 7, 8}, {1e8f, -1e8f, 5}, {}, {}, {}}, second{{8, 7}, {6, 1}, {}, {}, {}};
  for (const Executor& run : {Executor(RunInline), Executor(RunOnFourThreads), Executor(RunBackwards)}) {
    const Merged merged = Merge({first, second}, Config(1), run);
    ASSERT_TRUE(merged.status.ok());
    EXPECT_EQ(merged.size(), 2);
    EXPECT_EQ(*merged.GradientOf(7), 1);
    EXPECT_EQ(*merged.GradientOf(8), 11);
    EXPECT_EQ(merged.CountOf(7), 3u);
    EXPECT_EQ(merged.CountOf(8), 2u);
  }
}

TEST(GradientMerge, IdsOfAShardComeInTheOrderOfTheirFirstOccurrence) {
  std::vector<int64_t> fids;
  for (int64_t i = 0; i < 4000; ++i) fids.push_back(i * i % 700);
  const Given given{fids, std::vector<float>(fids.size(), 1), {}, {}, {}};
  const Merged merged = Merge({given}, Config(1));
  std::map<int64_t, size_t> first;
  for (size_t i = 0; i < fids.size(); ++i) first.emplace(fids[i], i);
  EXPECT_EQ(merged.size(), static_cast<int64_t>(first.size()));
  for (int s = 0; s < kLockShards; ++s) {
    for (uint32_t i = 1; i < merged.result.distinct[s]; ++i) {
      const int64_t* ids = merged.result.fids.get() + merged.result.begin[s];
      EXPECT_LT(first[ids[i - 1]], first[ids[i]]);
    }
  }
}

TEST(GradientMerge, AGradientThatOccursOnceIsNotCopied) {
  const Given given{{1, 2, 2}, {1, 2, 3, 4, 5, 6}, {}, {}, {}};
  const Merged merged = Merge({given}, Config(2));
  EXPECT_EQ(merged.GradientOf(1), given.gradients.data());
  ExpectNear({merged.GradientOf(2)[0], merged.GradientOf(2)[1]}, {8, 10}, 0);
  EXPECT_EQ(given.gradients, (std::vector<float>{1, 2, 3, 4, 5, 6}));
}

TEST(GradientMerge, ARowCountsAsOftenAsItsScaleSays) {
  // Two rows of gradients: row 1 belongs to ids 5 and 6, row 0 to id 5.
  const Given given{{5, 6, 5}, {10, 100}, {1, 1, 0}, {0.5f, 0.25f}, {}};
  const Merged merged = Merge({given}, Config(1));
  EXPECT_EQ(*merged.GradientOf(5), 30);
  EXPECT_EQ(*merged.GradientOf(6), 25);
  EXPECT_EQ(given.gradients, (std::vector<float>{10, 100}));
}

TEST(GradientMerge, ReadWeightsAreThoseOfTheFirstOccurrenceAndNullWhereUnknown) {
  const Given knows{{1, 2, 1}, {1, 1, 1}, {}, {}, {10, 20, 30}}, unknown{{3, 2}, {1, 1}, {}, {}, {}};
  const Merged merged = Merge({knows, unknown}, Config(1));
  EXPECT_EQ(merged.result.read_weights[merged.PlaceOf(1)], knows.read_weights.data());
  EXPECT_EQ(merged.result.read_weights[merged.PlaceOf(2)], knows.read_weights.data() + 1);
  EXPECT_EQ(merged.result.read_weights[merged.PlaceOf(3)], nullptr);
  EXPECT_FALSE(static_cast<bool>(Merge({unknown}, Config(1)).result.read_weights));
}

TEST(GradientMerge, ErrorNamesTheTableAndTheFirstIdThatIsNotFinite) {
  const Given fine{{5, 6}, {1, 2}, {}, {}, {}}, bad{{5, 9, 8}, {1, NAN, kInfinity}, {}, {}, {}};
  for (const Executor& run : {Executor(RunInline), Executor(RunOnFourThreads), Executor(RunBackwards)}) {
    const Merged merged = Merge({fine, bad}, NonFiniteIs(NonFinite::kError), run);
    EXPECT_EQ(merged.status.code(), Code::kInvalidArgument);
    EXPECT_NE(merged.status.message().find("table 'movies': the gradient of id 9"), std::string::npos)
        << merged.status.message();
  }
}

TEST(GradientMerge, ErrorNamesTheIdWhoseSumOverflowsEvenIfItSharesItsRow) {
  const Given given{{1, 2, 2}, {kLargest, kLargest}, {0, 0, 1}, {}, {}};
  const Merged merged = Merge({given}, NonFiniteIs(NonFinite::kError));
  EXPECT_NE(merged.status.message().find("of id 2 "), std::string::npos) << merged.status.message();
}

TEST(GradientMerge, SkipLeavesOutAndCountsTheIdsThatAreNotFinite) {
  const Given given{{1, 2, 3, 3, 4}, {NAN, 1, kLargest, kLargest, -kInfinity}, {}, {}, {}};
  const Merged merged = Merge({given}, NonFiniteIs(NonFinite::kSkip));
  ASSERT_TRUE(merged.status.ok());
  EXPECT_EQ(merged.result.not_finite, 3);
  for (const int64_t fid : {1, 3, 4}) EXPECT_EQ(merged.GradientOf(fid), nullptr);
  EXPECT_EQ(*merged.GradientOf(2), 1);
}

TEST(GradientMerge, ClipMakesNanZeroAndInfinityTheLimitAndCountsThem) {
  const Given given{{1, 2, 3, 4, 5, 5}, {NAN, kInfinity, -kInfinity, 7, kInfinity, -kInfinity}, {}, {}, {}};
  const Merged merged = Merge({given}, NonFiniteIs(NonFinite::kClip, 3));
  ASSERT_TRUE(merged.status.ok());
  EXPECT_EQ(merged.result.not_finite, 4);
  std::vector<float> clipped;
  for (int64_t fid = 1; fid <= 5; ++fid) clipped.push_back(*merged.GradientOf(fid));
  ExpectNear(clipped, {0, 3, -3, 3, 0}, 0);
}

TEST(GradientMerge, TheLimitHoldsForSumsAndNotForTheirParts) {
  const Given given{{1, 1, 2, 3}, {5, -4, 2, -9}, {}, {}, {}};
  for (const NonFinite what : {NonFinite::kError, NonFinite::kSkip, NonFinite::kClip}) {
    const Merged merged = Merge({given}, NonFiniteIs(what, 3));
    ASSERT_TRUE(merged.status.ok());
    EXPECT_EQ(merged.result.not_finite, 0);
    ExpectNear({*merged.GradientOf(1), *merged.GradientOf(2), *merged.GradientOf(3)}, {1, 2, -3}, 0);
  }
  EXPECT_EQ(given.gradients, (std::vector<float>{5, -4, 2, -9}));
}

TEST(GradientMerge, ABatchMayBeEmpty) {
  const Given empty;
  const Merged merged = Merge({empty, empty}, Config(4));
  EXPECT_TRUE(merged.status.ok());
  EXPECT_EQ(merged.size(), 0);
}

}  // namespace
}  // namespace millrace
