// Example (protos/record.proto): one row.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "ops/cc/records/decode/record_decoder.h"
#include "ops/cc/records/wire/utf8.h"

namespace millrace::records {
namespace {

// NamedFeature and NamedRawFeature have the same fields.
struct NamedMessage {
  Span name, content;
  int32_t id = 0;
};

class ExampleDecoder : public RecordDecoder {
 public:
  explicit ExampleDecoder(RecordRows* rows) : rows_(*rows) {}

  bool Decode(Span record) override {
    line_id_.Clear();
    has_named_line_id_ = has_named_weight_ = false;
    labels_.clear();
    named_labels_.clear();
    weight_bits_ = data_source_key_ = 0;
    if (!rows_.SetRows(1)) return false;
    WireReader reader(record);
    while (!reader.done()) {
      if (!ReadField(&reader)) return false;
    }
    return PutMetadata();
  }

 private:
  bool ReadField(WireReader* reader) {
    const uint8_t* const start = reader->at();
    uint32_t tag;
    Span bytes;
    uint64_t number = 0;
    if (!reader->ReadTag(&tag)) return rows_.Malformed(start);
    switch (tag) {
      case TagOf(1, kBytes):
        return reader->ReadBytes(&bytes) ? ReadFeature(bytes) : rows_.Malformed(start);
      case TagOf(2, kBytes):
        return reader->ReadBytes(&bytes) ? ReadRawFeature(bytes) : rows_.Malformed(start);
      case TagOf(100, kBytes):
        return reader->ReadBytes(&bytes) ? rows_.MergeLineId(bytes, &line_id_) : rows_.Malformed(start);
      case TagOf(101, kBytes):
        return (reader->ReadBytes(&bytes) && AddLabels(bytes)) || rows_.Malformed(start);
      case TagOf(101, kFixed32):
        bytes.begin = reader->at();
        if (!reader->Skip(tag)) return rows_.Malformed(start);
        bytes.end = reader->at();
        return AddLabels(bytes);
      case TagOf(102, kFixed32):
        return reader->ReadFixed(&weight_bits_) || rows_.Malformed(start);
      case TagOf(103, kVarint):
        if (!reader->ReadVarint(&number)) return rows_.Malformed(start);
        data_source_key_ = static_cast<uint32_t>(number);
        return true;
      default:
        return reader->Skip(tag) || rows_.Malformed(start);
    }
  }

  // Whether the message is a short name, a short content and perhaps an id, as nearly every message is.
  static bool ReadShort(Span message, NamedMessage* named) {
    Span* const parts[] = {&named->name, &named->content};
    const uint8_t* at = message.begin;
    for (uint32_t i = 0; i < 2; ++i) {
      if (message.end - at < 2 || at[0] != TagOf(i + 1, kBytes) || at[1] >= 0x80 || at[1] > message.end - at - 2) {
        return false;
      }
      *parts[i] = {at + 2, at + 2 + at[1]};
      at = parts[i]->end;
    }
    if (at == message.end) return true;
    if (message.end - at != 2 || at[0] != TagOf(3, kVarint) || at[1] >= 0x80) return false;
    named->id = at[1];
    return true;
  }

  bool ReadNamed(Span message, NamedMessage* named) {
    if (ReadShort(message, named)) return true;
    *named = {};
    WireReader reader(message);
    bool has_content = false;
    while (!reader.done()) {
      const uint8_t* const start = reader.at();
      uint32_t tag;
      Span content;
      uint64_t number = 0;
      bool is_good = reader.ReadTag(&tag);
      if (!is_good) return rows_.Malformed(start);
      if (tag == TagOf(1, kBytes)) {
        is_good = IsUtf8(named->name) && reader.ReadBytes(&named->name);  // a name that is replaced counts too
      } else if (tag == TagOf(2, kBytes)) {
        is_good = reader.ReadBytes(&content);
        named->content = has_content ? Merge(named->content, content) : content;
        has_content = is_good;
      } else if (tag == TagOf(3, kVarint)) {
        is_good = reader.ReadVarint(&number);
        named->id = static_cast<int32_t>(number);
      } else {
        is_good = reader.Skip(tag);
      }
      if (!is_good) return rows_.Malformed(start);
    }
    return true;
  }

