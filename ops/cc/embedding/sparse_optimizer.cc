#include "ops/cc/embedding/sparse_optimizer.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace millrace {
namespace {

// Serving tables hold weights only; the table refuses gradients before it comes to an update.
class NoOptimizer final : public SparseOptimizer {
 public:
  int StateFloats(int) const override { return 0; }
  void InitState(float*, int) const override {}
  void Update(float*, float*, const float*, int, float) const override {}
};

class Sgd final : public SparseOptimizer {
 public:
  int StateFloats(int) const override { return 0; }
  void InitState(float*, int) const override {}
  void Update(float* w, float*, const float* gradient, int dim, float lr) const override {
    for (int i = 0; i < dim; ++i) w[i] -= lr * gradient[i];
  }
};

// State: norm[dim]. Duchi, Hazan, Singer 2011.
class Adagrad final : public SparseOptimizer {
 public:
  Adagrad(float initial, float decay) : initial_(initial), decay_(decay) {}
  int StateFloats(int dim) const override { return dim; }
  void InitState(float* state, int dim) const override { std::fill_n(state, dim, initial_); }
  void Update(float* w, float* norm, const float* gradient, int dim, float lr) const override {
    for (int i = 0; i < dim; ++i) {
      const float g = gradient[i] + decay_ * w[i];
      norm[i] += g * g;
      const float root = std::sqrt(norm[i]);
      w[i] -= lr * g / (root > 0 ? root : 1.0f);  // root is 0 only where g is 0 too
    }
  }

 private:
  const float initial_, decay_;
};

// State: m[dim], v[dim], beta1^t, beta2^t. Kingma, Ba 2015; Nesterov after Dozat 2016.
class Adam final : public SparseOptimizer {
 public:
  Adam(float beta1, float beta2, float epsilon, float decay, bool nesterov)
      : beta1_(beta1), beta2_(beta2), epsilon_(epsilon), decay_(decay), nesterov_(nesterov) {}
  int StateFloats(int dim) const override { return 2 * dim + 2; }
  void InitState(float* state, int dim) const override {
    std::fill_n(state, 2 * dim, 0.0f);
    state[2 * dim] = beta1_;
    state[2 * dim + 1] = beta2_;
  }
  void Update(float* w, float* state, const float* gradient, int dim, float lr) const override {
    float* m = state;
    float* v = state + dim;
    float& beta1_power = state[2 * dim];
    float& beta2_power = state[2 * dim + 1];
    const float rate = lr * std::sqrt(1 - beta2_power) / (1 - beta1_power);
    const float from_gradient = nesterov_ ? 1 - beta1_ : 0.0f;
    const float from_m = nesterov_ ? beta1_ : 1.0f;
    for (int i = 0; i < dim; ++i) {
      const float g = gradient[i] + decay_ * w[i];
      m[i] += (1 - beta1_) * (g - m[i]);
      v[i] += (1 - beta2_) * (g * g - v[i]);
      const float below = std::sqrt(v[i]) + epsilon_;
      w[i] -= rate * (from_gradient * g + from_m * m[i]) / (below > 0 ? below : 1.0f);
    }
    beta1_power *= beta1_;
    beta2_power *= beta2_;
  }

 private:
  const float beta1_, beta2_, epsilon_, decay_;
  const bool nesterov_;
};

// State: norm[dim], zero[dim]. McMahan et al. 2013.
class Ftrl final : public SparseOptimizer {
 public:
  Ftrl(float initial, float beta, float l1, float l2) : initial_(initial), beta_(beta), l1_(l1), l2_(l2) {}
  int StateFloats(int dim) const override { return 2 * dim; }
  void InitState(float* state, int dim) const override {
    std::fill_n(state, dim, initial_);
    std::fill_n(state + dim, dim, 0.0f);
  }
  void Update(float* w, float* state, const float* gradient, int dim, float lr) const override {
    if (lr == 0) return;  // the rule divides by it
    float* norm = state;
    float* zero = state + dim;
    for (int i = 0; i < dim; ++i) {
      const float g = gradient[i];
      const float new_norm = norm[i] + g * g;
      const float root = std::sqrt(new_norm);
      zero[i] += g - (root - std::sqrt(norm[i])) / lr * w[i];
      norm[i] = new_norm;
      const float z = zero[i];
      w[i] = std::abs(z) <= l1_ ? 0.0f : lr * (std::copysign(l1_, z) - z) / (root + beta_ + l2_ * lr);
    }
  }

 private:
  const float initial_, beta_, l1_, l2_;
};

// Takes the numbers of a rule by name and finds what is out of bounds or left over.
class Parameters {
 public:
  explicit Parameters(const TableConfig& config) : table_(config.name), left_(config.optimizer.parameters) {}

  float Take(const std::string& name, double below = HUGE_VAL) {
    const auto found = left_.find(name);
    if (found == left_.end()) {
      problem_ = "needs '" + name + "'";
      return 0;
    }
    const double value = found->second;
    if (!(value >= 0 && value < below)) problem_ = "has '" + name + "' out of bounds";
    left_.erase(found);
    return static_cast<float>(value);
  }

  Status Finish(const std::string& kind) const {
    if (!problem_.empty()) return InvalidArgument("table '" + table_ + "': optimizer " + kind + " " + problem_);
    if (left_.empty()) return {};
    return InvalidArgument("table '" + table_ + "': optimizer " + kind + " has no '" + left_.begin()->first + "'");
  }

 private:
  const std::string table_;
  std::map<std::string, double> left_;
  std::string problem_;
};

}  // namespace

Status MakeOptimizer(const TableConfig& config, std::unique_ptr<SparseOptimizer>* result) {
  const std::string& kind = config.optimizer.kind;
  Parameters take(config);
  if (kind == "none") {
    *result = std::make_unique<NoOptimizer>();
  } else if (kind == "sgd") {
    *result = std::make_unique<Sgd>();
  } else if (kind == "adagrad") {
    const float initial = take.Take("initial_accumulator_value");
    *result = std::make_unique<Adagrad>(initial, take.Take("weight_decay_factor"));
  } else if (kind == "adam") {
    const float beta1 = take.Take("beta1", 1), beta2 = take.Take("beta2", 1), epsilon = take.Take("epsilon");
    const float decay = take.Take("weight_decay_factor");
    *result = std::make_unique<Adam>(beta1, beta2, epsilon, decay, take.Take("use_nesterov") != 0);
  } else if (kind == "ftrl") {
    const float initial = take.Take("initial_accumulator_value"), beta = take.Take("beta");
    const float l1 = take.Take("l1_regularization_strength");
    *result = std::make_unique<Ftrl>(initial, beta, l1, take.Take("l2_regularization_strength"));
  } else {
    return InvalidArgument("table '" + config.name + "': unknown optimizer '" + kind +
                           "'; choose from sgd, adagrad, adam, ftrl, none");
  }
  return take.Finish(kind);
}

}  // namespace millrace
