// The bounded list of touched ids.
#include "ops/cc/embedding/table/touched_keys.h"

#include <gtest/gtest.h>

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
  EXPECT_FALSE(keys.Steal(&stolen));
  EXPECT_EQ(stolen, Sequence(1000));
  EXPECT_FALSE(keys.Steal(&stolen));
  EXPECT_TRUE(stolen.empty());
}

// The remainder {1001..1004} is not given out: after an overflow the reader needs a whole export anyway.
COVERS("emb:L13")
TEST(TouchedKeys, L13OneMoreIsAnOverflowThatIsSaidOnce) {
  TouchedKeys keys(1000);
  AddAll(Sequence(1005), &keys);
  std::vector<int64_t> stolen;
  EXPECT_TRUE(keys.Steal(&stolen));
  EXPECT_TRUE(stolen.empty());
  keys.Add(9);
  EXPECT_FALSE(keys.Steal(&stolen));
  EXPECT_EQ(stolen, std::vector<int64_t>{9});
}

}  // namespace
}  // namespace millrace
