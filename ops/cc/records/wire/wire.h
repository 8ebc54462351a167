// Protobuf's wire format: a reader that refuses what upb refuses.
#ifndef MILLRACE_RECORDS_WIRE_H_
#define MILLRACE_RECORDS_WIRE_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace millrace::records {

struct Span {
  const uint8_t* begin = nullptr;
  const uint8_t* end = nullptr;

  size_t size() const { return static_cast<size_t>(end - begin); }
  bool empty() const { return begin == end; }
  std::string_view text() const { return {reinterpret_cast<const char*>(begin), size()}; }
};

inline Span SpanOf(std::string_view text) {
  const auto* const begin = reinterpret_cast<const uint8_t*>(text.data());
  return {begin, begin + text.size()};
}

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kStartGroup = 3, kEndGroup = 4, kFixed32 = 5 };

constexpr uint32_t TagOf(uint32_t number, WireType type) { return number << 3 | type; }
constexpr uint32_t NumberOf(uint32_t tag) { return tag >> 3; }
constexpr WireType TypeOf(uint32_t tag) { return static_cast<WireType>(tag & 7); }

// The fields of one message. After a read that returned false `at` is where it failed.
class WireReader {
 public:
  explicit WireReader(Span message) : at_(message.begin), end_(message.end) {}

  bool done() const { return at_ == end_; }
  const uint8_t* at() const { return at_; }

  bool ReadTag(uint32_t* tag) {
    uint64_t value;
    if (!ReadShortVarint(&value) || value > UINT32_MAX || value < 8) return false;
    *tag = static_cast<uint32_t>(value);
    return true;
  }

  bool ReadVarint(uint64_t* value) {
    if (at_ == end_) return false;
    if (*at_ < 0x80) {
      *value = *at_++;
      return true;
    }
    return ReadLongVarint(10, value);
  }

  bool ReadBytes(Span* bytes) {
    const uint8_t* const start = at_;
    uint64_t size;
    if (!ReadShortVarint(&size)) return false;
    if (size > static_cast<uint64_t>(end_ - at_)) {
      at_ = start;
      return false;
    }
    *bytes = {at_, at_ + size};
    at_ += size;
    return true;
  }

  template <typename Number>
  bool ReadFixed(Number* number) {
    if (static_cast<size_t>(end_ - at_) < sizeof(Number)) return false;
    std::memcpy(number, at_, sizeof(Number));
    at_ += sizeof(Number);
    return true;
  }

  // Goes over the value of a field that nobody asked for.
  bool Skip(uint32_t tag) { return SkipValue(tag, kMaxGroups); }

 private:
  static constexpr int kMaxGroups = 100;

  // Tags and lengths have at most five bytes.
  bool ReadShortVarint(uint64_t* value) {
    if (at_ == end_) return false;
    if (*at_ < 0x80) {
      *value = *at_++;
      return true;
    }
    return ReadLongVarint(5, value);
  }

  bool ReadLongVarint(int max_bytes, uint64_t* value) {
    const uint8_t* at = at_;
    uint64_t result = 0;
    for (int i = 0; i < max_bytes && at != end_; ++i) {
      const uint8_t byte = *at++;
      result |= static_cast<uint64_t>(byte & 0x7F) << (7 * i);
      if (byte < 0x80) {
        at_ = at;
        *value = result;
        return true;
      }
    }
    return false;
  }

  bool SkipValue(uint32_t tag, int groups) {
    uint64_t number;
    uint32_t fixed;
    Span bytes;
    switch (TypeOf(tag)) {
      case kVarint:
        return ReadVarint(&number);
      case kFixed64:
        return ReadFixed(&number);
      case kBytes:
        return ReadBytes(&bytes);
      case kFixed32:
        return ReadFixed(&fixed);
      case kStartGroup:
        return groups > 0 && SkipGroup(NumberOf(tag), groups - 1);
      default:
        return false;
    }
  }

  bool SkipGroup(uint32_t number, int groups) {
    uint32_t tag;
    while (ReadTag(&tag)) {
      if (TypeOf(tag) == kEndGroup) return NumberOf(tag) == number;
      if (!SkipValue(tag, groups)) return false;
    }
    return false;
  }

  const uint8_t* at_;
  const uint8_t* end_;
};

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_WIRE_H_
