// Update rules against the conformance vectors; the comment above a test has the vector's id.
#include "ops/cc/embedding/sparse_optimizer.h"

#include <cmath>

#include "tests/cc/test_tables.h"

namespace millrace {
namespace {

std::string Adam(bool nesterov, double epsilon = 0.01) {
  return ";optimizer=adam;optimizer.beta1=0.9;optimizer.beta2=0.99;optimizer.epsilon=" + std::to_string(epsilon) +
         ";optimizer.weight_decay_factor=0;optimizer.use_nesterov=" + (nesterov ? "1" : "0");
}

std::string Ftrl(double initial, double beta, double l1, double l2) {
  return ";optimizer=ftrl;optimizer.initial_accumulator_value=" + std::to_string(initial) +
         ";optimizer.beta=" + std::to_string(beta) + ";optimizer.l1_regularization_strength=" + std::to_string(l1) +
         ";optimizer.l2_regularization_strength=" + std::to_string(l2);
}

// Weights and state of one entry under one rule.
class Entry {
 public:
  Entry(int dim, const std::string& rule) : dim_(dim), weights_(dim) {
    TableConfig config;
    EXPECT_TRUE(TableConfig::Parse(TableText("t", dim, rule), &config).ok());
    const Status made = MakeOptimizer(config, &optimizer_);
    EXPECT_TRUE(made.ok()) << made.message();
    state_.resize(optimizer_->StateFloats(dim));
    optimizer_->InitState(state_.data(), dim);
  }

  const std::vector<float>& Step(const std::vector<float>& gradient, float rate) {
    optimizer_->Update(weights_.data(), state_.data(), gradient.data(), dim_, rate);
    return weights_;
  }

  std::vector<float>& weights() { return weights_; }
  std::vector<float>& state() { return state_; }

 private:
  const int dim_;
  std::unique_ptr<SparseOptimizer> optimizer_;
  std::vector<float> weights_, state_;
};

// emb:O1
TEST(Sgd, O1StepsAgainstTheGradient) { ExpectNear(Entry(1, kSgd).Step({1}, 0.1f), {-0.1}); }

// emb:O3
TEST(Adagrad, O3DividesByTheRootOfTheNorm) {
  ExpectNear(Entry(2, Adagrad(1)).Step({1, 2}, 0.1f), {-0.07071067, -0.08944272});
}

// emb:O4
TEST(Adagrad, O4DecaysWeightsInNormAndStepAtAnyDim) {
  for (const int copies : {1, 4, 9}) {
    Entry entry(2 * copies, Adagrad(1, 0.1));
    std::vector<float> gradient;
    for (int i = 0; i < copies; ++i) gradient.insert(gradient.end(), {1, 2});
    entry.Step(gradient, 0.1f);
    const std::vector<float>& second = entry.Step(gradient, 0.1f);
    for (int i = 0; i < copies; ++i) {
      EXPECT_NEAR(second[2 * i], -0.128173, 1e-6);
      EXPECT_NEAR(second[2 * i + 1], -0.155943, 1e-6);
    }
  }
}

// emb:O5
TEST(Adagrad, O5GoesOnFromItsState) {
  Entry entry(1, Adagrad(0.1));
  ExpectNear(entry.Step({1}, 1), {-0.95346254});
  ExpectNear(entry.Step({1}, 1), {-1.643528});
}

// emb:O6
TEST(Adagrad, O6RestoredStateMeetsZeroWeights) {
  Entry one(1, Adagrad(1)), two(2, Adagrad(2));
  ExpectNear(one.Step({1}, 1), {-0.70710677});
  ExpectNear(two.Step({2, 3}, 2), {-1.6329931, -1.8090681});
  one.weights().assign(1, 0);
  two.weights().assign(2, 0);
  ExpectNear(one.Step({1}, 1), {-0.57735026});
  ExpectNear(two.Step({2, 3}, 2), {-1.264911, -1.3416407});
}

// emb:O23
TEST(Adagrad, O23CouplesWeightDecay) {
  Entry entry(1, Adagrad(0.1, 0.1));
  entry.weights() = {1};
  ExpectNear(entry.Step({1}, 0.1f), {0.9038926});
  ExpectNear(entry.Step({1}, 0.1f), {0.8349158});
}

// emb:O8
TEST(Adam, O8ThreeSteps) {
  Entry entry(2, Adam(false));
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.00990099, -0.00909091});
  ExpectNear({entry.state()[0], entry.state()[1]}, {1, 0.1});
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.01983060, -0.01842895});
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.0297729, -0.0278805});
}

