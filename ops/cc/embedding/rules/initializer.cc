#include "ops/cc/embedding/rules/initializer.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "ops/cc/embedding/base/cpu_clones.h"
#include "ops/cc/embedding/base/fid.h"

namespace millrace {

Status Initializer::Make(const std::string& where, const RuleConfig& rule, uint64_t seed, const std::string& table,
                         Initializer* result) {
  RuleParameters take(where, rule);
  const auto number = [&take](const char* name) { return static_cast<float>(take.Take(name, -FLT_MAX, FLT_MAX)); };
  float low, high;
  if (rule.kind == "zeros") {
    low = high = 0;
  } else if (rule.kind == "ones") {
    low = high = 1;
  } else if (rule.kind == "constant") {
    low = high = number("value");
  } else if (rule.kind == "random_uniform") {
    low = number("minval");
    high = number("maxval");
  } else {
    return InvalidArgument(where + " '" + rule.kind +
                           "' is unknown; choose from zeros, ones, constant, random_uniform");
  }
  MILLRACE_RETURN_IF_ERROR(take.Finish());
  if (!(low <= high && std::isfinite(high - low))) {
    return InvalidArgument(where + " " + rule.kind + " has a range that is empty or beyond float: " +
                           std::to_string(low) + " to " + std::to_string(high));
  }
  result->key_ = Mix64(seed + 0x9E3779B97F4A7C15ull) ^ HashText(table);
  result->low_ = low;
  result->high_ = high;
  return {};
}

MILLRACE_CLONES void Initializer::Fill(int64_t fid, int first_dim, float* weights, int dim) const {
  if (low_ == high_) {
    std::fill_n(weights, dim, low_);
    return;
  }
  const uint64_t stream = Mix64(key_ + static_cast<uint64_t>(fid) * 0x9E3779B97F4A7C15ull);
  const uint64_t first = static_cast<uint64_t>(first_dim) + 1;
  const float last = std::nextafter(high_, low_);
  for (int i = 0; i < dim; ++i) {
    const uint64_t bits = Mix64(stream + (first + static_cast<uint64_t>(i)) * 0xD1342543DE82EF95ull);
    const float unit = static_cast<float>(bits >> 40) * 0x1p-24f;  // [0, 1), every value exact
    weights[i] = std::min(low_ + unit * (high_ - low_), last);     // rounding must not reach maxval
  }
}

}  // namespace millrace
