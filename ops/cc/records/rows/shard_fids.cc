#include "ops/cc/records/rows/shard_fids.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/cc/embedding/base/fid.h"
#include "ops/cc/records/c_api.h"
#include "ops/cc/records/c_guard.h"

namespace millrace::records {
namespace {

constexpr int kShardShift = 32;

// Both halves of a product, xored: one multiplication, where HashFid has two, and each look-up waits for its hash.
uint64_t Fold(int64_t fid) {
  const auto product =
      static_cast<Uint128>(static_cast<uint64_t>(fid) ^ 0x9E3779B97F4A7C15u) * 0xBF58476D1CE4E5B9u;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// Numbers of the distinct fids of one feature after another. Linear probing; a slot of another feature is free.
class FirstSeen {
 public:
  // The number of `fid`: that of its first occurrence in the feature, or else `*next`, which then goes up.
  uint32_t NumberOf(int32_t feature, int64_t fid, int64_t* next) {
    if (feature != feature_) {
      feature_ = feature;
      used_ = 0;
    }
    Slot& slot = Find(fid);
    if (slot.feature == feature_) return slot.number;
    const auto number = static_cast<uint32_t>((*next)++);
    slot = {fid, feature, number};
    if (4 * ++used_ > slots_.size()) Grow();
    return number;
  }

 private:
  struct Slot {
    int64_t fid = 0;
    int32_t feature = -1;
    uint32_t number = 0;
  };
  static constexpr size_t kFirstSlots = 8192;

  Slot& Find(int64_t fid) {
    size_t at = Fold(fid) & (slots_.size() - 1);
    while (slots_[at].feature == feature_ && slots_[at].fid != fid) at = (at + 1) & (slots_.size() - 1);
    return slots_[at];
  }

  void Grow() {
    std::vector<Slot> old(2 * slots_.size());
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.feature == feature_) Find(slot.fid) = slot;
    }
  }

  std::vector<Slot> slots_ = std::vector<Slot>(kFirstSlots);
  size_t used_ = 0;
  int32_t feature_ = -1;
};

template <typename Number>
void ForEachFid(const FeatureFids& batch, uint64_t* places, int64_t* counts, const Number& number) {
  for (int32_t f = 0; f < batch.features; ++f, counts += batch.shards) {
    for (int64_t i = batch.splits[f]; i < batch.splits[f + 1]; ++i) {
      const int64_t shard = ShardOf(batch.fids[i], batch.shards);
      places[i] = static_cast<uint64_t>(shard) << kShardShift | number(f, batch.fids[i], &counts[shard]);
    }
  }
}

}  // namespace

void NumberFids(const FeatureFids& batch, bool unique, uint64_t* places, int64_t* counts) {
  std::fill_n(counts, batch.features * batch.shards, 0);
  if (!unique) {
    ForEachFid(batch, places, counts, [](int32_t, int64_t, int64_t* count) { return (*count)++; });
    return;
  }
  FirstSeen seen;
  ForEachFid(batch, places, counts,
             [&](int32_t feature, int64_t fid, int64_t* count) { return seen.NumberOf(feature, fid, count); });
}

void PlaceFids(const FeatureFids& batch, const int64_t* starts, const uint64_t* first_offsets, const int64_t* steps,
               uint64_t* places, int64_t* sharded) {
  for (int32_t f = 0; f < batch.features; ++f, starts += batch.shards, first_offsets += batch.shards) {
    for (int64_t i = batch.splits[f]; i < batch.splits[f + 1]; ++i) {
      const uint64_t shard = places[i] >> kShardShift;
      const uint64_t number = places[i] & UINT32_MAX;
      sharded[starts[shard] + static_cast<int64_t>(number)] = batch.fids[i];
      places[i] = first_offsets[shard] + number * static_cast<uint64_t>(steps[f]);
    }
  }
}

}  // namespace millrace::records

using namespace millrace::records;

int32_t millrace_number_fids(const int64_t* fids, const int64_t* splits, int32_t features, int64_t shards,
                             int32_t unique, uint64_t* places, int64_t* counts) {
  return Guarded([=] {
    NumberFids({fids, splits, features, shards}, unique != 0, places, counts);
    return CallStatus::kDone;
  });
}

int32_t millrace_place_fids(const int64_t* fids, const int64_t* splits, int32_t features, int64_t shards,
                            const int64_t* starts, const uint64_t* first_offsets, const int64_t* steps,
                            uint64_t* places, int64_t* sharded) {
  return Guarded([=] {
    PlaceFids({fids, splits, features, shards}, starts, first_offsets, steps, places, sharded);
    return CallStatus::kDone;
  });
}
