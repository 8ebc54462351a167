#include "ops/cc/records/c_guard.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <new>
#include <stdexcept>

#include "ops/cc/records/c_api.h"

namespace millrace::records {
namespace {

TEST(Guarded, GivesTheStatusOfTheBody) {
  EXPECT_EQ(Guarded([] { return CallStatus::kDone; }), 0);
  EXPECT_EQ(Guarded([] { return CallStatus::kUnsupported; }), 2);
  EXPECT_EQ(Guarded([] { return CallStatus::kOutOfRange; }), 3);
}

TEST(Guarded, NoExceptionLeaves) {
  EXPECT_EQ(Guarded([]() -> CallStatus { throw std::bad_alloc(); }), 1);
  EXPECT_EQ(Guarded([]() -> CallStatus { throw std::length_error("too long"); }), 4);
  EXPECT_EQ(Guarded([]() -> CallStatus { throw 7; }), 4);
}

}  // namespace
}  // namespace millrace::records
