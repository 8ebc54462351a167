// Files of checked blocks, and every kind of damage.
#include "ops/cc/embedding/base/checked_file.h"

#include <filesystem>

#include "ops/cc/embedding/base/crc32c.h"
#include "tests/cc/snapshot_files.h"

namespace millrace {
namespace {

constexpr char kMagic[] = "TESTFILE";

class CheckedFile : public FilesTest {
 protected:
  std::string WriteBlocks(const std::vector<std::string>& blocks, const std::string& header = "a=1") {
    const std::string path = Path("x");
    std::unique_ptr<CheckedFileWriter> writer;
    EXPECT_TRUE(CheckedFileWriter::Create(path, kMagic, header, &writer).ok());
    for (const std::string& block : blocks) EXPECT_TRUE(writer->WriteBlock(block.data(), block.size()).ok());
    EXPECT_TRUE(writer->Publish(42).ok());
    return path;
  }

  // Reads all blocks.
  static Status ReadAll(const std::string& path, std::vector<std::string>* blocks, uint64_t* count = nullptr) {
    std::unique_ptr<CheckedFileReader> reader;
    MILLRACE_RETURN_IF_ERROR(CheckedFileReader::Open(path, kMagic, &reader));
    std::vector<char> block;
    while (true) {
      MILLRACE_RETURN_IF_ERROR(reader->Next(&block));
      if (block.empty()) break;
      blocks->emplace_back(block.begin(), block.end());
    }
    if (count != nullptr) *count = reader->count();
    return {};
  }

  static std::string Damage(const std::string& path) {
    std::vector<std::string> blocks;
    const Status status = ReadAll(path, &blocks);
    EXPECT_EQ(status.code(), Code::kDataLoss);
    EXPECT_EQ(status.message().rfind(path + ", ", 0), 0u) << status.message();
    return status.message();
  }

  int FilesInFolder() const {
    int count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder_)) ++count;
    return count;
  }
};

TEST(Crc32c, MatchesThePublishedCheckValue) {
  EXPECT_EQ(Crc32c(0, "123456789", 9), 0xE3069283u);
  EXPECT_EQ(Crc32c(Crc32c(0, "1234", 4), "56789", 5), 0xE3069283u);
}

TEST_F(CheckedFile, GivesBackHeaderBlocksAndCount) {
  const std::vector<std::string> blocks = {"one", std::string(100000, 'x'), std::string(1, '\0')};
  const std::string path = WriteBlocks(blocks, "text=any;bytes");
  std::vector<std::string> read;
  uint64_t count = 0;
  ASSERT_TRUE(ReadAll(path, &read, &count).ok());
  EXPECT_EQ(read, blocks);
  EXPECT_EQ(count, 42u);
  read.clear();
  ASSERT_TRUE(ReadAll(WriteBlocks({}, ""), &read).ok());
  EXPECT_TRUE(read.empty());
}

TEST_F(CheckedFile, TwoWritersOfOnePathDoNotMeet) {
  const std::string path = Path("shared");
  std::unique_ptr<CheckedFileWriter> first, second;
  ASSERT_TRUE(CheckedFileWriter::Create(path, kMagic, "", &first).ok());
  ASSERT_TRUE(first->WriteBlock("first", 5).ok());
  ASSERT_TRUE(CheckedFileWriter::Create(path, kMagic, "", &second).ok());
  ASSERT_TRUE(second->WriteBlock("second", 6).ok());
  std::vector<std::string> read;
  for (const auto& [writer, expected] : {std::pair(first.get(), "first"), std::pair(second.get(), "second")}) {
    ASSERT_TRUE(writer->Publish(1).ok());
    read.clear();
    ASSERT_TRUE(ReadAll(path, &read).ok());
    EXPECT_EQ(read, std::vector<std::string>{expected});
  }
}

TEST_F(CheckedFile, AReaderGoesOnFromAPosition) {
  const std::string path = WriteBlocks({"one", "two", "three"});
  std::unique_ptr<CheckedFileReader> reader;
  ASSERT_TRUE(CheckedFileReader::Open(path, kMagic, &reader).ok());
  std::vector<char> block;
  ASSERT_TRUE(reader->Next(&block).ok());
  const CheckedFileReader::Position position = reader->position();
  ASSERT_TRUE(CheckedFileReader::Open(path, kMagic, &reader).ok());
  ASSERT_TRUE(reader->Seek(position).ok());
  ASSERT_TRUE(reader->Next(&block).ok());
  EXPECT_EQ(std::string(block.begin(), block.end()), "two");
}

TEST_F(CheckedFile, AnyFlippedBitIsFound) {
  const std::string path = WriteBlocks({"one", "three", "two"});
  const std::string good = ReadBytes(path);
  for (size_t i = 0; i < good.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ (1 << bit));
      WriteBytes(path, bad);
      Damage(path);
    }
  }
}

