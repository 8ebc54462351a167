#include "ops/cc/embedding/base/checked_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <random>
#include <utility>

#include "ops/cc/embedding/base/crc32c.h"

namespace millrace {
namespace {

constexpr size_t kMagicBytes = 8;
constexpr uint32_t kMaxHeaderBytes = 1 << 20;

std::string SystemError(const std::string& action, const std::string& path) {
  return "cannot " + action + " " + path + ": " + std::strerror(errno);
}

// Another process of this number may write beside this one: in each container the first has number 1.
std::string TemporaryName(const std::string& path) {
  static std::atomic<uint64_t> calls{0};
  static const uint64_t process = std::random_device()() | (uint64_t{std::random_device()()} << 32);
  char token[17];
  std::snprintf(token, sizeof(token), "%016llx", static_cast<unsigned long long>(process + calls++));
  return path + ".tmp-" + token;
}

int OpenRetrying(const std::string& path, int flags) {
  int descriptor;
  do {
    descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
  } while (descriptor < 0 && errno == EINTR);
  return descriptor;
}

Status SyncFolder(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  const int descriptor = OpenRetrying(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY);
  if (descriptor < 0) return Internal(SystemError("open", folder));
  const bool synced = ::fsync(descriptor) == 0;
  ::close(descriptor);
  return synced ? Status() : Internal(SystemError("sync", folder));
}

uint32_t BlockCrc(uint32_t index, uint32_t size, const void* data) {
  const uint32_t crc = Crc32c(Crc32c(0, &index, sizeof(index)), &size, sizeof(size));
  return Crc32c(crc, data, size);
}

struct EndMark {
  uint64_t blocks;
  uint64_t count;
};

uint32_t EndCrc(const EndMark& end) {
  const uint32_t zero = 0;
  return Crc32c(Crc32c(0, &zero, sizeof(zero)), &end, sizeof(end));
}

}  // namespace

class CheckedFileWriter::Descriptor {
 public:
  explicit Descriptor(std::string path)
      : path_(std::move(path)), fd_(OpenRetrying(path_, O_WRONLY | O_CREAT | O_EXCL)) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
    if (fd_ >= 0 && !published_) ::unlink(path_.c_str());
  }

  bool is_open() const { return fd_ >= 0; }
  const std::string& path() const { return path_; }

  Status Write(const void* data, size_t size) {
    const auto* bytes = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t written = ::write(fd_, bytes, size);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return Internal(SystemError("write", path_));
      bytes += written;
      size -= written;
    }
    return {};
  }

  Status RenameTo(const std::string& path) {
    if (::fsync(fd_) != 0) return Internal(SystemError("sync", path_));
    if (::rename(path_.c_str(), path.c_str()) != 0) return Internal(SystemError("rename to", path));
    published_ = true;
    return SyncFolder(path);
  }

 private:
  const std::string path_;
  const int fd_;
  bool published_ = false;
};

Status CheckedFileWriter::Create(const std::string& path, const std::string& magic, const std::string& header,
                                 std::unique_ptr<CheckedFileWriter>* result) {
  auto file = std::make_unique<Descriptor>(TemporaryName(path));
  if (!file->is_open()) return Internal(SystemError("create", file->path()));
  result->reset(new CheckedFileWriter(path, std::move(file)));
  const auto length = static_cast<uint32_t>(header.size());
  std::string bytes = magic;
  bytes.append(reinterpret_cast<const char*>(&length), sizeof(length));
  bytes += header;
  const uint32_t crc = Crc32c(0, bytes.data(), bytes.size());
  bytes.append(reinterpret_cast<const char*>(&crc), sizeof(crc));
  return (*result)->file_->Write(bytes.data(), bytes.size());
}

CheckedFileWriter::CheckedFileWriter(std::string path, std::unique_ptr<Descriptor> file)
    : path_(std::move(path)), file_(std::move(file)) {}
CheckedFileWriter::~CheckedFileWriter() = default;

Status CheckedFileWriter::WriteBlock(const void* data, size_t size) {
  const auto length = static_cast<uint32_t>(size);
  const uint32_t crc = BlockCrc(blocks_++, length, data);
  MILLRACE_RETURN_IF_ERROR(file_->Write(&length, sizeof(length)));
  MILLRACE_RETURN_IF_ERROR(file_->Write(data, size));
  return file_->Write(&crc, sizeof(crc));
}

Status CheckedFileWriter::Publish(uint64_t count) {
  const uint32_t zero = 0;
  const EndMark end{blocks_, count};
  const uint32_t crc = EndCrc(end);
  MILLRACE_RETURN_IF_ERROR(file_->Write(&zero, sizeof(zero)));
  MILLRACE_RETURN_IF_ERROR(file_->Write(&end, sizeof(end)));
  MILLRACE_RETURN_IF_ERROR(file_->Write(&crc, sizeof(crc)));
  return file_->RenameTo(path_);
}

