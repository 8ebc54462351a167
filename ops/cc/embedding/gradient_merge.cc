#include "ops/cc/embedding/gradient_merge.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <string>

#include "ops/cc/embedding/finite.h"

namespace millrace {
namespace {

constexpr uint32_t kFree = UINT32_MAX;
constexpr uint32_t kRowsAhead = 8;

// Place of an occurrence in the batch, to find the first one that is bad.
uint64_t OrderOf(const ShardedId& id) { return (static_cast<uint64_t>(id.list) << 32) | id.row; }

class Merger {
 public:
  Merger(const TableConfig& config, int dim, const std::vector<GradientList>& lists, const ShardedBatch& batch,
         MergedGradients* merged)
      : config_(config), dim_(dim), lists_(lists), batch_(batch), merged_(*merged) {
    clips_ = !std::isinf(config.gradient_limit);
    const uint32_t total = batch.begin[kLockShards];
    merged_.begin = batch.begin;
    merged_.fids.reset(new int64_t[total]);
    merged_.gradients.reset(new const float*[total]);
    merged_.counts.reset(new uint32_t[total]);
    merged_.sums.reset(new float[static_cast<int64_t>(total) * dim]);  // touched only where rows are summed
    const bool reads = std::any_of(lists.begin(), lists.end(), [](const auto& l) { return l.read_weights != nullptr; });
    if (reads) merged_.read_weights.reset(new const float*[total]);
  }

  void MergeShard(int shard, uint32_t begin, uint32_t end) {
    const uint32_t count = end - begin;
    const ShardedId* ids = batch_.ids.get() + begin;
    std::vector<uint32_t> distinct_of(count), first_of;
    FindDistinct(ids, count, begin, &distinct_of, &first_of);
    for (uint32_t i = 0; i < count; ++i) AddRow(ids[i], begin + distinct_of[i]);
    merged_.distinct[shard] = static_cast<uint32_t>(first_of.size());
    for (uint32_t k = 0; k < first_of.size(); ++k) {
      if (k + kRowsAhead < first_of.size()) __builtin_prefetch(merged_.gradients[begin + k + kRowsAhead]);
      CheckSum(ids[first_of[k]], begin + k);
    }
  }

  Status Finish(const std::vector<GradientList>& lists) {
    merged_.not_finite = not_finite_;
    if (first_bad_ == UINT64_MAX) return {};
    const GradientList& list = lists[first_bad_ >> 32];
    const auto row = static_cast<uint32_t>(first_bad_);
    const auto* of_row = list.ids.rows == nullptr ? nullptr : std::find(list.ids.rows, list.ids.rows + list.ids.count, row);
    const int64_t fid = list.ids.fids[of_row == nullptr ? row : of_row - list.ids.rows];
    return InvalidArgument("table '" + config_.name + "': the gradient of id " + std::to_string(fid) +
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
      uint32_t at = static_cast<uint32_t>(HashFid(ids[i].fid)) & (room - 1);
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

  float* SumAt(uint32_t place) { return merged_.sums.get() + static_cast<int64_t>(place) * dim_; }

  void AddRow(const ShardedId& id, uint32_t place) {
    const GradientList& list = lists_[id.list];
    const float* row = list.gradients + static_cast<int64_t>(id.row) * dim_;
    const float scale = list.scales == nullptr ? 1.0f : list.scales[id.row];
    const bool is_first = merged_.gradients[place] == nullptr;
    if (is_first && merged_.read_weights != nullptr) {
      merged_.read_weights[place] =
          list.read_weights == nullptr ? nullptr : list.read_weights + static_cast<int64_t>(id.row) * dim_;
    }
    if (merged_.counts[place] == 1 && scale == 1.0f && !clips_) {
      merged_.gradients[place] = row;
      return;
    }
    float* sum = SumAt(place);
    if (is_first) {
      for (int d = 0; d < dim_; ++d) sum[d] = scale * row[d];
      merged_.gradients[place] = sum;
    } else {
      for (int d = 0; d < dim_; ++d) sum[d] += scale * row[d];
    }
  }

  void CheckSum(const ShardedId& first, uint32_t place) {
    const bool finite = AllFinite(merged_.gradients[place], dim_);
    if (!finite) ++not_finite_;
    if (!finite && config_.non_finite == NonFinite::kError) {
      uint64_t seen = first_bad_.load();
      while (OrderOf(first) < seen && !first_bad_.compare_exchange_weak(seen, OrderOf(first))) {
      }
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
  MergedGradients& merged_;
  bool clips_;
  std::atomic<uint64_t> first_bad_{UINT64_MAX};
  std::atomic<int64_t> not_finite_{0};
};

}  // namespace

Status MergeGradients(const TableConfig& config, int dim, const std::vector<GradientList>& lists, const Executor& run,
                      MergedGradients* merged) {
  std::vector<IdList> ids;
  for (const GradientList& list : lists) ids.push_back(list.ids);
  const ShardedBatch batch = ShardedBatch::Sort(ids, run);
  Merger merger(config, dim, lists, batch, merged);
  batch.ForEachShard(run, 20 + dim, [&](int shard, uint32_t begin, uint32_t end) { merger.MergeShard(shard, begin, end); });
  return merger.Finish(lists);
}

}  // namespace millrace
