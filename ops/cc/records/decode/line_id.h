// LineId (protos/line_id.proto): who, when and what of a row.
#ifndef MILLRACE_RECORDS_LINE_ID_H_
#define MILLRACE_RECORDS_LINE_ID_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/cc/records/arrow/column.h"
#include "ops/cc/records/arrow/column_type.h"
#include "ops/cc/records/wire/wire.h"

namespace millrace::records {

struct LineIdField {
  const char* column;
  const char* name;
  uint32_t number;
  ColumnType type;
  WireType wire;  // of one value
};

constexpr size_t kLineIdFieldCount = 22;
// In the order of the proto, as in transforms/batch/line_id.py.
extern const LineIdField kLineIdFields[kLineIdFieldCount];

// The index of the field `number` in kLineIdFields; -1 for an unknown one.
int LineIdIndexOf(uint32_t number);

class LineIdRow {
 public:
  void Clear();

  // Reads a message over what was read before, as Protobuf merges. Texts point into `message`. When it returns false,
  // `at` is where the message is malformed, or `bad_text` names a field that is not UTF-8.
  bool Merge(Span message);
  const uint8_t* at() const { return at_; }
  const char* bad_text() const { return bad_text_; }

  // One bit per field.
  uint32_t present() const { return present_; }

  // Adds the value of a field that is present, and ends the row. False as of Column::EndRow.
  bool AddTo(size_t field, Column* column) const;

 private:
  bool ReadField(size_t field, uint32_t tag, WireReader* reader);
  bool ReadNumbers(size_t field, uint32_t tag, WireReader* reader);

  uint32_t present_ = 0;
  uint32_t touched_ = 0;  // lists that may have values, those of a message that was refused included
  uint64_t numbers_[kLineIdFieldCount];
  Span texts_[kLineIdFieldCount];
  std::vector<uint64_t> lists_[kLineIdFieldCount];
  const uint8_t* at_ = nullptr;
  const char* bad_text_ = nullptr;
};

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_LINE_ID_H_
