// Whether floats are numbers.
#ifndef MILLRACE_EMBEDDING_FINITE_H_
#define MILLRACE_EMBEDDING_FINITE_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

#include "ops/cc/embedding/base/executor.h"

namespace millrace {

// False when one is NaN or infinite. Integer arithmetic on the bits, because a reduction over them vectorises.
inline bool AllFinite(const float* values, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    largest = std::max(largest, bits & 0x7FFFFFFFu);
  }
  return largest < 0x7F800000u;
}

// The same of rows of `dim` floats, on all threads: read in order, which is faster than id by id.
inline bool AllRowsFinite(const float* rows, int64_t count, int dim, const Executor& run) {
  constexpr int64_t kRowsPerUnit = 1024;
  std::atomic<bool> finite{true};
  run((count + kRowsPerUnit - 1) / kRowsPerUnit, kRowsPerUnit * dim / 8 + 10, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kRowsPerUnit, end = std::min(last * kRowsPerUnit, count);
    if (!AllFinite(rows + begin * dim, (end - begin) * dim)) finite = false;
  });
  return finite;
}

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_FINITE_H_
