// Exact-key index from fid to an entry's handle. Not thread-safe: its owner holds the lock of a shard.
#ifndef MILLRACE_EMBEDDING_FID_MAP_H_
#define MILLRACE_EMBEDDING_FID_MAP_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#include "ops/cc/embedding/base/fid.h"
#include "ops/cc/embedding/base/index_key.h"
#include "ops/cc/embedding/table/slab_pool.h"

namespace millrace {

// Extendible hashing (Fagin et al. 1979) over pages, linear probing without tombstones inside a page, where an id's
// home is the start of a cache line, chosen by a key of the process (index_key.h). A page that is full splits alone: growth never moves more than one page's slots at
// once, whatever the size of the table, and a walk that goes by hash is not confused by it.
class FidMap {
 public:
  struct Slot {
    int64_t fid;
    uint32_t handle : 31;  // entry in the arena; kEmpty marks a free slot
    uint32_t touched : 1;  // updated since the touched keys were last stolen
    uint32_t timestamp;    // Unix seconds of the last write, 0 before the first
    bool empty() const { return handle == kEmpty; }
  };
  static_assert(sizeof(Slot) == 16, "four slots per cache line");

  static constexpr uint32_t kEmpty = 0x7FFFFFFF;
  // The highest bits of a hash are the owner's: equal for all fids of one map.
  static constexpr int kShardBits = 6;
  static constexpr int64_t kPageBytes = int64_t{1} << 16;  // of a page that has its full size

  // `pages` gives slabs of kPageBytes and must outlive this.
  explicit FidMap(SlabPool* pages) : pool_(*pages) {}
  ~FidMap() { Clear(); }
  FidMap(const FidMap&) = delete;
  FidMap& operator=(const FidMap&) = delete;

  size_t size() const { return size_; }
  int64_t MemoryBytes() const {
    return page_bytes_ +
           static_cast<int64_t>(directory_.capacity() * sizeof(Page) + counts_.capacity() * sizeof(Count));
  }

  // `hash` is HashFid(fid) everywhere.

  // The cache line that most ids with this hash are in, to be fetched ahead of FindAt; null in an empty map. Valid
  // while growths() stays the same.
  Slot* Home(uint64_t hash) const {
    if (directory_.empty()) return nullptr;
    const Page page = PageOf(hash);
    return SlotsOf(page) + HomeIndex(hash, page);
  }
  uint64_t growths() const { return growths_; }

  // Returns null when absent. A pointer is valid until the next Insert, Erase or Clear.
  Slot* FindAt(Slot* home, int64_t fid, uint64_t hash) const {
    if (home == nullptr) return nullptr;
    if (const uint32_t matches = Matches(home, fid)) return UsedOrNull(home + __builtin_ctz(matches));
    return home[kSlotsPerLine - 1].empty() ? nullptr : FindBeyond(fid, hash);
  }
  Slot* Find(int64_t fid, uint64_t hash) const { return FindAt(Home(hash), fid, hash); }

  // Requires that `fid` is absent.
  Slot* Insert(int64_t fid, uint64_t hash, uint32_t handle) {
    if (directory_.empty()) {
      ++growths_;
      counts_.push_back({0, 0});
      directory_.push_back(NewPage(kFewSlotBits));
    }
    while (counts_[Prefix(hash, depth_)].used >= Limit(PageOf(hash))) Grow(hash);
    ++size_;
    return Put(Prefix(hash, depth_), {fid, handle, 0, 0}, hash);
  }

  // Requires that `slot` came from Find. Later members of its run move up, so no tombstone is left.
  void Erase(Slot* slot) {
    const uint64_t place = Prefix(HashFid(slot->fid), depth_);
    const Page page = directory_[place];
    Slot* slots = SlotsOf(page);
    auto hole = static_cast<uint32_t>(slot - slots);
    for (uint32_t i = (hole + 1) & Mask(page); !slots[i].empty(); i = (i + 1) & Mask(page)) {
      const uint32_t home = HomeIndex(HashFid(slots[i].fid), page);
      if (((i - home) & Mask(page)) >= ((i - hole) & Mask(page))) {
        slots[hole] = slots[i];
        hole = i;
      }
    }
    slots[hole] = kFreeSlot;
    AddToCount(place, -1);
    --size_;
  }

