// Pooled lookup over ragged ids, and the way back of its gradient.
#ifndef MILLRACE_EMBEDDING_POOLING_H_
#define MILLRACE_EMBEDDING_POOLING_H_

#include <cstdint>
#include <string>
#include <vector>

#include "ops/cc/embedding/embedding_table.h"

namespace millrace {

// One feature of one batch: row r holds ids values[row_splits[r]] up to values[row_splits[r + 1]].
struct PooledFeature {
  std::string name;
  EmbeddingTable* table;
  bool mean;  // else sum
  const int64_t* values;
  int64_t num_values;
  const int64_t* row_splits;
  int64_t rows;
};

// Row splits must start at 0, never fall and end at num_values.
Status CheckRowSplits(const PooledFeature& feature);

// Writes rows x dim floats; an empty row is zeros. Requires good row splits.
void LookupPooled(const PooledFeature& feature, bool create, float* pooled, const Executor& run);

// gradients[f] is rows x dim, with respect to what LookupPooled wrote; learning_rates[f] is that of feature f's table.
// Duplicate ids are merged over all features of a table. Applies all or, on an error, nothing.
Status ApplyPooledGradients(const std::vector<PooledFeature>& features, const std::vector<const float*>& gradients,
                            const float* learning_rates, uint32_t timestamp, const Executor& run);

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_POOLING_H_
