// Pooled lookup over ragged ids, and the way back of its gradient.
#ifndef MILLRACE_EMBEDDING_POOLING_H_
#define MILLRACE_EMBEDDING_POOLING_H_

#include <cstdint>
#include <string>
#include <vector>

#include "ops/cc/embedding/table/embedding_table.h"

namespace millrace {

enum class Combiner { kSum, kMean, kFirstN };

// One ragged feature of one batch: row r holds ids values[row_splits[r]] up to values[row_splits[r + 1]].
struct PooledFeature {
  std::string name;
  EmbeddingTable* table;
  Combiner combiner;
  int64_t max_length;  // kFirstN: ids of a row that count
  const int64_t* values;
  int64_t num_values;
  const int64_t* row_splits;
  int64_t rows;

  // Floats of one row's output: dim, or for kFirstN max_length x dim.
  int64_t row_floats() const { return table->dim() * (combiner == Combiner::kFirstN ? max_length : 1); }
};

// Row splits must start at 0, never fall and end at num_values.
Status CheckRowSplits(const PooledFeature& feature);

// pooled[f] takes rows x row_floats floats of feature f; what no id fills is zeros. Requires good row splits.
void LookupPooled(const std::vector<PooledFeature>& features, const LookupOptions& options,
                  const std::vector<float*>& pooled, const Executor& run);

// gradients[f] is with respect to what LookupPooled wrote for feature f. Duplicate ids are merged over all features of
// a table, and the options of the first feature of a table are its. Applies all or, on an error, nothing.
Status ApplyPooledGradients(const std::vector<PooledFeature>& features, const std::vector<const float*>& gradients,
                            const std::vector<UpdateOptions>& options_of_feature, const Executor& run);

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_POOLING_H_
