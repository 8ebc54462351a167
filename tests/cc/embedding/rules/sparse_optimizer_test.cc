// Update rules against the conformance vectors.
#include "ops/cc/embedding/rules/sparse_optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <vector>

#include "tests/cc/covers.h"

namespace millrace {
namespace {

using Numbers = std::map<std::string, double>;

const RuleConfig kSgd{"sgd", {}};
const RuleConfig kAdadelta{"adadelta", {{"averaging_ratio", 0.9}, {"epsilon", 0.01}, {"weight_decay_factor", 0}}};
const RuleConfig kAdaMom{"adamom",
                         {{"mom_decay", 0.99}, {"ada_decay", 0.9999}, {"epsilon", 1e-6}, {"weight_decay_factor", 0}}};
const RuleConfig kRmsProp{"rmsprop", {{"momentum", 0.9}, {"weight_decay_factor", 0}}};
const RuleConfig kRmsPropV2{"rmspropv2", {{"momentum", 0.9}, {"weight_decay_factor", 0}}};
const RuleConfig kMovingAverage{"moving_average", {{"momentum", 0.9}}};
const RuleConfig kBatchSoftmax{"batch_softmax", {}};

RuleConfig Adagrad(double initial, double decay = 0, bool decouple = false) {
  return {"adagrad",
          {{"initial_accumulator_value", initial},
           {"weight_decay_factor", decay},
           {"decouple_weight_decay", decouple ? 1 : 0}}};
}

RuleConfig Adam(bool nesterov = false, double epsilon = 0.01, const std::string& kind = "adam") {
  return {kind,
          {{"beta1", 0.9},
           {"beta2", 0.99},
           {"epsilon", epsilon},
           {"weight_decay_factor", 0},
           {"use_nesterov", nesterov ? 1 : 0}}};
}

RuleConfig Momentum(bool nesterov = false) {
  return {"momentum", {{"momentum", 0.9}, {"weight_decay_factor", 0}, {"use_nesterov", nesterov ? 1 : 0}}};
}

RuleConfig Ftrl(double initial, double beta, double l1, double l2, const std::string& kind = "ftrl") {
  return {kind,
          {{"initial_accumulator_value", initial},
           {"beta", beta},
           {"l1_regularization_strength", l1},
           {"l2_regularization_strength", l2}}};
}

RuleConfig GroupFtrl(double initial, double beta, double l1, double l2) {
  return Ftrl(initial, beta, l1, l2, "group_ftrl");
}

RuleConfig GroupAdagrad(double initial, double beta, double l2) {
  return {"group_adagrad",
          {{"initial_accumulator_value", initial},
           {"beta", beta},
           {"l2_regularization_strength", l2},
           {"weight_decay_factor", 0}}};
}

std::vector<RuleConfig> AllRules() {
  return {kSgd,
          Adagrad(0),
          Adagrad(0, 0.1),
          Adagrad(0, 0.1, true),
          kAdadelta,
          Adam(),
          Adam(true),
          Adam(false, 0.01, "amsgrad"),
          kAdaMom,
          Momentum(),
          Momentum(true),
          kMovingAverage,
          kRmsProp,
          kRmsPropV2,
          Ftrl(0, 0, 0, 0),
          Ftrl(0.1, 1, 0.1, 0.1),
          GroupFtrl(0, 0, 0, 0),
          GroupFtrl(0.1, 1, 0.1, 0.1),
          GroupAdagrad(0, 0, 0),
          GroupAdagrad(0, 1, 0),
          GroupAdagrad(0.1, 1, 0.1),
          kBatchSoftmax,
          {"none", {}}};
}

void ExpectNear(const std::vector<float>& actual, const std::vector<double>& expected, double tolerance = 1e-6) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i], expected[i], tolerance) << "at " << i;
}

std::unique_ptr<SparseOptimizer> MakeRule(const RuleConfig& rule, int dim) {
  std::unique_ptr<SparseOptimizer> optimizer;
  const Status made = MakeOptimizer("segment 0: optimizer", rule, dim, &optimizer);
  EXPECT_TRUE(made.ok()) << made.message();
  return optimizer;
}

