// Rows that are appended under a lock, where no step may wait for memory to be moved.
#ifndef MILLRACE_EMBEDDING_ROW_LOG_H_
#define MILLRACE_EMBEDDING_ROW_LOG_H_

#include <cstddef>
#include <cstring>
#include <utility>
#include <vector>

#include "ops/cc/embedding/base/scratch_array.h"

namespace millrace {

// Equal rows in chunks that never move. Not thread-safe.
class RowLog {
 public:
  // Where the next row of `row_bytes` goes.
  char* Append(size_t row_bytes) {
    if (chunks_.empty() || chunks_.back().used + row_bytes > kChunkBytes) {
      chunks_.push_back({ScratchArray<char>(row_bytes > kChunkBytes ? row_bytes : kChunkBytes), 0});
    }
    Chunk& chunk = chunks_.back();
    chunk.used += row_bytes;
    return chunk.bytes.get() + chunk.used - row_bytes;
  }

  void AppendTo(std::vector<char>* rows) const {
    for (const Chunk& chunk : chunks_) rows->insert(rows->end(), chunk.bytes.get(), chunk.bytes.get() + chunk.used);
  }

  void swap(RowLog& other) { chunks_.swap(other.chunks_); }

 private:
  static constexpr size_t kChunkBytes = size_t{64} << 10;

  struct Chunk {
    ScratchArray<char> bytes;
    size_t used;
  };
  std::vector<Chunk> chunks_;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_ROW_LOG_H_
