// What a table is made of, and its text form that travels in op attributes and file headers.
#ifndef MILLRACE_EMBEDDING_TABLE_CONFIG_H_
#define MILLRACE_EMBEDDING_TABLE_CONFIG_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "ops/cc/embedding/status.h"

namespace millrace {

// "a=1;b=2" as a map; refuses a part without '=' and a repeated key.
Status ParseKeyValues(std::string_view text, std::map<std::string, std::string>* result);

// A named rule and its numbers: an optimizer or an initializer.
struct RuleConfig {
  std::string kind;
  std::map<std::string, double> parameters;
};

// Text form: name=movies;dim=16;seed=7;optimizer=adagrad;optimizer.initial_accumulator_value=0.1;
//            initializer=random_uniform;initializer.minval=-0.05;initializer.maxval=0.05
struct TableConfig {
  std::string name;  // letters, digits, '_', '-' and '.', not starting with '.'
  int dim = 0;
  uint64_t seed = 0;
  RuleConfig optimizer;
  RuleConfig initializer;
  std::string text;  // as parsed; equal texts are equal configurations

  static Status Parse(std::string_view text, TableConfig* result);
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_TABLE_CONFIG_H_