// One entry under one rule.
class Entry {
 public:
  Entry(int dim, const RuleConfig& rule) : dim_(dim), optimizer_(MakeRule(rule, dim)) {
    floats_.resize(static_cast<size_t>(dim + optimizer_->StateFloats(dim)));
    optimizer_->InitState(floats_.data() + dim, dim);
  }

  std::vector<float> Step(const std::vector<float>& gradient, float rate, int64_t global_step = 0) {
    EXPECT_EQ(gradient.size(), static_cast<size_t>(dim_));
    float* const weights = floats_.data();
    const float* const gradients = gradient.data();
    optimizer_->Update(&weights, dim_, &gradients, 1, dim_, {rate, global_step});
    return this->weights();
  }

  std::vector<float> weights() const { return {floats_.begin(), floats_.begin() + dim_}; }
  std::vector<float> state() const { return {floats_.begin() + dim_, floats_.end()}; }
  void set_weights(const std::vector<float>& weights) { std::copy(weights.begin(), weights.end(), floats_.begin()); }
  void set_state(const std::vector<float>& state) { std::copy(state.begin(), state.end(), floats_.begin() + dim_); }

 private:
  const int dim_;
  const std::unique_ptr<SparseOptimizer> optimizer_;
  std::vector<float> floats_;
};

COVERS("emb:O1")
TEST(Sgd, O1StepsAgainstTheGradient) { ExpectNear(Entry(1, kSgd).Step({1}, 0.1f), {-0.1}); }

COVERS("emb:O2")
TEST(Sgd, O2SegmentsStepAtTheirOwnRates) {
  const auto first = MakeRule(kSgd, 1), second = MakeRule(kSgd, 2);
  std::vector<float> weights(3);
  const std::vector<float> gradients{1, 2, 3};
  float* at = weights.data();
  const float* along = gradients.data();
  first->Update(&at, 3, &along, 1, 1, {1, 0});
  ++at;
  ++along;
  second->Update(&at, 2, &along, 1, 2, {2, 0});
  ExpectNear(weights, {-1, -4, -6});
}

COVERS("emb:O3")
TEST(Adagrad, O3DividesByTheRootOfTheNorm) {
  ExpectNear(Entry(2, Adagrad(1)).Step({1, 2}, 0.1f), {-0.07071067, -0.08944272});
}

COVERS("emb:O4")
TEST(Adagrad, O4DecaysWeightsInNormAndStepAtAnyDim) {
  for (const int copies : {1, 2, 4, 8, 9, 16, 32}) {
    Entry entry(2 * copies, Adagrad(1, 0.1));
    std::vector<float> gradient;
    std::vector<double> expected;
    for (int i = 0; i < copies; ++i) {
      gradient.insert(gradient.end(), {1, 2});
      expected.insert(expected.end(), {-0.128173, -0.155943});
    }
    entry.Step(gradient, 0.1f);
    ExpectNear(entry.Step(gradient, 0.1f), expected);
  }
}

COVERS("emb:O5")
TEST(Adagrad, O5GoesOnFromItsState) {
  Entry before(1, Adagrad(0.1)), after(1, Adagrad(0.1));
  ExpectNear(before.Step({1}, 1), {-0.95346254});
  after.set_weights(before.weights());
  after.set_state(before.state());
  ExpectNear(after.Step({1}, 1), {-1.643528});
}

TEST(Adagrad, RestoredStateMeetsZeroWeights) {
  Entry one(1, Adagrad(1)), two(2, Adagrad(2));
  ExpectNear(one.Step({1}, 1), {-0.70710677});
  ExpectNear(two.Step({2, 3}, 2), {-1.6329931, -1.8090681});
  one.set_weights({0});
  two.set_weights({0, 0});
  ExpectNear(one.Step({1}, 1), {-0.57735026});
  ExpectNear(two.Step({2, 3}, 2), {-1.264911, -1.3416407});
}

COVERS("emb:O7")
TEST(Adadelta, O7TwoSteps) {
  Entry entry(2, kAdadelta);
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.0031607, -0.0030151});
  ExpectNear({entry.state()[0], entry.state()[1]}, {10, 0.1}, 1e-5);
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.0064035, -0.0061047});
}

