#include "ops/cc/embedding/table/embedding_table.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <utility>

#include "ops/cc/embedding/base/cpu_clones.h"
#include "ops/cc/embedding/base/finite.h"

namespace millrace {
namespace {

constexpr double kSecondsPerDay = 86400;
constexpr uint32_t kRowsAhead = 12;  // of the values of an assignment, which are read in the order of the shards

bool AllZero(const float* weights, int count) {
  return std::all_of(weights, weights + count, [](float weight) { return weight == 0; });
}

// Writes the rows of a range of ids at `out`; an id without an entry that shows nothing gets zeros.
MILLRACE_CLONES void CopyRows(const EmbeddingTable& table, const int64_t* fids, int64_t count,
                              const LookupOptions& options, float* out, std::vector<int64_t>* missing) {
  const int dim = table.dim();
  table.ForEachRow(fids, count, options, missing, [out, dim](int64_t i, const float* row) {
    if (row == nullptr) {
      std::fill_n(out + i * dim, dim, 0.0f);
    } else {
      EntryLayout::CopyFloats(row, dim, out + i * dim);
    }
  });
}

}  // namespace

Status EmbeddingTable::Create(const TableConfig& config, std::unique_ptr<EmbeddingTable>* result) {
  EntryLayout layout;
  MILLRACE_RETURN_IF_ERROR(EntryLayout::Make(config, &layout));
  std::unique_ptr<OccurrenceFilter> filter;
  MILLRACE_RETURN_IF_ERROR(
      MakeFilter("table '" + config.name + "': filter", config.filter, config.thresholds, &filter));
  result->reset(new EmbeddingTable(config, std::move(layout), std::move(filter)));
  return {};
}

EmbeddingTable::EmbeddingTable(const TableConfig& config, EntryLayout layout, std::unique_ptr<OccurrenceFilter> filter)
    : config_(config),
      layout_(std::move(layout)),
      filter_(std::move(filter)),
      arena_(layout_.entry_bytes()),
      pages_(FidMap::kPageBytes),
      cut_(layout_, &arena_),
      shards_(&arena_, &pages_, &cut_) {}

int64_t EmbeddingTable::size() const {
  int64_t total = 0;
  for (const auto& shard : shards_) {
    std::shared_lock lock(shard->lock);
    total += static_cast<int64_t>(shard->map().size());
  }
  return total;
}

TableStats EmbeddingTable::Stats() const {
  TableStats stats;
  for (const auto& shard : shards_) {
    std::shared_lock lock(shard->lock);
    stats.entries += static_cast<int64_t>(shard->map().size());
    stats.memory_bytes += shard->MemoryBytes();
  }
  stats.not_finite = not_finite_;
  stats.overflows = overflows_;
  if (filter_ != nullptr) {
    stats.admitted = filter_->admitted();
    stats.rejected = filter_->rejected();
  }
  return stats;
}

void EmbeddingTable::NoteTimestamp(uint32_t timestamp) {
  uint32_t newest = newest_timestamp_;
  while (timestamp > newest && !newest_timestamp_.compare_exchange_weak(newest, timestamp)) {
  }
}

// Reading.

void EmbeddingTable::Lookup(const int64_t* fids, int64_t count, const LookupOptions& options, float* values,
                            const Executor& run) {
  const int dim = layout_.dim();
  std::mutex mutex;
  std::vector<int64_t> missing;
  constexpr int64_t kUnit = 1024;  // ids that are worth a thread of their own
  run((count + kUnit - 1) / kUnit, kUnit * (20 + dim / 2), [&](int64_t first, int64_t last) {
    std::vector<int64_t> own_missing;
    const int64_t begin = first * kUnit, end = std::min(last * kUnit, count);
    CopyRows(*this, fids + begin, end - begin, options, values + begin * dim, &own_missing);
    if (own_missing.empty()) return;
    const std::lock_guard lock(mutex);
    missing.insert(missing.end(), own_missing.begin(), own_missing.end());
  });
  CreateMissing(missing, run);
}

void EmbeddingTable::CreateMissing(const std::vector<int64_t>& fids, const Executor& run) {
  if (fids.empty()) return;
  const ShardedBatch batch = ShardedBatch::Sort({{fids.data(), static_cast<int64_t>(fids.size()), nullptr}}, run);
  batch.ForEachShard(run, 100 + dim(), [&](int s, uint32_t begin, uint32_t end) {
    LockShard& shard = shards_[s];
    std::unique_lock lock(shard.lock);
    const auto fid_at = [&](uint32_t i) { return batch.ids[begin + i].fid; };
    shard.ForEachSlot(end - begin, fid_at, [&](uint32_t i, FidMap::Slot* slot, uint64_t hash) {
      if (slot != nullptr) return;
      slot = shard.Create(fid_at(i), hash);
      layout_.Init(fid_at(i), arena_.At(slot->handle));
    });
  });
}

void EmbeddingTable::LookupEntries(const int64_t* fids, int64_t count, bool* found, char* rows) const {
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t hash = HashFid(fids[i]);
    const LockShard& shard = shards_.OfHash(hash);
    std::shared_lock lock(shard.lock);
    const FidMap::Slot* slot = shard.map().Find(fids[i], hash);
    found[i] = slot != nullptr;
    if (!found[i]) continue;
    char* row = rows + i * layout_.row_bytes();
    RowHeader::Write(fids[i], slot->timestamp, row);
    std::memcpy(RowHeader::EntryOf(row), arena_.At(slot->handle), layout_.entry_bytes());
  }
}

