// ExampleBatch (protos/record.proto): many rows, by column.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/cc/records/decode/record_decoder.h"
#include "ops/cc/records/wire/utf8.h"

namespace millrace::records {
namespace {

constexpr int32_t kShared = 1;

class ExampleBatchDecoder : public RecordDecoder {
 public:
  explicit ExampleBatchDecoder(RecordRows* rows) : rows_(*rows) {}

  bool Decode(Span record) override {
    if (!ReadFields(record)) return false;
    if (batch_size_ <= 0) {
      return rows_.Fail(reason::kBatchSizeMismatch, nullptr, "batch_size: " + std::to_string(batch_size_));
    }
    if (!rows_.SetRows(batch_size_)) return false;
    for (const Span list : lists_) {
      if (!ReadList(list, false)) return false;
    }
    for (const Span list : raw_lists_) {
      if (!ReadList(list, true)) return false;
    }
    for (int32_t row = 0; row < batch_size_ && data_source_key_ != 0; ++row) {
      if (!rows_.PutDataSourceKey(data_source_key_, row)) return false;
    }
    // Only now: a refused record says nothing of the rows that are kept.
    for (NamedColumn* const named : shared_) named->is_shared = true;
    for (NamedColumn* const named : individual_) named->is_individual = true;
    return true;
  }

 private:
  // NamedFeatureList and NamedRawFeatureList have the same fields.
  struct List {
    Span name;
    int32_t type = 0, id = 0;
  };

  // The number of rows comes after the lists on the wire.
  bool ReadFields(Span record) {
    lists_.clear();
    raw_lists_.clear();
    shared_.clear();
    individual_.clear();
    batch_size_ = 0;
    data_source_key_ = 0;
    WireReader reader(record);
    while (!reader.done()) {
      const uint8_t* const start = reader.at();
      uint32_t tag;
      Span bytes;
      uint64_t number = 0;
      bool is_good = reader.ReadTag(&tag);
      if (!is_good) return rows_.Malformed(start);
      if (tag == TagOf(1, kBytes)) {
        is_good = reader.ReadBytes(&bytes);
        lists_.push_back(bytes);
      } else if (tag == TagOf(2, kBytes)) {
        is_good = reader.ReadBytes(&bytes);
        if (rows_.options().pruning != Pruning::kRawFeatures) raw_lists_.push_back(bytes);
      } else if (tag == TagOf(3, kVarint)) {
        is_good = reader.ReadVarint(&number);
        batch_size_ = static_cast<int32_t>(number);
      } else if (tag == TagOf(100, kVarint)) {
        is_good = reader.ReadVarint(&number);
        data_source_key_ = static_cast<uint32_t>(number);
      } else {
        is_good = reader.Skip(tag);
      }
      if (!is_good) return rows_.Malformed(start);
    }
    return true;
  }

  // Collects the features in `features_`.
  bool ReadListFields(Span message, List* list) {
    features_.clear();
    WireReader reader(message);
    while (!reader.done()) {
      const uint8_t* const start = reader.at();
      uint32_t tag;
      Span feature;
      uint64_t number = 0;
      bool is_good = reader.ReadTag(&tag);
      if (!is_good) return rows_.Malformed(start);
      if (tag == TagOf(1, kBytes)) {
        is_good = IsUtf8(list->name) && reader.ReadBytes(&list->name);  // a name that is replaced counts too
      } else if (tag == TagOf(2, kBytes)) {
        is_good = reader.ReadBytes(&feature);
        features_.push_back(feature);
      } else if (tag == TagOf(3, kVarint)) {
        is_good = reader.ReadVarint(&number);
        list->type = static_cast<int32_t>(number);
      } else if (tag == TagOf(4, kVarint)) {
        is_good = reader.ReadVarint(&number);
        list->id = static_cast<int32_t>(number);
      } else {
        is_good = reader.Skip(tag);
      }
      if (!is_good) return rows_.Malformed(start);
    }
    return true;
  }

  bool ReadList(Span message, bool is_raw) {
    List list;
    if (!ReadListFields(message, &list)) return false;
    NamedColumn* const named = rows_.FindFeature(list.name);
    if (named == nullptr) return false;
    if (named->role == Role::kSkipped) return true;
    if (!is_raw && named->role == Role::kFeature && rows_.options().pruning == Pruning::kFeatures) return true;
    const bool is_shared = list.type == kShared;
    if (is_shared ? features_.empty() : features_.size() != static_cast<size_t>(batch_size_)) {
      return rows_.Fail(reason::kBatchSizeMismatch, list.name.begin,
                        "feature " + Quoted(named->name) + ": " + std::to_string(features_.size()) +
                            " features in a batch of " + std::to_string(batch_size_));
    }
    if (is_shared && !CheckSpare(is_raw, *named)) return false;
    if (named->role == Role::kFeature) (is_shared ? shared_ : individual_).push_back(named);
    if (is_shared && named->role == Role::kFeature) return PutShared(list, is_raw, named);
    for (int32_t row = 0; row < batch_size_; ++row) {
      if (!Put(features_[is_shared ? 0 : static_cast<size_t>(row)], list, is_raw, row, named)) return false;
    }
    return true;
  }

  // Of a shared list only the first feature counts.
  bool CheckSpare(bool is_raw, const NamedColumn& named) {
    for (size_t i = 1; i < features_.size(); ++i) {
      Span first;
      bool is_there;
      const bool is_good =
          is_raw ? rows_.reader().FirstBytes(features_[i], &first, &is_there) : rows_.reader().Check(features_[i]);
      if (!is_good) return rows_.FailFeature(named);
    }
    return true;
  }

  bool PutShared(const List& list, bool is_raw, NamedColumn* named) {
    if (!Put(features_[0], list, is_raw, 0, named)) return false;
    // A feature that is not set is null, in each row.
    return !rows_.HasRow(*named, 0) || rows_.RepeatFeature(batch_size_ - 1, named);
  }

  bool Put(Span feature, const List& list, bool is_raw, int32_t row, NamedColumn* named) {
    if (is_raw) return rows_.PutRawFeature(feature, list.id, row, named);
    Member member;
    if (!rows_.reader().Find(feature, &member)) return rows_.FailFeature(*named);
    if (member.number == 0) return true;
    switch (named->role) {
      case Role::kLineId: {
        bool is_set;
        return rows_.ReadLineIdFeature(member, &line_id_, &is_set) && (!is_set || rows_.PutLineId(line_id_, row));
      }
      case Role::kLabel:
        return rows_.ReadFloatsFeature(member, *named, &floats_) && rows_.PutLabels(floats_, row);
      case Role::kWeight:
        return rows_.ReadFloatsFeature(member, *named, &floats_) &&
               rows_.PutWeight(floats_.empty() ? 1.0f : floats_[0], row);
      default:
        return rows_.PutFeature(member, list.id, row, named);
    }
  }

  RecordRows& rows_;
  std::vector<Span> lists_, raw_lists_, features_;
  std::vector<NamedColumn*> shared_, individual_;  // features that the record has
  int32_t batch_size_ = 0;
  uint32_t data_source_key_ = 0;
  LineIdRow line_id_;
  std::vector<float> floats_;
};

}  // namespace

std::unique_ptr<RecordDecoder> MakeExampleBatchDecoder(RecordRows* rows) {
  return std::make_unique<ExampleBatchDecoder>(rows);
}

}  // namespace millrace::records
