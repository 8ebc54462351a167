#include "ops/cc/records/encode/record_encoder.h"

#include <cstddef>
#include <string_view>

#include "ops/cc/records/decode/feature_reader.h"
#include "ops/cc/records/wire/metadata_names.h"

namespace millrace::records {
namespace {

// The number of the oneof member that holds values of this type.
uint32_t MemberOf(ColumnType type) {
  constexpr uint32_t kNested = kFidV2Lists - kFidV2List;
  const uint32_t nested = type.depth == 2 ? kNested : 0;
  if (type.kind == Kind::kFidV1) return type.depth == 2 ? kFidV1Lists : kFidV1List;
  if (type.kind == Kind::kFid) return kFidV2List + nested;
  switch (type.value) {
    case Value::kFloat:
      return type.depth == 0 ? kFloatValue : kFloatList + nested;
    case Value::kDouble:
      return type.depth == 0 ? kDoubleValue : kDoubleList + nested;
    case Value::kBytes:
      return type.depth == 0 ? kBytesValue : kBytesList + nested;
    default:
      return type.depth == 0 ? kInt64Value : kInt64List + nested;
  }
}

void WriteScalar(const BatchColumn& column, int64_t row, ReverseWriter* out) {
  const ArrayReader& values = column.levels[0];
  const uint32_t number = MemberOf(column.type);
  switch (column.type.value) {
    case Value::kFloat:
      out->Fixed(*values.Numbers<uint32_t>(row));
      out->Tag(number, kFixed32);
      return;
    case Value::kDouble:
      out->Fixed(*values.Numbers<uint64_t>(row));
      out->Tag(number, kFixed64);
      return;
    case Value::kBytes:
      out->BytesField(number, values.Bytes(row));
      return;
    default:
      out->Varint(*values.Numbers<uint64_t>(row));
      out->Tag(number, kVarint);
  }
}

void WriteList(const BatchColumn& column, size_t level, int64_t i, uint32_t number, ReverseWriter* out) {
  const ArrayReader& lists = column.levels[level];
  WriteValues(column.levels[level + 1], lists.Begin(i), lists.End(i), column.type, number, out);
}

// The lists of a row of depth 2, each a message whose field 1 has the values.
void WriteLists(const BatchColumn& column, int64_t row, uint32_t number, ReverseWriter* out) {
  for (int64_t i = column.levels[0].End(row); i > column.levels[0].Begin(row); --i) {
    const size_t before = out->size();
    WriteList(column, 1, i - 1, 1, out);
    out->EndMessage(number, before);
  }
}

// The content of a Feature, or a RawFeature; none for a null.
void WriteFeature(const BatchColumn& column, int64_t row, ReverseWriter* out) {
  if (column.IsNull(row)) return;
  if (column.type.kind == Kind::kRaw) {
    WriteList(column, 0, row, 1, out);
    return;
  }
  if (column.type.depth == 0) {
    WriteScalar(column, row, out);
    return;
  }
  const size_t before = out->size();
  if (column.type.depth == 1) {
    WriteList(column, 0, row, 1, out);
  } else {
    WriteLists(column, row, 1, out);
  }
  out->EndMessage(MemberOf(column.type), before);
}

void WriteId(int32_t id, uint32_t number, ReverseWriter* out) {
  if (id == 0) return;
  out->Varint(static_cast<uint64_t>(static_cast<int64_t>(id)));
  out->Tag(number, kVarint);
}

// A Feature with a float_list of one value.
void WriteFloatFeature(float value, ReverseWriter* out) {
  const size_t feature = out->size();
  out->Fixed(value);
  out->EndMessage(1, feature);
  out->EndMessage(kFloatList, feature);
}

// An ExampleBatch carries metadata as features, too.
class ListWriter {
 public:
  ListWriter(int64_t begin, int64_t end, ReverseWriter* out) : begin_(begin), end_(end), out_(*out) {}

  // `write` writes the content of one row's feature.
  template <typename Write>
  void List(std::string_view name, int32_t id, uint32_t number, const Write& write) {
    const size_t list = out_.size();
    WriteId(id, 4, &out_);
    for (int64_t row = end_; row > begin_; --row) {
      const size_t feature = out_.size();
      write(row - 1);
      out_.EndMessage(2, feature);
    }
    out_.BytesField(1, SpanOf(name));
    out_.EndMessage(number, list);
  }

