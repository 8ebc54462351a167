// Rows of batches by number, and rows with some of a few fids.
#include "ops/cc/records/rows/take_rows.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <utility>

#include "ops/cc/records/arrow/arrow_export.h"
#include "ops/cc/records/arrow/column.h"
#include "ops/cc/records/rows/find_fids.h"
#include "tests/cc/records/arrow_batch.h"

namespace millrace::records {
namespace {

// Row i of the column "c" has the fids first, first + 1, ... (i of them); every third row is null.
void MakeFids(int64_t rows, int64_t first, ArrowBatch* batch) {
  Column column({Value::kInt64, 1, Kind::kFid});
  for (int64_t row = 0; row < rows; ++row) {
    if (row % 3 == 2) continue;
    column.PadTo(row);
    for (int64_t i = 0; i < row; ++i) column.Add(first + i);
    ASSERT_TRUE(column.EndRow());
  }
  column.PadTo(rows);
  std::vector<ArrowSchema> fields(1);
  ExportField("c", column.type(), 0, true, &fields[0]);
  std::vector<ArrowArray> arrays(1);
  column.Export(&arrays[0]);
  ExportStruct(std::move(fields), &batch->schema);
  ExportArray(rows, 0, std::vector<Buffer>(1), std::move(arrays), &batch->array);
}

TEST(TakeRows, RowsOfSeveralBatchesAreNumberedThrough) {
  ArrowBatch low, high;
  MakeFids(7, 100, &low);
  MakeFids(5, 200, &high);
  const std::vector<int64_t> rows = {11, 3, 4, 5, 0, 7, 8, 8, 6};
  ArrowArray taken;
  ASSERT_EQ(TakeRows(low.schema, {&low.array, &high.array}, rows.data(), 9, &taken), CallStatus::kDone);
  ASSERT_EQ(FaultOf(low.schema, taken), "");
  const ArrayReader lists(*taken.children[0]);
  const std::vector<int64_t> lengths = {4, 3, 4, 0, 0, 0, 1, 1, 6}, firsts = {200, 100, 100, 0, 0, 0, 200, 200, 100};
  for (size_t i = 0; i < rows.size(); ++i) {
    ASSERT_EQ(lists.End(i) - lists.Begin(i), lengths[i]) << i;
    EXPECT_EQ(lists.IsNull(i), rows[i] == 5) << i;
    if (lengths[i] == 0) continue;
    EXPECT_EQ(*lists.Values().Numbers<int64_t>(lists.Begin(i)), firsts[i]) << i;
  }
  taken.release(&taken);
}

TEST(TakeRows, ARowOutOfRangeIsRefused) {
  ArrowBatch batch;
  MakeFids(7, 100, &batch);
  ArrowArray taken;
  for (const int64_t row : {-1, 7}) {
    EXPECT_EQ(TakeRows(batch.schema, {&batch.array}, &row, 1, &taken), CallStatus::kOutOfRange);
  }
}

TEST(FindFids, EachBitIsAFidOfTheRow) {
  ArrowBatch batch;
  MakeFids(40, 100, &batch);
  const int64_t wanted[] = {100, 130, 5};
  std::vector<uint8_t> found(40);
  FindFids(batch.array, wanted, 3, found.data());
  for (int64_t row = 0; row < 40; ++row) {
    const int expected = row % 3 == 2 ? 0 : (row > 0) + 2 * (row > 30);
    EXPECT_EQ(found[static_cast<size_t>(row)], expected) << row;
  }
}

}  // namespace
}  // namespace millrace::records
