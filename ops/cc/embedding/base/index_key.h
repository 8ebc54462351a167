// What makes the places of ids in an index differ from process to process.
#ifndef MILLRACE_EMBEDDING_INDEX_KEY_H_
#define MILLRACE_EMBEDDING_INDEX_KEY_H_

#include <chrono>
#include <cstdint>
#include <exception>
#include <random>

#include "ops/cc/embedding/base/fid.h"

namespace millrace {

// HashFid can be inverted: whoever chooses ids could choose those that meet in one place of an index, where each takes
// time for all before it. Shards, pages and files go by HashFid, so that equal tables give equal files in all
// processes; a place within a page goes by KeyedHash.
struct IndexKey {
  static IndexKey Draw() {
    uint64_t seed = 0;
    try {
      std::random_device device;
      seed = (static_cast<uint64_t>(device()) << 32) | device();
    } catch (const std::exception&) {  // no source of randomness; the clock is harder to guess than nothing
      seed = static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
    }
    return {Mix64(seed), Mix64(seed + 1) | 1, Mix64(seed + 2) | 1};
  }

  uint64_t mask, factor, second_factor;
};

inline const IndexKey kIndexKey = IndexKey::Draw();

// Two rounds of multiply-shift hashing (Dietzfelbinger et al. 1997), where two hashes share the highest k bits with
// probability 2^(1-k), whatever they are; after one round steps of equal size would stay steps of equal size. The highest
// bits are the good ones.
inline uint64_t KeyedHash(uint64_t hash) {
  const uint64_t mixed = (hash ^ kIndexKey.mask) * kIndexKey.factor;
  return (mixed ^ (mixed >> 32)) * kIndexKey.second_factor;
}

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_INDEX_KEY_H_
