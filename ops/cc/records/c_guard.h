// The one place where an exception of the records library becomes a status.
#ifndef MILLRACE_RECORDS_C_GUARD_H_
#define MILLRACE_RECORDS_C_GUARD_H_

#include <cstdint>
#include <new>

#include "ops/cc/records/c_api.h"

namespace millrace::records {

// Runs the body of a C function; an exception that left it would end the process, for its caller is no C++.
template <typename Body>  // CallStatus()
int32_t Guarded(Body body) noexcept {
  CallStatus status = CallStatus::kFailed;
  try {
    status = body();
  } catch (const std::bad_alloc&) {
    status = CallStatus::kOutOfMemory;
  } catch (...) {
  }
  return static_cast<int32_t>(status);
}

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_C_GUARD_H_
