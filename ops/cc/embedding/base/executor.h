// How the library borrows threads: it owns none.
#ifndef MILLRACE_EMBEDDING_EXECUTOR_H_
#define MILLRACE_EMBEDDING_EXECUTOR_H_

#include <cstdint>
#include <functional>

namespace millrace {

// Runs body(first, last) over disjoint ranges that cover [0, units), on any threads, and returns when all are done.
// `nanoseconds_per_unit` is a hint for how finely to split.
using RangeBody = std::function<void(int64_t first, int64_t last)>;
using Executor = std::function<void(int64_t units, int64_t nanoseconds_per_unit, const RangeBody& body)>;

inline void RunInline(int64_t units, int64_t, const RangeBody& body) { body(0, units); }

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_EXECUTOR_H_
