// The least that a store has to do for a batch, and so what memory allows: the real store is measured beside it.
#ifndef MILLRACE_TESTS_BENCHMARKS_CC_BARE_LOOP_H_
#define MILLRACE_TESTS_BENCHMARKS_CC_BARE_LOOP_H_

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

namespace millrace {

// Zeroed memory on huge pages; what is never written takes none.
template <typename T>
class HugeArray {
 public:
  explicit HugeArray(int64_t size) : bytes_(size * sizeof(T)) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    madvise(memory, bytes_, MADV_HUGEPAGE);
    data_ = static_cast<T*>(memory);
  }
  ~HugeArray() { munmap(data_, bytes_); }
  HugeArray(const HugeArray&) = delete;
  HugeArray& operator=(const HugeArray&) = delete;

  T& operator[](int64_t i) const { return data_[i]; }

 private:
  const int64_t bytes_;
  T* data_;
};

// Weights and Adagrad state of a fixed number of ids: no locks, no growth, no removal, and none of its calls may
// overlap. Ids are not 0. The dimension is a constant, so that copies and updates are unrolled.
template <int kDim>
class BareLoop {
 public:
  // `capacity`: ids that Insert may be given over the life of this.
  BareLoop(int64_t capacity, int threads)
      : threads_(threads), mask_(SlotsFor(capacity) - 1), slots_(mask_ + 1), entries_(capacity + 1), merges_(threads) {}

  // Writes the weights of distinct ids; the state of a new one is `initial_accumulator`.
  void Insert(const int64_t* ids, const float* weights, int64_t count, float initial_accumulator) {
    const int64_t first_entry = next_entry_;
    next_entry_ += count;
    OnEachThread([&](int thread) {
      const int64_t last = count * (thread + 1) / threads_;
      for (int64_t i = count * thread / threads_; i < last; ++i) {
        if (i + kAhead < last) __builtin_prefetch(&slots_[Home(ids[i + kAhead])], 1);
        Entry& entry = entries_[Claim(ids[i], static_cast<uint32_t>(first_entry + i))];
        std::memcpy(entry.weights, weights + i * kDim, sizeof(entry.weights));
        std::fill_n(entry.state, kDim, initial_accumulator);
      }
    });
  }

  // Writes `count` rows of kDim floats, zeros for an unknown id.
  void Lookup(const int64_t* ids, int64_t count, float* weights) const {
    OnEachThread([&](int thread) {
      const int64_t first = count * thread / threads_;
      const int64_t last = count * (thread + 1) / threads_;
      ForEachEntry<kDim>(ids + first, last - first, [row = weights + first * kDim](int64_t i, const Entry& entry) {
        std::memcpy(row + i * kDim, entry.weights, sizeof(entry.weights));
      });
    });
  }

  // One Adagrad step per id, along the sum of its gradients. All ids are known.
  void Update(const int64_t* ids, const float* gradients, int64_t count, float learning_rate) {
    OnEachThread([&](int thread) {
      Merge& merge = merges_[thread];
      MergeOwn(thread, ids, gradients, count, &merge);
      ForEachEntry<2 * kDim>(merge.ids.data(), merge.count, [&](int64_t i, Entry& entry) {
        const float* gradient = merge.sums.data() + i * kDim;
        for (int k = 0; k < kDim; ++k) {
          entry.state[k] += gradient[k] * gradient[k];
          entry.weights[k] -= learning_rate * gradient[k] / std::sqrt(entry.state[k]);
        }
      });
    });
  }

 private:
  static constexpr int64_t kAhead = 16;

  struct Entry {
    float weights[kDim];
    float state[kDim];
  };
  struct Slot {
    std::atomic<int64_t> id;  // 0: free
    uint32_t entry;           // 0, an entry of zeros, while the slot is free
  };
  static_assert(sizeof(Slot) == 16, "four slots a cache line");

  // Distinct ids of one thread's part of a batch, with the sums of their gradients.
  struct alignas(64) Merge {
    std::vector<uint32_t> own;  // positions in the batch
    std::vector<uint32_t> places;
    std::vector<int64_t> ids;
    std::vector<float> sums;
    int64_t count = 0;
  };

  static int64_t SlotsFor(int64_t ids) {
    int64_t slots = 16;
    while (slots < 2 * ids) slots *= 2;
    return slots;
  }

