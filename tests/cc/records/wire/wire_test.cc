#include "ops/cc/records/wire/wire.h"

#include <gtest/gtest.h>

#include <string>

#include "ops/cc/records/wire/utf8.h"
#include "tests/cc/records/record_bytes.h"

namespace millrace::records {
namespace {

bool Skips(const std::string& bytes) {
  WireReader reader(SpanOf(bytes));
  uint32_t tag;
  return reader.ReadTag(&tag) && reader.Skip(tag) && reader.done();
}

TEST(Wire, ReadsVarintsOfUpToTenBytes) {
  for (const uint64_t number : {uint64_t{0}, uint64_t{127}, uint64_t{128}, uint64_t{1} << 63, ~uint64_t{0}}) {
    const std::string bytes = VarintBytes(number);
    WireReader reader(SpanOf(bytes));
    uint64_t found;
    ASSERT_TRUE(reader.ReadVarint(&found));
    EXPECT_EQ(found, number);
    EXPECT_TRUE(reader.done());
    const std::string cut = bytes.substr(0, bytes.size() - 1);
    WireReader short_reader(SpanOf(cut));
    EXPECT_FALSE(short_reader.ReadVarint(&found));
  }
  const std::string endless(11, '\xff');
  WireReader reader(SpanOf(endless));
  uint64_t found;
  EXPECT_FALSE(reader.ReadVarint(&found));
}

TEST(Wire, RefusesTagsOfFieldZeroAndOfMoreThan32Bits) {
  for (const std::string& bytes : {VarintBytes(0), VarintBytes(7), VarintBytes(uint64_t{1} << 32)}) {
    WireReader reader(SpanOf(bytes));
    uint32_t tag;
    EXPECT_FALSE(reader.ReadTag(&tag));
  }
}

TEST(Wire, RefusesALengthBehindTheEnd) {
  for (const std::string& bytes : {std::string("\x05"
                                               "abc"),
                                   std::string("\xff\xff\xff\xff\x7f"), std::string()}) {
    WireReader reader(SpanOf(bytes));
    Span found;
    EXPECT_FALSE(reader.ReadBytes(&found));
    EXPECT_EQ(reader.at(), SpanOf(bytes).begin);
  }
}

TEST(Wire, SkipsEveryWireTypeAndGroupsInGroups) {
  const std::string group = VarintBytes(TagOf(1, kStartGroup)), end = VarintBytes(TagOf(1, kEndGroup));
  EXPECT_TRUE(Skips(VarintField(9, 300)));
  EXPECT_TRUE(Skips(FixedField(9, uint64_t{1})));
  EXPECT_TRUE(Skips(FixedField(9, uint32_t{1})));
  EXPECT_TRUE(Skips(BytesField(9, "abc")));
  EXPECT_TRUE(Skips(group + VarintField(2, 1) + group + end + end));
  EXPECT_FALSE(Skips(group + VarintField(2, 1)));
  EXPECT_FALSE(Skips(group + VarintBytes(TagOf(2, kEndGroup))));
  EXPECT_FALSE(Skips(end));
  EXPECT_FALSE(Skips(std::string("\x0e")));
}

TEST(Wire, GroupsNestOnlySoDeep) {
  const auto nested = [](int depth) {
    std::string begin, end;
    for (int i = 0; i < depth; ++i) {
      begin += VarintBytes(TagOf(1, kStartGroup));
      end += VarintBytes(TagOf(1, kEndGroup));
    }
    return begin + end;
  };
  EXPECT_TRUE(Skips(nested(100)));
  EXPECT_FALSE(Skips(nested(101)));
  EXPECT_FALSE(Skips(nested(10000)));
}

TEST(Utf8, TakesShortestFormsWithoutSurrogates) {
  for (const char* text :
       {"", "a", "\xc2\x80", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_TRUE(IsUtf8(SpanOf(text))) << text;
  }
  for (const char* text : {"\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80",
                           "\xf5\x80\x80\x80", "\xc2", "a\xe2\x82", "\xc2z"}) {
    EXPECT_FALSE(IsUtf8(SpanOf(text))) << text;
  }
}

}  // namespace
}  // namespace millrace::records
