// Reads the message Feature (protos/record.proto) and the lists in it.
#ifndef MILLRACE_RECORDS_FEATURE_READER_H_
#define MILLRACE_RECORDS_FEATURE_READER_H_

#include <cstdint>
#include <string>

#include "ops/cc/records/arrow/column.h"
#include "ops/cc/records/arrow/column_type.h"
#include "ops/cc/records/wire/wire.h"

namespace millrace::records {

// How one value of a repeated field lies on the wire, and what becomes of it.
enum class Element : uint8_t { kFidV1ToV2, kFidV2, kFidAsIs, kFloat, kDouble, kInt64, kBytes };

// The member of a Feature's oneof that is set; number 0: none.
struct Member {
  uint32_t number = 0;
  Span bytes;         // of a message or bytes
  uint64_t bits = 0;  // of a scalar
};

enum FeatureNumber : uint32_t {
  kFidV1List = 1,
  kFidV2List = 2,
  kFloatList = 3,
  kDoubleList = 4,
  kInt64List = 5,
  kBytesList = 6,
  kFidV2Lists = 7,
  kFloatLists = 8,
  kDoubleLists = 9,
  kInt64Lists = 10,
  kBytesLists = 11,
  kInt64Value = 12,
  kFloatValue = 13,
  kDoubleValue = 14,
  kBytesValue = 15,
  kFidV1Lists = 16,
};

class FeatureReader {
 public:
  // `fids_as_is`: neither converts fids v1 nor checks fids v2.
  explicit FeatureReader(bool fids_as_is);

  // False: malformed at `at()`. What `member` points to holds until the next call.
  bool Find(Span feature, Member* member);

  // Whether a Feature that nobody gets is well-formed.
  bool Check(Span feature);

  // Of a member's column; requires number > 0.
  ColumnType TypeOf(uint32_t number) const { return types_[number]; }

  // Adds the values of a member to a column of its type; the caller ends the row. False: refused at `at()`, for a fid
  // whose reserved bit is set if `reserved_bit()`, else as malformed.
  bool AddTo(const Member& member, Column* column);

  // Adds one occurrence, packed or not, of a repeated field whose tag was just read.
  bool AddElements(uint32_t tag, Element element, WireReader* reader, Column* column);

  // Adds the field 1 of a message.
  bool AddList(Span message, Element element, Column* column) {
    // Nearly always there is one packed field.
    if (element != Element::kBytes && message.size() >= 2 && message.begin[0] == records::TagOf(1, WireType::kBytes) &&
        message.begin[1] < 0x80 && message.begin[1] == message.size() - 2) {
      return AddPacked({message.begin + 2, message.end}, element, column);
    }
    return AddFields(message, element, column);
  }

  // The first value of a BytesList or RawFeature, all of which has to be well-formed.
  bool FirstBytes(Span message, Span* first, bool* is_there);

  // The element of fids in a field that holds v1, or v2.
  Element FidsOf(bool v1) const { return fids_as_is_ ? Element::kFidAsIs : v1 ? Element::kFidV1ToV2 : Element::kFidV2; }

  const uint8_t* at() const { return at_; }
  bool reserved_bit() const { return reserved_bit_; }

 private:
  bool FindAmongMany(Span feature, Member* member);
  // Whether a member that another one replaces is well-formed.
  bool Check(const Member& member);
  // Adds a list, or lists, as deep as the column's type.
  bool AddMessage(Span message, Element element, Column* column);
  bool AddLists(Span message, Element element, Column* column);
  bool AddFields(Span message, Element element, Column* column);
  bool AddPacked(Span packed, Element element, Column* column);
  bool AddVarints(Span packed, Column* column);
  bool FailAt(const uint8_t* at) {
    at_ = at;
    reserved_bit_ = false;
    return false;
  }

  const bool fids_as_is_;
  ColumnType types_[kFidV1Lists + 1];  // by number of the member
  Element elements_[kFidV1Lists + 1];
  std::string merged_;
  const uint8_t* at_ = nullptr;
  bool reserved_bit_ = false;
};

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_FEATURE_READER_H_
