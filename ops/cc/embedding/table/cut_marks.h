// Which entries of a table belong to a cut that is still to be copied.
#ifndef MILLRACE_EMBEDDING_CUT_MARKS_H_
#define MILLRACE_EMBEDDING_CUT_MARKS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace millrace {

// One bit per entry. The bits of one slab's entries share no word with others, so that the lock of their shard guards
// them.
class CutMarks {
 public:
  // All handles below `end` that are in use belong to the cut.
  explicit CutMarks(uint32_t end) : end_(end), done_((static_cast<size_t>(end) + 63) / 64) {}

  bool Holds(uint32_t handle) const { return handle < end_ && (done_[handle / 64] >> (handle % 64) & 1) == 0; }

  // The entry was copied, or the handle is given to a new one.
  void Drop(uint32_t handle) {
    if (handle < end_) done_[handle / 64] |= uint64_t{1} << (handle % 64);
  }

 private:
  const uint32_t end_;
  std::vector<uint64_t> done_;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_CUT_MARKS_H_
