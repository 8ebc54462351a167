// Files that are torn, mixed up or of something else: refused by name before anything changes.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "ops/cc/embedding/snapshot/store_snapshot.h"
#include "tests/cc/snapshot_files.h"

namespace millrace {
namespace {

class DamagedSnapshot : public FilesTest {
 protected:
  void SetUp() override {
    FilesTest::SetUp();
    const TableConfig filtered = Filtered(Named("filtered", Config(1)), {"counting", {{"capacity", 300}}}, 2);
    saved_ = MakeStore({Users(), filtered});
    Train(TableOf(saved_, 0), Sequence(9));
    Train(TableOf(saved_, 1), {1});
    files_ = Save(saved_);
    target_ = MakeStore({Users(), filtered});
    Train(TableOf(target_, 0), Sequence(3, 100));
    before_ = Content(TableOf(target_, 0));
  }

  // Refused with the file's name and the place in it, and nothing changed.
  void ExpectRefused(size_t file, const std::string& bytes) {
    WriteBytes(files_[file], bytes);
    const Status status = Restore(target_, files_);
    EXPECT_EQ(status.code(), Code::kDataLoss);
    const size_t place = status.message().find(files_[file] + ", ");
    ASSERT_NE(place, std::string::npos) << status.message();
    const std::string after = status.message().substr(place + files_[file].size() + 2);
    EXPECT_TRUE(after.rfind("header: ", 0) == 0 || after.rfind("block ", 0) == 0 || after.rfind("end: ", 0) == 0)
        << status.message();
    ASSERT_EQ(Content(TableOf(target_, 0)), before_);
    // The filter still counts from nothing.
    EXPECT_EQ(TableOf(target_, 1).filter()->Save(), untouched_filter_);
  }

  void ExpectRefusedHowever(size_t file) {
    untouched_filter_ = TableOf(target_, 1).filter()->Save();
    const std::string good = ReadBytes(files_[file]);
    for (size_t i = 0; i < good.size(); ++i) {
      std::string flipped = good;
      flipped[i] = static_cast<char>(flipped[i] ^ 0x20);
      ExpectRefused(file, flipped);
      ExpectRefused(file, good.substr(0, i));
    }
    ExpectRefused(file, good + "x");
    WriteBytes(files_[file], good);
    EXPECT_TRUE(Restore(target_, files_).ok());
  }

  std::shared_ptr<EmbeddingStore> saved_, target_;
  Files files_;
  std::vector<std::string> before_;
  std::string untouched_filter_;
};

TEST_F(DamagedSnapshot, AnyFlippedByteOrTruncationOfATableIsRefusedAndNothingChanges) { ExpectRefusedHowever(0); }

TEST_F(DamagedSnapshot, AnyFlippedByteOrTruncationOfAFilterIsRefusedAndNothingChanges) {
  ASSERT_EQ(files_.size(), 3u);
  ASSERT_NE(files_[2].find(".filter"), std::string::npos);
  ExpectRefusedHowever(2);
}

TEST_F(DamagedSnapshot, ADamagedFileIsNotResharded) {
  const std::string good = ReadBytes(files_[0]);
  WriteBytes(files_[0], good.substr(0, good.size() - 9));
  const std::string folder = NewFolder();
  Files written;
  EXPECT_EQ(ReshardFiles({files_[0]}, folder, 2, &written).code(), Code::kDataLoss);
  EXPECT_TRUE(std::filesystem::is_empty(folder));
}

TEST_F(DamagedSnapshot, SwappedBlocksAreRefused) {
  const auto store = MakeStore({Users()});
  // More than a block of 1 MiB, of rows of 16 bytes.
  CreateAndLookUp(TableOf(store), Sequence(200'000));
  const Files files = Save(store);
  std::string bytes = ReadBytes(files[0]);
  uint32_t header_length = 0, block_length = 0;
  std::memcpy(&header_length, bytes.data() + 8, 4);
  const size_t first = 8 + 4 + header_length + 4;
  std::memcpy(&block_length, bytes.data() + first, 4);
  const size_t block = 4 + block_length + 4;
  ASSERT_EQ(bytes.substr(first, 4), bytes.substr(first + block, 4));
  bytes = bytes.substr(0, first) + bytes.substr(first + block, block) + bytes.substr(first, block) +
          bytes.substr(first + 2 * block);
  WriteBytes(files[0], bytes);
  const Status status = Restore(store, files);
  EXPECT_NE(status.message().find(files[0] + ", block 0: checksum"), std::string::npos) << status.message();
  EXPECT_EQ(TableOf(store).size(), 200'000);
}

TEST_F(DamagedSnapshot, AForeignFileIsRefused) {
  untouched_filter_ = TableOf(target_, 1).filter()->Save();
  for (const std::string& foreign : {std::string(), std::string("{\"json\": 1}"), ReadBytes(files_[2])}) {
    ExpectRefused(0, foreign);
  }
  EXPECT_EQ(Restore(target_, {folder_}).code(), Code::kInternal);
}

}  // namespace
}  // namespace millrace
