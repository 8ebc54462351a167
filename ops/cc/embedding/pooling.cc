#include "ops/cc/embedding/pooling.h"

#include <algorithm>
#include <cstring>
#include <memory>

namespace millrace {
namespace {

bool HasOneIdPerRow(const PooledFeature& feature) {
  if (feature.rows != feature.num_values) return false;
  for (int64_t r = 0; r < feature.rows; ++r) {
    if (feature.row_splits[r] != r) return false;
  }
  return true;
}

// Features of one table and what was merged for it.
struct TableBatch {
  EmbeddingTable* table;
  float learning_rate;
  std::vector<Occurrence> occurrences;
  MergedGradients merged;
};

void AddOccurrences(const PooledFeature& feature, const float* gradients, std::vector<Occurrence>* occurrences) {
  const int dim = feature.table->dim();
  for (int64_t r = 0; r < feature.rows; ++r) {
    const int64_t begin = feature.row_splits[r], end = feature.row_splits[r + 1];
    const float scale = feature.mean ? 1.0f / static_cast<float>(std::max<int64_t>(end - begin, 1)) : 1.0f;
    for (int64_t i = begin; i < end; ++i) occurrences->push_back({feature.values[i], gradients + r * dim, scale});
  }
}

}  // namespace

Status CheckRowSplits(const PooledFeature& feature) {
  const auto fail = [&](const std::string& problem) {
    return InvalidArgument("feature '" + feature.name + "': row_splits " + problem);
  };
  if (feature.rows < 0) return fail("must have at least one element");
  if (feature.row_splits[0] != 0) return fail("must start at 0, not " + std::to_string(feature.row_splits[0]));
  for (int64_t r = 0; r < feature.rows; ++r) {
    if (feature.row_splits[r + 1] < feature.row_splits[r]) return fail("must not fall, at row " + std::to_string(r));
  }
  if (feature.row_splits[feature.rows] != feature.num_values) {
    return fail("must end at the number of ids, " + std::to_string(feature.num_values) + ", not " +
                std::to_string(feature.row_splits[feature.rows]));
  }
  return {};
}

void LookupPooled(const PooledFeature& feature, bool create, float* pooled, const Executor& run) {
  const int dim = feature.table->dim();
  if (HasOneIdPerRow(feature)) {
    feature.table->Lookup(feature.values, feature.num_values, create, pooled, run);
    return;
  }
  const std::unique_ptr<float[]> rows(new float[feature.num_values * dim]);
  feature.table->Lookup(feature.values, feature.num_values, create, rows.get(), run);
  run(feature.rows, 10 + feature.num_values * dim / std::max<int64_t>(feature.rows, 1),
      [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r) {
          const int64_t begin = feature.row_splits[r], end = feature.row_splits[r + 1];
          float* out = pooled + r * dim;
          std::fill_n(out, dim, 0.0f);
          for (int64_t i = begin; i < end; ++i) {
            const float* row = rows.get() + i * dim;
            for (int d = 0; d < dim; ++d) out[d] += row[d];
          }
          if (!feature.mean || end - begin < 2) continue;
          const float scale = 1.0f / static_cast<float>(end - begin);
          for (int d = 0; d < dim; ++d) out[d] *= scale;
        }
      });
}

Status ApplyPooledGradients(const std::vector<PooledFeature>& features, const std::vector<const float*>& gradients,
                            const float* learning_rates, uint32_t timestamp, const Executor& run) {
  std::vector<TableBatch> batches;
  for (size_t f = 0; f < features.size(); ++f) {
    MILLRACE_RETURN_IF_ERROR(CheckRowSplits(features[f]));
    auto batch = std::find_if(batches.begin(), batches.end(),
                              [&](const TableBatch& known) { return known.table == features[f].table; });
    if (batch == batches.end()) {
      batches.push_back({features[f].table, learning_rates[f], {}, {}});
      batch = batches.end() - 1;
    }
    AddOccurrences(features[f], gradients[f], &batch->occurrences);
  }
  for (TableBatch& batch : batches) {
    MILLRACE_RETURN_IF_ERROR(batch.table->Merge(batch.occurrences, run, &batch.merged));
  }
  for (TableBatch& batch : batches) batch.table->Apply(batch.merged, batch.learning_rate, timestamp, run);
  return {};
}

}  // namespace millrace
