// Whether floats are numbers.
#ifndef MILLRACE_EMBEDDING_FINITE_H_
#define MILLRACE_EMBEDDING_FINITE_H_

#include <cstdint>

#include "ops/cc/embedding/base/executor.h"

namespace millrace {

// False when one is NaN or infinite.
bool AllFinite(const float* values, int64_t count);

// The same of `count` rows of `dim` floats, on all threads: read in order, which is faster than id by id.
bool AllRowsFinite(const float* rows, int64_t count, int dim, const Executor& run);

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_FINITE_H_
