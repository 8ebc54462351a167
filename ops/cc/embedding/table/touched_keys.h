// Ids written or erased since they were last stolen: what the next delta has to carry.
#ifndef MILLRACE_EMBEDDING_TOUCHED_KEYS_H_
#define MILLRACE_EMBEDDING_TOUCHED_KEYS_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace millrace {

// A bounded list; FidMap::Slot::touched keeps living ids unique in it. Where nobody steals (an offline run), memory
// stays bounded: an id that finds the list full is forgotten with all that are in it, and the list begins anew. The
// next steal says how many were forgotten; if any, the reader needs a whole export.
class TouchedKeys {
 public:
  explicit TouchedKeys(size_t capacity) : capacity_(capacity) {}

  void Add(int64_t fid) {
    if (fids_.size() < capacity_) {
      fids_.push_back(fid);
      return;
    }
    forgotten_ += fids_.size() + 1;
    std::vector<int64_t>().swap(fids_);
  }

  // Takes all ids out and starts anew; returns how many were forgotten since the last steal.
  size_t Steal(std::vector<int64_t>* fids) {
    fids->clear();
    fids->swap(fids_);
    return std::exchange(forgotten_, 0);
  }

 private:
  const size_t capacity_;
  std::vector<int64_t> fids_;
  size_t forgotten_ = 0;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_TOUCHED_KEYS_H_
