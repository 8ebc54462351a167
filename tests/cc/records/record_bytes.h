// Bytes of records, written out by hand: Protobuf's wire format and the messages of protos/record.proto.
#ifndef MILLRACE_TESTS_CC_RECORDS_RECORD_BYTES_H_
#define MILLRACE_TESTS_CC_RECORDS_RECORD_BYTES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "ops/cc/records/decode/feature_reader.h"
#include "ops/cc/records/wire/reverse_writer.h"
#include "ops/cc/records/wire/wire.h"

namespace millrace::records {

inline std::string Written(const ReverseWriter& writer) { return std::string(writer.written().text()); }

inline std::string VarintBytes(uint64_t number) {
  std::string bytes;
  for (; number >= 0x80; number >>= 7) bytes += static_cast<char>(number | 0x80);
  return bytes + static_cast<char>(number);
}

// A field of bytes, or of a message.
inline std::string BytesField(uint32_t number, const std::string& bytes) {
  return VarintBytes(TagOf(number, kBytes)) + VarintBytes(bytes.size()) + bytes;
}

inline std::string VarintField(uint32_t number, uint64_t value) {
  return VarintBytes(TagOf(number, kVarint)) + VarintBytes(value);
}

template <typename Number>
std::string Packed(const std::vector<Number>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Number)};
}

template <typename Number>
std::string FixedField(uint32_t number, Number value) {
  return VarintBytes(TagOf(number, sizeof(Number) == 8 ? kFixed64 : kFixed32)) + Packed(std::vector<Number>{value});
}

// A Feature with a list of fixed-width numbers.
template <typename Number>
std::string ListFeature(uint32_t member, const std::vector<Number>& numbers) {
  return BytesField(member, numbers.empty() ? "" : BytesField(1, Packed(numbers)));
}

inline std::string BytesFeature(const std::vector<std::string>& values) {
  std::string list;
  for (const std::string& value : values) list += BytesField(1, value);
  return BytesField(kBytesList, list);
}

// A Feature with lists of int64.
inline std::string NestedFeature(const std::vector<std::vector<uint64_t>>& lists) {
  std::string all;
  for (const auto& list : lists) {
    std::string numbers;
    for (const uint64_t number : list) numbers += VarintBytes(number);
    all += BytesField(1, BytesField(1, numbers));
  }
  return BytesField(kInt64Lists, all);
}

// An Example's field `named_feature`.
inline std::string NamedFeature(const std::string& name, const std::string& feature, int32_t id = 0) {
  return BytesField(1, BytesField(1, name) + BytesField(2, feature) +
                           (id == 0 ? "" : VarintField(3, static_cast<uint64_t>(static_cast<int64_t>(id)))));
}

// An ExampleBatch's field `named_feature_list`.
inline std::string FeatureList(const std::string& name, const std::vector<std::string>& features, bool shared = false) {
  std::string list = BytesField(1, name);
  for (const std::string& feature : features) list += BytesField(2, feature);
  return BytesField(1, list + (shared ? VarintField(3, 1) : ""));
}

}  // namespace millrace::records

#endif  // MILLRACE_TESTS_CC_RECORDS_RECORD_BYTES_H_