COVERS("emb:O8")
TEST(Adam, O8ThreeSteps) {
  Entry entry(2, Adam());
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.00990099, -0.00909091});
  ExpectNear({entry.state()[0], entry.state()[1]}, {1, 0.1});
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.01983060, -0.01842895});
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.0297729, -0.0278805});
}

COVERS("emb:O9")
TEST(Adam, O9Nesterov) {
  Entry entry(1, Adam(true));
  ExpectNear(entry.Step({10}, 0.01f), {-0.0188119});
  ExpectNear(entry.Step({10}, 0.01f), {-0.0329746});
  ExpectNear(entry.Step({10}, 0.01f), {-0.0455915});
}

TEST(Adam, GoesOnFromItsStateWithBothPowers) {
  Entry before(1, Adam()), after(1, Adam());
  before.Step({10}, 0.01f);
  after.set_weights(before.weights());
  after.set_state(before.state());
  ExpectNear(after.Step({10}, 0.01f), {-0.0198306});
}

COVERS("emb:O11")
TEST(Amsgrad, O11KeepsTheLargestSecondMomentWhereAdamForgets) {
  Entry amsgrad(1, Adam(false, 0.01, "amsgrad")), adam(1, Adam());
  ExpectNear(amsgrad.Step({10}, 0.01f), {-0.0099010});
  ExpectNear(amsgrad.Step({0}, 0.01f), {-0.0165170});
  ExpectNear(amsgrad.Step({0}, 0.01f), {-0.0216171});
  ExpectNear(adam.Step({10}, 0.01f), {-0.0099010});
  ExpectNear(adam.Step({0}, 0.01f), {-0.0165500});
  ExpectNear(adam.Step({0}, 0.01f), {-0.0217011});
}

TEST(AdaMom, FollowsItsFormulaForTwoSteps) {
  Entry entry(1, kAdaMom);
  double w = 0, m = 0, v = 0, count = 0;
  for (const double g : {10.0, -3.0}) {
    m = 0.99 * m + 0.01 * g;
    v = 0.9999 * v + g * g;
    count = 0.9999 * count + 1;
    w -= 0.1 * m / std::sqrt(v / count + 1e-6);
    ExpectNear(entry.Step({static_cast<float>(g)}, 0.1f), {w});
  }
  ExpectNear(entry.state(), {m, v, count}, 1e-5);
}

COVERS("emb:O12")
TEST(Momentum, O12ThreeSteps) {
  Entry entry(2, Momentum());
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.1, -0.01});
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.29, -0.029});
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.561, -0.0561});
}

COVERS("emb:O13")
TEST(Momentum, O13Nesterov) {
  Entry entry(1, Momentum(true));
  ExpectNear(entry.Step({10}, 0.01f), {-0.19});
  ExpectNear(entry.Step({10}, 0.01f), {-0.461});
  ExpectNear(entry.Step({10}, 0.01f), {-0.8049});
}

COVERS("emb:O14")
TEST(MovingAverage, O14FollowsTheObservedValueAtAnyRate) {
  Entry entry(1, kMovingAverage);
  ExpectNear(entry.Step({10}, 0), {1.0});
  ExpectNear(entry.Step({10}, 5), {1.9});
}

COVERS("emb:O15")
TEST(RmsProp, O15MeansSquaresAndTakesTheRateOfTheCall) {
  Entry entry(1, kRmsProp);
  ExpectNear(entry.Step({10}, 0.01f), {-0.024025});
  ExpectNear(entry.state(), {10}, 1e-5);
  ExpectNear(entry.Step({10}, 0.01f), {-0.042686});
  ExpectNear(entry.state(), {19}, 1e-5);
  ExpectNear(Entry(1, kRmsProp).Step({10}, 0.1f), {-0.2402531});
}

COVERS("emb:O16")
TEST(RmsPropV2, O16SumsSquares) {
  Entry entry(2, kRmsPropV2);
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.0090909, -0.005});
  ExpectNear(entry.state(), {100, 1});
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.0158549, -0.0092045});
}

COVERS("emb:O17")
TEST(Ftrl, O17Defaults) {
  Entry entry(2, Ftrl(0.1, 0, 0, 0));
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.009995, -0.00953463});
  ExpectNear(entry.state(), {100.1, 1.1, 10, 1}, 1e-5);
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.0170643, -0.0164353});
}

