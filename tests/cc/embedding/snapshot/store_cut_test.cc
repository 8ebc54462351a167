// A cut is the content of one moment, whatever the tables do until it is written.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "ops/cc/embedding/snapshot/store_snapshot.h"
#include "tests/cc/snapshot_files.h"

namespace millrace {
namespace {

class StoreCutTest : public StoreSnapshot {};

TEST_F(StoreCutTest, ACutIsTheContentOfItsMomentWhateverHappensBeforeItIsWritten) {
  EmbeddingTable& movies = TableOf(store_, 0);
  const auto expected = RowsById(movies);
  const std::map<std::string, std::function<void()>> changes = {
      {"update", [&] { Train(movies, Sequence(9000, -4000), 50); }},
      {"insert", [&] { CreateAndLookUp(movies, Sequence(9000, 100'000)); }},
      {"assign", [&] { ASSERT_TRUE(Assign(movies, Sequence(500), std::vector<float>(1500, 1)).ok()); }},
      {"add", [&] { ASSERT_TRUE(AssignAdd(movies, Sequence(500), std::vector<float>(1500, 1)).ok()); }},
      {"erase", [&] { Erase(movies, Sequence(500)); }},
      {"erase, then insert others",
       [&] {
         Erase(movies, Sequence(500));
         CreateAndLookUp(movies, Sequence(9000, 100'000));
       }},
      {"evict", [&] { movies.Evict(UINT32_MAX); }},
      {"clear", [&] { movies.Clear(); }},
      {"clear, then insert",
       [&] {
         movies.Clear();
         CreateAndLookUp(movies, Sequence(20'000));
       }},
      {"reinitialize",
       [&] {
         const std::vector<int64_t> fids = Sequence(500);
         bool existed[500];
         movies.Reinitialize(fids.data(), 500, 60, existed);
       }},
      {"import",
       [&] {
         std::string rows;
         for (const auto& [fid, row] : expected) rows += std::string(row).replace(12, 1, "x");
         movies.Import(rows.data(), expected.size(), RunInline);
       }},
      {"restore",
       [&] {
         ASSERT_TRUE(Restore(store_, Save(MakeStore({Movies(), Users()}))).ok());
       }},
  };
  const Files start = Save(store_);
  for (const auto& [name, change] : changes) {
    movies.Clear();
    ASSERT_TRUE(Restore(store_, start).ok());
    std::unique_ptr<StoreCut> cut;
    ASSERT_TRUE(StoreCut::Begin(store_, {}, &cut).ok());
    change();
    change();
    EXPECT_EQ(RowsOf(Write(*cut)[0]), expected) << name;
  }
}

TEST_F(StoreCutTest, EntriesThatChangeWhileACutIsTakenAreInItOnce) {
  EmbeddingTable& movies = TableOf(store_, 0);
  const auto expected = RowsById(movies);
  std::unique_ptr<StoreCut> cut;
  ASSERT_TRUE(StoreCut::Begin(store_, {}, &cut).ok());
  std::map<int64_t, std::string> taken;
  const auto take = [&](const EntryRows& rows) {
    for (int64_t i = 0; i < rows.size(); ++i) {
      EXPECT_TRUE(taken.emplace(RowHeader::Fid(rows.at(i)), std::string(rows.at(i), rows.row_bytes)).second);
    }
  };
  int64_t fid = -4000;
  for (int shard = 0; shard < kLockShards; ++shard) {
    for (uint64_t start = 0; start != FidMap::kEnd;) {
      EntryRows rows, kept;
      movies.TakeCut(shard, &start, &rows);
      movies.TakeKept((shard * 7) % kLockShards, &kept);  // at any moment
      take(rows);
      take(kept);
      if (fid < 5000) Train(movies, Sequence(5, fid));
      Erase(movies, {fid + 7});
      fid += 10;
    }
  }
  for (int shard = 0; shard < kLockShards; ++shard) {
    EntryRows kept;
    movies.TakeKept(shard, &kept);
    take(kept);
  }
  EXPECT_EQ(taken, expected);
}

TEST_F(StoreCutTest, AFilterIsWrittenAsItWasAtTheCut) {
  const std::vector<TableConfig> tables = {Filtered(Movies(), Sliding(1000), 4)};
  const auto store = MakeStore(tables);
  EmbeddingTable& movies = TableOf(store, 0);
  Train(movies, Sequence(400, 50'000));
  const std::string expected = movies.filter()->Save();
  std::unique_ptr<StoreCut> cut;
  ASSERT_TRUE(StoreCut::Begin(store, {}, &cut).ok());
  Train(movies, Sequence(400, 60'000));
  EXPECT_NE(movies.filter()->Save(), expected);
  const auto restored = MakeStore(tables);
  ASSERT_TRUE(Restore(restored, Write(*cut)).ok());
  EXPECT_EQ(TableOf(restored, 0).filter()->Save(), expected);
}

TEST_F(StoreCutTest, ASecondCutIsRefusedUntilTheFirstIsDropped) {
  std::unique_ptr<StoreCut> first, second;
  ASSERT_TRUE(StoreCut::Begin(store_, {}, &first).ok());
  const Status refused = StoreCut::Begin(store_, {}, &second);
  EXPECT_EQ(refused.code(), Code::kFailedPrecondition);
  EXPECT_NE(refused.message().find("store 's'"), std::string::npos);
  Train(TableOf(store_, 0), Sequence(100));
  first.reset();
  ASSERT_TRUE(StoreCut::Begin(store_, {}, &second).ok());
  EXPECT_EQ(RowsOf(Write(*second)[0]), RowsById(TableOf(store_, 0)));
}

TEST_F(StoreCutTest, AFailedWriteLeavesTheOldFilesAndNoOthers) {
  const std::string folder = Path("snapshot");
  std::unique_ptr<StoreCut> cut;
  ASSERT_TRUE(StoreCut::Begin(store_, {}, &cut).ok());
  CutReport report;
  ASSERT_TRUE(cut->Write(folder, {}, &report).ok());
  const Files files = report.files;
  const std::string good = ReadBytes(files[1]);
  ASSERT_TRUE(std::filesystem::remove(files[0]));
  std::filesystem::create_directory(files[0]);
  Train(TableOf(store_, 1), Sequence(20));
  cut.reset();
  ASSERT_TRUE(StoreCut::Begin(store_, {}, &cut).ok());
  EXPECT_EQ(cut->Write(folder, {}, &report).code(), Code::kInternal);
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    EXPECT_EQ(entry.path().string().find(".tmp-"), std::string::npos) << entry.path();
  }
  WriteBytes(Path("a_file"), "x");
  cut.reset();
  ASSERT_TRUE(StoreCut::Begin(store_, {}, &cut).ok());
  EXPECT_EQ(cut->Write(Path("a_file/below"), {}, &report).code(), Code::kInternal);
}

// A change of one id: what a writer does at a step, and what a plain map would hold after it.
struct ScriptedChange {
  explicit ScriptedChange(uint64_t step) : draw(Mix64(step + 1)), value(static_cast<float>(step % 1000) + 1) {}
  size_t table() const { return draw & 1; }
  int64_t fid() const { return static_cast<int64_t>((draw >> 1) % 6000); }
  bool erases() const { return (draw >> 32) % 4 == 0; }
  uint64_t draw;
  float value;
};

// Sum over entries of a hash of table, id and value: changes by one term at a step.
uint64_t TermOf(size_t table, int64_t fid, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return Mix64(HashFid(2 * fid + static_cast<int64_t>(table)) ^ bits);
}

TEST_F(StoreCutTest, CutsTakenWhileAWriterGoesOnAreEachTheStateAfterOneOfItsSteps) {
  const auto store = MakeStore({Named("a", Config(4)), Named("b", Config(4))});
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> steps{0};
  std::thread writer([&] {
    for (; !stop; ++steps) {
      const ScriptedChange change(steps);
      EmbeddingTable& table = TableOf(store, change.table());
      if (change.erases()) {
        Erase(table, {change.fid()});
      } else {
        ASSERT_TRUE(Assign(table, {change.fid()}, std::vector<float>(4, change.value)).ok());
      }
    }
  });
  std::vector<uint64_t> sums;
  for (int cut = 0; cut < 12; ++cut) {
    const uint64_t before = steps;
    while (steps < before + 2000) std::this_thread::yield();
    const Files files = Save(store);
    uint64_t sum = 0;
    for (size_t table = 0; table < 2; ++table) {
      for (const auto& [fid, row] : RowsOf(files[table])) {
        float values[4];
        std::memcpy(values, RowHeader::EntryOf(row.data()), sizeof(values));
        EXPECT_TRUE(values[0] == values[1] && values[0] == values[2] && values[0] == values[3]);
        sum += TermOf(table, fid, values[0]);
      }
    }
    sums.push_back(sum);
  }
  stop = true;
  writer.join();

  std::unordered_map<uint64_t, float> state;
  std::unordered_map<uint64_t, uint64_t> step_of_sum;
  uint64_t sum = 0;
  for (uint64_t step = 0; step < steps; ++step) {
    const ScriptedChange change(step);
    float& value = state[2 * change.fid() + change.table()];
    if (value != 0) sum -= TermOf(change.table(), change.fid(), value);
    value = change.erases() ? 0 : change.value;
    if (value != 0) sum += TermOf(change.table(), change.fid(), value);
    step_of_sum[sum] = step;
  }
  uint64_t last = 0;
  for (const uint64_t seen : sums) {
    const auto found = step_of_sum.find(seen);
    ASSERT_NE(found, step_of_sum.end());
    EXPECT_GE(found->second, last);
    last = found->second;
  }
}

}  // namespace
}  // namespace millrace