  void Clear() {
    for (size_t i = 0; i < directory_.size(); i += SpanAt(i)) FreePage(directory_[i]);
    std::vector<Page>().swap(directory_);
    std::vector<Count>().swap(counts_);
    depth_ = 0;
    size_ = 0;
    ++growths_;
  }

  // Runs visit(slot) for the slots of one page and returns where the next page starts, kEnd after the last; the first
  // starts at 0. Goes by hash: whoever walks while others insert and erase meets each slot that stays exactly once.
  // `visit` must not insert or erase.
  static constexpr uint64_t kEnd = uint64_t{1} << (64 - kShardBits);
  template <typename Visit>
  uint64_t VisitPage(uint64_t start, const Visit& visit) const {
    if (directory_.empty()) return kEnd;
    const uint64_t place = depth_ == 0 ? 0 : start >> (64 - kShardBits - depth_);
    const Page page = directory_[place];
    for (uint32_t i = 0; i <= Mask(page); ++i) {
      if (!SlotsOf(page)[i].empty()) visit(SlotsOf(page)[i]);
    }
    const uint64_t next = (place / SpanAt(place) + 1) * SpanAt(place);
    return next << (64 - kShardBits - depth_);
  }

 private:
  static constexpr Slot kFreeSlot = {0, kEmpty, 0, 0};
  static constexpr int kLineBits = 2, kSlotsPerLine = 1 << kLineBits;
  static constexpr int kFewSlotBits = 4;  // of a map's first page
  static constexpr int kSlotBits = 12;    // of a page that splits
  static_assert(kPageBytes == sizeof(Slot) << kSlotBits, "a full page is a slab");

  // Address of a page's first slot, and in the six low bits the logarithm of its number of slots.
  using Page = uintptr_t;
  // What is known of the page at a place of the directory; equal at all places that share it.
  struct Count {
    uint32_t used;
    uint32_t depth;  // bits of the hash that its fids share, beside the owner's
  };

  static Slot* SlotsOf(Page page) { return reinterpret_cast<Slot*>(page & ~uintptr_t{63}); }
  static int SlotBits(Page page) { return static_cast<int>(page & 63); }
  static uint32_t Mask(Page page) { return (uint32_t{1} << SlotBits(page)) - 1; }
  // Three quarters full: nearly all slots lie in their home line or the next.
  static uint32_t Limit(Page page) { return (uint32_t{3} << SlotBits(page)) / 4; }
  static uint32_t HomeIndex(uint64_t hash, Page page) {
    return static_cast<uint32_t>(KeyedHash(hash) >> (64 + kLineBits - SlotBits(page))) << kLineBits;
  }

  // Bit i is set where slot i of a line holds `fid`, or is free if `fid` is 0. All four at once: which of them it is
  // cannot be predicted.
  static uint32_t Matches(const Slot* line, int64_t fid) {
    return (line[0].fid == fid) | (line[1].fid == fid) << 1 | (line[2].fid == fid) << 2 | (line[3].fid == fid) << 3;
  }
  // The used slots of a line come first, so that a free one which matches says that no used one does.
  static Slot* UsedOrNull(Slot* slot) { return slot->empty() ? nullptr : slot; }

  // Goes on in the lines after the home of `hash`, which is full.
  [[gnu::noinline]] Slot* FindBeyond(int64_t fid, uint64_t hash) const {
    const Page page = PageOf(hash);
    uint32_t i = HomeIndex(hash, page);
    while (true) {
      i = (i + kSlotsPerLine) & Mask(page);
      Slot* line = SlotsOf(page) + i;
      if (const uint32_t matches = Matches(line, fid)) return UsedOrNull(line + __builtin_ctz(matches));
      if (line[kSlotsPerLine - 1].empty()) return nullptr;
    }
  }

  // The `bits` bits below the owner's.
  static uint64_t Prefix(uint64_t hash, int bits) { return ((hash << kShardBits) >> 1) >> (63 - bits); }
  Page PageOf(uint64_t hash) const { return directory_[Prefix(hash, depth_)]; }
  // Neighbouring places of the directory that share the page at `place`.
  size_t SpanAt(size_t place) const { return size_t{1} << (depth_ - static_cast<int>(counts_[place].depth)); }

  void AddToCount(uint64_t place, int change) {
    const size_t span = SpanAt(place), first = place / span * span;
    for (size_t i = first; i < first + span; ++i) counts_[i].used += change;
  }

