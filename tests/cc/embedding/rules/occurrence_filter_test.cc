// Occurrence filters: what is admitted when, what is forgotten, what a state carries, threads.
#include "ops/cc/embedding/rules/occurrence_filter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>

#include "ops/cc/embedding/base/fid.h"

#include "tests/cc/covers.h"

namespace millrace {
namespace {

RuleConfig Probabilistic(bool equal_probability, double seed = 0) {
  return {"probabilistic", {{"equal_probability", equal_probability}, {"seed", seed}}};
}
RuleConfig Counting(double capacity) { return {"counting", {{"capacity", capacity}}}; }
RuleConfig Sliding(double capacity, double split_num = 7) {
  return {"sliding", {{"capacity", capacity}, {"split_num", split_num}}};
}

std::unique_ptr<OccurrenceFilter> Make(const RuleConfig& rule, const OccurrenceThresholds& thresholds) {
  std::unique_ptr<OccurrenceFilter> filter;
  const Status made = MakeFilter("table 't': filter", rule, thresholds, &filter);
  EXPECT_TRUE(made.ok()) << made.message();
  return filter;
}

std::string Refusal(const RuleConfig& rule, const OccurrenceThresholds& thresholds = {}) {
  std::unique_ptr<OccurrenceFilter> filter;
  const Status made = MakeFilter("table 't': filter", rule, thresholds, &filter);
  EXPECT_EQ(made.code(), Code::kInvalidArgument);
  EXPECT_EQ(filter, nullptr);
  return made.message();
}

// One batch that sees each id once: '1' where it is admitted.
std::string Pass(OccurrenceFilter* filter, const std::vector<int64_t>& fids) {
  const uint64_t batch = filter->BeginBatch();
  std::string kept;
  for (const int64_t fid : fids) kept += filter->Admit(fid, 1, batch) ? '1' : '0';
  return kept;
}

int AdmittedOfTrials(bool equal_probability, uint32_t count) {
  const auto filter = Make(Probabilistic(equal_probability), {7, {}});
  for (int i = 0; i < 10000; ++i) filter->Admit(i % 10, count, filter->BeginBatch());
  EXPECT_EQ(filter->admitted() + filter->rejected(), 10000u);
  return static_cast<int>(filter->admitted());
}

const std::vector<int64_t> kF3Ids = {1, int64_t{3} << 17, 1};

// The original's add() returns the count before; here a filter admits an id once that count reaches the threshold, so a
// filter of threshold n admits first where add() would return n. Counts have 8 bits and stop at 255 instead of 15.
COVERS("emb:F1")
TEST(OccurrenceFilter, F1CountsGoUpOneByOneAndStopAt255) {
  for (const RuleConfig& rule : {Counting(300), Sliding(300)}) {
    for (uint32_t threshold = 1; threshold <= 15; ++threshold) {
      const auto filter = Make(rule, {threshold, {}});
      for (uint32_t before = 0; before <= 17; ++before) {
        ASSERT_EQ(filter->Admit(1, 1, 0), before >= threshold) << rule.kind << " of threshold " << threshold;
      }
    }
    const auto filter = Make(rule, {255, {}});
    for (int sighting = 1; sighting <= 600; ++sighting) {
      ASSERT_EQ(filter->Admit(1, 1, 0), sighting > 255) << rule.kind << " at " << sighting;
    }
    EXPECT_FALSE(filter->Admit(2, 1u << 31, 0));
    EXPECT_TRUE(filter->Admit(2, 1u << 31, 0));
    EXPECT_TRUE(filter->Admit(2, 1, 0));
  }
}

COVERS("emb:F2")
TEST(OccurrenceFilter, F2AThresholdOf0AdmitsAndRemembersNothing) {
  for (const RuleConfig& rule : {Counting(300), Sliding(300), Probabilistic(true)}) {
    const auto filter = Make(rule, {});
    EXPECT_EQ(Pass(filter.get(), {1, 2, -1, 1}), "1111") << rule.kind;
    for (const size_t elements : filter->facts().elements) EXPECT_EQ(elements, 0u);
  }
  EXPECT_EQ(Pass(Make(Sliding(300), {1, {}}).get(), {1, 1}), "01");
}

COVERS("emb:F3")
TEST(OccurrenceFilter, F3AnIdPassesOnceItWasSeenMoreOftenThanItsThreshold) {
  const auto filter = Make(Sliding(100), {3, {}});
  for (const char* kept : {"000", "001", "101", "111"}) EXPECT_EQ(Pass(filter.get(), kF3Ids), kept);
  EXPECT_EQ(filter->admitted(), 6u);
  EXPECT_EQ(filter->rejected(), 6u);
}

COVERS("emb:F4")
TEST(OccurrenceFilter, F4ARestoredFilterGoesOnCounting) {
  const auto saved = Make(Sliding(100), {3, {}});
  Pass(saved.get(), kF3Ids);
  Pass(saved.get(), kF3Ids);
  const auto restored = Make(Sliding(100), {3, {}});
  Pass(restored.get(), {8, 9});
  ASSERT_TRUE(restored->Restore(saved->Save()).ok());
  EXPECT_EQ(restored->facts().elements, saved->facts().elements);
  EXPECT_EQ(restored->facts().elements.size(), 7u);
  for (const char* kept : {"101", "111"}) EXPECT_EQ(Pass(restored.get(), kF3Ids), kept);
}

COVERS("emb:F5")
TEST(OccurrenceFilter, F5AFullRingPassesOnToTheNext) {
  const auto filter = Make(Sliding(300, 100), {2, {}});
  const std::vector<int64_t> fids = {1, int64_t{1} << 17, int64_t{2} << 17, 1};
  EXPECT_EQ(filter->facts().total_size, 3u);
  EXPECT_EQ(filter->facts().head, 0u);
  EXPECT_EQ(Pass(filter.get(), fids), "0000");
  EXPECT_EQ(Pass(filter.get(), fids), "1001");
  const RingFacts facts = filter->facts();
  std::vector<size_t> elements(100);
  std::fill_n(elements.begin(), 4, 2);
  EXPECT_EQ(facts.elements, elements);
  EXPECT_EQ(facts.head, 4u);
  EXPECT_EQ(facts.head_increment, 4u);
  EXPECT_EQ(Pass(filter.get(), fids), "1111");

  const auto restored = Make(Sliding(300, 100), {2, {}});
  ASSERT_TRUE(restored->Restore(filter->Save()).ok());
  EXPECT_EQ(restored->facts().head_increment, filter->facts().head_increment);
  EXPECT_EQ(Pass(restored.get(), fids), "1111");
}

TEST(OccurrenceFilter, NoneIsNoFilterAndHasNoState) { EXPECT_EQ(Make({"none", {}}, {3, {}}), nullptr); }

COVERS("emb:F7")
TEST(OccurrenceFilter, F7DrawsHaveTheirProbabilities) {
  EXPECT_NEAR(AdmittedOfTrials(false, 1), 1428, 140);
  EXPECT_NEAR(AdmittedOfTrials(false, 2), 2857, 180);
  EXPECT_EQ(AdmittedOfTrials(false, 7), 10000);
  EXPECT_EQ(AdmittedOfTrials(false, 8), 10000);
  EXPECT_NEAR(AdmittedOfTrials(true, 1), 3481.6, 190);
  EXPECT_NEAR(AdmittedOfTrials(true, 2), 5751.1, 200);
  EXPECT_NEAR(AdmittedOfTrials(true, 7), 9500, 90);
}

TEST(OccurrenceFilter, DrawsOfOneBatchAreIndependentBetweenIds) {
  const auto filter = Make(Probabilistic(false), {2, {}});
  std::vector<int64_t> fids(10000);
  for (size_t i = 0; i < fids.size(); ++i) fids[i] = static_cast<int64_t>(i);
  const std::string first = Pass(filter.get(), fids);
  EXPECT_NEAR(filter->admitted(), 5000, 200);
  const std::string second = Pass(filter.get(), fids);
  int equal = 0;
  for (size_t i = 0; i < fids.size(); ++i) equal += first[i] == second[i];
  EXPECT_NEAR(equal, 5000, 200);
}

COVERS("emb:F9")
TEST(OccurrenceFilter, F9StateRestoredAfterTheFirstSightingAdmitsTheThird) {
  for (const RuleConfig& rule : {Counting(300), Sliding(300)}) {
    const auto filter = Make(rule, {2, {}});
    EXPECT_EQ(Pass(filter.get(), {1}), "0");
    const std::string state = filter->Save();
    EXPECT_EQ(Pass(filter.get(), {1, 1}), "01");
    ASSERT_TRUE(filter->Restore(state).ok());
    EXPECT_EQ(Pass(filter.get(), {1, 1}), "01") << rule.kind;
  }
}

COVERS("emb:F10")
TEST(OccurrenceFilter, F10AThresholdOf40AdmitsTheSighting41) {
  const auto filter = Make(Sliding(300), {40, {}});
  EXPECT_EQ(Pass(filter.get(), std::vector<int64_t>(41, 7)), std::string(40, '0') + "1");
}

COVERS("emb:F11")
TEST(OccurrenceFilter, F11TheStateOfAnotherProcessLeadsToTheSameDecisions) {
  const auto saved = Make(Sliding(100), {3, {}});
  Pass(saved.get(), kF3Ids);
  Pass(saved.get(), kF3Ids);
  const std::string state = saved->Save();
  EXPECT_EQ(HashText(state), 16919173315089817579u);  // as the process that first ran this test saved it
  const auto restored = Make(Sliding(100), {3, {}});
  ASSERT_TRUE(restored->Restore(state).ok());
  for (const char* kept : {"101", "111"}) EXPECT_EQ(Pass(restored.get(), kF3Ids), kept);

  const auto probabilistic = Make(Probabilistic(true, 5), {3, {}});
  EXPECT_EQ(Pass(probabilistic.get(), {1, 2, 3, 4, 5, 6, 7, 8, -1, int64_t{1} << 60}), "1101101001");
}

TEST(OccurrenceFilter, DrawsGoOnWhereTheSavedOnesStopped) {
  const auto filter = Make(Probabilistic(true, 5), {9, {}});
  for (int i = 0; i < 20; ++i) Pass(filter.get(), {1});
  const auto restored = Make(Probabilistic(true, 5), {9, {}});
  ASSERT_TRUE(restored->Restore(filter->Save()).ok());
  const auto reseeded = Make(Probabilistic(true, 6), {9, {}});
  std::string drawn, drawn_again, drawn_reseeded;
  for (int i = 0; i < 50; ++i) {
    drawn += Pass(filter.get(), {1, 2, 3});
    drawn_again += Pass(restored.get(), {1, 2, 3});
    drawn_reseeded += Pass(reseeded.get(), {1, 2, 3});
  }
  EXPECT_EQ(drawn, drawn_again);
  EXPECT_NE(drawn, drawn_reseeded);
}

TEST(OccurrenceFilter, ASlotHasItsOwnThreshold) {
  const OccurrenceThresholds thresholds{1, {{5, 0}, {32767, 2}}};
  const int64_t slot5 = int64_t{5} << kSignatureBits;
  EXPECT_EQ(thresholds.Of(1), 1u);
  EXPECT_EQ(thresholds.Of(slot5 | 1), 0u);
  EXPECT_EQ(thresholds.Of(-1), 2u);
  for (const RuleConfig& rule : {Counting(300), Sliding(300)}) {
    EXPECT_EQ(Pass(Make(rule, thresholds).get(), {1, slot5 | 1, -1, 1, slot5 | 1, -1, -1}), "0101101") << rule.kind;
  }
}

void ExpectExactCounts(const RuleConfig& rule, int64_t ids, uint64_t rotations, uint32_t seed) {
  const OccurrenceThresholds thresholds{3, {{1, 0}, {2, 100}}};
  const auto filter = Make(rule, thresholds);
  std::unordered_map<int64_t, uint32_t> seen;
  std::mt19937_64 random(seed);
  for (int i = 0; i < 8000; ++i) {
    const int64_t id = random() % ids;
    const int64_t fid = id | (id % 3) << kSignatureBits;
    const uint32_t count = 1 + random() % 40;
    ASSERT_EQ(filter->Admit(fid, count, 0), seen[fid] >= thresholds.Of(fid)) << rule.kind << " at " << i;
    seen[fid] += count;
  }
  EXPECT_EQ(filter->facts().head_increment, rotations);
}

TEST(OccurrenceFilter, CountsAreExactWhileNothingIsForgotten) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    ExpectExactCounts(Counting(6000), 6000, 0, seed);
    ExpectExactCounts(Sliding(6000), 900, 0, seed);
    ExpectExactCounts(Sliding(6000, 5), 4200, 2, seed);
  }
}

