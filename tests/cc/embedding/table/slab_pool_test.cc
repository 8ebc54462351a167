// Slabs that shards share.
#include "ops/cc/embedding/table/slab_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <thread>
#include <vector>

namespace millrace {
namespace {

TEST(SlabPool, SlabsAreAlignedAndDoNotOverlap) {
  for (const int64_t bytes : {int64_t{4}, int64_t{100}, int64_t{3} << 20, int64_t{70} << 20}) {
    SlabPool pool(bytes);
    EXPECT_GE(pool.slab_bytes(), bytes);
    std::vector<char*> slabs;
    for (int i = 0; i < 40; ++i) {
      slabs.push_back(pool.Take());
      ASSERT_EQ(reinterpret_cast<uintptr_t>(slabs.back()) % 64, 0u);
      slabs.back()[0] = slabs.back()[bytes - 1] = static_cast<char>(i);
    }
    for (int i = 0; i < 40; ++i) {
      ASSERT_EQ(slabs[i][0], static_cast<char>(i));
      ASSERT_EQ(slabs[i][bytes - 1], static_cast<char>(i));
    }
  }
}

TEST(SlabPool, GivenSlabsAreTakenAgainAndAllOfThemReturnTheMemory) {
  SlabPool pool(1000);
  char* const kept = pool.Take();
  char* const given = pool.Take();
  pool.Give(given);
  EXPECT_EQ(pool.Take(), given);
  pool.Give(given);
  pool.Give(kept);
  std::memset(pool.Take(), 1, 1000);  // of a new mapping
}

TEST(SlabPool, ThreadsNeverShareASlab) {
  SlabPool pool(64);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, t] {
      for (int round = 0; round < 50; ++round) {
        std::vector<char*> slabs;
        for (int i = 0; i < 20; ++i) {
          slabs.push_back(pool.Take());
          std::memset(slabs.back(), t, 64);
        }
        for (char* slab : slabs) {
          ASSERT_EQ(slab[63], static_cast<char>(t));
          pool.Give(slab);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace millrace
