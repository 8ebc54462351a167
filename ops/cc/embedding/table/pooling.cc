#include "ops/cc/embedding/table/pooling.h"

#include <algorithm>
#include <cstddef>
#include <mutex>

#include "ops/cc/embedding/base/cpu_clones.h"

namespace millrace {
namespace {

// Rows [first, last) of a feature: what one thread does at a time.
struct RowRange {
  const PooledFeature* feature;
  float* pooled;
  int64_t first, last;
};

std::vector<RowRange> SplitRows(const std::vector<PooledFeature>& features, const std::vector<float*>& pooled) {
  constexpr int64_t kIds = 4096;
  std::vector<RowRange> ranges;
  for (size_t f = 0; f < features.size(); ++f) {
    const PooledFeature& feature = features[f];
    for (int64_t first = 0; first < feature.rows;) {
      const int64_t* splits = feature.row_splits;
      const int64_t* end = std::upper_bound(splits + first, splits + feature.rows, splits[first] + kIds);
      const int64_t last = std::max(first + 1, std::min(end - splits, first + kIds));
      ranges.push_back({&feature, pooled[f], first, last});
      first = last;
    }
  }
  return ranges;
}

// Adds, or puts in their places, the rows that a lookup gives in order.
class RowPool {
 public:
  explicit RowPool(const RowRange& range) : feature_(*range.feature), pooled_(range.pooled), row_(range.first) {
    dim_ = feature_.table->dim();
    std::fill(pooled_ + range.first * feature_.row_floats(), pooled_ + range.last * feature_.row_floats(), 0.0f);
  }

  // `i` counts from the first id of the feature.
  void Add(int64_t i, const float* values) {
    while (i >= feature_.row_splits[row_ + 1]) ++row_;
    if (values == nullptr) return;
    float* out = pooled_ + row_ * feature_.row_floats();
    const int64_t place = i - feature_.row_splits[row_];
    if (feature_.combiner != Combiner::kFirstN && place > 0) {
      for (int d = 0; d < dim_; ++d) out[d] += values[d];
    } else if (place == 0 || place < feature_.max_length) {
      EntryLayout::CopyFloats(values, dim_, out + place * dim_);
    }
  }