TEST(OccurrenceFilter, SlidingForgetsARareIdAndKeepsAFrequentOne) {
  const auto filter = Make(Sliding(3000), {10, {}});
  filter->Admit(-1, 11, 0);
  filter->Admit(-2, 11, 0);
  for (int64_t fid = 0; fid < 6000; ++fid) {
    filter->Admit(fid, 1, 0);
    EXPECT_TRUE(fid % 400 != 0 || filter->Admit(-2, 1, 0)) << "at " << fid;
  }
  EXPECT_FALSE(filter->Admit(-1, 1, 0));
  EXPECT_TRUE(filter->Admit(-2, 1, 0));
  EXPECT_EQ(filter->failures(), 0u);
}

TEST(OccurrenceFilter, CountingRemembersAllIdsOfItsCapacityAndAdmitsWhatItCannotCount) {
  constexpr int64_t kCapacity = 200000;
  const auto filter = Make(Counting(kCapacity), {1, {}});
  for (int64_t fid = 0; fid < kCapacity; ++fid) ASSERT_FALSE(filter->Admit(fid, 1, 0));
  for (int64_t fid = 0; fid < kCapacity; ++fid) ASSERT_TRUE(filter->Admit(fid, 1, 0));
  EXPECT_EQ(filter->failures(), 0u);
  for (int64_t fid = kCapacity; fid < 2 * kCapacity; ++fid) filter->Admit(fid, 1, 0);
  EXPECT_GT(filter->failures(), uint64_t{kCapacity} / 2);
  EXPECT_EQ(filter->rejected() + filter->failures(), 2u * kCapacity);
}

