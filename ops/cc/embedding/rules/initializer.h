// First weights of an entry, a pure function of (seed, table name, fid, dimension).
#ifndef MILLRACE_EMBEDDING_INITIALIZER_H_
#define MILLRACE_EMBEDDING_INITIALIZER_H_

#include <cstdint>
#include <string>

#include "ops/cc/embedding/rules/rule_config.h"
#include "ops/cc/embedding/base/status.h"

namespace millrace {

// Counter-based, so an id's first vector depends neither on the order of ids nor on threads or shards.
class Initializer {
 public:
  // Kinds: zeros, ones, constant (value), random_uniform (minval, maxval: in [minval, maxval)).
  // `where` begins the message of an error, as in "table 'movies', segment 0: initializer".
  static Status Make(const std::string& where, const RuleConfig& rule, uint64_t seed, const std::string& table,
                     Initializer* result);

  // `first_dim`: index of weights[0] among all dims of the table's entry, so that its segments differ.
  void Fill(int64_t fid, int first_dim, float* weights, int dim) const;

 private:
  uint64_t key_ = 0;
  float low_ = 0;
  float high_ = 0;  // equal to low_: the constant low_
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_INITIALIZER_H_
