#ifndef MILLRACE_RECORDS_REVERSE_WRITER_H_
#define MILLRACE_RECORDS_REVERSE_WRITER_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "ops/cc/records/wire/wire.h"

namespace millrace::records {

// Writes Protobuf from its end to its beginning: a message's length stands before its content and is then known.
class ReverseWriter {
 public:
  size_t size() const { return size_; }
  Span written() const { return {bytes_.get() + capacity_ - size_, bytes_.get() + capacity_}; }
  void Clear() { size_ = 0; }

  void Bytes(Span bytes) {
    if (!bytes.empty()) std::memcpy(Extend(bytes.size()), bytes.begin, bytes.size());
  }
  template <typename Number>
  void Fixed(Number number) {
    std::memcpy(Extend(sizeof(number)), &number, sizeof(number));
  }
  void Varint(uint64_t number) {
    size_t size = 1;
    for (uint64_t rest = number >> 7; rest != 0; rest >>= 7) ++size;
    uint8_t* at = Extend(size);
    for (; number >= 0x80; number >>= 7) *at++ = static_cast<uint8_t>(number | 0x80);
    *at = static_cast<uint8_t>(number);
  }
  void Tag(uint32_t number, WireType type) { Varint(TagOf(number, type)); }
  void BytesField(uint32_t number, Span bytes) {
    Bytes(bytes);
    Varint(bytes.size());
    Tag(number, kBytes);
  }
  // Makes all that was written since `size()` was `before` a message.
  void EndMessage(uint32_t number, size_t before) {
    Varint(size_ - before);
    Tag(number, kBytes);
  }

 private:
  uint8_t* Extend(size_t bytes) {
    if (capacity_ - size_ < bytes) Grow(bytes);
    size_ += bytes;
    return bytes_.get() + capacity_ - size_;
  }
  void Grow(size_t bytes) {
    const size_t capacity = std::max<size_t>({4096, 2 * capacity_, size_ + bytes});
    auto grown = std::make_unique<uint8_t[]>(capacity);
    if (size_ > 0) std::memcpy(grown.get() + capacity - size_, bytes_.get() + capacity_ - size_, size_);
    bytes_ = std::move(grown);
    capacity_ = capacity;
  }

  std::unique_ptr<uint8_t[]> bytes_;
  size_t capacity_ = 0, size_ = 0;
};

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_REVERSE_WRITER_H_
