// Blocks of records to record batches.
#include <cstdint>
#include <memory>
#include <string>

#include "ops/cc/records/arrow/arrow_abi.h"
#include "ops/cc/records/arrow/arrow_reader.h"
#include "ops/cc/records/c_api.h"
#include "ops/cc/records/c_guard.h"
#include "ops/cc/records/decode/record_decoder.h"
#include "ops/cc/records/decode/record_rows.h"
#include "ops/cc/records/wire/wire.h"

namespace millrace::records {
namespace {

void DecodeRecord(int64_t index, const BlockReader& block, RecordDecoder* decoder, RecordRows* rows) {
  const Span record = block.IsNull(index) ? Span{} : block.Value(index);
  rows->BeginRecord(
      {record, block.Partition(index), block.Offset(index), block.Index(index), block.DataSourceKey(index)});
  bool is_good = false;
  if (record.empty()) {
    rows->Fail(reason::kEmptyValue, nullptr, "no value");
  } else if (record.size() > RecordRows::kMaxRecordBytes) {
    rows->Fail(reason::kTooLarge, nullptr, "more than " + std::to_string(RecordRows::kMaxRecordBytes) + " bytes");
  } else {
    is_good = decoder->Decode(record);
  }
  if (is_good) {
    rows->Commit();
  } else {
    rows->Rollback(index);
  }
}

int64_t ByteCount(const BlockReader& block) {
  int64_t bytes = 0;
  for (int64_t i = 0; i < block.rows(); ++i) {
    if (!block.IsNull(i)) bytes += static_cast<int64_t>(block.Value(i).size());
  }
  return bytes;
}

}  // namespace
}  // namespace millrace::records

using namespace millrace::records;

int32_t millrace_decode_records(int32_t format, int32_t fids_as_is, int32_t pruning, int64_t line_id_fields,
                                int64_t row_stride, const ArrowSchema* wanted, ArrowArray* block,
                                ArrowSchema* rows_schema, ArrowArray* rows, ArrowSchema* refused_schema,
                                ArrowArray* refused) {
  return Guarded([=] {
    const ArrayOwner owner(block);
    DecodeOptions options;
    options.fids_as_is = fids_as_is != 0;
    options.pruning = static_cast<Pruning>(pruning);
    options.all_line_id_fields = line_id_fields >= 0;
    options.line_id_fields = static_cast<uint32_t>(line_id_fields);
    options.row_stride = row_stride;
    RecordRows decoded(options);
    std::string problem;
    if (wanted != nullptr && !decoded.table().Want(*wanted, &problem)) return CallStatus::kUnsupported;
    const auto decoder = MakeDecoder(static_cast<Format>(format), &decoded);
    if (decoder == nullptr) return CallStatus::kOutOfRange;
    const BlockReader reader(*block);
    decoded.LimitCells(reader.rows(), ByteCount(reader));
    for (int64_t i = 0; i < reader.rows(); ++i) DecodeRecord(i, reader, decoder.get(), &decoded);
    decoded.Export(rows_schema, rows);
    decoded.ExportRefusals(refused_schema, refused);
    return CallStatus::kDone;
  });
}
