#include "ops/cc/records/rows/item_pool.h"

#include <utility>
#include <vector>

#include "ops/cc/embedding/base/fid.h"
#include "ops/cc/records/c_api.h"
#include "ops/cc/records/c_guard.h"

namespace millrace::records {
namespace {

// What a draw decides by chance.
enum Purpose : uint64_t { kEasy = 0, kChannel = 1, kItem = 2, kPurposes = 3 };

uint64_t Random(uint64_t row, int64_t number, Purpose purpose) {
  return Mix64(row + (static_cast<uint64_t>(number) * kPurposes + purpose + 1) * 0x9E3779B97F4A7C15u);
}

// In [0, bound).
int64_t Below(uint64_t random, int64_t bound) {
  return static_cast<int64_t>((static_cast<Uint128>(random) * static_cast<uint64_t>(bound)) >> 64);
}

double Unit(uint64_t random) { return static_cast<double>(random >> 11) * 0x1p-53; }

}  // namespace

void SizeTree::Append() {
  const int64_t index = static_cast<int64_t>(sums_.size()) + 1;
  int64_t sum = 0;
  for (int64_t i = index - 1; i > index - (index & -index); i -= i & -i) sum += sums_[i - 1];
  sums_.push_back(sum);
}

void SizeTree::Increment(int64_t index) {
  ++total_;
  const int64_t end = static_cast<int64_t>(sums_.size());
  for (int64_t i = index + 1; i <= end; i += i & -i) ++sums_[i - 1];
}

int64_t SizeTree::Covering(int64_t point) const {
  const int64_t end = static_cast<int64_t>(sums_.size());
  int64_t step = 1, index = 0;
  while (2 * step <= end) step *= 2;
  for (; step > 0; step /= 2) {
    if (index + step > end || sums_[index + step - 1] > point) continue;
    index += step;
    point -= sums_[index - 1];
  }
  return index;
}

size_t KeyNumbers::HomeOf(uint64_t key) const { return Mix64(key) & Mask(); }

size_t KeyNumbers::PlaceOf(uint64_t key) const {
  size_t at = HomeOf(key);
  while (slots_[at].number != kNone && slots_[at].key != key) at = (at + 1) & Mask();
  return at;
}

void KeyNumbers::Add(uint64_t key, int64_t number) {
  slots_[PlaceOf(key)] = {key, number};
  if (2 * ++used_ <= slots_.size()) return;
  std::vector<Slot> old(2 * slots_.size());
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.number != kNone) slots_[PlaceOf(slot.key)] = slot;
  }
}

void KeyNumbers::Erase(uint64_t key) {
  size_t hole = PlaceOf(key);
  for (size_t at = (hole + 1) & Mask(); slots_[at].number != kNone; at = (at + 1) & Mask()) {
    // A key whose search starts at the hole or before it moves into the hole.
    if (((at - HomeOf(slots_[at].key)) & Mask()) < ((at - hole) & Mask())) continue;
    slots_[hole] = slots_[at];
    hole = at;
  }
  slots_[hole] = Slot();
  --used_;
}

ItemPool::Pool* ItemPool::Find(int64_t channel) {
  const auto found = pool_of_channel_.find(channel);
  return found == pool_of_channel_.end() ? nullptr : &pools_[found->second];
}

ItemPool::Pushed ItemPool::Add(int64_t channel, uint64_t key, int64_t pushed, int64_t drawn) {
  const auto [entry, created] = pool_of_channel_.try_emplace(channel, pools_.size());
  if (created) {
    if (channels() >= max_channels_) {
      pool_of_channel_.erase(entry);
      return kRefused;
    }
    pools_.push_back({channel, {}, 0, {}});
    sizes_.Append();
  }
  const int64_t index = static_cast<int64_t>(entry->second);
  Pool& pool = pools_[index];
  const int64_t number = pool.evicted + static_cast<int64_t>(pool.items.size());
  const int64_t known = pool.numbers.Find(key);
  if (known != KeyNumbers::kNone) {
    Item& item = pool.items[known - pool.evicted];
    item.pushed += pushed;
    item.drawn += drawn;
    return kNothing;
  }
  pool.numbers.Add(key, number);
  pool.items.push_back({key, next_position_++, pushed, drawn});
  if (static_cast<int64_t>(pool.items.size()) <= max_items_) {
    sizes_.Increment(index);
  } else {
    pool.numbers.Erase(pool.items.front().key);
    pool.items.pop_front();
    ++pool.evicted;
  }
  return kAdded;
}

