// Occurrence filters: an id has to be seen often enough before a table gives it an entry.
#ifndef MILLRACE_EMBEDDING_OCCURRENCE_FILTER_H_
#define MILLRACE_EMBEDDING_OCCURRENCE_FILTER_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ops/cc/embedding/rules/rule_config.h"
#include "ops/cc/embedding/base/status.h"

namespace millrace {

// Sightings before an id is admitted, by its slot; 0 admits at the first.
struct OccurrenceThresholds {
  uint32_t fallback = 0;
  std::map<int, uint32_t> by_slot;

  uint32_t Of(int64_t fid) const;
};

// Rings of the first part of a filter, for tests.
struct RingFacts {
  size_t total_size = 0;         // ids a ring is made for
  size_t head = 0;               // ring that takes new ids
  uint64_t head_increment = 0;   // rings that have been filled so far
  std::vector<size_t> elements;  // used cells of each ring
};

// The state of a filter at one moment, handed out while the filter goes on.
class FilterCut {
 public:
  virtual ~FilterCut() = default;

  // Appends the next piece of what Save gave at that moment; false at the end.
  virtual bool Next(std::string* bytes) = 0;
};

// Thread-safe. A table asks it only about ids that have no entry.
class OccurrenceFilter {
 public:
  explicit OccurrenceFilter(const OccurrenceThresholds& thresholds);
  virtual ~OccurrenceFilter() = default;
  OccurrenceFilter(const OccurrenceFilter&) = delete;
  OccurrenceFilter& operator=(const OccurrenceFilter&) = delete;

  // Number of a batch, which seeds its draws: equal state and equal calls give equal decisions.
  uint64_t BeginBatch() { return batches_.fetch_add(1, std::memory_order_relaxed); }

  // Whether the id may get an entry, now that it was seen `count` >= 1 times more. Ids under a threshold of 0 are not
  // remembered. A batch asks once an id, with the number of its sightings.
  bool Admit(int64_t fid, uint32_t count, uint64_t batch);

  // Forgets all ids. The counters below go on.
  virtual void Clear() = 0;

  // State, little endian, with a description of the filter in front. What other threads admit meanwhile may be in it
  // or not.
  virtual std::string Save() const = 0;
  // The state as it is now, in microseconds: what changes is copied before, a page at a time, until it was handed out.
  // Requires that nobody admits during the call. The filter must outlive the cut, of which there is one at a time.
  virtual std::unique_ptr<FilterCut> Cut() = 0;
  // InvalidArgument for the state of another filter, DataLoss for one that no filter saved; either changes nothing.
  virtual Status Restore(const std::string& state) = 0;

  // Answers of Admit since this filter was made.
  uint64_t admitted() const;
  uint64_t rejected() const;
  // Ids admitted since no cell was left to count them.
  uint64_t failures() const { return failures_.load(std::memory_order_relaxed); }

  virtual RingFacts facts() const { return {}; }

 protected:
  // `threshold` is at least 1.
  virtual bool Passes(int64_t fid, uint32_t count, uint32_t threshold, uint64_t batch) = 0;

  std::atomic<uint64_t> batches_{0};
  std::atomic<uint64_t> failures_{0};

 private:
  struct alignas(64) Tally {
    std::atomic<uint64_t> admitted{0};
    std::atomic<uint64_t> rejected{0};
  };

  uint32_t ThresholdOf(int64_t fid) const;

  const uint32_t fallback_;
  std::vector<uint32_t> threshold_of_slot_;  // empty: the fallback everywhere
  std::array<Tally, 16> tallies_;            // by thread, as a shared one would be contended
};

// Kinds:
//   none: `*result` is null;
//   probabilistic (equal_probability, seed): draws with probability min(1, count / threshold), or, equal, such that
//     `threshold` sightings are admitted with 95 % however they fall into batches;
//   counting (capacity): exact up to hash collisions, and past its capacity admits what it cannot count;
//   sliding (capacity, split_num): counts in rings and forgets the ids of the oldest ring.
// `where` begins the message of an error, as in "table 'movies': filter".
Status MakeFilter(const std::string& where, const RuleConfig& rule, const OccurrenceThresholds& thresholds,
                  std::unique_ptr<OccurrenceFilter>* result);

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_OCCURRENCE_FILTER_H_
