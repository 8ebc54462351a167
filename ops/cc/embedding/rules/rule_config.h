// A named rule and its numbers, as a table's configuration gives them: an optimizer, an initializer, a compressor or a
// filter.
#ifndef MILLRACE_EMBEDDING_RULE_CONFIG_H_
#define MILLRACE_EMBEDDING_RULE_CONFIG_H_

#include <cfloat>
#include <charconv>
#include <cmath>
#include <map>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "ops/cc/embedding/base/status.h"

namespace millrace {

// Whether the whole text is a number, which is written in the same way in every locale.
template <typename Number>
bool ParseNumber(std::string_view text, Number* number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *number);
  return error == std::errc() && end == text.data() + text.size();
}

struct RuleConfig {
  std::string kind;
  std::map<std::string, double> parameters;
};

// Takes the numbers of a rule by name and finds what is missing, out of bounds or left over.
class RuleParameters {
 public:
  // `where` begins the message of an error, as in "table 'movies', segment 0: optimizer".
  RuleParameters(std::string where, const RuleConfig& rule)
      : where_(std::move(where)), kind_(rule.kind), left_(rule.parameters) {}

  // A finite number in [low, high); `low` where there is a problem, so that it converts to whatever the range fits.
  double Take(const std::string& name, double low, double high) {
    const auto found = left_.find(name);
    if (found == left_.end()) {
      if (problem_.empty()) problem_ = "needs '" + name + "'";
      return low;
    }
    const double value = found->second;
    left_.erase(found);
    if (std::isfinite(value) && value >= low && value < high) return value;
    if (problem_.empty()) problem_ = "has '" + name + "' out of bounds: " + std::to_string(value);
    return low;
  }
  float TakePositive(const std::string& name) { return static_cast<float>(Take(name, 0, FLT_MAX)); }  // 0 included
  // In [0, 1), as a float too.
  float TakeFraction(const std::string& name) {
    const auto fraction = static_cast<float>(Take(name, 0, 1));
    if (fraction >= 1 && problem_.empty()) problem_ = "has '" + name + "' out of bounds: it rounds to 1";
    return fraction;
  }
  bool TakeFlag(const std::string& name) { return Take(name, 0, 2) != 0; }

  // InvalidArgument for the first problem, or for a number that nobody took.
  Status Finish() const {
    if (!problem_.empty()) return InvalidArgument(where_ + " " + kind_ + " " + problem_);
    if (left_.empty()) return {};
    return InvalidArgument(where_ + " " + kind_ + " has no '" + left_.begin()->first + "'");
  }

 private:
  const std::string where_, kind_;
  std::map<std::string, double> left_;
  std::string problem_;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_RULE_CONFIG_H_
