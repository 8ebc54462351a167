// The file format of a table: what a snapshot says of its entries, and how they fit into a table.
//
// A checked file (checked_file.h) with magic "MILLTBL2". Blocks are whole rows; a row is int64 fid, uint32 time stamp
// and the entry as it lies in memory (entry_layout.h): in `form=training` the weights and the state of each segment as
// float32, in `form=serving` the compressed weights. The count at the end is that of rows. The header's text:
//   format_version=2;table=movies;form=training;shard=0;num_shards=1;part=0;num_parts=1;newest_timestamp=0;segments=1;
//   segment.0.dim=16;segment.0.optimizer=adagrad;segment.0.state_floats=16;segment.0.compressor=fp32
// Shard: which of the parameter servers, whose entries have floormod(fid, num_shards) == shard; part: which of the
// files that this shard's entries are spread over.
#ifndef MILLRACE_EMBEDDING_TABLE_SNAPSHOT_H_
#define MILLRACE_EMBEDDING_TABLE_SNAPSHOT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/cc/embedding/base/checked_file.h"
#include "ops/cc/embedding/table/embedding_table.h"

namespace millrace {

struct SnapshotHeader {
  struct Segment {
    int dim = 0;
    std::string optimizer;
    int state_floats = 0;
    RuleConfig compressor;
  };
  std::string table;
  bool serving = false;  // rows hold compressed weights
  int shard = 0, num_shards = 1;
  int part = 0, num_parts = 1;
  uint32_t newest_timestamp = 0;
  std::vector<Segment> segments;

  static SnapshotHeader Of(const EmbeddingTable& table, bool with_state);
  std::string ToText() const;
  static Status Parse(const std::string& path, const std::string& text, SnapshotHeader* result);

  int dim() const;
  int state_floats() const;  // 0 in serving form
  // `<table>.shard-00000-of-00001.part-00000-of-00001.table`
  std::string FileName() const;
};

// Reads a table file row by block of rows.
class TableFileReader {
 public:
  static Status Open(const std::string& path, std::unique_ptr<TableFileReader>* result);

  const std::string& path() const { return file_->path(); }
  const SnapshotHeader& header() const { return header_; }
  int64_t row_bytes() const { return row_bytes_; }
  // Checks the next block; `rows` is empty at the end, where the number of rows is checked too.
  Status Next(EntryRows* rows);
  // Weights of a row and, in training form, its optimizer state: header().dim() + state_floats() floats.
  void ReadValues(const char* row, float* values) const;

  CheckedFileReader& file() { return *file_; }

 private:
  TableFileReader() = default;

  std::unique_ptr<CheckedFileReader> file_;
  SnapshotHeader header_;
  std::vector<std::unique_ptr<Compressor>> compressors_;
  int64_t row_bytes_ = 0;
  uint64_t rows_read_ = 0;
};

// Checks every byte of a table file; gives its number of rows.
Status VerifyTableFile(const std::string& path, SnapshotHeader* header, int64_t* rows);

Status CreateTableFile(const std::string& folder, const SnapshotHeader& header,
                       std::unique_ptr<CheckedFileWriter>* result);

// Turns rows of a file into entries of a table.
class RowConverter {
 public:
  // `segments_from`: for each segment of the table the one of the file that it continues, or -1 for a new one; empty:
  // one to one. InvalidArgument names table, segment, what was expected and what was found. A table without optimizer
  // takes any file of its dims; a serving file fits only such a table.
  static Status Make(const TableFileReader& reader, const EmbeddingTable& table, const std::vector<int>& segments_from,
                     std::unique_ptr<RowConverter>* result);

  // Appends the entries of `rows` that belong to shard `shard` of `num_shards`.
  void Convert(const EntryRows& rows, int64_t shard, int64_t num_shards, EntryRows* entries) const;

 private:
  RowConverter(const TableFileReader& reader, const EmbeddingTable& table) : reader_(reader), layout_(table.layout()) {}
  void ConvertRow(const char* row, char* converted, std::vector<float>* scratch) const;

  const TableFileReader& reader_;
  const EntryLayout& layout_;
  std::vector<int> segments_from_;
  std::vector<int> first_dims_, first_states_;  // of the file's segments, in the values of a row
  bool copies_ = false;                         // rows are entries as they are
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_TABLE_SNAPSHOT_H_
