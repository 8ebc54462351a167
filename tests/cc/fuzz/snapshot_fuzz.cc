// Feeds changed snapshot files to everything that reads them: no crash, no hang, no silent acceptance.
//
//   snapshot_fuzz [--runs N] [--seed S]
//
// A file whose bytes differ but whose checksums do not has to be refused, by the reader and by a restore, which then
// changes nothing. One with checksums made anew may be refused too, or is a good file: its header stands for itself,
// its rows are all there, a restore puts just them into the tables, and it reshards to the same rows. A run depends on
// the sum of seed and its number alone.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/cc/embedding/snapshot/store_snapshot.h"
#include "ops/cc/embedding/snapshot/table_snapshot.h"
#include "tests/cc/fuzz/file_mutator.h"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr unsigned kSecondsPerRun = 20;
constexpr uint64_t kRunsThatReachAll = 5000;
constexpr int64_t kEntries = 25;
constexpr size_t kRowsPerBlock = 5;
constexpr size_t kRefusedPerRestore = 32;  // of so many refused files one goes to a restore too, which takes longer

const char kRanking[] =
    "name=ranking;seed=1;serving=0;skip_zero=0;non_finite=error;gradient_limit=inf;segments=2;segment.0.dim=3;"
    "segment.0.delay_compensation=0;segment.0.stochastic_rounding=0;segment.0.optimizer=adagrad;"
    "segment.0.optimizer.initial_accumulator_value=0.1;segment.0.optimizer.weight_decay_factor=0;"
    "segment.0.optimizer.decouple_weight_decay=0;segment.0.initializer=random_uniform;segment.0.initializer.minval=-1;"
    "segment.0.initializer.maxval=1;segment.0.compressor=int8;segment.0.compressor.range=1;segment.1.dim=2;"
    "segment.1.delay_compensation=0;segment.1.stochastic_rounding=0;segment.1.optimizer=momentum;"
    "segment.1.optimizer.momentum=0.9;segment.1.optimizer.use_nesterov=0;segment.1.optimizer.weight_decay_factor=0;"
    "segment.1.initializer=zeros;segment.1.compressor=one_bit;segment.1.compressor.step_size=200;"
    "segment.1.compressor.init_scale=1;segment.1.compressor.max_scale=10000;segment.1.compressor.amplitude=0.1;"
    "segment.1.compressor.packed=1;filter=sliding;filter.capacity=100;filter.split_num=7;threshold=1;expire_days=36500";
const char kBias[] =
    "name=bias;seed=1;serving=0;skip_zero=0;non_finite=error;gradient_limit=inf;segments=1;segment.0.dim=1;"
    "segment.0.delay_compensation=0;segment.0.stochastic_rounding=0;segment.0.optimizer=sgd;"
    "segment.0.initializer=zeros;segment.0.compressor=fp16;filter=none;threshold=0;expire_days=36500";

uint64_t g_run = 0;  // the seed that repeats the present run

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void SayHowToRepeat() {
  std::fprintf(stderr, "snapshot_fuzz: repeat with --runs 1 --seed %llu\n", static_cast<unsigned long long>(g_run));
}

void OnSignal(int signal) {
  SayHowToRepeat();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void WatchForCrashesAndHangs() {
  for (const int signal : {SIGALRM, SIGABRT}) std::signal(signal, OnSignal);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_set_death_callback(SayHowToRepeat);
#else
  for (const int signal : {SIGSEGV, SIGFPE}) std::signal(signal, OnSignal);
#endif
}

void Expect(bool condition, const std::string& problem) {
  if (!condition) throw Failure(problem);
}

void ExpectOk(const Status& status) { Expect(status.ok(), status.message()); }

std::string ReadBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void WriteBytes(const std::string& path, const std::string& bytes) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  Expect(file != nullptr && std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size() && std::fclose(file) == 0,
         "cannot write " + path);
}

// A row begins with its fid and its time stamp.
constexpr size_t kRowHeaderBytes = 12;
int64_t FidOf(const std::string& row) { return NumberAt<int64_t>(row, 0); }

std::vector<std::string> RowsOf(const EntryRows& rows) {
  std::vector<std::string> result;
  const size_t bytes = rows.size() == 0 ? 0 : rows.bytes.size() / rows.size();
  for (int64_t i = 0; i < rows.size(); ++i) result.emplace_back(rows.at(i), bytes);
  return result;
}

// Rows of every table by fid.
using Content = std::map<std::string, std::map<int64_t, std::string>>;

