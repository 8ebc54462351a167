// Ids written or erased since they were last stolen: what the next delta has to carry.
#ifndef MILLRACE_EMBEDDING_TOUCHED_KEYS_H_
#define MILLRACE_EMBEDDING_TOUCHED_KEYS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace millrace {

// A bounded list; FidMap::Slot::touched keeps living ids unique in it. Where nobody steals (an offline run), memory
// stays bounded: past the capacity it forgets all and says so at the next steal, after which the reader needs a whole
// export.
class TouchedKeys {
 public:
  explicit TouchedKeys(size_t capacity) : capacity_(capacity) {}

  void Add(int64_t fid) {
    if (overflowed_) return;
    if (fids_.size() == capacity_) {
      overflowed_ = true;
      std::vector<int64_t>().swap(fids_);
      return;
    }
    fids_.push_back(fid);
  }

  // Takes all ids out and starts anew; returns whether some were forgotten.
  bool Steal(std::vector<int64_t>* fids) {
    fids->clear();
    fids->swap(fids_);
    const bool overflowed = overflowed_;
    overflowed_ = false;
    return overflowed;
  }

 private:
  const size_t capacity_;
  std::vector<int64_t> fids_;
  bool overflowed_ = false;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_TOUCHED_KEYS_H_
