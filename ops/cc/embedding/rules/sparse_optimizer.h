// Update rules of a segment of an entry, and what goes around an update.
#ifndef MILLRACE_EMBEDDING_SPARSE_OPTIMIZER_H_
#define MILLRACE_EMBEDDING_SPARSE_OPTIMIZER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "ops/cc/embedding/rules/rule_config.h"
#include "ops/cc/embedding/base/status.h"

namespace millrace {

struct StepContext {
  float learning_rate;
  int64_t global_step;
};

// Stateless and thread-safe: all that an update remembers lies in the entry's state floats.
class SparseOptimizer {
 public:
  virtual ~SparseOptimizer() = default;

  // An int64 lies in two floats.
  virtual int StateFloats(int dim) const = 0;
  virtual void InitState(float* state, int dim) const = 0;
  // One step of each of `count` entries. Entry i has its weights at weights[i], its state `state_offset` floats further
  // on, and steps along gradients[i]. A zero gradient leaves zero weights zero. A learning rate of 0 leaves the entries
  // of ftrl, group_ftrl and group_adagrad as they are. A step that would make a weight or its state NaN or infinite is
  // not taken: gradients are finite, but their squares and sums need not be. Returns how many were not.
  virtual int64_t Update(float* const* weights, ptrdiff_t state_offset, const float* const* gradients, int64_t count,
                         int dim, const StepContext& context) const = 0;
};

// Kinds and their numbers (defaults in Python):
//   none (no updates, for tables that only serve), sgd
//   adagrad: initial_accumulator_value, weight_decay_factor, decouple_weight_decay
//   adadelta: averaging_ratio, epsilon, weight_decay_factor
//   adam, amsgrad: beta1, beta2, epsilon, weight_decay_factor, use_nesterov
//   adamom: mom_decay, ada_decay, epsilon, weight_decay_factor
//   momentum: momentum, weight_decay_factor, use_nesterov
//   moving_average: momentum
//   rmsprop, rmspropv2: momentum, weight_decay_factor
//   ftrl, group_ftrl: initial_accumulator_value, beta, l1_regularization_strength, l2_regularization_strength
//   group_adagrad: initial_accumulator_value, beta, l2_regularization_strength, weight_decay_factor
//   batch_softmax (dim 1 only)
// `where` begins the message of an error, as in "table 'movies', segment 0: optimizer".
Status MakeOptimizer(const std::string& where, const RuleConfig& rule, int dim,
                     std::unique_ptr<SparseOptimizer>* result);

// The gradient at `weights`, from one that was taken at `read_weights`: g + lambda * g^2 * (w - w_read). Zheng et al.
// 2017, "Asynchronous Stochastic Gradient Descent with Delay Compensation". May be in place.
void CompensateDelay(float lambda, const float* weights, const float* read_weights, const float* gradient, int dim,
                     float* compensated);

// Stochastic rounding: each weight becomes the fp16 value below or above it, above with the probability of its distance
// from the one below, so that the mean stays. The random bits are a function of (key, index). Weights that are fp16
// values, not finite or beyond the largest fp16 value stay.
void RoundToHalf(uint64_t key, float* weights, int dim);

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_SPARSE_OPTIMIZER_H_