Content ContentOf(const EmbeddingStore& store) {
  Content content;
  for (const auto& table : store.tables()) {
    WalkPosition position;
    EntryRows rows;
    table->Walk(kLockShards, int64_t{1} << 20, &position, &rows);
    auto& by_fid = content[table->config().name];
    for (const std::string& row : RowsOf(rows)) by_fid[FidOf(row)] = row;
  }
  return content;
}

// The same table for serving: compressed weights alone.
std::string ServingText(const std::string& text) {
  std::string serving;
  for (const std::string& field : SplitFields(text)) {
    const std::string key = KeyOf(field);
    if (key.find(".optimizer.") != std::string::npos || key.rfind("filter.", 0) == 0) continue;
    const bool is_optimizer = key.find(".optimizer") != std::string::npos;
    serving += serving.empty() ? "" : ";";
    serving += is_optimizer || key == "filter" ? key + "=none" : key == "serving" ? key + "=1" : field;
  }
  return serving;
}

std::string InSmallBlocks(const std::string& path) {
  FileParts parts = TakeApart(ReadBytes(path));
  std::string all;
  for (const std::string& block : parts.blocks) all += block;
  const size_t rows = parts.count == 0 ? 1 : parts.count;
  const size_t size = std::max<size_t>(1, all.size() / rows * kRowsPerBlock);
  parts.blocks.clear();
  for (size_t first = 0; first < all.size(); first += size) parts.blocks.push_back(all.substr(first, size));
  return PutTogether(parts);
}

// The files of one snapshot, and the store that they restore into.
class Snapshot {
 public:
  Snapshot(const std::string& folder, bool serving) : folder_(folder) {
    const std::vector<std::string> texts = {kRanking, kBias};
    ExpectOk(EmbeddingStore::Create("fuzz", texts, &store_));
    for (const auto& table : store_->tables()) Fill(*table);
    std::unique_ptr<StoreCut> cut;
    CutReport saved;
    ExpectOk(StoreCut::Begin(store_, {}, &cut));
    ExpectOk(cut->Write(folder + "/whole", {!serving, 0, 1}, &saved));
    cut.reset();
    ExpectOk(ReshardFiles(saved.files, folder, 2, &files_));
    for (const std::string& path : files_) WriteBytes(path, InSmallBlocks(path));
    if (serving) {
      ExpectOk(EmbeddingStore::Create("fuzz", {ServingText(kRanking), ServingText(kBias)}, &store_));
    } else {
      files_.push_back((fs::path(folder) / fs::path(saved.files.back()).filename()).string());
      WriteBytes(files_.back(), ReadBytes(saved.files.back()));
    }
    for (const std::string& path : files_) bytes_.push_back(ReadBytes(path));
    Restore();
  }

  const std::vector<std::string>& files() const { return files_; }
  const std::string& bytes(size_t file) const { return bytes_[file]; }
  EmbeddingStore& store() { return *store_; }
  const std::string& folder() const { return folder_; }

  Status TryRestore() {
    std::vector<std::string> notes;
    return RestoreStore(store_.get(), files_, {}, &notes);
  }
  // Puts the good files back into the store.
  void Restore() {
    ExpectOk(TryRestore());
    content_ = ContentOf(*store_);
  }
  bool IsAsRestored() const { return ContentOf(*store_) == content_; }

 private:
  static void Fill(EmbeddingTable& table) {
    std::vector<int64_t> fids;
    for (int64_t i = 0; i < kEntries; ++i) fids.push_back((i - 5) * 0x5000000000001);
    std::vector<float> weights;
    for (int64_t i = 0; i < kEntries * table.dim(); ++i) weights.push_back(static_cast<float>(i % 17) / 8 - 1);
    ExpectOk(table.Assign(fids.data(), weights.data(), kEntries, {1700000000, false, false}, RunInline));
    for (int64_t fid = 0; fid < kEntries && table.filter() != nullptr; ++fid) table.filter()->Admit(fid, 1, 0);
  }

  const std::string folder_;
  std::shared_ptr<EmbeddingStore> store_;
  std::vector<std::string> files_, bytes_;
  Content content_;
};

// Rows of a good file.
std::vector<std::string> ReadRows(const std::string& path) {
  std::unique_ptr<TableFileReader> reader;
  ExpectOk(TableFileReader::Open(path, &reader));
  const size_t width = reader->header().dim() + reader->header().state_floats();
  std::vector<float> values, again;
  std::vector<std::string> result;
  EntryRows block;
  do {
    ExpectOk(reader->Next(&block));
    for (const std::string& row : RowsOf(block)) {
      values.assign(width, 1.5f);
      again.assign(width, 2.5f);
      reader->ReadValues(row.data(), values.data());
      reader->ReadValues(row.data(), again.data());
      Expect(std::memcmp(values.data(), again.data(), width * sizeof(float)) == 0,
             "a row has values that nobody wrote");
      result.push_back(row);
    }
  } while (!block.bytes.empty());
  return result;
}

