#include "ops/cc/embedding/rules/sparse_optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <type_traits>
#include <vector>

#include "ops/cc/embedding/base/cpu_clones.h"
#include "ops/cc/embedding/base/fid.h"

namespace millrace {
namespace {

constexpr int64_t kEntriesAhead = 8;  // whose cache lines are on their way while one is updated
constexpr int kFloatsPerCacheLine = 16;

void PrefetchToWrite(const float* floats, int count) {
  if (count == 0) return;
  for (int i = 0; i < count; i += kFloatsPerCacheLine) __builtin_prefetch(floats + i, 1);
  __builtin_prefetch(floats + count - 1, 1);
}

// On the bits, as in finite.cc: a reduction over them vectorises.
template <typename Count>
bool IsFinite(const float* values, Count count) {
  uint32_t largest = 0;
  for (int i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    largest = std::max(largest, bits & 0x7FFFFFFFu);
  }
  return largest < 0x7F800000u;
}

// A dim that the compiler knows, so that the loops over it unroll and vectorise.
template <int kDim>
using FixedDim = std::integral_constant<int, kDim>;

// An optimizer from a rule, which knows one entry:
//   explicit Rule(RuleParameters& take);
//   int StateFloats(int dim) const;
//   void InitState(float* state, int dim) const;
//   static constexpr StateKind kState;
//   template <typename Dim>  // int or a FixedDim
//   void Step(float* weights, float* state, const float* gradient, Dim dim, StepContext at) const;
enum class StateKind {
  kNone,    // and no step changes anything
  kFloats,  // which stay finite
  kBits,    // of other numbers
};

template <typename Rule>
class OptimizerOf final : public SparseOptimizer {
 public:
  explicit OptimizerOf(RuleParameters& take) : rule_(take) {}

  int StateFloats(int dim) const override { return rule_.StateFloats(dim); }
  void InitState(float* state, int dim) const override { rule_.InitState(state, dim); }

  int64_t Update(float* const* weights, ptrdiff_t state_offset, const float* const* gradients, int64_t count, int dim,
                 const StepContext& context) const override {
    if (Rule::kState == StateKind::kNone) return 0;
    std::vector<float> before(static_cast<size_t>(dim) + static_cast<size_t>(rule_.StateFloats(dim)));
    return UpdateAll(rule_, weights, state_offset, gradients, count, dim, context, before.data());
  }

 private:
  MILLRACE_CLONES static int64_t UpdateAll(const Rule& rule, float* const* weights, ptrdiff_t state_offset,
                                           const float* const* gradients, int64_t count, int dim, StepContext context,
                                           float* before) {
    const auto run = [=](auto d) { return Run(rule, weights, state_offset, gradients, count, d, context, before); };
    switch (dim) {
      case 1:
        return run(FixedDim<1>());
      case 4:
        return run(FixedDim<4>());
      case 8:
        return run(FixedDim<8>());
      case 16:
        return run(FixedDim<16>());
      case 32:
        return run(FixedDim<32>());
      case 64:
        return run(FixedDim<64>());
      default:
        return run(dim);
    }
  }

  // `rule` is a copy, which no write to an entry can alias.
  template <typename Dim>
  static int64_t Run(const Rule rule, float* const* weights, ptrdiff_t state_offset, const float* const* gradients,
                     int64_t count, Dim dim, StepContext context, float* before) {
    const int state_floats = rule.StateFloats(dim);
    int64_t not_taken = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (i + kEntriesAhead < count) {
        PrefetchToWrite(weights[i + kEntriesAhead], dim);
        PrefetchToWrite(weights[i + kEntriesAhead] + state_offset, state_floats);
        __builtin_prefetch(gradients[i + kEntriesAhead]);
      }
      float *w = weights[i], *state = w + state_offset;
      std::memcpy(before, w, sizeof(float) * dim);
      std::memcpy(before + dim, state, sizeof(float) * state_floats);
      rule.Step(w, state, gradients[i], dim, context);
      if (IsFinite(w, dim) && (Rule::kState == StateKind::kBits || IsFinite(state, state_floats))) continue;
      std::memcpy(w, before, sizeof(float) * dim);
      std::memcpy(state, before + dim, sizeof(float) * state_floats);
      ++not_taken;
    }
    return not_taken;
  }

