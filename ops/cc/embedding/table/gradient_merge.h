// Gradients of one batch, summed by id before a table takes its steps.
#ifndef MILLRACE_EMBEDDING_GRADIENT_MERGE_H_
#define MILLRACE_EMBEDDING_GRADIENT_MERGE_H_

#include <array>
#include <cstdint>
#include <vector>

#include "ops/cc/embedding/base/scratch_array.h"
#include "ops/cc/embedding/table/sharded_batch.h"
#include "ops/cc/embedding/base/status.h"
#include "ops/cc/embedding/rules/table_config.h"

namespace millrace {

// Ids with the rows of gradients that belong to them; row r counts scales[r] times, or once where `scales` is null.
struct GradientList {
  IdList ids;
  int64_t num_rows = 0;
  const float* gradients = nullptr;  // rows of dim floats
  const float* scales = nullptr;
  const float* read_weights = nullptr;  // rows of dim floats: what the model saw; null: unknown
};

// Distinct ids grouped by lock shard, in order of first occurrence within a shard: the room of shard s starts at
// begin[s] and holds distinct[s] ids. A gradient that occurs once is not copied, so the lists must outlive this.
struct MergedGradients {
  std::array<uint32_t, kLockShards + 1> begin{};
  std::array<uint32_t, kLockShards> distinct{};
  ScratchArray<int64_t> fids;
  ScratchArray<const float*> gradients;     // null: left out as not finite
  ScratchArray<const float*> read_weights;  // of the first occurrence; a null array: all unknown
  ScratchArray<uint32_t> counts;            // occurrences in the batch
  ScratchArray<float> sums;
  int64_t not_finite = 0;  // ids whose gradient was left out or clipped
};

// Sums are taken in the order of the lists. What is done about NaN and infinity is the table's `non_finite`; kError
// fails and names the first such id. Sums are clipped to the table's `gradient_limit`.
Status MergeGradients(const TableConfig& config, int dim, const std::vector<GradientList>& lists, const Executor& run,
                      MergedGradients* merged);

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_GRADIENT_MERGE_H_
