// Decoders of one record each, into rows.
#ifndef MILLRACE_RECORDS_RECORD_DECODER_H_
#define MILLRACE_RECORDS_RECORD_DECODER_H_

#include <cstdint>
#include <memory>

#include "ops/cc/records/decode/record_rows.h"
#include "ops/cc/records/wire/wire.h"

namespace millrace::records {

enum class Format : int32_t { kExample = 0, kExampleBatch = 1, kInstance = 2 };

class RecordDecoder {
 public:
  virtual ~RecordDecoder() = default;
  // False: the record is refused, and RecordRows has the reason.
  virtual bool Decode(Span record) = 0;
};

std::unique_ptr<RecordDecoder> MakeExampleDecoder(RecordRows* rows);
std::unique_ptr<RecordDecoder> MakeExampleBatchDecoder(RecordRows* rows);
std::unique_ptr<RecordDecoder> MakeInstanceDecoder(RecordRows* rows);

// Null for an unknown format.
std::unique_ptr<RecordDecoder> MakeDecoder(Format format, RecordRows* rows);

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_RECORD_DECODER_H_
