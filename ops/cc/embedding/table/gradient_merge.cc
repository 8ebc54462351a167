#include "ops/cc/embedding/table/gradient_merge.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>

#include "ops/cc/embedding/base/cpu_clones.h"
#include "ops/cc/embedding/base/fid.h"
#include "ops/cc/embedding/base/finite.h"
#include "ops/cc/embedding/base/index_key.h"

namespace millrace {
namespace {

constexpr uint32_t kFree = UINT32_MAX;
constexpr uint32_t kRowsAhead = 16;
constexpr std::pair<uint64_t, int64_t> kNoneBad{UINT64_MAX, 0};

// Place of an occurrence in the batch, to find the first one that is bad.
uint64_t OrderOf(const ShardedId& id) { return (static_cast<uint64_t>(id.list) << 32) | id.row; }

class Merger {
 public:
  Merger(const TableConfig& config, int dim, const std::vector<GradientList>& lists, const ShardedBatch& batch,
         bool rows_are_finite, MergedGradients* merged)
      : config_(config),
        dim_(dim),
        lists_(lists),
        batch_(batch),
        rows_are_finite_(rows_are_finite),
        clips_(!std::isinf(config.gradient_limit)),
        merged_(*merged) {
    const uint32_t total = batch.begin[kLockShards];
    merged_.begin = batch.begin;
    merged_.fids = ScratchArray<int64_t>(total);
    merged_.gradients = ScratchArray<const float*>(total);
    merged_.counts = ScratchArray<uint32_t>(total);
    merged_.sums = ScratchArray<float>(static_cast<size_t>(total) * dim);  // touched only where rows are summed
    const bool reads = std::any_of(lists.begin(), lists.end(), [](const auto& l) { return l.read_weights != nullptr; });
    if (reads) merged_.read_weights = ScratchArray<const float*>(total);
  }

  MILLRACE_CLONES void MergeShard(int shard, uint32_t begin, uint32_t end) {
    const uint32_t count = end - begin;
    const ShardedId* ids = batch_.ids.get() + begin;
    std::vector<uint32_t> distinct_of(count), first_of;
    FindDistinct(ids, count, begin, &distinct_of, &first_of);
    const bool has_duplicates = first_of.size() < count;
    for (uint32_t i = 0; i < count; ++i) {
      if (has_duplicates && i + kRowsAhead < count) __builtin_prefetch(RowOf(ids[i + kRowsAhead]));
      AddRow(ids[i], begin + distinct_of[i]);
    }
    merged_.distinct[shard] = static_cast<uint32_t>(first_of.size());
    for (uint32_t k = 0; k < first_of.size(); ++k) {
      // A sum may be infinite where its rows are not.
      if (rows_are_finite_ && !clips_ && merged_.counts[begin + k] == 1) continue;
      CheckSum(ids[first_of[k]], begin + k);
    }
  }

  Status Finish() {
    merged_.not_finite = not_finite_;
    if (first_bad_ == kNoneBad) return {};
    return InvalidArgument("table '" + config_.name + "': the gradient of id " + std::to_string(first_bad_.second) +
                           " is NaN or infinite; nothing was applied");
  }

 private:
  // Numbers the distinct ids of a shard and counts them.
  void FindDistinct(const ShardedId* ids, uint32_t count, uint32_t begin, std::vector<uint32_t>* distinct_of,
                    std::vector<uint32_t>* first_of) {
    uint32_t room = 2;
    while (room < 2 * count) room *= 2;
    std::vector<uint32_t> index(room, kFree);
    first_of->reserve(count);
    for (uint32_t i = 0; i < count; ++i) {
      uint32_t at = static_cast<uint32_t>(KeyedHash(HashFid(ids[i].fid)) >> 32) & (room - 1);
      while (index[at] != kFree && merged_.fids[begin + index[at]] != ids[i].fid) at = (at + 1) & (room - 1);
      if (index[at] == kFree) {
        index[at] = static_cast<uint32_t>(first_of->size());
        const uint32_t place = begin + index[at];
        merged_.fids[place] = ids[i].fid;
        merged_.counts[place] = 0;
        merged_.gradients[place] = nullptr;
        first_of->push_back(i);
      }
      (*distinct_of)[i] = index[at];
      ++merged_.counts[begin + index[at]];
    }
  }