  const Rule rule_;
};

// What a sum of roots divides by: 1 where it is 0, as it is while all gradients were too small to square. Added, not
// chosen, so that loops vectorise.
inline float Divisor(float roots) { return roots + static_cast<float>(roots == 0); }

// The share of a vector that is left when its length shrinks by `threshold`, down to 0.
template <typename Dim>
float KeptOf(const float* vector, Dim dim, float threshold) {
  double squares = 0;
  for (int i = 0; i < dim; ++i) squares += static_cast<double>(vector[i]) * vector[i];
  const auto length = static_cast<float>(std::sqrt(squares));
  return length > threshold ? (length - threshold) / length : 0.0f;
}

struct Stateless {
  static constexpr StateKind kState = StateKind::kFloats;
  int StateFloats(int) const { return 0; }
  void InitState(float*, int) const {}
};

struct None : Stateless {
  static constexpr StateKind kState = StateKind::kNone;
  explicit None(RuleParameters&) {}
  template <typename Dim>
  void Step(float*, float*, const float*, Dim, StepContext) const {}
};

struct Sgd : Stateless {
  explicit Sgd(RuleParameters&) {}
  template <typename Dim>
  void Step(float* __restrict w, float*, const float* __restrict gradient, Dim dim, StepContext at) const {
    for (int i = 0; i < dim; ++i) w[i] -= at.learning_rate * gradient[i];
  }
};

// State: norm[dim]. Duchi, Hazan, Singer 2011; decoupled weight decay after Loshchilov, Hutter 2019.
class Adagrad {
 public:
  static constexpr StateKind kState = StateKind::kFloats;
  explicit Adagrad(RuleParameters& take) : initial_(take.TakePositive("initial_accumulator_value")) {
    const float decay = take.TakePositive("weight_decay_factor");
    (take.TakeFlag("decouple_weight_decay") ? decoupled_decay_ : coupled_decay_) = decay;
  }
  int StateFloats(int dim) const { return dim; }
  void InitState(float* state, int dim) const { std::fill_n(state, dim, initial_); }
  template <typename Dim>
  void Step(float* __restrict w, float* __restrict norm, const float* __restrict gradient, Dim dim,
            StepContext at) const {
    const float shrink = at.learning_rate * decoupled_decay_;
    for (int i = 0; i < dim; ++i) {
      const float g = gradient[i] + coupled_decay_ * w[i];
      norm[i] += g * g;
      w[i] -= at.learning_rate * g / Divisor(std::sqrt(norm[i])) + shrink * w[i];
    }
  }

 private:
  float initial_;
  float coupled_decay_ = 0;  // part of the gradient
  float decoupled_decay_ = 0;
};

// State: accum[dim], accum_update[dim]. Zeiler 2012.
class Adadelta {
 public:
  static constexpr StateKind kState = StateKind::kFloats;
  explicit Adadelta(RuleParameters& take)
      : ratio_(take.TakeFraction("averaging_ratio")),
        epsilon_(take.TakePositive("epsilon")),
        decay_(take.TakePositive("weight_decay_factor")) {}
  int StateFloats(int dim) const { return 2 * dim; }
  void InitState(float* state, int dim) const { std::fill_n(state, 2 * dim, 0.0f); }
  template <typename Dim>
  void Step(float* __restrict w, float* __restrict accum, const float* __restrict gradient, Dim dim,
            StepContext at) const {
    float* accum_update = accum + dim;
    for (int i = 0; i < dim; ++i) {
      const float g = gradient[i] + decay_ * w[i];
      accum[i] = ratio_ * accum[i] + (1 - ratio_) * g * g;
      const float update = std::sqrt(accum_update[i] + epsilon_) / Divisor(std::sqrt(accum[i] + epsilon_)) * g;
      w[i] -= at.learning_rate * update;
      accum_update[i] = ratio_ * accum_update[i] + (1 - ratio_) * update * update;
    }
  }

