#include "ops/cc/embedding/table_snapshot.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>

#include "ops/cc/embedding/crc32c.h"

namespace millrace {
namespace {

constexpr char kMagic[] = "MILLTBL1";
constexpr size_t kMagicBytes = 8;
constexpr uint32_t kMaxHeaderBytes = 4096;
constexpr size_t kRowsPerBlock = 4096;

std::string SystemError(const std::string& action, const std::string& path) {
  return "cannot " + action + " " + path + ": " + std::strerror(errno);
}

class File {
 public:
  File(const std::string& path, int flags) : path_(path), descriptor_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {}
  ~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  bool is_open() const { return descriptor_ >= 0; }

  Status Write(const void* data, size_t size) {
    const auto* bytes = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t written = ::write(descriptor_, bytes, size);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return Internal(SystemError("write", path_));
      bytes += written;
      size -= written;
    }
    return {};
  }

  // Sets `complete` to whether all `size` bytes were there.
  Status Read(void* data, size_t size, bool* complete) {
    auto* bytes = static_cast<char*>(data);
    while (size > 0) {
      const ssize_t count = ::read(descriptor_, bytes, size);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return Internal(SystemError("read", path_));
      if (count == 0) break;
      bytes += count;
      size -= count;
    }
    *complete = size == 0;
    return {};
  }

  Status Rewind() {
    return ::lseek(descriptor_, 0, SEEK_SET) == 0 ? Status() : Internal(SystemError("seek in", path_));
  }
  Status Sync() { return ::fsync(descriptor_) == 0 ? Status() : Internal(SystemError("sync", path_)); }
  int64_t Size() const {
    struct stat info;
    return ::fstat(descriptor_, &info) == 0 ? static_cast<int64_t>(info.st_size) : 0;
  }

