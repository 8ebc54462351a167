// Update rules of one entry.
#ifndef MILLRACE_EMBEDDING_SPARSE_OPTIMIZER_H_
#define MILLRACE_EMBEDDING_SPARSE_OPTIMIZER_H_

#include <memory>

#include "ops/cc/embedding/status.h"
#include "ops/cc/embedding/table_config.h"

namespace millrace {

// Stateless and thread-safe: all that an update remembers lies in the entry's `state` floats.
class SparseOptimizer {
 public:
  virtual ~SparseOptimizer() = default;

  virtual int StateFloats(int dim) const = 0;
  virtual void InitState(float* state, int dim) const = 0;
  // One step of `weights` and `state` along `gradient`, all of `dim` floats. A zero gradient leaves zero weights zero.
  virtual void Update(float* weights, float* state, const float* gradient, int dim, float learning_rate) const = 0;
};

// Kinds and numbers (defaults in Python): sgd; adagrad (initial_accumulator_value, weight_decay_factor);
// adam (beta1, beta2, epsilon, weight_decay_factor, use_nesterov); ftrl (initial_accumulator_value, beta,
// l1_regularization_strength, l2_regularization_strength); none: no updates, for tables that only serve.
Status MakeOptimizer(const TableConfig& config, std::unique_ptr<SparseOptimizer>* result);

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_SPARSE_OPTIMIZER_H_