TEST_F(CheckedFile, AnyTruncationIsFoundAndTheBlockIsNamed) {
  const std::string path = WriteBlocks({"one", "three", "two"});
  const std::string good = ReadBytes(path);
  for (size_t size = 0; size < good.size(); ++size) {
    WriteBytes(path, good.substr(0, size));
    Damage(path);
  }
  const size_t first_block = 8 + 4 + 3 + 4;
  WriteBytes(path, good.substr(0, first_block - 1));
  EXPECT_NE(Damage(path).find(", header: the file ends inside it"), std::string::npos);
  WriteBytes(path, good.substr(0, first_block));
  EXPECT_NE(Damage(path).find(", block 0: the file ends before it"), std::string::npos);
  WriteBytes(path, good.substr(0, first_block + 4 + 3 + 4 + 4 + 2));
  EXPECT_NE(Damage(path).find(", block 1: "), std::string::npos);
  WriteBytes(path, good.substr(0, good.size() - 1));
  EXPECT_NE(Damage(path).find(", end: the file ends inside it"), std::string::npos);
  WriteBytes(path, good + "x");
  EXPECT_NE(Damage(path).find(", end: bytes follow it"), std::string::npos);
}

TEST_F(CheckedFile, SwappedDoubledOrMissingBlocksAreFound) {
  const std::string path = WriteBlocks({"one", "two"});
  const std::string good = ReadBytes(path);
  constexpr size_t kBlock = 4 + 3 + 4, kEnd = 4 + 8 + 8 + 4;
  const size_t first = good.size() - kEnd - 2 * kBlock;
  const std::string start = good.substr(0, first), one = good.substr(first, kBlock),
                    two = good.substr(first + kBlock, kBlock), end = good.substr(good.size() - kEnd);
  WriteBytes(path, start + two + one + end);
  EXPECT_NE(Damage(path).find(", block 0: checksum"), std::string::npos);
  WriteBytes(path, start + one + one + end);
  EXPECT_NE(Damage(path).find(", block 1: checksum"), std::string::npos);
  WriteBytes(path, start + one + end);
  EXPECT_NE(Damage(path).find(", end: blocks are missing"), std::string::npos);
}

TEST_F(CheckedFile, AForeignOrMissingFileIsRefused) {
  const std::string path = Path("x");
  std::vector<std::string> blocks;
  EXPECT_EQ(ReadAll(path, &blocks).code(), Code::kNotFound);
  for (const std::string& bytes :
       {std::string(), std::string("hello"), std::string(100000, 'x'), std::string(64, '\0')}) {
    WriteBytes(path, bytes);
    EXPECT_NE(Damage(path).find("not a Millrace file of this kind"), std::string::npos);
  }
  std::unique_ptr<CheckedFileReader> reader;
  EXPECT_EQ(CheckedFileReader::Open(WriteBlocks({"a"}), "OTHERONE", &reader).code(), Code::kDataLoss);
  EXPECT_EQ(CheckedFileReader::Open(folder_, kMagic, &reader).code(), Code::kInternal);
}

TEST_F(CheckedFile, AnImpossibleLengthIsRefusedBeforeItIsAllocated) {
  const std::string path = WriteBlocks({"one"});
  std::string bytes = ReadBytes(path);
  bytes.replace(8 + 4 + 3 + 4, 4, "\xFF\xFF\xFF\x7F");
  WriteBytes(path, bytes);
  EXPECT_NE(Damage(path).find(", block 0: its length is impossible"), std::string::npos);
}

TEST_F(CheckedFile, AFileAppearsWholeOrNotAtAll) {
  const std::string path = WriteBlocks({"old"});
  std::unique_ptr<CheckedFileWriter> writer;
  ASSERT_TRUE(CheckedFileWriter::Create(path, kMagic, "", &writer).ok());
  ASSERT_TRUE(writer->WriteBlock("new", 3).ok());
  std::vector<std::string> blocks;
  ASSERT_TRUE(ReadAll(path, &blocks).ok());
  EXPECT_EQ(blocks, std::vector<std::string>{"old"});
  writer.reset();
  EXPECT_EQ(FilesInFolder(), 1);
}

TEST_F(CheckedFile, AFailedPublicationLeavesNothingBehind) {
  std::filesystem::create_directory(Path("in_the_way"));
  std::unique_ptr<CheckedFileWriter> writer;
  ASSERT_TRUE(CheckedFileWriter::Create(Path("in_the_way"), kMagic, "", &writer).ok());
  EXPECT_EQ(writer->Publish(0).code(), Code::kInternal);
  writer.reset();
  EXPECT_EQ(FilesInFolder(), 1);
  EXPECT_EQ(CheckedFileWriter::Create(Path("missing/x"), kMagic, "", &writer).code(), Code::kInternal);
}

}  // namespace
}  // namespace millrace
