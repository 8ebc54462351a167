// Prints a hash of what each loop with two versions (cpu_clones.h) computes, one line per loop and dim.
//
// Built twice, as the machine runs it and with MILLRACE_NO_CLONES; `make test-cc` fails unless both print the same.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ops/cc/embedding/base/executor.h"
#include "ops/cc/embedding/base/fid.h"
#include "ops/cc/embedding/base/finite.h"
#include "ops/cc/embedding/rules/compressor.h"
#include "ops/cc/embedding/rules/initializer.h"
#include "ops/cc/embedding/rules/occurrence_filter.h"
#include "ops/cc/embedding/rules/sparse_optimizer.h"
#include "ops/cc/embedding/table/embedding_table.h"
#include "ops/cc/embedding/table/pooling.h"

namespace millrace {
namespace {

constexpr int kDims[] = {1, 3, 4, 8, 15, 16, 17, 32, 64, 100};  // those with loops of their own, and odd ones
constexpr int kSteps = 20;

void Check(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "clone_digest: %s\n", status.message().c_str());
  std::exit(1);
}

// Floats of many magnitudes, both signs, some of them 0; equal in every build.
std::vector<float> Floats(size_t count, uint64_t seed) {
  std::vector<float> floats(count);
  for (size_t i = 0; i < count; ++i) {
    const uint64_t bits = Mix64(seed * 1000003 + i);
    const float unit = static_cast<float>(bits >> 40) * 0x1p-24f - 0.5f;
    floats[i] = bits % 11 == 0 ? 0.0f : std::ldexp(unit, static_cast<int>(bits >> 8 & 15) - 10);
  }
  return floats;
}

template <typename Element>
void Print(const std::string& what, int dim, const std::vector<Element>& elements) {
  const std::string_view bytes(reinterpret_cast<const char*>(elements.data()), elements.size() * sizeof(Element));
  std::printf("%s %d %016llx\n", what.c_str(), dim, static_cast<unsigned long long>(HashText(bytes)));
}

std::vector<RuleConfig> Optimizers() {
  const auto decay = std::pair<const std::string, double>("weight_decay_factor", 0.01);
  std::vector<RuleConfig> rules = {
      {"sgd", {}},
      {"adagrad", {{"initial_accumulator_value", 0.1}, decay, {"decouple_weight_decay", 0}}},
      {"adagrad", {{"initial_accumulator_value", 0.1}, decay, {"decouple_weight_decay", 1}}},
      {"adadelta", {{"averaging_ratio", 0.9}, {"epsilon", 0.01}, decay}},
      {"adamom", {{"mom_decay", 0.9}, {"ada_decay", 0.99}, {"epsilon", 1e-6}, decay}},
      {"moving_average", {{"momentum", 0.9}}},
      {"rmsprop", {{"momentum", 0.9}, decay}},
      {"rmspropv2", {{"momentum", 0.9}, decay}},
      {"group_adagrad",
       {{"initial_accumulator_value", 0.1}, {"beta", 0.5}, {"l2_regularization_strength", 0.01}, decay}},
  };
  for (const double nesterov : {0.0, 1.0}) {
    for (const char* kind : {"adam", "amsgrad"}) {
      rules.push_back(
          {kind, {{"beta1", 0.9}, {"beta2", 0.99}, {"epsilon", 1e-8}, decay, {"use_nesterov", nesterov}}});
    }
    rules.push_back({"momentum", {{"momentum", 0.9}, decay, {"use_nesterov", nesterov}}});
  }
  for (const char* kind : {"ftrl", "group_ftrl"}) {
    rules.push_back({kind,
                     {{"initial_accumulator_value", 0.1},
                      {"beta", 0.5},
                      {"l1_regularization_strength", 0.01},
                      {"l2_regularization_strength", 0.02}}});
  }
  return rules;
}

void PrintOptimizer(const RuleConfig& rule, int dim) {
  constexpr int kEntries = 5;
  std::unique_ptr<SparseOptimizer> optimizer;
  Check(MakeOptimizer("digest", rule, dim, &optimizer));
  const size_t width = static_cast<size_t>(dim + optimizer->StateFloats(dim));
  std::vector<float> entries(kEntries * width);
  std::vector<float*> weights;
  for (size_t e = 0; e < kEntries; ++e) {
    const std::vector<float> first = Floats(static_cast<size_t>(dim), e);
    std::copy(first.begin(), first.end(), entries.begin() + static_cast<ptrdiff_t>(e * width));
    weights.push_back(&entries[e * width]);
    optimizer->InitState(weights.back() + dim, dim);
  }
  for (uint64_t step = 1; step <= kSteps; ++step) {
    const std::vector<float> gradients = Floats(static_cast<size_t>(kEntries * dim), 100 + step);
    std::vector<const float*> rows;
    for (int e = 0; e < kEntries; ++e) rows.push_back(&gradients[static_cast<size_t>(e * dim)]);
    optimizer->Update(weights.data(), dim, rows.data(), kEntries, dim, {0.05f, static_cast<int64_t>(step)});
  }
  std::string name = rule.kind;
  for (const auto& [parameter, value] : rule.parameters) name += "," + std::to_string(value);
  Print(name, dim, entries);
}

void PrintCompressor(const RuleConfig& rule, int dim) {
  std::unique_ptr<Compressor> compressor;
  Check(MakeCompressor("digest", rule, &compressor));
  std::vector<float> weights = Floats(static_cast<size_t>(dim), 7), shown(weights.size());
  if (dim > 3) weights[1] = INFINITY, weights[2] = -NAN, weights[3] = 1e-7f;
  std::vector<uint8_t> codes(static_cast<size_t>(compressor->Bytes(dim)));
  compressor->Encode(weights.data(), dim, codes.data());
  Print(rule.kind + " codes", dim, codes);
  compressor->Decode(codes.data(), dim, shown.data());
  Print(rule.kind + " weights", dim, shown);
  compressor->Forward(weights.data(), dim, 1000, shown.data());
  Print(rule.kind + " shown", dim, shown);
}

void PrintOthers(int dim) {
  const auto count = static_cast<size_t>(dim);
  std::vector<float> weights = Floats(count, 1), read = Floats(count, 2), gradient = Floats(count, 3);
  CompensateDelay(0.5f, weights.data(), read.data(), gradient.data(), dim, gradient.data());
  Print("delay", dim, gradient);
  RoundToHalf(99, weights.data(), dim);
  Print("rounded", dim, weights);
  Initializer initializer;
  Check(Initializer::Make("digest", {"random_uniform", {{"minval", -0.3}, {"maxval", 0.7}}}, 5, "t", &initializer));
  initializer.Fill(123456789, 2, weights.data(), dim);
  Print("first", dim, weights);
  weights.push_back(-NAN);
  const std::vector<char> finite = {AllFinite(weights.data(), dim), AllFinite(weights.data(), dim + 1)};
  Print("finite", dim, finite);
}

// Merged gradients of repeated ids, pooled both ways, over a table with a filter.
void PrintTable(int dim, Combiner combiner) {
  TableConfig config;
  config.name = "t";
  SegmentConfig segment;
  segment.dim = dim;
  segment.optimizer = Optimizers()[1];
  segment.initializer = {"random_uniform", {{"minval", -0.3}, {"maxval", 0.7}}};
  segment.compressor = {"fp32", {}};
  config.segments = {segment};
  config.filter = {"sliding", {{"capacity", 1000}, {"split_num", 7}}};
  config.thresholds.fallback = 2;
  std::unique_ptr<EmbeddingTable> table;
  Check(EmbeddingTable::Create(config, &table));
  std::vector<int64_t> ids, splits = {0};
  for (uint64_t row = 0; row < 200; ++row) {
    for (uint64_t i = 0; i < row % 5; ++i) ids.push_back(static_cast<int64_t>(Mix64(row * 5 + i) % 97));
    splits.push_back(static_cast<int64_t>(ids.size()));
  }
  const PooledFeature feature{"f",           table.get(), combiner, 3, ids.data(), static_cast<int64_t>(ids.size()),
                              splits.data(), 200};
  std::vector<float> pooled(static_cast<size_t>(200 * feature.row_floats()));
  const float rate = 0.1f;
  for (uint64_t step = 1; step <= kSteps; ++step) {
    const std::vector<float> gradients = Floats(pooled.size(), 500 + step);
    UpdateOptions options;
    options.learning_rates = &rate;
    Check(ApplyPooledGradients({feature}, {gradients.data()}, {options}, RunInline));
    LookupOptions shown;
    shown.missing = Missing::kFirstVector;
    LookupPooled({feature}, shown, {pooled.data()}, RunInline);
    Print("pooled", dim, pooled);
  }
  std::vector<float> values(static_cast<size_t>(97 * dim));
  std::vector<int64_t> all(97);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int64_t>(i);
  table->Lookup(all.data(), 97, {}, values.data(), RunInline);
  Print("looked up", dim, values);
}

int Main() {
  for (const int dim : kDims) {
    for (const RuleConfig& rule : Optimizers()) PrintOptimizer(rule, dim);
    const RuleConfig one_bit{
        "one_bit", {{"step_size", 200}, {"init_scale", 1}, {"max_scale", 1000}, {"amplitude", 0.05}, {"packed", 0}}};
    for (const char* kind : {"fp16", "bf16"}) PrintCompressor({kind, {}}, dim);
    PrintCompressor({"int8", {{"range", 1.0}}}, dim);
    PrintCompressor(one_bit, dim);
    PrintOthers(dim);
    for (const Combiner combiner : {Combiner::kSum, Combiner::kMean, Combiner::kFirstN}) PrintTable(dim, combiner);
  }
  return 0;
}

}  // namespace
}  // namespace millrace

int main() { return millrace::Main(); }
