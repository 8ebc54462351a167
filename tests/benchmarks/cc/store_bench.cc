// The embedding store without TensorFlow, beside a bare loop over memory.
//
//   store_bench [--keys N] [--dim 1|8|16|32|64] [--threads T] [--batch B] [--zipf S] [--json] [--check]
//
// Prints the rate of every case: the median of 20 batches after 5 to warm up; an insert is timed from the first key to
// the last. --check compares a small table with std::unordered_map instead.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ops/cc/embedding/table/embedding_table.h"
#include "tests/benchmarks/cc/bare_loop.h"
#include "tests/benchmarks/cc/workers.h"

namespace millrace {
namespace {

constexpr int kWarmUp = 5;
constexpr int kRounds = 20;
constexpr float kLearningRate = 0.1f;
constexpr float kInitialAccumulator = 0.1f;
constexpr int64_t kIndexBytes = 64;      // a key, at most
constexpr int64_t kFloatsPerWeight = 2;  // the weight and its state

struct Flags {
  int64_t keys = 1000000;
  int dim = 16;
  int threads = 2;
  int64_t batch = 65536;
  double zipf = 1.05;
  bool json = false;
  bool check = false;
};

// What is measured: a table trained with Adagrad. Rows are of dim floats.
class Subject {
 public:
  virtual ~Subject() = default;
  virtual void Insert(const int64_t* ids, const float* weights, int64_t count) = 0;
  virtual void Lookup(const int64_t* ids, int64_t count, float* weights) = 0;
  // Merges duplicates.
  virtual void Update(const int64_t* ids, const float* gradients, int64_t count) = 0;
};

template <int kDim>
class BareSubject final : public Subject {
 public:
  explicit BareSubject(const Flags& flags) : loop_(flags.keys, flags.threads) {}

  void Insert(const int64_t* ids, const float* weights, int64_t count) override {
    loop_.Insert(ids, weights, count, kInitialAccumulator);
  }
  void Lookup(const int64_t* ids, int64_t count, float* weights) override { loop_.Lookup(ids, count, weights); }
  void Update(const int64_t* ids, const float* gradients, int64_t count) override {
    loop_.Update(ids, gradients, count, kLearningRate);
  }

 private:
  BareLoop<kDim> loop_;
};

std::unique_ptr<Subject> MakeBare(const Flags& flags) {
  switch (flags.dim) {
    case 1:
      return std::make_unique<BareSubject<1>>(flags);
    case 8:
      return std::make_unique<BareSubject<8>>(flags);
    case 16:
      return std::make_unique<BareSubject<16>>(flags);
    case 32:
      return std::make_unique<BareSubject<32>>(flags);
    case 64:
      return std::make_unique<BareSubject<64>>(flags);
  }
  return nullptr;
}

// The store's own table, as a kernel calls it.
class StoreSubject final : public Subject {
 public:
  explicit StoreSubject(const Flags& flags) : workers_(flags.threads), run_(workers_.AsExecutor()) {
    TableConfig config;
    config.name = "bench";
    SegmentConfig segment;
    segment.dim = flags.dim;
    segment.optimizer = {
        "adagrad",
        {{"initial_accumulator_value", kInitialAccumulator}, {"weight_decay_factor", 0}, {"decouple_weight_decay", 0}}};
    segment.initializer = {"zeros", {}};
    segment.compressor = {"fp32", {}};
    config.segments.push_back(segment);
    const Status made = EmbeddingTable::Create(config, &table_);
    if (!made.ok()) std::fprintf(stderr, "store_bench: %s\n", made.message().c_str());
  }

  void Insert(const int64_t* ids, const float* weights, int64_t count) override {
    (void)table_->Assign(ids, weights, count, {}, run_);
  }
  void Lookup(const int64_t* ids, int64_t count, float* weights) override {
    table_->Lookup(ids, count, {}, weights, run_);
  }
  void Update(const int64_t* ids, const float* gradients, int64_t count) override {
    MergedGradients merged;
    (void)table_->Merge({{{ids, count, nullptr}, count, gradients, nullptr, nullptr}}, run_, &merged);
    table_->Apply(merged, {&kLearningRate, 1, 0}, run_);
  }