class CheckedFileReader::Descriptor {
 public:
  explicit Descriptor(const std::string& path) : fd_(OpenRetrying(path, O_RDONLY)) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  const int fd_;
};

Status CheckedFileReader::Open(const std::string& path, const std::string& magic,
                               std::unique_ptr<CheckedFileReader>* result) {
  auto file = std::make_unique<Descriptor>(path);
  if (file->get() < 0) return NotFound(SystemError("open", path));
  result->reset(new CheckedFileReader(path, std::move(file)));
  return (*result)->ReadHeader(magic);
}

CheckedFileReader::CheckedFileReader(std::string path, std::unique_ptr<Descriptor> file)
    : path_(std::move(path)), file_(std::move(file)) {}
CheckedFileReader::~CheckedFileReader() = default;

Status CheckedFileReader::Read(void* data, size_t size, bool* complete) {
  auto* bytes = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t count = ::read(file_->get(), bytes, size);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Internal(SystemError("read", path_));
    if (count == 0) break;
    bytes += count;
    size -= count;
    offset_ += count;
  }
  *complete = size == 0;
  return {};
}

Status CheckedFileReader::ReadHeader(const std::string& magic) {
  const auto damaged = [&](const std::string& what) { return DataLoss(path_ + ", header: " + what); };
  std::string bytes(kMagicBytes + sizeof(uint32_t), '\0');
  bool complete = false;
  MILLRACE_RETURN_IF_ERROR(Read(bytes.data(), bytes.size(), &complete));
  if (!complete || bytes.compare(0, kMagicBytes, magic) != 0) return damaged("not a Millrace file of this kind");
  uint32_t length;
  std::memcpy(&length, bytes.data() + kMagicBytes, sizeof(length));
  if (length > kMaxHeaderBytes) return damaged("impossible length");
  bytes.resize(bytes.size() + length);
  uint32_t crc = 0;
  MILLRACE_RETURN_IF_ERROR(Read(bytes.data() + bytes.size() - length, length, &complete));
  if (complete) MILLRACE_RETURN_IF_ERROR(Read(&crc, sizeof(crc), &complete));
  if (!complete) return damaged("the file ends inside it");
  if (crc != Crc32c(0, bytes.data(), bytes.size())) return damaged("checksum does not match");
  header_ = bytes.substr(bytes.size() - length);
  return {};
}

Status CheckedFileReader::Next(std::vector<char>* block) {
  block->clear();
  const std::string where = path_ + ", block " + std::to_string(block_);
  uint32_t length = 0, crc = 0;
  bool complete = false;
  MILLRACE_RETURN_IF_ERROR(Read(&length, sizeof(length), &complete));
  if (!complete) return DataLoss(where + ": the file ends before it");
  if (length == 0) return ReadEnd();
  struct stat info;
  const bool fits = ::fstat(file_->get(), &info) == 0 && static_cast<int64_t>(length) <= info.st_size - offset_;
  if (length > kMaxBlockBytes || !fits)
    return DataLoss(where + ": its length is impossible, or the file ends inside it");
  block->resize(length);
  MILLRACE_RETURN_IF_ERROR(Read(block->data(), length, &complete));
  if (complete) MILLRACE_RETURN_IF_ERROR(Read(&crc, sizeof(crc), &complete));
  if (!complete) return DataLoss(where + ": the file ends inside it");
  if (crc != BlockCrc(block_, length, block->data())) return DataLoss(where + ": checksum does not match");
  ++block_;
  return {};
}

Status CheckedFileReader::ReadEnd() {
  const auto damaged = [&](const std::string& what) { return DataLoss(path_ + ", end: " + what); };
  EndMark end{};
  uint32_t crc = 0;
  bool complete = false;
  MILLRACE_RETURN_IF_ERROR(Read(&end, sizeof(end), &complete));
  if (complete) MILLRACE_RETURN_IF_ERROR(Read(&crc, sizeof(crc), &complete));
  if (!complete) return damaged("the file ends inside it");
  if (crc != EndCrc(end)) return damaged("checksum does not match");
  if (end.blocks != block_) return damaged("blocks are missing or added");
  char extra;
  MILLRACE_RETURN_IF_ERROR(Read(&extra, 1, &complete));
  if (complete) return damaged("bytes follow it");
  count_ = end.count;
  return {};
}

Status CheckedFileReader::Seek(const Position& position) {
  if (::lseek(file_->get(), position.offset, SEEK_SET) < 0) return Internal(SystemError("seek in", path_));
  offset_ = position.offset;
  block_ = position.block;
  return {};
}

}  // namespace millrace
