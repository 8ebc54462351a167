// Uninitialised memory for the length of one call, taken from what earlier calls gave back.
#ifndef MILLRACE_EMBEDDING_SCRATCH_ARRAY_H_
#define MILLRACE_EMBEDDING_SCRATCH_ARRAY_H_

#include <array>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace millrace {

// A batch needs some megabytes for a few milliseconds. From the heap they come as fresh pages each time, whose first
// touch takes longer than the work on them.
class ScratchPool {
 public:
  static ScratchPool& Global() {
    static auto* pool = new ScratchPool();  // never destroyed: kernels may still run when the process exits
    return *pool;
  }

  void* Take(int size_class) {
    {
      const std::lock_guard lock(mutex_);
      std::vector<void*>& free = free_[size_class];
      if (free.capacity() == 0) free.reserve(kKept);  // Give, which destructors call, must not need memory
      if (!free.empty()) {
        void* memory = free.back();
        free.pop_back();
        return memory;
      }
    }
    void* memory = std::malloc(size_t{1} << size_class);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }

  void Give(void* memory, int size_class) {
    {
      const std::lock_guard lock(mutex_);
      const size_t most = size_class < kLarge ? kKept : kKept / 8;
      if (size_class <= kLargestKept && free_[size_class].size() < most) {
        free_[size_class].push_back(memory);
        return;
      }
    }
    std::free(memory);
  }

 private:
  static constexpr size_t kKept = 64;  // pieces of one size, as threads use at once; an eighth of it from 1 MB on
  static constexpr int kLarge = 20;
  static constexpr int kLargestKept = 24;  // 16 MB: the heap maps larger pieces anew anyway
  std::mutex mutex_;
  std::array<std::vector<void*>, 64> free_;  // by the logarithm of their size
};

// An array of trivial elements that hold anything in the beginning. Null until it is given a size.
template <typename T>
class ScratchArray {
 public:
  ScratchArray() = default;
  explicit ScratchArray(size_t size) {
    const int size_class = SizeClassOf(size * sizeof(T));
    memory_ = {static_cast<T*>(ScratchPool::Global().Take(size_class)), GiveBack{size_class}};
  }

  T* get() const { return memory_.get(); }
  T& operator[](size_t i) const { return memory_.get()[i]; }
  explicit operator bool() const { return memory_ != nullptr; }

 private:
  struct GiveBack {
    int size_class = 0;
    void operator()(T* memory) const { ScratchPool::Global().Give(memory, size_class); }
  };

  static int SizeClassOf(size_t bytes) {
    int size_class = 6;
    while ((size_t{1} << size_class) < bytes) ++size_class;
    return size_class;
  }

  std::unique_ptr<T[], GiveBack> memory_;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_SCRATCH_ARRAY_H_
