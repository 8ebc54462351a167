// Rows of Arrow batches by number. Runs of rows that follow one another are copied as one.
#ifndef MILLRACE_RECORDS_TAKE_ROWS_H_
#define MILLRACE_RECORDS_TAKE_ROWS_H_

#include <cstdint>
#include <vector>

#include "ops/cc/records/arrow/arrow_abi.h"

namespace millrace {

enum class Taken : int32_t { kDone = 0, kOutOfMemory = 1, kUnsupported = 2, kOutOfRange = 3 };

// Puts rows[0..count) of `batches`, one or more of this schema, numbered through, into `taken`. Columns hold numbers,
// bits, bytes, or lists of such to any depth; of others, and where the result needs offsets of more than 32 bits, it
// says kUnsupported.
Taken TakeRows(const ArrowSchema& schema, const std::vector<const ArrowArray*>& batches, const int64_t* rows,
               int64_t count, ArrowArray* taken);

}  // namespace millrace

#endif  // MILLRACE_RECORDS_TAKE_ROWS_H_
