// Reads the columns of a canonical batch for the encoders.
#ifndef MILLRACE_RECORDS_BATCH_READER_H_
#define MILLRACE_RECORDS_BATCH_READER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "ops/cc/records/arrow/arrow_abi.h"
#include "ops/cc/records/arrow/arrow_reader.h"
#include "ops/cc/records/arrow/column_type.h"
#include "ops/cc/records/decode/line_id.h"
#include "ops/cc/records/wire/reverse_writer.h"

namespace millrace::records {

struct BatchColumn {
  std::string name;
  ColumnType type;
  int32_t id = 0;
  std::vector<ArrayReader> levels;  // the rows, then the values in lists

  bool IsNull(int64_t row) const { return levels[0].IsNull(row); }
  Span name_bytes() const { return SpanOf(name); }
};

class BatchReader {
 public:
  // False: a column has a type that it may not have.
  bool Open(const ArrowSchema& schema, const ArrowArray& batch);

  int64_t rows() const { return rows_; }
  const std::vector<BatchColumn>& features() const { return features_; }
  bool has_line_id() const { return !line_id_.empty(); }
  const BatchColumn* label() const { return label_.levels.empty() ? nullptr : &label_; }
  const BatchColumn* weight() const { return weight_.levels.empty() ? nullptr : &weight_; }
  // 0 where it is not set.
  uint32_t DataSourceKey(int64_t row) const;
  bool HasDataSourceKey(int64_t row) const;

  // Writes the content of the row's LineId; nothing when no field of it is set.
  void WriteLineId(int64_t row, ReverseWriter* out) const;

 private:
  struct LineIdColumn {
    size_t field;
    BatchColumn column;
  };
  bool OpenColumn(const ArrowSchema& field, const ArrowArray& array, int64_t first);

  int64_t rows_ = 0;
  std::vector<BatchColumn> features_;
  std::vector<LineIdColumn> line_id_;
  BatchColumn label_, weight_, data_source_key_;
};

// Writes the values [begin, end) of `values` as one field, packed where they are numbers; nothing when there are none.
void WriteValues(const ArrayReader& values, int64_t begin, int64_t end, ColumnType type, uint32_t number,
                 ReverseWriter* out);

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_BATCH_READER_H_
