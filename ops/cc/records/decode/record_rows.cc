#include "ops/cc/records/decode/record_rows.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "ops/cc/records/arrow/arrow_export.h"
#include "ops/cc/records/wire/metadata_names.h"

namespace millrace::records {
namespace {

constexpr ColumnType kFloats = {Value::kFloat, 1, Kind::kPlain};
constexpr ColumnType kFloatType = {Value::kFloat, 0, Kind::kPlain};
constexpr ColumnType kInt64Type = {Value::kInt64, 0, Kind::kPlain};
constexpr ColumnType kInt32Type = {Value::kInt32, 0, Kind::kPlain};
constexpr ColumnType kTextType = {Value::kText, 0, Kind::kPlain};
constexpr ColumnType kBytesType = {Value::kBytes, 1, Kind::kPlain};

// The columns of a batch, in order.
struct BatchExport {
  void Add(const std::string& name, int32_t id, bool nullable, Column* column, bool is_shared = false) {
    fields.emplace_back();
    ExportField(name, column->type(), id, nullable, &fields.back(), is_shared);
    arrays.emplace_back();
    column->Export(&arrays.back());
  }
  void Finish(int64_t rows, ArrowSchema* schema, ArrowArray* array) {
    ExportStruct(std::move(fields), schema);
    std::vector<Buffer> no_validity(1);
    ExportArray(rows, 0, std::move(no_validity), std::move(arrays), array);
  }

