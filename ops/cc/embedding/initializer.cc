#include "ops/cc/embedding/initializer.h"

#include <algorithm>
#include <cmath>

#include "ops/cc/embedding/fid.h"

namespace millrace {

Status Initializer::Make(const TableConfig& config, Initializer* result) {
  const auto& [kind, parameters] = config.initializer;
  const auto number = [&parameters = parameters](const char* name) {
    const auto found = parameters.find(name);
    return found == parameters.end() ? 0.0f : static_cast<float>(found->second);
  };
  result->key_ = Mix64(config.seed + 0x9E3779B97F4A7C15ull) ^ HashText(config.name);
  if (kind == "zeros") {
    result->low_ = result->high_ = 0;
  } else if (kind == "constant") {
    result->low_ = result->high_ = number("value");
  } else if (kind == "random_uniform") {
    result->low_ = number("minval");
    result->high_ = number("maxval");
  } else {
    return InvalidArgument("table '" + config.name + "': unknown initializer '" + kind +
                           "'; choose from zeros, constant, random_uniform");
  }
  if (!std::isfinite(result->low_) || !std::isfinite(result->high_) || result->low_ > result->high_) {
    return InvalidArgument("table '" + config.name + "': initializer range must be finite and not empty");
  }
  return {};
}

void Initializer::Fill(int64_t fid, float* weights, int dim) const {
  if (low_ == high_) {
    std::fill_n(weights, dim, low_);
    return;
  }
  const uint64_t stream = Mix64(key_ + static_cast<uint64_t>(fid) * 0x9E3779B97F4A7C15ull);
  const float last = std::nextafter(high_, low_);
  for (int i = 0; i < dim; ++i) {
    const uint64_t bits = Mix64(stream + static_cast<uint64_t>(i + 1) * 0xD1342543DE82EF95ull);
    const float unit = static_cast<float>(bits >> 40) * 0x1p-24f;  // [0, 1), every value exact
    weights[i] = std::min(low_ + unit * (high_ - low_), last);     // rounding must not reach maxval
  }
}

}  // namespace millrace
