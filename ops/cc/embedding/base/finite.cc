#include "ops/cc/embedding/base/finite.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "ops/cc/embedding/base/cpu_clones.h"

namespace millrace {

// Integer arithmetic on the bits, because a reduction over them vectorises.
MILLRACE_CLONES bool AllFinite(const float* values, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    largest = std::max(largest, bits & 0x7FFFFFFFu);
  }
  return largest < 0x7F800000u;
}

bool AllRowsFinite(const float* rows, int64_t count, int dim, const Executor& run) {
  constexpr int64_t kRowsPerUnit = 1024;  // some microseconds of work: more than it costs to hand it to a thread
  std::atomic<bool> finite{true};
  run((count + kRowsPerUnit - 1) / kRowsPerUnit, kRowsPerUnit * dim / 8 + 10, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kRowsPerUnit, end = std::min(last * kRowsPerUnit, count);
    if (!AllFinite(rows + begin * dim, (end - begin) * dim)) finite = false;
  });
  return finite;
}

}  // namespace millrace
