// Tables for tests, and their calls in one line.
#ifndef MILLRACE_TESTS_CC_TEST_TABLES_H_
#define MILLRACE_TESTS_CC_TEST_TABLES_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "ops/cc/embedding/table/embedding_store.h"

namespace millrace {

inline const RuleConfig kSgd{"sgd", {}};
inline const RuleConfig kZeros{"zeros", {}};
inline const RuleConfig kUniform{"random_uniform", {{"minval", -0.05}, {"maxval", 0.05}}};
inline const RuleConfig kFp32{"fp32", {}};

inline RuleConfig Adagrad(double initial) {
  return {"adagrad",
          {{"initial_accumulator_value", initial}, {"weight_decay_factor", 0}, {"decouple_weight_decay", 0}}};
}

inline RuleConfig OneBit(double amplitude, bool packed) {
  return {"one_bit",
          {{"step_size", 200},
           {"init_scale", 1},
           {"max_scale", 10000},
           {"amplitude", amplitude},
           {"packed", packed ? 1 : 0}}};
}

inline RuleConfig Sliding(double capacity) { return {"sliding", {{"capacity", capacity}, {"split_num", 7}}}; }

inline SegmentConfig Segment(int dim, const RuleConfig& optimizer = kSgd, const RuleConfig& initializer = kZeros,
                             const RuleConfig& compressor = kFp32) {
  SegmentConfig segment;
  segment.dim = dim;
  segment.optimizer = optimizer;
  segment.initializer = initializer;
  segment.compressor = compressor;
  return segment;
}

inline TableConfig Config(const std::vector<SegmentConfig>& segments, const std::string& name = "t") {
  TableConfig config;
  config.name = name;
  config.segments = segments;
  return config;
}

inline TableConfig Config(int dim, const RuleConfig& optimizer = kSgd, const RuleConfig& initializer = kZeros) {
  return Config({Segment(dim, optimizer, initializer)});
}

inline TableConfig Named(const std::string& name, TableConfig config) {
  config.name = name;
  return config;
}

// The same table as a server holds it.
inline TableConfig Serving(TableConfig config) {
  config.serving = true;
  return config;
}

inline TableConfig Filtered(TableConfig config, const RuleConfig& filter, uint32_t threshold) {
  config.filter = filter;
  config.thresholds.fallback = threshold;
  return config;
}

inline std::string NumberText(double number) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.17g", number);
  return text;
}

inline std::string RuleText(const std::string& key, const RuleConfig& rule) {
  std::string text = ";" + key + "=" + rule.kind;
  for (const auto& [name, number] : rule.parameters) text += ";" + key + "." + name + "=" + NumberText(number);
  return text;
}

// What TableConfig::Parse reads.
inline std::string TextOf(const TableConfig& config) {
  const char* const non_finite[] = {"error", "skip", "clip"};
  std::string text = "name=" + config.name + ";seed=" + std::to_string(config.seed) +
                     ";serving=" + std::to_string(config.serving) + ";skip_zero=" + std::to_string(config.skip_zero) +
                     ";non_finite=" + non_finite[static_cast<int>(config.non_finite)] +
                     ";gradient_limit=" + NumberText(config.gradient_limit) +
                     ";segments=" + std::to_string(config.segments.size());
  for (size_t s = 0; s < config.segments.size(); ++s) {
    const SegmentConfig& segment = config.segments[s];
    const std::string prefix = "segment." + std::to_string(s) + ".";
    text += ";" + prefix + "dim=" + std::to_string(segment.dim) + ";" + prefix +
            "delay_compensation=" + NumberText(segment.delay_compensation) + ";" + prefix +
            "stochastic_rounding=" + std::to_string(segment.stochastic_rounding) +
            RuleText(prefix + "optimizer", segment.optimizer) + RuleText(prefix + "initializer", segment.initializer) +
            RuleText(prefix + "compressor", segment.compressor);
  }
  text += RuleText("filter", config.filter) + ";threshold=" + std::to_string(config.thresholds.fallback);
  for (const auto& [slot, threshold] : config.thresholds.by_slot) {
    text += ";threshold." + std::to_string(slot) + "=" + std::to_string(threshold);
  }
  text += ";expire_days=" + NumberText(config.expire_days);
  for (const auto& [slot, days] : config.slot_expire_days) {
    text += ";expire_days." + std::to_string(slot) + "=" + NumberText(days);
  }
  return text;
}

inline std::unique_ptr<EmbeddingTable> MakeTable(const TableConfig& config) {
  std::unique_ptr<EmbeddingTable> table;
  const Status made = EmbeddingTable::Create(config, &table);
  EXPECT_TRUE(made.ok()) << made.message();
  return table;
}

inline std::shared_ptr<EmbeddingStore> MakeStore(const std::vector<TableConfig>& configs) {
  std::vector<std::string> texts;
  for (const TableConfig& config : configs) texts.push_back(TextOf(config));
  std::shared_ptr<EmbeddingStore> store;
  const Status made = EmbeddingStore::Create("s", texts, &store);
  EXPECT_TRUE(made.ok()) << made.message();
  return store;
}