 private:
  Workers workers_;
  const Executor run_;
  std::unique_ptr<EmbeddingTable> table_;
};

std::unique_ptr<Subject> MakeStore(const Flags& flags) { return std::make_unique<StoreSubject>(flags); }

struct NamedSubject {
  const char* name;
  std::unique_ptr<Subject> (*make)(const Flags& flags);
};
constexpr NamedSubject kSubjects[] = {{"bare", MakeBare}, {"store", MakeStore}};

// Draws the r-th key with weight r^-zipf; all alike when that is 0.
class IdStream {
 public:
  IdStream(const std::vector<int64_t>& keys, double zipf) : keys_(keys) {
    if (zipf == 0) return;
    cdf_.reserve(keys.size());
    double sum = 0;
    for (size_t rank = 1; rank <= keys.size(); ++rank) cdf_.push_back(sum += std::pow(rank, -zipf));
  }

  void Draw(std::vector<int64_t>* ids) {
    for (int64_t& id : *ids) id = keys_[cdf_.empty() ? random_() % keys_.size() : DrawRank()];
  }

 private:
  size_t DrawRank() {
    const double at = std::uniform_real_distribution<double>(0, cdf_.back())(random_);
    return std::min<size_t>(std::lower_bound(cdf_.begin(), cdf_.end(), at) - cdf_.begin(), keys_.size() - 1);
  }

  const std::vector<int64_t>& keys_;
  std::vector<double> cdf_;
  std::mt19937_64 random_{1};
};

// Distinct, scattered, in random order.
std::vector<int64_t> DistinctKeys(int64_t count) {
  std::vector<int64_t> keys(count);
  std::iota(keys.begin(), keys.end(), 1);
  std::shuffle(keys.begin(), keys.end(), std::mt19937_64(0));
  for (int64_t& key : keys) key *= 7919;
  return keys;
}

std::vector<float> RandomRows(int64_t floats) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0, 0.01f);
  std::vector<float> rows(floats);
  for (float& value : rows) value = normal(random);
  return rows;
}

void Fill(Subject* subject, const std::vector<int64_t>& keys, const std::vector<float>& rows, int64_t batch) {
  const int64_t count = keys.size();
  for (int64_t first = 0; first < count; first += batch) {
    subject->Insert(&keys[first], rows.data(), std::min(batch, count - first));
  }
}

// The first touch of a page costs a virtual machine's host many times an insert, so it is made before the clock runs.
void TouchMemory(int64_t bytes) {
  const HugeArray<char> memory(bytes);
  for (int64_t at = 0; at < bytes; at += 4096) memory[at] = 1;
}