// emb:O9
TEST(Adam, O9Nesterov) {
  Entry entry(1, Adam(true));
  ExpectNear(entry.Step({10}, 0.01f), {-0.0188119});
  ExpectNear(entry.Step({10}, 0.01f), {-0.0329746});
  ExpectNear(entry.Step({10}, 0.01f), {-0.0455915});
}

// emb:O10
TEST(Adam, O10GoesOnFromItsStateWithBothPowers) {
  Entry before(1, Adam(false)), after(1, Adam(false));
  before.Step({10}, 0.01f);
  after.weights() = before.weights();
  after.state() = before.state();
  ExpectNear(after.Step({10}, 0.01f), {-0.0198306});
}

// emb:O11
TEST(Adam, O11AsTheAmsgradVectorSaysForAdam) {
  Entry entry(1, Adam(false));
  ExpectNear(entry.Step({10}, 0.01f), {-0.0099010});
  ExpectNear(entry.Step({0}, 0.01f), {-0.0165500});
  ExpectNear(entry.Step({0}, 0.01f), {-0.0217011});
}

// emb:O17
TEST(Ftrl, O17Defaults) {
  Entry entry(2, Ftrl(0.1, 0, 0, 0));
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.009995, -0.00953463});
  ExpectNear(entry.state(), {100.1, 1.1, 10, 1}, 1e-5);
  ExpectNear(entry.Step({10, 1}, 0.01f), {-0.0170643, -0.0164353});
}

// emb:O18
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

// emb:O27
TEST(SparseOptimizer, O27AZeroGradientLeavesZeroWeightsZero) {
  for (const std::string& rule : {std::string(kSgd), Adagrad(0), Adam(false, 0), Adam(true, 0), Ftrl(0, 0, 0, 0)}) {
    Entry entry(9, rule);
    ExpectNear(entry.Step(std::vector<float>(9), 0.1f), std::vector<double>(9), 0);
    for (const float value : entry.state()) EXPECT_TRUE(std::isfinite(value)) << rule;
  }
}

// emb:O28
TEST(Ftrl, O28ALearningRateOfZeroSkipsTheUpdate) {
  Entry entry(1, Ftrl(0.1, 0, 0, 0));
  ExpectNear(entry.Step({1}, 0), {0}, 0);
  ExpectNear(entry.state(), {0.1, 0});
}

TEST(SparseOptimizer, RefusesUnknownRulesAndNumbers) {
  const auto problem = [](const std::string& rule) {
    TableConfig config;
    EXPECT_TRUE(TableConfig::Parse(TableText("t", 1, rule), &config).ok());
    std::unique_ptr<SparseOptimizer> optimizer;
    return MakeOptimizer(config, &optimizer).message();
  };
  EXPECT_NE(problem(";optimizer=lion").find("choose from sgd, adagrad, adam, ftrl"), std::string::npos);
  EXPECT_NE(problem(";optimizer=sgd;optimizer.rho=1").find("has no 'rho'"), std::string::npos);
  EXPECT_NE(problem(";optimizer=adagrad").find("needs '"), std::string::npos);
  EXPECT_NE(problem(Adagrad(-1)).find("out of bounds"), std::string::npos);
}

}  // namespace
}  // namespace millrace
