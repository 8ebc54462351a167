// Files of blocks under CRC-32C, written under a temporary name and renamed.
//
// Little endian. Eight bytes of magic; uint32 length of the header text; the text; uint32 CRC-32C of all before it.
// Then blocks: uint32 length, at least 1; that many bytes; uint32 CRC-32C over the block's index as uint32, its length
// and its bytes. Then the end: uint32 0; uint64 number of blocks; uint64 `count`, whatever the writer counts; uint32
// CRC-32C of these 20 bytes. Nothing follows.
#ifndef MILLRACE_EMBEDDING_CHECKED_FILE_H_
#define MILLRACE_EMBEDDING_CHECKED_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/cc/embedding/base/status.h"

namespace millrace {

class CheckedFileWriter {
 public:
  // Begins `path` under a temporary name beside it. `magic` is eight bytes.
  static Status Create(const std::string& path, const std::string& magic, const std::string& header,
                       std::unique_ptr<CheckedFileWriter>* result);
  // Removes what was not published.
  ~CheckedFileWriter();

  // Requires 1 up to kMaxBlockBytes bytes.
  Status WriteBlock(const void* data, size_t size);
  // Ends the file, syncs it and its folder, and renames it to its path.
  Status Publish(uint64_t count);

 private:
  class Descriptor;
  CheckedFileWriter(std::string path, std::unique_ptr<Descriptor> file);

  const std::string path_;
  std::unique_ptr<Descriptor> file_;
  uint32_t blocks_ = 0;
};

class CheckedFileReader {
 public:
  static constexpr size_t kMaxBlockBytes = size_t{1} << 28;

  // NotFound when there is no such file; DataLoss names the file and what is wrong in it.
  static Status Open(const std::string& path, const std::string& magic, std::unique_ptr<CheckedFileReader>* result);
  ~CheckedFileReader();

  const std::string& path() const { return path_; }
  const std::string& header() const { return header_; }

  // Reads and checks the next block; `block` is empty at the end of the file, whose count is then known. DataLoss names
  // the file and the block.
  Status Next(std::vector<char>* block);
  uint64_t count() const { return count_; }

  // Where the next block lies, for a reader that goes on later.
  struct Position {
    int64_t offset = 0;
    uint32_t block = 0;
  };
  Position position() const { return {offset_, block_}; }
  Status Seek(const Position& position);

 private:
  class Descriptor;
  CheckedFileReader(std::string path, std::unique_ptr<Descriptor> file);

  Status ReadHeader(const std::string& magic);
  Status ReadEnd();
  // Sets `complete` to whether all `size` bytes were there.
  Status Read(void* data, size_t size, bool* complete);

  const std::string path_;
  std::unique_ptr<Descriptor> file_;
  std::string header_;
  int64_t offset_ = 0;
  uint32_t block_ = 0;
  uint64_t count_ = 0;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_CHECKED_FILE_H_