 private:
  const int64_t begin_, end_;
  ReverseWriter& out_;
};

void WriteLineIdFeature(const BatchReader& batch, int64_t row, ReverseWriter* out) {
  const size_t feature = out->size();
  batch.WriteLineId(row, out);
  if (out->size() == feature) return;
  out->EndMessage(1, feature);
  out->EndMessage(kBytesList, feature);
}

// The field of InstanceFeature that holds values of this type; 0 for none.
uint32_t InstanceFieldOf(ColumnType type) {
  const uint32_t nested = type.depth == 2 ? 4 : 0;
  if (type.kind == Kind::kFid) return 2 + nested;
  if (type.kind != Kind::kPlain || type.value == Value::kDouble) return 0;
  return (type.value == Value::kFloat ? 3 : type.value == Value::kBytes ? 5 : 4) + nested;
}

bool IsFlatFids(const BatchColumn& column) { return column.type.kind == Kind::kFidV1 && column.type.depth == 1; }

bool IsValues(const BatchColumn& column) {
  return column.name == kValueName && column.type == ColumnType{Value::kFloat, 1, Kind::kPlain};
}

void WriteInstanceFeature(const BatchColumn& column, int64_t row, ReverseWriter* out) {
  if (column.IsNull(row) || IsFlatFids(column) || IsValues(column)) return;
  const size_t feature = out->size();
  const uint32_t number = InstanceFieldOf(column.type);
  if (column.type.depth == 0) {
    WriteValues(column.levels[0], row, row + 1, column.type, number, out);
  } else if (column.type.depth == 1) {
    WriteList(column, 0, row, number, out);
  } else {
    WriteLists(column, row, number, out);
  }
  out->BytesField(1, column.name_bytes());
  out->EndMessage(9, feature);
}

// proto2 does not pack these.
void WriteFloats(const BatchColumn& column, int64_t row, uint32_t number, ReverseWriter* out) {
  if (column.IsNull(row)) return;
  for (int64_t i = column.levels[0].End(row); i > column.levels[0].Begin(row); --i) {
    out->Fixed(*column.levels[1].Numbers<uint32_t>(i - 1));
    out->Tag(number, kFixed32);
  }
}

void WriteFlatFids(const BatchReader& batch, int64_t row, ReverseWriter* out) {
  const size_t before = out->size();
  for (auto column = batch.features().rbegin(); column != batch.features().rend(); ++column) {
    if (!IsFlatFids(*column) || column->IsNull(row)) continue;
    const int64_t begin = column->levels[0].Begin(row), end = column->levels[0].End(row);
    if (begin == end) continue;
    const auto* const fids = column->levels[1].Numbers<uint8_t[8]>(begin);
    out->Bytes({fids[0], fids[end - begin]});
  }
  if (out->size() > before) out->EndMessage(1, before);
}

}  // namespace

void WriteExample(const BatchReader& batch, int64_t row, ReverseWriter* out) {
  if (const uint32_t key = batch.DataSourceKey(row); key != 0) {
    out->Varint(key);
    out->Tag(103, kVarint);
  }
  const BatchColumn* const weight_column = batch.weight();
  const bool has_weight = weight_column != nullptr && !weight_column->IsNull(row);
  const float weight = has_weight ? *weight_column->levels[0].Numbers<float>(row) : 1.0f;
  // The field has one form for 0 and "not set"; the feature has two.
  if (has_weight && weight != 0) {
    out->Fixed(weight);
    out->Tag(102, kFixed32);
  }
  if (batch.label() != nullptr && !batch.label()->IsNull(row)) WriteList(*batch.label(), 0, row, 101, out);
  const size_t line_id = out->size();
  batch.WriteLineId(row, out);
  if (out->size() > line_id) out->EndMessage(100, line_id);
  if (has_weight && weight == 0) {
    const size_t feature = out->size();
    WriteFloatFeature(weight, out);
    out->EndMessage(2, feature);
    out->BytesField(1, SpanOf(kWeightName));
    out->EndMessage(1, feature);
  }
  for (auto column = batch.features().rbegin(); column != batch.features().rend(); ++column) {
    if (column->IsNull(row)) continue;
    const size_t named = out->size();
    WriteId(column->id, 3, out);
    const size_t feature = out->size();
    WriteFeature(*column, row, out);
    out->EndMessage(2, feature);
    out->BytesField(1, column->name_bytes());
    out->EndMessage(column->type.kind == Kind::kRaw ? 2 : 1, named);
  }
}

void WriteExampleBatch(const BatchReader& batch, int64_t begin, int64_t end, ReverseWriter* out) {
  if (const uint32_t key = batch.DataSourceKey(begin); key != 0) {
    out->Varint(key);
    out->Tag(100, kVarint);
  }
  out->Varint(static_cast<uint64_t>(end - begin));
  out->Tag(3, kVarint);
  ListWriter lists(begin, end, out);
  if (const BatchColumn* const weight = batch.weight(); weight != nullptr) {
    lists.List(kWeightName, 0, 1, [&](int64_t row) {
      if (!weight->IsNull(row)) WriteFloatFeature(*weight->levels[0].Numbers<float>(row), out);
    });
  }
  if (batch.label() != nullptr) {
    lists.List(kLabelName, 0, 1, [&](int64_t row) { WriteFeature(*batch.label(), row, out); });
  }
  if (batch.has_line_id()) {
    lists.List(kLineIdName, 0, 1, [&](int64_t row) { WriteLineIdFeature(batch, row, out); });
  }
  for (auto column = batch.features().rbegin(); column != batch.features().rend(); ++column) {
    const uint32_t number = column->type.kind == Kind::kRaw ? 2 : 1;
    lists.List(column->name, column->id, number, [&](int64_t row) { WriteFeature(*column, row, out); });
  }
}

bool FitsInstance(const BatchReader& batch) {
  for (const BatchColumn& column : batch.features()) {
    if (!IsFlatFids(column) && InstanceFieldOf(column.type) == 0) return false;
  }
  return true;
}

void WriteInstance(const BatchReader& batch, int64_t row, ReverseWriter* out) {
  if (batch.HasDataSourceKey(row)) {
    out->Varint(batch.DataSourceKey(row));
    out->Tag(100, kVarint);
  }
  for (auto column = batch.features().rbegin(); column != batch.features().rend(); ++column) {
    WriteInstanceFeature(*column, row, out);
  }
  const size_t line_id = out->size();
  batch.WriteLineId(row, out);
  if (out->size() > line_id) out->EndMessage(5, line_id);
  if (batch.weight() != nullptr && !batch.weight()->IsNull(row)) {
    out->Fixed(*batch.weight()->levels[0].Numbers<float>(row));
    out->Tag(4, kFixed32);
  }
  if (batch.label() != nullptr) WriteFloats(*batch.label(), row, 3, out);
  for (const BatchColumn& column : batch.features()) {
    if (IsValues(column)) WriteFloats(column, row, 2, out);
  }
  WriteFlatFids(batch, row, out);
}

}  // namespace millrace::records
