#include "ops/cc/records/wire/framing.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ops/cc/embedding/base/crc32c.h"
#include "ops/cc/records/c_api.h"
#include "ops/cc/records/c_guard.h"
#include "ops/cc/records/wire/wire.h"

namespace millrace::records {
namespace {

constexpr uint64_t kSentinel = 0xfefefefe;
constexpr uint64_t kAbsurd = uint64_t{1} << 62;
constexpr int64_t kTfHeaderBytes = 12;
constexpr int64_t kTfFooterBytes = 4;
constexpr int64_t kCheckedBytes = 16 << 10;

template <typename T>
T Load(const uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

// TFRecord stores checksums rotated and shifted: a CRC over data that holds its own CRC is a constant.
uint32_t MaskedCrc(const uint8_t* data, int64_t size) {
  const uint32_t crc = Crc32c(0, data, static_cast<size_t>(size));
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

bool IsTfHeader(const uint8_t* bytes) { return MaskedCrc(bytes, 8) == Load<uint32_t>(bytes + 8); }

// Whether a TFRecord begins here, for a reader that does not know where frames begin. A payload of eight bytes looks
// like a header too, so the next header or the payload's checksum must fit; `kUnsure` when the buffer ends first.
enum class Guess { kNo, kYes, kUnsure };

Guess GuessTfRecord(const uint8_t* data, int64_t size, int64_t position, int64_t max_record_bytes) {
  if (!IsTfHeader(data + position)) return Guess::kNo;
  const uint64_t length = Load<uint64_t>(data + position);
  if (length > static_cast<uint64_t>(max_record_bytes)) return Guess::kNo;
  const int64_t start = position + kTfHeaderBytes, end = start + static_cast<int64_t>(length);
  const int64_t next = end + kTfFooterBytes;
  if (next > size) return Guess::kUnsure;
  // Only short payloads: a crafted file of headers would have its bytes checked once per header.
  if (end - start <= kCheckedBytes && MaskedCrc(data + start, end - start) == Load<uint32_t>(data + end)) {
    return Guess::kYes;
  }
  if (size - next < kTfHeaderBytes) return Guess::kUnsure;
  return IsTfHeader(data + next) ? Guess::kYes : Guess::kNo;
}

// Reads the parts of one header; once something is wrong, all further reads give 0.
class Header {
 public:
  Header(const uint8_t* data, int64_t size, int64_t position) : data_(data), size_(size), position_(position) {}

  uint64_t Word() {
    if (status != FrameStatus::kOk) return 0;
    if (size_ - position_ < 8) {
      status = FrameStatus::kTruncated;
      return 0;
    }
    position_ += 8;
    return Load<uint64_t>(data_ + position_ - 8);
  }

  void Skip(uint64_t bytes, int64_t limit) {
    if (status != FrameStatus::kOk) return;
    if (bytes > static_cast<uint64_t>(limit)) {
      status = FrameStatus::kMalformed;
    } else if (bytes > static_cast<uint64_t>(size_ - position_)) {
      status = FrameStatus::kTruncated;
    } else {
      position_ += static_cast<int64_t>(bytes);
    }
  }

  int64_t position() const { return position_; }

  FrameStatus status = FrameStatus::kOk;

 private:
  const uint8_t* const data_;
  const int64_t size_;
  int64_t position_;
};

Frame ParseTfRecord(const uint8_t* data, int64_t size, int64_t position, int64_t max_record_bytes) {
  if (size - position < kTfHeaderBytes) return {FrameStatus::kTruncated, position, 0, -1, 0};
  const uint64_t length = Load<uint64_t>(data + position);
  if (!IsTfHeader(data + position) || length >= kAbsurd) return {FrameStatus::kMalformed, position, 0, -1, 0};
  const int64_t start = position + kTfHeaderBytes, bytes = static_cast<int64_t>(length);
  const int64_t next = start + bytes + kTfFooterBytes;
  if (bytes > max_record_bytes) return {FrameStatus::kTooLarge, start, bytes, next, 0};
  if (next > size) return {FrameStatus::kTruncated, start, bytes, next, 0};
  const bool intact = MaskedCrc(data + start, bytes) == Load<uint32_t>(data + start + bytes);
  return {intact ? FrameStatus::kOk : FrameStatus::kBadChecksum, start, bytes, next, 0};
}

Frame ParseLine(const uint8_t* data, int64_t size, int64_t position, int64_t max_record_bytes) {
  const void* const found = std::memchr(data + position, '\n', static_cast<size_t>(size - position));
  if (found == nullptr) {
    const bool too_large = size - position > max_record_bytes;
    return {too_large ? FrameStatus::kTooLarge : FrameStatus::kTruncated, position, 0, -1, 0};
  }
  const int64_t length = static_cast<const uint8_t*>(found) - data - position, next = position + length + 1;
  return {length > max_record_bytes ? FrameStatus::kTooLarge : FrameStatus::kOk, position, length, next, 0};
}

uint8_t* Put(const void* bytes, size_t size, uint8_t* out) {
  if (size > 0) std::memcpy(out, bytes, size);
  return out + size;
}

// Writes one frame at `out` and returns where it ends.
uint8_t* WriteFrame(Span payload, int32_t flags, Span prefix, uint8_t* out) {
  if (flags & kLine) {
    out = Put(payload.begin, payload.size(), out);
    *out = '\n';
    return out + 1;
  }
  out = Put(prefix.begin, prefix.size(), out);
  const uint64_t length = payload.size();
  out = Put(&length, sizeof(length), out);
  if (flags & kTfRecord) {
    const uint32_t length_crc = MaskedCrc(reinterpret_cast<const uint8_t*>(&length), sizeof(length));
    out = Put(&length_crc, sizeof(length_crc), out);
  }
  out = Put(payload.begin, payload.size(), out);
  if (flags & kTfRecord) {
    const uint32_t payload_crc = MaskedCrc(payload.begin, static_cast<int64_t>(payload.size()));
    out = Put(&payload_crc, sizeof(payload_crc), out);
  }
  return out;
}

// As of `millrace_find_frame`: the position, or -1.
int64_t FindFrame(const uint8_t* data, int64_t size, int64_t position, int32_t flags, int64_t max_record_bytes,
                  bool is_last, int32_t* sure) {
  *sure = 1;
  if (flags & kLine) {
    const void* const feed = std::memchr(data + position, '\n', static_cast<size_t>(size - position));
    return feed == nullptr ? -1 : static_cast<const uint8_t*>(feed) - data + 1;
  }
  if (!(flags & kTfRecord)) return -1;
  for (; position + kTfHeaderBytes <= size; ++position) {
    const Guess guess = GuessTfRecord(data, size, position, max_record_bytes);
    if (guess == Guess::kNo || (guess == Guess::kUnsure && is_last)) continue;
    *sure = guess == Guess::kYes ? 1 : 0;
    return position;
  }
  return -1;
}

}  // namespace

Frame ParseFrame(const uint8_t* data, int64_t size, int64_t position, int32_t flags, int64_t max_record_bytes) {
  if (flags & kTfRecord) return ParseTfRecord(data, size, position, max_record_bytes);
  if (flags & kLine) return ParseLine(data, size, position, max_record_bytes);
  Header header(data, size, position);
  uint32_t key = 0;
  if (flags & kLagrangexHeader) {
    key = static_cast<uint32_t>(header.Word()) & 0xffffff00u;
  } else {
    uint64_t aggregate = 0;
    if (flags & kKafkaDumpPrefix) {
      aggregate = header.Word();
      if (aggregate == 0) header.Word();
    }
    if (flags & kHasSortId) header.Skip(aggregate != 0 ? aggregate : header.Word(), max_record_bytes);
    if (flags & kKafkaDump) header.Word();
  }
  const uint64_t length = header.Word();
  if (header.status != FrameStatus::kOk) return {header.status, position, 0, -1, key};
  if (length == kSentinel || length >= kAbsurd) return {FrameStatus::kMalformed, position, 0, -1, key};
  const int64_t start = header.position(), bytes = static_cast<int64_t>(length), next = start + bytes;
  if (bytes > max_record_bytes) return {FrameStatus::kTooLarge, start, bytes, next, key};
  if (next > size) return {FrameStatus::kTruncated, start, bytes, next, key};
  return {FrameStatus::kOk, start, bytes, next, key};
}

}  // namespace millrace::records

using namespace millrace::records;

int32_t millrace_split_frames(const uint8_t* data, int64_t size, int64_t position, int32_t flags,
                              int64_t max_record_bytes, int64_t capacity, int64_t* starts, int64_t* lengths,
                              int64_t* positions, uint32_t* keys, int64_t* count, int64_t* end, int64_t* next,
                              int32_t* frame_status) {
  return Guarded([=]() mutable {
    FrameStatus stopped = FrameStatus::kOk;
    int64_t found = 0;
    *next = position;
    while (position < size && stopped == FrameStatus::kOk) {
      if (found == capacity) {
        stopped = FrameStatus::kFull;
        break;
      }
      const Frame frame = ParseFrame(data, size, position, flags, max_record_bytes);
      stopped = frame.status;
      *next = frame.next;
      if (stopped != FrameStatus::kOk) break;
      starts[found] = frame.start;
      lengths[found] = frame.length;
      positions[found] = position;
      keys[found] = frame.data_source_key;
      ++found;
      position = frame.next;
    }
    *count = found;
    *end = position;
    *frame_status = static_cast<int32_t>(stopped);
    return CallStatus::kDone;
  });
}

int32_t millrace_split_values(const uint8_t* data, const int32_t* offsets, int64_t values, int32_t flags,
                              int64_t max_record_bytes, int64_t frames_per_value, int64_t capacity, int64_t* starts,
                              int64_t* lengths, int64_t* rows, uint32_t* keys, int64_t* bad_rows, int64_t* bad_starts,
                              int64_t* bad_lengths, int32_t* bad_status, int64_t* count, int64_t* bad) {
  return Guarded([=] {
    int64_t found = 0, wrong = 0;
    *count = -1;
    for (int64_t row = 0; row < values; ++row) {
      const int64_t size = offsets[row + 1];
      int64_t position = offsets[row];
      for (int64_t frames = 0; position < size; ++frames) {
        if (found == capacity || wrong == capacity) return CallStatus::kDone;
        Frame frame = ParseFrame(data, size, position, flags, max_record_bytes);
        if (frames == frames_per_value) frame = {FrameStatus::kFull, position, 0, -1, 0};
        if (frame.status == FrameStatus::kOk) {
          starts[found] = frame.start;
          lengths[found] = frame.length;
          rows[found] = row;
          keys[found] = frame.data_source_key;
          ++found;
        } else {
          if (frame.next < 0 || frame.next > size) frame.next = size;
          bad_rows[wrong] = row;
          bad_starts[wrong] = position;
          bad_lengths[wrong] = frame.next - position;
          bad_status[wrong] = static_cast<int32_t>(frame.status);
          ++wrong;
        }
        position = frame.next;
      }
    }
    *count = found;
    *bad = wrong;
    return CallStatus::kDone;
  });
}

int32_t millrace_copy_ranges(const uint8_t* data, const int64_t* starts, const int64_t* lengths, int64_t count,
                             uint8_t* out, int32_t* offsets) {
  return Guarded([=] {
    int64_t position = 0;
    for (int64_t i = 0; i < count; ++i) {
      offsets[i] = static_cast<int32_t>(position);
      if (lengths[i] > 0) std::memcpy(out + position, data + starts[i], static_cast<size_t>(lengths[i]));
      position += lengths[i];
    }
    offsets[count] = static_cast<int32_t>(position);
    return CallStatus::kDone;
  });
}

int32_t millrace_find_frame(const uint8_t* data, int64_t size, int64_t position, int32_t flags,
                            int64_t max_record_bytes, int32_t is_last, int64_t* found, int32_t* sure) {
  return Guarded([=] {
    *found = FindFrame(data, size, position, flags, max_record_bytes, is_last != 0, sure);
    return CallStatus::kDone;
  });
}

int32_t millrace_join_frames(const uint8_t* data, const int32_t* offsets, int64_t values, int32_t flags,
                             const uint8_t* prefix, int64_t prefix_bytes, uint8_t* out) {
  return Guarded([=]() mutable {
    for (int64_t row = 0; row < values; ++row) {
      const Span payload{data + offsets[row], data + offsets[row + 1]};
      out = WriteFrame(payload, flags, {prefix, prefix + prefix_bytes}, out);
    }
    return CallStatus::kDone;
  });
}
