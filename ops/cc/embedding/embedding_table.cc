#include "ops/cc/embedding/embedding_table.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <numeric>
#include <string>

namespace millrace {
namespace {

// Far enough ahead that a line from memory arrives in time, near enough that it is still in the cache.
constexpr uint32_t kSlotsAhead = 12;
constexpr uint32_t kEntriesAhead = 8;

void PrefetchEntry(const float* entry, int floats) {
  for (int i = 0; i < floats; i += 16) __builtin_prefetch(entry + i);
}

// Integer arithmetic on the bits, because a reduction over them vectorises.
bool AllFinite(const float* values, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    largest = std::max(largest, bits & 0x7FFFFFFFu);
  }
  return largest < 0x7F800000u;
}

}  // namespace

// A batch in lock-shard order (stable): shard s holds places [begin[s], begin[s + 1]); position[p] is the index in the
// batch.
struct EmbeddingTable::ShardedIds {
  std::vector<uint64_t> hashes;
  std::vector<uint32_t> positions;
  std::vector<uint32_t> begin;

  template <typename FidAt>  // int64_t(int64_t position)
  ShardedIds(int64_t count, FidAt fid_at) : hashes(count), positions(count), begin(kLockShards + 1) {
    std::vector<uint64_t> unsorted(count);
    for (int64_t i = 0; i < count; ++i) {
      unsorted[i] = HashFid(fid_at(i));
      ++begin[(unsorted[i] >> 58) + 1];
    }
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    std::vector<uint32_t> next(begin.begin(), begin.end() - 1);
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t place = next[unsorted[i] >> 58]++;
      hashes[place] = unsorted[i];
      positions[place] = static_cast<uint32_t>(i);
    }
  }

  int64_t NanosecondsPerShard(int64_t per_id) const {
    return static_cast<int64_t>(positions.size()) * per_id / kLockShards + 50;
  }
};

Status EmbeddingTable::Create(const TableConfig& config, std::unique_ptr<EmbeddingTable>* result) {
  std::unique_ptr<SparseOptimizer> optimizer;
  MILLRACE_RETURN_IF_ERROR(MakeOptimizer(config, &optimizer));
  Initializer initializer;
  MILLRACE_RETURN_IF_ERROR(Initializer::Make(config, &initializer));
  result->reset(new EmbeddingTable(config, std::move(optimizer), initializer));
  return {};
}

EmbeddingTable::EmbeddingTable(const TableConfig& config, std::unique_ptr<SparseOptimizer> optimizer,
                               const Initializer& initializer)
    : config_(config),
      optimizer_(std::move(optimizer)),
      initializer_(initializer),
      state_floats_(optimizer_->StateFloats(config.dim)) {
  for (auto& shard : shards_) shard = std::make_unique<Shard>(config_.dim + state_floats_);
}

int64_t EmbeddingTable::size() const {
  int64_t total = 0;
  for (const auto& shard : shards_) {
    std::shared_lock lock(shard->mutex);
    total += shard->map.size();
  }
  return total;
}

FidMap::Slot* EmbeddingTable::FindOrCreate(Shard& shard, int64_t fid, uint64_t hash) {
  if (FidMap::Slot* slot = shard.map.Find(fid, hash)) return slot;
  const uint32_t handle = shard.arena.Allocate();
  float* entry = shard.arena.At(handle);
  initializer_.Fill(fid, entry, config_.dim);
  optimizer_->InitState(entry + config_.dim, config_.dim);
  return shard.map.Insert(fid, hash, handle);
}

void EmbeddingTable::Touch(Shard& shard, FidMap::Slot* slot) {
  if (slot->touched) return;
  slot->touched = 1;
  shard.touched.Add(slot->fid);
}

