// One table: exact fid -> weights, optimizer state and time of the last write.
#ifndef MILLRACE_EMBEDDING_EMBEDDING_TABLE_H_
#define MILLRACE_EMBEDDING_EMBEDDING_TABLE_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "ops/cc/embedding/base/executor.h"
#include "ops/cc/embedding/base/fid.h"
#include "ops/cc/embedding/base/status.h"
#include "ops/cc/embedding/rules/entry_layout.h"
#include "ops/cc/embedding/rules/occurrence_filter.h"
#include "ops/cc/embedding/rules/table_config.h"
#include "ops/cc/embedding/table/cut_session.h"
#include "ops/cc/embedding/table/entry_arena.h"
#include "ops/cc/embedding/table/entry_rows.h"
#include "ops/cc/embedding/table/fid_map.h"
#include "ops/cc/embedding/table/gradient_merge.h"
#include "ops/cc/embedding/table/lock_shard.h"
#include "ops/cc/embedding/table/sharded_batch.h"
#include "ops/cc/embedding/table/slab_pool.h"

namespace millrace {

// What a lookup makes of an id without an entry.
enum class Missing {
  kZeros,
  kFirstVector,  // shows the vector that it would start from, and creates nothing
  kCreate,       // creates it; in a table with an occurrence filter as kFirstVector, for updates decide there
};

struct LookupOptions {
  Missing missing = Missing::kZeros;
  int64_t global_step = 0;  // for quantisation-aware training
};

struct UpdateOptions {
  const float* learning_rates = nullptr;  // one per segment
  uint32_t timestamp = 0;                 // Unix seconds, stamped on the entries that have no newer stamp
  int64_t global_step = 0;
};

struct AssignOptions {
  uint32_t timestamp = 0;
  bool add = false;         // to the weights; a new id starts from its first vector
  bool ask_filter = false;  // new ids have to pass the occurrence filter
};

// Where a walk over a table's entries stands: a lock shard, and within it a place of FidMap::VisitPage.
struct WalkPosition {
  int shard = 0;
  uint64_t start = 0;
};

struct TableStats {
  int64_t entries = 0;
  int64_t memory_bytes = 0;  // entries and index; not the filter
  int64_t not_finite = 0;    // gradients left out or clipped
  int64_t overflows = 0;     // steps and additions left out: a weight or its state would have become NaN or infinite
  uint64_t admitted = 0;     // by the occurrence filter
  uint64_t rejected = 0;
};

// Thread-safe: ids are spread over shards, each with its own reader/writer lock, arena and index. An entry is never
// seen half written. A lookup holds read locks of the shards it needs, an update one write lock at a time.
class EmbeddingTable {
 public:
  static constexpr int64_t kMaxBatch = int64_t{1} << 31;  // ids: a row is numbered by 32 bits

  // Fails on an unknown rule or on bad numbers for it.
  static Status Create(const TableConfig& config, std::unique_ptr<EmbeddingTable>* result);

  const TableConfig& config() const { return config_; }
  const EntryLayout& layout() const { return layout_; }
  int dim() const { return layout_.dim(); }
  int num_segments() const { return static_cast<int>(config_.segments.size()); }
  OccurrenceFilter* filter() const { return filter_.get(); }
  int64_t size() const;
  TableStats Stats() const;
  // Newest time stamp of any update, assignment or import, or that was noted.
  uint32_t newest_timestamp() const { return newest_timestamp_; }
  void NoteTimestamp(uint32_t timestamp);

