#include "ops/cc/embedding/rules/table_config.h"

#include <cctype>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <utility>

#include "ops/cc/embedding/base/fid.h"

namespace millrace {
namespace {

constexpr int kMaxSegments = 256;
constexpr int kMaxThreshold = 1 << 30;

// Takes fields out of a text by name; what is left over in the end is unknown.
class Fields {
 public:
  explicit Fields(std::map<std::string, std::string> fields) : left_(std::move(fields)) {}

  std::string TakeText(const std::string& key) {
    const auto found = left_.find(key);
    if (found == left_.end()) {
      Fail("'" + key + "' is missing");
      return "";
    }
    std::string value = std::move(found->second);
    left_.erase(found);
    return value;
  }

  double TakeNumber(const std::string& key) { return ToNumber(key, TakeText(key)); }

  // Finite, as a float too.
  double TakeNotNegative(const std::string& key) {
    const double number = TakeNumber(key);
    if (number >= 0 && number <= FLT_MAX) return number;
    Fail("'" + key + "' must be finite and not negative");
    return 0;
  }

  // Infinite, or one that a float can hold.
  float TakeFloat(const std::string& key) {
    const double number = TakeNumber(key);
    if (!std::isfinite(number) || std::abs(number) <= FLT_MAX) return static_cast<float>(number);
    Fail("'" + key + "' is too large");
    return 0;
  }

  int TakeInt(const std::string& key, int low, int high) { return CheckInt(key, TakeNumber(key), low, high); }

  // All of 64 bits, which a double does not hold.
  uint64_t TakeSeed(const std::string& key) {
    const std::string text = TakeText(key);
    uint64_t seed = 0;
    if (!ParseNumber(text, &seed)) Fail("'" + key + "' is not a whole number below 2^64: '" + text + "'");
    return seed;
  }

  bool TakeFlag(const std::string& key) { return TakeInt(key, 0, 1) != 0; }

  // A rule's name under `key` and its numbers under `key`.<number>.
  RuleConfig TakeRule(const std::string& key) {
    RuleConfig rule{TakeText(key), {}};
    for (auto& [name, value] : TakeBelow(key + ".")) rule.parameters[name] = ToNumber(key + "." + name, value);
    return rule;
  }

  // Integers by slot under `key`.<slot>.
  std::map<int, int> TakeIntsBySlot(const std::string& key, int low, int high) {
    std::map<int, int> integers;
    for (const auto& [slot, number] : TakeBySlot(key)) {
      integers[slot] = CheckInt(key + "." + std::to_string(slot), number, low, high);
    }
    return integers;
  }

  // Numbers by slot under `key`.<slot>.
  std::map<int, double> TakeBySlot(const std::string& key) {
    std::map<int, double> numbers;
    for (auto& [slot, value] : TakeBelow(key + ".")) {
      const double number = ToNumber(key + "." + slot, slot);
      if (number == std::floor(number) && number >= 0 && number <= kSlotMask) {
        numbers[static_cast<int>(number)] = ToNumber(key + "." + slot, value);
      } else {
        Fail("'" + key + "." + slot + "' is no slot");
      }
    }
    return numbers;
  }

  Status Finish() {
    if (problem_.empty() && !left_.empty()) Fail("'" + left_.begin()->first + "' is unknown");
    return problem_.empty() ? Status() : InvalidArgument("table configuration: " + problem_);
  }

 private:
  void Fail(const std::string& problem) {
    if (problem_.empty()) problem_ = problem;
  }

  int CheckInt(const std::string& key, double number, int low, int high) {
    if (number == std::floor(number) && number >= low && number <= high) return static_cast<int>(number);
    Fail("'" + key + "' must be an integer in [" + std::to_string(low) + ", " + std::to_string(high) + "]");
    return low;
  }

  double ToNumber(const std::string& key, const std::string& text) {
    double number = 0;
    if (!ParseNumber(text, &number)) Fail("'" + key + "' is not a number: '" + text + "'");
    return number;
  }

  std::map<std::string, std::string> TakeBelow(const std::string& prefix) {
    std::map<std::string, std::string> taken;
    for (auto field = left_.lower_bound(prefix); field != left_.end() && field->first.rfind(prefix, 0) == 0;) {
      taken[field->first.substr(prefix.size())] = field->second;
      field = left_.erase(field);
    }
    return taken;
  }

