#include "ops/cc/embedding/rules/occurrence_filter.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>
#include <utility>

#include "ops/cc/embedding/base/cpu_clones.h"
#include "ops/cc/embedding/base/fid.h"

namespace millrace {
namespace {

constexpr int kSlots = kSlotMask + 1;
constexpr uint32_t kMaxCount = 255;
constexpr int kCountBits = 8;
constexpr uint32_t kWindow = 16;  // cells of one probe: one cache line
constexpr size_t kSpareCells = 64;
constexpr double kCellsPerId = 1.2;
constexpr size_t kForwardRings = 2;
constexpr size_t kCountingWindows = 64;
constexpr size_t kMinCapacity = 300;
constexpr size_t kMaxParts = 64;
constexpr size_t kIdsPerPart = size_t{1} << 16;
constexpr uint64_t kFingerprintSalt = 0xD6E8FEB86659FD93ull;
constexpr double kLog20 = 2.995732273553991;  // 1 - exp(-kLog20) = 95 %

size_t ThreadNumber() {
  static std::atomic<size_t> next{0};
  thread_local const size_t number = next.fetch_add(1, std::memory_order_relaxed);
  return number;
}

template <typename T>
void Append(T value, std::string* bytes) {
  bytes->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

std::string DescriptionBytes(const std::string& description) {
  std::string bytes;
  Append(static_cast<uint32_t>(description.size()), &bytes);
  return bytes + description;
}

class StateReader {
 public:
  explicit StateReader(const std::string& state) : at_(state.data()), left_(state.size()) {}

  // False when fewer bytes are left.
  template <typename T>
  bool Take(T* value) {
    if (left_ < sizeof(T)) return false;
    std::memcpy(value, at_, sizeof(T));
    Skip(sizeof(T));
    return true;
  }

  // Takes the description and refuses another one.
  Status TakeDescription(const std::string& expected) {
    uint32_t length = 0;
    if (!Take(&length) || left_ < length) return DataLoss("state of an occurrence filter ends inside its description");
    const std::string found(at_, length);
    Skip(length);
    if (found == expected) return {};
    return InvalidArgument("state is of the occurrence filter " + found + ", expected " + expected);
  }

  Status Finish() const {
    return left_ == 0 ? Status() : DataLoss("state of an occurrence filter has bytes past its end");
  }

 private:
  void Skip(size_t size) {
    at_ += size;
    left_ -= size;
  }

  const char* at_;
  size_t left_;
};

// A state that is small enough to be copied at once.
class WholeCut : public FilterCut {
 public:
  explicit WholeCut(std::string state) : state_(std::move(state)) {}

  bool Next(std::string* bytes) override {
    bytes->append(state_);
    return !std::exchange(state_, {}).empty();
  }

 private:
  std::string state_;
};

class ProbabilisticFilter : public OccurrenceFilter {
 public:
  ProbabilisticFilter(const OccurrenceThresholds& thresholds, bool equal_probability, uint64_t seed)
      : OccurrenceFilter(thresholds), equal_probability_(equal_probability), seed_(Mix64(seed)) {}

  void Clear() override {}

  std::string Save() const override {
    std::string state = DescriptionBytes(kDescription);
    Append(batches_.load(), &state);
    return state;
  }

  std::unique_ptr<FilterCut> Cut() override { return std::make_unique<WholeCut>(Save()); }

  Status Restore(const std::string& state) override {
    StateReader reader(state);
    MILLRACE_RETURN_IF_ERROR(reader.TakeDescription(kDescription));
    uint64_t batches = 0;
    if (!reader.Take(&batches)) return DataLoss("state of a probabilistic filter ends inside its batch number");
    MILLRACE_RETURN_IF_ERROR(reader.Finish());
    batches_ = batches;
    return {};
  }

 protected:
  bool Passes(int64_t fid, uint32_t count, uint32_t threshold, uint64_t batch) override {
    const double share = static_cast<double>(count) / threshold;
    const double probability = equal_probability_ ? -std::expm1(-kLog20 * share) : share;
    const uint64_t bits = Mix64(HashFid(fid) ^ Mix64(seed_ + batch * 0x9E3779B97F4A7C15ull));
    return static_cast<double>(bits >> 11) * 0x1p-53 < probability;
  }

 private:
  static constexpr char kDescription[] = "version=1;kind=probabilistic";

  const bool equal_probability_;
  const uint64_t seed_;
};

// Where an id is counted: two finalisers of its fid, so ids that share a window rarely share the fingerprint.
struct Place {
  explicit Place(int64_t fid) {
    const uint64_t hash = HashFid(fid);
    part = static_cast<uint32_t>(hash);
    position = hash >> 32;
    fingerprint = static_cast<uint32_t>(Mix64(hash ^ kFingerprintSalt) >> (32 + kCountBits));
  }

  uint32_t part;
  uint64_t position;  // 32 bits
  uint32_t fingerprint;
};

// For every 64 cells a mask of those in use, then their contents.
void AppendCells(const uint32_t* cells, size_t count, std::string* bytes) {
  for (size_t begin = 0; begin < count; begin += 64) {
    const size_t end = std::min(count, begin + 64);
    uint64_t mask = 0;
    for (size_t i = begin; i < end; ++i) mask |= uint64_t{cells[i] != 0} << (i - begin);
    Append(mask, bytes);
    for (size_t i = begin; i < end; ++i) {
      if (cells[i] != 0) Append(cells[i], bytes);
    }
  }
}

// The cells of a ring as they were at a cut, page by page: copied before their first change, until they were taken. The
// lock of the ring's part guards it.
class CellsCut {
 public:
  static constexpr size_t kPageCells = 4096;  // 16 KB: a few microseconds to copy; whole groups of 64

  // `cells` and `size` of the ring.
  CellsCut(const uint32_t* cells, size_t size) : cells_(cells), size_(size), pages_(PagesOf(size)) {}

  size_t pages() const { return pages_.size(); }
  size_t CellsOf(size_t page) const { return std::min(kPageCells, size_ - page * kPageCells); }

  void BeforeChange(size_t cell) { Keep(cell / kPageCells); }
  void BeforeAllChange() {
    for (size_t page = 0; page < pages_.size(); ++page) Keep(page);
  }
  // Copies a page out, each once.
  void Take(size_t page, uint32_t* out) {
    const uint32_t* from = pages_[page].kept != nullptr ? pages_[page].kept.get() : cells_ + page * kPageCells;
    std::memcpy(out, from, CellsOf(page) * sizeof(uint32_t));
    pages_[page] = {nullptr, true};
  }

 private:
  struct Page {
    std::unique_ptr<uint32_t[]> kept;
    bool taken = false;
  };

  static size_t PagesOf(size_t size) { return (size + kPageCells - 1) / kPageCells; }

  void Keep(size_t page) {
    if (pages_[page].taken || pages_[page].kept != nullptr) return;
    pages_[page].kept.reset(new uint32_t[CellsOf(page)]);
    std::memcpy(pages_[page].kept.get(), cells_ + page * kPageCells, CellsOf(page) * sizeof(uint32_t));
  }

  const uint32_t* const cells_;
  const size_t size_;
  std::vector<Page> pages_;
};

// Open-addressing cells of 24 bits of fingerprint and 8 of count; an empty cell is 0. Cells are never freed singly.
class Ring {
 public:
  explicit Ring(size_t capacity)
      : size_(static_cast<size_t>(kCellsPerId * static_cast<double>(capacity)) + kSpareCells),
        cells_(static_cast<uint32_t*>(std::calloc(size_, sizeof(uint32_t)))) {
    if (cells_ == nullptr) throw std::bad_alloc();
  }

  size_t used() const { return used_; }
  // Past 7/8 the way to an empty cell becomes long.
  bool is_full() const { return used_ >= size_ / 8 * 7; }

  static uint32_t CountOf(uint32_t cell) { return cell & kMaxCount; }

  // The cell of an id, else the empty one it may take, else null.
  uint32_t* Find(const Place& place, size_t windows) {
    const size_t homes = size_ - kWindow + 1;
    size_t begin = place.position * homes >> 32;
    for (size_t w = 0; w < windows; ++w) {
      const uint32_t at = FirstMatch(cells_.get() + begin, place.fingerprint);
      if (at < kWindow) return cells_.get() + begin + at;
      begin = begin + kWindow < homes ? begin + kWindow : 0;
    }
    return nullptr;
  }

  void Fill(uint32_t* cell, const Place& place, uint32_t count) {
    BeforeChange(cell);
    *cell = place.fingerprint << kCountBits;
    *cell += std::min(count, kMaxCount);
    ++used_;
  }

  void Add(uint32_t* cell, uint32_t count) {
    BeforeChange(cell);
    *cell += std::min(count, kMaxCount - CountOf(*cell));
  }

  void Clear() {
    KeepAll();
    if (used_ > 0) std::fill_n(cells_.get(), size_, 0);
    used_ = 0;
  }

  void Save(std::string* bytes) const { AppendCells(cells_.get(), size_, bytes); }

  // The cut, until EndCut, of what the ring holds now. All that it gave is kept there before it changes.
  std::shared_ptr<CellsCut> BeginCut() { return cut_ = std::make_shared<CellsCut>(cells_.get(), size_); }
  void EndCut() { cut_ = nullptr; }
  // Before the ring is changed whole or goes.
  void KeepAll() {
    if (cut_ != nullptr) cut_->BeforeAllChange();
  }

  // Into a new ring. False if the bytes are no ring of this size.
  bool Restore(StateReader* reader) {
    for (size_t begin = 0; begin < size_; begin += 64) {
      uint64_t mask = 0;
      if (!reader->Take(&mask)) return false;
      for (; mask != 0; mask &= mask - 1) {
        const size_t i = begin + __builtin_ctzll(mask);
        if (i >= size_ || !reader->Take(&cells_[i]) || cells_[i] == 0) return false;
        ++used_;
      }
    }
    return true;
  }

 private:
  struct Free {
    void operator()(uint32_t* cells) const { std::free(cells); }
  };

  void BeforeChange(const uint32_t* cell) {
    if (cut_ != nullptr) cut_->BeforeChange(static_cast<size_t>(cell - cells_.get()));
  }

  // Out of line and over all cells, as GCC then vectorises it.
  MILLRACE_CLONES [[gnu::noinline]] static uint32_t FirstMatch(const uint32_t* cells, uint32_t fingerprint) {
    uint32_t first = kWindow;
    for (uint32_t i = 0; i < kWindow; ++i) {
      const uint32_t at = cells[i] == 0 || cells[i] >> kCountBits == fingerprint ? i : kWindow;
      first = at < first ? at : first;
    }
    return first;
  }

  size_t size_;
  std::unique_ptr<uint32_t[], Free> cells_;  // zero pages cost nothing until an id is counted in them
  size_t used_ = 0;
  std::shared_ptr<CellsCut> cut_;  // null: none is open
};

struct Rings {
  Rings(size_t count, size_t capacity) {
    for (size_t i = 0; i < count; ++i) rings.emplace_back(capacity);
  }

  // `step` is below the number of rings.
  Ring& FromHead(size_t step) {
    const size_t i = head + step;
    return rings[i < rings.size() ? i : i - rings.size()];
  }

  std::vector<Ring> rings;
  size_t head = 0;
  uint64_t rotations = 0;
};

// Counts ids in rings, in parts that are locked apart.
class RingFilter : public OccurrenceFilter {
 public:
  RingFilter(const OccurrenceThresholds& thresholds, std::string description, size_t capacity, size_t rings,
             size_t capacity_shares)
      : OccurrenceFilter(thresholds),
        description_(std::move(description)),
        ring_count_(rings),
        ring_capacity_(std::max(capacity / PartsOf(capacity), kMinCapacity) / capacity_shares) {
    for (size_t i = 0; i < PartsOf(capacity); ++i) parts_.push_back(std::make_unique<Part>(NewRings()));
  }

  void Clear() override {
    for (const auto& part : parts_) {
      const std::lock_guard<std::mutex> lock(part->mutex);
      for (Ring& ring : part->rings.rings) ring.Clear();
      part->rings.head = 0;
      part->rings.rotations = 0;
    }
  }

  std::string Save() const override {
    std::string state = DescriptionBytes(description_);
    for (const auto& part : parts_) {
      const std::lock_guard<std::mutex> lock(part->mutex);
      Append(part->rings.rotations, &state);
      for (const Ring& ring : part->rings.rings) ring.Save(&state);
    }
    return state;
  }

  std::unique_ptr<FilterCut> Cut() override { return std::make_unique<RingsCut>(this); }

  Status Restore(const std::string& state) override {
    StateReader reader(state);
    MILLRACE_RETURN_IF_ERROR(reader.TakeDescription(description_));
    std::vector<Rings> restored;
    for (size_t i = 0; i < parts_.size(); ++i) {
      restored.push_back(NewRings());
      if (!RestoreRings(&reader, &restored.back())) {
        return DataLoss("state of the occurrence filter " + description_ + " is damaged in part " + std::to_string(i));
      }
    }
    MILLRACE_RETURN_IF_ERROR(reader.Finish());
    for (size_t i = 0; i < parts_.size(); ++i) {
      const std::lock_guard<std::mutex> lock(parts_[i]->mutex);
      for (Ring& ring : parts_[i]->rings.rings) ring.KeepAll();
      std::swap(parts_[i]->rings, restored[i]);
    }
    return {};
  }

  RingFacts facts() const override {
    const std::lock_guard<std::mutex> lock(parts_[0]->mutex);
    const Rings& rings = parts_[0]->rings;
    RingFacts facts{ring_capacity_, rings.head, rings.rotations, {}};
    for (const Ring& ring : rings.rings) facts.elements.push_back(ring.used());
    return facts;
  }

 protected:
  bool Passes(int64_t fid, uint32_t count, uint32_t threshold, uint64_t) override {
    const Place place(fid);
    Part& part = *parts_[place.part & (parts_.size() - 1)];
    const std::lock_guard<std::mutex> lock(part.mutex);
    return Add(&part.rings, place, count) >= threshold;
  }

  // Count of the id before `count` is added.
  virtual uint32_t Add(Rings* rings, const Place& place, uint32_t count) = 0;

  // Count of an id that finds no cell.
  uint32_t Fail() {
    failures_.fetch_add(1, std::memory_order_relaxed);
    return kMaxCount;
  }

  size_t ring_capacity() const { return ring_capacity_; }

 private:
  struct alignas(64) Part {
    explicit Part(Rings made) : rings(std::move(made)) {}

    std::mutex mutex;
    Rings rings;
  };

  // Goes part by part, ring by ring, page by page, as Save does.
  class RingsCut : public FilterCut {
   public:
    explicit RingsCut(RingFilter* filter) : filter_(*filter), page_(new uint32_t[CellsCut::kPageCells]) {
      for (const auto& part : filter_.parts_) {
        const std::lock_guard<std::mutex> lock(part->mutex);
        parts_.push_back({part->rings.rotations, {}});
        for (Ring& ring : part->rings.rings) parts_.back().rings.push_back(ring.BeginCut());
      }
    }
    ~RingsCut() override {
      for (const auto& part : filter_.parts_) {
        const std::lock_guard<std::mutex> lock(part->mutex);
        for (Ring& ring : part->rings.rings) ring.EndCut();
      }
    }

    bool Next(std::string* bytes) override {
      if (part_at_ == parts_.size()) return false;
      if (part_at_ + ring_at_ + page_at_ == 0) bytes->append(DescriptionBytes(filter_.description_));
      if (ring_at_ + page_at_ == 0) Append(parts_[part_at_].rotations, bytes);
      CellsCut& ring = *parts_[part_at_].rings[ring_at_];
      {
        const std::lock_guard<std::mutex> lock(filter_.parts_[part_at_]->mutex);
        ring.Take(page_at_, page_.get());
      }
      AppendCells(page_.get(), ring.CellsOf(page_at_), bytes);
      if (++page_at_ < ring.pages()) return true;
      page_at_ = 0;
      if (++ring_at_ < parts_[part_at_].rings.size()) return true;
      ring_at_ = 0;
      ++part_at_;
      return true;
    }

   private:
    struct PartCut {
      uint64_t rotations;
      std::vector<std::shared_ptr<CellsCut>> rings;
    };

    RingFilter& filter_;
    const std::unique_ptr<uint32_t[]> page_;
    std::vector<PartCut> parts_;
    size_t part_at_ = 0, ring_at_ = 0, page_at_ = 0;
  };

  // A power of two.
  static size_t PartsOf(size_t capacity) {
    size_t parts = 1;
    while (parts < kMaxParts && capacity / (2 * parts) >= kIdsPerPart) parts *= 2;
    return parts;
  }

  static bool RestoreRings(StateReader* reader, Rings* rings) {
    if (!reader->Take(&rings->rotations)) return false;
    rings->head = rings->rotations % rings->rings.size();
    return std::all_of(rings->rings.begin(), rings->rings.end(), [&](Ring& ring) { return ring.Restore(reader); });
  }

  Rings NewRings() const { return Rings(ring_count_, ring_capacity_); }

  const std::string description_;
  const size_t ring_count_;
  const size_t ring_capacity_;
  std::vector<std::unique_ptr<Part>> parts_;
};

class CountingFilter : public RingFilter {
 public:
  CountingFilter(const OccurrenceThresholds& thresholds, size_t capacity)
      : RingFilter(thresholds, "version=1;kind=counting;capacity=" + std::to_string(capacity), capacity, 1, 1) {}

 protected:
  uint32_t Add(Rings* rings, const Place& place, uint32_t count) override {
    Ring& ring = rings->rings[0];
    uint32_t* cell = ring.Find(place, kCountingWindows);
    if (cell == nullptr || (*cell == 0 && ring.is_full())) return Fail();
    const uint32_t old = Ring::CountOf(*cell);
    if (*cell == 0) {
      ring.Fill(cell, place, count);
    } else {
      ring.Add(cell, count);
    }
    return old;
  }
};

// New ids are counted in the head ring, or where it has no cell in the next. A full head passes on to the next ring,
// and the one after that, the oldest, is cleared.
class SlidingFilter : public RingFilter {
 public:
  SlidingFilter(const OccurrenceThresholds& thresholds, size_t capacity, size_t split_num)
      : RingFilter(
            thresholds,
            "version=1;kind=sliding;capacity=" + std::to_string(capacity) + ";split_num=" + std::to_string(split_num),
            capacity, split_num, split_num - 1) {}

 protected:
  uint32_t Add(Rings* rings, const Place& place, uint32_t count) override {
    Ring* free_ring = nullptr;
    uint32_t* free_cell = nullptr;
    for (size_t step = 0; step < kForwardRings; ++step) {
      Ring& ring = rings->FromHead(step);
      uint32_t* cell = ring.Find(place, 1);
      if (cell == nullptr) continue;
      if (*cell != 0) {
        const uint32_t old = Ring::CountOf(*cell);
        ring.Add(cell, count);
        return old;
      }
      if (free_cell == nullptr) {
        free_ring = &ring;
        free_cell = cell;
      }
    }
    if (free_cell == nullptr) return Fail();
    const uint32_t old = CountInOlderRings(rings, place);
    free_ring->Fill(free_cell, place, old);
    free_ring->Add(free_cell, count);
    if (rings->FromHead(0).used() + 1 >= ring_capacity()) Advance(rings);
    return old;
  }

 private:
  static uint32_t CountInOlderRings(Rings* rings, const Place& place) {
    const size_t size = rings->rings.size();
    const uint64_t older = std::min<uint64_t>(rings->rotations, size - kForwardRings);
    for (size_t step = 1; step <= older; ++step) {
      const uint32_t* cell = rings->FromHead(size - step).Find(place, 1);
      if (cell != nullptr && *cell != 0) return Ring::CountOf(*cell);
    }
    return 0;
  }

  static void Advance(Rings* rings) {
    ++rings->rotations;
    rings->head = rings->rotations % rings->rings.size();
    rings->FromHead(1).Clear();
  }
};

Status CheckThresholds(const std::string& where, const OccurrenceThresholds& thresholds, uint32_t limit) {
  const auto refuse = [&](const std::string& what, uint32_t threshold) {
    return InvalidArgument(where + " has " + what + " " + std::to_string(threshold) + "; choose from 0 to " +
                           std::to_string(limit));
  };
  if (thresholds.fallback > limit) return refuse("threshold", thresholds.fallback);
  for (const auto& [slot, threshold] : thresholds.by_slot) {
    const std::string name = std::to_string(slot);
    if (slot < 0 || slot >= kSlots) return InvalidArgument(where + " has slot " + name + "; choose from 0 to 32767");
    if (threshold > limit) return refuse("threshold of slot " + name, threshold);
  }
  return {};
}

}  // namespace

uint32_t OccurrenceThresholds::Of(int64_t fid) const {
  const auto found = by_slot.find(SlotOf(fid));
  return found == by_slot.end() ? fallback : found->second;
}

OccurrenceFilter::OccurrenceFilter(const OccurrenceThresholds& thresholds) : fallback_(thresholds.fallback) {
  if (thresholds.by_slot.empty()) return;
  for (int64_t slot = 0; slot < kSlots; ++slot) threshold_of_slot_.push_back(thresholds.Of(slot << kSignatureBits));
}

uint32_t OccurrenceFilter::ThresholdOf(int64_t fid) const {
  return threshold_of_slot_.empty() ? fallback_ : threshold_of_slot_[SlotOf(fid)];
}

bool OccurrenceFilter::Admit(int64_t fid, uint32_t count, uint64_t batch) {
  const uint32_t threshold = ThresholdOf(fid);
  const bool admitted = threshold == 0 || Passes(fid, count, threshold, batch);
  Tally& tally = tallies_[ThreadNumber() % tallies_.size()];
  (admitted ? tally.admitted : tally.rejected).fetch_add(1, std::memory_order_relaxed);
  return admitted;
}

uint64_t OccurrenceFilter::admitted() const {
  uint64_t sum = 0;
  for (const Tally& tally : tallies_) sum += tally.admitted.load(std::memory_order_relaxed);
  return sum;
}

uint64_t OccurrenceFilter::rejected() const {
  uint64_t sum = 0;
  for (const Tally& tally : tallies_) sum += tally.rejected.load(std::memory_order_relaxed);
  return sum;
}

Status MakeFilter(const std::string& where, const RuleConfig& rule, const OccurrenceThresholds& thresholds,
                  std::unique_ptr<OccurrenceFilter>* result) {
  result->reset();
  RuleParameters parameters(where, rule);
  const auto capacity = [&] { return static_cast<size_t>(parameters.Take("capacity", 1, 0x1p32)); };
  const auto check = [&](uint32_t limit) -> Status {
    MILLRACE_RETURN_IF_ERROR(parameters.Finish());
    return CheckThresholds(where + " " + rule.kind, thresholds, limit);
  };
  if (rule.kind == "none") return parameters.Finish();
  if (rule.kind == "probabilistic") {
    const bool equal_probability = parameters.TakeFlag("equal_probability");
    const auto seed = static_cast<uint64_t>(parameters.Take("seed", 0, 0x1p53));
    MILLRACE_RETURN_IF_ERROR(check(std::numeric_limits<uint32_t>::max()));
    *result = std::make_unique<ProbabilisticFilter>(thresholds, equal_probability, seed);
    return {};
  }
  if (rule.kind == "counting") {
    const size_t ids = capacity();
    MILLRACE_RETURN_IF_ERROR(check(kMaxCount));
    *result = std::make_unique<CountingFilter>(thresholds, ids);
    return {};
  }
  if (rule.kind == "sliding") {
    const size_t ids = capacity();
    const auto split_num = static_cast<size_t>(parameters.Take("split_num", 5, 101));
    MILLRACE_RETURN_IF_ERROR(check(kMaxCount));
    *result = std::make_unique<SlidingFilter>(thresholds, ids, split_num);
    return {};
  }
  return InvalidArgument(where + ": unknown filter '" + rule.kind +
                         "'; choose from none, probabilistic, counting, sliding");
}

}  // namespace millrace
