// A folder for a test's files, and snapshots in one line.
#ifndef MILLRACE_TESTS_CC_SNAPSHOT_FILES_H_
#define MILLRACE_TESTS_CC_SNAPSHOT_FILES_H_

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ops/cc/embedding/snapshot/store_snapshot.h"
#include "ops/cc/embedding/snapshot/table_snapshot.h"
#include "tests/cc/test_tables.h"

namespace millrace {

using Files = std::vector<std::string>;

// Removed with all that is in it after each test.
class FilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = (std::filesystem::temp_directory_path() / ("millrace_test_" + std::to_string(::getpid()))).string();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  // A folder that no other call gave.
  std::string NewFolder() { return Path("folder-" + std::to_string(folders_++)); }

  Files Save(const std::shared_ptr<EmbeddingStore>& store, const SaveOptions& options = {}) {
    std::unique_ptr<StoreCut> cut;
    const Status begun = StoreCut::Begin(store, {}, &cut);
    EXPECT_TRUE(begun.ok()) << begun.message();
    return Write(*cut, options);
  }

  Files Write(StoreCut& cut, const SaveOptions& options = {}) {
    CutReport report;
    const Status written = cut.Write(NewFolder(), options, &report);
    EXPECT_TRUE(written.ok()) << written.message();
    return report.files;
  }

  std::string folder_;

 private:
  int folders_ = 0;
};

inline std::string ReadBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void WriteBytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

inline Status Restore(const std::shared_ptr<EmbeddingStore>& store, const Files& files,
                      const RestoreOptions& options = {}, std::vector<std::string>* notes = nullptr) {
  std::vector<std::string> own_notes;
  return RestoreStore(store.get(), files, options, notes == nullptr ? &own_notes : notes);
}

// Rows of a table file by id; each id may be there once.
inline std::map<int64_t, std::string> RowsOf(const std::string& path) {
  std::map<int64_t, std::string> rows;
  std::unique_ptr<TableFileReader> reader;
  const Status opened = TableFileReader::Open(path, &reader);
  EXPECT_TRUE(opened.ok()) << opened.message();
  EntryRows block;
  do {
    const Status read = reader->Next(&block);
    EXPECT_TRUE(read.ok()) << read.message();
    for (int64_t i = 0; i < block.size(); ++i) {
      const std::string row(block.at(i), block.row_bytes);
      EXPECT_TRUE(rows.emplace(RowHeader::Fid(row.data()), row).second);
    }
  } while (!block.bytes.empty());
  return rows;
}

inline TableConfig Movies() { return Named("movies", Config(3, Adagrad(0.1), kUniform)); }
inline TableConfig Users() { return Named("users", Config(1)); }

inline void Train(EmbeddingTable& table, const std::vector<int64_t>& fids, uint32_t timestamp = 7) {
  std::vector<float> gradients(fids.size() * table.dim());
  for (size_t i = 0; i < gradients.size(); ++i) gradients[i] = static_cast<float>(i % 17) - 8;
  const Step step{std::vector<float>(table.num_segments(), 0.5f), timestamp, 0};
  ASSERT_TRUE(Update(table, fids, gradients, step).ok());
}

inline std::map<int64_t, std::string> RowsById(const EmbeddingTable& table) {
  std::map<int64_t, std::string> rows;
  for (const std::string& row : Content(table)) rows[RowHeader::Fid(row.data())] = row;
  return rows;
}

// A store of two tables with entries.
class StoreSnapshot : public FilesTest {
 protected:
  void SetUp() override {
    FilesTest::SetUp();
    store_ = MakeStore({Movies(), Users()});
    Train(TableOf(store_, 0), Sequence(9000, -4000));
    Train(TableOf(store_, 1), Sequence(10));
  }

  std::shared_ptr<EmbeddingStore> store_;
};

}  // namespace millrace

#endif  // MILLRACE_TESTS_CC_SNAPSHOT_FILES_H_