  const float* RowOf(const ShardedId& id) const {
    return lists_[id.list].gradients + static_cast<int64_t>(id.row) * dim_;
  }

  float* SumAt(uint32_t place) { return merged_.sums.get() + static_cast<int64_t>(place) * dim_; }

  // The first row of an id stays where it is; the second makes their sum.
  void AddRow(const ShardedId& id, uint32_t place) {
    const GradientList& list = lists_[id.list];
    const float* row = RowOf(id);
    const float scale = list.scales == nullptr ? 1.0f : list.scales[id.row];
    const float* before = merged_.gradients[place];
    if (before == nullptr && merged_.read_weights) {
      merged_.read_weights[place] =
          list.read_weights == nullptr ? nullptr : list.read_weights + static_cast<int64_t>(id.row) * dim_;
    }
    if (before == nullptr && scale == 1.0f && !clips_) {
      merged_.gradients[place] = row;
      return;
    }
    Combine(row, scale, before, SumAt(place));
    merged_.gradients[place] = SumAt(place);
  }

  // sum = before + scale * row; without `before` scale * row.
  void Combine(const float* row, float scale, const float* before, float* sum) const {
    switch (dim_) {
      case 8:
        return CombineFloats(row, scale, before, sum, std::integral_constant<int, 8>());
      case 16:
        return CombineFloats(row, scale, before, sum, std::integral_constant<int, 16>());
      case 32:
        return CombineFloats(row, scale, before, sum, std::integral_constant<int, 32>());
      case 64:
        return CombineFloats(row, scale, before, sum, std::integral_constant<int, 64>());
      default:
        return CombineFloats(row, scale, before, sum, dim_);
    }
  }
  template <typename Dim>  // int, or a constant that lets the loops unroll
  static void CombineFloats(const float* row, float scale, const float* before, float* sum, Dim dim) {
    if (before == nullptr) {
      for (int d = 0; d < dim; ++d) sum[d] = scale * row[d];
    } else {
      for (int d = 0; d < dim; ++d) sum[d] = before[d] + scale * row[d];
    }
  }

  void CheckSum(const ShardedId& first, uint32_t place) {
    const bool finite = AllFinite(merged_.gradients[place], dim_);
    if (!finite) ++not_finite_;
    if (!finite && config_.non_finite == NonFinite::kError) {
      const std::lock_guard lock(mutex_);
      first_bad_ = std::min(first_bad_, {OrderOf(first), first.fid});
    } else if (!finite && config_.non_finite == NonFinite::kSkip) {
      merged_.gradients[place] = nullptr;
    } else if (clips_) {
      const float limit = config_.gradient_limit;
      float* sum = SumAt(place);
      for (int d = 0; d < dim_; ++d) sum[d] = std::isnan(sum[d]) ? 0.0f : std::min(std::max(sum[d], -limit), limit);
    }
  }

  const TableConfig& config_;
  const int dim_;
  const std::vector<GradientList>& lists_;
  const ShardedBatch& batch_;
  const bool rows_are_finite_;
  const bool clips_;
  MergedGradients& merged_;
  std::mutex mutex_;
  std::pair<uint64_t, int64_t> first_bad_ = kNoneBad;  // place and id
  std::atomic<int64_t> not_finite_{0};
};

}  // namespace

Status MergeGradients(const TableConfig& config, int dim, const std::vector<GradientList>& lists, const Executor& run,
                      MergedGradients* merged) {
  std::vector<IdList> ids;
  for (const GradientList& list : lists) ids.push_back(list.ids);
  const ShardedBatch batch = ShardedBatch::Sort(ids, run);
  const bool finite = std::all_of(lists.begin(), lists.end(), [&](const GradientList& list) {
    return AllRowsFinite(list.gradients, list.num_rows, dim, run);
  });
  Merger merger(config, dim, lists, batch, finite, merged);
  batch.ForEachShard(run, 20 + dim,
                     [&](int shard, uint32_t begin, uint32_t end) { merger.MergeShard(shard, begin, end); });
  return merger.Finish();
}

}  // namespace millrace