COVERS("emb:O18")
TEST(Ftrl, O18ShrinksBothSignsAlike) {
  for (const float sign : {1.0f, -1.0f}) {
    Entry entry(1, Ftrl(0.1, 1, 2, 1));
    ExpectNear(entry.Step({10 * sign}, 0.01f), {-0.0072628 * sign});
    ExpectNear(entry.Step({10 * sign}, 0.01f), {-0.0138610 * sign});
  }
  Entry small(1, Ftrl(0.1, 1, 2, 1));
  ExpectNear(small.Step({1}, 0.01f), {0});
  ExpectNear(small.Step({1}, 0.01f), {0});
}

COVERS("emb:O19")
TEST(GroupAdagrad, O19OneDim) {
  Entry entry(1, GroupAdagrad(0, 1, 1));
  ExpectNear(entry.Step({10}, 0.01f), {-0.008182});
  ExpectNear(entry.Step({10}, 0.01f), {-0.014125});
}

COVERS("emb:O20")
TEST(GroupAdagrad, O20OneRateForTheSegment) {
  Entry entry(2, GroupAdagrad(0, 1, 0.5));
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.008639, -0.000864});
  ExpectNear(entry.state(), {100});
  ExpectNear(entry.Step({1, 5}, 0.01f), {-0.009096, -0.004778});
}

COVERS("emb:O21")
TEST(GroupAdagrad, O21L2ZeroesTheWholeSegment) {
  ExpectNear(Entry(2, GroupAdagrad(0, 1, 0)).Step({10, 1}, 0.01f), {-0.009091, -0.000909});
  ExpectNear(Entry(2, GroupAdagrad(0, 1, 1000)).Step({10, 1}, 0.01f), {0, 0}, 0);
}

TEST(GroupAdagrad, WeightsThatNeverSawAGradientStay) {
  Entry entry(2, GroupAdagrad(0, 0, 0));
  entry.set_weights({1, -2});
  ExpectNear(entry.Step({0, 0}, 0.01f), {1, -2}, 0);
}

COVERS("emb:O22")
TEST(GroupFtrl, O22L1HoldsAgainstTheLengthOfZ) {
  Entry entry(2, GroupFtrl(0, 1, 1, 0));
  ExpectNear(entry.Step({3, 4}, 0.1f), {-0.06, -0.064});
  ExpectNear(entry.Step({3, 4}, 0.1f), {-0.1172769, -0.1240568});
  ExpectNear(Entry(2, GroupFtrl(0, 1, 6, 0)).Step({3, 4}, 0.1f), {0, 0}, 0);
}

TEST(GroupFtrl, L2MakesWeightsSmaller) {
  const double expected = -0.1 * 3 * 0.8 / (1 + 3 + 2 * 0.1);
  ExpectNear({Entry(2, GroupFtrl(0, 1, 1, 2)).Step({3, 4}, 0.1f)[0]}, {expected});
}

COVERS("emb:O23")
TEST(Adagrad, O23CouplesOrDecouplesWeightDecay) {
  Entry decoupled(1, Adagrad(0.1, 0.1, true)), coupled(1, Adagrad(0.1, 0.1));
  decoupled.set_weights({1});
  ExpectNear(decoupled.Step({1}, 0.1f), {0.8946537});
  ExpectNear(decoupled.Step({1}, 0.1f), {0.8167007});
  coupled.set_weights({1});
  ExpectNear(coupled.Step({1}, 0.1f), {0.9038926});
  ExpectNear(coupled.Step({1}, 0.1f), {0.8349158});
}

COVERS("emb:O24")
TEST(CompensateDelay, O24ThenAdadelta) {
  Entry entry(2, kAdadelta);
  const std::vector<float> gradient{10, 1};
  const auto step = [&](float read_weight) {
    const std::vector<float> weights = entry.weights(), read_weights(2, read_weight);
    std::vector<float> compensated(2);
    CompensateDelay(0.1f, weights.data(), read_weights.data(), gradient.data(), 2, compensated.data());
    return entry.Step(compensated, 0.01f);
  };
  ExpectNear(step(0.1f), {-0.0031603, -0.00301233});
  ExpectNear({entry.state()[0], entry.state()[1]}, {8.1, 0.09801}, 1e-5);
  ExpectNear(step(0), {-0.0065548, -0.00611400});
}

