// The rows that records become, and the records that are refused.
#ifndef MILLRACE_RECORDS_RECORD_ROWS_H_
#define MILLRACE_RECORDS_RECORD_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ops/cc/records/arrow/arrow_abi.h"
#include "ops/cc/records/arrow/column.h"
#include "ops/cc/records/decode/feature_reader.h"
#include "ops/cc/records/decode/feature_table.h"
#include "ops/cc/records/decode/line_id.h"

namespace millrace::records {

// Values of `Reason` in transforms/batch/dead_letter.py.
namespace reason {
constexpr char kMalformed[] = "malformed_proto";
constexpr char kMalformedLineId[] = "malformed_line_id";
constexpr char kWrongType[] = "wrong_type";
constexpr char kNotUtf8[] = "not_utf8";
constexpr char kOutOfRange[] = "out_of_range";
constexpr char kEmptyValue[] = "empty_value";
constexpr char kTooLarge[] = "too_large";
constexpr char kTooManyRows[] = "too_many_rows";
constexpr char kTooManyFeatures[] = "too_many_features";
constexpr char kBatchSizeMismatch[] = "batch_size_mismatch";
constexpr char kDuplicateFeature[] = "duplicate_feature";
constexpr char kReservedName[] = "reserved_name";
}  // namespace reason

// Which parts of records are left out; the numbers are those of the spec.
enum class Pruning : int32_t { kNothing = 0, kFeatures = 1, kRawFeatures = 2 };

struct DecodeOptions {
  bool fids_as_is = false;
  Pruning pruning = Pruning::kRawFeatures;
  uint32_t line_id_fields = ~0u;    // one bit per field: which become columns
  bool all_line_id_fields = false;  // also when no row sets them
  int64_t row_stride = 1;           // difference of the offsets of neighbouring records
};

// Where a record comes from.
struct Source {
  Span record;
  int64_t partition = 0;  // with the number of its source
  int64_t offset = -1;
  int64_t index = 0;             // among records of one offset
  uint32_t data_source_key = 0;  // of its header
};

// A name as error messages show it. Requires UTF-8.
std::string Quoted(std::string_view name);

// Functions that return bool return false to refuse the record; `Rollback` then removes what was added for it. Rows of
// a record are counted from 0.
class RecordRows {
 public:
  static constexpr size_t kMaxRecordBytes = size_t{1} << 27;
  static constexpr int64_t kRowsPerOffset = 64;
  // Cells that each block may have, of 4 bytes mostly; and per byte of its records. A feature that is there takes some 10
  // bytes on the wire, so 4 leave 39 of 40 names missing; a schema that was asked for may be wider.
  static constexpr int64_t kMinCells = int64_t{1} << 23;
  static constexpr int64_t kCellsPerByte = 4, kCellsPerByteOfSchema = 16;
  static constexpr int64_t kMetadataColumns = 6;  // label, weight, data source key and provenance

  explicit RecordRows(const DecodeOptions& options);

  const DecodeOptions& options() const { return options_; }
  FeatureTable& table() { return table_; }
  FeatureReader& reader() { return reader_; }

  // Bounds the cells, rows times columns, that a block of so many records and bytes becomes: a name that one record has
  // costs a null in each row of the block. Records beyond the bound are refused before memory is taken for them.
  void LimitCells(int64_t records, int64_t bytes);

  void BeginRecord(const Source& source);
  // Says how many rows the record has, once that is known.
  bool SetRows(int64_t rows);
  void Commit();
  // Removes the rows of the record, number `index` of the block, and keeps the reason.
  void Rollback(int64_t index);

  bool Fail(const char* reason, const uint8_t* at, const std::string& what);
  bool Malformed(const uint8_t* at) { return Fail(reason::kMalformed, at, "malformed"); }

  // The column of a name; null when the name is refused, as the second of its kind in a record is.
  NamedColumn* FindFeature(Span name);
  bool PutFeature(const Member& member, int32_t id, int64_t row, NamedColumn* named);
  // `message` is a RawFeature; null where it has no values.
  bool PutRawFeature(Span message, int32_t id, int64_t row, NamedColumn* named);
  // Whether row `row`, or a later one, is there and may be repeated.
  bool HasRow(const NamedColumn& named, int64_t row) const {
    return named.column != nullptr && named.column->rows() > start_ + row;
  }
  // Repeats the row that was put last `times`.
  bool RepeatFeature(int64_t times, NamedColumn* named);
  // For callers that add the values of a row themselves; `EndFeature` follows. Null: refused.
  Column* BeginFeature(ColumnType type, int32_t id, int64_t row, NamedColumn* named);
  bool EndFeature(NamedColumn* named);
  // Why the reader refused a value of this feature.
  bool FailFeature(const NamedColumn& named);

  bool MergeLineId(Span message, LineIdRow* line_id);
  bool PutLineId(const LineIdRow& line_id, int64_t row);
  bool PutLabels(const std::vector<float>& labels, int64_t row);
  bool PutWeight(float weight, int64_t row);
  bool PutDataSourceKey(uint32_t key, int64_t row);  // unless the header has one

  // Features that stand for metadata.
  bool ReadLineIdFeature(const Member& member, LineIdRow* line_id, bool* is_set);
  bool ReadFloatsFeature(const Member& member, const NamedColumn& named, std::vector<float>* floats);

  void Export(ArrowSchema* schema, ArrowArray* array);
  void ExportRefusals(ArrowSchema* schema, ArrowArray* array);

 private:
  bool FailName(NameProblem problem);
  // Whether rows and columns, so many of them, may be had.
  bool HasCells(int64_t rows, int64_t columns) const { return rows * (columns + kMetadataColumns) <= max_cells_; }
  bool FailCells(const uint8_t* at, int64_t rows, int64_t columns);
  bool WrongType(const std::string& name, const std::string& expected, ColumnType found);
  bool End(bool fits);
  bool AddDataSourceKey(uint32_t key, int64_t row);

  const DecodeOptions options_;
  FeatureTable table_;
  FeatureReader reader_;
  Column label_, weight_, data_source_key_, partition_, offset_, row_;
  std::unique_ptr<Column> line_id_[kLineIdFieldCount];
  Column refused_, refusal_reason_, refusal_detail_;
  Column scratch_;
  Span first_bytes_;

  int64_t max_cells_ = INT64_MAX, records_ = 0;

  // Of the present record.
  Source source_;
  const uint8_t* name_at_ = nullptr;  // of the feature that was found last
  int64_t start_ = 0, rows_ = 0;
  int64_t rows_before_ = 0;  // of records of the same offset
  size_t repeated_bytes_left_ = 0;
  uint32_t line_id_before_ = 0;
  const char* reason_ = nullptr;
  std::string detail_;
};

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_RECORD_ROWS_H_
