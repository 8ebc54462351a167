// Which items the pools of negative generation hold, and which of them are drawn: keys, order and counters. The items
// themselves are rows of an Arrow store on the Python side; here they are positions in it.
#ifndef MILLRACE_RECORDS_ITEM_POOL_H_
#define MILLRACE_RECORDS_ITEM_POOL_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

namespace millrace::records {

// Running sums of sizes that grow one by one (Fenwick 1994). Laid end to end, the sizes cover [0, total).
class SizeTree {
 public:
  int64_t total() const { return total_; }
  void Append();
  void Increment(int64_t index);
  // Index of the size whose stretch holds `point`, which is below the total.
  int64_t Covering(int64_t point) const;

 private:
  std::vector<int64_t> sums_;  // sums_[i - 1]: of the last (i & -i) sizes up to i
  int64_t total_ = 0;
};

// Numbers by key: a hash table with linear probing and without tombstones, as a row looks up a key or two.
class KeyNumbers {
 public:
  static constexpr int64_t kNone = -1;

  // The number of the key, kNone if it has none.
  int64_t Find(uint64_t key) const { return slots_[PlaceOf(key)].number; }
  // Requires that the key has none.
  void Add(uint64_t key, int64_t number);
  // Requires that the key has one.
  void Erase(uint64_t key);

 private:
  struct Slot {
    uint64_t key = 0;
    int64_t number = kNone;
  };
  static constexpr size_t kFirstSlots = 16;

  size_t Mask() const { return slots_.size() - 1; }
  size_t HomeOf(uint64_t key) const;
  // The slot that holds the key, or the free one that it would get.
  size_t PlaceOf(uint64_t key) const;

  std::vector<Slot> slots_ = std::vector<Slot>(kFirstSlots);
  size_t used_ = 0;
};

// One first-in-first-out pool per channel. Not thread-safe.
class ItemPool {
 public:
  struct Item {
    uint64_t key;
    int64_t position;  // row in the store of items
    int64_t pushed;    // times it entered
    int64_t drawn;     // times it was drawn
  };
  // Arrays of one entry per row, in the order of the stream.
  struct Rows {
    int64_t count;
    const uint64_t* keys;
    const int64_t* channels;
    const uint8_t* push;     // whether the row's item enters its pool
    const uint8_t* draw;     // whether negatives are drawn for the row
    const uint64_t* random;  // hash of the row's provenance
  };
  struct DrawRule {
    int64_t times;      // draws per row, up to the first that fails
    double easy_ratio;  // share of draws from a pool that is chosen by its size; the others are from the row's own pool
    bool allow_own;     // whether the row's own item may be drawn
  };
  // One entry per draw that did not fail; arrays of Rows::count * DrawRule::times.
  struct Draws {
    int64_t* rows;
    int64_t* positions;
    double* recency;  // (index in the pool + 1) / size: 1 for the newest
    int64_t* drawn;   // how often the item was drawn, this time included
    uint8_t* easy;
  };
  enum Pushed : uint8_t { kNothing = 0, kAdded = 1, kRefused = 2 };

  // A pool is drawn from once it holds more than `start_num` items; beyond `max_items` the oldest one leaves.
  ItemPool(int64_t start_num, int64_t max_items, int64_t max_channels)
      : start_num_(start_num), max_items_(max_items), max_channels_(max_channels) {}

  int64_t size() const { return sizes_.total(); }
  int64_t channels() const { return static_cast<int64_t>(pools_.size()); }

  // Row by row: the item is pushed, then negatives are drawn. pushed[row] says what became of the item; the i-th item
  // that is added has position next_position() + i. Returns the number of draws.
  int64_t Process(const Rows& rows, const DrawRule& rule, uint8_t* pushed, const Draws& draws);

  // Adds to the counters of an item, which enters its pool if it is not there.
  Pushed Add(int64_t channel, uint64_t key, int64_t pushed, int64_t drawn);

  // All items, pool by pool in order of creation, oldest first: arrays of size().
  void Export(int64_t* channels, uint64_t* keys, int64_t* positions, int64_t* pushed, int64_t* drawn) const;

  // Gives the items the positions 0, 1, ... in the order of Export.
  void Renumber();
  int64_t next_position() const { return next_position_; }

 private:
  struct Pool {
    int64_t channel;
    std::deque<Item> items;
    int64_t evicted = 0;  // number of the oldest item
    KeyNumbers numbers;   // counted from the pool's first item
  };

  Pool* Find(int64_t channel);
  bool Draw(const Rows& rows, int64_t row, int64_t number, const DrawRule& rule, const Draws& draws, int64_t at);

  const int64_t start_num_, max_items_, max_channels_;
  std::deque<Pool> pools_;
  std::unordered_map<int64_t, size_t> pool_of_channel_;
  SizeTree sizes_;
  int64_t next_position_ = 0;
};

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_ITEM_POOL_H_