COVERS("emb:O25")
TEST(BatchSoftmax, O25LearnsTheInverseOfAnIdsFrequency) {
  Entry once(1, kBatchSoftmax);
  ExpectNear(once.Step({0}, 0.1f, 1), {0.1});
  for (const int64_t every : {5, 10}) {
    Entry entry(1, kBatchSoftmax);
    for (int64_t step = 0; step < 1000; step += every) entry.Step({-7}, 0.1f, step);
    EXPECT_NEAR(1 / entry.weights()[0], 1.0 / every, 0.01);
  }
}

TEST(BatchSoftmax, RemembersStepsBeyondFloatAndLeavesTheEntryAtANegativeOne) {
  Entry entry(1, kBatchSoftmax);
  const int64_t far = (int64_t{1} << 40) + 1;
  entry.Step({0}, 0, far);
  ExpectNear(entry.Step({0}, 0.5f, far + 3), {1.5});
  const std::vector<float> state = entry.state();
  ExpectNear(entry.Step({0}, 0.5f, -1), {1.5}, 0);
  EXPECT_EQ(std::memcmp(entry.state().data(), state.data(), sizeof(int64_t)), 0);
}

COVERS("emb:O26")
TEST(RoundToHalf, O26GoesUpAsOftenAsTheDistanceSays) {
  constexpr int kTrials = 100000;
  std::vector<float> weights(kTrials, 1.0003f);
  RoundToHalf(7, weights.data(), kTrials);
  int up = 0;
  for (const float weight : weights) {
    ASSERT_TRUE(weight == 1.0f || weight == 1.0009765625f) << weight;
    up += weight > 1;
  }
  EXPECT_NEAR(static_cast<double>(up) / kTrials, 0.30725, 0.006);  // four standard deviations
}

COVERS("emb:O26")
TEST(RoundToHalf, O26LeavesHalvesAndWhatNoHalfCanHold) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float value : {0.0f, -0.0f, 1.0f, -1.0009765625f, 0x1p-24f, -0x1.8p-14f, 65504.0f, 65505.0f, -1e30f,
                            infinity, -infinity, std::nanf("")}) {
    std::vector<float> weights(32, value);
    RoundToHalf(3, weights.data(), 32);
    for (const float weight : weights) EXPECT_EQ(std::memcmp(&weight, &value, sizeof(value)), 0) << value;
  }
}

TEST(RoundToHalf, TakesTheNeighboursOfNegativeAndTinyWeights) {
  const std::vector<std::vector<float>> cases{
      {-1.0003f, -1.0009765625f, -1}, {0x1.8p-24f, 0x1p-24f, 0x1p-23f}, {-0x1p-26f, -0x1p-24f, 0}};
  for (const std::vector<float>& numbers : cases) {
    std::vector<float> weights(1000, numbers[0]);
    RoundToHalf(1, weights.data(), 1000);
    bool below = false, above = false;
    for (const float weight : weights) {
      ASSERT_TRUE(weight == numbers[1] || weight == numbers[2]) << weight;
      (weight == numbers[1] ? below : above) = true;
    }
    EXPECT_TRUE(below && above);
  }
}

TEST(RoundToHalf, IsAFunctionOfItsKey) {
  std::vector<float> first(64, 1.0003f), again = first, other = first;
  RoundToHalf(1, first.data(), 64);
  RoundToHalf(1, again.data(), 64);
  RoundToHalf(2, other.data(), 64);
  EXPECT_EQ(first, again);
  EXPECT_NE(first, other);
}

COVERS("emb:O27")
TEST(SparseOptimizer, O27AZeroGradientLeavesZeroWeightsZero) {
  std::vector<RuleConfig> rules = AllRules();
  for (const RuleConfig& rule : {Adam(false, 0), Adam(true, 0), Adam(false, 0, "amsgrad")}) rules.push_back(rule);
  for (RuleConfig rule : {kAdadelta, kAdaMom}) {
    rule.parameters["epsilon"] = 0;
    rules.push_back(rule);
  }
  for (const RuleConfig& rule : rules) {
    SCOPED_TRACE(rule.kind);
    for (const int dim : {1, 4, 9, 16}) {
      if (rule.kind == "batch_softmax" && dim > 1) continue;
      Entry entry(dim, rule);
      for (int step = 0; step < 2; ++step) {
        for (const float weight : entry.Step(std::vector<float>(dim), 0.1f)) {
          EXPECT_EQ(weight, 0);
          EXPECT_FALSE(std::signbit(weight));
        }
      }
      for (const float value : entry.state()) EXPECT_TRUE(std::isfinite(value));
    }
  }
}

