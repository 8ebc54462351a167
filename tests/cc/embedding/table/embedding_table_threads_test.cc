// Many threads on one table: nothing is lost, nothing is seen half written.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "tests/cc/covers.h"
#include "tests/cc/snapshot_files.h"

namespace millrace {
namespace {

constexpr int kDim = 8;

// Threads that repeat something until told to stop.
class Background {
 public:
  ~Background() { Stop(); }

  template <typename Action>  // void(int round)
  void Repeat(Action action) {
    threads_.emplace_back([this, action] {
      for (int round = 0; !stop_; ++round) action(round);
    });
  }

  void Stop() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

std::vector<float> Rows(size_t count, float value) { return std::vector<float>(count * kDim, value); }

// Whether each row is one number throughout, as every write in these tests leaves it.
bool RowsAreWhole(const std::vector<float>& values) {
  for (size_t i = 0; i < values.size(); i += kDim) {
    if (std::count(values.begin() + i, values.begin() + i + kDim, values[i]) != kDim) return false;
  }
  return true;
}

COVERS("emb:H9")
TEST(EmbeddingTableThreads, H9AHundredThreadsAddAndUpdate) {
  const auto table = MakeTable(Config(1));
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < 100; ++i) {
    threads.emplace_back([&, i] {
      ASSERT_TRUE(AssignAdd(*table, {i}, {static_cast<float>(i)}).ok());
      ASSERT_TRUE(Update(*table, {i}, {-200.0f * static_cast<float>(i)}, {{0.01f}, 0, 0}).ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int64_t i = 0; i < 100; ++i) EXPECT_FLOAT_EQ(LookUp(*table, {i})[0], 3.0f * static_cast<float>(i));
}

TEST(EmbeddingTableThreads, UpdatesOfTheSameIdsAddUpExactlyWhileLookupsCreateThem) {
  const auto table = MakeTable(Config(kDim));
  constexpr int kThreads = 6, kRounds = 30;
  const std::vector<int64_t> fids = Sequence(600);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < kRounds; ++round) {
        ASSERT_TRUE(Update(*table, fids, Rows(fids.size(), -1), {}, t % 2 == 0 ? RunBackwards : RunOnFourThreads).ok());
        ASSERT_TRUE(RowsAreWhole(CreateAndLookUp(*table, fids)));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(LookUp(*table, fids), Rows(fids.size(), kThreads * kRounds));
}

class EmbeddingTableThreadsAndFiles : public FilesTest {};

// Ids 0 to 399 take steps from three threads and nothing else; ids from 1000 on are written, erased and evicted.
TEST_F(EmbeddingTableThreadsAndFiles, AllCallsAtOnceLoseNoStepAndShowNoHalfWrittenEntry) {
  const auto store = MakeStore({Filtered(Config(kDim), Sliding(10'000), 0)});
  EmbeddingTable& table = TableOf(store);
  const std::vector<int64_t> trained = Sequence(400), written = Sequence(400, 1000), all = Sequence(1400);
  std::set<int64_t> touched;
  Background background;
  background.Repeat([&](int) { ASSERT_TRUE(RowsAreWhole(LookUp(table, all))); });
  background.Repeat([&](int round) {
    const AssignOptions options{static_cast<uint32_t>(round), round % 3 == 0, false};
    ASSERT_TRUE(Assign(table, written, Rows(400, static_cast<float>(round % 100)), options).ok());
  });
  background.Repeat([&](int round) {
    Erase(table, Sequence(50, 1000 + round % 8 * 50));
    bool existed[50];
    table.Reinitialize(written.data(), 50, 0, existed);
    table.Evict(0);
  });
  background.Repeat([&](int) {
    const std::vector<int64_t> stolen = Touched(table);
    table.RestoreTouched(stolen.data(), stolen.size());
    const std::vector<int64_t> kept = Touched(table);
    touched.insert(kept.begin(), kept.end());
  });
  background.Repeat([&](int) {
    WalkPosition position;
    while (position.shard < kLockShards) {
      EntryRows rows;
      table.Walk(kLockShards, 100, &position, &rows);
    }
    ASSERT_GE(table.Stats().entries, 0);
  });
  std::vector<std::thread> trainers;
  constexpr int kTrainers = 3, kRounds = 40;
  for (int t = 0; t < kTrainers; ++t) {
    trainers.emplace_back([&] {
      for (int round = 0; round < kRounds; ++round) {
        ASSERT_TRUE(Update(table, trained, Rows(400, -1), {{1}, UINT32_MAX, round}, RunBackwards).ok());
      }
    });
  }
  for (int cut = 0; cut < 4; ++cut) {
    for (const auto& [fid, row] : RowsOf(Save(store)[0])) {
      std::vector<float> values(kDim);
      std::memcpy(values.data(), RowHeader::EntryOf(row.data()), kDim * sizeof(float));
      ASSERT_TRUE(RowsAreWhole(values)) << fid;
    }
  }
  for (std::thread& trainer : trainers) trainer.join();
  background.Stop();
  EXPECT_EQ(LookUp(table, trained), Rows(400, kTrainers * kRounds));
  const std::vector<int64_t> rest = Touched(table);
  touched.insert(rest.begin(), rest.end());
  for (const int64_t fid : trained) EXPECT_EQ(touched.count(fid), 1u);
}

TEST_F(EmbeddingTableThreadsAndFiles, ClearAndRestoreMayMeetAllOtherCalls) {
  const auto store = MakeStore({Config(kDim)});
  EmbeddingTable& table = TableOf(store);
  const std::vector<int64_t> fids = Sequence(2000);
  ASSERT_TRUE(Assign(table, fids, Rows(2000, 5)).ok());
  const Files files = Save(store);
  Background background;
  background.Repeat([&](int) { ASSERT_TRUE(RowsAreWhole(CreateAndLookUp(table, fids, RunBackwards))); });
  background.Repeat([&](int) { ASSERT_TRUE(Update(table, fids, Rows(2000, -1)).ok()); });
  background.Repeat([&](int) {
    Erase(table, Sequence(500));
    std::vector<int64_t> stolen;
    table.StealTouched(&stolen);
  });
  for (int round = 0; round < 4; ++round) {
    std::unique_ptr<StoreCut> cut;
    ASSERT_TRUE(StoreCut::Begin(store, {}, &cut).ok());
    table.Clear();
    ASSERT_TRUE(Restore(store, files).ok());
    for (const auto& [fid, row] : RowsOf(Write(*cut)[0])) ASSERT_LT(fid, 2000);
  }
  background.Stop();
  ASSERT_TRUE(Restore(store, files).ok());
  EXPECT_EQ(LookUp(table, fids), Rows(2000, 5));
}

TEST(EmbeddingTableThreads, AnEntryThatMovesBetweenPlacesIsNeverSeenHalfWritten) {
  const auto table = MakeTable(Config(64));
  Background background;
  background.Repeat([&](int round) {
    ASSERT_TRUE(Assign(*table, {3}, std::vector<float>(64, static_cast<float>(round))).ok());
    if (round % 4 == 0) Erase(*table, {3});
  });
  background.Repeat([&](int round) {
    CreateAndLookUp(*table, Sequence(100, 100 * (round + 1)));
    Erase(*table, Sequence(100, 100 * (round + 1)));
    std::vector<int64_t> touched;
    table->StealTouched(&touched);
  });
  for (int i = 0; i < 5000; ++i) {
    const std::vector<float> row = LookUp(*table, {3});
    ASSERT_EQ(row.front(), row.back());
  }
}

TEST(EmbeddingTableThreads, AFilterAdmitsEachIdOnceWhenThreadsShareIt) {
  const auto table = MakeTable(Filtered(Config(1), {"counting", {{"capacity", 10'000}}}, 8));
  const std::vector<int64_t> fids = Sequence(300);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round) {
        ASSERT_TRUE(Update(*table, fids, std::vector<float>(300, -1)).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(LookUp(*table, fids), std::vector<float>(300, 12));
  EXPECT_EQ(table->Stats().admitted, 300u);
  EXPECT_EQ(table->Stats().rejected, 2400u);
}

}  // namespace
}  // namespace millrace
