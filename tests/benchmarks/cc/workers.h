// Threads for the library in a benchmark, as TensorFlow's intra-op threads are for its kernels.
#ifndef MILLRACE_TESTS_BENCHMARKS_CC_WORKERS_H_
#define MILLRACE_TESTS_BENCHMARKS_CC_WORKERS_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "ops/cc/embedding/base/executor.h"

namespace millrace {

// The caller is one of the threads; the others sleep between calls.
class Workers {
 public:
  explicit Workers(int threads) : threads_(threads) {
    for (int t = 1; t < threads; ++t) others_.emplace_back([this] { Serve(); });
  }
  ~Workers() {
    {
      const std::lock_guard lock(mutex_);
      ends_ = true;
    }
    wake_.notify_all();
    for (std::thread& other : others_) other.join();
  }
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  Executor AsExecutor() {
    return [this](int64_t units, int64_t nanoseconds_per_unit, const RangeBody& body) {
      if (threads_ == 1 || units * nanoseconds_per_unit < kWorthWaking) {
        if (units > 0) body(0, units);
        return;
      }
      std::atomic<int64_t> next{0};
      const int64_t step = std::max<int64_t>(1, units / (4 * threads_));
      RunOnAll([&] {
        for (int64_t first = next.fetch_add(step); first < units; first = next.fetch_add(step)) {
          body(first, std::min(units, first + step));
        }
      });
    };
  }

 private:
  static constexpr int64_t kWorthWaking = 20000;  // nanoseconds

  void RunOnAll(const std::function<void()>& job) {
    {
      const std::lock_guard lock(mutex_);
      job_ = &job;
      busy_ = static_cast<int>(others_.size());
      ++round_;
    }
    wake_.notify_all();
    job();
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

  void Serve() {
    for (uint64_t seen = 0;;) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return ends_ || round_ != seen; });
      if (ends_) return;
      seen = round_;
      const std::function<void()>& job = *job_;
      lock.unlock();
      job();
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  const int threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void()>* job_ = nullptr;
  uint64_t round_ = 0;
  int busy_ = 0;
  bool ends_ = false;
  std::vector<std::thread> others_;
};

}  // namespace millrace

#endif  // MILLRACE_TESTS_BENCHMARKS_CC_WORKERS_H_
