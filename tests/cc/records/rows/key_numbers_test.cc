// The hash table of item pools against one of the standard library.
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <unordered_map>

#include "ops/cc/records/rows/item_pool.h"

namespace millrace::records {
namespace {

TEST(KeyNumbers, KeysThatComeAndGoKeepTheirNumbers) {
  std::mt19937_64 random(1);
  KeyNumbers numbers;
  std::unordered_map<uint64_t, int64_t> expected;
  for (int64_t step = 0; step < 200000; ++step) {
    const uint64_t key = random() % 600;
    const auto known = expected.find(key);
    ASSERT_EQ(numbers.Find(key), known == expected.end() ? KeyNumbers::kNone : known->second);
    if (known == expected.end()) {
      numbers.Add(key, step);
      expected.emplace(key, step);
    } else if (random() % 4 != 0) {
      numbers.Erase(key);
      expected.erase(known);
    }
  }
  for (const auto& [key, number] : expected) EXPECT_EQ(numbers.Find(key), number);
}

}  // namespace
}  // namespace millrace::records