 private:
  const std::string path_;
  const int descriptor_;
};

// Same length for any count, so it can be overwritten once the count is known.
std::string HeaderBytes(const SnapshotHeader& header) {
  char count[32];
  std::snprintf(count, sizeof(count), "%020" PRId64, header.count);
  const std::string text = "format_version=1;table=" + header.table + ";dim=" + std::to_string(header.dim) +
                           ";optimizer=" + header.optimizer + ";state_floats=" + std::to_string(header.state_floats) +
                           ";count=" + count;
  const auto length = static_cast<uint32_t>(text.size());
  std::string bytes(kMagic, kMagicBytes);
  bytes.append(reinterpret_cast<const char*>(&length), sizeof(length));
  bytes += text;
  const uint32_t crc = Crc32c(0, bytes.data(), bytes.size());
  bytes.append(reinterpret_cast<const char*>(&crc), sizeof(crc));
  return bytes;
}

size_t BlockBytes(uint32_t rows, int floats) {
  return sizeof(uint32_t) + rows * (sizeof(int64_t) + sizeof(uint32_t) + floats * sizeof(float));
}

uint32_t BlockCrc(uint32_t index, const std::vector<char>& bytes) {
  return Crc32c(Crc32c(0, &index, sizeof(index)), bytes.data(), bytes.size());
}

Status WriteBlock(const EntryBlock& block, size_t first, size_t last, uint32_t index, std::vector<char>* buffer,
                  File* file) {
  const auto rows = static_cast<uint32_t>(last - first);
  buffer->resize(BlockBytes(rows, block.floats));
  char* at = buffer->data();
  const auto put = [&at](const void* data, size_t size) {
    std::memcpy(at, data, size);
    at += size;
  };
  put(&rows, sizeof(rows));
  put(block.fids.data() + first, rows * sizeof(int64_t));
  put(block.timestamps.data() + first, rows * sizeof(uint32_t));
  put(block.values.data() + first * block.floats, rows * block.floats * sizeof(float));
  const uint32_t crc = BlockCrc(index, *buffer);
  MILLRACE_RETURN_IF_ERROR(file->Write(buffer->data(), buffer->size()));
  return file->Write(&crc, sizeof(crc));
}

Status WriteTable(const EmbeddingTable& table, bool with_state, File* file) {
  SnapshotHeader header{table.config().name, table.dim(), with_state ? table.config().optimizer.kind : "none",
                        with_state ? table.state_floats() : 0, 0};
  const std::string placeholder = HeaderBytes(header);
  MILLRACE_RETURN_IF_ERROR(file->Write(placeholder.data(), placeholder.size()));
  EntryBlock block;
  std::vector<char> buffer;
  uint32_t index = 0;
  for (int shard = 0; shard < EmbeddingTable::kLockShards; ++shard) {
    table.Export(shard, with_state, &block);
    for (size_t first = 0; first < block.fids.size(); first += kRowsPerBlock) {
      const size_t last = std::min(first + kRowsPerBlock, block.fids.size());
      MILLRACE_RETURN_IF_ERROR(WriteBlock(block, first, last, index++, &buffer, file));
    }
    header.count += block.fids.size();
  }
  if (header.count != table.size()) {
    return FailedPrecondition("table '" + header.table + "' changed while it was saved: pause updates before a save");
  }
  const std::string bytes = HeaderBytes(header);
  MILLRACE_RETURN_IF_ERROR(file->Rewind());
  MILLRACE_RETURN_IF_ERROR(file->Write(bytes.data(), bytes.size()));
  return file->Sync();
}

Status SyncFolder(const std::string& folder) {
  File file(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY);
  return file.is_open() ? file.Sync() : Internal(SystemError("open", folder));
}

bool ParseCount(const std::map<std::string, std::string>& fields, const char* key, int64_t* value) {
  const auto found = fields.find(key);
  if (found == fields.end() || found->second.empty()) return false;
  char* end = nullptr;
  *value = std::strtoll(found->second.c_str(), &end, 10);
  return *end == '\0' && *value >= 0;
}

Status ReadHeader(const std::string& path, File* file, SnapshotHeader* header) {
  const auto damaged = [&](const std::string& what) { return DataLoss(path + ", header: " + what); };
  std::vector<char> bytes(kMagicBytes + sizeof(uint32_t));
  bool complete = false;
  MILLRACE_RETURN_IF_ERROR(file->Read(bytes.data(), bytes.size(), &complete));
  if (!complete || std::memcmp(bytes.data(), kMagic, kMagicBytes) != 0) return damaged("not a Millrace table file");
  uint32_t length;
  std::memcpy(&length, bytes.data() + kMagicBytes, sizeof(length));
  if (length > kMaxHeaderBytes) return damaged("impossible length");
  bytes.resize(bytes.size() + length + sizeof(uint32_t));
  char* text = bytes.data() + kMagicBytes + sizeof(uint32_t);
  MILLRACE_RETURN_IF_ERROR(file->Read(text, length + sizeof(uint32_t), &complete));
  if (!complete) return damaged("the file ends inside it");
  uint32_t crc;
  std::memcpy(&crc, text + length, sizeof(crc));
  if (crc != Crc32c(0, bytes.data(), bytes.size() - sizeof(crc))) return damaged("checksum does not match");
  std::map<std::string, std::string> fields;
  MILLRACE_RETURN_IF_ERROR(ParseKeyValues(std::string_view(text, length), &fields));
  int64_t version = 0, dim = 0, state_floats = 0;
  if (!ParseCount(fields, "format_version", &version) || version != 1) {
    return damaged("format version " + fields["format_version"] + " is not one that this build reads (1)");
  }
  if (!ParseCount(fields, "dim", &dim) || !ParseCount(fields, "state_floats", &state_floats) ||
      !ParseCount(fields, "count", &header->count)) {
    return damaged("a number is missing");
  }
  header->table = fields["table"];
  header->optimizer = fields["optimizer"];
  header->dim = static_cast<int>(dim);
  header->state_floats = static_cast<int>(state_floats);
  return {};
}

Status ReadBlock(const std::string& where, File* file, uint32_t index, int64_t rows_left, std::vector<char>* buffer,
                 EntryBlock* block) {
  uint32_t rows = 0;
  bool complete = false;
  MILLRACE_RETURN_IF_ERROR(file->Read(&rows, sizeof(rows), &complete));
  if (!complete) return DataLoss(where + ": the file ends before it");
  if (rows == 0 || rows > kRowsPerBlock || rows > rows_left) return DataLoss(where + ": impossible number of entries");
  buffer->resize(BlockBytes(rows, block->floats));
  std::memcpy(buffer->data(), &rows, sizeof(rows));
  MILLRACE_RETURN_IF_ERROR(file->Read(buffer->data() + sizeof(rows), buffer->size() - sizeof(rows), &complete));
  uint32_t crc = 0;
  if (complete) MILLRACE_RETURN_IF_ERROR(file->Read(&crc, sizeof(crc), &complete));
  if (!complete) return DataLoss(where + ": the file ends inside it");
  if (crc != BlockCrc(index, *buffer)) return DataLoss(where + ": checksum does not match");
  const char* at = buffer->data() + sizeof(rows);
  const auto take = [&at](auto* column, size_t count) {
    column->resize(count);
    std::memcpy(column->data(), at, count * sizeof((*column)[0]));
    at += count * sizeof((*column)[0]);
  };
  take(&block->fids, rows);
  take(&block->timestamps, rows);
  take(&block->values, static_cast<size_t>(rows) * block->floats);
  return {};
}

Status CheckFits(const std::string& path, const SnapshotHeader& header, const EmbeddingTable& table) {
  const auto differs = [&](const std::string& what, const std::string& expected, const std::string& found) {
    return InvalidArgument(path + ": table '" + header.table + "' has " + what + " " + found + ", expected " +
                           expected);
  };
  const std::string& optimizer = table.config().optimizer.kind;
  if (header.dim != table.dim()) return differs("dim", std::to_string(table.dim()), std::to_string(header.dim));
  if (optimizer == "none") return {};
  if (header.optimizer != optimizer) return differs("optimizer", optimizer, header.optimizer);
  if (header.state_floats != table.state_floats()) {
    return differs("state_floats", std::to_string(table.state_floats()), std::to_string(header.state_floats));
  }
  return {};
}

}  // namespace