Status Verify(const std::string& path) {
  SnapshotHeader header;
  int64_t rows = 0;
  return VerifyTableFile(path, &header, &rows);
}

Status ReadCheckedFile(const std::string& path, const std::string& magic) {
  std::unique_ptr<CheckedFileReader> reader;
  MILLRACE_RETURN_IF_ERROR(CheckedFileReader::Open(path, magic, &reader));
  std::vector<char> block;
  do {
    MILLRACE_RETURN_IF_ERROR(reader->Next(&block));
  } while (!block.empty());
  return {};
}

void ExpectGoodHeader(const SnapshotHeader& header) {
  const std::string name = header.FileName();
  Expect(fs::path(name).filename() == name && name[0] != '.', "a table has the name of a path: " + header.table);
  Expect(header.shard < header.num_shards && header.part < header.num_parts, "a shard or part is out of bounds");
  SnapshotHeader again;
  ExpectOk(SnapshotHeader::Parse("again", header.ToText(), &again));
  Expect(again.ToText() == header.ToText(), "a header changes when it is written: " + header.ToText());
}

class Fuzzer {
 public:
  explicit Fuzzer(const std::string& folder)
      : training_(folder + "/training", false), serving_(folder + "/serving", true) {
    for (Snapshot* snapshot : {&training_, &serving_}) {
      for (size_t file = 0; file < snapshot->files().size(); ++file) victims_.push_back({snapshot, file});
    }
  }

  void Run(Draw* draw) {
    const Victim& victim = draw->Of(victims_);
    const std::string& good = victim.snapshot->bytes(victim.file);
    FileParts parts = TakeApart(good);
    const bool forges = draw->Below(3) == 0;
    for (size_t changes = 1 + draw->Below(3) / 2; forges && changes > 0; --changes) Forge(&parts, draw);
    const std::string bytes = forges ? PutTogether(parts) : Damage(parts, good, OtherFile(draw), draw);
    if (bytes == good) return;
    WriteBytes(victim.path(), bytes);
    const bool is_filter = fs::path(victim.path()).extension() == ".filter";
    const Status status = is_filter ? ReadCheckedFile(victim.path(), parts.magic) : Verify(victim.path());
    if (!status.ok()) {
      ++refused_;
      Expect(status.message().find(victim.path()) != std::string::npos, "no file is named: " + status.message());
      if (draw->Below(kRefusedPerRestore) == 0) ExpectRestoreRefused(victim);
    } else {
      ++accepted_;
      Expect(forges, "a damaged file is accepted");
      if (is_filter) {
        CheckFilter(victim, parts);
      } else {
        CheckTable(victim, draw);
      }
    }
    WriteBytes(victim.path(), good);
  }

  bool ReachedAll() const { return refused_ > 0 && restored_ > 0 && resharded_ > 0; }
  std::string Report() const {
    return "refused " + std::to_string(refused_) + ", accepted " + std::to_string(accepted_) + ", of these restored " +
           std::to_string(restored_) + ", resharded " + std::to_string(resharded_);
  }

 private:
  struct Victim {
    Snapshot* snapshot;
    size_t file;

    const std::string& path() const { return snapshot->files()[file]; }
  };

  const std::string& OtherFile(Draw* draw) {
    const Victim& other = draw->Of(victims_);
    return other.snapshot->bytes(other.file);
  }

  void CheckTable(const Victim& victim, Draw* draw) {
    std::unique_ptr<TableFileReader> reader;
    ExpectOk(TableFileReader::Open(victim.path(), &reader));
    ExpectGoodHeader(reader->header());
    switch (draw->Below(4)) {
      case 0:
        CheckReshard(victim);
        return;
      case 1:
        CheckRestore(victim, reader->header());
        return;
      default:
        ReadRows(victim.path());
    }
  }

  void CheckRestore(const Victim& victim, const SnapshotHeader& header) {
    if (!victim.snapshot->TryRestore().ok()) {
      Expect(victim.snapshot->IsAsRestored(), "a refused restore changed the store");
      return;
    }
    ++restored_;
    ExpectRestored(victim, header);
    WriteBytes(victim.path(), victim.snapshot->bytes(victim.file));
    victim.snapshot->Restore();
  }