COVERS("emb:O28")
TEST(SparseOptimizer, O28ALearningRateOfZeroSkipsTheRulesThatDivideByIt) {
  for (const RuleConfig& rule : {Ftrl(0.1, 0, 0, 0), GroupFtrl(0.1, 1, 0, 0), GroupAdagrad(0.1, 0, 0)}) {
    Entry entry(1, rule);
    const std::vector<float> state = entry.state();
    ExpectNear(entry.Step({1}, 0), {0}, 0);
    EXPECT_EQ(entry.state(), state) << rule.kind;
  }
}

std::vector<std::vector<float>> SomeGradients(int entries, int dim) {
  std::vector<std::vector<float>> gradients(entries, std::vector<float>(dim));
  for (int i = 0; i < entries * dim; ++i) gradients[i / dim][i % dim] = 0.25f * static_cast<float>(i % 7) - 0.5f;
  return gradients;
}

// Three steps of one entry: its weights, a float that belongs to nobody, its state.
std::vector<float> StepAlone(const RuleConfig& rule, const std::vector<float>& gradient) {
  const size_t dim = gradient.size();
  Entry entry(static_cast<int>(dim), rule);
  entry.set_weights(std::vector<float>(dim, 0.5f));
  for (int step = 1; step <= 3; ++step) entry.Step(gradient, 0.1f, step);
  std::vector<float> floats = entry.weights();
  floats.push_back(99.0f);
  for (const float value : entry.state()) floats.push_back(value);
  return floats;
}

// The same for all entries at once.
std::vector<std::vector<float>> StepTogether(const RuleConfig& rule, const std::vector<std::vector<float>>& gradients) {
  const auto dim = static_cast<int>(gradients[0].size());
  const auto optimizer = MakeRule(rule, dim);
  const size_t size = dim + 1 + optimizer->StateFloats(dim);
  std::vector<std::vector<float>> entries(gradients.size(), std::vector<float>(size, 99.0f));
  std::vector<float*> weights;
  std::vector<const float*> along;
  for (size_t i = 0; i < entries.size(); ++i) {
    std::fill_n(entries[i].begin(), dim, 0.5f);
    optimizer->InitState(entries[i].data() + dim + 1, dim);
    weights.push_back(entries[i].data());
    along.push_back(gradients[i].data());
  }
  for (int step = 1; step <= 3; ++step) {
    optimizer->Update(weights.data(), dim + 1, along.data(), weights.size(), dim, {0.1f, step});
  }
  return entries;
}

TEST(SparseOptimizer, ABatchDoesWhatSingleStepsDoAtEveryDim) {
  for (const RuleConfig& rule : AllRules()) {
    SCOPED_TRACE(rule.kind);
    for (const int dim : {1, 3, 4, 8, 16, 17, 32, 64}) {
      if (rule.kind == "batch_softmax" && dim > 1) continue;
      const std::vector<std::vector<float>> gradients = SomeGradients(21, dim);
      const std::vector<std::vector<float>> entries = StepTogether(rule, gradients);
      for (size_t i = 0; i < entries.size(); ++i) EXPECT_EQ(entries[i], StepAlone(rule, gradients[i])) << dim;
    }
  }
}

TEST(SparseOptimizer, EntriesMayLieAtAnyMultipleOfFourBytes) {
  for (const RuleConfig& rule : AllRules()) {
    const int dim = rule.kind == "batch_softmax" ? 1 : 16;
    const auto optimizer = MakeRule(rule, dim);
    std::vector<float> floats(dim + optimizer->StateFloats(dim) + 4), gradient(dim + 4, 1.0f);
    for (int shift = 0; shift < 4; ++shift) {
      float* const weights = floats.data() + shift;
      const float* const along = gradient.data() + shift;
      std::fill_n(weights, dim, 0.5f);
      optimizer->InitState(weights + dim, dim);
      optimizer->Update(&weights, dim, &along, 1, dim, {0.1f, 1});
      Entry aligned(dim, rule);
      aligned.set_weights(std::vector<float>(dim, 0.5f));
      EXPECT_EQ(std::vector<float>(weights, weights + dim), aligned.Step(std::vector<float>(dim, 1.0f), 0.1f, 1));
    }
  }
}