void EmbeddingTable::Lookup(const int64_t* fids, int64_t count, bool create, float* values, const Executor& run) {
  const int dim = config_.dim;
  const ShardedIds batch(count, [fids](int64_t i) { return fids[i]; });
  const auto look_up_shard = [&](Shard& shard, uint32_t begin, uint32_t end, std::vector<const float*>* entries) {
    entries->resize(end - begin);
    for (uint32_t i = begin; i < end; ++i) {
      if (i + kSlotsAhead < end) shard.map.Prefetch(batch.hashes[i + kSlotsAhead]);
      const int64_t fid = fids[batch.positions[i]];
      const FidMap::Slot* slot =
          create ? FindOrCreate(shard, fid, batch.hashes[i]) : shard.map.Find(fid, batch.hashes[i]);
      (*entries)[i - begin] = slot == nullptr ? nullptr : shard.arena.At(slot->handle);
    }
    for (uint32_t i = begin; i < end; ++i) {
      if (i + kEntriesAhead < end) PrefetchEntry((*entries)[i + kEntriesAhead - begin], dim);
      float* row = values + static_cast<int64_t>(batch.positions[i]) * dim;
      const float* entry = (*entries)[i - begin];
      if (entry == nullptr) {
        std::fill_n(row, dim, 0.0f);
      } else {
        std::memcpy(row, entry, dim * sizeof(float));
      }
    }
  };
  run(kLockShards, batch.NanosecondsPerShard(60 + dim), [&](int64_t first, int64_t last) {
    std::vector<const float*> entries;
    for (int64_t s = first; s < last; ++s) {
      if (batch.begin[s] == batch.begin[s + 1]) continue;
      Shard& shard = *shards_[s];
      if (create) {
        std::unique_lock lock(shard.mutex);
        look_up_shard(shard, batch.begin[s], batch.begin[s + 1], &entries);
      } else {
        std::shared_lock lock(shard.mutex);
        look_up_shard(shard, batch.begin[s], batch.begin[s + 1], &entries);
      }
    }
  });
}

void EmbeddingTable::Contains(const int64_t* fids, int64_t count, bool* found) const {
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t hash = HashFid(fids[i]);
    Shard& shard = ShardOfHash(hash);
    std::shared_lock lock(shard.mutex);
    found[i] = shard.map.Find(fids[i], hash) != nullptr;
  }
}

Status EmbeddingTable::Merge(const std::vector<Occurrence>& occurrences, const Executor& run,
                             MergedGradients* merged) const {
  if (config_.optimizer.kind == "none") {
    return FailedPrecondition("table '" + config_.name + "' has no optimizer: it takes no gradients");
  }
  const int dim = config_.dim;
  const int64_t count = occurrences.size();
  const ShardedIds batch(count, [&](int64_t i) { return occurrences[i].fid; });
  merged->begin = batch.begin;
  merged->distinct.assign(kLockShards, 0);
  merged->fids.reset(new int64_t[count]);
  merged->sums.reset(new float[count * dim]);
  std::atomic<uint32_t> bad_position{UINT32_MAX};

  const auto merge_shard = [&](int64_t s, std::vector<uint32_t>* index, std::vector<uint32_t>* first_positions) {
    const uint32_t begin = batch.begin[s], end = batch.begin[s + 1];
    uint32_t room = 2;
    while (room < 2 * (end - begin)) room *= 2;
    index->assign(room, UINT32_MAX);
    first_positions->clear();
    int64_t* fids = merged->fids.get() + begin;
    float* sums = merged->sums.get() + static_cast<int64_t>(begin) * dim;
    for (uint32_t i = begin; i < end; ++i) {
      const Occurrence& occurrence = occurrences[batch.positions[i]];
      uint32_t at = batch.hashes[i] & (room - 1);
      while ((*index)[at] != UINT32_MAX && fids[(*index)[at]] != occurrence.fid) at = (at + 1) & (room - 1);
      const bool is_new = (*index)[at] == UINT32_MAX;
      if (is_new) {
        (*index)[at] = first_positions->size();
        fids[(*index)[at]] = occurrence.fid;
        first_positions->push_back(batch.positions[i]);
      }
      float* sum = sums + static_cast<int64_t>((*index)[at]) * dim;
      if (is_new) {
        for (int d = 0; d < dim; ++d) sum[d] = occurrence.scale * occurrence.gradient[d];
      } else {
        for (int d = 0; d < dim; ++d) sum[d] += occurrence.scale * occurrence.gradient[d];
      }
    }
    merged->distinct[s] = first_positions->size();
    for (uint32_t k = 0; k < first_positions->size(); ++k) {
      if (AllFinite(sums + static_cast<int64_t>(k) * dim, dim)) continue;
      uint32_t seen = bad_position.load();
      while ((*first_positions)[k] < seen && !bad_position.compare_exchange_weak(seen, (*first_positions)[k])) {
      }
    }
  };
  run(kLockShards, batch.NanosecondsPerShard(20 + dim), [&](int64_t first, int64_t last) {
    std::vector<uint32_t> index, first_positions;
    for (int64_t s = first; s < last; ++s) {
      if (batch.begin[s] != batch.begin[s + 1]) merge_shard(s, &index, &first_positions);
    }
  });
  if (bad_position != UINT32_MAX) {
    return InvalidArgument("table '" + config_.name + "': the gradient of id " +
                           std::to_string(occurrences[bad_position].fid) + " is NaN or infinite; nothing was applied");
  }
  return {};
}

