// Tables for tests, in one line.
#ifndef MILLRACE_TESTS_CC_TEST_TABLES_H_
#define MILLRACE_TESTS_CC_TEST_TABLES_H_

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "ops/cc/embedding/embedding_store.h"

namespace millrace {

inline const char kZeros[] = ";initializer=zeros";
inline const char kUniform[] = ";initializer=random_uniform;initializer.minval=-0.05;initializer.maxval=0.05";
inline const char kSgd[] = ";optimizer=sgd";

inline std::string Adagrad(double initial, double decay = 0) {
  return ";optimizer=adagrad;optimizer.initial_accumulator_value=" + std::to_string(initial) +
         ";optimizer.weight_decay_factor=" + std::to_string(decay);
}

inline std::string TableText(const std::string& name, int dim, const std::string& rules) {
  return "name=" + name + ";dim=" + std::to_string(dim) + rules;
}

inline std::unique_ptr<EmbeddingTable> MakeTable(const std::string& text) {
  TableConfig config;
  const Status parsed = TableConfig::Parse(text, &config);
  EXPECT_TRUE(parsed.ok()) << parsed.message();
  std::unique_ptr<EmbeddingTable> table;
  const Status made = EmbeddingTable::Create(config, &table);
  EXPECT_TRUE(made.ok()) << made.message();
  return table;
}

inline std::vector<float> LookUp(EmbeddingTable& table, const std::vector<int64_t>& fids, bool create = false) {
  std::vector<float> values(fids.size() * table.dim(), -99.0f);
  table.Lookup(fids.data(), fids.size(), create, values.data(), RunInline);
  return values;
}

// One row of gradients an id.
inline Status Update(EmbeddingTable& table, const std::vector<int64_t>& fids, const std::vector<float>& gradients,
                     float rate, const Executor& run = RunInline) {
  std::vector<Occurrence> occurrences;
  for (size_t i = 0; i < fids.size(); ++i) occurrences.push_back({fids[i], gradients.data() + i * table.dim(), 1.0f});
  MergedGradients merged;
  MILLRACE_RETURN_IF_ERROR(table.Merge(occurrences, run, &merged));
  table.Apply(merged, rate, 7, run);
  return {};
}

inline void RunOnFourThreads(int64_t units, int64_t, const RangeBody& body) {
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] { body(units * t / 4, units * (t + 1) / 4); });
  }
  for (std::thread& thread : threads) thread.join();
}

inline void ExpectNear(const std::vector<float>& actual, const std::vector<double>& expected, double tolerance = 1e-6) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i], expected[i], tolerance) << "at " << i;
}

}  // namespace millrace

#endif  // MILLRACE_TESTS_CC_TEST_TABLES_H_
