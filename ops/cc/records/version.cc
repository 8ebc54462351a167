#include <cstdint>

#include "ops/cc/records/c_api.h"

// Grows with every incompatible change of a function below: a stale library is refused by name.
MILLRACE_C_API int32_t millrace_records_version() { return 2; }
