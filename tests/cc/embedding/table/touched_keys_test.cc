// The bounded list of touched ids.
#include "ops/cc/embedding/table/touched_keys.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>
#include <thread>

#include "tests/cc/covers.h"
#include "tests/cc/test_tables.h"

namespace millrace {
namespace {

void AddAll(const std::vector<int64_t>& fids, TouchedKeys* keys) {
  for (const int64_t fid : fids) keys->Add(fid);
}

COVERS("emb:L12")
TEST(TouchedKeys, L12AsManyAsItHoldsAreAllStolen) {
  TouchedKeys keys(1000);
  AddAll(Sequence(1000), &keys);
  std::vector<int64_t> stolen;
  EXPECT_EQ(keys.Steal(&stolen), 0u);
  EXPECT_EQ(stolen, Sequence(1000));
  EXPECT_EQ(keys.Steal(&stolen), 0u);
  EXPECT_TRUE(stolen.empty());
}

COVERS("emb:L13")
TEST(TouchedKeys, L13OneMoreIsForgottenWithAllBeforeIt) {
  TouchedKeys keys(1000);
  AddAll(Sequence(1005), &keys);
  std::vector<int64_t> stolen;
  EXPECT_EQ(keys.Steal(&stolen), 1001u);
  EXPECT_EQ(stolen, (std::vector<int64_t>{1001, 1002, 1003, 1004}));
  keys.Add(9);
  EXPECT_EQ(keys.Steal(&stolen), 0u);
  EXPECT_EQ(stolen, std::vector<int64_t>{9});
}

// As in a table, a lock guards the list while a thread adds the ids of a batch.
COVERS("emb:L14")
TEST(TouchedKeys, L14TenThreadsFillTheListTwentyTimes) {
  constexpr int64_t kCapacity = 2097152, kKeys = 20 * kCapacity + 10000, kThreads = 10, kBatch = 1000;
  TouchedKeys keys(kCapacity);
  std::mutex lock;
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const int64_t end = (t + 1) * kKeys / kThreads;
      for (int64_t first = t * kKeys / kThreads; first < end; first += kBatch) {
        const std::lock_guard<std::mutex> held(lock);
        for (int64_t fid = first; fid < std::min(first + kBatch, end); ++fid) keys.Add(fid);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<int64_t> stolen;
  const auto forgotten = static_cast<int64_t>(keys.Steal(&stolen));
  EXPECT_EQ(forgotten, 20 * (kCapacity + 1));
  EXPECT_EQ(static_cast<int64_t>(stolen.size()), kKeys - forgotten);
}

}  // namespace
}  // namespace millrace
