// Which entries of a cut are still to be copied.
#include "ops/cc/embedding/table/cut_marks.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

TEST(CutMarks, AllHandlesBelowTheEndBelongUntilTheyAreDropped) {
  CutMarks marks(200);
  for (const uint32_t handle : {0u, 63u, 64u, 199u}) EXPECT_TRUE(marks.Holds(handle));
  for (const uint32_t handle : {200u, 255u, 256u, UINT32_MAX}) EXPECT_FALSE(marks.Holds(handle));
  for (const uint32_t handle : {63u, 199u, 200u, UINT32_MAX}) {
    marks.Drop(handle);
    marks.Drop(handle);
  }
  for (uint32_t handle = 0; handle < 300; ++handle) {
    EXPECT_EQ(marks.Holds(handle), handle < 200 && handle != 63 && handle != 199) << handle;
  }
}

TEST(CutMarks, ACutOfAnEmptyTableHoldsNothing) {
  CutMarks marks(0);
  marks.Drop(0);
  EXPECT_FALSE(marks.Holds(0));
}

}  // namespace
}  // namespace millrace
