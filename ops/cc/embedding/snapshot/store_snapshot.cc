#include "ops/cc/embedding/snapshot/store_snapshot.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <functional>
#include <new>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

#include "ops/cc/embedding/snapshot/table_snapshot.h"

namespace millrace {
namespace {

constexpr char kFilterMagic[] = "MILLFLT1";
constexpr char kFilterSuffix[] = ".filter";
constexpr int64_t kEntriesPerPart = 1'000'000;  // a part is one file, and one thread's work
constexpr int kMaxParts = 4;                    // of a table: no more than threads that write them
constexpr int kMostThreads = 4;                 // that write or read, beside those of the trainer
constexpr int kPagesPerDrain = 8;               // of a cut, after which its kept rows are taken, so that few pile up
constexpr size_t kBlockBytes = size_t{1} << 20;  // under one checksum, and what a reader holds in memory at once
constexpr int kNiceness = 10;                    // training's threads have 0, and go first

// A thread that an exception leaves ends the process.
Status RunTask(const std::function<Status(int64_t)>& task, int64_t i) {
  try {
    return task(i);
  } catch (const TableFull& full) {
    return ResourceExhausted(full.what());
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("out of memory");
  } catch (const std::exception& problem) {
    return Internal(problem.what());
  } catch (...) {
    return Internal("an exception of unknown type");
  }
}

// Runs tasks 0 to count - 1 on so many threads, or fewer where no more can start; the first failure in their order is
// returned.
Status RunOnThreads(int threads, int niceness, int64_t count, const std::function<Status(int64_t)>& task) {
  std::atomic<int64_t> next{0};
  std::vector<Status> results(count);
  const auto work = [&] {
    for (int64_t i = next++; i < count; i = next++) results[i] = RunTask(task, i);
  };
  const auto work_nicely = [&] {
#ifdef SYS_gettid
    ::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)), niceness);
#endif
    work();
  };
  std::vector<std::thread> running;
  running.reserve(threads);  // an exception with threads under way would end the process
  try {
    for (int64_t t = 0; t < std::min<int64_t>(threads, count); ++t) running.emplace_back(work_nicely);
  } catch (const std::system_error&) {  // at the limit of threads
    work();
  }
  for (std::thread& thread : running) thread.join();
  for (const Status& result : results) MILLRACE_RETURN_IF_ERROR(result);
  return {};
}

// Few and of low priority: training comes first.
Status RunInBackground(int64_t count, const std::function<Status(int64_t)>& task) {
  const int quarter = static_cast<int>(std::thread::hardware_concurrency()) / 4;
  return RunOnThreads(std::clamp(quarter, 1, kMostThreads), kNiceness, count, task);
}

Status RunInParallel(int64_t count, const std::function<Status(int64_t)>& task) {
  return RunOnThreads(kMostThreads, 0, count, task);
}

Status CreateFolder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  return error ? Internal("cannot create folder " + folder + ": " + error.message()) : Status();
}

bool IsFilterFile(const std::string& path) {
  const std::string suffix = kFilterSuffix;
  return path.size() > suffix.size() && path.compare(path.size() - suffix.size(), suffix.size(), suffix) == 0;
}

std::string FilterHeader(const std::string& table, int shard, int num_shards) {
  return "format_version=1;table=" + table + ";shard=" + std::to_string(shard) +
         ";num_shards=" + std::to_string(num_shards);
}

// The files of a store, table by table, checked to be whole.
struct FileSet {
  std::map<std::string, std::vector<std::string>> tables;
  std::map<std::string, std::vector<std::string>> filters;
  std::map<std::string, uint32_t> newest_timestamps;  // of the tables
};

// What all files of a table have in common.
std::string CommonText(SnapshotHeader header) {
  header.shard = header.part = 0;
  header.num_parts = 1;
  header.newest_timestamp = 0;
  return header.ToText();
}

Status CheckComplete(const std::string& table, const std::vector<SnapshotHeader>& headers) {
  const auto fail = [&](const std::string& problem) {
    return InvalidArgument("the files of table '" + table + "' are no whole snapshot: " + problem);
  };
  std::map<int, std::pair<int, std::set<int>>> parts_of_shard;  // how many there should be, and which there are
  for (const SnapshotHeader& header : headers) {
    if (header.num_shards != headers[0].num_shards) {
      return fail("some are of " + std::to_string(headers[0].num_shards) + " shards, some of " +
                  std::to_string(header.num_shards));
    }
    if (CommonText(header) != CommonText(headers[0])) return fail("they differ in form or segments");
    auto& [parts, present] =
        parts_of_shard.emplace(header.shard, std::pair(header.num_parts, std::set<int>())).first->second;
    if (header.num_parts != parts) return fail("shard " + std::to_string(header.shard) + " is there twice");
    if (!present.insert(header.part).second) {
      return fail("part " + std::to_string(header.part) + " of shard " + std::to_string(header.shard) +
                  " is there twice");
    }
  }
  for (int shard = 0; shard < headers[0].num_shards; ++shard) {
    const auto found = parts_of_shard.find(shard);
    if (found == parts_of_shard.end()) return fail("shard " + std::to_string(shard) + " is missing");
    if (static_cast<int>(found->second.second.size()) != found->second.first) {
      return fail("a part of shard " + std::to_string(shard) + " is missing");
    }
  }
  return {};
}

