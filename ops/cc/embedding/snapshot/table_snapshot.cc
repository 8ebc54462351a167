#include "ops/cc/embedding/snapshot/table_snapshot.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <utility>

namespace millrace {
namespace {

constexpr char kMagic[] = "MILLTBL2";
constexpr int kFormatVersion = 2;

// As printf's %.17g writes it, but with a point in every locale.
std::string NumberText(double number) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof(text), number, std::chars_format::general, 17).ptr};
}

std::string FiveDigits(const char* role, int index, int count) {
  char text[64];
  std::snprintf(text, sizeof(text), ".%s-%05d-of-%05d", role, index, count);
  return text;
}

// Takes a header's fields by name and remembers whether one is missing or no number.
class HeaderFields {
 public:
  Status Parse(const std::string& text) { return ParseKeyValues(text, &fields_); }

  std::string Text(const std::string& key) {
    const auto found = fields_.find(key);
    if (found == fields_.end()) complete_ = false;
    return found == fields_.end() ? "" : found->second;
  }
  int64_t Number(const std::string& key, int64_t low, int64_t high) {
    int64_t number = 0;
    if (ParseNumber(Text(key), &number) && number >= low && number <= high) return number;
    complete_ = false;
    return low;
  }
  RuleConfig Rule(const std::string& key) {
    RuleConfig rule{Text(key), {}};
    const std::string prefix = key + ".";
    for (auto field = fields_.lower_bound(prefix); field != fields_.end() && field->first.rfind(prefix, 0) == 0;
         ++field) {
      complete_ = ParseNumber(field->second, &rule.parameters[field->first.substr(prefix.size())]) && complete_;
    }
    return rule;
  }
  bool complete() const { return complete_; }

 private:
  std::map<std::string, std::string> fields_;
  bool complete_ = true;
};

}  // namespace

SnapshotHeader SnapshotHeader::Of(const EmbeddingTable& table, bool with_state) {
  SnapshotHeader header;
  header.table = table.config().name;
  header.serving = table.config().serving || !with_state;
  header.newest_timestamp = table.newest_timestamp();
  for (size_t s = 0; s < table.config().segments.size(); ++s) {
    const SegmentConfig& config = table.config().segments[s];
    const int state_floats = header.serving ? 0 : table.layout().segments()[s].state_floats;
    header.segments.push_back({config.dim, config.optimizer.kind, state_floats, config.compressor});
  }
  return header;
}

std::string SnapshotHeader::ToText() const {
  std::string text = "format_version=" + std::to_string(kFormatVersion) + ";table=" + table +
                     ";form=" + (serving ? "serving" : "training") + ";shard=" + std::to_string(shard) +
                     ";num_shards=" + std::to_string(num_shards) + ";part=" + std::to_string(part) +
                     ";num_parts=" + std::to_string(num_parts) +
                     ";newest_timestamp=" + std::to_string(newest_timestamp) +
                     ";segments=" + std::to_string(segments.size());
  for (size_t s = 0; s < segments.size(); ++s) {
    const std::string prefix = ";segment." + std::to_string(s) + ".";
    text += prefix + "dim=" + std::to_string(segments[s].dim) + prefix + "optimizer=" + segments[s].optimizer + prefix +
            "state_floats=" + std::to_string(segments[s].state_floats) + prefix +
            "compressor=" + segments[s].compressor.kind;
    for (const auto& [name, number] : segments[s].compressor.parameters) {
      text += prefix + "compressor." + name + "=" + NumberText(number);
    }
  }
  return text;
}

Status SnapshotHeader::Parse(const std::string& path, const std::string& text, SnapshotHeader* result) {
  HeaderFields fields;
  const Status parsed = fields.Parse(text);
  if (!parsed.ok()) return DataLoss(path + ", header: " + parsed.message());
  const std::string version = fields.Text("format_version");
  if (version != std::to_string(kFormatVersion)) {
    return DataLoss(path + ", header: format version '" + version + "' is not one that this build reads (" +
                    std::to_string(kFormatVersion) + ")");
  }
  *result = SnapshotHeader();
  result->table = fields.Text("table");
  result->serving = fields.Text("form") == "serving";
  result->num_shards = static_cast<int>(fields.Number("num_shards", 1, 1 << 20));
  result->shard = static_cast<int>(fields.Number("shard", 0, result->num_shards - 1));
  result->num_parts = static_cast<int>(fields.Number("num_parts", 1, 1 << 20));
  result->part = static_cast<int>(fields.Number("part", 0, result->num_parts - 1));
  result->newest_timestamp = static_cast<uint32_t>(fields.Number("newest_timestamp", 0, UINT32_MAX));
  const int64_t segments = fields.Number("segments", 1, 256);
  for (int64_t s = 0; s < segments && fields.complete(); ++s) {
    const std::string prefix = "segment." + std::to_string(s) + ".";
    result->segments.push_back(
        {static_cast<int>(fields.Number(prefix + "dim", 1, 1 << 20)), fields.Text(prefix + "optimizer"),
         static_cast<int>(fields.Number(prefix + "state_floats", 0, result->serving ? 0 : 1 << 22)),
         fields.Rule(prefix + "compressor")});
  }
  // Written anew it is the same text: no field is unknown, and no number has another meaning than it seems to have.
  if (!fields.complete() || int64_t{result->dim()} + result->state_floats() > EntryLayout::kMaxFloats || !IsTableName(result->table) ||
      result->ToText() != text) {
    return DataLoss(path + ", header: a field is missing or impossible");
  }
  return {};
}

