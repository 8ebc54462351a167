// Reads Arrow arrays that others made, slices included.
#ifndef MILLRACE_RECORDS_ARROW_READER_H_
#define MILLRACE_RECORDS_ARROW_READER_H_

#include <cstdint>

#include "ops/cc/records/arrow/arrow_abi.h"
#include "ops/cc/records/wire/wire.h"

namespace millrace::records {

// Releases an array at the end of its life.
class ArrayOwner {
 public:
  explicit ArrayOwner(ArrowArray* array) : array_(array) {}
  ArrayOwner(const ArrayOwner&) = delete;
  ArrayOwner& operator=(const ArrayOwner&) = delete;
  ~ArrayOwner() {
    if (array_->release != nullptr) array_->release(array_);
  }

 private:
  ArrowArray* const array_;
};

// One array; indices are those of the caller, from 0.
class ArrayReader {
 public:
  // The caller's index 0 is element `first` of the array, counted after the array's own offset.
  explicit ArrayReader(const ArrowArray& array, int64_t first = 0)
      : array_(&array),
        first_(array.offset + first),
        validity_(array.null_count != 0 ? static_cast<const uint8_t*>(array.buffers[0]) : nullptr) {}

  bool IsNull(int64_t i) const {
    return validity_ != nullptr && (validity_[(first_ + i) / 8] >> (first_ + i) % 8 & 1) == 0;
  }
  template <typename Number>
  const Number* Numbers(int64_t i) const {
    return static_cast<const Number*>(array_->buffers[1]) + first_ + i;
  }
  bool Bit(int64_t i) const {
    return (static_cast<const uint8_t*>(array_->buffers[1])[(first_ + i) / 8] >> (first_ + i) % 8 & 1) != 0;
  }
  Span Bytes(int64_t i) const {
    const int32_t* const ends = Numbers<int32_t>(i);
    const auto* const data = static_cast<const uint8_t*>(array_->buffers[2]);
    return ends[0] == ends[1] ? Span{} : Span{data + ends[0], data + ends[1]};
  }
  // Of a list: where its values begin and end in `Values()`.
  int64_t Begin(int64_t i) const { return Numbers<int32_t>(i)[0]; }
  int64_t End(int64_t i) const { return Numbers<int32_t>(i)[1]; }
  ArrayReader Values() const { return ArrayReader(*array_->children[0]); }

 private:
  const ArrowArray* array_;
  int64_t first_;
  const uint8_t* validity_;
};

// A block of records: binary value, int64 partition, int64 offset; int32 index of the record where several come from
// one offset, and uint32 data source key of its header, both null where unknown.
class BlockReader {
 public:
  explicit BlockReader(const ArrowArray& block)
      : rows_(block.length),
        value_(*block.children[0], block.offset),
        partition_(*block.children[1], block.offset),
        offset_(*block.children[2], block.offset),
        index_(*block.children[3], block.offset),
        data_source_key_(*block.children[4], block.offset) {}

  int64_t rows() const { return rows_; }
  bool IsNull(int64_t i) const { return value_.IsNull(i); }
  Span Value(int64_t i) const { return value_.Bytes(i); }
  int64_t Partition(int64_t i) const { return *partition_.Numbers<int64_t>(i); }
  int64_t Offset(int64_t i) const { return *offset_.Numbers<int64_t>(i); }
  int32_t Index(int64_t i) const { return index_.IsNull(i) ? 0 : *index_.Numbers<int32_t>(i); }
  uint32_t DataSourceKey(int64_t i) const {
    return data_source_key_.IsNull(i) ? 0 : *data_source_key_.Numbers<uint32_t>(i);
  }

 private:
  const int64_t rows_;
  const ArrayReader value_, partition_, offset_, index_, data_source_key_;
};

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_ARROW_READER_H_