TEST(SparseOptimizer, AllDimsOfAnEntryStepAlikeWhateverTheirNumber) {
  for (const RuleConfig& rule : AllRules()) {
    if (rule.kind.rfind("group", 0) == 0 || rule.kind == "batch_softmax") continue;
    SCOPED_TRACE(rule.kind);
    Entry one(1, rule);
    one.set_weights({0.5f});
    for (int step = 0; step < 3; ++step) one.Step({-0.7f}, 0.1f);
    for (const int dim : {3, 4, 8, 16, 17, 32, 64}) {
      Entry many(dim, rule);
      many.set_weights(std::vector<float>(dim, 0.5f));
      for (int step = 0; step < 3; ++step) many.Step(std::vector<float>(dim, -0.7f), 0.1f);
      EXPECT_EQ(many.weights(), std::vector<float>(dim, one.weights()[0])) << dim;
    }
  }
}

TEST(MakeOptimizer, RefusesUnknownRulesNumbersAndDims) {
  const auto problem = [](const RuleConfig& rule, int dim) {
    std::unique_ptr<SparseOptimizer> optimizer;
    return MakeOptimizer("table 't', segment 1: optimizer", rule, dim, &optimizer).message();
  };
  EXPECT_NE(problem({"lion", {}}, 1).find("'lion' is unknown; choose from ada"), std::string::npos);
  EXPECT_EQ(problem({"sgd", {{"rho", 1}}}, 1), "table 't', segment 1: optimizer sgd has no 'rho'");
  EXPECT_NE(problem({"adagrad", {}}, 1).find("needs 'initial_accumulator_value'"), std::string::npos);
  EXPECT_NE(problem(Adagrad(-1), 1).find("'initial_accumulator_value' out of bounds"), std::string::npos);
  EXPECT_EQ(problem(kBatchSoftmax, 2), "table 't', segment 1: optimizer batch_softmax needs dim 1, not 2");
}

// Gradients are finite, but their squares and sums need not be.
TEST(SparseOptimizer, AStepThatWouldNotBeFiniteIsNotTaken) {
  for (const RuleConfig& rule : AllRules()) {
    const int dim = rule.kind == "batch_softmax" ? 1 : 3;
    const auto optimizer = MakeRule(rule, dim);
    std::vector<float> entry(static_cast<size_t>(dim + optimizer->StateFloats(dim)));
    optimizer->InitState(entry.data() + dim, dim);
    float* const weights = entry.data();
    int64_t not_taken = 0;
    for (int step = 0; step < 400; ++step) {
      const float large = step % 2 == 0 ? 2e19f : 3.4e38f;
      const std::vector<float> gradient(static_cast<size_t>(dim), step % 3 == 0 ? -large : large);
      const float* const gradients = gradient.data();
      const std::vector<float> before = entry;
      const int64_t count = optimizer->Update(&weights, dim, &gradients, 1, dim, {10.0f, step});
      const bool is_unchanged = std::memcmp(entry.data(), before.data(), entry.size() * sizeof(float)) == 0;
      EXPECT_TRUE(count == 0 || is_unchanged) << rule.kind;
      not_taken += count;
      for (const float number : entry) ASSERT_TRUE(std::isfinite(number)) << rule.kind << ", step " << step;
    }
    const bool must_overflow = rule.kind == "ftrl" || rule.kind == "adagrad" || rule.kind == "sgd";
    EXPECT_TRUE(not_taken > 0 || !must_overflow) << rule.kind;
    // Nothing is spoilt.
    const std::vector<float> gradient(static_cast<size_t>(dim), 0.5f);
    const float* const gradients = gradient.data();
    EXPECT_EQ(optimizer->Update(&weights, dim, &gradients, 1, dim, {0.1f, 1000}), 0) << rule.kind;
  }
}

}  // namespace
}  // namespace millrace