Status Gather(const std::vector<std::string>& files, FileSet* result) {
  std::map<std::string, std::vector<SnapshotHeader>> headers;
  for (const std::string& path : files) {
    if (IsFilterFile(path)) {
      std::unique_ptr<CheckedFileReader> reader;
      MILLRACE_RETURN_IF_ERROR(CheckedFileReader::Open(path, kFilterMagic, &reader));
      std::map<std::string, std::string> fields;
      const Status parsed = ParseKeyValues(reader->header(), &fields);
      if (!parsed.ok()) return DataLoss(path + ", header: " + parsed.message());
      result->filters[fields["table"]].push_back(path);
      continue;
    }
    std::unique_ptr<TableFileReader> reader;
    MILLRACE_RETURN_IF_ERROR(TableFileReader::Open(path, &reader));
    result->tables[reader->header().table].push_back(path);
    headers[reader->header().table].push_back(reader->header());
    uint32_t& newest = result->newest_timestamps[reader->header().table];
    newest = std::max(newest, reader->header().newest_timestamp);
  }
  for (const auto& [table, of_table] : headers) MILLRACE_RETURN_IF_ERROR(CheckComplete(table, of_table));
  return {};
}

Status ReadFilter(const std::string& path, std::string* header, std::string* state) {
  std::unique_ptr<CheckedFileReader> reader;
  MILLRACE_RETURN_IF_ERROR(CheckedFileReader::Open(path, kFilterMagic, &reader));
  *header = reader->header();
  std::vector<char> block;
  state->clear();
  do {
    MILLRACE_RETURN_IF_ERROR(reader->Next(&block));
    state->append(block.data(), block.size());
  } while (!block.empty());
  return {};
}

// One restore: what fits where is found out and checked first, then the tables are filled.
class Restorer {
 public:
  Restorer(EmbeddingStore* store, const RestoreOptions& options, std::vector<std::string>* notes)
      : store_(*store), options_(options), notes_(*notes) {}

  Status Run(const std::vector<std::string>& files) {
    MILLRACE_RETURN_IF_ERROR(Gather(files, &files_));
    MILLRACE_RETURN_IF_ERROR(Assign());
    MILLRACE_RETURN_IF_ERROR(RunInParallel(tasks_.size(), [&](int64_t i) { return Check(tasks_[i]); }));
    MILLRACE_RETURN_IF_ERROR(ReadFilters());
    for (const auto& table : store_.tables()) table->Clear();
    MILLRACE_RETURN_IF_ERROR(RunInParallel(tasks_.size(), [&](int64_t i) { return Load(tasks_[i]); }));
    for (const auto& [table, state] : filter_states_) MILLRACE_RETURN_IF_ERROR(table->filter()->Restore(state));
    return {};
  }

 private:
  struct Task {
    std::string path;
    EmbeddingTable* table;
  };

  // Finds the table of each file.
  Status Assign() {
    for (const auto& [name, paths] : files_.tables) {
      EmbeddingTable* table = nullptr;
      const Status known = store_.Find(name, &table);
      if (!known.ok() && !options_.partial) return InvalidArgument(paths[0] + ": " + known.message());
      if (!known.ok()) notes_.push_back("table '" + name + "' of the files is not one of the store's: passed over");
      for (const std::string& path : paths) {
        if (table != nullptr) tasks_.push_back({path, table});
      }
    }
    for (const auto& table : store_.tables()) {
      if (files_.tables.count(table->config().name) != 0) continue;
      if (!options_.partial) {
        return InvalidArgument("no file for table '" + table->config().name + "' of store '" + store_.name() + "'");
      }
      notes_.push_back("table '" + table->config().name + "' has no file: it starts empty");
    }
    return {};
  }

  std::vector<int> SegmentsFrom(const EmbeddingTable& table) const {
    const auto found = options_.segments_from.find(table.config().name);
    return found == options_.segments_from.end() ? std::vector<int>() : found->second;
  }