  // Runs use(i, row) for i in [0, count), in order; `row` is dim floats, null for an id that shows as zeros. Appends
  // ids to be created to `missing`.
  template <typename Use>
  void ForEachRow(const int64_t* fids, int64_t count, const LookupOptions& options, std::vector<int64_t>* missing,
                  const Use& use) const;
  // Writes `count` rows of dim floats.
  void Lookup(const int64_t* fids, int64_t count, const LookupOptions& options, float* values, const Executor& run);
  // Gives ids their first vectors, those that have no entry yet.
  void CreateMissing(const std::vector<int64_t>& fids, const Executor& run);
  // Copies entries out: `rows` has layout().row_bytes() per id; those of absent ids mean nothing.
  void LookupEntries(const int64_t* fids, int64_t count, bool* found, char* rows) const;
  void Contains(const int64_t* fids, int64_t count, bool* found) const;

  // FailedPrecondition on a table that takes no gradients.
  Status CheckTrains() const;
  Status Merge(const std::vector<GradientList>& lists, const Executor& run, MergedGradients* merged) const;
  // One optimizer step per merged id; missing ids are created first if the filter admits them. Marks ids as touched.
  void Apply(const MergedGradients& merged, const UpdateOptions& options, const Executor& run);

  // Writes weights; a new id gets fresh optimizer state; equal ids take effect in order. Does not mark ids as touched.
  Status Assign(const int64_t* fids, const float* values, int64_t count, const AssignOptions& options,
                const Executor& run);
  // Gives ids their first vector and fresh state again: existed[i] says whether there was an entry. Marks as touched.
  void Reinitialize(const int64_t* fids, int64_t count, uint32_t timestamp, bool* existed);

  // Removes ids and marks those that were there as touched; returns how many.
  int64_t Erase(const int64_t* fids, int64_t count);
  // Removes entries that were last written at or before `watermark` less the expiry of their slot, all of them marked
  // as touched; returns how many. Locks a shard for one page of the index at a time.
  int64_t Evict(uint32_t watermark);
  bool IsExpired(int64_t fid, uint32_t timestamp, uint32_t watermark) const;
  // Removes all entries, touched ids included, and returns the memory; the filter forgets too.
  void Clear();

  // Ids updated or erased since the last call, ascending. Returns whether some were forgotten for lack of room.
  bool StealTouched(std::vector<int64_t>* fids);
  // Puts stolen ids back.
  void RestoreTouched(const int64_t* fids, int64_t count);

  // Appends entries of the lock shards [position->shard, end_shard), as they are at that moment, until there are
  // `limit` rows or a few hundred more; moves `position` on. Whoever walks while others write meets each entry that
  // stays.
  void Walk(int end_shard, int64_t limit, WalkPosition* position, EntryRows* rows) const;
  // Writes whole entries over what is there. Rows are of this table's layout.
  void Import(const char* rows, int64_t count, const Executor& run);

  // A cut is the content of one moment, for a snapshot. Until EndCut, an entry is kept aside before its first change;
  // TakeCut hands the content out once. LockAll and UnlockAll enclose BeginCut, so that tables are cut together.
  void LockAll() { shards_.LockAll(); }
  void UnlockAll() { shards_.UnlockAll(); }
  void BeginCut() { cut_.Begin(); }
  void EndCut();
  // Appends a page of one shard's cut that nobody changed and moves `start` on, from 0 to FidMap::kEnd.
  void TakeCut(int shard, uint64_t* start, EntryRows* rows);
  // Replaces `rows` by those that were kept aside in one shard since the last call.
  void TakeKept(int shard, EntryRows* rows);

 private:
  EmbeddingTable(const TableConfig& config, EntryLayout layout, std::unique_ptr<OccurrenceFilter> filter);

  // Into the second level of the cache: the first takes few lines at a time.
  static void Prefetch(const char* entry, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(entry + i, 0, 2);
  }
  void ApplyToShard(const MergedGradients& merged, int shard, uint64_t filter_batch, const UpdateOptions& options);
  // One optimizer step of each entry, whose gradient is at its place of `merged`; all places are of one shard.
  void Step(const MergedGradients& merged, uint32_t begin, const std::vector<uint32_t>& places,
            const std::vector<char*>& entries, const UpdateOptions& options);
  void Update(const EntryLayout::UpdateBatch& batch) {
    if (const int64_t not_taken = layout_.Update(batch)) overflows_ += not_taken;
  }
  bool IsZero(const char* entry) const;