inline EmbeddingTable& TableOf(const std::shared_ptr<EmbeddingStore>& store, size_t index = 0) {
  return *store->tables()[index];
}

// first, first + 1, ...
inline std::vector<int64_t> Sequence(int64_t count, int64_t first = 0) {
  std::vector<int64_t> fids(count);
  std::iota(fids.begin(), fids.end(), first);
  return fids;
}

inline std::vector<float> LookUp(EmbeddingTable& table, const std::vector<int64_t>& fids,
                                 const LookupOptions& options = {}, const Executor& run = RunInline) {
  std::vector<float> values(fids.size() * table.dim(), -99.0f);
  table.Lookup(fids.data(), fids.size(), options, values.data(), run);
  return values;
}

inline std::vector<float> CreateAndLookUp(EmbeddingTable& table, const std::vector<int64_t>& fids,
                                          const Executor& run = RunInline) {
  return LookUp(table, fids, {Missing::kCreate, 0}, run);
}

struct Step {
  std::vector<float> rates = {1};  // one per segment
  uint32_t timestamp = 0;
  int64_t global_step = 0;
};

// One row of gradients per id.
inline Status Update(EmbeddingTable& table, const std::vector<int64_t>& fids, const std::vector<float>& gradients,
                     const Step& step = {}, const Executor& run = RunInline) {
  EXPECT_EQ(gradients.size(), fids.size() * table.dim());
  EXPECT_EQ(static_cast<int>(step.rates.size()), table.num_segments());
  MergedGradients merged;
  const int64_t count = fids.size();
  MILLRACE_RETURN_IF_ERROR(
      table.Merge({{{fids.data(), count, nullptr}, count, gradients.data(), nullptr, nullptr}}, run, &merged));
  table.Apply(merged, {step.rates.data(), step.timestamp, step.global_step}, run);
  return {};
}

inline Status Assign(EmbeddingTable& table, const std::vector<int64_t>& fids, const std::vector<float>& values,
                     const AssignOptions& options = {}, const Executor& run = RunInline) {
  EXPECT_EQ(values.size(), fids.size() * table.dim());
  return table.Assign(fids.data(), values.data(), fids.size(), options, run);
}

inline Status AssignAdd(EmbeddingTable& table, const std::vector<int64_t>& fids, const std::vector<float>& values,
                        uint32_t timestamp = 0) {
  return Assign(table, fids, values, {timestamp, true, false});
}

inline int64_t Erase(EmbeddingTable& table, const std::vector<int64_t>& fids) {
  return table.Erase(fids.data(), fids.size());
}

// '1' for each id that has an entry.
inline std::string Contains(const EmbeddingTable& table, const std::vector<int64_t>& fids) {
  std::string present;
  for (const int64_t fid : fids) {
    bool found = false;
    table.Contains(&fid, 1, &found);
    present += found ? '1' : '0';
  }
  return present;
}

// An entry as a row, empty where there is none.
inline std::string RowOf(const EmbeddingTable& table, int64_t fid) {
  std::string row(table.layout().row_bytes(), '\0');
  bool found = false;
  table.LookupEntries(&fid, 1, &found, row.data());
  return found ? row : "";
}

// Weights as they are, whatever a lookup would show.
inline std::vector<float> RawWeights(const EmbeddingTable& table, int64_t fid) {
  std::vector<float> weights(table.dim());
  table.layout().ReadWeights(RowHeader::EntryOf(RowOf(table, fid).data()), weights.data());
  return weights;
}

inline uint32_t TimestampOf(const EmbeddingTable& table, int64_t fid) {
  const std::string row = RowOf(table, fid);
  return row.empty() ? 0 : RowHeader::Timestamp(row.data());
}

// Rows of all entries, ascending by their bytes.
inline std::vector<std::string> Content(const EmbeddingTable& table) {
  WalkPosition position;
  EntryRows rows;
  table.Walk(kLockShards, INT64_MAX, &position, &rows);
  std::vector<std::string> content;
  for (int64_t i = 0; i < rows.size(); ++i) content.emplace_back(rows.at(i), rows.row_bytes);
  std::sort(content.begin(), content.end());
  return content;
}

// Steals; none may have been forgotten.
inline std::vector<int64_t> Touched(EmbeddingTable& table) {
  std::vector<int64_t> fids;
  EXPECT_FALSE(table.StealTouched(&fids));
  return fids;
}

inline void RunOnFourThreads(int64_t units, int64_t, const RangeBody& body) {
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] { body(units * t / 4, units * (t + 1) / 4); });
  }
  for (std::thread& thread : threads) thread.join();
}

// The finest split, last unit first.
inline void RunBackwards(int64_t units, int64_t, const RangeBody& body) {
  for (int64_t unit = units; unit-- > 0;) body(unit, unit + 1);
}

inline void ExpectNear(const std::vector<float>& actual, const std::vector<double>& expected, double tolerance = 1e-6) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i], expected[i], tolerance) << "at " << i;
}

}  // namespace millrace

#endif  // MILLRACE_TESTS_CC_TEST_TABLES_H_