  Page NewPage(int slot_bits) {
    const size_t bytes = sizeof(Slot) << slot_bits;
    void* memory = slot_bits == kSlotBits ? pool_.Take() : std::aligned_alloc(64, bytes);
    if (memory == nullptr) throw std::bad_alloc();
    page_bytes_ += static_cast<int64_t>(bytes);
    const Page page = reinterpret_cast<uintptr_t>(memory) | static_cast<uintptr_t>(slot_bits);
    for (uint32_t i = 0; i <= Mask(page); ++i) SlotsOf(page)[i] = kFreeSlot;
    return page;
  }

  void FreePage(Page page) {
    page_bytes_ -= static_cast<int64_t>(sizeof(Slot) << SlotBits(page));
    if (SlotBits(page) == kSlotBits) {
      pool_.Give(reinterpret_cast<char*>(SlotsOf(page)));
    } else {
      std::free(SlotsOf(page));
    }
  }

  // Requires room in the page.
  static Slot* PutInto(Page page, const Slot& slot, uint64_t hash) {
    uint32_t i = HomeIndex(hash, page);
    while (!SlotsOf(page)[i].empty()) i = (i + 1) & Mask(page);
    SlotsOf(page)[i] = slot;
    return &SlotsOf(page)[i];
  }

  Slot* Put(uint64_t place, const Slot& slot, uint64_t hash) {
    AddToCount(place, 1);
    return PutInto(directory_[place], slot, hash);
  }

  // Makes room for `hash`: doubles a small page, splits a large one where the directory allows it.
  void Grow(uint64_t hash) {
    ++growths_;
    const Count count = counts_[Prefix(hash, depth_)];
    const Page page = PageOf(hash);
    const bool needs_directory = static_cast<int>(count.depth) == depth_;
    const bool doubles = SlotBits(page) < kSlotBits || (needs_directory && !MayDoubleDirectory());
    if (!doubles && needs_directory) DoubleDirectory();
    const size_t span = size_t{1} << (depth_ - static_cast<int>(count.depth));
    const size_t first = Prefix(hash, static_cast<int>(count.depth)) * span;
    if (doubles) {
      const Page larger = NewPage(SlotBits(page) + 1);
      Move(page, larger, larger, 0);
      for (size_t i = first; i < first + span; ++i) directory_[i] = larger;
    } else {
      const Page low = NewPage(SlotBits(page)), high = NewPage(SlotBits(page));
      const uint32_t moved_high = Move(page, low, high, 63 - kShardBits - static_cast<int>(count.depth));
      for (size_t i = first; i < first + span; ++i) {
        const bool is_high = i >= first + span / 2;
        directory_[i] = is_high ? high : low;
        counts_[i] = {is_high ? moved_high : count.used - moved_high, count.depth + 1};
      }
    }
    FreePage(page);
  }

  // Not beyond some times what fids of random hashes need: those that were chosen to share a prefix would make it
  // explode, so their page grows instead.
  bool MayDoubleDirectory() const { return (size_t{2} << depth_) <= 16 * ((size_ >> (kSlotBits - 2)) + 1); }

  void DoubleDirectory() {
    std::vector<Page> pages(directory_.size() * 2);
    std::vector<Count> counts(pages.size());
    for (size_t i = 0; i < pages.size(); ++i) {
      pages[i] = directory_[i / 2];
      counts[i] = counts_[i / 2];
    }
    directory_.swap(pages);
    counts_.swap(counts);
    ++depth_;
  }

  // Puts the slots of a page into `low` or `high` by a bit of their hashes; returns how many went high.
  static uint32_t Move(Page from, Page low, Page high, int bit) {
    uint32_t moved_high = 0;
    for (uint32_t i = 0; i <= Mask(from); ++i) {
      const Slot& slot = SlotsOf(from)[i];
      if (slot.empty()) continue;
      const uint64_t hash = HashFid(slot.fid);
      const bool is_high = (hash >> bit) & 1;
      moved_high += is_high;
      PutInto(is_high ? high : low, slot, hash);
    }
    return moved_high;
  }

  SlabPool& pool_;
  std::vector<Page> directory_;  // 1 << depth_ places, or none
  std::vector<Count> counts_;    // beside it, so that a lookup's part stays small
  int depth_ = 0;
  size_t size_ = 0;
  uint64_t growths_ = 0;
  int64_t page_bytes_ = 0;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_FID_MAP_H_