void EmbeddingTable::Contains(const int64_t* fids, int64_t count, bool* found) const {
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t hash = HashFid(fids[i]);
    const LockShard& shard = shards_.OfHash(hash);
    std::shared_lock lock(shard.lock);
    found[i] = shard.map().Find(fids[i], hash) != nullptr;
  }
}

// Writing.

Status EmbeddingTable::Assign(const int64_t* fids, const float* values, int64_t count, const AssignOptions& options,
                              const Executor& run) {
  const int width = dim();
  if (!AllRowsFinite(values, count, width, run)) {
    int64_t bad = 0;
    while (AllFinite(values + bad * width, width)) ++bad;
    return InvalidArgument("table '" + config_.name + "': the value of id " + std::to_string(fids[bad]) +
                           " is NaN or infinite; nothing was assigned");
  }
  NoteTimestamp(options.timestamp);
  OccurrenceFilter* filter = options.ask_filter ? filter_.get() : nullptr;
  const uint64_t filter_batch = filter == nullptr ? 0 : filter->BeginBatch();
  const ShardedBatch batch = ShardedBatch::Sort({{fids, count, nullptr}}, run);
  batch.ForEachShard(run, 100 + width, [&](int s, uint32_t begin, uint32_t end) {
    LockShard& shard = shards_[s];
    std::unique_lock lock(shard.lock);
    const auto fid_at = [&](uint32_t i) { return batch.ids[begin + i].fid; };
    shard.ForEachSlot(end - begin, fid_at, [&](uint32_t i, FidMap::Slot* slot, uint64_t hash) {
      const auto row_at = [&](uint32_t k) { return values + static_cast<int64_t>(batch.ids[begin + k].row) * width; };
      const float* row = row_at(i);
      if (begin + i + kRowsAhead < end) __builtin_prefetch(row_at(i + kRowsAhead));
      if (config_.skip_zero && !options.add && AllZero(row, width)) {
        if (slot != nullptr) shard.Remove(slot);
        return;
      }
      const bool is_new = slot == nullptr;
      if (is_new && filter != nullptr && !filter->Admit(fid_at(i), 1, filter_batch)) return;
      slot = shard.Claim(slot, fid_at(i), hash);
      slot->timestamp = options.timestamp;
      char* entry = arena_.At(slot->handle);
      if (options.add) {
        if (is_new) layout_.Init(fid_at(i), entry);
        if (!layout_.AddWeights(row, entry)) ++overflows_;
      } else {
        if (is_new) layout_.InitState(entry);
        layout_.WriteWeights(row, entry);
      }
    });
  });
  return {};
}

void EmbeddingTable::Reinitialize(const int64_t* fids, int64_t count, uint32_t timestamp, bool* existed) {
  NoteTimestamp(timestamp);
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t hash = HashFid(fids[i]);
    LockShard& shard = shards_.OfHash(hash);
    std::unique_lock lock(shard.lock);
    FidMap::Slot* slot = shard.map().Find(fids[i], hash);
    existed[i] = slot != nullptr;
    slot = shard.Claim(slot, fids[i], hash);
    layout_.Init(fids[i], arena_.At(slot->handle));
    slot->timestamp = timestamp;
    shard.Touch(slot);
  }
}

int64_t EmbeddingTable::Erase(const int64_t* fids, int64_t count) {
  int64_t erased = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t hash = HashFid(fids[i]);
    LockShard& shard = shards_.OfHash(hash);
    std::unique_lock lock(shard.lock);
    FidMap::Slot* slot = shard.map().Find(fids[i], hash);
    if (slot == nullptr) continue;
    shard.Remove(slot);
    ++erased;
  }
  return erased;
}

bool EmbeddingTable::IsExpired(int64_t fid, uint32_t timestamp, uint32_t watermark) const {
  const auto slot = config_.slot_expire_days.find(SlotOf(fid));
  const double days = slot == config_.slot_expire_days.end() ? config_.expire_days : slot->second;
  return static_cast<double>(watermark) - timestamp >= days * kSecondsPerDay;
}

