// One table: exact fid -> weights, optimizer state and time of the last write.
#ifndef MILLRACE_EMBEDDING_EMBEDDING_TABLE_H_
#define MILLRACE_EMBEDDING_EMBEDDING_TABLE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <shared_mutex>
#include <vector>

#include "ops/cc/embedding/entry_arena.h"
#include "ops/cc/embedding/executor.h"
#include "ops/cc/embedding/fid_map.h"
#include "ops/cc/embedding/initializer.h"
#include "ops/cc/embedding/sparse_optimizer.h"
#include "ops/cc/embedding/table_config.h"
#include "ops/cc/embedding/touched_keys.h"

namespace millrace {

// One (id, gradient) of a batch; `gradient` points to dim floats that count `scale` times.
struct Occurrence {
  int64_t fid;
  const float* gradient;
  float scale;
};

// Gradients of one batch, summed by id. Ids are grouped by lock shard, in order of first occurrence within a shard; the
// room of shard s starts at begin[s] and holds distinct[s] ids.
struct MergedGradients {
  std::vector<uint32_t> begin;
  std::vector<uint32_t> distinct;
  std::unique_ptr<int64_t[]> fids;
  std::unique_ptr<float[]> sums;
};

// Entries in columns: row i is fids[i], timestamps[i] and `floats` floats from values[i * floats].
struct EntryBlock {
  int floats = 0;  // dim, or dim + optimizer state
  std::vector<int64_t> fids;
  std::vector<uint32_t> timestamps;
  std::vector<float> values;
};

// Thread-safe: ids are spread over shards, each with its own reader/writer lock, arena and map. An entry is never seen
// half written. A batch visits each shard once, so it takes at most kLockShards locks, and never two at a time.
class EmbeddingTable {
 public:
  static constexpr int kLockShards = 64;
  static constexpr size_t kTouchedPerShard = size_t{1} << 16;
  static constexpr int64_t kMaxBatch = int64_t{1} << 31;

  // Fails on an unknown optimizer or initializer, or on bad numbers for them.
  static Status Create(const TableConfig& config, std::unique_ptr<EmbeddingTable>* result);

  const TableConfig& config() const { return config_; }
  int dim() const { return config_.dim; }
  int state_floats() const { return state_floats_; }
  int64_t size() const;

  // Writes `count` rows of dim floats. A missing id reads as zeros, or with `create` as its first vector, which it
  // keeps.
  void Lookup(const int64_t* fids, int64_t count, bool create, float* values, const Executor& run);
  void Contains(const int64_t* fids, int64_t count, bool* found) const;

  // Sums gradients by id in the order given. Fails, naming the first id, when a sum is NaN or infinite, and on tables
  // without an optimizer. Changes nothing in the table.
  Status Merge(const std::vector<Occurrence>& occurrences, const Executor& run, MergedGradients* merged) const;
  // One optimizer step per merged id; missing ids are created first. Marks ids as touched.
  void Apply(const MergedGradients& merged, float learning_rate, uint32_t timestamp, const Executor& run);

  // Overwrites weights; a new id gets fresh optimizer state; of equal ids the last wins. Does not mark ids as touched.
  Status Assign(const int64_t* fids, const float* values, int64_t count, uint32_t timestamp, const Executor& run);
  // Removes ids and marks those that were there as touched; returns how many.
  int64_t Erase(const int64_t* fids, int64_t count);
  // Removes all entries, touched ids included, and returns the memory.
  void Clear();

  // Ids updated or erased since the last call, ascending. Returns whether some were forgotten for lack of room.
  bool StealTouched(std::vector<int64_t>* fids);
  // Puts stolen ids back.
  void RestoreTouched(const int64_t* fids, int64_t count);

  // Entries of one lock shard, by ascending id.
  void Export(int shard, bool with_state, EntryBlock* block) const;
  // Inserts or overwrites whole entries. Rows of dim floats get fresh optimizer state.
  void Import(const EntryBlock& block);

 private:
  struct alignas(64) Shard {
    explicit Shard(int64_t floats) : arena(floats), touched(kTouchedPerShard) {}
    mutable std::shared_mutex mutex;
    FidMap map;
    EntryArena arena;
    TouchedKeys touched;
  };
  struct ShardedIds;

  EmbeddingTable(const TableConfig& config, std::unique_ptr<SparseOptimizer> optimizer, const Initializer& initializer);

  Shard& ShardOfHash(uint64_t hash) const { return *shards_[hash >> 58]; }
  FidMap::Slot* FindOrCreate(Shard& shard, int64_t fid, uint64_t hash);
  static void Touch(Shard& shard, FidMap::Slot* slot);

  const TableConfig config_;
  const std::unique_ptr<SparseOptimizer> optimizer_;
  const Initializer initializer_;
  const int state_floats_;
  std::array<std::unique_ptr<Shard>, kLockShards> shards_;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_EMBEDDING_TABLE_H_
