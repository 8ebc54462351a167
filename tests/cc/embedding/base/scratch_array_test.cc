#include "ops/cc/embedding/base/scratch_array.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

namespace millrace {
namespace {

TEST(ScratchArray, MemoryOfOneServesTheNextOfItsSize) {
  const float* memory;
  {
    const ScratchArray<float> first(300'000);
    memory = first.get();
  }
  EXPECT_EQ(ScratchArray<float>(290'000).get(), memory);
}

TEST(ScratchArray, IsNullUntilItHasASizeAndAfterAMove) {
  ScratchArray<int64_t> empty;
  EXPECT_FALSE(static_cast<bool>(empty));
  ScratchArray<int64_t> array(10);
  array[9] = 7;
  const ScratchArray<int64_t> moved = std::move(array);
  EXPECT_EQ(moved[9], 7);
}

TEST(ScratchArray, ThreadsNeverShareOne) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int round = 0; round < 500; ++round) {
        const ScratchArray<int> array(5000);
        for (int i = 0; i < 5000; i += 500) array[i] = t;
        for (int i = 0; i < 5000; i += 500) ASSERT_EQ(array[i], t);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace millrace
