// Record batches to records.
#include <cstdint>
#include <utility>
#include <vector>

#include "ops/cc/records/arrow/arrow_abi.h"
#include "ops/cc/records/arrow/arrow_export.h"
#include "ops/cc/records/arrow/arrow_reader.h"
#include "ops/cc/records/arrow/buffer.h"
#include "ops/cc/records/arrow/column.h"
#include "ops/cc/records/arrow/column_type.h"
#include "ops/cc/records/c_api.h"
#include "ops/cc/records/c_guard.h"
#include "ops/cc/records/decode/record_decoder.h"
#include "ops/cc/records/encode/batch_reader.h"
#include "ops/cc/records/encode/record_encoder.h"
#include "ops/cc/records/wire/reverse_writer.h"

namespace millrace::records {
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

// False when the records take more than Arrow's 32-bit offsets can count.
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
}  // namespace millrace::records

using namespace millrace::records;

int32_t millrace_encode_records(int32_t format, int64_t rows_per_record, const ArrowSchema* schema, ArrowArray* batch,
                                ArrowSchema* records_schema, ArrowArray* records) {
  return Guarded([=] {
    const ArrayOwner owner(batch);
    const auto kind = static_cast<Format>(format);
    if (kind != Format::kExample && kind != Format::kExampleBatch && kind != Format::kInstance) {
      return CallStatus::kOutOfRange;
    }
    BatchReader reader;
    if (!reader.Open(*schema, *batch)) return CallStatus::kUnsupported;
    if (kind == Format::kInstance && !FitsInstance(reader)) return CallStatus::kUnsupported;
    Column column(kRecordType);
    if (!EncodeRecords(reader, kind, rows_per_record, &column)) return CallStatus::kOutOfMemory;
    Export(&column, records_schema, records);
    return CallStatus::kDone;
  });
}