int SnapshotHeader::dim() const {
  int dim = 0;
  for (const Segment& segment : segments) dim += segment.dim;
  return dim;
}

int SnapshotHeader::state_floats() const {
  int floats = 0;
  for (const Segment& segment : segments) floats += segment.state_floats;
  return floats;
}

std::string SnapshotHeader::FileName() const {
  return table + FiveDigits("shard", shard, num_shards) + FiveDigits("part", part, num_parts) + ".table";
}

Status TableFileReader::Open(const std::string& path, std::unique_ptr<TableFileReader>* result) {
  result->reset(new TableFileReader());
  TableFileReader& reader = **result;
  MILLRACE_RETURN_IF_ERROR(CheckedFileReader::Open(path, kMagic, &reader.file_));
  SnapshotHeader& header = reader.header_;
  MILLRACE_RETURN_IF_ERROR(SnapshotHeader::Parse(path, reader.file_->header(), &header));
  reader.row_bytes_ = RowHeader::kBytes + (header.serving ? 0 : 4 * (header.dim() + header.state_floats()));
  if (!header.serving) return {};
  for (const SnapshotHeader::Segment& segment : header.segments) {
    reader.compressors_.emplace_back();
    const Status made = MakeCompressor("compressor", segment.compressor, &reader.compressors_.back());
    if (!made.ok()) return DataLoss(path + ", header: " + made.message());
    reader.row_bytes_ += reader.compressors_.back()->Bytes(segment.dim);
  }
  return {};
}

Status TableFileReader::Next(EntryRows* rows) {
  rows->row_bytes = row_bytes_;
  const uint32_t block = file_->position().block;
  MILLRACE_RETURN_IF_ERROR(file_->Next(&rows->bytes));
  const std::string where = path() + ", block " + std::to_string(block);
  if (rows->bytes.size() % row_bytes_ != 0) return DataLoss(where + ": not a whole number of rows");
  rows_read_ += rows->size();
  if (rows->bytes.empty() && rows_read_ != file_->count()) {
    return DataLoss(path() + ", end: " + std::to_string(file_->count()) + " rows are announced, " +
                    std::to_string(rows_read_) + " are there");
  }
  return {};
}

void TableFileReader::ReadValues(const char* row, float* values) const {
  const char* payload = RowHeader::EntryOf(row);
  if (!header_.serving) {
    std::memcpy(values, payload, row_bytes_ - RowHeader::kBytes);
    return;
  }
  for (size_t s = 0; s < compressors_.size(); ++s) {
    const int dim = header_.segments[s].dim;
    compressors_[s]->Decode(reinterpret_cast<const uint8_t*>(payload), dim, values);
    payload += compressors_[s]->Bytes(dim);
    values += dim;
  }
}

Status VerifyTableFile(const std::string& path, SnapshotHeader* header, int64_t* rows) {
  std::unique_ptr<TableFileReader> reader;
  MILLRACE_RETURN_IF_ERROR(TableFileReader::Open(path, &reader));
  *header = reader->header();
  EntryRows block;
  *rows = 0;
  do {
    MILLRACE_RETURN_IF_ERROR(reader->Next(&block));
    *rows += block.size();
  } while (!block.bytes.empty());
  return {};
}

Status CreateTableFile(const std::string& folder, const SnapshotHeader& header,
                       std::unique_ptr<CheckedFileWriter>* result) {
  const std::string path = (std::filesystem::path(folder) / header.FileName()).string();
  return CheckedFileWriter::Create(path, kMagic, header.ToText(), result);
}