void EmbeddingTable::Apply(const MergedGradients& merged, float learning_rate, uint32_t timestamp,
                           const Executor& run) {
  const int dim = config_.dim;
  const auto apply_shard = [&](int64_t s, std::vector<uint64_t>* hashes, std::vector<float*>* entries) {
    const uint32_t count = merged.distinct[s];
    const int64_t* fids = merged.fids.get() + merged.begin[s];
    const float* sums = merged.sums.get() + static_cast<int64_t>(merged.begin[s]) * dim;
    hashes->resize(count);
    entries->resize(count);
    for (uint32_t i = 0; i < count; ++i) (*hashes)[i] = HashFid(fids[i]);
    Shard& shard = *shards_[s];
    std::unique_lock lock(shard.mutex);
    for (uint32_t i = 0; i < count; ++i) {
      if (i + kSlotsAhead < count) shard.map.Prefetch((*hashes)[i + kSlotsAhead]);
      FidMap::Slot* slot = FindOrCreate(shard, fids[i], (*hashes)[i]);
      slot->timestamp = timestamp;
      Touch(shard, slot);
      (*entries)[i] = shard.arena.At(slot->handle);
    }
    for (uint32_t i = 0; i < count; ++i) {
      if (i + kEntriesAhead < count) PrefetchEntry((*entries)[i + kEntriesAhead], dim + state_floats_);
      float* entry = (*entries)[i];
      optimizer_->Update(entry, entry + dim, sums + static_cast<int64_t>(i) * dim, dim, learning_rate);
    }
  };
  const int64_t total = std::accumulate(merged.distinct.begin(), merged.distinct.end(), int64_t{0});
  run(kLockShards, total * (100 + 4 * dim) / kLockShards + 50, [&](int64_t first, int64_t last) {
    std::vector<uint64_t> hashes;
    std::vector<float*> entries;
    for (int64_t s = first; s < last; ++s) {
      if (merged.distinct[s] != 0) apply_shard(s, &hashes, &entries);
    }
  });
}

