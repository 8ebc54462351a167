#include "ops/cc/embedding/table/embedding_table.h"

#include <algorithm>
#include <cstring>
#include <shared_mutex>
#include <string>
#include <utility>

#include "ops/cc/embedding/base/finite.h"

namespace millrace {
namespace {

constexpr double kSecondsPerDay = 86400;
constexpr uint32_t kRowsAhead = 12;  // of the values of an assignment, which are read in the order of the shards

bool AllZero(const float* weights, int count) {
  return std::all_of(weights, weights + count, [](float weight) { return weight == 0; });
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
      pages_(FidMap::kPageBytes) {
  for (auto& shard : shards_) shard = std::make_unique<Shard>(&arena_, &pages_);
}

int64_t EmbeddingTable::size() const {
  int64_t total = 0;
  for (const auto& shard : shards_) {
    std::shared_lock lock(shard->lock);
    total += static_cast<int64_t>(shard->map.size());
  }
  return total;
}

TableStats EmbeddingTable::Stats() const {
  TableStats stats;
  for (const auto& shard : shards_) {
    std::shared_lock lock(shard->lock);
    stats.entries += static_cast<int64_t>(shard->map.size());
    stats.memory_bytes += shard->entries.MemoryBytes() + shard->map.MemoryBytes();
  }
  stats.not_finite = not_finite_;
  if (filter_ != nullptr) {
    stats.admitted = filter_->admitted();
    stats.rejected = filter_->rejected();
  }
  return stats;
}

// The pieces that all changes are made of. The caller holds the shard's write lock.

FidMap::Slot* EmbeddingTable::Create(Shard& shard, int64_t fid, uint64_t hash) {
  const uint32_t handle = shard.entries.Allocate();
  if (cut_ != nullptr) cut_->Drop(handle);
  return shard.map.Insert(fid, hash, handle);
}

FidMap::Slot* EmbeddingTable::Claim(Shard& shard, FidMap::Slot* slot, int64_t fid, uint64_t hash) {
  if (slot == nullptr) return Create(shard, fid, hash);
  BeforeChange(shard, *slot);
  return slot;
}

void EmbeddingTable::Remove(Shard& shard, FidMap::Slot* slot) {
  BeforeChange(shard, *slot);
  Touch(shard, slot);
  shard.entries.Free(slot->handle);
  shard.map.Erase(slot);
}

void EmbeddingTable::Touch(Shard& shard, FidMap::Slot* slot) {
  if (slot->touched) return;
  slot->touched = 1;
  shard.touched.Add(slot->fid);
}

void EmbeddingTable::WriteRow(const FidMap::Slot& slot, char* row) const {
  RowHeader::Write(slot.fid, slot.timestamp, row);
  std::memcpy(RowHeader::EntryOf(row), arena_.At(slot.handle), layout_.entry_bytes());
}

void EmbeddingTable::AppendRow(const FidMap::Slot& slot, std::vector<char>* rows) const {
  rows->resize(rows->size() + layout_.row_bytes());
  WriteRow(slot, rows->data() + rows->size() - layout_.row_bytes());
}

void EmbeddingTable::KeepForCut(Shard& shard, const FidMap::Slot& slot) {
  if (!cut_->Holds(slot.handle)) return;
  WriteRow(slot, shard.kept_for_cut.Append(layout_.row_bytes()));
  cut_->Drop(slot.handle);
}

void EmbeddingTable::NoteTimestamp(uint32_t timestamp) {
  uint32_t newest = newest_timestamp_;
  while (timestamp > newest && !newest_timestamp_.compare_exchange_weak(newest, timestamp)) {
  }
}

template <typename FidAt, typename Use>
void EmbeddingTable::ForEachSlot(const Shard& shard, uint32_t count, const FidAt& fid_at, const Use& use) {
  constexpr uint32_t kAhead = 16;
  struct Ahead {
    uint64_t hash;
    FidMap::Slot* home;
    uint64_t growths;  // of the map when `home` was right
  };
  Ahead ring[kAhead];
  for (uint32_t i = 0; i < count + kAhead; ++i) {
    Ahead& ahead = ring[i % kAhead];
    if (i >= kAhead) {
      if (ahead.growths != shard.map.growths()) ahead.home = shard.map.Home(ahead.hash);  // `use` inserts
      use(i - kAhead, shard.map.FindAt(ahead.home, fid_at(i - kAhead), ahead.hash), ahead.hash);
    }
    if (i >= count) continue;
    const uint64_t hash = HashFid(fid_at(i));
    ahead = {hash, shard.map.Home(hash), shard.map.growths()};
    __builtin_prefetch(ahead.home);
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
    float* out = values + begin * dim;
    ForEachRow(fids + begin, end - begin, options, &own_missing, [out, dim](int64_t i, const float* row) {
      if (row == nullptr) {
        std::fill_n(out + i * dim, dim, 0.0f);
      } else {
        EntryLayout::CopyFloats(row, dim, out + i * dim);
      }
    });
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
    Shard& shard = *shards_[s];
    std::unique_lock lock(shard.lock);
    const auto fid_at = [&](uint32_t i) { return batch.ids[begin + i].fid; };
    ForEachSlot(shard, end - begin, fid_at, [&](uint32_t i, FidMap::Slot* slot, uint64_t hash) {
      if (slot != nullptr) return;
      slot = Create(shard, fid_at(i), hash);
      layout_.Init(fid_at(i), arena_.At(slot->handle));
    });
  });
}

void EmbeddingTable::LookupEntries(const int64_t* fids, int64_t count, bool* found, char* rows) const {
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t hash = HashFid(fids[i]);
    const Shard& shard = ShardOfHash(hash);
    std::shared_lock lock(shard.lock);
    const FidMap::Slot* slot = shard.map.Find(fids[i], hash);
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
    const Shard& shard = ShardOfHash(hash);
    std::shared_lock lock(shard.lock);
    found[i] = shard.map.Find(fids[i], hash) != nullptr;
  }
}

// Training.

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
  Shard& shard = *shards_[s];
  std::unique_lock lock(shard.lock);
  const auto fid_at = [&](uint32_t i) { return merged.fids[begin + i]; };
  ForEachSlot(shard, merged.distinct[s], fid_at, [&](uint32_t i, FidMap::Slot* slot, uint64_t hash) {
    if (merged.gradients[begin + i] == nullptr) return;
    if (slot != nullptr) {
      BeforeChange(shard, *slot);
    } else {
      if (filter_ != nullptr && !filter_->Admit(fid_at(i), merged.counts[begin + i], filter_batch)) return;
      slot = Create(shard, fid_at(i), hash);
      layout_.Init(fid_at(i), arena_.At(slot->handle));
    }
    if (slot->timestamp != options.timestamp) slot->timestamp = options.timestamp;  // a line less to write back
    Touch(shard, slot);
    entries.push_back(arena_.At(slot->handle));
    places.push_back(begin + i);
    Prefetch(entries.back(), layout_.entry_bytes());
  });
  Step(merged, begin, places, entries, options);
}