 private:
  float ratio_, epsilon_, decay_;
};

// State: m[dim], v[dim], of AMSGrad the largest v[dim], beta1^t, beta2^t. Kingma, Ba 2015; Nesterov after Dozat 2016;
// AMSGrad: Reddi, Kale, Kumar 2018.
template <bool kAmsgrad>
class AdamOrAmsgrad {
 public:
  static constexpr StateKind kState = StateKind::kFloats;
  explicit AdamOrAmsgrad(RuleParameters& take)
      : beta1_(take.TakeFraction("beta1")),
        beta2_(take.TakeFraction("beta2")),
        epsilon_(take.TakePositive("epsilon")),
        decay_(take.TakePositive("weight_decay_factor")),
        nesterov_(take.TakeFlag("use_nesterov")) {}
  int StateFloats(int dim) const { return kVectors * dim + 2; }
  void InitState(float* state, int dim) const {
    std::fill_n(state, kVectors * dim, 0.0f);
    state[kVectors * dim] = beta1_;
    state[kVectors * dim + 1] = beta2_;
  }
  template <typename Dim>
  void Step(float* __restrict w, float* __restrict state, const float* __restrict gradient, Dim dim,
            StepContext at) const {
    float *m = state, *v = state + dim, *largest_v = state + (kVectors - 1) * dim;
    float *beta1_power = state + kVectors * dim, *beta2_power = beta1_power + 1;
    const float rate = at.learning_rate * std::sqrt(1 - *beta2_power) / (1 - *beta1_power);
    const float from_gradient = nesterov_ ? 1 - beta1_ : 0.0f;
    const float from_m = nesterov_ ? beta1_ : 1.0f;
    for (int i = 0; i < dim; ++i) {
      const float g = gradient[i] + decay_ * w[i];
      m[i] += (1 - beta1_) * (g - m[i]);
      v[i] += (1 - beta2_) * (g * g - v[i]);
      if constexpr (kAmsgrad) largest_v[i] = std::max(largest_v[i], v[i]);
      w[i] -= rate * (from_gradient * g + from_m * m[i]) / Divisor(std::sqrt(largest_v[i]) + epsilon_);
    }
    *beta1_power *= beta1_;
    *beta2_power *= beta2_;
  }

 private:
  static constexpr int kVectors = kAmsgrad ? 3 : 2;

  float beta1_, beta2_, epsilon_, decay_;
  bool nesterov_;
};

// State: m[dim], v[dim], the decayed count of steps. Adam's mean of gradients over Adagrad's norm, decayed.
class AdaMom {
 public:
  static constexpr StateKind kState = StateKind::kFloats;
  explicit AdaMom(RuleParameters& take)
      : mom_decay_(take.TakeFraction("mom_decay")),
        ada_decay_(take.TakeFraction("ada_decay")),
        epsilon_(take.TakePositive("epsilon")),
        decay_(take.TakePositive("weight_decay_factor")) {}
  int StateFloats(int dim) const { return 2 * dim + 1; }
  void InitState(float* state, int dim) const { std::fill_n(state, 2 * dim + 1, 0.0f); }
  template <typename Dim>
  void Step(float* __restrict w, float* __restrict m, const float* __restrict gradient, Dim dim, StepContext at) const {
    float *v = m + dim, *stored_count = v + dim;
    const float count = ada_decay_ * *stored_count + 1;
    for (int i = 0; i < dim; ++i) {
      const float g = gradient[i] + decay_ * w[i];
      m[i] = mom_decay_ * m[i] + (1 - mom_decay_) * g;
      v[i] = ada_decay_ * v[i] + g * g;
      w[i] -= at.learning_rate * m[i] / Divisor(std::sqrt(v[i] / count + epsilon_));
    }
    *stored_count = count;
  }

 private:
  float mom_decay_, ada_decay_, epsilon_, decay_;
};

// State: velocity[dim]. Polyak 1964; Nesterov's form after Sutskever et al. 2013.
class Momentum {
 public:
  static constexpr StateKind kState = StateKind::kFloats;
  explicit Momentum(RuleParameters& take)
      : momentum_(take.TakeFraction("momentum")),
        decay_(take.TakePositive("weight_decay_factor")),
        nesterov_(take.TakeFlag("use_nesterov")) {}
  int StateFloats(int dim) const { return dim; }
  void InitState(float* state, int dim) const { std::fill_n(state, dim, 0.0f); }
  template <typename Dim>
  void Step(float* __restrict w, float* __restrict velocity, const float* __restrict gradient, Dim dim,
            StepContext at) const {
    const float from_old = nesterov_ ? -momentum_ : 0.0f;
    const float from_new = nesterov_ ? 1 + momentum_ : 1.0f;
    for (int i = 0; i < dim; ++i) {
      const float old = velocity[i];
      velocity[i] = momentum_ * old - at.learning_rate * (gradient[i] + decay_ * w[i]);
      w[i] += from_old * old + from_new * velocity[i];
    }
  }

 private:
  float momentum_, decay_;
  bool nesterov_;
};

// The "gradient" is an observed value, of which the weights are the running mean.
class MovingAverage : public Stateless {
 public:
  explicit MovingAverage(RuleParameters& take) : momentum_(take.TakeFraction("momentum")) {}
  template <typename Dim>
  void Step(float* __restrict w, float*, const float* __restrict observed, Dim dim, StepContext) const {
    for (int i = 0; i < dim; ++i) w[i] = momentum_ * w[i] + (1 - momentum_) * observed[i];
  }