// Ids below 2^17 had one fingerprint where it was cut from the id.
TEST(OccurrenceFilter, SmallIdsAreToldApart) {
  const auto filter = Make(Sliding(1000000), {1, {}});
  for (int64_t fid = 0; fid < 1 << 17; ++fid) ASSERT_FALSE(filter->Admit(fid, 1, 0)) << fid;
  for (int64_t fid = 0; fid < 1 << 17; ++fid) ASSERT_TRUE(filter->Admit(fid, 1, 0)) << fid;
}

TEST(OccurrenceFilter, AFilterOfManyPartsIsSavedWhole) {
  const auto filter = Make(Sliding(1000000), {1, {}});
  std::vector<int64_t> fids(300000);
  for (size_t i = 0; i < fids.size(); ++i) fids[i] = static_cast<int64_t>(i * 7919);
  Pass(filter.get(), fids);
  const std::string state = filter->Save();
  filter->Clear();
  EXPECT_EQ(Pass(filter.get(), fids), std::string(fids.size(), '0'));
  filter->Clear();
  ASSERT_TRUE(filter->Restore(state).ok());
  EXPECT_EQ(filter->Save(), state);
  EXPECT_EQ(Pass(filter.get(), fids), std::string(fids.size(), '1'));
}

TEST(OccurrenceFilter, AnUnusedFilterHasASmallState) {
  EXPECT_LT(Make(Sliding(1000000), {1, {}})->Save().size(), 1000000u * 4 / 20);
}