  std::vector<ArrowSchema> fields;
  std::vector<ArrowArray> arrays;
};

}  // namespace

std::string Quoted(std::string_view name) {
  constexpr size_t kMaxBytes = 64;
  if (name.size() <= kMaxBytes) return "'" + std::string(name) + "'";
  size_t end = kMaxBytes;
  while ((static_cast<uint8_t>(name[end]) & 0xC0) == 0x80) --end;
  return "'" + std::string(name.substr(0, end)) + "...'";
}

RecordRows::RecordRows(const DecodeOptions& options)
    : options_(options),
      reader_(options.fids_as_is),
      label_(kFloats),
      weight_(kFloatType),
      data_source_key_(kInt64Type),
      partition_(kInt64Type),
      offset_(kInt64Type),
      row_(kInt32Type),
      refused_(kInt64Type),
      refusal_reason_(kTextType),
      refusal_detail_(kTextType),
      scratch_(kFloats) {
  for (size_t i = 0; i < kLineIdFieldCount && options.all_line_id_fields; ++i) {
    if ((options.line_id_fields >> i & 1) != 0) line_id_[i] = std::make_unique<Column>(kLineIdFields[i].type);
  }
}

void RecordRows::LimitCells(int64_t records, int64_t bytes) {
  records_ = records;
  max_cells_ = kMinCells + bytes * (table_.infers() ? kCellsPerByte : kCellsPerByteOfSchema);
}

void RecordRows::BeginRecord(const Source& source) {
  table_.BeginRecord();
  rows_ = 0;
  repeated_bytes_left_ = kMaxRecordBytes;
  line_id_before_ = 0;
  for (size_t i = 0; i < kLineIdFieldCount; ++i) line_id_before_ |= (line_id_[i] != nullptr ? 1u : 0u) << i;
  const bool is_same = source.partition == source_.partition && source.offset == source_.offset;
  rows_before_ = std::max(is_same ? rows_before_ : 0, source.index);
  source_ = source;
}

bool RecordRows::SetRows(int64_t rows) {
  rows_ = rows;
  const int64_t room = kRowsPerOffset * options_.row_stride;
  if (rows <= room - rows_before_) {
    return HasCells(start_ + rows, table_.width()) || FailCells(nullptr, start_ + rows, table_.width());
  }
  return Fail(reason::kTooManyRows, nullptr,
              std::to_string(rows_before_ + rows) + " rows of one source record, at most " + std::to_string(room));
}

void RecordRows::Commit() {
  for (int64_t i = 0; i < rows_; ++i, ++rows_before_) {
    if (source_.data_source_key != 0) AddDataSourceKey(source_.data_source_key, i);
    partition_.Add(source_.partition);
    offset_.Add(source_.offset + rows_before_ / kRowsPerOffset);
    row_.Add(static_cast<int32_t>(rows_before_ % kRowsPerOffset));
    for (Column* const column : {&partition_, &offset_, &row_}) column->EndRow();
  }
  start_ += rows_;
}

void RecordRows::Rollback(int64_t index) {
  table_.Rollback(start_);
  for (Column* const column : {&label_, &weight_, &data_source_key_}) column->TruncateTo(start_);
  for (size_t i = 0; i < kLineIdFieldCount; ++i) {
    if ((line_id_before_ >> i & 1) == 0) line_id_[i] = nullptr;
    if (line_id_[i] != nullptr) line_id_[i]->TruncateTo(start_);
  }
  refused_.Add(index);
  refusal_reason_.AddBytes(SpanOf(reason_));
  refusal_detail_.AddBytes(SpanOf(detail_));
  for (Column* const column : {&refused_, &refusal_reason_, &refusal_detail_}) column->EndRow();
}

bool RecordRows::Fail(const char* reason, const uint8_t* at, const std::string& what) {
  reason_ = reason;
  detail_ = what;
  const Span record = source_.record;
  if (at != nullptr && at >= record.begin && at <= record.end) {
    detail_ += " at byte " + std::to_string(at - record.begin);
  }
  return false;
}

bool RecordRows::FailCells(const uint8_t* at, int64_t rows, int64_t columns) {
  return Fail(reason::kTooManyFeatures, at,
              std::to_string(rows) + " rows x " + std::to_string(columns) + " features in one block, at most " +
                  std::to_string(max_cells_) + " cells for records of this size");
}

bool RecordRows::FailName(NameProblem problem) {
  switch (problem) {
    case NameProblem::kTooMany:
      return Fail(reason::kTooManyFeatures, name_at_,
                  "more than " + std::to_string(FeatureTable::kMaxNames) + " names of features");
    case NameProblem::kHasNul:
      return Fail(reason::kReservedName, name_at_, "name of a feature: holds a NUL");
    default:
      return Fail(reason::kNotUtf8, name_at_, "name of a feature: not UTF-8");
  }
}

NamedColumn* RecordRows::FindFeature(Span name) {
  NameProblem problem = NameProblem::kNone;
  name_at_ = name.begin;
  NamedColumn* const named = table_.Find(name.text(), &problem);
  if (named == nullptr) {
    FailName(problem);
    return nullptr;
  }
  if (named->role == Role::kMetadata) {
    Fail(reason::kReservedName, name.begin, "feature " + Quoted(named->name) + ": the name of a metadata column");
    return nullptr;
  }
  if (named->record == table_.record() && named->role != Role::kSkipped) {
    Fail(reason::kDuplicateFeature, name.begin, "feature " + Quoted(named->name) + ": given twice");
    return nullptr;
  }
  named->record = table_.record();
  return named;
}

bool RecordRows::WrongType(const std::string& name, const std::string& expected, ColumnType found) {
  return Fail(reason::kWrongType, name_at_,
              "feature " + Quoted(name) + ": expected " + expected + ", found " + NameOf(found));
}

Column* RecordRows::BeginFeature(ColumnType type, int32_t id, int64_t row, NamedColumn* named) {
  if (named->column == nullptr) {
    // Counted with the records to come, so that a name too many is refused and not those that follow it.
    const int64_t rows = std::max(start_ + rows_, records_);
    if (!HasCells(rows, table_.width() + 1)) {
      FailCells(name_at_, rows, table_.width() + 1);
      return nullptr;
    }
    table_.Create(named, type, id);
  } else if (named->column->type() != type) {
    WrongType(named->name, NameOf(named->column->type()), type);
    return nullptr;
  }
  named->column->PadTo(start_ + row);
  return named->column.get();
}

bool RecordRows::End(bool fits) {
  return fits || Fail(reason::kTooLarge, nullptr, "more values than a block can hold");
}

bool RecordRows::EndFeature(NamedColumn* named) { return End(named->column->EndRow()); }

bool RecordRows::FailFeature(const NamedColumn& named) {
  if (reader_.reserved_bit()) {
    return Fail(reason::kOutOfRange, reader_.at(), "feature " + Quoted(named.name) + ": a fid v2 with bit 63 set");
  }
  return Fail(reason::kMalformed, reader_.at(), "feature " + Quoted(named.name) + ": malformed");
}

bool RecordRows::PutFeature(const Member& member, int32_t id, int64_t row, NamedColumn* named) {
  if (member.number == 0) return true;
  Column* const column = BeginFeature(reader_.TypeOf(member.number), id, row, named);
  if (column == nullptr) return false;
  return reader_.AddTo(member, column) ? End(column->EndRow()) : FailFeature(*named);
}

bool RecordRows::PutRawFeature(Span message, int32_t id, int64_t row, NamedColumn* named) {
  if (named->role == Role::kSkipped) return true;
  if (named->role != Role::kFeature) {
    return Fail(reason::kReservedName, name_at_, "raw feature " + Quoted(named->name) + ": a reserved name");
  }
  bool has_values;
  if (!reader_.FirstBytes(message, &first_bytes_, &has_values)) return FailFeature(*named);
  if (!has_values) return true;
  Column* const column = BeginFeature({Value::kBytes, 1, Kind::kRaw}, id, row, named);
  if (column == nullptr) return false;
  return reader_.AddList(message, Element::kBytes, column) ? EndFeature(named) : FailFeature(*named);
}

bool RecordRows::RepeatFeature(int64_t times, NamedColumn* named) {
  if (named->column->RepeatRow(times, &repeated_bytes_left_)) return true;
  return Fail(reason::kTooLarge, name_at_, "feature " + Quoted(named->name) + ": too large to repeat for every row");
}

bool RecordRows::MergeLineId(Span message, LineIdRow* line_id) {
  if (line_id->Merge(message)) return true;
  const std::string field =
      line_id->bad_text() != nullptr ? std::string(line_id->bad_text()) + ": not UTF-8" : "malformed";
  return Fail(reason::kMalformedLineId, line_id->at(), "line id: " + field);
}

bool RecordRows::PutLineId(const LineIdRow& line_id, int64_t row) {
  const uint32_t wanted = line_id.present() & options_.line_id_fields;
  for (size_t i = 0; wanted >> i != 0; ++i) {
    if ((wanted >> i & 1) == 0) continue;
    if (line_id_[i] == nullptr) line_id_[i] = std::make_unique<Column>(kLineIdFields[i].type);
    line_id_[i]->PadTo(start_ + row);
    if (!End(line_id.AddTo(i, line_id_[i].get()))) return false;
  }
  return true;
}

bool RecordRows::PutLabels(const std::vector<float>& labels, int64_t row) {
  if (labels.empty()) return true;
  label_.PadTo(start_ + row);
  std::memcpy(label_.Extend(labels.size()), labels.data(), labels.size() * sizeof(float));
  return End(label_.EndRow());
}

bool RecordRows::PutWeight(float weight, int64_t row) {
  weight_.PadTo(start_ + row);
  weight_.Add(weight);
  return End(weight_.EndRow());
}

bool RecordRows::PutDataSourceKey(uint32_t key, int64_t row) {
  return source_.data_source_key != 0 || End(AddDataSourceKey(key, row));
}

bool RecordRows::AddDataSourceKey(uint32_t key, int64_t row) {
  data_source_key_.PadTo(start_ + row);
  data_source_key_.Add(static_cast<int64_t>(key));
  return data_source_key_.EndRow();
}

bool RecordRows::ReadLineIdFeature(const Member& member, LineIdRow* line_id, bool* is_set) {
  *is_set = false;
  if (member.number == 0) return true;
  if (member.number != kBytesList) return WrongType(kLineIdName, NameOf(kBytesType), reader_.TypeOf(member.number));
  if (!reader_.FirstBytes(member.bytes, &first_bytes_, is_set)) {
    return Fail(reason::kMalformedLineId, reader_.at(), "feature '__LINE_ID__': malformed");
  }
  line_id->Clear();
  return !*is_set || MergeLineId(first_bytes_, line_id);
}

bool RecordRows::ReadFloatsFeature(const Member& member, const NamedColumn& named, std::vector<float>* floats) {
  floats->clear();
  if (member.number != kFloatList) return WrongType(named.name, NameOf(kFloats), reader_.TypeOf(member.number));
  scratch_.TruncateTo(0);
  if (!reader_.AddTo(member, &scratch_)) return FailFeature(named);
  floats->assign(scratch_.numbers<float>(), scratch_.numbers<float>() + scratch_.elements());
  return true;
}

void RecordRows::Export(ArrowSchema* schema, ArrowArray* array) {
  BatchExport batch;
  for (const auto& named : table_.columns()) {
    if (named->column == nullptr) continue;
    named->column->PadTo(start_);
    batch.Add(named->name, named->id, true, named->column.get(), named->is_shared && !named->is_individual);
  }
  label_.PadTo(start_);
  weight_.PadTo(start_);
  data_source_key_.PadTo(start_);
  batch.Add(kLabelName, 0, true, &label_);
  batch.Add(kWeightColumn, 0, true, &weight_);
  for (size_t i = 0; i < kLineIdFieldCount; ++i) {
    if (line_id_[i] == nullptr) continue;
    line_id_[i]->PadTo(start_);
    batch.Add(kLineIdFields[i].column, 0, true, line_id_[i].get());
  }
  batch.Add(kDataSourceKeyColumn, 0, true, &data_source_key_);
  batch.Add(kPartitionColumn, 0, true, &partition_);
  batch.Add(kOffsetColumn, 0, true, &offset_);
  batch.Add(kRowColumn, 0, true, &row_);
  batch.Finish(start_, schema, array);
}

void RecordRows::ExportRefusals(ArrowSchema* schema, ArrowArray* array) {
  const int64_t rows = refused_.rows();
  BatchExport batch;
  batch.Add("row", 0, false, &refused_);
  batch.Add("reason", 0, false, &refusal_reason_);
  batch.Add("detail", 0, false, &refusal_detail_);
  batch.Finish(rows, schema, array);
}

}  // namespace millrace::records
