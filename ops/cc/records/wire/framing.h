// Where the records lie in a buffer of frames: headers are parsed, payloads are not touched.
#ifndef MILLRACE_RECORDS_FRAMING_H_
#define MILLRACE_RECORDS_FRAMING_H_

#include <cstdint>

namespace millrace::records {

// Bits of a framing. kTfRecord and kLine stand alone; a LagrangeX header is the only header.
enum FramingFlags : int32_t {
  kLagrangexHeader = 1,
  kKafkaDumpPrefix = 2,
  kHasSortId = 4,
  kKafkaDump = 8,
  kTfRecord = 16,
  kLine = 32,  // a record ends at a line feed, which is no part of it
};

enum class FrameStatus : int32_t {
  kOk = 0,
  kFull = 1,         // the caller's arrays are full; go on at `end`
  kTruncated = 2,    // the buffer ends within a frame
  kMalformed = 3,    // a header that no writer writes, or a length whose checksum is wrong
  kTooLarge = 4,     // a payload above the limit
  kBadChecksum = 5,  // a payload whose checksum is wrong
};

// One frame. `next` is where the following one begins: after the end of the buffer where the frame is too large, -1
// where nobody can tell.
struct Frame {
  FrameStatus status;
  int64_t start;
  int64_t length;
  int64_t next;
  uint32_t data_source_key;
};

// Parses the frame at `position` of `data`.
Frame ParseFrame(const uint8_t* data, int64_t size, int64_t position, int32_t flags, int64_t max_record_bytes);

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_FRAMING_H_