int64_t ItemPool::Process(const Rows& rows, const DrawRule& rule, uint8_t* pushed, const Draws& draws) {
  int64_t count = 0;
  for (int64_t row = 0; row < rows.count; ++row) {
    pushed[row] = rows.push[row] ? Add(rows.channels[row], rows.keys[row], 1, 0) : kNothing;
    if (!rows.draw[row]) continue;
    for (int64_t number = 0; number < rule.times && Draw(rows, row, number, rule, draws, count); ++number) ++count;
  }
  return count;
}

bool ItemPool::Draw(const Rows& rows, int64_t row, int64_t number, const DrawRule& rule, const Draws& draws,
                    int64_t at) {
  const uint64_t random = rows.random[row];
  const bool easy = channels() > 1 && Unit(Random(random, number, kEasy)) < rule.easy_ratio;
  Pool* pool = easy ? &pools_[sizes_.Covering(Below(Random(random, number, kChannel), sizes_.total()))]
                    : Find(rows.channels[row]);
  if (pool == nullptr) return false;
  const int64_t size = static_cast<int64_t>(pool->items.size());
  if (size <= start_num_) return false;
  int64_t own = size;
  if (!rule.allow_own) {
    const int64_t number_of_own = pool->numbers.Find(rows.keys[row]);
    if (number_of_own != KeyNumbers::kNone) own = number_of_own - pool->evicted;
  }
  const int64_t choices = own < size ? size - 1 : size;
  if (choices == 0) return false;
  int64_t index = Below(Random(random, number, kItem), choices);
  if (index >= own) ++index;
  Item& item = pool->items[index];
  draws.rows[at] = row;
  draws.positions[at] = item.position;
  draws.recency[at] = static_cast<double>(index + 1) / static_cast<double>(size);
  draws.drawn[at] = ++item.drawn;
  draws.easy[at] = easy;
  return true;
}

void ItemPool::Export(int64_t* channels, uint64_t* keys, int64_t* positions, int64_t* pushed, int64_t* drawn) const {
  int64_t at = 0;
  for (const Pool& pool : pools_) {
    for (const Item& item : pool.items) {
      channels[at] = pool.channel;
      keys[at] = item.key;
      positions[at] = item.position;
      pushed[at] = item.pushed;
      drawn[at] = item.drawn;
      ++at;
    }
  }
}

void ItemPool::Renumber() {
  next_position_ = 0;
  for (Pool& pool : pools_) {
    for (Item& item : pool.items) item.position = next_position_++;
  }
}

}  // namespace millrace::records

using namespace millrace::records;

int32_t millrace_item_pool_new(int64_t start_num, int64_t max_items, int64_t max_channels, ItemPool** pool) {
  return Guarded([=] {
    *pool = new ItemPool(start_num, max_items, max_channels);
    return CallStatus::kDone;
  });
}

int32_t millrace_item_pool_delete(ItemPool* pool) {
  return Guarded([=] {
    delete pool;
    return CallStatus::kDone;
  });
}

int32_t millrace_item_pool_size(const ItemPool* pool, int64_t* size) {
  return Guarded([=] {
    *size = pool->size();
    return CallStatus::kDone;
  });
}

int32_t millrace_item_pool_process(ItemPool* pool, int64_t count, const uint64_t* keys, const int64_t* channels,
                                   const uint8_t* push, const uint8_t* draw, const uint64_t* random, int64_t times,
                                   double easy_ratio, int32_t allow_own, uint8_t* pushed, int64_t* rows,
                                   int64_t* positions, double* recency, int64_t* drawn, uint8_t* easy, int64_t* draws) {
  return Guarded([=] {
    *draws = pool->Process({count, keys, channels, push, draw, random}, {times, easy_ratio, allow_own != 0}, pushed,
                           {rows, positions, recency, drawn, easy});
    return CallStatus::kDone;
  });
}

int32_t millrace_item_pool_add(ItemPool* pool, int64_t count, const int64_t* channels, const uint64_t* keys,
                               const int64_t* pushed, const int64_t* drawn, uint8_t* what) {
  return Guarded([=] {
    for (int64_t i = 0; i < count; ++i) what[i] = pool->Add(channels[i], keys[i], pushed[i], drawn[i]);
    return CallStatus::kDone;
  });
}

int32_t millrace_item_pool_export(const ItemPool* pool, int64_t* channels, uint64_t* keys, int64_t* positions,
                                  int64_t* pushed, int64_t* drawn) {
  return Guarded([=] {
    pool->Export(channels, keys, positions, pushed, drawn);
    return CallStatus::kDone;
  });
}

int32_t millrace_item_pool_renumber(ItemPool* pool) {
  return Guarded([=] {
    pool->Renumber();
    return CallStatus::kDone;
  });
}
