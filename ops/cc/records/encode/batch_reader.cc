#include "ops/cc/records/encode/batch_reader.h"

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <utility>

#include "ops/cc/records/wire/metadata_names.h"

namespace millrace::records {
namespace {

constexpr std::string_view kProvenance[] = {kPartitionColumn, kOffsetColumn, kRowColumn};

int LineIdIndexOf(std::string_view column) {
  for (size_t i = 0; i < kLineIdFieldCount; ++i) {
    if (column == kLineIdFields[i].column) return static_cast<int>(i);
  }
  return -1;
}

uint64_t VarintOf(const ArrayReader& values, int64_t i, Value value) {
  // Protobuf writes a negative int32 with all 64 bits.
  if (value == Value::kInt32) return static_cast<uint64_t>(static_cast<int64_t>(*values.Numbers<int32_t>(i)));
  if (value == Value::kBool) return values.Bit(i) ? 1 : 0;
  return *values.Numbers<uint64_t>(i);
}

void WriteScalar(const BatchColumn& column, int64_t row, const LineIdField& field, ReverseWriter* out) {
  const ArrayReader& values = column.levels[0];
  if (field.wire == kBytes) {
    out->BytesField(field.number, values.Bytes(row));
    return;
  }
  if (field.wire == kVarint) {
    out->Varint(VarintOf(values, row, field.type.value));
  } else if (field.wire == kFixed32) {
    out->Fixed(*values.Numbers<uint32_t>(row));
  } else {
    out->Fixed(*values.Numbers<uint64_t>(row));
  }
  out->Tag(field.number, field.wire);
}

}  // namespace

bool BatchReader::Open(const ArrowSchema& schema, const ArrowArray& batch) {
  rows_ = batch.length;
  for (int64_t i = 0; i < schema.n_children; ++i) {
    if (!OpenColumn(*schema.children[i], *batch.children[i], batch.offset)) return false;
  }
  return true;
}

bool BatchReader::OpenColumn(const ArrowSchema& field, const ArrowArray& array, int64_t first) {
  BatchColumn column;
  column.name = field.name;
  if (std::find(std::begin(kProvenance), std::end(kProvenance), column.name) != std::end(kProvenance)) return true;
  if (!ParseField(field, &column.type, &column.id)) return false;
  column.levels.emplace_back(array, first);
  for (int level = 0; level < column.type.depth; ++level) column.levels.push_back(column.levels.back().Values());
  const ColumnType plain = {column.type.value, column.type.depth, Kind::kPlain};
  const int line_id = LineIdIndexOf(column.name);
  if (line_id >= 0) {
    const auto index = static_cast<size_t>(line_id);
    line_id_.push_back({index, std::move(column)});
    return plain == kLineIdFields[index].type;
  }
  if (column.name == kLabelName) {
    label_ = std::move(column);
    return plain == ColumnType{Value::kFloat, 1, Kind::kPlain};
  }
  if (column.name == kWeightColumn) {
    weight_ = std::move(column);
    return plain == ColumnType{Value::kFloat, 0, Kind::kPlain};
  }
  if (column.name == kDataSourceKeyColumn) {
    data_source_key_ = std::move(column);
    return plain == ColumnType{Value::kInt64, 0, Kind::kPlain};
  }
  const bool has_name = column.name != kLineIdName && column.name != kWeightName;
  const Value value = column.type.value;
  features_.push_back(std::move(column));
  return has_name && value != Value::kInt32 && value != Value::kBool && value != Value::kText;
}

bool BatchReader::HasDataSourceKey(int64_t row) const {
  return !data_source_key_.levels.empty() && !data_source_key_.IsNull(row);
}

uint32_t BatchReader::DataSourceKey(int64_t row) const {
  return HasDataSourceKey(row) ? static_cast<uint32_t>(*data_source_key_.levels[0].Numbers<int64_t>(row)) : 0;
}

void BatchReader::WriteLineId(int64_t row, ReverseWriter* out) const {
  for (auto each = line_id_.rbegin(); each != line_id_.rend(); ++each) {
    const BatchColumn& column = each->column;
    const LineIdField& field = kLineIdFields[each->field];
    if (column.IsNull(row)) continue;
    if (field.type.depth == 0) {
      WriteScalar(column, row, field, out);
    } else {
      WriteValues(column.levels[1], column.levels[0].Begin(row), column.levels[0].End(row), field.type, field.number,
                  out);
    }
  }
}

void WriteValues(const ArrayReader& values, int64_t begin, int64_t end, ColumnType type, uint32_t number,
                 ReverseWriter* out) {
  if (begin == end) return;
  if (type.has_bytes()) {
    for (int64_t i = end; i > begin; --i) out->BytesField(number, values.Bytes(i - 1));
    return;
  }
  const size_t before = out->size();
  const bool is_fid = type.kind == Kind::kFid || type.kind == Kind::kFidV1;
  if (type.value == Value::kFloat) {
    const auto* const floats = values.Numbers<uint8_t[4]>(begin);
    out->Bytes({floats[0], floats[end - begin]});
  } else if (type.value == Value::kDouble || is_fid) {
    const auto* const numbers = values.Numbers<uint8_t[8]>(begin);
    out->Bytes({numbers[0], numbers[end - begin]});
  } else {
    for (int64_t i = end; i > begin; --i) out->Varint(VarintOf(values, i - 1, type.value));
  }
  out->EndMessage(number, before);
}

}  // namespace millrace::records
