#include "ops/cc/embedding/table/row_log.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

namespace millrace {
namespace {

std::string Contents(const RowLog& log) {
  std::vector<char> rows;
  log.AppendTo(&rows);
  return {rows.begin(), rows.end()};
}

TEST(RowLog, GivesRowsBackInOrderWhateverTheirSize) {
  for (const size_t row_bytes : {size_t{1}, size_t{140}, size_t{100'000}}) {
    RowLog log;
    std::string expected;
    for (int i = 0; i < 1000 && expected.size() < 1'000'000; ++i) {
      const std::string row(row_bytes, static_cast<char>('a' + i % 26));
      std::memcpy(log.Append(row_bytes), row.data(), row_bytes);
      expected += row;
    }
    EXPECT_EQ(Contents(log), expected) << row_bytes;
  }
}

TEST(RowLog, ARowStaysWhereItIsWhileOthersFollow) {
  RowLog log;
  char* first = log.Append(100);
  std::memset(first, 'x', 100);
  for (int i = 0; i < 10'000; ++i) std::memset(log.Append(100), 'y', 100);
  EXPECT_EQ(first[99], 'x');
}

TEST(RowLog, SwapLeavesAnEmptyOneBehind) {
  RowLog log, taken;
  *log.Append(1) = 'a';
  taken.swap(log);
  EXPECT_EQ(Contents(taken), "a");
  EXPECT_EQ(Contents(log), "");
}

}  // namespace
}  // namespace millrace