  // Protobuf merges messages of one field that follow one another. What was merged before is appended to in place: a
  // copy for each part would take quadratic time.
  Span Merge(Span first, Span second) {
    if (first.begin != reinterpret_cast<const uint8_t*>(merged_.data())) merged_ = first.text();
    merged_ += second.text();
    const auto* const begin = reinterpret_cast<const uint8_t*>(merged_.data());
    return {begin, begin + merged_.size()};
  }

  bool ReadFeature(Span message) {
    NamedMessage feature;
    if (!ReadNamed(message, &feature)) return false;
    NamedColumn* const named = rows_.FindFeature(feature.name);
    if (named == nullptr) return false;
    if (named->role == Role::kSkipped) return true;
    if (named->role == Role::kFeature && rows_.options().pruning == Pruning::kFeatures) return true;
    Member member;
    if (!rows_.reader().Find(feature.content, &member)) return rows_.FailFeature(*named);
    if (member.number == 0) return true;
    switch (named->role) {
      case Role::kLineId:
        return rows_.ReadLineIdFeature(member, &named_line_id_, &has_named_line_id_);
      case Role::kLabel:
        return rows_.ReadFloatsFeature(member, *named, &named_labels_);
      case Role::kWeight:
        has_named_weight_ = true;
        return rows_.ReadFloatsFeature(member, *named, &named_weight_);
      default:
        return rows_.PutFeature(member, feature.id, 0, named);
    }
  }

  bool ReadRawFeature(Span message) {
    if (rows_.options().pruning == Pruning::kRawFeatures) return true;
    NamedMessage feature;
    if (!ReadNamed(message, &feature)) return false;
    NamedColumn* const named = rows_.FindFeature(feature.name);
    return named != nullptr && rows_.PutRawFeature(feature.content, feature.id, 0, named);
  }

  bool AddLabels(Span packed) {
    if (packed.size() % sizeof(float) != 0) return false;
    const size_t before = labels_.size();
    labels_.resize(before + packed.size() / sizeof(float));
    if (!packed.empty()) std::memcpy(labels_.data() + before, packed.begin, packed.size());
    return true;
  }

  bool PutMetadata() {
    if (!rows_.PutLineId(has_named_line_id_ ? named_line_id_ : line_id_, 0)) return false;
    labels_.insert(labels_.end(), named_labels_.begin(), named_labels_.end());
    if (!rows_.PutLabels(labels_, 0)) return false;
    float weight;
    std::memcpy(&weight, &weight_bits_, sizeof(weight));
    if (has_named_weight_) weight = named_weight_.empty() ? 1.0f : named_weight_[0];
    if ((has_named_weight_ || weight_bits_ != 0) && !rows_.PutWeight(weight, 0)) return false;
    return data_source_key_ == 0 || rows_.PutDataSourceKey(data_source_key_, 0);
  }

  RecordRows& rows_;
  std::string merged_;
  LineIdRow line_id_, named_line_id_;
  bool has_named_line_id_ = false, has_named_weight_ = false;
  std::vector<float> labels_, named_labels_, named_weight_;
  uint32_t weight_bits_ = 0, data_source_key_ = 0;
};

}  // namespace

std::unique_ptr<RecordDecoder> MakeExampleDecoder(RecordRows* rows) { return std::make_unique<ExampleDecoder>(rows); }

std::unique_ptr<RecordDecoder> MakeDecoder(Format format, RecordRows* rows) {
  switch (format) {
    case Format::kExample:
      return MakeExampleDecoder(rows);
    case Format::kExampleBatch:
      return MakeExampleBatchDecoder(rows);
    case Format::kInstance:
      return MakeInstanceDecoder(rows);
  }
  return nullptr;
}

}  // namespace millrace::records
