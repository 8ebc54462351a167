// Save and restore, and every kind of damage.
#include "ops/cc/embedding/table_snapshot.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/cc/test_tables.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

class TableSnapshot : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = (fs::temp_directory_path() / ("millrace_snapshot_" + std::to_string(::getpid()))).string();
    fs::remove_all(folder_);
    store_ = MakeStore({TableText("a", 3, Adagrad(0.1) + kUniform), TableText("b", 1, std::string(kSgd) + kZeros)});
    Fill(*store_->tables()[0], 9000);
    Fill(*store_->tables()[1], 10);
  }
  void TearDown() override { fs::remove_all(folder_); }

  static std::shared_ptr<EmbeddingStore> MakeStore(const std::vector<std::string>& tables) {
    std::shared_ptr<EmbeddingStore> store;
    const Status status = EmbeddingStore::Create("s", tables, &store);
    EXPECT_TRUE(status.ok()) << status.message();
    return store;
  }

  static void Fill(EmbeddingTable& table, int64_t count) {
    std::vector<int64_t> fids;
    for (int64_t i = 0; i < count; ++i) fids.push_back((i - 5) * 1000003);
    std::vector<float> gradients(count * table.dim());
    for (size_t i = 0; i < gradients.size(); ++i) gradients[i] = static_cast<float>(i % 17) - 8;
    ASSERT_TRUE(Update(table, fids, gradients, 0.5f).ok());
  }

  static std::string Read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  static void Write(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  }

  static Status Check(const std::string& path) {
    SnapshotHeader header;
    return ReadSnapshot(path, &header, [](const EntryBlock&) {});
  }

  std::string folder_;
  std::shared_ptr<EmbeddingStore> store_;
  std::vector<std::string> files_;
};

TEST_F(TableSnapshot, RestoresWeightsStateAndTimestampsExactlyAndSavesTheSameBytes) {
  ASSERT_TRUE(SaveStore(*store_, folder_ + "/1", true, &files_).ok());
  const auto restored = MakeStore(store_->table_texts());
  Fill(*restored->tables()[1], 20);  // forgotten by the restore
  ASSERT_TRUE(RestoreStore(restored.get(), files_).ok());
  std::vector<std::string> again;
  ASSERT_TRUE(SaveStore(*restored, folder_ + "/2", true, &again).ok());
  for (size_t i = 0; i < files_.size(); ++i) EXPECT_EQ(Read(files_[i]), Read(again[i]));
  EXPECT_EQ(restored->tables()[0]->size(), 9000);
  EXPECT_EQ(restored->tables()[1]->size(), 10);
}

TEST_F(TableSnapshot, AnyFlippedByteIsRefused) {
  EmbeddingTable& small = *store_->tables()[1];
  const std::string path = folder_ + "/x";
  fs::create_directories(folder_);
  ASSERT_TRUE(SaveTable(small, path, true).ok());
  const std::string good = Read(path);
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x20);
    Write(path, bad);
    EXPECT_FALSE(Check(path).ok()) << "byte " << i;
  }
}

TEST_F(TableSnapshot, AnyTruncationOrExtraByteIsRefusedWithFileAndBlock) {
  ASSERT_TRUE(SaveStore(*store_, folder_, true, &files_).ok());
  const std::string good = Read(files_[0]);
  for (size_t size = 0; size < good.size(); size += 997) {
    Write(files_[0], good.substr(0, size));
    const Status status = Check(files_[0]);
    EXPECT_EQ(status.code(), Code::kDataLoss) << size;
    EXPECT_NE(status.message().find(files_[0]), std::string::npos);
  }
  Write(files_[0], good.substr(0, good.size() - 1));
  EXPECT_NE(Check(files_[0]).message().find("block "), std::string::npos);
  Write(files_[0], good + "x");
  EXPECT_EQ(Check(files_[0]).code(), Code::kDataLoss);
}

