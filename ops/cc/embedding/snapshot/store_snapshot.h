// Snapshots of a whole store: taken at one moment while it trains on, restored on any number of shards.
#ifndef MILLRACE_EMBEDDING_STORE_SNAPSHOT_H_
#define MILLRACE_EMBEDDING_STORE_SNAPSHOT_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ops/cc/embedding/table/embedding_store.h"

namespace millrace {

// What the age of entries is counted back from.
struct CutTime {
  int64_t watermark = -1;   // Unix seconds; below 0: each table's newest time stamp, but not beyond `now`
  uint32_t now = UINT32_MAX;  // this machine's clock: a stamp of the future must not make everything else expire
};

// What was written of a cut; the numbers are of each table, in the order of the store.
struct CutReport {
  std::vector<std::string> files;  // the paths that were published
  std::vector<int64_t> written;    // entries
  std::vector<int64_t> expired;    // entries that were left out
};

struct SaveOptions {
  bool with_state = true;         // else weights only, compressed as the table's segments say
  int shard = 0, num_shards = 1;  // which of the parameter servers this store is
};

struct RestoreOptions {
  int shard = 0, num_shards = 1;  // keeps the fids with floormod(fid, num_shards) == shard
  // Tables without files stay empty, and files of unknown tables are passed over.
  bool partial = false;
  // By table: for each of its segments the one of the files that it continues, or -1 for a new one.
  std::map<std::string, std::vector<int>> segments_from;
};

// Files that a table of so many entries is written into: one per million, at most four.
int PartsOf(int64_t entries);
// First of the lock shards (or of any `units`) that part `part` of `parts` covers; parts differ by one at most.
int FirstOfPart(int units, int part, int parts);

// The content of all tables of a store at one moment. Training goes on: an entry is copied before its first change
// until it is written. One cut at a time for a store.
class StoreCut {
 public:
  // Locks all tables for well under a millisecond per million entries. FailedPrecondition while another cut is open.
  static Status Begin(std::shared_ptr<EmbeddingStore> store, const CutTime& time, std::unique_ptr<StoreCut>* result);
  ~StoreCut();

  const EmbeddingStore& store() const { return *store_; }

  // Writes one file per part of a table and one per filter into `folder` (created), on its own threads of low priority.
  // Expired entries are left out. To be called once.
  Status Write(const std::string& folder, const SaveOptions& options, CutReport* report);

 private:
  struct TableState;
  struct Part;
  StoreCut(std::shared_ptr<EmbeddingStore> store, const CutTime& time);
  Status WritePart(Part* part) const;
  Status WriteFilter(const std::string& folder, const SaveOptions& options, size_t table,
                     std::vector<std::string>* files);

  const std::shared_ptr<EmbeddingStore> store_;
  std::vector<TableState> states_;
};

// Replaces the content of the tables by that of files. Every byte is checked before the first entry changes: the files
// of a table must be a whole set and fit its segments. The state of a filter is restored where shard and number of
// shards are those of its file; else the filter starts empty, and `notes` says so.
Status RestoreStore(EmbeddingStore* store, const std::vector<std::string>& files, const RestoreOptions& options,
                    std::vector<std::string>* notes);

// Writes the entries of table files anew for another number of shards, one file per shard and table, without a store.
Status ReshardFiles(const std::vector<std::string>& files, const std::string& folder, int num_shards,
                    std::vector<std::string>* written);

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_STORE_SNAPSHOT_H_