Status EmbeddingTable::Assign(const int64_t* fids, const float* values, int64_t count, uint32_t timestamp,
                              const Executor& run) {
  const int dim = config_.dim;
  for (int64_t i = 0; i < count; ++i) {
    if (AllFinite(values + i * dim, dim)) continue;
    return InvalidArgument("table '" + config_.name + "': the value of id " + std::to_string(fids[i]) +
                           " is NaN or infinite; nothing was assigned");
  }
  const ShardedIds batch(count, [fids](int64_t i) { return fids[i]; });
  run(kLockShards, batch.NanosecondsPerShard(100 + dim), [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      if (batch.begin[s] == batch.begin[s + 1]) continue;
      Shard& shard = *shards_[s];
      std::unique_lock lock(shard.mutex);
      for (uint32_t i = batch.begin[s]; i < batch.begin[s + 1]; ++i) {
        const int64_t position = batch.positions[i];
        FidMap::Slot* slot = FindOrCreate(shard, fids[position], batch.hashes[i]);
        slot->timestamp = timestamp;
        std::memcpy(shard.arena.At(slot->handle), values + position * dim, dim * sizeof(float));
      }
    }
  });
  return {};
}

int64_t EmbeddingTable::Erase(const int64_t* fids, int64_t count) {
  int64_t erased = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t hash = HashFid(fids[i]);
    Shard& shard = ShardOfHash(hash);
    std::unique_lock lock(shard.mutex);
    FidMap::Slot* slot = shard.map.Find(fids[i], hash);
    if (slot == nullptr) continue;
    Touch(shard, slot);
    shard.arena.Free(slot->handle);
    shard.map.Erase(slot);
    ++erased;
  }
  return erased;
}

void EmbeddingTable::Clear() {
  std::vector<int64_t> forgotten;
  for (auto& shard : shards_) {
    std::unique_lock lock(shard->mutex);
    shard->map.Clear();
    shard->arena.Clear();
    shard->touched.Steal(&forgotten);
  }
}

bool EmbeddingTable::StealTouched(std::vector<int64_t>* fids) {
  fids->clear();
  bool overflowed = false;
  std::vector<int64_t> stolen;
  for (auto& shard : shards_) {
    std::unique_lock lock(shard->mutex);
    if (shard->touched.Steal(&stolen)) {
      overflowed = true;
      shard->map.ForEach([](FidMap::Slot& slot) { slot.touched = 0; });
    }
    for (const int64_t fid : stolen) {
      if (FidMap::Slot* slot = shard->map.Find(fid, HashFid(fid))) slot->touched = 0;
    }
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
    std::unique_lock lock(shard.mutex);
    if (FidMap::Slot* slot = shard.map.Find(fids[i], hash)) {
      Touch(shard, slot);
    } else {
      shard.touched.Add(fids[i]);
    }
  }
}

void EmbeddingTable::Export(int shard_index, bool with_state, EntryBlock* block) const {
  const Shard& shard = *shards_[shard_index];
  std::shared_lock lock(shard.mutex);
  const int floats = config_.dim + (with_state ? state_floats_ : 0);
  std::vector<FidMap::Slot> slots;
  slots.reserve(shard.map.size());
  shard.map.ForEach([&](const FidMap::Slot& slot) { slots.push_back(slot); });
  std::sort(slots.begin(), slots.end(), [](const auto& a, const auto& b) { return a.fid < b.fid; });
  block->floats = floats;
  block->fids.resize(slots.size());
  block->timestamps.resize(slots.size());
  block->values.resize(slots.size() * floats);
  for (size_t i = 0; i < slots.size(); ++i) {
    block->fids[i] = slots[i].fid;
    block->timestamps[i] = slots[i].timestamp;
    std::memcpy(block->values.data() + i * floats, shard.arena.At(slots[i].handle), floats * sizeof(float));
  }
}

void EmbeddingTable::Import(const EntryBlock& block) {
  const int floats = std::min(block.floats, config_.dim + state_floats_);
  for (size_t i = 0; i < block.fids.size(); ++i) {
    const uint64_t hash = HashFid(block.fids[i]);
    Shard& shard = ShardOfHash(hash);
    std::unique_lock lock(shard.mutex);
    FidMap::Slot* slot = FindOrCreate(shard, block.fids[i], hash);
    slot->timestamp = block.timestamps[i];
    std::memcpy(shard.arena.At(slot->handle), block.values.data() + i * block.floats, floats * sizeof(float));
  }
}

}  // namespace millrace
