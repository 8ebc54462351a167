#include "ops/cc/records/arrow/column.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "ops/cc/records/arrow/arrow_export.h"

namespace millrace::records {
namespace {

size_t BitmapBytes(int64_t bits) { return static_cast<size_t>((bits + 7) / 8); }

void FillBits(int64_t begin, int64_t end, bool value, uint8_t* bits) {
  for (; begin < end && begin % 8 != 0; ++begin) {
    const auto mask = static_cast<uint8_t>(1 << begin % 8);
    bits[begin / 8] = static_cast<uint8_t>(value ? bits[begin / 8] | mask : bits[begin / 8] & ~mask);
  }
  if (begin < end) std::fill(bits + begin / 8, bits + BitmapBytes(end), value ? uint8_t{0xFF} : uint8_t{0});
}

int64_t CountZeros(const uint8_t* bits, int64_t count) {
  int64_t ones = 0;
  for (int64_t i = 0; i < count / 8; ++i) ones += __builtin_popcount(bits[i]);
  for (int64_t i = count / 8 * 8; i < count; ++i) ones += bits[i / 8] >> i % 8 & 1;
  return count - ones;
}

Buffer PackBits(const Buffer& bytes) {
  Buffer bits;
  bits.ExtendZero(BitmapBytes(static_cast<int64_t>(bytes.size())));
  for (size_t i = 0; i < bytes.size(); ++i) {
    bits.data()[i / 8] = static_cast<uint8_t>(bits.data()[i / 8] | (bytes.data()[i] & 1) << i % 8);
  }
  return bits;
}

}  // namespace

Column::Column(ColumnType type) : type_(type), shift_(__builtin_ctzll(WidthOf(type.value))) {
  if (type.depth > 0) rows_end_.Push(int32_t{0});
  if (type.depth == 2) inner_.Push(int32_t{0});
  if (type.has_bytes()) ends_.Push(int32_t{0});
}

void Column::MarkValid(int64_t row) {
  if (validity_.size() < BitmapBytes(row + 1)) validity_.Push(uint8_t{0});
  validity_.data()[row / 8] = static_cast<uint8_t>(validity_.data()[row / 8] | 1 << row % 8);
}

void Column::Pad(int64_t rows) {
  if (!has_nulls_) {
    has_nulls_ = true;
    validity_.ExtendZero(BitmapBytes(rows_));
    FillBits(0, rows_, true, validity_.data());
  }
  const auto missing = static_cast<size_t>(rows - rows_);
  if (validity_.size() < BitmapBytes(rows)) validity_.ExtendZero(BitmapBytes(rows) - validity_.size());
  FillBits(rows_, rows, false, validity_.data());
  if (type_.depth > 0) {
    const auto end = static_cast<int32_t>(children());
    auto* const ends = reinterpret_cast<int32_t*>(rows_end_.Extend(missing * sizeof(int32_t)));
    std::fill(ends, ends + missing, end);
  } else if (type_.has_bytes()) {
    const auto end = static_cast<int32_t>(values_.size());
    auto* const ends = reinterpret_cast<int32_t*>(ends_.Extend(missing * sizeof(int32_t)));
    std::fill(ends, ends + missing, end);
  } else {
    values_.ExtendZero(missing << shift_);
  }
  rows_ = rows;
}

void Column::TruncateTo(int64_t rows) {
  rows_ = std::min(rows_, rows);
  auto count = static_cast<size_t>(rows_);
  if (type_.depth > 0) {
    rows_end_.Shrink((count + 1) * sizeof(int32_t));
    count = static_cast<size_t>(rows_end_.as<int32_t>()[count]);
  }
  if (type_.depth == 2) {
    inner_.Shrink((count + 1) * sizeof(int32_t));
    count = static_cast<size_t>(inner_.as<int32_t>()[count]);
  }
  if (type_.has_bytes()) {
    ends_.Shrink((count + 1) * sizeof(int32_t));
    count = static_cast<size_t>(ends_.as<int32_t>()[count]);
  }
  values_.Shrink(count << shift_);
  validity_.Shrink(std::min(validity_.size(), BitmapBytes(rows_)));
  if (has_nulls_) FillBits(rows_, static_cast<int64_t>(validity_.size()) * 8, false, validity_.data());
}

void Column::CopyElements(size_t begin, size_t end) {
  if (!type_.has_bytes()) {
    uint8_t* const copy = values_.Extend((end - begin) << shift_);
    if (end > begin) std::memcpy(copy, values_.data() + (begin << shift_), (end - begin) << shift_);
    return;
  }
  for (size_t i = begin; i < end; ++i) {
    const auto from = static_cast<size_t>(ends_.as<int32_t>()[i]);
    const auto size = static_cast<size_t>(ends_.as<int32_t>()[i + 1]) - from;
    uint8_t* const copy = values_.Extend(size);
    if (size > 0) std::memcpy(copy, values_.data() + from, size);
    ends_.Push(static_cast<int32_t>(values_.size()));
  }
}

bool Column::RepeatRow(int64_t times, size_t* bytes_left) {
  const auto row = static_cast<size_t>(rows_ - 1);
  size_t begin = row, end = row + 1, lists = 0;
  if (type_.depth > 0) {
    begin = static_cast<size_t>(rows_end_.as<int32_t>()[row]);
    end = static_cast<size_t>(rows_end_.as<int32_t>()[row + 1]);
  }
  const size_t first_list = begin, last_list = end;
  if (type_.depth == 2) {
    lists = end - begin;
    begin = static_cast<size_t>(inner_.as<int32_t>()[begin]);
    end = static_cast<size_t>(inner_.as<int32_t>()[end]);
  }
  size_t bytes = sizeof(int32_t) + ((end - begin) << shift_) + lists * sizeof(int32_t);
  if (type_.has_bytes()) {
    bytes += static_cast<size_t>(ends_.as<int32_t>()[end] - ends_.as<int32_t>()[begin]) + (end - begin) * 4;
  }
  if (times > 0 && bytes > *bytes_left / static_cast<size_t>(times)) return false;
  *bytes_left -= bytes * static_cast<size_t>(times);
  for (int64_t i = 0; i < times; ++i) {
    if (type_.depth == 2) {
      for (size_t list = first_list; list < last_list; ++list) {
        CopyElements(static_cast<size_t>(inner_.as<int32_t>()[list]),
                     static_cast<size_t>(inner_.as<int32_t>()[list + 1]));
        EndList();
      }
    } else {
      CopyElements(begin, end);
    }
    if (!EndRow()) return false;
  }
  return true;
}

void Column::ExportElements(int64_t length, Buffer* validity, ArrowArray* array) {
  std::vector<Buffer> buffers;
  const int64_t nulls = validity->size() > 0 ? CountZeros(validity->data(), length) : 0;
  buffers.push_back(std::move(*validity));
  if (type_.has_bytes()) buffers.push_back(std::move(ends_));
  buffers.push_back(type_.value == Value::kBool ? PackBits(values_) : std::move(values_));
  ExportArray(length, nulls, std::move(buffers), {}, array);
}

void Column::Export(ArrowArray* array) {
  if (type_.depth == 0) {
    ExportElements(rows_, &validity_, array);
    return;
  }
  Buffer all_valid;
  ArrowArray child;
  const auto lists = static_cast<int64_t>(children());
  ExportElements(static_cast<int64_t>(elements()), &all_valid, &child);
  std::vector<Buffer> buffers;
  if (type_.depth == 2) {
    buffers.emplace_back();
    buffers.push_back(std::move(inner_));
    ArrowArray outer;
    ExportArray(lists, 0, std::move(buffers), {child}, &outer);
    child = outer;
    buffers.clear();
  }
  const int64_t nulls = has_nulls_ ? CountZeros(validity_.data(), rows_) : 0;
  buffers.push_back(std::move(validity_));
  buffers.push_back(std::move(rows_end_));
  ExportArray(rows_, nulls, std::move(buffers), {child}, array);
}

}  // namespace millrace::records