int64_t EmbeddingTable::Evict(uint32_t watermark) {
  int64_t evicted = 0;
  std::vector<int64_t> expired;
  for (const auto& shard : shards_) {
    for (uint64_t start = 0; start != FidMap::kEnd;) {
      std::unique_lock lock(shard->lock);
      expired.clear();
      start = shard->map().VisitPage(start, [&](const FidMap::Slot& slot) {
        if (IsExpired(slot.fid, slot.timestamp, watermark)) expired.push_back(slot.fid);
      });
      for (const int64_t fid : expired) shard->Remove(shard->map().Find(fid, HashFid(fid)));
      evicted += static_cast<int64_t>(expired.size());
    }
  }
  return evicted;
}

void EmbeddingTable::Clear() {
  for (const auto& shard : shards_) {
    std::unique_lock lock(shard->lock);
    shard->Clear();
  }
  if (filter_ != nullptr) filter_->Clear();
}

// Touched keys.

bool EmbeddingTable::StealTouched(std::vector<int64_t>* fids) {
  fids->clear();
  bool overflowed = false;
  std::vector<int64_t> stolen;
  for (const auto& shard : shards_) {
    std::unique_lock lock(shard->lock);
    overflowed |= shard->StealTouched(&stolen);
    fids->insert(fids->end(), stolen.begin(), stolen.end());
  }
  // An id that was erased and created again is in the list twice.
  std::sort(fids->begin(), fids->end());
  fids->erase(std::unique(fids->begin(), fids->end()), fids->end());
  return overflowed;
}

void EmbeddingTable::RestoreTouched(const int64_t* fids, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t hash = HashFid(fids[i]);
    LockShard& shard = shards_.OfHash(hash);
    std::unique_lock lock(shard.lock);
    if (FidMap::Slot* slot = shard.map().Find(fids[i], hash)) {
      shard.Touch(slot);
    } else {
      shard.touched().Add(fids[i]);
    }
  }
}

// Walks, imports and cuts.

void EmbeddingTable::Walk(int end_shard, int64_t limit, WalkPosition* position, EntryRows* rows) const {
  rows->row_bytes = layout_.row_bytes();
  while (position->shard < end_shard && rows->size() < limit) {
    const LockShard& shard = shards_[position->shard];
    std::shared_lock lock(shard.lock);
    const auto append = [&](const FidMap::Slot& slot) { rows->AppendFrom(layout_, arena_, slot); };
    position->start = shard.map().VisitPage(position->start, append);
    if (position->start == FidMap::kEnd) *position = {position->shard + 1, 0};
  }
}

bool EmbeddingTable::IsZero(const char* entry) const {
  std::vector<float> weights(dim());
  layout_.ReadWeights(entry, weights.data());
  return AllZero(weights.data(), dim());
}

void EmbeddingTable::Import(const char* rows, int64_t count, const Executor& run) {
  const int64_t bytes = layout_.row_bytes();
  std::vector<int64_t> fids(count);
  for (int64_t i = 0; i < count; ++i) fids[i] = RowHeader::Fid(rows + i * bytes);
  const ShardedBatch batch = ShardedBatch::Sort({{fids.data(), count, nullptr}}, run);
  batch.ForEachShard(run, 100 + bytes / 16, [&](int s, uint32_t begin, uint32_t end) {
    LockShard& shard = shards_[s];
    std::unique_lock lock(shard.lock);
    const auto fid_at = [&](uint32_t i) { return batch.ids[begin + i].fid; };
    shard.ForEachSlot(end - begin, fid_at, [&](uint32_t i, FidMap::Slot* slot, uint64_t hash) {
      const char* row = rows + static_cast<int64_t>(batch.ids[begin + i].row) * bytes;
      if (config_.skip_zero && IsZero(RowHeader::EntryOf(row))) {
        if (slot != nullptr) shard.Remove(slot);
        return;
      }
      slot = shard.Claim(slot, fid_at(i), hash);
      slot->timestamp = RowHeader::Timestamp(row);
      std::memcpy(arena_.At(slot->handle), RowHeader::EntryOf(row), layout_.entry_bytes());
      NoteTimestamp(slot->timestamp);
    });
  });
}

void EmbeddingTable::EndCut() {
  LockAll();
  cut_.End();
  UnlockAll();
}

void EmbeddingTable::TakeCut(int shard_index, uint64_t* start, EntryRows* rows) {
  const LockShard& shard = shards_[shard_index];
  rows->row_bytes = layout_.row_bytes();
  std::shared_lock lock(shard.lock);
  cut_.TakePage(shard.map(), start, rows);
}

void EmbeddingTable::TakeKept(int shard_index, EntryRows* rows) {
  const LockShard& shard = shards_[shard_index];
  rows->row_bytes = layout_.row_bytes();
  RowLog kept;
  {
    std::unique_lock lock(shard.lock);
    cut_.TakeKept(shard_index, &kept);
  }
  rows->bytes.clear();
  kept.AppendTo(&rows->bytes);
}

}  // namespace millrace