Status SaveTable(const EmbeddingTable& table, const std::string& path, bool with_state) {
  const std::string temporary = path + ".tmp-" + std::to_string(::getpid());
  Status status;
  {
    File file(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    status = file.is_open() ? WriteTable(table, with_state, &file) : Internal(SystemError("create", temporary));
  }
  if (status.ok() && ::rename(temporary.c_str(), path.c_str()) != 0) status = Internal(SystemError("rename to", path));
  if (!status.ok()) {
    ::unlink(temporary.c_str());
    return status;
  }
  return SyncFolder(std::filesystem::path(path).parent_path().string());
}

Status ReadSnapshot(const std::string& path, SnapshotHeader* header,
                    const std::function<void(const EntryBlock&)>& on_block) {
  File file(path, O_RDONLY);
  if (!file.is_open()) return NotFound(SystemError("open", path));
  MILLRACE_RETURN_IF_ERROR(ReadHeader(path, &file, header));
  EntryBlock block;
  block.floats = header->dim + header->state_floats;
  std::vector<char> buffer;
  int64_t rows_left = header->count;
  for (uint32_t index = 0; rows_left > 0; ++index) {
    const std::string where = path + ", block " + std::to_string(index);
    MILLRACE_RETURN_IF_ERROR(ReadBlock(where, &file, index, rows_left, &buffer, &block));
    rows_left -= block.fids.size();
    on_block(block);
  }
  char extra;
  bool complete = false;
  MILLRACE_RETURN_IF_ERROR(file.Read(&extra, 1, &complete));
  return complete ? DataLoss(path + ": bytes follow the last block") : Status();
}

Status SaveStore(const EmbeddingStore& store, const std::string& folder, bool with_state,
                 std::vector<std::string>* files) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return Internal("cannot create folder " + folder + ": " + error.message());
  files->clear();
  for (const auto& table : store.tables()) {
    files->push_back((std::filesystem::path(folder) / (table->config().name + "-00000-of-00001.table")).string());
    MILLRACE_RETURN_IF_ERROR(SaveTable(*table, files->back(), with_state));
  }
  return {};
}

Status RestoreStore(EmbeddingStore* store, const std::vector<std::string>& files) {
  std::map<std::string, std::string> file_of_table;
  for (const std::string& path : files) {
    SnapshotHeader header;
    MILLRACE_RETURN_IF_ERROR(ReadSnapshot(path, &header, [](const EntryBlock&) {}));
    EmbeddingTable* table = nullptr;
    const Status known = store->Find(header.table, &table);
    if (!known.ok()) return InvalidArgument(path + ": " + known.message());
    MILLRACE_RETURN_IF_ERROR(CheckFits(path, header, *table));
    const auto [other, is_new] = file_of_table.emplace(header.table, path);
    if (!is_new)
      return InvalidArgument("table '" + header.table + "' is in two files: " + other->second + " and " + path);
  }
  for (const auto& table : store->tables()) {
    if (file_of_table.count(table->config().name) == 0) {
      return InvalidArgument("no file for table '" + table->config().name + "' of store '" + store->name() + "'");
    }
  }
  for (const auto& table : store->tables()) {
    table->Clear();
    SnapshotHeader header;
    MILLRACE_RETURN_IF_ERROR(ReadSnapshot(file_of_table[table->config().name], &header,
                                          [&](const EntryBlock& block) { table->Import(block); }));
  }
  return {};
}

Status RestoreStoreOnce(EmbeddingStore* store, const std::vector<std::string>& files) {
  return store->DoOnce([&] { return RestoreStore(store, files); });
}

}  // namespace millrace
