// Which rows hold some of a few fids.
#ifndef MILLRACE_RECORDS_FIND_FIDS_H_
#define MILLRACE_RECORDS_FIND_FIDS_H_

#include <cstdint>

#include "ops/cc/records/arrow/arrow_abi.h"

namespace millrace::records {

// Sets bit k of found[row] where a column of `batch` has wanted[k] in the row; `count` is 8 at most. All columns are
// lists of int64.
void FindFids(const ArrowArray& batch, const int64_t* wanted, int32_t count, uint8_t* found);

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_FIND_FIDS_H_