  void ExpectRestoreRefused(const Victim& victim) {
    Expect(!victim.snapshot->TryRestore().ok(), "a damaged file is restored");
    Expect(victim.snapshot->IsAsRestored(), "a refused restore changed the store");
  }

  // All ids of the file are in the table, with the file's time stamps and, in training form, its values.
  void ExpectRestored(const Victim& victim, const SnapshotHeader& header) {
    const Content content = ContentOf(victim.snapshot->store());
    std::map<int64_t, std::string> last;
    for (const std::string& row : ReadRows(victim.path())) last[FidOf(row)] = row;
    for (const auto& [fid, row] : last) {
      const auto found = content.at(header.table).find(fid);
      Expect(found != content.at(header.table).end(), "an id of the file is not in the table");
      const size_t same = header.serving ? kRowHeaderBytes : row.size();
      Expect(found->second.compare(0, same, row, 0, same) == 0, "an entry differs from its row");
    }
  }

  void CheckReshard(const Victim& victim) {
    const std::string folder = victim.snapshot->folder() + "/resharded";
    std::vector<std::string> written;
    if (!ReshardFiles(victim.snapshot->files(), folder, 3, &written).ok()) return;
    ++resharded_;
    size_t before = 0, after = 0;
    for (const std::string& path : victim.snapshot->files()) {
      if (fs::path(path).extension() == ".table") before += CountRows(path);
    }
    for (const std::string& path : written) {
      Expect(fs::path(path).parent_path() == folder, "a file is written outside of the folder: " + path);
      after += CountRows(path);
    }
    Expect(before == after, "resharding loses rows");
  }

  static size_t CountRows(const std::string& path) { return ReadRows(path).size(); }

  // The state of a filter is any; a filter that takes it goes on counting.
  void CheckFilter(const Victim& victim, const FileParts& parts) {
    OccurrenceFilter& filter = *victim.snapshot->store().tables()[0]->filter();
    std::string state;
    for (const std::string& block : parts.blocks) state += block;
    const bool fits = filter.Restore(state).ok();
    if (fits) {
      for (int64_t fid = 0; fid < kEntries; ++fid) filter.Admit(fid, 1, 0);
      ExpectOk(filter.Restore(filter.Save()));
    }
    const Status restored = victim.snapshot->TryRestore();
    Expect(fits || parts.header != TakeApart(victim.snapshot->bytes(victim.file)).header || !restored.ok(),
           "a state that does not fit is restored");
    Expect(victim.snapshot->IsAsRestored(), "the restore of a filter changed the tables");
  }

  Snapshot training_, serving_;
  std::vector<Victim> victims_;
  uint64_t refused_ = 0, accepted_ = 0, restored_ = 0, resharded_ = 0;
};

uint64_t FlagOf(int count, char** words, const std::string& name, uint64_t fallback) {
  for (int i = 1; i + 1 < count; i += 2) {
    if (words[i] == name) return std::strtoull(words[i + 1], nullptr, 10);
  }
  return fallback;
}

// Returns the exit code.
int Fuzz(uint64_t runs, uint64_t seed, const fs::path& folder) {
  try {
    const auto start = std::chrono::steady_clock::now();
    Fuzzer fuzzer(folder.string());
    for (uint64_t run = 0; run < runs; ++run) {
      g_run = seed + run;
      ::alarm(kSecondsPerRun);
      Draw draw(g_run);
      fuzzer.Run(&draw);
    }
    ::alarm(0);
    Expect(fuzzer.ReachedAll() || runs < kRunsThatReachAll, "no changed file came as far as the tables");
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%s, %.0f runs a second\n", fuzzer.Report().c_str(), static_cast<double>(runs) / seconds);
    return 0;
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "snapshot_fuzz: %s\n", failure.what());
    SayHowToRepeat();
    return 1;
  }
}

int Main(int count, char** words) {
  const uint64_t runs = FlagOf(count, words, "--runs", 10000), seed = FlagOf(count, words, "--seed", 1);
  const fs::path memory = fs::is_directory("/dev/shm") ? fs::path("/dev/shm") : fs::temp_directory_path();
  const fs::path folder = memory / ("millrace_fuzz_" + std::to_string(::getpid()));
  WatchForCrashesAndHangs();
  const int code = Fuzz(runs, seed, folder);
  fs::remove_all(folder);
  return code;
}

}  // namespace
}  // namespace millrace

int main(int count, char** words) { return millrace::Main(count, words); }
