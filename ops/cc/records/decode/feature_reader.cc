#include "ops/cc/records/decode/feature_reader.h"

#include <cstddef>
#include <cstring>

#include "ops/cc/embedding/base/cpu_clones.h"
#include "ops/cc/records/wire/fid_convert.h"

namespace millrace::records {
namespace {

constexpr uint32_t kLargestMember = kFidV1Lists;

WireType WireOf(uint32_t number) {
  switch (number) {
    case kInt64Value:
      return kVarint;
    case kFloatValue:
      return kFixed32;
    case kDoubleValue:
      return kFixed64;
    default:
      return kBytes;
  }
}

bool IsScalar(uint32_t number) { return number >= kInt64Value && number <= kBytesValue; }

// Reads the value of a member whose tag has its wire type.
bool ReadMember(uint32_t tag, WireReader* reader, Member* member) {
  uint32_t bits;
  member->number = NumberOf(tag);
  switch (TypeOf(tag)) {
    case kVarint:
      return reader->ReadVarint(&member->bits);
    case kFixed64:
      return reader->ReadFixed(&member->bits);
    case kFixed32:
      if (!reader->ReadFixed(&bits)) return false;
      member->bits = bits;
      return true;
    default:
      return reader->ReadBytes(&member->bytes);
  }
}

}  // namespace

FeatureReader::FeatureReader(bool fids_as_is) : fids_as_is_(fids_as_is) {
  const Kind v1 = fids_as_is ? Kind::kFidV1 : Kind::kFid;
  const auto set = [this](uint32_t list, uint32_t lists, uint32_t scalar, Value value, Kind kind, Element element) {
    types_[list] = {value, 1, kind};
    types_[lists] = {value, 2, kind};
    elements_[list] = elements_[lists] = element;
    if (scalar != 0) types_[scalar] = {value, 0, kind};
  };
  set(kFidV1List, kFidV1Lists, 0, Value::kInt64, v1, FidsOf(true));
  set(kFidV2List, kFidV2Lists, 0, Value::kInt64, Kind::kFid, FidsOf(false));
  set(kFloatList, kFloatLists, kFloatValue, Value::kFloat, Kind::kPlain, Element::kFloat);
  set(kDoubleList, kDoubleLists, kDoubleValue, Value::kDouble, Kind::kPlain, Element::kDouble);
  set(kInt64List, kInt64Lists, kInt64Value, Value::kInt64, Kind::kPlain, Element::kInt64);
  set(kBytesList, kBytesLists, kBytesValue, Value::kBytes, Kind::kPlain, Element::kBytes);
}

bool FeatureReader::Find(Span feature, Member* member) {
  *member = {};
  if (feature.empty()) return true;
  WireReader reader(feature);
  uint32_t tag;
  if (!reader.ReadTag(&tag)) return FailAt(reader.at());
  if (NumberOf(tag) <= kLargestMember && records::TypeOf(tag) == WireOf(NumberOf(tag)) &&
      ReadMember(tag, &reader, member) && reader.done()) {
    return true;
  }
  return FindAmongMany(feature, member);
}

bool FeatureReader::FindAmongMany(Span feature, Member* member) {
  *member = {};
  WireReader reader(feature);
  while (!reader.done()) {
    const uint8_t* const start = reader.at();
    uint32_t tag;
    if (!reader.ReadTag(&tag)) return FailAt(start);
    if (NumberOf(tag) > kLargestMember || records::TypeOf(tag) != WireOf(NumberOf(tag))) {
      if (!reader.Skip(tag)) return FailAt(start);
      continue;
    }
    Member found;
    if (!ReadMember(tag, &reader, &found)) return FailAt(start);
    if (found.number == member->number && !IsScalar(found.number)) {
      // Protobuf merges messages of one field that follow one another.
      if (member->bytes.begin != reinterpret_cast<const uint8_t*>(merged_.data())) merged_ = member->bytes.text();
      merged_ += found.bytes.text();
      const auto* const begin = reinterpret_cast<const uint8_t*>(merged_.data());
      member->bytes = {begin, begin + merged_.size()};
    } else {
      if (!Check(*member)) return false;
      *member = found;
    }
  }
  return true;
}

bool FeatureReader::Check(Span feature) {
  Member member;
  return Find(feature, &member) && Check(member);
}

bool FeatureReader::Check(const Member& member) {
  if (member.number == 0 || IsScalar(member.number)) return true;
  Column scratch(TypeOf(member.number));
  const Element element = elements_[member.number];
  // A fid that nobody gets may have any value, but what follows it is checked too.
  return AddMessage(member.bytes, element == Element::kFidV2 ? Element::kFidAsIs : element, &scratch);
}

bool FeatureReader::AddTo(const Member& member, Column* column) {
  switch (member.number) {
    case kInt64Value:
    case kDoubleValue:
      column->Add(member.bits);
      return true;
    case kFloatValue:
      column->Add(static_cast<uint32_t>(member.bits));
      return true;
    case kBytesValue:
      column->AddBytes(member.bytes);
      return true;
    default:
      break;
  }
  return AddMessage(member.bytes, elements_[member.number], column);
}

bool FeatureReader::AddMessage(Span message, Element element, Column* column) {
  return column->type().depth == 1 ? AddList(message, element, column) : AddLists(message, element, column);
}

bool FeatureReader::AddFields(Span message, Element element, Column* column) {
  WireReader reader(message);
  while (!reader.done()) {
    uint32_t tag;
    const uint8_t* const start = reader.at();
    if (!reader.ReadTag(&tag)) return FailAt(start);
    if (NumberOf(tag) == 1) {
      if (!AddElements(tag, element, &reader, column)) return false;
    } else if (!reader.Skip(tag)) {
      return FailAt(start);
    }
  }
  return true;
}

bool FeatureReader::FirstBytes(Span message, Span* first, bool* is_there) {
  *is_there = false;
  WireReader reader(message);
  while (!reader.done()) {
    uint32_t tag;
    Span bytes;
    const uint8_t* const start = reader.at();
    if (!reader.ReadTag(&tag)) return FailAt(start);
    if (tag != TagOf(1, records::kBytes)) {
      if (!reader.Skip(tag)) return FailAt(start);
      continue;
    }
    if (!reader.ReadBytes(&bytes)) return FailAt(start);
    if (!*is_there) *first = bytes;
    *is_there = true;
  }
  return true;
}

bool FeatureReader::AddLists(Span message, Element element, Column* column) {
  WireReader reader(message);
  while (!reader.done()) {
    uint32_t tag;
    Span list;
    const uint8_t* const start = reader.at();
    if (!reader.ReadTag(&tag)) return FailAt(start);
    if (tag != TagOf(1, kBytes)) {
      if (!reader.Skip(tag)) return FailAt(start);
      continue;
    }
    if (!reader.ReadBytes(&list)) return FailAt(start);
    if (!AddList(list, element, column)) return false;
    column->EndList();
  }
  return true;
}

bool FeatureReader::AddElements(uint32_t tag, Element element, WireReader* reader, Column* column) {
  const uint8_t* const start = reader->at();
  const WireType type = records::TypeOf(tag);
  if (type == kBytes) {
    Span bytes;
    if (!reader->ReadBytes(&bytes)) return FailAt(start);
    if (element != Element::kBytes) return AddPacked(bytes, element, column);
    column->AddBytes(bytes);
    return true;
  }
  uint64_t number;
  if (element == Element::kInt64 && type == kVarint) {
    if (!reader->ReadVarint(&number)) return FailAt(start);
    column->Add(number);
    return true;
  }
  if (!reader->Skip(tag)) return FailAt(start);
  const WireType single = element == Element::kFloat ? kFixed32 : element <= Element::kDouble ? kFixed64 : kBytes;
  return type != single || AddPacked({start, reader->at()}, element, column);
}

bool FeatureReader::AddVarints(Span packed, Column* column) {
  WireReader reader(packed);
  uint64_t number;
  while (!reader.done()) {
    if (!reader.ReadVarint(&number)) return FailAt(reader.at());
    column->Add(number);
  }
  return true;
}

MILLRACE_CLONES bool FeatureReader::AddPacked(Span packed, Element element, Column* column) {
  if (element == Element::kInt64) return AddVarints(packed, column);
  const size_t width = element == Element::kFloat ? 4 : 8;
  if (packed.size() % width != 0) return FailAt(packed.begin);
  if (packed.empty()) return true;
  const size_t count = packed.size() / width;
  uint8_t* const values = column->Extend(count);
  std::memcpy(values, packed.begin, packed.size());
  if (element > Element::kFidV2) return true;
  auto* const fids = reinterpret_cast<uint64_t*>(values);
  if (element == Element::kFidV1ToV2) {
    for (size_t i = 0; i < count; ++i) fids[i] = FidV1ToV2(fids[i]);
    return true;
  }
  uint64_t all = 0;
  for (size_t i = 0; i < count; ++i) all |= fids[i];
  if ((all & kReservedFidBit) == 0) return true;
  FailAt(packed.begin);
  reserved_bit_ = true;
  return false;
}

}  // namespace millrace::records
