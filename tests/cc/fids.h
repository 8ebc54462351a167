// Ids whose hashes a test chooses.
#ifndef MILLRACE_TESTS_CC_FIDS_H_
#define MILLRACE_TESTS_CC_FIDS_H_

#include <cstdint>
#include <vector>

#include "ops/cc/embedding/base/fid.h"
#include "ops/cc/embedding/table/sharded_batch.h"

namespace millrace {

// Inverse of x ^ (x >> shift).
inline uint64_t UndoXorShift(uint64_t mixed, int shift) {
  uint64_t x = mixed;
  for (int known = shift; known < 64; known += shift) x = mixed ^ (x >> shift);
  return x;
}

// Inverse of an odd number modulo 2^64: each Newton step doubles the bits that are right.
inline uint64_t InverseOf(uint64_t odd) {
  uint64_t inverse = odd;
  for (int step = 0; step < 5; ++step) inverse *= 2 - odd * inverse;
  return inverse;
}

// The fid with HashFid(fid) == hash.
inline int64_t FidOfHash(uint64_t hash) {
  uint64_t x = UndoXorShift(hash, 31) * InverseOf(0x94D049BB133111EBull);
  x = UndoXorShift(x, 27) * InverseOf(0xBF58476D1CE4E5B9ull);
  return static_cast<int64_t>(UndoXorShift(x, 30) - 0x9E3779B97F4A7C15ull);
}

// `count` ids that fall into one lock shard.
inline std::vector<int64_t> FidsOfLockShard(int shard, int64_t count) {
  std::vector<int64_t> fids;
  for (int64_t i = 0; i < count; ++i) {
    fids.push_back(FidOfHash((static_cast<uint64_t>(shard) << 58) | (Mix64(static_cast<uint64_t>(i)) >> 6)));
  }
  return fids;
}

}  // namespace millrace

#endif  // MILLRACE_TESTS_CC_FIDS_H_