void EmbeddingTable::Step(const MergedGradients& merged, uint32_t begin, const std::vector<uint32_t>& places,
                          const std::vector<char*>& entries, const UpdateOptions& options) const {
  EntryLayout::UpdateBatch batch{static_cast<int64_t>(entries.size()),
                                 entries.data(),
                                 merged.fids.get() + begin,
                                 merged.gradients.get() + begin,
                                 merged.read_weights ? merged.read_weights.get() + begin : nullptr,
                                 options.learning_rates,
                                 options.global_step};
  if (places.empty() || places.back() + 1 - begin == places.size()) {
    layout_.Update(batch);
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
  layout_.Update(batch);
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
    Shard& shard = *shards_[s];
    std::unique_lock lock(shard.lock);
    const auto fid_at = [&](uint32_t i) { return batch.ids[begin + i].fid; };
    ForEachSlot(shard, end - begin, fid_at, [&](uint32_t i, FidMap::Slot* slot, uint64_t hash) {
      const auto row_at = [&](uint32_t k) { return values + static_cast<int64_t>(batch.ids[begin + k].row) * width; };
      const float* row = row_at(i);
      if (begin + i + kRowsAhead < end) __builtin_prefetch(row_at(i + kRowsAhead));
      if (config_.skip_zero && !options.add && AllZero(row, width)) {
        if (slot != nullptr) Remove(shard, slot);
        return;
      }
      const bool is_new = slot == nullptr;
      if (is_new && filter != nullptr && !filter->Admit(fid_at(i), 1, filter_batch)) return;
      slot = Claim(shard, slot, fid_at(i), hash);
      slot->timestamp = options.timestamp;
      char* entry = arena_.At(slot->handle);
      if (options.add) {
        if (is_new) layout_.Init(fid_at(i), entry);
        layout_.AddWeights(row, entry);
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
    Shard& shard = ShardOfHash(hash);
    std::unique_lock lock(shard.lock);
    FidMap::Slot* slot = shard.map.Find(fids[i], hash);
    existed[i] = slot != nullptr;
    slot = Claim(shard, slot, fids[i], hash);
    layout_.Init(fids[i], arena_.At(slot->handle));
    slot->timestamp = timestamp;
    Touch(shard, slot);
  }
}

int64_t EmbeddingTable::Erase(const int64_t* fids, int64_t count) {
  int64_t erased = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t hash = HashFid(fids[i]);
    Shard& shard = ShardOfHash(hash);
    std::unique_lock lock(shard.lock);
    FidMap::Slot* slot = shard.map.Find(fids[i], hash);
    if (slot == nullptr) continue;
    Remove(shard, slot);
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
      start = shard->map.VisitPage(start, [&](const FidMap::Slot& slot) {
        if (IsExpired(slot.fid, slot.timestamp, watermark)) expired.push_back(slot.fid);
      });
      for (const int64_t fid : expired) Remove(*shard, shard->map.Find(fid, HashFid(fid)));
      evicted += static_cast<int64_t>(expired.size());
    }
  }
  return evicted;
}

void EmbeddingTable::Clear() {
  std::vector<int64_t> forgotten;
  for (const auto& shard : shards_) {
    std::unique_lock lock(shard->lock);
    for (uint64_t start = cut_ == nullptr ? FidMap::kEnd : 0; start != FidMap::kEnd;) {
      start = shard->map.VisitPage(start, [&](const FidMap::Slot& slot) { KeepForCut(*shard, slot); });
    }
    shard->map.Clear();
    shard->entries.Clear();
    shard->touched.Steal(&forgotten);
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
    if (shard->touched.Steal(&stolen) > 0) {
      overflowed = true;
      for (uint64_t start = 0; start != FidMap::kEnd;) {
        start = shard->map.VisitPage(start, [](FidMap::Slot& slot) { slot.touched = 0; });
      }
    }
    const auto fid_at = [&](uint32_t i) { return stolen[i]; };
    ForEachSlot(*shard, static_cast<uint32_t>(stolen.size()), fid_at, [](uint32_t, FidMap::Slot* slot, uint64_t) {
      if (slot != nullptr) slot->touched = 0;
    });
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
    Shard& shard = ShardOfHash(hash);
    std::unique_lock lock(shard.lock);
    if (FidMap::Slot* slot = shard.map.Find(fids[i], hash)) {
      Touch(shard, slot);
    } else {
      shard.touched.Add(fids[i]);
    }
  }
}

// Walks, imports and cuts.

void EmbeddingTable::Walk(int end_shard, int64_t limit, WalkPosition* position, EntryRows* rows) const {
  rows->row_bytes = layout_.row_bytes();
  while (position->shard < end_shard && rows->size() < limit) {
    const Shard& shard = *shards_[position->shard];
    std::shared_lock lock(shard.lock);
    position->start =
        shard.map.VisitPage(position->start, [&](const FidMap::Slot& slot) { AppendRow(slot, &rows->bytes); });
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
    Shard& shard = *shards_[s];
    std::unique_lock lock(shard.lock);
    const auto fid_at = [&](uint32_t i) { return batch.ids[begin + i].fid; };
    ForEachSlot(shard, end - begin, fid_at, [&](uint32_t i, FidMap::Slot* slot, uint64_t hash) {
      const char* row = rows + static_cast<int64_t>(batch.ids[begin + i].row) * bytes;
      if (config_.skip_zero && IsZero(RowHeader::EntryOf(row))) {
        if (slot != nullptr) Remove(shard, slot);
        return;
      }
      slot = Claim(shard, slot, fid_at(i), hash);
      slot->timestamp = RowHeader::Timestamp(row);
      std::memcpy(arena_.At(slot->handle), RowHeader::EntryOf(row), layout_.entry_bytes());
      NoteTimestamp(slot->timestamp);
    });
  });
}

