// The part of EmbeddingTable that learns: merged gradients, one optimizer step per id.
#include <algorithm>
#include <cstdint>
#include <mutex>
#include <vector>

#include "ops/cc/embedding/table/embedding_table.h"

namespace millrace {

Status EmbeddingTable::CheckTrains() const {
  const bool has_optimizer = std::any_of(config_.segments.begin(), config_.segments.end(),
                                         [](const SegmentConfig& s) { return s.optimizer.kind != "none"; });
  if (has_optimizer && !config_.serving) return {};
  return FailedPrecondition("table '" + config_.name + "' has no optimizer: it takes no gradients");
}

Status EmbeddingTable::Merge(const std::vector<GradientList>& lists, const Executor& run,
                             MergedGradients* merged) const {
  MILLRACE_RETURN_IF_ERROR(CheckTrains());
  return MergeGradients(config_, dim(), lists, run, merged);
}

void EmbeddingTable::Apply(const MergedGradients& merged, const UpdateOptions& options, const Executor& run) {
  NoteTimestamp(options.timestamp);
  not_finite_ += merged.not_finite;
  const uint64_t filter_batch = filter_ == nullptr ? 0 : filter_->BeginBatch();
  const int64_t total = merged.begin[kLockShards];
  run(kLockShards, total * (100 + 4 * dim()) / kLockShards + 50, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      if (merged.distinct[s] != 0) ApplyToShard(merged, static_cast<int>(s), filter_batch, options);
    }
  });
}

void EmbeddingTable::ApplyToShard(const MergedGradients& merged, int s, uint64_t filter_batch,
                                  const UpdateOptions& options) {
  const uint32_t begin = merged.begin[s];
  std::vector<char*> entries;
  std::vector<uint32_t> places;
  entries.reserve(merged.distinct[s]);
  places.reserve(merged.distinct[s]);
  LockShard& shard = shards_[s];
  std::unique_lock lock(shard.lock);
  const auto fid_at = [&](uint32_t i) { return merged.fids[begin + i]; };
  shard.ForEachSlot(merged.distinct[s], fid_at, [&](uint32_t i, FidMap::Slot* slot, uint64_t hash) {
    if (merged.gradients[begin + i] == nullptr) return;
    if (slot != nullptr) {
      shard.BeforeChange(*slot);
    } else {
      if (filter_ != nullptr && !filter_->Admit(fid_at(i), merged.counts[begin + i], filter_batch)) return;
      slot = shard.Create(fid_at(i), hash);
      layout_.Init(fid_at(i), arena_.At(slot->handle));
    }
    // Older events than the last ones leave the stamp: it says until when an id was in use.
    if (slot->timestamp < options.timestamp) slot->timestamp = options.timestamp;
    shard.Touch(slot);
    entries.push_back(arena_.At(slot->handle));
    places.push_back(begin + i);
    Prefetch(entries.back(), layout_.entry_bytes());
  });
  Step(merged, begin, places, entries, options);
}

void EmbeddingTable::Step(const MergedGradients& merged, uint32_t begin, const std::vector<uint32_t>& places,
                          const std::vector<char*>& entries, const UpdateOptions& options) {
  EntryLayout::UpdateBatch batch{static_cast<int64_t>(entries.size()),
                                 entries.data(),
                                 merged.fids.get() + begin,
                                 merged.gradients.get() + begin,
                                 merged.read_weights ? merged.read_weights.get() + begin : nullptr,
                                 options.learning_rates,
                                 options.global_step};
  if (places.empty() || places.back() + 1 - begin == places.size()) {
    Update(batch);
    return;
  }
  // Some were left out: what belongs to the others moves together.
  std::vector<int64_t> fids;
  std::vector<const float*> gradients, read_weights;
  for (const uint32_t place : places) {
    fids.push_back(merged.fids[place]);
    gradients.push_back(merged.gradients[place]);
    if (batch.read_weights != nullptr) read_weights.push_back(merged.read_weights[place]);
  }
  batch.fids = fids.data();
  batch.gradients = gradients.data();
  if (batch.read_weights != nullptr) batch.read_weights = read_weights.data();
  Update(batch);
}

}  // namespace millrace