TEST(OccurrenceFilter, TheStateOfAnotherFilterIsRefused) {
  const std::vector<RuleConfig> rules = {Probabilistic(true), Counting(300), Counting(400),
                                         Sliding(300),        Sliding(400),  Sliding(300, 8)};
  for (size_t i = 0; i < rules.size(); ++i) {
    for (size_t j = 0; j < rules.size(); ++j) {
      const Status restored = Make(rules[i], {1, {}})->Restore(Make(rules[j], {1, {}})->Save());
      EXPECT_EQ(restored.code(), i == j ? Code::kOk : Code::kInvalidArgument) << restored.message();
    }
  }
  const Status refused = Make(Sliding(300, 8), {})->Restore(Make(Sliding(300), {})->Save());
  EXPECT_EQ(refused.message(),
            "state is of the occurrence filter version=1;kind=sliding;capacity=300;split_num=7, expected "
            "version=1;kind=sliding;capacity=300;split_num=8");
}

TEST(OccurrenceFilter, ADamagedStateIsRefusedAndNothingChanges) {
  for (const RuleConfig& rule : {Probabilistic(true), Counting(300), Sliding(300)}) {
    const auto filter = Make(rule, {1, {}});
    Pass(filter.get(), {1, 2, 3});
    const std::string state = filter->Save();
    for (size_t size = 0; size < state.size(); ++size) {
      EXPECT_EQ(filter->Restore(state.substr(0, size)).code(), Code::kDataLoss) << rule.kind << " of " << size;
    }
    EXPECT_EQ(filter->Restore(state + '\0').code(), Code::kDataLoss);
    EXPECT_EQ(filter->Save(), state);
  }
  // The mask of the last cells of the last ring names one past its end.
  const auto filter = Make(Counting(300), {1, {}});
  std::string state = filter->Save();
  state.back() = static_cast<char>(0x80);
  EXPECT_EQ(filter->Restore(state + "\1\1\1\1").code(), Code::kDataLoss);
}