  Status Check(const Task& task) const {
    SnapshotHeader header;
    int64_t rows = 0;
    MILLRACE_RETURN_IF_ERROR(VerifyTableFile(task.path, &header, &rows));
    std::unique_ptr<TableFileReader> reader;
    MILLRACE_RETURN_IF_ERROR(TableFileReader::Open(task.path, &reader));
    std::unique_ptr<RowConverter> converter;
    return RowConverter::Make(*reader, *task.table, SegmentsFrom(*task.table), &converter);
  }

  Status ReadFilters() {
    for (const auto& table : store_.tables()) {
      if (table->filter() == nullptr) continue;
      const std::string name = table->config().name;
      const std::string wanted = FilterHeader(name, options_.shard, options_.num_shards);
      bool found = false;
      for (const std::string& path : files_.filters[name]) {
        std::string header, state;
        MILLRACE_RETURN_IF_ERROR(ReadFilter(path, &header, &state));
        if (header != wanted) continue;
        found = true;
        filter_states_.emplace_back(table.get(), state);
      }
      if (!found) {
        notes_.push_back("the occurrence filter of table '" + name + "' has no state for this shard: it starts empty");
      }
    }
    // A filter judges its state only by restoring it: a scratch filter does that before any table changes.
    for (const auto& [table, state] : filter_states_) {
      std::unique_ptr<OccurrenceFilter> scratch;
      MILLRACE_RETURN_IF_ERROR(MakeFilter("filter", table->config().filter, table->config().thresholds, &scratch));
      MILLRACE_RETURN_IF_ERROR(scratch->Restore(state));
    }
    return {};
  }

  Status Load(const Task& task) const {
    std::unique_ptr<TableFileReader> reader;
    MILLRACE_RETURN_IF_ERROR(TableFileReader::Open(task.path, &reader));
    std::unique_ptr<RowConverter> converter;
    MILLRACE_RETURN_IF_ERROR(RowConverter::Make(*reader, *task.table, SegmentsFrom(*task.table), &converter));
    task.table->NoteTimestamp(reader->header().newest_timestamp);
    EntryRows rows, entries;
    while (true) {
      MILLRACE_RETURN_IF_ERROR(reader->Next(&rows));
      if (rows.bytes.empty()) return {};
      entries.bytes.clear();
      converter->Convert(rows, options_.shard, options_.num_shards, &entries);
      task.table->Import(entries.bytes.data(), entries.size(), RunInline);
    }
  }

  EmbeddingStore& store_;
  const RestoreOptions& options_;
  std::vector<std::string>& notes_;
  FileSet files_;
  std::vector<Task> tasks_;
  std::vector<std::pair<EmbeddingTable*, std::string>> filter_states_;
};

// The order in a page of the index differs from process to process; that in files must not.
void SortById(EntryRows* rows) {
  std::vector<std::pair<int64_t, int64_t>> order;  // id and place
  for (int64_t i = 0; i < rows->size(); ++i) order.emplace_back(RowHeader::Fid(rows->at(i)), i);
  std::sort(order.begin(), order.end());
  std::vector<char> sorted;
  sorted.reserve(rows->bytes.size());
  for (const auto& [fid, i] : order) sorted.insert(sorted.end(), rows->at(i), rows->at(i) + rows->row_bytes);
  rows->bytes.swap(sorted);
}

}  // namespace

int PartsOf(int64_t entries) { return static_cast<int>(std::clamp<int64_t>(entries / kEntriesPerPart, 1, kMaxParts)); }

int FirstOfPart(int units, int part, int parts) { return part * (units / parts) + std::min(part, units % parts); }

struct StoreCut::TableState {
  EmbeddingTable* table;
  int64_t entries = 0;
  uint32_t newest_timestamp = 0;
  uint32_t watermark = 0;
  std::unique_ptr<FilterCut> filter;
};

struct StoreCut::Part {
  size_t table;  // number of it in the store
  SnapshotHeader header;
  std::string folder;
  int64_t written = 0, expired = 0;  // entries
};

Status StoreCut::Begin(std::shared_ptr<EmbeddingStore> store, const CutTime& time, std::unique_ptr<StoreCut>* result) {
  if (!store->AcquireCut()) {
    return FailedPrecondition("a snapshot of store '" + store->name() + "' is being written: wait for its end");
  }
  result->reset(new StoreCut(std::move(store), time));
  return {};
}

