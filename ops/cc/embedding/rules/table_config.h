// What a table is made of, and its text form that travels in op attributes.
#ifndef MILLRACE_EMBEDDING_TABLE_CONFIG_H_
#define MILLRACE_EMBEDDING_TABLE_CONFIG_H_

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "ops/cc/embedding/rules/occurrence_filter.h"
#include "ops/cc/embedding/rules/rule_config.h"
#include "ops/cc/embedding/base/status.h"

namespace millrace {

// "a=1;b=2" as a map; refuses a part without '=' and a repeated key.
Status ParseKeyValues(std::string_view text, std::map<std::string, std::string>* result);

// 1 to 64 letters, digits, '_', '-' and '.', not starting with '.': it names files.
bool IsTableName(const std::string& name);

// Consecutive dimensions of an entry that share their rules.
struct SegmentConfig {
  int dim = 0;
  RuleConfig optimizer;
  RuleConfig initializer;
  RuleConfig compressor;
  float delay_compensation = 0;
  bool stochastic_rounding = false;
};

// What becomes of a gradient that is NaN or infinite once the gradients of equal ids are summed.
enum class NonFinite {
  kError,  // the whole batch is refused
  kSkip,   // the id is left out and counted
  kClip,   // NaN becomes 0, the rest is clipped to gradient_limit, and the id is counted
};

// Text form: name=movies;seed=7;serving=0;skip_zero=0;non_finite=error;gradient_limit=inf;segments=1;
//   segment.0.dim=16;segment.0.delay_compensation=0;segment.0.stochastic_rounding=0;
//   segment.0.optimizer=adagrad;segment.0.optimizer.initial_accumulator_value=0.1;...;
//   segment.0.initializer=random_uniform;segment.0.initializer.minval=-0.05;...;segment.0.compressor=fp32;
//   filter=sliding;filter.capacity=1000000;filter.split_num=7;threshold=0;threshold.3=5;
//   expire_days=36500;expire_days.3=1.5
// The parameters of a rule are under its name; `threshold.3` and `expire_days.3` are those of slot 3.
struct TableConfig {
  std::string name;  // letters, digits, '_', '-' and '.', not starting with '.'
  uint64_t seed = 0;
  bool serving = false;    // entries hold compressed weights only and take no gradients
  bool skip_zero = false;  // serving only: entries whose weights are all zero are not stored
  std::vector<SegmentConfig> segments;
  RuleConfig filter{"none", {}};
  OccurrenceThresholds thresholds;
  double expire_days = 36500;
  std::map<int, double> slot_expire_days;
  NonFinite non_finite = NonFinite::kError;
  float gradient_limit = std::numeric_limits<float>::infinity();
  std::string text;  // as parsed; equal texts are equal configurations

  static Status Parse(std::string_view text, TableConfig* result);
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_TABLE_CONFIG_H_