 private:
  float momentum_;
};

// State: norm[dim], the mean of squared gradients or, in version 2, their decayed sum. Tieleman, Hinton 2012, but
// dividing by root + 1; in double.
template <bool kMean>
class RmsProp {
 public:
  static constexpr StateKind kState = StateKind::kFloats;
  explicit RmsProp(RuleParameters& take)
      : momentum_(take.TakeFraction("momentum")), decay_(take.TakePositive("weight_decay_factor")) {}
  int StateFloats(int dim) const { return dim; }
  void InitState(float* state, int dim) const { std::fill_n(state, dim, 0.0f); }
  template <typename Dim>
  void Step(float* __restrict w, float* __restrict norm, const float* __restrict gradient, Dim dim,
            StepContext at) const {
    const double momentum = momentum_, decay = decay_, rate = at.learning_rate;
    const double from_square = kMean ? 1 - momentum : 1;
    for (int i = 0; i < dim; ++i) {
      const double g = gradient[i] + decay * w[i];
      const double new_norm = momentum * norm[i] + from_square * g * g;
      norm[i] = static_cast<float>(new_norm);
      w[i] = static_cast<float>(w[i] - rate / (std::sqrt(new_norm) + 1) * g);
    }
  }

 private:
  float momentum_, decay_;
};

// State: norm[dim], zero[dim]. McMahan et al. 2013, FTRL-Proximal; the group form (Ni et al. 2019) holds l1 against the
// length of the whole segment's z.
template <bool kGroup>
class Ftrl {
 public:
  static constexpr StateKind kState = StateKind::kFloats;
  explicit Ftrl(RuleParameters& take)
      : initial_(take.TakePositive("initial_accumulator_value")),
        beta_(take.TakePositive("beta")),
        l1_(take.TakePositive("l1_regularization_strength")),
        l2_(take.TakePositive("l2_regularization_strength")) {}
  int StateFloats(int dim) const { return 2 * dim; }
  void InitState(float* state, int dim) const {
    std::fill_n(state, dim, initial_);
    std::fill_n(state + dim, dim, 0.0f);
  }
  template <typename Dim>
  void Step(float* __restrict w, float* __restrict norm, const float* __restrict gradient, Dim dim,
            StepContext at) const {
    if (at.learning_rate == 0) return;
    float* zero = norm + dim;
    for (int i = 0; i < dim; ++i) {
      const float g = gradient[i];
      const float new_norm = norm[i] + g * g;
      zero[i] += g - (std::sqrt(new_norm) - std::sqrt(norm[i])) / at.learning_rate * w[i];
      norm[i] = new_norm;
    }
    const float kept = kGroup ? KeptOf(zero, dim, l1_) : 0;
    for (int i = 0; i < dim; ++i) {
      const float shrunk = kGroup ? kept * zero[i] : Shrink(zero[i]);
      const float below = Divisor(std::sqrt(norm[i]) + beta_ + l2_ * at.learning_rate);
      w[i] = 0.0f - at.learning_rate * shrunk / below;  // not -0
    }
  }

 private:
  float Shrink(float z) const { return std::copysign(std::max(std::abs(z) - l1_, 0.0f), z); }

  float initial_, beta_, l1_, l2_;
};

// State: the sum of the segment's largest squared gradients. Adagrad with one rate per segment, then the proximal step
// of l2 * |w| (group lasso: Yuan, Lin 2006).
class GroupAdagrad {
 public:
  static constexpr StateKind kState = StateKind::kFloats;
  explicit GroupAdagrad(RuleParameters& take)
      : initial_(take.TakePositive("initial_accumulator_value")),
        beta_(take.TakePositive("beta")),
        l2_(take.TakePositive("l2_regularization_strength")),
        decay_(take.TakePositive("weight_decay_factor")) {}
  int StateFloats(int) const { return 1; }
  void InitState(float* state, int) const { *state = initial_; }
  template <typename Dim>
  void Step(float* __restrict w, float* __restrict square_sum, const float* __restrict gradient, Dim dim,
            StepContext at) const {
    if (at.learning_rate == 0) return;
    float largest = 0;
    for (int i = 0; i < dim; ++i) largest = std::max(largest, std::abs(gradient[i] + decay_ * w[i]));
    *square_sum += largest * largest;
    const float rate = at.learning_rate / Divisor(beta_ + std::sqrt(*square_sum));
    for (int i = 0; i < dim; ++i) w[i] -= rate * (gradient[i] + decay_ * w[i]);
    const float kept = KeptOf(w, dim, rate * l2_);
    for (int i = 0; i < dim; ++i) w[i] *= kept;
  }

