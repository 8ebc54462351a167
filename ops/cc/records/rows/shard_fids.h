// Groups the fids of a batch by (feature, parameter server shard).
#ifndef MILLRACE_RECORDS_SHARD_FIDS_H_
#define MILLRACE_RECORDS_SHARD_FIDS_H_

#include <cstdint>

namespace millrace::records {

// The fids of all features: feature f has fids[splits[f]] up to fids[splits[f + 1]].
struct FeatureFids {
  const int64_t* fids;
  const int64_t* splits;  // [features + 1]
  int32_t features;
  int64_t shards;
};

// Numbers the fids of each (feature, shard) in the order in which they come: places[i] = shard << 32 | number, and
// counts[f * shards + s] of them. With `unique` a fid that comes again has the number of its first occurrence.
void NumberFids(const FeatureFids& batch, bool unique, uint64_t* places, int64_t* counts);

// Moves each fid to sharded[starts[f * shards + s] + number] and turns its place into an offset:
// first_offsets[f * shards + s] + number * steps[f].
void PlaceFids(const FeatureFids& batch, const int64_t* starts, const uint64_t* first_offsets, const int64_t* steps,
               uint64_t* places, int64_t* sharded);

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_SHARD_FIDS_H_