  const TableConfig config_;
  const EntryLayout layout_;
  const std::unique_ptr<OccurrenceFilter> filter_;
  EntryArena arena_;
  SlabPool pages_;  // of the index
  CutSession cut_;
  const LockShards shards_;
  std::atomic<uint32_t> newest_timestamp_{0};
  std::atomic<int64_t> not_finite_{0};
  std::atomic<int64_t> overflows_{0};
};

template <typename Use>
void EmbeddingTable::ForEachRow(const int64_t* fids, int64_t count, const LookupOptions& options,
                                std::vector<int64_t>* missing, const Use& use) const {
  // Three stages some ids apart: fetch the home of the slot, find it and fetch the entry, use that. So many cache lines
  // are on their way at once as a core can wait for.
  constexpr int64_t kSlotsAhead = 16, kEntriesAhead = 12;
  constexpr uint64_t kRing = 32;
  static_assert(kSlotsAhead + kEntriesAhead < kRing, "stages must not overtake each other");
  constexpr int64_t kIdsPerLock = 8192;  // less than a millisecond, for which a writer may have to wait
  constexpr int64_t kFewIds = 512;       // fewer may miss shards, whose locks are then not taken
  const int64_t shown_bytes = layout_.shown_bytes();
  const bool copies = layout_.serving() || !layout_.shows_raw();
  std::vector<float> shown(layout_.dim());
  uint64_t hashes[kRing];
  FidMap::Slot* homes[kRing];
  const char* entries[kRing];
  for (int64_t start = 0; start < count; start += kIdsPerLock) {
    const int64_t n = std::min(kIdsPerLock, count - start);
    const int64_t* ids = fids + start;
    uint64_t mask = ~uint64_t{0};
    if (n < kFewIds) {
      mask = 0;
      for (int64_t i = 0; i < n; ++i) mask |= uint64_t{1} << LockShardOf(HashFid(ids[i]));
    }
    const ReadLocks locks(shards_, mask);
    for (int64_t i = 0; i < n + kSlotsAhead + kEntriesAhead; ++i) {
      if (i < n) {
        const uint64_t hash = HashFid(ids[i]), place = static_cast<uint64_t>(i) % kRing;
        hashes[place] = hash;
        homes[place] = shards_.OfHash(hash).map().Home(hash);
        __builtin_prefetch(homes[place]);
      }
      const int64_t found = i - kSlotsAhead;
      if (found >= 0 && found < n) {
        const uint64_t place = static_cast<uint64_t>(found) % kRing;
        const FidMap& map = shards_.OfHash(hashes[place]).map();
        const FidMap::Slot* slot = map.FindAt(homes[place], ids[found], hashes[place]);
        entries[place] = slot == nullptr ? nullptr : arena_.At(slot->handle);
        if (slot != nullptr) Prefetch(entries[place], shown_bytes);
      }
      const int64_t used = found - kEntriesAhead;
      if (used < 0) continue;
      const char* entry = entries[static_cast<uint64_t>(used) % kRing];
      if (entry != nullptr && !copies) {
        use(start + used, EntryLayout::Weights(entry));
        continue;
      }
      if (entry == nullptr && options.missing == Missing::kZeros) {
        use(start + used, static_cast<const float*>(nullptr));
        continue;
      }
      if (entry != nullptr) {
        layout_.ReadWeights(entry, shown.data());
      } else {
        layout_.FirstVector(ids[used], shown.data());
        if (options.missing == Missing::kCreate && filter_ == nullptr) missing->push_back(ids[used]);
      }
      layout_.Show(options.global_step, shown.data());
      use(start + used, static_cast<const float*>(shown.data()));
    }
  }
}

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_EMBEDDING_TABLE_H_
