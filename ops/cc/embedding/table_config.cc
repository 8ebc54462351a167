#include "ops/cc/embedding/table_config.h"

#include <cctype>
#include <cstdlib>

namespace millrace {
namespace {

bool IsTableName(const std::string& name) {
  if (name.empty() || name.size() > 128 || name[0] == '.') return false;
  for (const char c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '-' && c != '.') return false;
  }
  return true;
}

bool ParseNumber(const std::string& text, double* number) {
  char* end = nullptr;
  *number = std::strtod(text.c_str(), &end);
  return !text.empty() && *end == '\0';
}

Status ParseField(const std::string& key, const std::string& value, TableConfig* config) {
  const auto number_into = [&](std::map<std::string, double>* numbers, const std::string& name) {
    return ParseNumber(value, &(*numbers)[name]) ? Status() : InvalidArgument(key + "=" + value + " is not a number");
  };
  if (key == "name") {
    config->name = value;
  } else if (key == "dim") {
    config->dim = std::atoi(value.c_str());
  } else if (key == "seed") {
    config->seed = std::strtoull(value.c_str(), nullptr, 10);
  } else if (key == "optimizer") {
    config->optimizer.kind = value;
  } else if (key == "initializer") {
    config->initializer.kind = value;
  } else if (key.rfind("optimizer.", 0) == 0) {
    return number_into(&config->optimizer.parameters, key.substr(10));
  } else if (key.rfind("initializer.", 0) == 0) {
    return number_into(&config->initializer.parameters, key.substr(12));
  } else {
    return InvalidArgument("unknown field '" + key + "' in table configuration");
  }
  return {};
}

}  // namespace

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
  std::map<std::string, std::string> fields;
  MILLRACE_RETURN_IF_ERROR(ParseKeyValues(text, &fields));
  *result = TableConfig();
  result->text = std::string(text);
  for (const auto& [key, value] : fields) MILLRACE_RETURN_IF_ERROR(ParseField(key, value, result));
  if (!IsTableName(result->name)) {
    return InvalidArgument("table name '" + result->name +
                           "' must be 1 to 128 letters, digits, '_', '-' or '.', and not start with '.'");
  }
  if (result->dim < 1) return InvalidArgument("table '" + result->name + "': dim must be at least 1");
  return {};
}

}  // namespace millrace
