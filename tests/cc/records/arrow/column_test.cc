#include "ops/cc/records/arrow/column.h"

#include <gtest/gtest.h>

#include <cstring>
#include <utility>
#include <vector>

#include "ops/cc/records/arrow/arrow_export.h"
#include "tests/cc/records/arrow_batch.h"
#include "tests/cc/records/record_bytes.h"

namespace millrace::records {
namespace {

// Exports a column under the name "c", and checks it.
void Export(Column* column, ArrowBatch* batch) {
  const int64_t rows = column->rows();
  std::vector<ArrowSchema> fields(1);
  ExportField("c", column->type(), 7, true, &fields[0]);
  std::vector<ArrowArray> arrays(1);
  column->Export(&arrays[0]);
  ExportStruct(std::move(fields), &batch->schema);
  std::vector<Buffer> no_validity(1);
  ExportArray(rows, 0, std::move(no_validity), std::move(arrays), &batch->array);
  ASSERT_EQ(batch->fault(), "");
}

TEST(Column, RowsThatNobodyWroteAreNull) {
  Column column({Value::kInt64, 1, Kind::kFid});
  for (const int64_t row : {2, 3, 17}) {
    column.PadTo(row);
    for (int64_t i = 0; i < row; ++i) column.Add(i);
    ASSERT_TRUE(column.EndRow());
  }
  column.PadTo(20);
  ArrowBatch batch;
  Export(&column, &batch);
  for (int64_t row = 0; row < 20; ++row) {
    const bool is_there = row == 2 || row == 3 || row == 17;
    EXPECT_EQ(batch.column("c").IsNull(row), !is_there);
    EXPECT_EQ(batch.List<int64_t>("c", row).size(), is_there ? static_cast<size_t>(row) : 0u);
  }
  ColumnType type;
  int32_t id;
  ASSERT_TRUE(ParseField(*batch.schema.children[0], &type, &id));
  EXPECT_EQ(type, column.type());
  EXPECT_EQ(id, 7);
}

TEST(Column, TruncatingTakesBackRowsOfEveryShape) {
  for (const Value value : {Value::kInt64, Value::kFloat, Value::kBytes, Value::kBool}) {
    for (const uint8_t depth : {0, 1, 2}) {
      Column column({value, depth, Kind::kPlain});
      const auto add_row = [&] {
        for (int i = 0; i < (depth == 0 ? 1 : 3); ++i) {
          if (value == Value::kBytes) {
            column.AddBytes(SpanOf("abc"));
          } else {
            std::memset(column.Extend(1), 1, WidthOf(value));
          }
          if (depth == 2) column.EndList();
        }
        ASSERT_TRUE(column.EndRow());
      };
      add_row();
      column.PadTo(5);
      add_row();
      add_row();
      column.TruncateTo(6);
      const size_t elements = column.elements();
      add_row();
      column.TruncateTo(6);
      EXPECT_EQ(column.elements(), elements);
      column.PadTo(9);
      ArrowBatch batch;
      Export(&column, &batch);
      for (int64_t row = 0; row < 9; ++row) EXPECT_EQ(batch.column("c").IsNull(row), row != 0 && row != 5);
    }
  }
}

TEST(Column, RepeatsARowWhileThereAreBytesLeft) {
  Column column({Value::kBytes, 2, Kind::kPlain});
  for (const char* text : {"a", "", "bcd"}) {
    column.AddBytes(SpanOf(text));
    column.EndList();
  }
  ASSERT_TRUE(column.EndRow());
  size_t left = 1000;
  ASSERT_TRUE(column.RepeatRow(3, &left));
  EXPECT_LT(left, 1000u);
  EXPECT_FALSE(column.RepeatRow(1000, &left));
  EXPECT_FALSE(column.RepeatRow(std::numeric_limits<int64_t>::max(), &left));
  ArrowBatch batch;
  Export(&column, &batch);
  ASSERT_EQ(batch.rows(), 4);
  const ArrayReader lists = batch.column("c"), values = lists.Values().Values();
  EXPECT_EQ(lists.End(3), 12);
  EXPECT_EQ(values.Bytes(11).text(), "bcd");
  EXPECT_EQ(values.Bytes(9).text(), "a");
}

}  // namespace
}  // namespace millrace::records
