// What a restore gives back: all of a snapshot, on any number of shards.
#include "ops/cc/embedding/snapshot/store_snapshot.h"

#include <map>

#include "tests/cc/covers.h"
#include "tests/cc/snapshot_files.h"

namespace millrace {
namespace {

constexpr uint32_t kDay = 86400;

std::string Joined(const std::vector<std::string>& notes) {
  std::string joined;
  for (const std::string& note : notes) joined += note + "\n";
  return joined;
}

TEST_F(StoreSnapshot, RestoresEveryEntryExactlyAndForgetsWhatWasThere) {
  const Files files = Save(store_);
  ASSERT_EQ(files.size(), 2u);
  const auto restored = MakeStore({Users(), Movies()});
  Train(TableOf(restored, 0), Sequence(20, 1000));
  ASSERT_TRUE(Restore(restored, files).ok());
  EXPECT_EQ(Content(TableOf(restored, 1)), Content(TableOf(store_, 0)));
  EXPECT_EQ(Content(TableOf(restored, 0)), Content(TableOf(store_, 1)));
  EXPECT_TRUE(Touched(TableOf(restored, 0)).empty());
  EXPECT_EQ(TableOf(restored, 0).newest_timestamp(), 7u);
}

TEST_F(StoreSnapshot, AnEmptyTableHasAFileToo) {
  const Files files = Save(MakeStore({Movies(), Users()}));
  ASSERT_EQ(files.size(), 2u);
  ASSERT_TRUE(Restore(store_, files).ok());
  EXPECT_EQ(TableOf(store_, 0).size() + TableOf(store_, 1).size(), 0);
}

// Parts and shards.

COVERS("emb:H31")
TEST(StoreSnapshotParts, H31AMillionEntriesAPartUpToFour) {
  for (const auto& [entries, parts] : std::map<int64_t, int>{
           {0, 1}, {1'999'999, 1}, {2'000'000, 2}, {3'999'999, 3}, {4'000'000, 4}, {9'000'000'000, 4}}) {
    EXPECT_EQ(PartsOf(entries), parts) << entries;
  }
}

COVERS("emb:H32")
TEST(StoreSnapshotParts, H32PartsCoverAllShardsOnce) {
  std::vector<int> firsts;
  for (int part = 0; part <= 4; ++part) firsts.push_back(FirstOfPart(10, part, 4));
  EXPECT_EQ(firsts, (std::vector<int>{0, 3, 6, 8, 10}));
}

TEST_F(StoreSnapshot, ALargeTableIsWrittenInPartsAndRestoredWhole) {
  const auto store = MakeStore({Users()});
  constexpr int64_t kEntries = 2'000'000;
  for (int64_t first = 0; first < kEntries; first += 100'000) CreateAndLookUp(TableOf(store), Sequence(100'000, first));
  const Files files = Save(store);
  ASSERT_EQ(files.size(), 2u);
  ASSERT_TRUE(Restore(store, files).ok());
  EXPECT_EQ(TableOf(store).size(), kEntries);
  const Status status = Restore(store, {files[1]});
  EXPECT_NE(status.message().find("a part of shard 0 is missing"), std::string::npos) << status.message();
  EXPECT_EQ(TableOf(store).size(), kEntries);
}

class ShardedSnapshot : public StoreSnapshot {
 protected:
  // The users spread over shards, one store per shard.
  Files SaveShards(int num_shards, const TableConfig& config = Users()) {
    Files files;
    for (int shard = 0; shard < num_shards; ++shard) {
      std::vector<int64_t> fids;
      for (int64_t fid = -300; fid < 300; ++fid) {
        if (ShardOf(fid, num_shards) == shard) fids.push_back(fid);
      }
      const auto store = MakeStore({config});
      Train(TableOf(store), fids, 100 + shard);
      for (const auto& [fid, row] : RowsById(TableOf(store))) expected_[fid] = row;
      const Files own = Save(store, {true, shard, num_shards});
      files.insert(files.end(), own.begin(), own.end());
    }
    return files;
  }

  // Restores on other shards: together they hold every entry, each its own.
  void ExpectAllOn(int num_shards, const Files& files) {
    std::map<int64_t, std::string> all;
    for (int shard = 0; shard < num_shards; ++shard) {
      const auto store = MakeStore({Users()});
      RestoreOptions options;
      options.shard = shard;
      options.num_shards = num_shards;
      const Status restored = Restore(store, files, options);
      ASSERT_TRUE(restored.ok()) << restored.message();
      for (const auto& [fid, row] : RowsById(TableOf(store))) {
        EXPECT_EQ(ShardOf(fid, num_shards), shard);
        all[fid] = row;
      }
    }
    EXPECT_EQ(all, expected_);
  }

  std::map<int64_t, std::string> expected_;
};

COVERS("emb:H34")
TEST_F(ShardedSnapshot, H34ThreeShardsBecomeTwoOrFiveOrOne) {
  const Files files = SaveShards(3);
  for (const int num_shards : {1, 2, 3, 5}) ExpectAllOn(num_shards, files);
}

COVERS("emb:H34")
TEST_F(ShardedSnapshot, H34FilesAreReshardedWithoutAStore) {
  const Files files = SaveShards(3);
  for (const int num_shards : {2, 5}) {
    Files resharded;
    ASSERT_TRUE(ReshardFiles(files, NewFolder(), num_shards, &resharded).ok());
    ASSERT_EQ(resharded.size(), static_cast<size_t>(num_shards));
    for (int shard = 0; shard < num_shards; ++shard) {
      for (const auto& [fid, row] : RowsOf(resharded[shard])) {
        EXPECT_EQ(ShardOf(fid, num_shards), shard);
        EXPECT_EQ(row, expected_[fid]);
      }
    }
    for (const int target : {1, 2, 3, 5}) ExpectAllOn(target, resharded);
  }
  Files none;
  EXPECT_EQ(ReshardFiles(files, NewFolder(), 0, &none).code(), Code::kInvalidArgument);
}

TEST_F(ShardedSnapshot, ReshardedFilesKnowTheNewestTimestampOfAll) {
  Files resharded;
  ASSERT_TRUE(ReshardFiles(SaveShards(3), NewFolder(), 2, &resharded).ok());
  for (const std::string& path : resharded) {
    SnapshotHeader header;
    int64_t rows = 0;
    ASSERT_TRUE(VerifyTableFile(path, &header, &rows).ok());
    EXPECT_EQ(header.newest_timestamp, 102u);
  }
}

TEST_F(ShardedSnapshot, FilesOfDifferentTablesOfOneNameAreNotResharded) {
  const Files files = SaveShards(2), others = SaveShards(2, Named("users", Config(2)));
  Files resharded;
  EXPECT_FALSE(ReshardFiles({files[0], others[1]}, NewFolder(), 3, &resharded).ok());
}

TEST_F(ShardedSnapshot, AnIncompleteOrMixedSetIsRefusedAndNothingChanges) {
  const Files three = SaveShards(3), two = SaveShards(2);
  const auto store = MakeStore({Users()});
  Train(TableOf(store), {1000});
  const auto problem = [&](const Files& files) {
    const Status status = Restore(store, files);
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_NE(status.message().find("the files of table 'users' are no whole snapshot"), std::string::npos);
    EXPECT_EQ(Contains(TableOf(store), {0, 1000}), "01");
    Files resharded;
    EXPECT_EQ(ReshardFiles(files, NewFolder(), 2, &resharded).code(), Code::kInvalidArgument);
    return status.message();
  };
  EXPECT_NE(problem({three[0], three[2]}).find("shard 1 is missing"), std::string::npos);
  EXPECT_NE(problem({three[2]}).find("shard 0 is missing"), std::string::npos);
  EXPECT_NE(problem({three[0], three[1], three[2], three[1]}).find("part 0 of shard 1 is there twice"),
            std::string::npos);
  EXPECT_NE(problem({three[0], three[1], two[1]}).find("some are of 3 shards, some of 2"), std::string::npos);
}

TEST_F(ShardedSnapshot, PartsAreGatheredAndAMissingOrDoubleOneIsRefused) {
  SnapshotHeader header = SnapshotHeader::Of(TableOf(store_, 1), true);
  const auto write = [&](int part, int num_parts) {
    header.part = part;
    header.num_parts = num_parts;
    std::unique_ptr<CheckedFileWriter> writer;
    EXPECT_TRUE(CreateTableFile(folder_, header, &writer).ok());
    const std::string row = RowOf(TableOf(store_, 1), part);
    EXPECT_TRUE(writer->WriteBlock(row.data(), row.size()).ok());
    EXPECT_TRUE(writer->Publish(1).ok());
    return Path(header.FileName());
  };
  const Files parts = {write(0, 3), write(1, 3), write(2, 3)};
  const auto store = MakeStore({Users()});
  ASSERT_TRUE(Restore(store, {parts[2], parts[0], parts[1]}).ok());
  EXPECT_EQ(Contains(TableOf(store), Sequence(4)), "1110");
  const auto problem = [&](const Files& files) { return Restore(store, files).message(); };
  EXPECT_NE(problem({parts[0], parts[2]}).find("a part of shard 0 is missing"), std::string::npos);
  EXPECT_NE(problem({parts[0], parts[1], parts[2], parts[1]}).find("part 1 of shard 0 is there twice"),
            std::string::npos);
  EXPECT_NE(problem({parts[0], parts[1], parts[2], write(0, 1)}).find("shard 0 is there twice"), std::string::npos);
  EXPECT_EQ(Contains(TableOf(store), Sequence(4)), "1110");
}

// Tables.

COVERS("emb:H23")
TEST_F(StoreSnapshot, H23APartialRestoreTakesTheTablesThatBothHave) {
  const auto names = [](const std::vector<std::string>& tables) {
    std::vector<TableConfig> configs;
    for (const std::string& name : tables) configs.push_back(Named(name, Config(1)));
    return MakeStore(configs);
  };
  const auto saved = names({"slot0", "slot1", "slot2"}), restored = names({"slot0", "slot2", "slot3"});
  for (const auto& table : saved->tables()) Train(*table, Sequence(5));
  Train(TableOf(restored, 2), Sequence(5));
  const Files files = Save(saved);
  const Status whole = Restore(restored, files);
  EXPECT_NE(whole.message().find("has no table 'slot1'"), std::string::npos) << whole.message();
  RestoreOptions options;
  options.partial = true;
  std::vector<std::string> notes;
  ASSERT_TRUE(Restore(restored, files, options, &notes).ok());
  EXPECT_EQ(Content(TableOf(restored, 0)), Content(TableOf(saved, 0)));
  EXPECT_EQ(Content(TableOf(restored, 1)), Content(TableOf(saved, 2)));
  EXPECT_EQ(TableOf(restored, 2).size(), 0);
  EXPECT_NE(Joined(notes).find("table 'slot1' of the files is not one of the store's: passed over"), std::string::npos);
  EXPECT_NE(Joined(notes).find("table 'slot3' has no file: it starts empty"), std::string::npos);
}

COVERS("emb:H17")
TEST_F(StoreSnapshot, H17ATableWithoutFileOrAFileThatIsNotThereIsAnError) {
  const Files files = Save(store_);
  EXPECT_NE(Restore(store_, {files[0]}).message().find("no file for table 'users'"), std::string::npos);
  EXPECT_NE(Restore(store_, {}).message().find("no file for table 'movies'"), std::string::npos);
  const Status missing = Restore(store_, {files[0], files[1] + "x"});
  EXPECT_EQ(missing.code(), Code::kNotFound);
  EXPECT_NE(missing.message().find(files[1] + "x"), std::string::npos);
  EXPECT_EQ(TableOf(store_, 0).size(), 9000);
}

COVERS("emb:H18")
TEST_F(StoreSnapshot, H18TablesWhoseNamesShareAPrefixDoNotMeet) {
  const std::vector<TableConfig> configs = {Named("table1", Config(1)), Named("table10", Config(1))};
  const auto saved = MakeStore(configs), restored = MakeStore(configs);
  Train(TableOf(saved, 0), {1, 2});
  Train(TableOf(saved, 1), {3});
  ASSERT_TRUE(Restore(restored, Save(saved)).ok());
  EXPECT_EQ(Contains(TableOf(restored, 0), {1, 2, 3}), "110");
  EXPECT_EQ(Contains(TableOf(restored, 1), {1, 2, 3}), "001");
}

COVERS("emb:H16")
TEST_F(StoreSnapshot, H16WhatIsAssignedAfterASaveIsGoneAfterTheRestore) {
  const Files files = Save(store_);
  ASSERT_TRUE(Assign(TableOf(store_, 1), {500}, {5}).ok());
  ASSERT_TRUE(Restore(store_, files).ok());
  ExpectNear(LookUp(TableOf(store_, 1), {500}), {0}, 0);
}

// Expiry.

COVERS("emb:H12")
TEST_F(StoreSnapshot, H12EntriesOfTheirExpiryAgeAreLeftOut) {
  constexpr uint32_t kNewest = 10'000'000;
  TableConfig config = Config(1);
  config.expire_days = 1;
  const auto store = MakeStore({config});
  EmbeddingTable& table = TableOf(store);
  const uint32_t times[] = {kNewest - kDay - 1, kNewest - kDay + 1, kNewest};
  for (int64_t fid = 0; fid < 3; ++fid) {
    ASSERT_TRUE(Assign(table, {fid}, {static_cast<float>(fid + 1)}, {times[fid], false, false}).ok());
  }
  ASSERT_TRUE(Restore(store, Save(store)).ok());
  ExpectNear(LookUp(table, {0, 1, 2}), {0, 2, 3}, 0);
  EXPECT_EQ(table.size(), 2);
  table.Clear();
  for (int64_t fid = 0; fid < 3; ++fid) {
    ASSERT_TRUE(Update(table, {fid}, {static_cast<float>(fid + 1)}, {{1}, times[fid], 0}).ok());
  }
  ASSERT_TRUE(Restore(store, Save(store)).ok());
  ExpectNear(LookUp(table, {0, 1, 2}), {0, -2, -3}, 0);
}

COVERS("emb:H13")
TEST_F(StoreSnapshot, H13AnExpiryOfZeroLeavesAllOut) {
  TableConfig config = Config(1);
  config.expire_days = 0;
  for (const uint32_t timestamp : {0u, 7u, 4'000'000'000u}) {
    const auto store = MakeStore({config});
    Train(TableOf(store), Sequence(100), timestamp);
    ASSERT_TRUE(Restore(store, Save(store)).ok());
    EXPECT_EQ(TableOf(store).size(), 0);
  }
}

COVERS("emb:H14")
TEST_F(StoreSnapshot, H14EntriesOfOneTimeAreAllKept) {
  TableConfig config = Config(1);
  config.expire_days = 1;
  for (const uint32_t timestamp : {0u, 100u}) {
    const auto store = MakeStore({config});
    Train(TableOf(store), Sequence(100), timestamp);
    ASSERT_TRUE(Restore(store, Save(store)).ok());
    EXPECT_EQ(TableOf(store).size(), 100);
  }
}

COVERS("emb:H15")
TEST_F(StoreSnapshot, H15ASlotHasItsOwnExpiry) {
  TableConfig config = Config(1);
  config.expire_days = 3600;
  config.slot_expire_days = {{1, 0}, {2, 1}};
  const auto store = MakeStore({config});
  const std::vector<int64_t> fids = {int64_t{1} << 48, int64_t{2} << 48};
  ASSERT_TRUE(Assign(TableOf(store), fids, {1, 2}, {100, false, false}).ok());
  for (int round = 0; round < 2; ++round) {
    ASSERT_TRUE(Restore(store, Save(store)).ok());
    ExpectNear(LookUp(TableOf(store), fids), {0, 2}, 0);
  }
}

// Filters.

COVERS("emb:F4")
TEST_F(StoreSnapshot, F4ARestoredFilterGoesOnCounting) {
  const TableConfig config = Filtered(Config(1), Sliding(100), 3);
  const auto store = MakeStore({config});
  const auto run = [](EmbeddingTable& table) {
    for (const int64_t fid : {int64_t{1}, int64_t{3} << 17, int64_t{1}}) ASSERT_TRUE(Update(table, {fid}, {-1}).ok());
  };
  run(TableOf(store));
  run(TableOf(store));
  const Files files = Save(store);
  EXPECT_EQ(files.size(), 2u);
  for (const auto& target : {MakeStore({config}), store}) {
    std::vector<std::string> notes;
    ASSERT_TRUE(Restore(target, files, {}, &notes).ok());
    EXPECT_TRUE(notes.empty());
    run(TableOf(target));
    ExpectNear(LookUp(TableOf(target), {1, int64_t{3} << 17}), {3, 0}, 0);
    run(TableOf(target));
    ExpectNear(LookUp(TableOf(target), {1, int64_t{3} << 17}), {5, 1}, 0);
  }
}

COVERS("emb:F9")
TEST_F(StoreSnapshot, F9AssignmentsThatAskCountAsSightings) {
  const auto store = MakeStore({Filtered(Config(1), Sliding(300), 2)});
  const auto add = [&] {
    EXPECT_TRUE(Assign(TableOf(store), {1}, {1}, {0, true, true}).ok());
    return LookUp(TableOf(store), {1})[0];
  };
  EXPECT_EQ(add(), 0);
  const Files files = Save(store);
  EXPECT_EQ(add(), 0);
  EXPECT_EQ(add(), 1);
  ASSERT_TRUE(Restore(store, files).ok());
  EXPECT_EQ(add(), 0);
  EXPECT_EQ(add(), 1);
}

TEST_F(StoreSnapshot, AFilterOfOtherShardsIsNotRestoredAndANoteSaysSo) {
  const TableConfig config = Filtered(Users(), Sliding(300), 1);
  const auto store = MakeStore({config});
  Train(TableOf(store), {1});
  const Files files = Save(store);
  const auto note_of = [&](const Files& given, const RestoreOptions& options, const std::string& expected) {
    const auto target = MakeStore({config});
    std::vector<std::string> notes;
    ASSERT_TRUE(Restore(target, given, options, &notes).ok());
    EXPECT_EQ(
        Joined(notes).find("the occurrence filter of table 'users' has no state for this shard") != std::string::npos,
        expected == "0");
    Train(TableOf(target), {1});
    EXPECT_EQ(Contains(TableOf(target), {1}), expected);
  };
  note_of(files, {}, "1");
  note_of({files[0]}, {}, "0");
  RestoreOptions second;
  second.shard = 1;
  second.num_shards = 2;
  note_of(files, second, "0");
}

TEST_F(StoreSnapshot, AFilterOfAnotherKindIsRefusedAndNothingChanges) {
  const Files files = Save(MakeStore({Filtered(Users(), Sliding(300), 1)}));
  const auto target = MakeStore({Filtered(Users(), Sliding(400), 1)});
  ASSERT_TRUE(Assign(TableOf(target), {1}, {1}).ok());
  EXPECT_FALSE(Restore(target, files).ok());
  EXPECT_EQ(TableOf(target).size(), 1);
}

TEST_F(StoreSnapshot, AStateOfAFilterIsPassedOverWhereThereIsNone) {
  const Files files = Save(MakeStore({Filtered(Users(), Sliding(300), 1)}));
  EXPECT_TRUE(Restore(MakeStore({Users()}), files).ok());
}

// Serving.

std::vector<RuleConfig> Compressors() {
  return {kFp32, {"fp16", {}}, {"bf16", {}}, {"int8", {{"range", 0.5}}}, OneBit(0.1, false), OneBit(0.1, true)};
}

TEST_F(StoreSnapshot, AServingSnapshotHoldsTheCompressedWeightsAlone) {
  for (const RuleConfig& rule : Compressors()) {
    const TableConfig config = Config({Segment(3, Adagrad(0.1), kUniform, rule), Segment(1, kSgd, kUniform)});
    const auto trained = MakeStore({config}), from_serving = MakeStore({Serving(config)}),
               from_training = MakeStore({Serving(config)});
    CreateAndLookUp(TableOf(trained), Sequence(500));
    Train(TableOf(trained), {1, 2, 3}, 77);
    const Files full = Save(trained), slim = Save(trained, {false, 0, 1});
    EXPECT_LT(ReadBytes(slim[0]).size(), ReadBytes(full[0]).size());
    ASSERT_TRUE(Restore(from_serving, slim).ok());
    ASSERT_TRUE(Restore(from_training, full).ok());
    EXPECT_EQ(Content(TableOf(from_serving)), Content(TableOf(from_training))) << rule.kind;

    const EntryLayout& layout = TableOf(from_serving).layout();
    for (const auto& [fid, row] : RowsById(TableOf(trained))) {
      std::string codes(layout.code_bytes(), '\0');
      layout.Encode(EntryLayout::Weights(RowHeader::EntryOf(row.data())), codes.data());
      EXPECT_EQ(RowOf(TableOf(from_serving), fid), row.substr(0, RowHeader::kBytes) + codes) << rule.kind;
    }
    // A serving store's own snapshot is its content.
    const auto copy = MakeStore({Serving(config)});
    ASSERT_TRUE(Restore(copy, Save(from_serving)).ok());
    EXPECT_EQ(Content(TableOf(copy)), Content(TableOf(from_serving)));
    EXPECT_EQ(Restore(trained, slim).code(), Code::kInvalidArgument);  // no state to train on
  }
}

TEST_F(StoreSnapshot, AServingTableMayCompressOtherwiseThanItsFile) {
  const TableConfig coarse = Config({Segment(1, kSgd, kZeros, {"int8", {{"range", 1}}})});
  const TableConfig fine = Config({Segment(1, kSgd, kZeros, kFp32)});
  const auto saved = MakeStore({coarse}), served = MakeStore({Serving(fine)});
  ASSERT_TRUE(Assign(TableOf(saved), {1}, {0.3f}).ok());
  ASSERT_TRUE(Restore(served, Save(saved, {false, 0, 1})).ok());
  ExpectNear(LookUp(TableOf(served), {1}), {38 / 128.0});
}

COVERS("emb:H21")
TEST_F(StoreSnapshot, H21ARestoreLeavesOutZerosWhereATableSkipsThem) {
  TableConfig config = Serving(Config(2));
  config.skip_zero = true;
  const auto saved = MakeStore({Config(2)}), served = MakeStore({config});
  std::vector<float> values;
  for (int64_t fid = 0; fid < 3000; ++fid) values.insert(values.end(), {static_cast<float>(fid % 2), 0});
  ASSERT_TRUE(Assign(TableOf(saved), Sequence(3000), values).ok());
  for (const bool with_state : {true, false}) {
    ASSERT_TRUE(Restore(served, Save(saved, {with_state, 0, 1})).ok());
    EXPECT_EQ(TableOf(served).size(), 1500);
    EXPECT_EQ(Contains(TableOf(served), Sequence(6)), "010101");
  }
}

}  // namespace
}  // namespace millrace