StoreCut::StoreCut(std::shared_ptr<EmbeddingStore> store, const CutTime& time) : store_(std::move(store)) {
  for (const auto& table : store_->tables()) table->LockAll();
  for (const auto& table : store_->tables()) {
    table->BeginCut();
    const uint32_t newest = table->newest_timestamp();
    const uint32_t watermark = time.watermark < 0 ? std::min(newest, time.now) : static_cast<uint32_t>(time.watermark);
    states_.push_back({table.get(), 0, newest, watermark, nullptr});
    if (table->filter() != nullptr) states_.back().filter = table->filter()->Cut();
  }
  for (const auto& table : store_->tables()) table->UnlockAll();
  for (TableState& state : states_) state.entries = state.table->size();
}

StoreCut::~StoreCut() {
  states_.clear();
  for (const auto& table : store_->tables()) table->EndCut();
  store_->ReleaseCut();
}

Status StoreCut::Write(const std::string& folder, const SaveOptions& options, CutReport* report) {
  MILLRACE_RETURN_IF_ERROR(CreateFolder(folder));
  *report = {{}, std::vector<int64_t>(states_.size()), std::vector<int64_t>(states_.size())};
  std::vector<std::string>* files = &report->files;
  std::vector<std::string> filters;
  // First, so that little of them is copied because it changes.
  for (size_t t = 0; t < states_.size(); ++t) MILLRACE_RETURN_IF_ERROR(WriteFilter(folder, options, t, &filters));
  std::vector<Part> parts;
  for (size_t t = 0; t < states_.size(); ++t) {
    const TableState& state = states_[t];
    SnapshotHeader header = SnapshotHeader::Of(*state.table, options.with_state);
    header.newest_timestamp = state.newest_timestamp;
    header.shard = options.shard;
    header.num_shards = options.num_shards;
    header.num_parts = PartsOf(state.entries);
    for (header.part = 0; header.part < header.num_parts; ++header.part) {
      parts.push_back({t, header, folder});
      files->push_back((std::filesystem::path(folder) / header.FileName()).string());
    }
  }
  MILLRACE_RETURN_IF_ERROR(RunInBackground(parts.size(), [&](int64_t i) { return WritePart(&parts[i]); }));
  for (const Part& part : parts) {
    report->written[part.table] += part.written;
    report->expired[part.table] += part.expired;
  }
  files->insert(files->end(), filters.begin(), filters.end());
  return {};
}

Status StoreCut::WritePart(Part* part) const {
  const TableState& state = states_[part->table];
  EmbeddingTable& table = *state.table;
  const bool compresses = part->header.serving && !table.config().serving;
  const EntryLayout& layout = table.layout();
  const int64_t row_bytes = compresses ? RowHeader::kBytes + layout.code_bytes() : layout.row_bytes();
  std::unique_ptr<CheckedFileWriter> file;
  MILLRACE_RETURN_IF_ERROR(CreateTableFile(part->folder, part->header, &file));
  std::vector<char> block;
  EntryRows rows;
  const auto write = [&] {
    Status written;
    if (!block.empty()) written = file->WriteBlock(block.data(), block.size());
    part->written += static_cast<int64_t>(block.size()) / row_bytes;
    block.clear();
    return written;
  };
  const auto add = [&](const char* row) {
    if (table.IsExpired(RowHeader::Fid(row), RowHeader::Timestamp(row), state.watermark)) {
      ++part->expired;
      return;
    }
    const size_t place = block.size();
    block.resize(place + row_bytes);
    if (!compresses) {
      std::memcpy(block.data() + place, row, row_bytes);
      return;
    }
    std::memcpy(block.data() + place, row, RowHeader::kBytes);
    layout.Encode(EntryLayout::Weights(RowHeader::EntryOf(row)), RowHeader::EntryOf(block.data() + place));
  };
  const auto add_all = [&] {
    for (int64_t i = 0; i < rows.size(); ++i) {
      add(rows.at(i));
      if (block.size() >= kBlockBytes) MILLRACE_RETURN_IF_ERROR(write());
    }
    return Status();
  };
  const int first = FirstOfPart(kLockShards, part->header.part, part->header.num_parts);
  const int last = FirstOfPart(kLockShards, part->header.part + 1, part->header.num_parts);
  // What was kept aside is written soon, so that its memory serves again.
  const auto add_kept = [&] {
    for (int shard = first; shard < last; ++shard) {
      table.TakeKept(shard, &rows);
      MILLRACE_RETURN_IF_ERROR(add_all());
    }
    return Status();
  };
  for (int shard = first; shard < last; ++shard) {
    int pages = 0;
    for (uint64_t start = 0; start != FidMap::kEnd;) {
      rows.bytes.clear();
      table.TakeCut(shard, &start, &rows);
      SortById(&rows);
      MILLRACE_RETURN_IF_ERROR(add_all());
      if (++pages % kPagesPerDrain == 0) MILLRACE_RETURN_IF_ERROR(add_kept());
    }
  }
  MILLRACE_RETURN_IF_ERROR(add_kept());
  MILLRACE_RETURN_IF_ERROR(write());
  return file->Publish(static_cast<uint64_t>(part->written));
}