  std::map<std::string, std::string> left_;
  std::string problem_;
};

SegmentConfig TakeSegment(const std::string& prefix, Fields* fields) {
  SegmentConfig segment;
  segment.dim = fields->TakeInt(prefix + "dim", 1, 1 << 20);
  segment.optimizer = fields->TakeRule(prefix + "optimizer");
  segment.initializer = fields->TakeRule(prefix + "initializer");
  segment.compressor = fields->TakeRule(prefix + "compressor");
  segment.delay_compensation = static_cast<float>(fields->TakeNotNegative(prefix + "delay_compensation"));
  segment.stochastic_rounding = fields->TakeFlag(prefix + "stochastic_rounding");
  return segment;
}

Status ParseNonFinite(const std::string& text, NonFinite* result) {
  if (text == "error") {
    *result = NonFinite::kError;
  } else if (text == "skip") {
    *result = NonFinite::kSkip;
  } else if (text == "clip") {
    *result = NonFinite::kClip;
  } else {
    return InvalidArgument("non_finite '" + text + "' is unknown; choose from error, skip, clip");
  }
  return {};
}

Status Check(const TableConfig& config) {
  const auto fail = [&](const std::string& problem) {
    return InvalidArgument("table '" + config.name + "': " + problem);
  };
  if (!IsTableName(config.name)) {
    return InvalidArgument("table name '" + config.name +
                           "' must be 1 to 64 letters, digits, '_', '-' or '.', and not start with '.'");
  }
  if (config.skip_zero && !config.serving) return fail("skip_zero is for tables that serve");
  if (!(config.gradient_limit > 0)) return fail("gradient_limit must be above 0");
  if (config.non_finite == NonFinite::kClip && std::isinf(config.gradient_limit)) {
    return fail("non_finite clip needs a finite gradient_limit");
  }
  if (!(config.expire_days >= 0)) return fail("expire_days must not be negative");
  for (const auto& [slot, days] : config.slot_expire_days) {
    if (!(days >= 0)) return fail("expire_days of slot " + std::to_string(slot) + " must not be negative");
  }
  return {};
}

}  // namespace

bool IsTableName(const std::string& name) {
  if (name.empty() || name.size() > 64 || name[0] == '.') return false;
  for (const char c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '-' && c != '.') return false;
  }
  return true;
}

Status ParseKeyValues(std::string_view text, std::map<std::string, std::string>* result) {
  while (!text.empty()) {
    const size_t end = text.find(';');
    const std::string_view part = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    const size_t equals = part.find('=');
    if (equals == std::string_view::npos) return InvalidArgument("'" + std::string(part) + "' is not key=value");
    const std::string key(part.substr(0, equals));
    if (!result->emplace(key, part.substr(equals + 1)).second) return InvalidArgument("'" + key + "' is given twice");
  }
  return {};
}

Status TableConfig::Parse(std::string_view text, TableConfig* result) {
  std::map<std::string, std::string> parts;
  MILLRACE_RETURN_IF_ERROR(ParseKeyValues(text, &parts));
  Fields fields(std::move(parts));
  *result = TableConfig();
  result->text = std::string(text);
  result->name = fields.TakeText("name");
  result->seed = fields.TakeSeed("seed");
  result->serving = fields.TakeFlag("serving");
  result->skip_zero = fields.TakeFlag("skip_zero");
  result->gradient_limit = fields.TakeFloat("gradient_limit");
  const std::string non_finite = fields.TakeText("non_finite");
  const int segments = fields.TakeInt("segments", 1, kMaxSegments);
  for (int s = 0; s < segments; ++s) {
    result->segments.push_back(TakeSegment("segment." + std::to_string(s) + ".", &fields));
  }
  result->filter = fields.TakeRule("filter");
  result->thresholds.fallback = static_cast<uint32_t>(fields.TakeInt("threshold", 0, kMaxThreshold));
  for (const auto& [slot, threshold] : fields.TakeIntsBySlot("threshold", 0, kMaxThreshold)) {
    result->thresholds.by_slot[slot] = static_cast<uint32_t>(threshold);
  }
  result->expire_days = fields.TakeNumber("expire_days");
  result->slot_expire_days = fields.TakeBySlot("expire_days");
  MILLRACE_RETURN_IF_ERROR(fields.Finish());
  MILLRACE_RETURN_IF_ERROR(ParseNonFinite(non_finite, &result->non_finite));
  return Check(*result);
}

}  // namespace millrace
