// Instance (protos/instance.proto): one row, its fids v1 without names.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "ops/cc/records/wire/fid_convert.h"
#include "ops/cc/records/decode/record_decoder.h"

namespace millrace::records {
namespace {

constexpr size_t kSlots = 1024;  // of fids v1

std::vector<std::string> SlotNames() {
  std::vector<std::string> names;
  for (size_t slot = 0; slot < kSlots; ++slot) names.push_back("fc_slot_" + std::to_string(slot));
  return names;
}

// Adds one occurrence, packed or not, of a repeated field of fixed width.
template <typename Number>
bool ReadNumbers(uint32_t tag, WireReader* reader, std::vector<Number>* numbers) {
  Span bytes = {reader->at(), nullptr};
  if (TypeOf(tag) == kBytes) {
    if (!reader->ReadBytes(&bytes) || bytes.size() % sizeof(Number) != 0) return false;
  } else {
    if (!reader->Skip(tag)) return false;
    if (TypeOf(tag) != (sizeof(Number) == 8 ? kFixed64 : kFixed32)) return true;
    bytes.end = reader->at();
  }
  const size_t before = numbers->size();
  numbers->resize(before + bytes.size() / sizeof(Number));
  if (!bytes.empty()) std::memcpy(numbers->data() + before, bytes.begin, bytes.size());
  return true;
}

// The repeated fields of InstanceFeature.
constexpr uint32_t kFirstValues = 2, kFirstLists = 6, kLastLists = 9;

ColumnType TypeOfValues(uint32_t number) {
  static constexpr Value kValues[] = {Value::kInt64, Value::kFloat, Value::kInt64, Value::kBytes};
  const bool is_nested = number >= kFirstLists;
  const uint32_t kind = number - (is_nested ? kFirstLists : kFirstValues);
  return {kValues[kind], static_cast<uint8_t>(is_nested ? 2 : 1), kind == 0 ? Kind::kFid : Kind::kPlain};
}

class InstanceDecoder : public RecordDecoder {
 public:
  explicit InstanceDecoder(RecordRows* rows) : rows_(*rows) { records_.fill(-1); }

  bool Decode(Span record) override {
    fids_.clear();
    values_.clear();
    labels_.clear();
    features_.clear();
    line_id_.Clear();
    has_weight_ = has_key_ = false;
    if (!rows_.SetRows(1)) return false;
    WireReader reader(record);
    while (!reader.done()) {
      const uint8_t* const start = reader.at();
      uint32_t tag;
      if (!reader.ReadTag(&tag)) return rows_.Malformed(start);
      if (tag == TagOf(5, kBytes)) {
        Span bytes;
        if (!reader.ReadBytes(&bytes)) return rows_.Malformed(start);
        if (!rows_.MergeLineId(bytes, &line_id_)) return false;
      } else if (!ReadField(tag, &reader)) {
        return rows_.Malformed(start);
      }
    }
    return PutFeatures() && PutMetadata();
  }

 private:
  bool ReadField(uint32_t tag, WireReader* reader) {
    Span bytes;
    uint64_t number;
    switch (NumberOf(tag)) {
      case 1:
        return ReadNumbers(tag, reader, &fids_);
      case 2:
        return ReadNumbers(tag, reader, &values_);
      case 3:
        return ReadNumbers(tag, reader, &labels_);
      case 8: {
        std::vector<uint64_t> next_fids;
        return ReadNumbers(tag, reader, &next_fids);
      }
      default:
        break;
    }
    switch (tag) {
      case TagOf(4, kFixed32):
        has_weight_ = true;
        return reader->ReadFixed(&weight_);
      case TagOf(7, kBytes):
        return reader->ReadBytes(&bytes) && IsMessage(bytes);
      case TagOf(9, kBytes):
        if (!reader->ReadBytes(&bytes)) return false;
        features_.push_back(bytes);
        return true;
      case TagOf(100, kVarint):
        if (!reader->ReadVarint(&number)) return false;
        data_source_key_ = static_cast<uint32_t>(number);
        has_key_ = true;
        return true;
      default:
        return reader->Skip(tag);
    }
  }

  static bool IsMessage(Span message) {
    WireReader reader(message);
    uint32_t tag;
    while (!reader.done()) {
      if (!reader.ReadTag(&tag) || !reader.Skip(tag)) return false;
    }
    return true;
  }

  bool PutFeatures() {
    if (rows_.options().pruning == Pruning::kFeatures) return true;
    if (!PutValues() || !PutFids()) return false;
    for (const Span feature : features_) {
      if (!PutFeature(feature)) return false;
    }
    return true;
  }

  bool PutValues() {
    static const std::string name = "value";
    if (values_.empty()) return true;
    NamedColumn* const named = rows_.FindFeature(SpanOf(name));
    if (named == nullptr || named->role == Role::kSkipped) return named != nullptr;
    Column* const column = rows_.BeginFeature({Value::kFloat, 1, Kind::kPlain}, 0, 0, named);
    if (column == nullptr) return false;
    std::memcpy(column->Extend(values_.size()), values_.data(), values_.size() * sizeof(float));
    return rows_.EndFeature(named);
  }

  // One feature per slot, in the order in which the slots first occur.
  bool PutFids() {
    slots_.clear();
    const int64_t record = rows_.table().record();
    for (const uint64_t fid : fids_) {
      const size_t slot = SlotOfFidV1(fid);
      if (records_[slot] != record) {
        records_[slot] = record;
        ends_[slot] = 0;
        slots_.push_back(slot);
      }
      ++ends_[slot];
    }
    size_t end = 0;
    for (const size_t slot : slots_) {
      const size_t count = ends_[slot];
      ends_[slot] = end;
      end += count;
    }
    grouped_.resize(fids_.size());
    for (const uint64_t fid : fids_) grouped_[ends_[SlotOfFidV1(fid)]++] = fid;
    size_t begin = 0;
    for (const size_t slot : slots_) {
      if (!PutSlot(slot, grouped_.data() + begin, ends_[slot] - begin)) return false;
      begin = ends_[slot];
    }
    return true;
  }

