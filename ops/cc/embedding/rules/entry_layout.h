// Where the parts of an entry lie, and what its segments do with them.
#ifndef MILLRACE_EMBEDDING_ENTRY_LAYOUT_H_
#define MILLRACE_EMBEDDING_ENTRY_LAYOUT_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "ops/cc/embedding/rules/compressor.h"
#include "ops/cc/embedding/rules/initializer.h"
#include "ops/cc/embedding/rules/sparse_optimizer.h"
#include "ops/cc/embedding/rules/table_config.h"

namespace millrace {

// What stands before an entry where it leaves its table, in a row; fields are unaligned in memory.
struct RowHeader {
  static constexpr int64_t kBytes = 12;

  static int64_t Fid(const char* row) {
    int64_t fid;
    std::memcpy(&fid, row, sizeof(fid));
    return fid;
  }
  // Unix seconds of the last write.
  static uint32_t Timestamp(const char* row) {
    uint32_t timestamp;
    std::memcpy(&timestamp, row + sizeof(int64_t), sizeof(timestamp));
    return timestamp;
  }
  static void Write(int64_t fid, uint32_t timestamp, char* row) {
    std::memcpy(row, &fid, sizeof(fid));
    std::memcpy(row + sizeof(fid), &timestamp, sizeof(timestamp));
  }
  static char* EntryOf(char* row) { return row + kBytes; }
  static const char* EntryOf(const char* row) { return row + kBytes; }
};

// A training entry is the weights of all segments, then the optimizer state of each segment, all float32. A serving
// entry is the compressed weights of each segment.
class EntryLayout {
 public:
  struct Segment {
    int dim;
    int first_dim;  // of its weights among those of the entry
    int state_floats;
    int first_state;  // of its state, counted in floats from the first weight of the entry
    int code_bytes;
    int first_code;  // of its compressed weights, counted in bytes
    std::unique_ptr<SparseOptimizer> optimizer;
    Initializer initializer;
    std::unique_ptr<Compressor> compressor;
    float delay_compensation;
    bool stochastic_rounding;
  };

  // Gradients that belong to entries, and what the steps along them share.
  struct UpdateBatch {
    int64_t count;
    char* const* entries;
    const int64_t* fids;
    const float* const* gradients;     // dim floats each
    const float* const* read_weights;  // what a model saw, dim floats each, null where unknown; null: all unknown
    const float* learning_rates;       // one per segment
    int64_t global_step;
  };

  // Weights and state of an entry: 64 MB, beyond which a table file would not be read.
  static constexpr int64_t kMaxFloats = int64_t{1} << 24;

  // Fails on unknown rules, on bad numbers for them and on more than kMaxFloats.
  static Status Make(const TableConfig& config, EntryLayout* result);

  int dim() const { return dim_; }
  int state_floats() const { return state_floats_; }
  bool serving() const { return serving_; }
  int64_t entry_bytes() const { return serving_ ? code_bytes_ : 4 * (dim_ + state_floats_); }
  int64_t row_bytes() const { return RowHeader::kBytes + entry_bytes(); }
  // Of an entry, what a lookup reads.
  int64_t shown_bytes() const { return serving_ ? code_bytes_ : 4 * dim_; }
  int code_bytes() const { return code_bytes_; }
  const std::vector<Segment>& segments() const { return segments_; }

  // First weights and fresh optimizer state.
  void Init(int64_t fid, char* entry) const;
  // The same without weights, for an entry whose weights are written next.
  void InitState(char* entry) const;
  // First weights of an id, as an entry would show them.
  void FirstVector(int64_t fid, float* weights) const;

  // Weights as they are, decompressed.
  void ReadWeights(const char* entry, float* weights) const {
    if (serving_) {
      Decode(entry, weights);
    } else {
      CopyFloats(Weights(entry), dim_, weights);
    }
  }
  void WriteWeights(const float* weights, char* entry) const;
  // False, and nothing changes, where a sum is not finite.
  bool AddWeights(const float* addends, char* entry) const;

  // Quantisation-aware training: turns weights into what a model is shown, in place. No-op where `shows_raw`.
  bool shows_raw() const { return shows_raw_; }
  void Show(int64_t global_step, float* weights) const;

  // One step of each entry along its gradient. Returns how many steps, one per entry and segment, were not taken as
  // SparseOptimizer::Update says.
  int64_t Update(const UpdateBatch& batch) const;

  // Compressed weights of all segments.
  void Encode(const float* weights, char* codes) const;
  void Decode(const char* codes, float* weights) const;

  static float* Weights(char* entry) { return reinterpret_cast<float*>(entry); }
  static const float* Weights(const char* entry) { return reinterpret_cast<const float*>(entry); }

  // A copy whose length the compiler knows for common dims.
  static void CopyFloats(const float* from, int dim, float* to) {
    switch (dim) {
      case 1:
        *to = *from;
        return;
      case 8:
        std::memcpy(to, from, 32);
        return;
      case 16:
        std::memcpy(to, from, 64);
        return;
      case 32:
        std::memcpy(to, from, 128);
        return;
      case 64:
        std::memcpy(to, from, 256);
        return;
      default:
        std::memcpy(to, from, dim * sizeof(float));
    }
  }

 private:
  struct Scratch;
  int64_t UpdateSegment(size_t index, const UpdateBatch& batch, Scratch* scratch) const;

  std::vector<Segment> segments_;
  uint64_t seed_ = 0;
  int dim_ = 0;
  int state_floats_ = 0;
  int code_bytes_ = 0;
  bool serving_ = false;
  bool shows_raw_ = true;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_ENTRY_LAYOUT_H_
