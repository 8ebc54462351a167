#include <cstdint>

#include "ops/cc/records/c_api.h"

// Grows with every incompatible change of a function of this library: a stale one is refused by name.
MILLRACE_C_API int32_t millrace_records_version() { return 3; }

// A processor feature that the library was compiled for and this machine has not; null when it has all.
MILLRACE_C_API const char* millrace_records_lacks() {
#ifdef __AVX2__
  if (!__builtin_cpu_supports("avx2")) return "avx2";
#endif
#ifdef __BMI2__
  if (!__builtin_cpu_supports("bmi2")) return "bmi2";
#endif
#ifdef __FMA__
  if (!__builtin_cpu_supports("fma")) return "fma";
#endif
  return nullptr;
}
