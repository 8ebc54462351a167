// Rows of Arrow batches by number. Runs of rows that follow one another are copied as one.
#ifndef MILLRACE_RECORDS_TAKE_ROWS_H_
#define MILLRACE_RECORDS_TAKE_ROWS_H_

#include <cstdint>
#include <vector>

#include "ops/cc/records/arrow/arrow_abi.h"
#include "ops/cc/records/c_api.h"

namespace millrace::records {

// Puts rows[0..count) of `batches`, one or more of this schema, numbered through, into `taken`. Columns hold numbers,
// bits, bytes, or lists of such to any depth. kUnsupported for others and where the result needs offsets of more than
// 32 bits; kOutOfRange for a row that is not there. Throws std::bad_alloc.
CallStatus TakeRows(const ArrowSchema& schema, const std::vector<const ArrowArray*>& batches, const int64_t* rows,
                    int64_t count, ArrowArray* taken);

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_TAKE_ROWS_H_