Status StoreCut::WriteFilter(const std::string& folder, const SaveOptions& options, size_t index,
                             std::vector<std::string>* files) {
  const TableState& state = states_[index];
  if (state.filter == nullptr) return {};
  const std::unique_ptr<FilterCut> filter = std::move(states_[index].filter);  // ends here: it costs while it is open
  if (!options.with_state) return {};
  const std::string& name = state.table->config().name;
  char suffix[64];
  std::snprintf(suffix, sizeof(suffix), ".shard-%05d-of-%05d%s", options.shard, options.num_shards, kFilterSuffix);
  const std::string path = (std::filesystem::path(folder) / (name + suffix)).string();
  std::unique_ptr<CheckedFileWriter> file;
  MILLRACE_RETURN_IF_ERROR(
      CheckedFileWriter::Create(path, kFilterMagic, FilterHeader(name, options.shard, options.num_shards), &file));
  uint64_t written = 0;
  std::string block;
  const auto write = [&] {
    if (block.empty()) return Status();
    written += block.size();
    MILLRACE_RETURN_IF_ERROR(file->WriteBlock(block.data(), block.size()));
    block.clear();
    return Status();
  };
  while (filter->Next(&block)) {
    if (block.size() >= kBlockBytes) MILLRACE_RETURN_IF_ERROR(write());
  }
  MILLRACE_RETURN_IF_ERROR(write());
  files->push_back(path);
  return file->Publish(written);
}

Status RestoreStore(EmbeddingStore* store, const std::vector<std::string>& files, const RestoreOptions& options,
                    std::vector<std::string>* notes) {
  return Restorer(store, options, notes).Run(files);
}

Status ReshardFiles(const std::vector<std::string>& files, const std::string& folder, int num_shards,
                    std::vector<std::string>* written) {
  if (num_shards < 1) return InvalidArgument("num_shards must be at least 1, not " + std::to_string(num_shards));
  FileSet set;
  MILLRACE_RETURN_IF_ERROR(Gather(files, &set));
  MILLRACE_RETURN_IF_ERROR(CreateFolder(folder));
  for (const auto& [table, paths] : set.tables) {
    std::vector<std::unique_ptr<CheckedFileWriter>> writers(num_shards);
    std::vector<std::vector<char>> blocks(num_shards);
    std::vector<uint64_t> counts(num_shards);
    const auto flush = [&](int shard, size_t least) {
      if (blocks[shard].size() < least || blocks[shard].empty()) return Status();
      const Status status = writers[shard]->WriteBlock(blocks[shard].data(), blocks[shard].size());
      blocks[shard].clear();
      return status;
    };
    for (const std::string& path : paths) {
      std::unique_ptr<TableFileReader> reader;
      MILLRACE_RETURN_IF_ERROR(TableFileReader::Open(path, &reader));
      SnapshotHeader header = reader->header();
      header.part = 0;
      header.num_parts = 1;
      header.num_shards = num_shards;
      header.newest_timestamp = set.newest_timestamps[table];
      for (header.shard = 0; header.shard < num_shards && writers[header.shard] == nullptr; ++header.shard) {
        MILLRACE_RETURN_IF_ERROR(CreateTableFile(folder, header, &writers[header.shard]));
        written->push_back((std::filesystem::path(folder) / header.FileName()).string());
      }
      EntryRows rows;
      while (true) {
        MILLRACE_RETURN_IF_ERROR(reader->Next(&rows));
        if (rows.bytes.empty()) break;
        for (int64_t i = 0; i < rows.size(); ++i) {
          const auto shard = static_cast<int>(ShardOf(RowHeader::Fid(rows.at(i)), num_shards));
          blocks[shard].insert(blocks[shard].end(), rows.at(i), rows.at(i) + rows.row_bytes);
          ++counts[shard];
          MILLRACE_RETURN_IF_ERROR(flush(shard, kBlockBytes));
        }
      }
    }
    for (int shard = 0; shard < num_shards; ++shard) {
      MILLRACE_RETURN_IF_ERROR(flush(shard, 1));
      MILLRACE_RETURN_IF_ERROR(writers[shard]->Publish(counts[shard]));
    }
  }
  return {};
}

}  // namespace millrace
