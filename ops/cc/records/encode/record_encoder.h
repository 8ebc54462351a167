// Encoders of rows into one record each.
#ifndef MILLRACE_RECORDS_RECORD_ENCODER_H_
#define MILLRACE_RECORDS_RECORD_ENCODER_H_

#include <cstdint>

#include "ops/cc/records/encode/batch_reader.h"
#include "ops/cc/records/wire/reverse_writer.h"

namespace millrace::records {

void WriteExample(const BatchReader& batch, int64_t row, ReverseWriter* out);

// The rows [begin, end), which have one data source key.
void WriteExampleBatch(const BatchReader& batch, int64_t begin, int64_t end, ReverseWriter* out);

// Whether an Instance can carry all columns of the batch: it has no doubles, no raw features, no lists of lists of fids
// v1.
bool FitsInstance(const BatchReader& batch);
void WriteInstance(const BatchReader& batch, int64_t row, ReverseWriter* out);

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_RECORD_ENCODER_H_