 private:
  const PooledFeature& feature_;
  float* pooled_;
  int64_t row_;
  int dim_;
};

void TakeMeans(const RowRange& range) {
  const int dim = range.feature->table->dim();
  for (int64_t r = range.first; r < range.last; ++r) {
    const int64_t length = range.feature->row_splits[r + 1] - range.feature->row_splits[r];
    if (length < 2) continue;
    const float scale = 1.0f / static_cast<float>(length);
    for (int d = 0; d < dim; ++d) range.pooled[r * dim + d] *= scale;
  }
}

MILLRACE_CLONES void LookupRange(const RowRange& range, const LookupOptions& options, std::vector<int64_t>* missing) {
  const PooledFeature& feature = *range.feature;
  const int64_t first = feature.row_splits[range.first], last = feature.row_splits[range.last];
  RowPool pool(range);
  feature.table->ForEachRow(feature.values + first, last - first, options, missing,
                            [&](int64_t i, const float* row) { pool.Add(first + i, row); });
  if (feature.combiner == Combiner::kMean) TakeMeans(range);
}

bool HasOneIdPerRow(const PooledFeature& feature) {
  if (feature.rows != feature.num_values) return false;
  for (int64_t r = 0; r < feature.rows; ++r) {
    if (feature.row_splits[r] != r) return false;
  }
  return true;
}

// The gradient list of a feature and the arrays that it points to.
struct FeatureGradients {
  std::vector<int64_t> fids;
  std::vector<uint32_t> rows;
  std::vector<float> scales;
  GradientList list;
};

void SpreadRows(const PooledFeature& feature, const float* gradients, FeatureGradients* result) {
  const int64_t num_rows = feature.rows * (feature.combiner == Combiner::kFirstN ? feature.max_length : 1);
  result->list = {{feature.values, feature.num_values, nullptr}, num_rows, gradients, nullptr, nullptr};
  if (HasOneIdPerRow(feature) && feature.row_floats() == feature.table->dim()) return;
  const bool first_n = feature.combiner == Combiner::kFirstN;
  result->fids.reserve(feature.num_values);
  result->rows.reserve(feature.num_values);
  for (int64_t r = 0; r < feature.rows; ++r) {
    const int64_t begin = feature.row_splits[r];
    const int64_t end =
        first_n ? std::min(feature.row_splits[r + 1], begin + feature.max_length) : feature.row_splits[r + 1];
    for (int64_t i = begin; i < end; ++i) {
      result->fids.push_back(feature.values[i]);
      result->rows.push_back(static_cast<uint32_t>(first_n ? r * feature.max_length + i - begin : r));
    }
    if (feature.combiner != Combiner::kMean) continue;
    result->scales.push_back(1.0f / static_cast<float>(std::max<int64_t>(end - begin, 1)));
  }
  result->list.ids = {result->fids.data(), static_cast<int64_t>(result->fids.size()), result->rows.data()};
  if (feature.combiner == Combiner::kMean) result->list.scales = result->scales.data();
}

// Features of one table and what was merged for it.
struct TableBatch {
  EmbeddingTable* table;
  UpdateOptions options;
  std::vector<GradientList> lists;
  MergedGradients merged;
};

}  // namespace

Status CheckRowSplits(const PooledFeature& feature) {
  const auto fail = [&](const std::string& problem) {
    return InvalidArgument("feature '" + feature.name + "': row_splits " + problem);
  };
  if (feature.rows < 0) return fail("must have at least one element");
  // Rows of gradients are numbered by 32 bits.
  const int64_t most = feature.combiner == Combiner::kFirstN ? UINT32_MAX / std::max<int64_t>(feature.max_length, 1) : UINT32_MAX;
  if (feature.rows > most) {
    return fail("must not have more than " + std::to_string(most) + " rows, not " + std::to_string(feature.rows));
  }
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

void LookupPooled(const std::vector<PooledFeature>& features, const LookupOptions& options,
                  const std::vector<float*>& pooled, const Executor& run) {
  const std::vector<RowRange> ranges = SplitRows(features, pooled);
  if (ranges.empty()) return;
  std::mutex mutex;
  std::vector<std::vector<int64_t>> missing(features.size());
  int64_t floats = 0;
  for (const PooledFeature& feature : features) floats += feature.num_values * (20 + feature.table->dim() / 2);
  const auto units = static_cast<int64_t>(ranges.size());
  run(units, floats / units + 100, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      std::vector<int64_t> own_missing;
      LookupRange(ranges[r], options, &own_missing);
      if (own_missing.empty()) continue;
      const std::lock_guard lock(mutex);
      auto& of_feature = missing[ranges[r].feature - features.data()];
      of_feature.insert(of_feature.end(), own_missing.begin(), own_missing.end());
    }
  });
  for (size_t f = 0; f < features.size(); ++f) features[f].table->CreateMissing(missing[f], run);
}

Status ApplyPooledGradients(const std::vector<PooledFeature>& features, const std::vector<const float*>& gradients,
                            const std::vector<UpdateOptions>& options_of_feature, const Executor& run) {
  std::vector<FeatureGradients> spread(features.size());
  std::vector<TableBatch> batches;
  for (size_t f = 0; f < features.size(); ++f) {
    SpreadRows(features[f], gradients[f], &spread[f]);
    auto batch = std::find_if(batches.begin(), batches.end(),
                              [&](const TableBatch& known) { return known.table == features[f].table; });
    if (batch == batches.end()) {
      batches.push_back({features[f].table, options_of_feature[f], {}, {}});
      batch = batches.end() - 1;
    }
    batch->lists.push_back(spread[f].list);
  }
  for (TableBatch& batch : batches) {
    MILLRACE_RETURN_IF_ERROR(batch.table->Merge(batch.lists, run, &batch.merged));
  }
  for (TableBatch& batch : batches) batch.table->Apply(batch.merged, batch.options, run);
  return {};
}

}  // namespace millrace