 private:
  float initial_, beta_, l2_, decay_;
};

// State: the int64 step of the last update. The weight is a running mean of the steps between updates: the inverse of
// an id's frequency. Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling". The gradient is not used.
struct BatchSoftmax {
  static constexpr StateKind kState = StateKind::kBits;
  explicit BatchSoftmax(RuleParameters&) {}
  int StateFloats(int) const { return sizeof(int64_t) / sizeof(float); }
  void InitState(float* state, int) const { std::fill_n(state, StateFloats(1), 0.0f); }
  template <typename Dim>
  void Step(float* __restrict w, float* __restrict state, const float*, Dim, StepContext at) const {
    if (at.global_step < 0) return;
    int64_t last;
    std::memcpy(&last, state, sizeof(last));
    *w = (1 - at.learning_rate) * *w + at.learning_rate * static_cast<float>(at.global_step - last);
    std::memcpy(state, &at.global_step, sizeof(last));
  }
};

using Maker = std::unique_ptr<SparseOptimizer> (*)(RuleParameters& take);

template <typename Rule>
std::unique_ptr<SparseOptimizer> Make(RuleParameters& take) {
  return std::make_unique<OptimizerOf<Rule>>(take);
}

const std::map<std::string, Maker>& Makers() {
  static const auto& makers = *new std::map<std::string, Maker>{
      {"none", Make<None>},
      {"sgd", Make<Sgd>},
      {"adagrad", Make<Adagrad>},
      {"adadelta", Make<Adadelta>},
      {"adam", Make<AdamOrAmsgrad<false>>},
      {"amsgrad", Make<AdamOrAmsgrad<true>>},
      {"adamom", Make<AdaMom>},
      {"momentum", Make<Momentum>},
      {"moving_average", Make<MovingAverage>},
      {"rmsprop", Make<RmsProp<true>>},
      {"rmspropv2", Make<RmsProp<false>>},
      {"ftrl", Make<Ftrl<false>>},
      {"group_ftrl", Make<Ftrl<true>>},
      {"group_adagrad", Make<GroupAdagrad>},
      {"batch_softmax", Make<BatchSoftmax>},
  };
  return makers;
}

constexpr float kLargestHalf = 65504;

// Distance of neighbouring fp16 values around x.
float HalfSpacing(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  bits &= 0x7F800000;  // the power of two below x
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return std::max(power, 0x1p-14f) * 0x1p-10f;
}

}  // namespace

Status MakeOptimizer(const std::string& where, const RuleConfig& rule, int dim,
                     std::unique_ptr<SparseOptimizer>* result) {
  const auto found = Makers().find(rule.kind);
  if (found == Makers().end()) {
    std::string choices;
    for (const auto& [kind, maker] : Makers()) choices += (choices.empty() ? "" : ", ") + kind;
    return InvalidArgument(where + " '" + rule.kind + "' is unknown; choose from " + choices);
  }
  if (rule.kind == "batch_softmax" && dim != 1) {
    return InvalidArgument(where + " batch_softmax needs dim 1, not " + std::to_string(dim));
  }
  RuleParameters take(where, rule);
  *result = found->second(take);
  return take.Finish();
}

MILLRACE_CLONES void CompensateDelay(float lambda, const float* weights, const float* read_weights,
                                     const float* gradient, int dim, float* compensated) {
  for (int i = 0; i < dim; ++i) {
    const float g = gradient[i];
    compensated[i] = g + lambda * g * g * (weights[i] - read_weights[i]);
  }
}

MILLRACE_CLONES void RoundToHalf(uint64_t key, float* weights, int dim) {
  const uint64_t stream = Mix64(key + 0x9E3779B97F4A7C15ull);
  for (int i = 0; i < dim; ++i) {
    if (!(std::abs(weights[i]) <= kLargestHalf)) continue;
    const float spacing = HalfSpacing(weights[i]);
    const float steps = weights[i] / spacing;
    const float below = std::floor(steps);
    const uint64_t bits = Mix64(stream + static_cast<uint64_t>(i + 1) * 0xD1342543DE82EF95ull);
    const double random = static_cast<double>(bits >> 11) * 0x1p-53;  // [0, 1)
    weights[i] = (random < steps - below ? below + 1 : below) * spacing;
  }
}

}  // namespace millrace