template <typename Work>
double Seconds(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Of `work` on the ids of one batch. All batches are drawn before the first runs.
template <typename Work>
double MedianSeconds(IdStream* stream, std::vector<int64_t>* ids, const Work& work) {
  std::vector<std::vector<int64_t>> batches(kWarmUp + kRounds, *ids);
  for (std::vector<int64_t>& batch : batches) stream->Draw(&batch);
  std::vector<double> seconds;
  for (int round = 0; round < kWarmUp + kRounds; ++round) {
    ids->swap(batches[round]);
    const double taken = Seconds(work);
    if (round >= kWarmUp) seconds.push_back(taken);
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRounds / 2, seconds.end());
  return seconds[kRounds / 2];
}

void Report(const Flags& flags, const std::string& name, double millions) {
  if (!flags.json) {
    std::printf("%-24s %8.2f M ids/s\n", name.c_str(), millions);
  } else {
    std::printf(
        "{\"case\": \"%s\", \"keys\": %lld, \"dim\": %d, \"threads\": %d, \"batch\": %lld, \"zipf\": %g, "
        "\"value\": %.4g, \"unit\": \"M ids/s\"}\n",
        name.c_str(), static_cast<long long>(flags.keys), flags.dim, flags.threads, static_cast<long long>(flags.batch),
        flags.zipf, millions);
  }
  std::fflush(stdout);
}

void Measure(const Flags& flags, const std::vector<int64_t>& keys, const NamedSubject& named) {
  const std::string name = named.name;
  const std::vector<float> rows = RandomRows(flags.batch * flags.dim);
  TouchMemory(flags.keys * (kIndexBytes + kFloatsPerWeight * sizeof(float) * flags.dim));
  const std::unique_ptr<Subject> subject = named.make(flags);
  const double filled = Seconds([&] { Fill(subject.get(), keys, rows, flags.batch); });
  Report(flags, name + " insert", flags.keys / filled / 1e6);

  IdStream stream(keys, flags.zipf);
  std::vector<int64_t> ids(flags.batch);
  std::vector<float> weights(rows.size());
  const auto look_up = [&] { subject->Lookup(ids.data(), flags.batch, weights.data()); };
  Report(flags, name + " lookup", flags.batch / MedianSeconds(&stream, &ids, look_up) / 1e6);
  const auto step = [&] {
    look_up();
    subject->Update(ids.data(), rows.data(), flags.batch);
  };
  Report(flags, name + " lookup + update", flags.batch / MedianSeconds(&stream, &ids, step) / 1e6);
}

// The same table in the plainest form.
class Reference final : public Subject {
 public:
  explicit Reference(const Flags& flags) : dim_(flags.dim) {}

  void Insert(const int64_t* ids, const float* weights, int64_t count) override {
    for (int64_t i = 0; i < count; ++i) {
      std::vector<float>& entry = entries_[ids[i]];
      entry.assign(weights + i * dim_, weights + (i + 1) * dim_);
      entry.resize(2 * dim_, kInitialAccumulator);
    }
  }

  void Lookup(const int64_t* ids, int64_t count, float* weights) override {
    for (int64_t i = 0; i < count; ++i) std::copy_n(entries_.at(ids[i]).begin(), dim_, weights + i * dim_);
  }

  void Update(const int64_t* ids, const float* gradients, int64_t count) override {
    std::unordered_map<int64_t, std::vector<float>> sums;
    for (int64_t i = 0; i < count; ++i) {
      std::vector<float>& sum = sums[ids[i]];
      sum.resize(dim_);
      for (int k = 0; k < dim_; ++k) sum[k] += gradients[i * dim_ + k];
    }
    for (const auto& [id, sum] : sums) {
      std::vector<float>& entry = entries_.at(id);
      for (int k = 0; k < dim_; ++k) {
        entry[dim_ + k] += sum[k] * sum[k];
        entry[k] -= kLearningRate * sum[k] / std::sqrt(entry[dim_ + k]);
      }
    }
  }

 private:
  const int dim_;
  std::unordered_map<int64_t, std::vector<float>> entries_;
};

// Whether a subject reads as the reference does after the same updates.
bool Agrees(const Flags& flags, const std::vector<int64_t>& keys, const NamedSubject& named) {
  const std::unique_ptr<Subject> subject = named.make(flags);
  Reference reference(flags);
  const std::vector<float> rows = RandomRows(flags.batch * flags.dim);
  Fill(subject.get(), keys, rows, flags.batch);
  Fill(&reference, keys, rows, flags.batch);
  IdStream stream(keys, flags.zipf);
  std::vector<int64_t> ids(flags.batch);
  for (int round = 0; round < kRounds; ++round) {
    stream.Draw(&ids);
    subject->Update(ids.data(), rows.data(), flags.batch);
    reference.Update(ids.data(), rows.data(), flags.batch);
  }
  std::vector<float> actual(keys.size() * flags.dim);
  std::vector<float> expected(actual.size());
  subject->Lookup(keys.data(), flags.keys, actual.data());
  reference.Lookup(keys.data(), flags.keys, expected.data());
  for (size_t i = 0; i < actual.size(); ++i) {
    if (!(std::abs(actual[i] - expected[i]) <= 1e-6f)) return false;
  }
  return true;
}

bool ParseFlags(int argc, char** argv, Flags* flags) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (name == "--json") {
      flags->json = true;
    } else if (name == "--check") {
      flags->check = true;
    } else if (i + 1 == argc) {
      return false;
    } else if (name == "--keys") {
      flags->keys = std::atoll(argv[++i]);
    } else if (name == "--dim") {
      flags->dim = std::atoi(argv[++i]);
    } else if (name == "--threads") {
      flags->threads = std::atoi(argv[++i]);
    } else if (name == "--batch") {
      flags->batch = std::atoll(argv[++i]);
    } else if (name == "--zipf") {
      flags->zipf = std::atof(argv[++i]);
    } else {
      return false;
    }
  }
  constexpr int kDims[] = {1, 8, 16, 32, 64};
  return flags->keys > 0 && flags->threads > 0 && flags->batch > 0 && flags->zipf >= 0 &&
         std::find(std::begin(kDims), std::end(kDims), flags->dim) != std::end(kDims);
}

int Main(int argc, char** argv) {
  Flags flags;
  if (!ParseFlags(argc, argv, &flags)) {
    std::fprintf(stderr,
                 "usage: store_bench [--keys N] [--dim 1|8|16|32|64] [--threads T] [--batch B] [--zipf S] [--json] "
                 "[--check]\n");
    return 2;
  }
  const std::vector<int64_t> keys = DistinctKeys(flags.keys);
  int wrong = 0;
  for (const NamedSubject& named : kSubjects) {
    if (!flags.check) {
      Measure(flags, keys, named);
    } else if (!Agrees(flags, keys, named)) {
      std::fprintf(stderr, "store_bench: %s differs from std::unordered_map\n", named.name);
      wrong = 1;
    }
  }
  return wrong;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) { return millrace::Main(argc, argv); }
