#include "ops/cc/records/arrow/column_type.h"

#include <charconv>
#include <cstring>
#include <utility>
#include <vector>

namespace millrace::records {
namespace {

constexpr char kKindKey[] = "millrace.kind";
constexpr char kIdKey[] = "millrace.id";
constexpr char kSharedKey[] = "millrace.shared";
constexpr const char* kKindNames[] = {"", "fid", "fid_v1", "raw"};
constexpr const char* kFormats[] = {"l", "i", "f", "g", "b", "z", "u"};
constexpr const char* kValueNames[] = {"int64", "int32", "float", "double", "bool", "binary", "string"};
constexpr size_t kWidths[] = {8, 4, 4, 8, 1, 1, 1};

int32_t ReadInt32(const char** at) {
  int32_t number;
  std::memcpy(&number, *at, sizeof(number));
  *at += sizeof(number);
  return number;
}

std::string_view ReadText(const char** at) {
  const int32_t size = ReadInt32(at);
  const std::string_view text(*at, static_cast<size_t>(size));
  *at += size;
  return text;
}

void WriteInt32(int32_t number, std::string* bytes) {
  bytes->append(reinterpret_cast<const char*>(&number), sizeof(number));
}

void WriteText(std::string_view text, std::string* bytes) {
  WriteInt32(static_cast<int32_t>(text.size()), bytes);
  bytes->append(text);
}

bool ParseKind(std::string_view name, Kind* kind) {
  for (size_t i = 1; i < std::size(kKindNames); ++i) {
    if (name == kKindNames[i]) {
      *kind = static_cast<Kind>(i);
      return true;
    }
  }
  return false;
}

bool ParseMetadata(const char* metadata, Kind* kind, int32_t* id) {
  if (metadata == nullptr) return true;
  for (int32_t pairs = ReadInt32(&metadata); pairs > 0; --pairs) {
    const std::string_view key = ReadText(&metadata);
    const std::string_view text = ReadText(&metadata);
    if (key == kKindKey && !ParseKind(text, kind)) return false;
    if (key == kIdKey && std::from_chars(text.data(), text.data() + text.size(), *id).ec != std::errc()) return false;
  }
  return true;
}

}  // namespace

size_t WidthOf(Value value) { return kWidths[static_cast<size_t>(value)]; }

const char* FormatOf(Value value) { return kFormats[static_cast<size_t>(value)]; }

std::string NameOf(ColumnType type) {
  std::string name = kValueNames[static_cast<size_t>(type.value)];
  for (int i = 0; i < type.depth; ++i) name = "list<" + name + ">";
  if (type.kind == Kind::kPlain) return name;
  return name + " of kind " + kKindNames[static_cast<size_t>(type.kind)];
}

std::string MetadataOf(Kind kind, int32_t id, bool is_shared) {
  std::vector<std::pair<std::string_view, std::string>> pairs;
  if (kind != Kind::kPlain) pairs.emplace_back(kKindKey, kKindNames[static_cast<size_t>(kind)]);
  if (id != 0) pairs.emplace_back(kIdKey, std::to_string(id));
  if (is_shared) pairs.emplace_back(kSharedKey, "1");
  std::string bytes;
  if (pairs.empty()) return bytes;
  WriteInt32(static_cast<int32_t>(pairs.size()), &bytes);
  for (const auto& [key, text] : pairs) {
    WriteText(key, &bytes);
    WriteText(text, &bytes);
  }
  return bytes;
}

bool ParseField(const ArrowSchema& field, ColumnType* type, int32_t* id) {
  *type = {};
  *id = 0;
  if (!ParseMetadata(field.metadata, &type->kind, id)) return false;
  const ArrowSchema* node = &field;
  while (std::string_view(node->format) == "+l") {
    if (++type->depth > 2) return false;
    node = node->children[0];
  }
  for (size_t i = 0; i < std::size(kFormats); ++i) {
    if (std::string_view(node->format) == kFormats[i] && node->dictionary == nullptr) {
      type->value = static_cast<Value>(i);
      return true;
    }
  }
  return false;
}

}  // namespace millrace::records
