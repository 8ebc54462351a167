#ifndef MILLRACE_RECORDS_COLUMN_H_
#define MILLRACE_RECORDS_COLUMN_H_

#include <cstddef>
#include <cstdint>
#include <limits>

#include "ops/cc/records/arrow/arrow_abi.h"
#include "ops/cc/records/arrow/buffer.h"
#include "ops/cc/records/arrow/column_type.h"
#include "ops/cc/records/wire/wire.h"

namespace millrace::records {

// An Arrow column while it is built. Values are added, then `EndList` and `EndRow` close the list and the row that they
// belong to. Rows that nobody wrote become null when a later one is written.
class Column {
 public:
  explicit Column(ColumnType type);

  ColumnType type() const { return type_; }
  int64_t rows() const { return rows_; }
  // Values in all rows, nulls of a column without lists included.
  size_t elements() const { return type_.has_bytes() ? ends_.size() / 4 - 1 : values_.size() >> shift_; }

  template <typename Number>
  const Number* numbers() const {
    return values_.as<Number>();
  }

  template <typename Number>
  void Add(Number number) {
    values_.Push(number);
  }
  void AddBytes(Span bytes) {
    values_.Append(bytes.begin, bytes.size());
    ends_.Push(static_cast<int32_t>(values_.size()));
  }
  // Room for `count` numbers, which the caller fills.
  uint8_t* Extend(size_t count) { return values_.Extend(count << shift_); }

  void EndList() { inner_.Push(static_cast<int32_t>(elements())); }

  // False when the column has more than Arrow's 32-bit offsets can count.
  bool EndRow() {
    const size_t count = children();
    if (type_.depth > 0) rows_end_.Push(static_cast<int32_t>(count));
    if (has_nulls_) MarkValid(rows_);
    ++rows_;
    return count <= kMaxOffset && elements() <= kMaxOffset && (!type_.has_bytes() || values_.size() <= kMaxOffset);
  }

  // Repeats the last row and subtracts its bytes from `bytes_left`. False when those are too few, or as of EndRow.
  bool RepeatRow(int64_t times, size_t* bytes_left);

  // Adds nulls until there are `rows`.
  void PadTo(int64_t rows) {
    if (rows_ < rows) Pad(rows);
  }
  // Removes all after the first `rows`, and values without a row.
  void TruncateTo(int64_t rows);

  // Moves the content to `array`; nothing more can be added.
  void Export(ArrowArray* array);

 private:
  static constexpr size_t kMaxOffset = std::numeric_limits<int32_t>::max();

  // What the rows' offsets count: lists, or values.
  size_t children() const { return type_.depth == 2 ? inner_.size() / 4 - 1 : elements(); }
  void Pad(int64_t rows);
  void MarkValid(int64_t row);
  void CopyElements(size_t begin, size_t end);
  void ExportElements(int64_t length, Buffer* validity, ArrowArray* array);

  const ColumnType type_;
  const int shift_;  // of the width of a value in `values_`: a division would cost more than the rest of a row
  int64_t rows_ = 0;
  bool has_nulls_ = false;
  Buffer validity_;  // bits; empty while no row is null
  Buffer rows_end_;  // depth > 0
  Buffer inner_;     // depth 2: where each list ends
  Buffer ends_;      // bytes: where each value ends
  Buffer values_;
};

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_COLUMN_H_