void EmbeddingTable::LockAll() {
  for (const auto& shard : shards_) shard->lock.lock();
}

void EmbeddingTable::UnlockAll() {
  for (const auto& shard : shards_) shard->lock.unlock();
}

void EmbeddingTable::BeginCut() { cut_ = std::make_unique<CutMarks>(arena_.end()); }

void EmbeddingTable::EndCut() {
  LockAll();
  cut_.reset();
  for (const auto& shard : shards_) shard->kept_for_cut = RowLog();
  UnlockAll();
}

void EmbeddingTable::TakeCut(int shard_index, uint64_t* start, EntryRows* rows) {
  const Shard& shard = *shards_[shard_index];
  rows->row_bytes = layout_.row_bytes();
  // Writers are kept out, and among readers only this one looks at the cut.
  std::shared_lock lock(shard.lock);
  *start = shard.map.VisitPage(*start, [&](const FidMap::Slot& slot) {
    if (!cut_->Holds(slot.handle)) return;
    AppendRow(slot, &rows->bytes);
    cut_->Drop(slot.handle);
  });
}

void EmbeddingTable::TakeKept(int shard_index, EntryRows* rows) {
  Shard& shard = *shards_[shard_index];
  rows->row_bytes = layout_.row_bytes();
  RowLog kept;
  {
    std::unique_lock lock(shard.lock);
    kept.swap(shard.kept_for_cut);
  }
  rows->bytes.clear();
  kept.AppendTo(&rows->bytes);
}

}  // namespace millrace