  static uint64_t Hash(int64_t id) {
    uint64_t hash = static_cast<uint64_t>(id);
    hash = (hash ^ (hash >> 33)) * 0xFF51AFD7ED558CCDull;
    hash = (hash ^ (hash >> 33)) * 0xC4CEB9FE1A85EC53ull;
    return hash ^ (hash >> 33);
  }

  int64_t Home(int64_t id) const { return Hash(id) & mask_; }

  int OwnerOf(int64_t id) const { return static_cast<int>((Hash(id) >> 32) * threads_ >> 32); }

  uint32_t Find(int64_t id) const {
    for (int64_t i = Home(id);; i = (i + 1) & mask_) {
      const int64_t found = slots_[i].id.load(std::memory_order_relaxed);
      if (found == id || found == 0) return slots_[i].entry;
    }
  }

  // The entry of `id`, which is `entry` when it is new.
  uint32_t Claim(int64_t id, uint32_t entry) {
    for (int64_t i = Home(id);; i = (i + 1) & mask_) {
      int64_t found = slots_[i].id.load(std::memory_order_relaxed);
      if (found == 0 && slots_[i].id.compare_exchange_strong(found, id, std::memory_order_relaxed)) {
        return slots_[i].entry = entry;
      }
      if (found == id) return slots_[i].entry;
    }
  }

  // Calls body(i, entry of ids[i]) in order. The slot of an id is fetched kAhead ids before its entry, and that, so far
  // as kFloats reach, kAhead ids before its turn.
  template <int kFloats, typename Body>
  void ForEachEntry(const int64_t* ids, int64_t count, Body body) const {
    Entry* pending[kAhead];
    for (int64_t i = -2 * kAhead; i < count; ++i) {
      if (i + 2 * kAhead < count) __builtin_prefetch(&slots_[Home(ids[i + 2 * kAhead])]);
      if (i >= 0) body(i, *pending[i % kAhead]);
      const int64_t next = i + kAhead;
      if (next < 0 || next >= count) continue;
      Entry* entry = &entries_[Find(ids[next])];
      const char* bytes = reinterpret_cast<const char*>(entry);
      for (size_t at = 0; at < kFloats * sizeof(float); at += 64) __builtin_prefetch(bytes + at, kFloats > kDim);
      pending[next % kAhead] = entry;
    }
  }

  // Every id has one owner, so no two threads touch one entry.
  void MergeOwn(int thread, const int64_t* ids, const float* gradients, int64_t count, Merge* merge) const {
    merge->own.resize(count);
    int64_t own = 0;
    for (int64_t i = 0; i < count; ++i) {
      merge->own[own] = static_cast<uint32_t>(i);
      own += OwnerOf(ids[i]) == thread;
    }
    const uint64_t mask = SlotsFor(own) - 1;
    merge->places.assign(mask + 1, 0);
    merge->ids.resize(own);
    merge->sums.resize(own * kDim);
    merge->count = 0;
    for (int64_t n = 0; n < own; ++n) {
      const int64_t id = ids[merge->own[n]];
      const float* gradient = gradients + static_cast<int64_t>(merge->own[n]) * kDim;
      uint64_t place = Hash(id) & mask;
      while (merge->places[place] != 0 && merge->ids[merge->places[place] - 1] != id) place = (place + 1) & mask;
      if (merge->places[place] == 0) {
        merge->ids[merge->count] = id;
        std::memcpy(&merge->sums[merge->count * kDim], gradient, kDim * sizeof(float));
        merge->places[place] = static_cast<uint32_t>(++merge->count);
      } else {
        float* sum = &merge->sums[(merge->places[place] - 1) * static_cast<int64_t>(kDim)];
        for (int k = 0; k < kDim; ++k) sum[k] += gradient[k];
      }
    }
  }

  template <typename Body>
  void OnEachThread(const Body& body) const {
    std::vector<std::thread> others;
    for (int thread = 1; thread < threads_; ++thread) others.emplace_back([&body, thread] { body(thread); });
    body(0);
    for (std::thread& other : others) other.join();
  }

  const int threads_;
  const int64_t mask_;
  const HugeArray<Slot> slots_;
  const HugeArray<Entry> entries_;
  std::vector<Merge> merges_;
  int64_t next_entry_ = 1;
};

}  // namespace millrace

#endif  // MILLRACE_TESTS_BENCHMARKS_CC_BARE_LOOP_H_