Status RowConverter::Make(const TableFileReader& reader, const EmbeddingTable& table,
                          const std::vector<int>& segments_from, std::unique_ptr<RowConverter>* result) {
  const SnapshotHeader& header = reader.header();
  const std::vector<SegmentConfig>& segments = table.config().segments;
  const auto differs = [&](const std::string& what, const std::string& expected, const std::string& found) {
    return InvalidArgument(reader.path() + ": table '" + header.table + "' has " + what + " " + found + ", expected " +
                           expected);
  };
  std::vector<int> from = segments_from;
  if (from.empty()) {
    for (size_t s = 0; s < segments.size(); ++s) from.push_back(static_cast<int>(s));
    if (header.segments.size() != segments.size()) {
      return differs("segments", std::to_string(segments.size()), std::to_string(header.segments.size()));
    }
  }
  if (from.size() != segments.size()) {
    return differs("segments in the map", std::to_string(segments.size()), std::to_string(from.size()));
  }
  for (size_t s = 0; s < segments.size(); ++s) {
    if (from[s] < 0) continue;
    const std::string place = "in segment " + std::to_string(s) + " ";
    if (from[s] >= static_cast<int>(header.segments.size())) {
      return differs("no segment", std::to_string(from[s]),
                     "in the file, it has " + std::to_string(header.segments.size()));
    }
    const SnapshotHeader::Segment& file = header.segments[from[s]];
    if (file.dim != segments[s].dim) {
      return differs(place + "dim", std::to_string(segments[s].dim), std::to_string(file.dim));
    }
    if (table.config().serving || segments[s].optimizer.kind == "none") continue;
    if (header.serving) return differs(place + "optimizer", segments[s].optimizer.kind, "none (weights only)");
    if (file.optimizer != segments[s].optimizer.kind) {
      return differs(place + "optimizer", segments[s].optimizer.kind, file.optimizer);
    }
    if (file.state_floats != table.layout().segments()[s].state_floats) {
      return differs(place + "state_floats", std::to_string(table.layout().segments()[s].state_floats),
                     std::to_string(file.state_floats));
    }
  }
  result->reset(new RowConverter(reader, table));
  RowConverter& converter = **result;
  converter.segments_from_ = from;
  int first_dim = 0, first_state = header.dim();
  for (const SnapshotHeader::Segment& segment : header.segments) {
    converter.first_dims_.push_back(first_dim);
    converter.first_states_.push_back(first_state);
    first_dim += segment.dim;
    first_state += segment.state_floats;
  }
  const bool one_to_one = segments_from.empty() && header.state_floats() == table.layout().state_floats();
  converter.copies_ = one_to_one && !header.serving && !table.config().serving;
  return {};
}

void RowConverter::Convert(const EntryRows& rows, int64_t shard, int64_t num_shards, EntryRows* entries) const {
  entries->row_bytes = layout_.row_bytes();
  std::vector<float> scratch;
  for (int64_t i = 0; i < rows.size(); ++i) {
    const char* row = rows.at(i);
    if (num_shards > 1 && ShardOf(RowHeader::Fid(row), num_shards) != shard) continue;
    if (copies_) {
      entries->bytes.insert(entries->bytes.end(), row, row + entries->row_bytes);
      continue;
    }
    entries->bytes.resize(entries->bytes.size() + entries->row_bytes);
    ConvertRow(row, entries->bytes.data() + entries->bytes.size() - entries->row_bytes, &scratch);
  }
}

void RowConverter::ConvertRow(const char* row, char* converted, std::vector<float>* scratch) const {
  const SnapshotHeader& header = reader_.header();
  scratch->resize(header.dim() + header.state_floats() + layout_.dim());
  float* values = scratch->data();
  float* weights = values + header.dim() + header.state_floats();
  reader_.ReadValues(row, values);
  RowHeader::Write(RowHeader::Fid(row), RowHeader::Timestamp(row), converted);
  char* entry = RowHeader::EntryOf(converted);
  for (size_t s = 0; s < segments_from_.size(); ++s) {
    const EntryLayout::Segment& segment = layout_.segments()[s];
    if (segments_from_[s] < 0) {
      segment.initializer.Fill(RowHeader::Fid(row), segment.first_dim, weights + segment.first_dim, segment.dim);
      continue;
    }
    std::memcpy(weights + segment.first_dim, values + first_dims_[segments_from_[s]], segment.dim * sizeof(float));
  }
  layout_.WriteWeights(weights, entry);
  if (layout_.serving()) return;
  layout_.InitState(entry);
  for (size_t s = 0; s < segments_from_.size(); ++s) {
    const EntryLayout::Segment& segment = layout_.segments()[s];
    if (segments_from_[s] < 0 || segment.state_floats == 0) continue;
    std::memcpy(EntryLayout::Weights(entry) + segment.first_state, values + first_states_[segments_from_[s]],
                segment.state_floats * sizeof(float));
  }
}

}  // namespace millrace