TEST_F(TableSnapshot, SwappedBlocksAreRefused) {
  // 9,000 entries of one shard's worth each: find two blocks of equal size by saving a table whose shards hold the same
  // number.
  const auto table = MakeTable(TableText("t", 1, std::string(kSgd) + kZeros));
  std::vector<int64_t> fids;
  std::vector<int> per_shard(EmbeddingTable::kLockShards);
  for (int64_t fid = 0; fids.size() < EmbeddingTable::kLockShards; ++fid) {
    if (per_shard[HashFid(fid) >> 58]++ == 0) fids.push_back(fid);
  }
  ASSERT_TRUE(Update(*table, fids, std::vector<float>(fids.size(), 1), 1).ok());
  fs::create_directories(folder_);
  const std::string path = folder_ + "/x";
  ASSERT_TRUE(SaveTable(*table, path, true).ok());
  std::string bytes = Read(path);
  constexpr size_t kBlock = 4 + 8 + 4 + 4 + 4;
  const size_t first = bytes.size() - 2 * kBlock;
  bytes = bytes.substr(0, first) + bytes.substr(first + kBlock) + bytes.substr(first, kBlock);
  Write(path, bytes);
  EXPECT_NE(Check(path).message().find("block 62: checksum"), std::string::npos) << Check(path).message();
}

TEST_F(TableSnapshot, AForeignOrMissingFileIsRefused) {
  fs::create_directories(folder_);
  const std::string path = folder_ + "/x";
  EXPECT_EQ(Check(path).code(), Code::kNotFound);
  for (const std::string& bytes :
       {std::string(), std::string("hello"), std::string(100000, 'x'), std::string(64, '\0')}) {
    Write(path, bytes);
    EXPECT_NE(Check(path).message().find("not a Millrace table file"), std::string::npos);
  }
}

// emb:H36
TEST_F(TableSnapshot, H36AMismatchNamesTheTableAndLoadsNothing) {
  ASSERT_TRUE(SaveStore(*store_, folder_, true, &files_).ok());
  const std::string a = store_->table_texts()[0], b = store_->table_texts()[1];
  const auto problem = [&](const std::vector<std::string>& tables, const std::vector<std::string>& files) {
    const auto other = MakeStore(tables);
    const Status status = RestoreStore(other.get(), files);
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    for (const auto& table : other->tables()) EXPECT_EQ(table->size(), 0);
    return status.message();
  };
  EXPECT_NE(problem({TableText("a", 4, Adagrad(0.1) + kZeros), b}, files_).find("'a' has dim 3, expected 4"),
            std::string::npos);
  EXPECT_NE(problem({TableText("a", 3, std::string(kSgd) + kZeros), b}, files_)
                .find("'a' has optimizer adagrad, expected sgd"),
            std::string::npos);
  EXPECT_NE(problem({a}, files_).find("has no table 'b'"), std::string::npos);
  EXPECT_NE(problem({a, b}, {files_[0]}).find("no file for table 'b'"), std::string::npos);
  EXPECT_NE(problem({a, b}, {files_[0], files_[0], files_[1]}).find("in two files"), std::string::npos);
}

TEST_F(TableSnapshot, AServingTableLeavesOptimizerStateOut) {
  const auto serving = MakeStore({TableText("a", 3, std::string(";optimizer=none") + kZeros),
                                  TableText("b", 1, std::string(";optimizer=none") + kZeros)});
  std::vector<std::string> slim;
  ASSERT_TRUE(SaveStore(*store_, folder_ + "/full", true, &files_).ok());
  ASSERT_TRUE(SaveStore(*store_, folder_ + "/slim", false, &slim).ok());
  EXPECT_LT(fs::file_size(slim[0]), fs::file_size(files_[0]));
  const std::vector<int64_t> fids = {-5 * 1000003, 0, 1000003};
  for (const auto& files : {files_, slim}) {
    ASSERT_TRUE(RestoreStore(serving.get(), files).ok());
    EXPECT_EQ(LookUp(*serving->tables()[0], fids), LookUp(*store_->tables()[0], fids));
  }
  EXPECT_FALSE(RestoreStore(store_.get(), slim).ok());  // no state to train on
}

TEST_F(TableSnapshot, AFailedSaveLeavesTheOldFile) {
  ASSERT_TRUE(SaveStore(*store_, folder_, true, &files_).ok());
  const std::string good = Read(files_[0]);
  fs::create_directory(folder_ + "/in_the_way");
  EXPECT_FALSE(SaveTable(*store_->tables()[0], folder_ + "/in_the_way", true).ok());
  EXPECT_FALSE(SaveTable(*store_->tables()[0], folder_ + "/missing/x", true).ok());
  EXPECT_EQ(Read(files_[0]), good);
  for (const auto& entry : fs::directory_iterator(folder_)) {
    EXPECT_EQ(entry.path().string().find(".tmp-"), std::string::npos) << entry.path();
  }
}

}  // namespace
}  // namespace millrace
