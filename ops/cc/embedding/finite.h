// Whether floats are numbers.
#ifndef MILLRACE_EMBEDDING_FINITE_H_
#define MILLRACE_EMBEDDING_FINITE_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

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

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_FINITE_H_