  bool PutSlot(size_t slot, const uint64_t* fids, size_t count) {
    static const std::vector<std::string> names = SlotNames();
    NamedColumn* const named = rows_.FindFeature(SpanOf(names[slot]));
    if (named == nullptr || named->role == Role::kSkipped) return named != nullptr;
    const bool as_is = rows_.options().fids_as_is;
    const ColumnType type = {Value::kInt64, 1, as_is ? Kind::kFidV1 : Kind::kFid};
    Column* const column = rows_.BeginFeature(type, static_cast<int32_t>(slot), 0, named);
    if (column == nullptr) return false;
    for (size_t i = 0; i < count; ++i) column->Add(as_is ? fids[i] : FidV1ToV2(fids[i]));
    return rows_.EndFeature(named);
  }

  bool PutFeature(Span message) {
    Span name;
    uint32_t number = 0;
    if (!FindValues(message, &name, &number)) return false;
    NamedColumn* const named = rows_.FindFeature(name);
    if (named == nullptr || named->role == Role::kSkipped) return named != nullptr;
    if (named->role != Role::kFeature) {
      return rows_.Fail(reason::kReservedName, name.begin, "feature " + Quoted(named->name) + ": a reserved name");
    }
    Column* column = nullptr;
    if (number != 0) {
      column = rows_.BeginFeature(TypeOfValues(number), 0, 0, named);
      if (column == nullptr) return false;
    }
    return AddValues(message, number, *named, column) && (number == 0 || rows_.EndFeature(named));
  }

  // Sets `number` to the first field that has values; 0 when none has.
  bool FindValues(Span message, Span* name, uint32_t* number) {
    uint32_t first = kLastLists + 1;
    WireReader reader(message);
    while (!reader.done()) {
      const uint8_t* const start = reader.at();
      uint32_t tag;
      Span bytes;
      if (!reader.ReadTag(&tag)) return rows_.Malformed(start);
      const uint32_t field = NumberOf(tag);
      if (TypeOf(tag) == kBytes && field <= kLastLists) {
        if (!reader.ReadBytes(&bytes)) return rows_.Malformed(start);
        if (field == 1) *name = bytes;
        const bool is_packed = field >= kFirstValues && field < kFirstLists && field != 5;
        if (field >= kFirstValues && field < first && !(is_packed && bytes.empty())) first = field;
      } else {
        if (!reader.Skip(tag)) return rows_.Malformed(start);
        if (IsSingle(tag) && field < first) first = field;
      }
    }
    *number = first > kLastLists ? 0 : first;
    return true;
  }

  static bool IsSingle(uint32_t tag) {
    return tag == TagOf(2, kFixed64) || tag == TagOf(3, kFixed32) || tag == TagOf(4, kVarint);
  }

  // Adds the values of field `number`, and checks those of the others.
  bool AddValues(Span message, uint32_t number, const NamedColumn& named, Column* column) {
    FeatureReader& values = rows_.reader();
    WireReader reader(message);
    while (!reader.done()) {
      uint32_t tag = 0;
      reader.ReadTag(&tag);
      const uint32_t field = NumberOf(tag);
      const uint8_t* const start = reader.at();
      if (field < kFirstValues || field > kLastLists || (field >= kFirstLists && TypeOf(tag) != kBytes)) {
        if (!reader.Skip(tag)) return rows_.Malformed(start);
        continue;
      }
      if (field == number) {
        if (!AddField(tag, column, &reader)) return rows_.FailFeature(named);
        continue;
      }
      Column other(TypeOfValues(field));
      if (!AddField(tag, &other, &reader) && !values.reserved_bit()) return rows_.FailFeature(named);
    }
    return true;
  }

  bool AddField(uint32_t tag, Column* column, WireReader* reader) {
    const Element kElements[] = {rows_.reader().FidsOf(false), Element::kFloat, Element::kInt64, Element::kBytes};
    const uint32_t field = NumberOf(tag);
    if (field < kFirstLists) return rows_.reader().AddElements(tag, kElements[field - kFirstValues], reader, column);
    Span list;
    if (!reader->ReadBytes(&list) || !rows_.reader().AddList(list, kElements[field - kFirstLists], column))
      return false;
    column->EndList();
    return true;
  }

  bool PutMetadata() {
    return rows_.PutLineId(line_id_, 0) && rows_.PutLabels(labels_, 0) &&
           (!has_weight_ || rows_.PutWeight(weight_, 0)) && (!has_key_ || rows_.PutDataSourceKey(data_source_key_, 0));
  }

  RecordRows& rows_;
  LineIdRow line_id_;
  std::vector<uint64_t> fids_, grouped_;
  std::vector<float> values_, labels_;
  std::vector<Span> features_;
  float weight_ = 0;
  uint32_t data_source_key_ = 0;
  bool has_weight_ = false, has_key_ = false;

  std::vector<size_t> slots_;            // of the present record
  std::array<int64_t, kSlots> records_;  // the last record that had the slot
  std::array<size_t, kSlots> ends_{};
};

}  // namespace

std::unique_ptr<RecordDecoder> MakeInstanceDecoder(RecordRows* rows) { return std::make_unique<InstanceDecoder>(rows); }

}  // namespace millrace::records