TEST(OccurrenceFilter, ThreadsTogetherRejectEachIdAsOftenAsItsThreshold) {
  constexpr int kThreads = 4, kIds = 20000, kThreshold = 6;
  for (const RuleConfig& rule : {Counting(300000), Sliding(300000)}) {
    const auto filter = Make(rule, {kThreshold, {}});
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 4 * kIds; ++i) filter->Admit(i % kIds, 1, filter->BeginBatch());
      });
    }
    const auto other = Make(rule, {kThreshold, {}});
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(other->Restore(filter->Save()).ok());
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(filter->rejected(), uint64_t{kIds} * kThreshold) << rule.kind;
    EXPECT_EQ(filter->admitted(), uint64_t{kIds} * (4 * kThreads - kThreshold)) << rule.kind;
  }
}

TEST(OccurrenceFilter, WhatNoFilterCanDoIsRefusedWithTheChoices) {
  EXPECT_EQ(Refusal({"bloom", {}}),
            "table 't': filter: unknown filter 'bloom'; choose from none, probabilistic, counting, sliding");
  EXPECT_EQ(Refusal(Sliding(300), {256, {}}), "table 't': filter sliding has threshold 256; choose from 0 to 255");
  EXPECT_EQ(Refusal(Counting(300), {1, {{4, 300}}}),
            "table 't': filter counting has threshold of slot 4 300; choose from 0 to 255");
  EXPECT_EQ(Refusal(Counting(300), {1, {{32768, 1}}}),
            "table 't': filter counting has slot 32768; choose from 0 to 32767");
  EXPECT_EQ(Refusal(Sliding(300, 4)), "table 't': filter sliding has 'split_num' out of bounds: 4.000000");
  EXPECT_EQ(Refusal(Counting(0)), "table 't': filter counting has 'capacity' out of bounds: 0.000000");
  EXPECT_EQ(Refusal({"sliding", {{"capacity", 300}}}), "table 't': filter sliding needs 'split_num'");
  EXPECT_EQ(Refusal({"none", {{"seed", 1}}}), "table 't': filter none has no 'seed'");
  EXPECT_TRUE(Make(Probabilistic(true), {1000000, {}}) != nullptr);
}

std::string Drained(FilterCut* cut) {
  std::string state;
  while (cut->Next(&state)) continue;
  return state;
}

// What happens to the filter between the pieces of the cut must not be in it.
TEST(OccurrenceFilter, ACutIsTheStateOfItsMomentWhateverHappensWhileItIsTaken) {
  for (const RuleConfig& rule : {Counting(200'000), Sliding(200'000, 5), Probabilistic(true)}) {
    for (const std::string change : {"none", "admit", "clear", "restore"}) {
      const auto filter = Make(rule, {3, {}});
      std::mt19937_64 random(7);
      const auto admit = [&](int count) {
        const uint64_t batch = filter->BeginBatch();
        for (int i = 0; i < count; ++i) filter->Admit(static_cast<int64_t>(random() % 300'000), 1, batch);
      };
      admit(150'000);
      const std::string expected = filter->Save();
      const auto cut = filter->Cut();
      std::string state;
      for (int piece = 0; cut->Next(&state); ++piece) {
        if (change == "admit") admit(3000);
        if (change == "clear" && piece == 3) filter->Clear();
        if (change == "restore" && piece == 3) {
          ASSERT_TRUE(filter->Restore(Make(rule, {3, {}})->Save()).ok());
        }
      }
      EXPECT_EQ(state, expected) << rule.kind << ", " << change;
      const auto restored = Make(rule, {3, {}});
      EXPECT_TRUE(restored->Restore(state).ok());
    }
  }
}

TEST(OccurrenceFilter, ASecondCutFollowsTheFirst) {
  const auto filter = Make(Counting(1000), {3, {}});
  for (int64_t fid = 0; fid < 500; ++fid) filter->Admit(fid, 1, 0);
  filter->Cut().reset();
  for (int64_t fid = 300; fid < 700; ++fid) filter->Admit(fid, 1, 0);
  EXPECT_EQ(Drained(filter->Cut().get()), filter->Save());
}

}  // namespace
}  // namespace millrace
