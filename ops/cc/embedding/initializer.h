// First weights of an entry, a pure function of (seed, table name, fid, dimension).
#ifndef MILLRACE_EMBEDDING_INITIALIZER_H_
#define MILLRACE_EMBEDDING_INITIALIZER_H_

#include <cstdint>

#include "ops/cc/embedding/status.h"
#include "ops/cc/embedding/table_config.h"

namespace millrace {

// Counter-based, so an id's first vector depends neither on the order of ids nor on threads or shards.
class Initializer {
 public:
  // Kinds: zeros, constant (value), random_uniform (minval, maxval).
  static Status Make(const TableConfig& config, Initializer* result);

  void Fill(int64_t fid, float* weights, int dim) const;

 private:
  uint64_t key_ = 0;
  float low_ = 0;
  float high_ = 0;  // equal to low_: the constant low_
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_INITIALIZER_H_
