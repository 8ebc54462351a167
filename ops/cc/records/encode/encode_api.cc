// Record batches to records.
#include <new>
#include <utility>
#include <vector>

#include "ops/cc/records/arrow/arrow_export.h"
#include "ops/cc/records/arrow/arrow_reader.h"
#include "ops/cc/records/c_api.h"
#include "ops/cc/records/arrow/column.h"
#include "ops/cc/records/decode/record_decoder.h"
#include "ops/cc/records/encode/record_encoder.h"

namespace millrace {
namespace {

constexpr ColumnType kRecordType = {Value::kBytes, 0, Kind::kPlain};

// Where the record that begins with row `begin` ends.
int64_t EndOfRecord(const BatchReader& batch, Format format, int64_t begin, int64_t rows_per_record) {
  int64_t end = begin + 1;
  if (format != Format::kExampleBatch) return end;
  while (end < batch.rows() && end - begin < rows_per_record &&
         batch.DataSourceKey(end) == batch.DataSourceKey(begin)) {
    ++end;
  }
  return end;
}

void WriteRecord(const BatchReader& batch, Format format, int64_t begin, int64_t end, ReverseWriter* out) {
  out->Clear();
  switch (format) {
    case Format::kExample:
      return WriteExample(batch, begin, out);
    case Format::kExampleBatch:
      return WriteExampleBatch(batch, begin, end, out);
    case Format::kInstance:
      return WriteInstance(batch, begin, out);
  }
}

// False when the records take more than Arrow's 32-bit offsets can tell.
bool EncodeRecords(const BatchReader& batch, Format format, int64_t rows_per_record, Column* records) {
  ReverseWriter writer;
  for (int64_t begin = 0, end = 0; begin < batch.rows(); begin = end) {
    end = EndOfRecord(batch, format, begin, rows_per_record);
    WriteRecord(batch, format, begin, end, &writer);
    records->AddBytes(writer.written());
    if (!records->EndRow()) return false;
  }
  return true;
}

void Export(Column* column, ArrowSchema* schema, ArrowArray* array) {
  const int64_t rows = column->rows();
  std::vector<ArrowSchema> fields(1);
  ExportField("value", kRecordType, 0, false, &fields[0]);
  ExportStruct(std::move(fields), schema);
  std::vector<ArrowArray> arrays(1);
  column->Export(&arrays[0]);
  std::vector<Buffer> no_validity(1);
  ExportArray(rows, 0, std::move(no_validity), std::move(arrays), array);
}

}  // namespace
}  // namespace millrace

// Encodes a record batch, which is released.
//
//   format: a millrace::Format
//   rows_per_record: of an ExampleBatch at most
//   records: gets a record batch of one binary column
//
// Returns 0, or 1 when memory ran out or the records take more than 2 GiB, or 2 when a column has a type that the
// format has not.
MILLRACE_C_API int32_t millrace_encode_records(int32_t format, int64_t rows_per_record, const ArrowSchema* schema,
                                               ArrowArray* batch, ArrowSchema* records_schema, ArrowArray* records) {
  try {
    const millrace::ArrayOwner owner(batch);
    const auto kind = static_cast<millrace::Format>(format);
    millrace::BatchReader reader;
    if (!reader.Open(*schema, *batch)) return 2;
    if (kind == millrace::Format::kInstance && !FitsInstance(reader)) return 2;
    millrace::Column column(millrace::kRecordType);
    if (!millrace::EncodeRecords(reader, kind, rows_per_record, &column)) return 1;
    millrace::Export(&column, records_schema, records);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
